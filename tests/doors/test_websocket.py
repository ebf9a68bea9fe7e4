"""The WebSocket door, `llmg.v1`, over real sockets on our own server."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Delta, Embedding, Embeddings, Result, Started
from llmg.core.request import Chat, Embed, Request
from llmg.core.usage import Usage
from llmg.doors.http.sockets import SocketProtocol
from llmg.doors.websocket.app import make_websocket
from llmg.ports import Answering
from llmg.testing.scripted import Gate, Script, Scripted, saying
from llmg.wire import websocket as wire
from llmg.wire.websocket import Close
from support.doors import admission
from support.http import PATIENCE, request
from support.sockets import PATH, Client, Served, client, serving, websocket_door

KEYS = {"me": "sk-mine", "you": "sk-yours"}
PROMPTLY = 0.2  # seconds; it is milliseconds, on a machine that has nothing else to do


@pytest.fixture(autouse=True)
async def tidy(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """No task is left behind, and nobody's mistakes are errors of ours."""
    before = asyncio.all_tasks()
    yield
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


async def prompt(event: asyncio.Event) -> None:
    """Waits for what must happen at once."""
    async with asyncio.timeout(PROMPTLY):
        await event.wait()


async def reached(gate: Gate) -> None:
    async with asyncio.timeout(PATIENCE):
        await gate.reached.wait()


async def called(provider: Scripted, count: int) -> None:
    """Waits until so many calls have been made."""
    async with asyncio.timeout(PATIENCE):
        while len(provider.calls) < count or not all(call.entered.is_set() for call in provider.calls):
            await asyncio.sleep(0)


# --- what is asked, and how it is answered -------------------------------------------------------------------------


async def test_a_stream() -> None:
    provider = Scripted(saying("Hello", " there", usage=Usage(input_tokens=3, output_tokens=2)))
    async with websocket_door(provider) as door, client(door) as it:
        assert it.wire.subprotocol == "llmg.v1"
        await it.start("a")
        frames = [await it.receive() for _ in range(6)]
    batches = [frame.events for frame in frames if isinstance(frame, wire.Events)]
    assert [[type(event).__name__ for event in batch] for batch in batches] == [
        ["Started", "Opened"],
        ["Delta"],
        ["Delta"],
        ["Closed", "Finished"],
        ["Usage"],
    ]
    started = batches[0][0]
    assert isinstance(started, wire.Started)
    assert started.model == "m"
    assert batches[1] == [wire.Delta(0, 0, "Hello")]
    done = frames[-1]
    assert isinstance(done, wire.Done)
    assert (done.id, done.request_id) == ("a", provider.calls[0].context.request_id)
    asked = provider.calls[0].request
    assert isinstance(asked, Chat)
    assert asked.stream


async def test_the_route_is_told() -> None:
    class Routed(Scripted):
        def open(self, request: Request, context: Context, /) -> Answering:
            context.trail += [Attempt(provider="p", model=model, started=0.0) for model in "mn"]
            return super().open(request, context)

    async with websocket_door(Routed(saying("Hi"))) as door, client(door) as it:
        await it.start()
        done = (await it.answer()).end
    assert isinstance(done, wire.Done)
    assert (done.route, done.attempts) == ("p/n", 2)


async def test_a_chat_may_be_answered_whole() -> None:
    provider = Scripted([[event for batch in saying("Hello", " there") for event in batch]])
    async with websocket_door(provider) as door, client(door) as it:
        await it.start(stream=False)
        assert (await it.answer()).text == "Hello there"
    asked = provider.calls[0].request
    assert isinstance(asked, Chat)
    assert not asked.stream


@pytest.mark.parametrize(("encoding", "field"), [("float", "values"), ("base64", "packed")])
async def test_embeddings(encoding: str, field: str) -> None:
    vectors = Result(Embeddings((Embedding(0, (0.5, 1.0)), Embedding(1, b"\0\0\0\x3f\0\0\x80\x3f"))))
    provider = Scripted([[Started("a", 1, "theirs"), vectors, Usage(input_tokens=2)]])
    async with websocket_door(provider) as door, client(door) as it:
        await it.send(
            type="start",
            id="1",
            operation="embeddings",
            request={"model": "e", "input": ["a", "b"], "encoding_format": encoding},
        )
        answer = await it.answer()
    result = answer.events[1]
    assert isinstance(result, wire.Result)
    expected: Any = [0.5, 1.0] if field == "values" else "AAAAPwAAgD8="
    assert [getattr(vector, field) for vector in result.embeddings] == [expected, expected]
    assert isinstance(provider.calls[0].request, Embed)


async def test_many_requests_over_one_socket() -> None:
    gate = Gate()
    provider = Scripted([*saying("one")[:2], gate, *saying("two")[1:]])
    async with websocket_door(provider) as door, client(door) as it:
        ids = [f"request {number}" for number in range(50)]
        for id in ids:
            await it.start(id)
        await called(provider, 50)
        gate.open()
        answers = await it.answers(50)
        await it.alive()
    assert set(answers) == set(ids)
    assert {answer.text for answer in answers.values()} == {"onetwo"}
    ends = [answer.end for answer in answers.values()]
    assert len({end.request_id for end in ends if isinstance(end, wire.Done)}) == 50


async def test_a_time_limit() -> None:
    provider = Scripted(saying("Hi"))
    async with websocket_door(provider) as door, client(door) as it:
        for timeout in ({}, {"timeout": 30}):
            await it.send(type="start", id="1", request={"model": "m", "messages": [{"role": "user"}]}, **timeout)
            await it.answer()
    without, within = [call.context.deadline for call in provider.calls]
    assert without is None
    assert within is not None
    assert 29 < within - time.monotonic() < 30


async def test_a_slow_request_holds_up_none() -> None:
    gate = Gate()
    async with websocket_door(Scripted([gate, *saying("slow")], saying("fast"))) as door, client(door) as it:
        await it.start("slow")
        await reached(gate)
        for _ in range(3):
            await it.start("fast")
            assert (await it.answer("fast")).text == "fast"
        gate.open()
        assert (await it.answer("slow")).text == "slow"


# --- how it ends ---------------------------------------------------------------------------------------------------


async def test_a_failure_ends_its_request_and_no_more() -> None:
    failure = Failure(Kind.UPSTREAM_RATE_LIMITED, "slow down", retry_after=3.5, code="theirs", param="model")
    provider = Scripted(Script(at_open=failure), [*saying("Hi")[:2], failure], saying("fine"))
    async with websocket_door(provider) as door, client(door) as it:
        for number in range(2):
            await it.start()
            answer = await it.answer()
            assert answer.text == ("", "Hi")[number]
            assert answer.problem == wire.Problem(
                code=Kind.UPSTREAM_RATE_LIMITED,
                message="slow down",
                param="request.model",
                retry_after=3.5,
                request_id=provider.calls[number].context.request_id,
                upstream_code="theirs",
            )
        await it.start()
        assert (await it.answer()).text == "fine"


async def test_a_mistake_of_ours_is_not_shown() -> None:
    provider = Scripted([*saying("Hi")[:2], ZeroDivisionError("secret")])
    async with websocket_door(provider) as door, client(door) as it:
        await it.start()
        problem = (await it.answer()).problem
        assert problem.code is Kind.INTERNAL
        assert "secret" not in repr(problem)
        await it.alive()


async def test_cancel() -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate], saying("again"))
    async with websocket_door(provider) as door, client(door) as it:
        await it.start()
        await reached(gate)
        assert not provider.calls[0].exited.is_set()
        await it.send(type="cancel", id="1")
        await prompt(provider.calls[0].exited)
        assert provider.calls[0].cancelled.is_set()
        answer = await it.answer()
        assert answer.problem.code is Kind.CANCELLED
        await it.send(type="cancel", id="1")  # too late is no mistake
        await it.start()
        assert (await it.answer()).text == "again"
    assert [call.exits for call in provider.calls] == [1, 1]


async def test_cancel_right_behind_the_start() -> None:
    async with websocket_door(Scripted([Gate()])) as door, door.connect() as connection:
        await connection.send(handshake())
        assert (await connection.head())[0] == 101
        start = {"type": "start", "id": "1", "request": {"model": "m", "messages": [{"role": "user", "content": "x"}]}}
        both = [json.dumps(frame).encode() for frame in (start, {"type": "cancel", "id": "1"})]
        await connection.send(b"".join(map(text_frame, both)))
        size = (await connection.exactly(2))[1]
        frame = json.loads(await connection.exactly(size))
        assert (frame["type"], frame["id"], frame["error"]["code"]) == ("error", "1", "cancelled")


@pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
async def test_leaving_ends_all_upstreams(abruptly: bool) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate])
    async with websocket_door(provider) as door:
        async with client(door) as it:
            for number in range(5):
                await it.start(str(number))
            await called(provider, 5)
            await reached(gate)
            if abruptly:
                it.wire.transport.abort()
            else:
                await it.wire.close()
            async with asyncio.timeout(PROMPTLY):
                for call in provider.calls:
                    await call.exited.wait()
        assert [call.exits for call in provider.calls] == [1] * 5


# --- a client that does not read -----------------------------------------------------------------------------------


async def stands_still(provider: Scripted, door: Served) -> list[int]:
    """Waits until no upstream gives any more; how many batches each gave."""
    while True:
        before = [call.given for call in provider.calls]
        for _ in range(5):
            assert (await door.ask("GET", "/healthz")).status == 200
        if [call.given for call in provider.calls] == before:
            return before


BIG = "x" * 100_000


async def test_who_does_not_read_slows_its_upstreams_alike() -> None:
    """Each request has one frame waiting: what else is on the way stands in the sockets' buffers."""
    provider = Scripted([*saying("Hi")[:1], *[[Delta(0, 0, BIG)] for _ in range(2000)], Gate()])
    async with websocket_door(provider) as door, client(door, max_queue=1) as it:
        for number in range(4):
            await it.start(str(number))
        await called(provider, 4)
        first = sum(await stands_still(provider, door))
        assert first < 200  # 20 MB, most of it in the kernel's buffers
        await it.send(type="cancel", id="3")  # heard none the less
        await prompt(provider.calls[3].exited)
        said = [await it.receive() for _ in range(first + 150)]
        last = [frame.id for frame in said[-60:] if isinstance(frame, wire.Events)]
        assert {last.count(id) for id in "012"} == {20}
        assert sum(await stands_still(provider, door)) < 400
        it.wire.transport.abort()
        async with asyncio.timeout(PROMPTLY):
            for call in provider.calls:
                await call.exited.wait()


async def test_who_never_reads_is_let_go() -> None:
    provider = Scripted([*saying("Hi")[:1], *[[Delta(0, 0, BIG)] for _ in range(2000)], Gate()])
    async with (
        websocket_door(provider, server={"write_timeout": 0.2}) as door,
        client(door, max_queue=1) as it,
    ):
        await it.start()
        await called(provider, 1)
        async with asyncio.timeout(PATIENCE):
            await provider.calls[0].exited.wait()
        it.wire.transport.abort()


async def test_who_does_not_read_but_goes_on_to_ask_is_not_listened_to() -> None:
    """What it would have to be told could pile up."""
    provider = Scripted([*saying("Hi")[:1], *[[Delta(0, 0, BIG)] for _ in range(2000)], Gate()])
    async with websocket_door(provider, max_requests=1) as door, client(door, max_queue=1) as it:
        await it.start()
        await called(provider, 1)
        await stands_still(provider, door)

        async def nag() -> None:
            while True:
                await it.wire.send('{"type":"ping"}' + " " * 10_000)

        nagging = asyncio.create_task(nag())
        await stands_still(provider, door)
        async with asyncio.timeout(PATIENCE):
            while it.wire.transport.get_write_buffer_size() == 0:  # the server does not take any more
                await asyncio.sleep(0)
        nagging.cancel()
        await asyncio.wait({nagging})
        it.wire.transport.abort()
        await prompt(provider.calls[0].exited)


# --- who may come in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [("Authorization", "Bearer sk-mine"), ("X-API-Key", "sk-mine")])
async def test_a_key_in_a_header(header: tuple[str, str]) -> None:
    provider = Scripted(saying("Hi"))
    async with (
        websocket_door(provider, keys=KEYS, max_message=1234, max_requests=5) as door,
        client(door, additional_headers=[header]) as it,
    ):
        await it.start()
        assert (await it.answer()).text == "Hi"
        assert provider.calls[0].context.principal.key_id == "me"
        await it.send(type="init")
        assert await it.receive() == wire.Ready(1234, 5)


async def test_a_key_in_the_first_frame() -> None:
    provider = Scripted(saying("Hi"))
    async with websocket_door(provider, keys=KEYS) as door, client(door) as it:
        await it.alive()  # a ping needs none
        await it.send(type="init", key="sk-yours")
        assert isinstance(await it.receive(), wire.Ready)
        await it.start()
        assert (await it.answer()).text == "Hi"
        assert provider.calls[0].context.principal.key_id == "you"


async def test_no_key_is_needed_where_there_are_none() -> None:
    async with websocket_door(Scripted(saying("Hi"))) as door, client(door) as it:
        await it.send(type="init", key="whatever")
        assert isinstance(await it.receive(), wire.Ready)
        await it.send(type="init")
        assert (await it.problem()).error.param == "type"
        await it.start()
        assert (await it.answer()).text == "Hi"


@pytest.mark.parametrize("header", [("Authorization", "Bearer nope"), ("X-API-Key", "nope")])
async def test_a_wrong_key_in_a_header(header: tuple[str, str]) -> None:
    async with websocket_door(Scripted(), keys=KEYS) as door:
        with pytest.raises(InvalidStatus) as caught:
            async with client(door, additional_headers=[header]):
                pass
    assert caught.value.response.status_code == 401
    assert caught.value.response.body is not None
    assert json.loads(caught.value.response.body)["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "init", "key": "nope"},
        {"type": "init"},
        {"type": "start", "id": "1", "request": {"model": "m", "messages": [{"role": "user", "content": "x"}]}},
    ],
    ids=["a wrong key", "no key", "too early"],
)
async def test_a_wrong_key_in_the_first_frame(frame: dict[str, Any]) -> None:
    provider = Scripted(saying("Hi"))
    async with websocket_door(provider, keys=KEYS) as door, client(door) as it:
        await it.send(**frame)
        error = await it.problem()
        assert (error.id, error.error.code) == (UNSET, Kind.UNAUTHENTICATED)
        assert ("'key' of an init frame" in error.error.message) == ("key" not in frame)
        assert await it.closed() == Close.UNAUTHORIZED
    assert provider.calls == []


async def test_who_does_not_greet() -> None:
    async with websocket_door(Scripted(), keys=KEYS, init_timeout=0.01) as door:
        async with client(door) as it:
            assert await it.closed() == Close.INIT_TIMEOUT
        async with client(door, additional_headers={"x-api-key": "sk-mine"}) as it, client(door) as other:
            assert await other.closed() == Close.INIT_TIMEOUT
            await it.alive()


@pytest.mark.parametrize("origins", [(), ("http://good.example",)])
async def test_pages_of_other_origins(origins: tuple[str, ...]) -> None:
    async with websocket_door(Scripted(), origins=origins) as door:
        for evil in ("http://evil.example", "null"):
            with pytest.raises(InvalidStatus) as caught:
                async with client(door, origin=evil):
                    pass
            assert caught.value.response.status_code == 403
        for good in ("http://{}:{}".format(*door.address), *origins):
            async with client(door, origin=good) as it:
                await it.alive()


async def test_other_paths_and_other_requests() -> None:
    async with websocket_door(Scripted()) as door:
        for path in ("/v1/wss", "/v1/chat/completions", "/healthz"):
            with pytest.raises(InvalidStatus) as caught:
                async with client(door, path):
                    pass
            assert caught.value.response.status_code == 404
            assert caught.value.response.body is not None
            assert json.loads(caught.value.response.body)["error"]["code"] == "not_found"
        response = await door.ask("GET", PATH)
        assert response.status == 426
        assert response.headers["upgrade"] == "websocket"
        assert response.error["code"] == "invalid_request"


async def test_subprotocols() -> None:
    async with websocket_door(Scripted()) as door:
        async with client(door, subprotocols=None) as it:
            assert it.wire.subprotocol is None
            await it.alive()
        async with client(door, subprotocols=[Subprotocol("other"), Subprotocol("llmg.v1")]) as it:
            assert it.wire.subprotocol == "llmg.v1"
            await it.alive()
        async with client(door, subprotocols=[Subprotocol("other")]) as it:
            assert await it.closed() == Close.SUBPROTOCOL


# --- bad frames ----------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, str | None, str]] = {
    "a list": ([], None, ""),
    "a number": (1, None, ""),
    "no type": ({}, None, "type"),
    "an unknown type": ({"type": "nonsense"}, None, "type"),
    "a type that is no string": ({"type": 1}, None, "type"),
    "no id": ({"type": "start", "request": {}}, None, "id"),
    "an empty id": ({"type": "start", "id": "", "request": {}}, None, "id"),
    "a long id": ({"type": "start", "id": "x" * 129, "request": {}}, None, "id"),
    "no request": ({"type": "start", "id": "1"}, "1", "request"),
    "a request that is none": ({"type": "start", "id": "1", "request": [1]}, "1", "request"),
    "an unknown operation": ({"type": "start", "id": "1", "operation": "sing", "request": {}}, "1", "operation"),
    "an unknown field": ({"type": "start", "id": "1", "request": {}, "more": 1}, "1", "more"),
    "a time that is none": ({"type": "start", "id": "1", "timeout": "soon", "request": {}}, "1", "timeout"),
    "a bad chat": ({"type": "start", "id": "1", "request": {"model": "m"}}, "1", "request.messages"),
    "a bad message": (
        {"type": "start", "id": "1", "request": {"model": "m", "messages": [{"role": "king"}]}},
        "1",
        "request.messages[0].role",
    ),
    "a bad embedding": (
        {"type": "start", "id": "1", "operation": "embeddings", "request": {"model": "m", "input": []}},
        "1",
        "request.input",
    ),
    "no time at all": ({"type": "start", "id": "1", "timeout": 0, "request": {}}, "1", "timeout"),
    "a cancel without an id": ({"type": "cancel"}, None, "id"),
    "a key that is no string": ({"type": "init", "key": 1}, None, "key"),
}


@pytest.mark.parametrize(("frame", "id", "param"), BAD.values(), ids=BAD)
async def test_a_bad_frame_is_told_and_does_no_harm(frame: Any, id: str | None, param: str) -> None:
    async with websocket_door(Scripted(saying("Hi"))) as door, client(door) as it:
        await it.wire.send(json.dumps(frame))
        error = await it.problem()
        assert error.error.code is Kind.INVALID_REQUEST
        assert error.id == (UNSET if id is None else id)
        assert error.error.param == (param or UNSET)
        await it.start()
        assert (await it.answer()).text == "Hi"


async def test_what_is_allowed_is_listed() -> None:
    async with websocket_door(Scripted()) as door, client(door) as it:
        await it.send(type="sing", id="1")
        told = (await it.problem()).error.message
        assert told == "invalid 'type': 'sing' is none of init, start, explain, cancel, ping"
        await it.send(type="start", id="1", operation="sing", request={})
        told = (await it.problem()).error.message
        assert told == "invalid 'operation': 'sing' is none of chat.completions, embeddings"


async def test_too_deep() -> None:
    async with websocket_door(Scripted()) as door, client(door) as it:
        for deep in ("[" * 100_000, '{"type":"start","id":"1","request":' + '{"a":' * 3000 + "1" + "}" * 3001):
            await it.wire.send(deep)
            error = await it.problem()
            assert "too deep" in error.error.message
        await it.alive()


async def test_an_id_that_is_taken() -> None:
    gate = Gate()
    async with websocket_door(Scripted([gate, *saying("Hi")])) as door, client(door) as it:
        await it.start()
        await reached(gate)
        for frame in ({"request": {"model": "m", "messages": []}}, {"request": 1, "more": 1}):
            await it.send(type="start", id="1", **frame)
            assert (await it.problem()).id is UNSET  # the first one goes on
        gate.open()
        assert (await it.answer()).text == "Hi"


async def test_no_more_than_may_be() -> None:
    gate = Gate()
    async with websocket_door(Scripted([gate, *saying("Hi")]), max_requests=2) as door, client(door) as it:
        for id in "123":
            await it.start(id)
        error = await it.problem()
        assert (error.id, error.error.code) == ("3", Kind.RATE_LIMITED)
        gate.open()
        await it.answers(2)
        await it.start("3")
        assert (await it.answer("3")).text == "Hi"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"binary", Close.BINARY),
        ("{", Close.NOT_JSON),
        ("", Close.NOT_JSON),
        ('{"type": "ping"} more', Close.NOT_JSON),
        ('{"type": 1, nonsense', Close.NOT_JSON),
        ("x" * 1001, Close.TOO_LARGE),
        ("x" * 20_000_000, Close.TOO_LARGE),
        (["x" * 900] * 3, Close.TOO_LARGE),
    ],
    ids=["binary", "cut off", "empty", "more than JSON", "wrong, and no JSON", "large", "very large", "in fragments"],
)
async def test_what_closes_the_socket(sent: Any, code: Close) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate])
    async with websocket_door(provider, server={"max_message": 1000}) as door, client(door) as it:
        await it.start()
        await reached(gate)
        with suppress(ConnectionClosed):  # the server may have seen enough before all was sent
            await it.wire.send(sent)
        await prompt(provider.calls[0].exited)
        assert await it.closed() == code


@pytest.mark.parametrize(
    ("sent", "id", "param"),
    [
        ('{"type": "start", "id": "2", "request": {"model": "\\ud800"}}', "2", None),
        ('{"type": "start", "id": "2", "timeout": 1e400, "request": {}}', "2", "timeout"),
        ('{"type": "start", "id": "\\ud800", "request": {}}', None, None),
        ('{"type": "start", "id": "1", "request": "\\udc00"}', None, None),
        ('"\\ud800"', None, None),
    ],
    ids=["half of a pair", "beyond all floats", "half of a pair in the id", "an id that is in use", "no object"],
)
async def test_what_json_lets_pass_but_can_t_be_read_ends_no_other_request(
    sent: str, id: str | None, param: str | None
) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate, *saying("Hi")[2:]])
    async with websocket_door(provider) as door, client(door) as it:
        await it.start()
        await reached(gate)
        await it.wire.send(sent)
        while not isinstance(problem := await it.receive(), wire.Error):
            pass
        assert (problem.id or None, problem.error.code, problem.error.param or None) == (id, "invalid_request", param)
        gate.open()
        assert isinstance((await it.answer()).end, wire.Done)


async def test_the_door_has_a_limit_of_its_own() -> None:
    async with websocket_door(Scripted(), max_message=20) as door, client(door) as it:
        await it.alive()
        await it.wire.send('{"type": "ping"}     ')
        assert await it.closed() == Close.TOO_LARGE


async def test_what_is_not_utf8() -> None:
    async with websocket_door(Scripted()) as door, client(door) as it:
        await it.wire.send(b"\xff", text=True)
        assert await it.closed() == Close.NOT_UTF8


async def test_what_breaks_the_rules_of_websocket() -> None:
    async with websocket_door(Scripted()) as door, door.connect() as connection:
        await connection.send(handshake())
        assert (await connection.head())[0] == 101
        await connection.send(b"\x81\x01x")  # not masked
        assert await connection.exactly(2) == bytes([0x88, len(await connection.closed())])


frames = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
words = st.sampled_from(["init", "start", "cancel", "ping", "events", "chat.completions", "embeddings", "m", "", "1"])
fields = st.sampled_from(["type", "id", "key", "operation", "request", "model", "messages", "input", "role", "content"])
near_frames = st.recursive(
    words | frames,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=6),
    max_leaves=12,
)


@given(st.lists(near_frames, max_size=20), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_frame_makes_an_internal_error(sent: list[Any], keyed: bool) -> None:
    async with (
        websocket_door(Scripted(saying("Hi")), keys=KEYS if keyed else {}) as door,
        client(door, additional_headers={"x-api-key": "sk-mine"}) as it,
    ):
        for frame in sent:
            await it.wire.send(json.dumps(frame))
        await it.wire.send('{"type":"ping"}')
        said: list[wire.ServerFrame] = []
        try:
            while not said or said[-1] != wire.Pong():
                said.append(await it.receive())
        except ConnectionClosed:
            assert it.wire.close_code == Close.UNAUTHORIZED
        problems = [frame.error.code for frame in said if isinstance(frame, wire.Error)]
        assert Kind.INTERNAL not in problems


# --- the gateway that stops ----------------------------------------------------------------------------------------


async def test_drain() -> None:
    gate = Gate()
    provider = Scripted([*saying("Hello")[:2], gate, *saying(" there")[1:]])
    async with websocket_door(provider) as door, client(door) as idle, client(door) as busy:
        await busy.start("1")
        await busy.start("2")
        await reached(gate)
        draining = asyncio.create_task(door.drain(PATIENCE))
        assert await idle.closed() == Close.GOING_AWAY
        await busy.start("3")
        error = await late(busy)
        assert (error.id, error.error.code) == ("3", Kind.SHUTTING_DOWN)
        gate.open()
        answers = await busy.answers(2)
        assert await busy.closed() == Close.GOING_AWAY
        assert await draining == 0
    assert {answer.text[-6:] for answer in answers.values()} == {" there"}


async def late(it: Client) -> wire.Error:
    """The next error, whatever comes before it."""
    while not isinstance(frame := await it.receive(), wire.Error):
        pass
    return frame


async def test_what_outlasts_the_grace_is_told() -> None:
    gate = Gate()
    provider = Scripted([*saying("Hello")[:2], gate])
    async with websocket_door(provider) as door, client(door) as it:
        await it.start("1")
        await it.start("2")
        await called(provider, 2)
        await reached(gate)
        assert await door.drain(0.01) == 1
        answers = await it.answers(2)
        assert {answer.problem.code for answer in answers.values()} == {Kind.SHUTTING_DOWN}
        assert await it.closed() == Close.GOING_AWAY
    assert [call.exits for call in provider.calls] == [1, 1]


async def test_who_does_not_read_does_not_hold_up_the_end() -> None:
    provider = Scripted([*saying("Hi")[:1], *[[Delta(0, 0, BIG)] for _ in range(2000)], Gate()])
    async with websocket_door(provider) as door, client(door, max_queue=1) as it:
        await it.start()
        await called(provider, 1)
        await stands_still(provider, door)
        async with asyncio.timeout(PATIENCE):
            assert await door.drain(0.01) == 1
        assert provider.calls[0].exits == 1
        it.wire.transport.abort()


# --- the socket itself ---------------------------------------------------------------------------------------------


def handshake(**headers: str) -> bytes:
    """A request for a WebSocket."""
    own = {
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    given = {**own, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return request("GET", PATH, headers=given)


def text_frame(data: bytes) -> bytes:
    """Masked by zeros, which is as good as any mask."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0x80 | 126]) + len(data).to_bytes(2)
    return b"\x81" + size + bytes(4) + data


async def test_a_kept_alive_connection_may_be_upgraded() -> None:
    async with websocket_door(Scripted()) as door, door.connect() as connection:
        assert (await connection.ask("GET", "/healthz")).status == 200
        await connection.send(handshake())
        status, headers = await connection.head()
        assert status == 101
        assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert "sec-websocket-extensions" not in headers
        await connection.send(text_frame(b'{"type":"ping"}'))
        assert await connection.exactly(17) == b'\x81\x0f{"type":"pong"}'


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (handshake(x_large="x" * 9000), 431),
        (handshake(**{f"x_{number}": "x" * 1000 for number in range(70)}), 431),
        (handshake(**{f"x_{number}": "x" for number in range(130)}), 431),
        (handshake() + text_frame(b"{}"), 400),
        (handshake(Sec_WebSocket_Version="12"), 400),
        (handshake(Sec_WebSocket_Key="eA=="), 400),
        (handshake().replace(b"Sec-WebSocket-Key", b"X-Key"), 400),
        (handshake().replace(PATH.encode(), b"/v1/\xff"), 400),
        (handshake().replace(b"GET", b"POST"), 426),
        (handshake(Content_Length="2") + b"{}", 426),
        (handshake(Upgrade="h2c"), 426),
        (request("GET", "/healthz") + handshake(), 200),
    ],
    ids=[
        "a large header",
        "large headers",
        "many headers",
        "frames too early",
        "another version",
        "a bad key",
        "no key",
        "a bad path",
        "POST",
        "a body",
        "another protocol",
        "not the first in the pipe",
    ],
)
async def test_handshakes_that_are_none(raw: bytes, status: int) -> None:
    async with websocket_door(Scripted()) as door, door.connect() as connection:
        await connection.send(raw)
        response = await connection.response()
        assert response.status == status
        if status == 200:
            assert (await connection.response()).status == 426
        async with client(door) as it:
            await it.alive()


async def test_a_handshake_of_old() -> None:
    async with websocket_door(Scripted()) as door, door.connect() as connection:
        await connection.send(handshake().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await connection.closed()).startswith(b"HTTP/1.1 426 ")


async def test_a_handshake_that_never_comes() -> None:
    async with (
        websocket_door(Scripted(), server={"header_timeout": 0.05}) as door,
        door.connect() as connection,
        client(door) as it,
    ):
        await connection.send(handshake()[:-2])
        assert (await connection.response()).status == 408
        await it.alive()  # an open socket may be silent for longer


async def test_any_form_of_target() -> None:
    async with websocket_door(Scripted()) as door, door.connect() as connection:
        await connection.send(handshake().replace(PATH.encode(), f"http://localhost{PATH}?a=b".encode()))
        assert (await connection.head())[0] == 101


async def test_pings_are_answered_and_asked() -> None:
    async with (
        websocket_door(Scripted(), server={"ping_interval": 0.01}) as door,
        door.connect() as connection,
    ):
        await connection.send(handshake())
        await connection.head()
        assert await connection.exactly(2) == b"\x89\x04"
        asked = await connection.exactly(4)
        await connection.send(b"\x8a\x84" + bytes(4) + asked + b"\x89\x82" + bytes(4) + b"hi")
        assert await connection.exactly(4) == b"\x8a\x02hi"
        assert await connection.exactly(2) == b"\x89\x04"


async def test_who_answers_no_ping_is_let_go() -> None:
    gate = Gate()
    provider = Scripted([gate])
    async with (
        websocket_door(provider, server={"ping_interval": 0.01, "ping_timeout": 0.05}) as door,
        door.connect() as connection,
    ):
        start = {"type": "start", "id": "1", "request": {"model": "m", "messages": [{"role": "user", "content": "x"}]}}
        await connection.send(handshake())
        await connection.head()
        await connection.send(text_frame(json.dumps(start).encode()))
        async with asyncio.timeout(PATIENCE):
            await gate.reached.wait()
            said = await connection.closed()
        assert b"\x03\xf3keepalive ping timeout" in said  # 1011
        await prompt(provider.calls[0].exited)


async def test_who_reads_slowly_is_not_dead() -> None:
    """Its pong can't come before it has read what stands before the ping."""
    provider = Scripted([*saying("Hi")[:1], *[[Delta(0, 0, BIG)] for _ in range(300)], *saying("x")[2:]])
    async with (
        websocket_door(provider, server={"ping_interval": 0.01, "ping_timeout": 0.01}) as door,
        client(door, max_queue=1, ping_interval=None) as it,
    ):
        await it.start()
        await called(provider, 1)
        await stands_still(provider, door)
        answer = await it.answer()
    assert len(answer.text) == 300 * len(BIG)
    assert isinstance(answer.end, wire.Done)


async def test_who_pings_and_does_not_read_is_answered_once() -> None:
    provider = Scripted([*saying("Hi")[:1], *[[Delta(0, 0, BIG)] for _ in range(2000)], Gate()])
    async with websocket_door(provider) as door, door.connect(receive_buffer=16 << 10) as connection:
        start = {"type": "start", "id": "1", "request": {"model": "m", "messages": [{"role": "user", "content": "x"}]}}
        await connection.send(handshake())
        await connection.head()
        await connection.send(text_frame(json.dumps(start).encode()))
        await called(provider, 1)
        await stands_still(provider, door)
        for number in range(10_000):
            await connection.send(b"\x89\x84" + bytes(4) + b"%04d" % number)
        assert (await door.ask("GET", "/healthz")).status == 200
        (socket,) = [c for c in door.server._connections() if isinstance(c, SocketProtocol)]
        assert socket.transport.get_write_buffer_size() < 2 * len(BIG)
        assert len(socket._pong) < 1 << 19
        await connection.leave(reset=True)
        await prompt(provider.calls[0].exited)


async def test_deflate_is_not_offered() -> None:
    async with websocket_door(Scripted()) as door, connect(door.url()) as connection:
        assert connection.response is not None
        assert "sec-websocket-extensions" not in connection.response.headers


async def test_a_close_amid_a_message_is_a_close() -> None:
    async with websocket_door(Scripted()) as door, door.connect() as connection:
        await connection.send(handshake())
        await connection.head()
        await connection.send(b"\x01\x81" + bytes(4) + b"{" + b"\x88\x82" + bytes(4) + b"\x03\xe8")
        assert await connection.closed() == b"\x88\x02\x03\xe8"


async def test_a_message_in_fragments() -> None:
    async with websocket_door(Scripted()) as door, client(door) as it:
        await it.wire.send(iter('{"type":"ping"}'))
        assert await it.receive() == wire.Pong()


async def test_the_door_on_another_server() -> None:
    """One without our extensions: all but the drain is the same."""
    gate = Gate()
    provider = Scripted(saying("Hi"), [*saying("Hi")[:2], gate])
    door = make_websocket(pipeline=provider, admission=admission())
    config = Config(door, http="httptools", ws="websockets-sansio", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpToolsProtocol(config, state, {}), "127.0.0.1", 0
    )
    async with connect("ws://{}:{}".format(*server.sockets[0].getsockname())) as connection:
        it = Client(connection)
        await it.start()
        assert (await it.answer()).text == "Hi"
        await it.start()
        await reached(gate)
        it.wire.transport.abort()
        await prompt(provider.calls[1].exited)
    server.close()
    await asyncio.gather(*state.tasks)


# --- applications that do as they please ---------------------------------------------------------------------------


async def test_an_application_that_breaks(caplog: pytest.LogCaptureFixture) -> None:
    accepted = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if accepted:
            await send({"type": "websocket.accept"})
        raise ZeroDivisionError("secret")

    async with serving(app) as served:
        with pytest.raises(InvalidStatus) as caught:
            async with client(served):
                pass
        assert caught.value.response.status_code == 500
        accepted = True
        async with client(served, subprotocols=None) as it:
            assert await it.closed() == Close.INTERNAL
            assert it.wire.close_reason == ""
    assert len(caplog.records) == 2
    caplog.clear()


async def test_an_application_that_just_ends() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async with serving(app) as served, client(served, subprotocols=None) as it:
        assert await it.closed() == Close.NORMAL


async def test_an_application_that_waits_for_ever() -> None:
    """It is cut at the end of the grace, before it has accepted and after."""
    waiting = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == PATH:
            await send({"type": "websocket.accept"})
        waiting.set()
        await asyncio.Event().wait()

    async with serving(app) as served, served.connect() as connection, client(served, subprotocols=None) as it:
        waiting.clear()
        await connection.send(handshake().replace(PATH.encode(), b"/"))
        async with asyncio.timeout(PATIENCE):
            await waiting.wait()
        assert await served.drain(0) == 2
        assert (await connection.response()).status == 503
        assert await it.closed() == Close.GOING_AWAY


async def test_who_speaks_before_the_handshake_is_answered() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        asked.set()
        await go.wait()
        await send({"type": "websocket.accept"})

    async with serving(app) as served, served.connect() as connection:
        await connection.send(handshake())
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
        await connection.send(b"\xff" * 100)
        assert await connection.closed() == b""
        go.set()


async def test_while_the_server_drains_nobody_comes_in() -> None:
    gate = Gate()
    async with (
        websocket_door(Scripted([gate, *saying("Hi")])) as door,
        client(door) as it,
        client(door) as idle,
        door.connect() as connection,
    ):
        await it.start()
        await reached(gate)
        await connection.send(handshake()[:10])
        assert (await door.ask("GET", "/healthz")).status == 200
        draining = asyncio.create_task(door.drain(PATIENCE))
        assert await idle.closed() == Close.GOING_AWAY
        await connection.send(handshake()[10:])
        assert (await connection.response()).status == 503
        gate.open()
        await it.answer()
        await draining

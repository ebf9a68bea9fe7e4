"""The GraphQL door over WebSocket: graphql-transport-ws, and the older graphql-ws; on our server, and on another."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from graph import serving as another
from graph.serving import CHAT, MODEL, STREAM, Door, asking, find
from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Delta
from llmg.core.request import Chat, Request, Text
from llmg.doors.graphql.app import make_graphql
from llmg.doors.rest.app import Routes, make_door
from llmg.ports import Answering, Provider
from llmg.providers.echo import Echo
from llmg.services.models import Models
from llmg.testing.scripted import Gate, Scripted, saying
from support import sockets
from support.doors import admission
from support.http import PATIENCE
from support.sockets import Served

# protocol: (its words for subscribe, next, complete by the client)
WORDS = {"graphql-transport-ws": ("subscribe", "next", "complete"), "graphql-ws": ("start", "data", "stop")}
BOTH = pytest.mark.parametrize("protocol", WORDS)
KEYS = {"me": "sk-mine"}
KEYLESS = "an API key is needed: send it in connection_init's payload, as 'authorization' (Bearer KEY) or 'apiKey'"
Serving = Callable[..., AbstractAsyncContextManager[Door]]


class Ours(Door):
    """Our own server, and how it stops."""

    def __init__(self, served: Served) -> None:
        super().__init__(served.address)
        self.drain = served.drain


@asynccontextmanager
async def ours(
    provider: Provider | None = None, *, keys: Mapping[str, str] = {}, **options: Any
) -> AsyncIterator[Ours]:
    """The door in front of a provider; the echo, where none is given."""
    app = make_graphql(
        pipeline=provider or Echo(),
        models=Models(lambda _: [MODEL], find),
        admission=admission(keys),
        **options,
    )
    async with sockets.serving(make_door(Routes({"/graphql": app}, sockets={"/graphql": app}))) as served:
        yield Ours(served)


@pytest.fixture(params=[ours, another.serving], ids=["ours", "uvicorn's"])
def serving(request: pytest.FixtureRequest) -> Serving:
    """Opens the door, on either server."""
    opened: Serving = request.param
    return opened


class Client:
    """One connection, in one of the protocols."""

    def __init__(self, wire: ClientConnection, protocol: str) -> None:
        self.wire = wire
        self.begin, self.item, self.end = WORDS[protocol]

    async def send(self, **message: Any) -> None:
        await self.wire.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            message: dict[str, Any] = json.loads(await self.wire.recv(decode=True))
        return message

    async def subscribe(self, query: str = STREAM, id: str = "1", **variables: Any) -> None:
        payload = {"query": query, "variables": variables or asking()}
        await self.send(type=self.begin, id=id, payload=payload)

    async def closed(self) -> int:
        """How the server closed the connection."""
        async with asyncio.timeout(PATIENCE):
            await self.wire.wait_closed()
        assert self.wire.close_code is not None
        return self.wire.close_code


@asynccontextmanager
async def client(
    door: Door, protocol: str = "graphql-transport-ws", *, init: bool = True, **options: Any
) -> AsyncIterator[Client]:
    """A client whose connection is acknowledged."""
    async with connect(door.socket_url, subprotocols=[Subprotocol(protocol)], **options) as wire:
        assert wire.subprotocol == protocol
        it = Client(wire, protocol)
        if init:
            await it.send(type="connection_init", payload={"authorization": "Bearer key"})
            assert (await it.receive())["type"] == "connection_ack"
        yield it


@BOTH
async def test_a_stream(serving: Serving, protocol: str) -> None:
    async with serving() as door, client(door, protocol) as it:
        await it.subscribe()
        said, names = "", []
        while (message := await it.receive())["type"] == it.item:
            payload = message["payload"]["data"]["chatCompletion"]
            said += payload["text"]
            names += [event["__typename"] for event in payload["events"]]
    assert message == {"type": "complete", "id": "1"}
    assert said == "Hello there"
    assert names == ["Started", "Opened", "Delta", "Delta", "Closed", "Finished", "Usage"]


async def test_any_operation(serving: Serving) -> None:
    async with serving() as door, client(door) as it:
        await it.subscribe(CHAT)
        answer = (await it.receive())["payload"]["data"]["createChatCompletion"]
        assert answer["choices"] == [{"text": "Hello there"}]
        assert (await it.receive())["type"] == "complete"


class Routed(Scripted):
    """Says where each request goes: to a model of its text's name."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        assert isinstance(request, Chat)
        (part,) = request.messages[0].parts
        assert isinstance(part, Text)
        context.trail.append(Attempt(provider="p", model=part.text, started=0.0))
        return super().open(request, context)


@BOTH
async def test_each_operation_is_told_its_own_way_once(serving: Serving, protocol: str) -> None:
    gate = Gate()
    async with serving(Routed([gate, *saying("Hello", " there")])) as door, client(door, protocol) as it:
        for id in ("a", "b"):
            await it.subscribe(id=id, **asking(id))
        gate.open()
        told: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
        ended = 0
        while ended < 2:
            message = await it.receive()
            ended += message["type"] == "complete"
            if "extensions" in message.get("payload", {}):
                told[message["id"]].append(message["payload"]["extensions"])
    for id, (extensions,) in told.items():
        assert (extensions["route"], extensions["attempts"]) == (f"p/{id}", 1)
    assert told["a"][0]["requestId"] != told["b"][0]["requestId"]


@BOTH
async def test_many_at_once_with_request_ids_of_their_own(serving: Serving, protocol: str) -> None:
    gate, failure = Gate(), Failure(Kind.OVERLOADED, "too much")
    async with serving(Scripted([gate, failure])) as door, client(door, protocol) as it:
        for number in range(5):
            await it.subscribe(id=str(number))
        gate.open()
        seen: dict[str, str] = {}
        done: set[str] = set()
        while len(done) < 5:
            message = await it.receive()
            if message["type"] == "complete":
                done.add(message["id"])
            else:
                assert message["payload"]["errors"][0]["extensions"]["code"] == "OVERLOADED"
                seen[message["id"]] = message["payload"]["errors"][0]["extensions"]["requestId"]
    assert set(seen) == done
    assert len(set(seen.values())) == 5


@BOTH
async def test_unsubscribing_ends_the_upstream(serving: Serving, protocol: str) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate], saying("again"))
    before = asyncio.all_tasks()
    async with serving(provider) as door:
        async with client(door, protocol) as it:
            await it.subscribe()
            async with asyncio.timeout(PATIENCE):
                await gate.reached.wait()
                assert not provider.calls[0].exited.is_set()
                await it.send(type=it.end, id="1")
                await provider.calls[0].exited.wait()
            assert provider.calls[0].cancelled.is_set()
            await it.subscribe(id="2")
            while (message := await it.receive()).get("id") != "2" or message["type"] != "complete":
                pass
        assert [call.exits for call in provider.calls] == [1, 1]
    assert asyncio.all_tasks() <= before


@BOTH
@pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
async def test_leaving_ends_the_upstream(serving: Serving, protocol: str, abruptly: bool) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate])
    before = asyncio.all_tasks()
    async with serving(provider) as door:
        async with client(door, protocol) as it, asyncio.timeout(PATIENCE):
            await it.subscribe()
            await gate.reached.wait()
            if abruptly:
                it.wire.transport.abort()
            else:
                await it.wire.close()
            await provider.calls[0].exited.wait()
        assert provider.calls[0].cancelled.is_set()
        assert provider.calls[0].exits == 1
    assert asyncio.all_tasks() <= before


@BOTH
async def test_who_does_not_read_slows_the_upstream_and_leaving_ends_it(serving: Serving, protocol: str) -> None:
    big = [[Delta(0, 0, "x" * 100_000)] for _ in range(500)]
    provider = Scripted([*saying("Hi")[:1], *big, Gate()])
    async with serving(provider) as door:
        async with client(door, protocol, max_queue=1) as it:
            await it.subscribe()
            assert (await it.receive())["type"] == it.item
            assert (await door.ask("{ models { id } }"))["data"]
            assert provider.calls[0].given < 400  # 50 MB in all
            it.wire.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await provider.calls[0].exited.wait()
        assert provider.calls[0].exits == 1


@BOTH
async def test_leaving_while_something_is_sent_is_no_mistake(
    protocol: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    gone = asyncio.Event()

    async def send_text(socket: WebSocket, text: str) -> None:
        if '"Started"' not in text:
            await send(socket, text)
            return
        gone.set()
        raise WebSocketDisconnect(code=1006)

    send = WebSocket.send_text
    monkeypatch.setattr(WebSocket, "send_text", send_text)
    provider = Scripted(saying("Hi"))
    async with ours(provider) as door, client(door, protocol) as it, asyncio.timeout(PATIENCE):
        await it.subscribe()
        await gone.wait()
        await provider.calls[0].exited.wait()
    gc.collect()
    assert mistakes == []
    assert [record for record in caplog.records if record.name.startswith("strawberry")] == []


@BOTH
async def test_an_error_in_mid_stream(serving: Serving, protocol: str) -> None:
    failure = Failure(Kind.UPSTREAM_TRUNCATED, "it broke off", detail="secret")
    async with serving(Scripted([*saying("Hi")[:2], failure])) as door, client(door, protocol) as it:
        await it.subscribe()
        messages = [await it.receive() for _ in range(4)]
    assert [message["type"] for message in messages] == [it.item, it.item, it.item, "complete"]
    assert messages[1]["payload"]["data"]["chatCompletion"]["text"] == "Hi"
    assert messages[2]["payload"]["errors"][0]["extensions"]["code"] == "UPSTREAM_TRUNCATED"
    assert "secret" not in json.dumps(messages)


@BOTH
async def test_bad_input(serving: Serving, protocol: str) -> None:
    async with serving() as door, client(door, protocol) as it:
        await it.subscribe(**asking(n=0))
        error = (await it.receive())["payload"]["errors"][0]
        assert error["extensions"]["param"] == "input.n"
        assert (await it.receive())["type"] == "complete"
        await it.subscribe("subscription { nope }", id="2")
        message = await it.receive()
        assert (message["type"], message["id"]) == ("error", "2")
        payload = message["payload"]
        refusal = payload[0] if isinstance(payload, list) else payload
        assert refusal["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"


async def test_limits_hold_here_too(serving: Serving) -> None:
    gate = Gate()
    async with serving(Scripted([gate]), max_depth=1, max_operations=1) as door, client(door) as it:
        await it.subscribe()
        assert "3 deep" in (await it.receive())["payload"][0]["message"]
    async with serving() as door, client(door) as it:
        await it.subscribe(f"{STREAM} #{'x' * (100 << 10)}")
        assert "102400" in (await it.receive())["payload"][0]["message"]


@BOTH
async def test_operations_at_once_are_limited(serving: Serving, protocol: str) -> None:
    async with serving(Scripted([Gate()]), max_operations=1) as door, client(door, protocol) as it:
        await it.subscribe(id="1")
        await it.subscribe(id="2")
        message = await it.receive()
        assert (message["type"], message["id"]) == ("error", "2")
        payload = message["payload"]
        refusal = payload[0] if isinstance(payload, list) else payload
        assert refusal["extensions"]["code"] == "RATE_LIMITED"
        assert refusal["extensions"]["requestId"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("{", 4400),
        ("[]", 4400),
        ("1", 4400),
        ('{"type": "nonsense"}', 4400),
        ("[" * 100_000, 4400),
        ('{"type": "subscribe", "id": "1", "payload": 1}', 4401),
    ],
    ids=["no JSON", "a list", "a number", "an unknown type", "too deep", "too early"],
)
async def test_nonsense_closes_the_connection(serving: Serving, sent: str, code: int) -> None:
    async with serving() as door, client(door, init=False) as it:
        await it.wire.send(sent)
        assert await it.closed() == code


@pytest.mark.parametrize(("protocol", "code"), [("graphql-transport-ws", 4400), ("graphql-ws", 1002)])
async def test_too_deep(serving: Serving, protocol: str, code: int) -> None:
    async with serving() as door:
        for depth in (300, 100_000):
            async with client(door, protocol) as it:
                await it.wire.send("[" * depth + "]" * depth)
                assert await it.closed() == code
                assert it.wire.close_reason == "the message is nested too deeply"


@BOTH
async def test_one_of_several_operations_must_be_named(serving: Serving, protocol: str) -> None:
    query = "query A { models { id } } query B { models { operations } }"
    async with serving() as door, client(door, protocol) as it:
        await it.subscribe(query)
        message = await it.receive()
        assert (message["type"], message["id"]) == ("error", "1")
        assert "'operationName'" in json.dumps(message["payload"])


@BOTH
@pytest.mark.parametrize(
    ("query", "name", "code"),
    [
        ("{ models { } }", None, "GRAPHQL_PARSE_FAILED"),
        ('{ "' + "x" * 300 + '" }', None, "GRAPHQL_PARSE_FAILED"),
        ("{ models { id } }", "ö" * 300, "GRAPHQL_VALIDATION_FAILED"),
    ],
    ids=["nothing selected", "no name", "an unknown operation"],
)
async def test_a_bad_document_ends_its_operation_and_no_more(
    serving: Serving, protocol: str, query: str, name: str | None, code: str
) -> None:
    async with serving() as door, client(door, protocol) as it:
        await it.send(type=it.begin, id="1", payload={"query": query, "operationName": name})
        message = await it.receive()
        assert (message["type"], message["id"]) == ("error", "1")
        assert code in json.dumps(message["payload"])
        await it.subscribe("{ models { id } }")
        assert (await it.receive())["payload"]["data"] == {"models": [{"id": "m"}]}


@BOTH
@pytest.mark.parametrize(
    ("payload", "param"),
    [
        ({}, "query"),
        ({"query": None}, "query"),
        ({"query": ""}, "query"),
        ({"query": 7}, "query"),
        ({"query": ["{ models { id } }"]}, "query"),
        ({"query": "{ models { id } }", "variables": [1]}, "variables"),
        ({"query": "{ models { id } }", "variables": "{}"}, "variables"),
        ({"query": "{ models { id } }", "operationName": 7}, "operationName"),
    ],
    ids=json.dumps,
)
async def test_a_payload_of_the_wrong_shape_ends_its_operation_and_no_more(
    serving: Serving, protocol: str, payload: dict[str, Any], param: str
) -> None:
    async with serving() as door, client(door, protocol) as it:
        await it.send(type=it.begin, id="1", payload=payload)
        message = await it.receive()
        assert (message["type"], message["id"]) == ("error", "1")
        told = message["payload"]
        error = told[0] if isinstance(told, list) else told
        assert (error["extensions"]["code"], error["extensions"]["param"]) == ("INVALID_REQUEST", param)
        assert f"'{param}'" in error["message"]
        await it.subscribe("{ models { id } }", id="2")
        assert (await it.receive())["payload"]["data"] == {"models": [{"id": "m"}]}


@BOTH
@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ('"payload": {"query": "\\ud800"}', "can't be read"),
        ('"payload": {"query": "{ models { id } }", "x": "\\ud800"}', "can't be read"),
        ('"payload": {"query": "{ models { id } }", "variables": {"a": 1e400}}', "'payload.variables'"),
        ('"payload": {"query": "{ models { id } }"}, "x": 1e400', "can't be read"),
    ],
)
async def test_what_json_lets_pass_but_can_t_be_read_ends_its_operation_and_no_more(
    serving: Serving, protocol: str, rest: str, says: str
) -> None:
    async with serving() as door, client(door, protocol) as it:
        await it.wire.send(f'{{"type": "{it.begin}", "id": "1", {rest}}}')
        message = await it.receive()
        assert (message["type"], message["id"]) == ("error", "1")
        assert says in json.dumps(message["payload"])
        await it.subscribe("{ models { id } }", id="2")
        assert (await it.receive())["payload"]["data"] == {"models": [{"id": "m"}]}


async def test_a_reason_longer_than_a_close_has_room_for(serving: Serving) -> None:
    async with serving() as door, client(door) as it:
        await it.send(type="ö" * 300)
        assert await it.closed() == 4400
        assert it.wire.close_reason.startswith("Unknown message type: öö")


async def test_nonsense_after_the_greeting(serving: Serving) -> None:
    async with serving() as door:
        async with client(door) as it:
            await it.send(type="subscribe", id="1", payload=1)
            assert await it.closed() == 4400
        async with client(door, "graphql-ws") as it:
            await it.send(type="start", id="1", payload=1)
            assert await it.closed() == 1002


@BOTH
async def test_who_does_not_greet(serving: Serving, protocol: str) -> None:
    async with serving(init_timeout=0.01) as door, client(door, protocol, init=False) as it:
        assert await it.closed() == 4408


async def test_protocols_are_on_by_name(serving: Serving) -> None:
    async with (
        serving(transports=["graphql-transport-ws"]) as door,
        connect(door.socket_url, subprotocols=[Subprotocol("graphql-ws")]) as wire,
    ):
        assert await Client(wire, "graphql-ws").closed() == 4406


@pytest.mark.parametrize("origins", [(), ("http://good.example",)])
async def test_a_page_of_another_origin_is_refused(serving: Serving, origins: tuple[str, ...]) -> None:
    async with serving(origins=origins) as door:
        with pytest.raises(InvalidStatus) as caught:
            async with client(door, origin="http://evil.example"):
                pass
        assert caught.value.response.status_code == 403
        async with client(door, origin="http://{}:{}".format(*door.address)) as it:
            await it.send(type="ping")
            assert (await it.receive())["type"] == "pong"
        for origin in origins:
            async with client(door, origin=origin) as it:
                await it.send(type="ping")
                assert (await it.receive())["type"] == "pong"


# --- keys ----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "payload",
    [
        {"authorization": "Bearer sk-mine"},
        {"Authorization": "bearer sk-mine"},
        {"apiKey": "sk-mine"},
        {"x-api-key": "sk-mine"},
    ],
)
async def test_a_key_in_the_first_message(protocol: str, payload: dict[str, str]) -> None:
    provider = Scripted(saying("Hi"))
    async with ours(provider, keys=KEYS) as door, client(door, protocol, init=False) as it:
        await it.send(type="connection_init", payload=payload)
        assert (await it.receive())["type"] == "connection_ack"
        await it.subscribe()
        assert (await it.receive())["type"] == it.item
        assert provider.calls[0].context.principal.key_id == "me"


@BOTH
@pytest.mark.parametrize("header", [("Authorization", "Bearer sk-mine"), ("X-API-Key", "sk-mine")])
async def test_a_key_in_a_header(protocol: str, header: tuple[str, str]) -> None:
    provider = Scripted(saying("Hi"))
    async with ours(provider, keys=KEYS) as door:
        async with client(door, protocol, init=False, additional_headers=[header]) as it:
            await it.send(type="connection_init")
            assert (await it.receive())["type"] == "connection_ack"
            await it.subscribe()
            assert (await it.receive())["type"] == it.item
            assert provider.calls[0].context.principal.key_id == "me"
        with pytest.raises(InvalidStatus) as caught:
            async with client(door, protocol, additional_headers=[(header[0], header[1] + "s")]):
                pass
    assert caught.value.response.status_code == 401


@BOTH
@pytest.mark.parametrize("payload", [None, {}, {"apiKey": "nope"}, {"authorization": "Bearer nope"}, {"apiKey": 1}])
@pytest.mark.parametrize("headers", [[], [("X-API-Key", "sk-mine")]], ids=["", "with a good one in a header"])
async def test_a_wrong_key_in_the_first_message(
    protocol: str, payload: dict[str, Any] | None, headers: list[tuple[str, str]]
) -> None:
    async with (
        ours(Scripted(), keys=KEYS) as door,
        client(door, protocol, init=False, additional_headers=headers) as it,
    ):
        await it.send(type="connection_init", **({} if payload is None else {"payload": payload}))
        if headers and not payload:
            assert (await it.receive())["type"] == "connection_ack"
        elif protocol == "graphql-ws":
            message = await it.receive()
            assert message["type"] == "connection_error"
            assert message["payload"]["extensions"]["code"] == "UNAUTHENTICATED"
            assert await it.closed() == 4403
            assert it.wire.close_reason == message["payload"]["message"]
        else:
            assert await it.closed() == 4403
        if not headers or payload:
            shown = bool(payload)
            assert it.wire.close_reason == ("the API key is not valid" if shown else KEYLESS)


@BOTH
async def test_without_a_key_nothing_is_begun(protocol: str) -> None:
    provider = Scripted(saying("Hi"))
    async with ours(provider, keys=KEYS) as door, client(door, protocol, init=False) as it:
        await it.subscribe()
        assert await it.closed() == 4401
    assert provider.calls == []


# --- the gateway that stops ----------------------------------------------------------------------------------------


@BOTH
async def test_drain(protocol: str) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate, *saying(" there")[1:]])
    async with ours(provider) as door, client(door, protocol) as idle, client(door, protocol) as busy:
        await busy.subscribe(id="1")
        async with asyncio.timeout(PATIENCE):
            await gate.reached.wait()
        draining = asyncio.create_task(door.drain(PATIENCE))
        assert await idle.closed() == 1001
        await busy.subscribe(id="2")
        while (message := await busy.receive())["id"] != "2":
            pass
        assert message["type"] == "error"
        payload = message["payload"]
        refusal = payload[0] if isinstance(payload, list) else payload
        assert refusal["extensions"]["code"] == "SHUTTING_DOWN"
        gate.open()
        while (await busy.receive())["type"] != "complete":
            pass
        assert await busy.closed() == 1001
        assert await draining == 0


@BOTH
@pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
async def test_leaving_a_server_that_drains_ends_the_upstream(protocol: str, abruptly: bool) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate])
    async with ours(provider) as door, client(door, protocol) as idle, client(door, protocol) as it:
        await it.subscribe()
        async with asyncio.timeout(PATIENCE):
            await gate.reached.wait()
            draining = asyncio.create_task(door.drain(2 * PATIENCE))
            assert await idle.closed() == 1001
            if abruptly:
                it.wire.transport.abort()
            else:
                await it.wire.close()
            await provider.calls[0].cancelled.wait()
            assert await draining == 0
    assert provider.calls[0].exits == 1


@BOTH
async def test_what_outlasts_the_grace_is_cut(protocol: str) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate])
    async with ours(provider) as door, client(door, protocol) as it:
        await it.subscribe()
        async with asyncio.timeout(PATIENCE):
            await gate.reached.wait()
        assert await door.drain(0.01) == 1
        assert await it.closed() == 1001
    assert provider.calls[0].exits == 1

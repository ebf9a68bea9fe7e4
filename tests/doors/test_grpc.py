"""The gRPC door, over real sockets, with grpc's own client."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from llmg.client import Client
from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import (
    Batch,
    Delta,
    Embedding,
    Embeddings,
    Event,
    Opened,
    Result,
    Started,
    check,
)
from llmg.core.request import Chat, Embed, Request
from llmg.core.usage import Usage
from llmg.doors.grpc import server as server_module
from llmg.doors.grpc.errors import CODES, details
from llmg.doors.grpc.served import DESCRIPTORS
from llmg.doors.grpc.server import SERVICES, GrpcServer, Limits
from llmg.doors.grpc.services import Inference
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1 import embeddings_pb2, models_pb2
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceStub
from llmg.ports import Answering, Provider
from llmg.providers.echo import Echo
from llmg.testing.scripted import Call, Gate, Script, Scripted, saying
from support import gatewayapi
from support.doors import MODELS, GrpcDoor, Refusal, admission, grpc_door, refusal, some_models
from support.gateway import ECHO, Process, process
from support.http import PATIENCE

ROOT = Path(__file__).parents[2]
PROMPTLY = 1.0  # seconds; it is milliseconds, on a machine that has nothing else to do
RpcError = grpc.aio.AioRpcError


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No task outlives a test."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(PATIENCE):
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left)


def a_chat(text: str = "Hello there", model: str = "m", **fields: Any) -> pb.Chat:
    """A chat of one message."""
    said = pb.Part(text=pb.TextPart(text=text))
    return pb.Chat(model=model, messages=[pb.Message(role=pb.ROLE_USER, parts=[said])], **fields)


def whole(**fields: Any) -> pb.CreateChatCompletionRequest:
    return pb.CreateChatCompletionRequest(chat=a_chat(**fields))


def streamed(**fields: Any) -> pb.CreateChatCompletionStreamRequest:
    return pb.CreateChatCompletionStreamRequest(chat=a_chat(**fields))


async def prompt(event: asyncio.Event) -> None:
    """Waits for what must happen at once."""
    async with asyncio.timeout(PROMPTLY):
        await event.wait()


async def read(call: Any, into: list[pb.CreateChatCompletionStreamResponse]) -> None:
    """A stream's messages to its end."""
    async for message in call:
        into.append(message)  # noqa: PERF401 - it may end in an error


async def asked(door: GrpcDoor, *, stream: bool, timeout: float = PATIENCE, **fields: Any) -> None:
    """A call to its end."""
    if stream:
        await read(door.chat.CreateChatCompletionStream(streamed(**fields), timeout=timeout), [])
    else:
        await door.chat.CreateChatCompletion(whole(**fields), timeout=timeout)


async def fails(door: GrpcDoor, *, stream: bool, **fields: Any) -> Refusal:
    """How the call fails, which it must."""
    with pytest.raises(RpcError) as raised:
        await asked(door, stream=stream, **fields)
    return refusal(raised.value)


BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


# -- answers (the shapes of them are in tests/scenarios and tests/wire) ------------------------------------------------


async def test_a_message_for_each_read() -> None:
    provider = Scripted(saying("Hello", " there", usage=Usage(input_tokens=2, output_tokens=2)))
    async with grpc_door(provider) as door:
        messages = [message async for message in door.chat.CreateChatCompletionStream(streamed(), timeout=PATIENCE)]
    assert [len(message.events) for message in messages] == [2, 1, 1, 2, 1]
    events = gatewayapi.events(messages)
    check(events)
    assert events[0] == Started("scripted", 1_760_000_000, "m")
    assert events[-1] == Usage(input_tokens=2, output_tokens=2)


async def test_reads_without_events_are_no_messages() -> None:
    steps = saying("Hello")
    async with grpc_door(Scripted([[], *steps, []])) as door:
        messages = [message async for message in door.chat.CreateChatCompletionStream(streamed(), timeout=PATIENCE)]
    assert len(messages) == len(steps)


async def test_the_request_says_whether_it_is_a_stream() -> None:
    provider = Scripted(saying("Hello"))
    async with grpc_door(provider) as door:
        await door.chat.CreateChatCompletion(whole(n=2), timeout=PATIENCE)
        async for _ in door.chat.CreateChatCompletionStream(streamed(), timeout=PATIENCE):
            pass
    first, second = (call.request for call in provider.calls)
    assert isinstance(first, Chat)
    assert isinstance(second, Chat)
    assert (first.stream, first.n, second.stream) == (False, 2, True)
    assert {call.context.door for call in provider.calls} == {"grpc"}


async def test_many_at_once() -> None:
    async with grpc_door(Echo()) as door:
        answers = await asyncio.gather(
            *(door.chat.CreateChatCompletion(whole(text=f"say {i}"), timeout=PATIENCE) for i in range(100))
        )
    assert [answer.completion.choices[0].parts[0].text for answer in answers] == [f"say {i}" for i in range(100)]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_code() -> None:
    assert set(CODES) == set(Kind)
    assert grpc.StatusCode.OK not in CODES.values()


@pytest.mark.parametrize("kind", Kind)
async def test_every_kind_tells_all_it_may(kind: Kind) -> None:
    failure = Failure(kind, "größer", param="chat.n", code="their_code", retry_after=1.5, detail="secret")
    async with grpc_door(Scripted(Script(at_enter=failure))) as door:
        told = await fails(door, stream=False)
    assert told.code is CODES[kind]
    assert (told.message, told.kind, told.domain, told.metadata) == ("größer", kind, "llmg", {"code": "their_code"})
    assert (told.field, told.retry_after) == ("chat.n", 1.5)
    assert "secret" not in repr(told)


async def test_what_is_not_known_is_not_told() -> None:
    async with grpc_door(Scripted(Script(at_open=Failure(Kind.OVERLOADED, "busy")))) as door:
        told = await fails(door, stream=True)
    assert (told.field, told.retry_after, told.metadata) == (None, None, {})


@BOTH
async def test_a_long_message_gets_through(stream: bool) -> None:
    """An upstream's own words: metadata that is too large would fail the call with the client's own error."""
    failure = Failure(Kind.INVALID_REQUEST, "語" * 2000, param="p" * 5000, code="c" * 5000)
    async with grpc_door(Scripted(Script(at_enter=failure))) as door:
        told = await fails(door, stream=stream)
    assert told.kind is Kind.INVALID_REQUEST
    assert set(told.message) == {"語"}


def test_a_wait_without_end() -> None:
    assert details(Failure(Kind.RATE_LIMITED, "later", retry_after=1e30), None)


@BOTH
async def test_our_own_mistakes_are_no_stack_traces(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with grpc_door(Scripted(Script(at_enter=ValueError("a secret")))) as door:
        told = await fails(door, stream=stream)
    assert (told.kind, told.code) == (Kind.INTERNAL, grpc.StatusCode.INTERNAL)
    assert "a secret" not in repr(told)
    assert [record for record in caplog.records if record.name.startswith("grpc")] == []


async def test_a_failure_after_some_messages() -> None:
    provider = Scripted([*saying("Hello")[:2], Failure(Kind.UPSTREAM_TRUNCATED, "cut")])
    async with grpc_door(provider) as door:
        call = door.chat.CreateChatCompletionStream(streamed(), timeout=PATIENCE)
        messages: list[pb.CreateChatCompletionStreamResponse] = []
        with pytest.raises(RpcError) as raised:
            await read(call, messages)
    assert [type(event) for event in gatewayapi.events(messages)] == [Started, Opened, Delta]
    assert refusal(raised.value).kind is Kind.UPSTREAM_TRUNCATED
    await prompt(provider.calls[0].exited)


BAD = [
    ({"model": ""}, "chat.model"),
    ({"n": 0}, "chat.n"),
    ({"sampling": pb.Sampling(temperature=3)}, "chat.sampling.temperature"),
    ({"tools": [pb.Tool()]}, "chat.tools[0].name"),
    ({"output_format": pb.OutputFormat()}, "chat.output_format"),
]


@BOTH
@pytest.mark.parametrize(("fields", "field"), BAD, ids=[field for _, field in BAD])
async def test_a_bad_request_names_its_field(fields: dict[str, Any], field: str, stream: bool) -> None:
    provider = Scripted()
    async with grpc_door(provider) as door:
        told = await fails(door, stream=stream, **fields)
    assert (told.code, told.kind, told.field) == (grpc.StatusCode.INVALID_ARGUMENT, Kind.INVALID_REQUEST, field)
    assert provider.calls == []


@pytest.mark.parametrize("method", [m for service in DESCRIPTORS for m in service.methods], ids=lambda m: m.name)
async def test_bytes_that_are_no_message(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    provider = Scripted()
    name = f"/{method.containing_service.full_name}/{method.name}"
    async with grpc_door(provider, keys={"me": "sk-mine"}) as door:
        for key, kind in (("sk-mine", Kind.INVALID_REQUEST), ("nope", Kind.UNAUTHENTICATED)):
            kind_of_call = door.channel.unary_stream if method.server_streaming else door.channel.unary_unary
            call: Any = kind_of_call(name)(b"\xff\xff\xff", metadata=[("x-api-key", key)], timeout=PATIENCE)
            with pytest.raises(RpcError) as raised:
                await (call.read() if method.server_streaming else call)
            told = refusal(raised.value)
            assert (told.kind, told.code, told.field) == (kind, CODES[kind], None)
            assert (told.message == "the request is not a valid message") == (kind is Kind.INVALID_REQUEST)
            assert "x-request-id" in told.trailing
    assert [record for record in caplog.records if record.name.startswith("grpc")] == []
    assert provider.calls == []


@BOTH
@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("temperature", "chat.sampling.temperature"),
        ("messages[0].content", "chat.messages[0].parts"),
        ("response_format", "chat.output_format"),
        ("a_field_of_its_own", "a_field_of_its_own"),
    ],
)
async def test_a_field_that_the_upstream_refuses(param: str, field: str, stream: bool) -> None:
    failure = Failure(Kind.INVALID_REQUEST, "not so", param=param)
    async with grpc_door(Scripted(Script(at_enter=failure))) as door:
        assert (await fails(door, stream=stream)).field == field


async def test_an_input_that_the_upstream_refuses() -> None:
    failure = Failure(Kind.INVALID_REQUEST, "not so", param="input[0]")
    async with grpc_door(Scripted(Script(at_enter=failure))) as door:
        with pytest.raises(RpcError) as raised:
            await door.embeddings.CreateEmbeddings(an_embed("x"), timeout=PATIENCE)
    assert refusal(raised.value).field == "inputs[0]"


async def test_a_field_that_the_pipeline_refuses_is_named_as_the_message_has_it() -> None:
    failure = Failure(Kind.MODEL_NOT_FOUND, "no such model", param="model")
    async with grpc_door(Scripted(Script(at_open=failure))) as door:
        assert (await fails(door, stream=False)).field == "chat.model"
        with pytest.raises(RpcError) as raised:
            await door.embeddings.CreateEmbeddings(an_embed("x"), timeout=PATIENCE)
        assert refusal(raised.value).field == "model"


async def test_a_message_that_is_too_large() -> None:
    async with grpc_door(Echo(), max_message=1000) as door:
        with pytest.raises(RpcError) as raised:
            await door.chat.CreateChatCompletion(whole(text="x" * 1000), timeout=PATIENCE)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await door.chat.CreateChatCompletion(whole(text="x" * 900), timeout=PATIENCE)


# -- leaving -----------------------------------------------------------------------------------------------------------


async def call_of(provider: Scripted, gate: Gate) -> Call:
    """The provider's one call, when it waits at the gate."""
    async with asyncio.timeout(PATIENCE):
        await gate.reached.wait()
    return provider.calls[0]


@BOTH
async def test_a_deadline_reaches_the_upstream(stream: bool) -> None:
    gate = Gate()
    provider = Scripted(Script(steps=[gate]))
    async with grpc_door(provider) as door:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(RpcError) as raised:
            await asked(door, stream=stream, timeout=0.3)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (call,) = provider.calls
        await prompt(call.exited)
        assert call.cancelled.is_set()
        assert call.context.deadline is not None
        assert abs(call.context.deadline - (began + 0.3)) < 0.2


async def test_without_a_deadline_there_is_none() -> None:
    provider = Scripted(saying("Hello"))
    async with grpc_door(provider) as door:
        await door.chat.CreateChatCompletion(whole())
    assert provider.calls[0].context.deadline is None


async def test_a_client_that_leaves_a_whole_answer(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    provider = Scripted(Script(steps=[gate]))
    async with grpc_door(provider) as door:
        asking = door.chat.CreateChatCompletion(whole())
        call = await call_of(provider, gate)
        asking.cancel()
        await prompt(call.exited)
        assert call.cancelled.is_set()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("hang_up", [False, True], ids=["cancel", "close"])
async def test_a_client_that_leaves_a_stream(hang_up: bool, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hello")[:2], gate])
    async with grpc_door(provider) as door:
        channel = grpc.aio.insecure_channel(door.address)
        asking = ChatServiceStub(channel).CreateChatCompletionStream(streamed())
        await asking.read()
        call = await call_of(provider, gate)
        if hang_up:
            await channel.close()
        else:
            asking.cancel()
        await prompt(call.exited)
        assert call.cancelled.is_set()
        await channel.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class Endless:
    """A provider that always has more to say."""

    def __init__(self) -> None:
        self.given = 0
        self.exited = asyncio.Event()
        self.left_by: object = None  # the class of what was raised where its events were read

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return self

    async def __aenter__(self) -> AsyncIterator[Batch]:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self.left_by = kind
        self.exited.set()

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> Batch:
        self.given += 1
        start: list[Event] = [Started("s", 1, "m"), Opened(0, 0, "text")] if self.given == 1 else []
        return [*start, Delta(0, 0, "x" * 10_000)]


async def standstill(provider: Endless) -> int:
    """How many batches it has given, when it is asked for no more."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        seen, since = -1, loop.time()
        while loop.time() - since < 0.3:
            if provider.given != seen:
                seen, since = provider.given, loop.time()
            await asyncio.sleep(0.01)
    return seen


async def test_a_client_that_does_not_read_holds_the_upstream_back() -> None:
    provider = Endless()
    async with grpc_door(provider) as door:
        asking = door.chat.CreateChatCompletionStream(streamed())
        await asking.read()
        held = await standstill(provider)
        assert held < 2000  # of 10 kB
        for _ in range(held):
            await asking.read()
        assert await standstill(provider) > held
        asking.cancel()
        await prompt(provider.exited)


async def cancels(address: str, provider: Endless) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        asking = ChatServiceStub(channel).CreateChatCompletionStream(streamed())
        await asking.read()
        await standstill(provider)
        asking.cancel()


async def hangs_up(address: str, provider: Endless) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        asking = ChatServiceStub(channel).CreateChatCompletionStream(streamed())
        await asking.read()
        await standstill(provider)


async def our_own_leaves(address: str, provider: Endless) -> None:
    async with Client(address, timeout=PATIENCE) as client, client.stream("m", "Hello") as stream:
        await anext(stream.text)
        await standstill(provider)


@pytest.mark.parametrize("leaves", [cancels, hangs_up, our_own_leaves])
async def test_a_client_that_leaves_what_it_does_not_read(
    leaves: Callable[[str, Endless], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """The write that waits for it fails, and that is nobody's mistake."""
    provider = Endless()
    with capture_logs() as logs:
        async with grpc_door(provider) as door:
            await leaves(door.address, provider)
            await prompt(provider.exited)
    assert provider.left_by is asyncio.CancelledError
    assert logs == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# -- requests that take their time -------------------------------------------------------------------------------------


@asynccontextmanager
async def limited(provider: Provider, keys: Mapping[str, str] = {}, **limits: Any) -> AsyncIterator[GrpcDoor]:
    """The door with these limits."""
    server = GrpcServer(Inference(provider, admission(keys)), some_models(), limits=Limits(**limits), reflection=True)
    address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield GrpcDoor(server, address, channel)
    finally:
        await server.drain(0)


CHATTING = "/llmg.gatewayapi.v1.ChatService/CreateChatCompletion"


async def begun(door: GrpcDoor, *, stream: bool) -> Any:
    """A call that has come to the server without its message, which may be written to it yet."""
    await health(door).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    if stream:
        make: Any = door.channel.stream_stream(
            CHATTING + "Stream",
            request_serializer=pb.CreateChatCompletionStreamRequest.SerializeToString,
            response_deserializer=pb.CreateChatCompletionStreamResponse.FromString,
        )
    else:
        make = door.channel.stream_unary(
            CHATTING,
            request_serializer=pb.CreateChatCompletionRequest.SerializeToString,
            response_deserializer=pb.CreateChatCompletionResponse.FromString,
        )
    call = make(timeout=PATIENCE)
    await health(door).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)  # comes after it, over the same wire
    return call


async def answered(call: Any) -> None:
    """The answer to a call of either kind."""
    if isinstance(call, grpc.aio.StreamStreamCall):
        await read(call, [])
    else:
        await call


@BOTH
async def test_a_request_that_is_still_on_its_way_is_waited_for(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINGER", 0.05)
    provider = Scripted(saying("Hello"))
    async with grpc_door(provider) as door:
        call = await begun(door, stream=stream)
        draining = asyncio.create_task(door.server.drain(PATIENCE))
        done, _ = await asyncio.wait([draining], timeout=0.3)  # calls that are not waited for are over by now
        assert not done
        await call.write(streamed() if stream else whole())
        await call.done_writing()
        await answered(call)
        assert await draining == 0
    assert len(provider.calls) == 1


@BOTH
async def test_a_request_that_does_not_arrive_in_the_grace_is_told_why_it_ends(stream: bool) -> None:
    async with grpc_door(Scripted()) as door:
        call = await begun(door, stream=stream)
        assert await door.server.drain(0.05) == 1
        with pytest.raises(RpcError) as raised:
            await answered(call)
    assert (refusal(raised.value).code, refusal(raised.value).kind) == (
        grpc.StatusCode.UNAVAILABLE,
        Kind.SHUTTING_DOWN,
    )


@BOTH
async def test_a_request_that_never_arrives(stream: bool) -> None:
    async with limited(Scripted(), message_timeout=0.05) as door:
        call = await begun(door, stream=stream)
        with pytest.raises(RpcError) as raised:
            await answered(call)
    told = refusal(raised.value)
    assert (told.code, told.kind) == (grpc.StatusCode.DEADLINE_EXCEEDED, Kind.CLIENT_TIMEOUT)
    assert told.message == "the message did not arrive within 0.05 seconds"


@BOTH
async def test_who_has_no_key_is_told_so_before_anything_is_read(stream: bool) -> None:
    async with limited(Scripted(), {"someone": "secret"}) as door:
        call = await begun(door, stream=stream)
        with pytest.raises(RpcError) as raised:
            await answered(call)
    assert refusal(raised.value).kind is Kind.UNAUTHENTICATED


@BOTH
async def test_a_request_without_a_message(stream: bool) -> None:
    async with grpc_door(Scripted()) as door:
        call = await begun(door, stream=stream)
        await call.done_writing()
        with pytest.raises(RpcError) as raised:
            await answered(call)
    assert (refusal(raised.value).kind, refusal(raised.value).message) == (
        Kind.INVALID_REQUEST,
        "the request has no message",
    )


@BOTH
async def test_a_client_that_leaves_before_its_message(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    with capture_logs() as logs:
        async with grpc_door(Scripted()) as door:
            call = await begun(door, stream=stream)
            call.cancel()
            assert await door.server.drain(PATIENCE) == 0
    assert logs == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_only_who_has_a_key_can_use_up_the_calls() -> None:
    gate = Gate()
    provider = Scripted([gate, *saying("Hello")])
    async with limited(provider, {"someone": "secret"}, calls=1) as door:
        metadata = grpc.aio.Metadata(("x-api-key", "secret"))
        watching = [health(door).Watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
        for watch in watching:
            await watch.read()
        asking = door.chat.CreateChatCompletion(whole(), metadata=metadata, timeout=PATIENCE)
        await call_of(provider, gate)
        with pytest.raises(RpcError) as raised:
            await door.chat.CreateChatCompletion(whole(), metadata=metadata, timeout=PATIENCE)
        told = refusal(raised.value)
        assert (told.code, told.kind) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Kind.RATE_LIMITED)
        assert told.message == "1 calls are under way, and no more may be"
        assert (await fails(door, stream=True)).kind is Kind.UNAUTHENTICATED
        gate.open()
        await asking
        await door.chat.CreateChatCompletion(whole(), metadata=metadata, timeout=PATIENCE)
        for watch in watching:
            watch.cancel()


def frame(kind: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 on the connection itself (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3) + bytes([kind, 0]) + bytes(4) + payload


SETTINGS, PING = 4, 6
ASK = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS)
TOLD: list[tuple[dict[str, Any], bytes]] = [
    ({"streams": 77}, b"\x00\x03" + (77).to_bytes(4)),  # SETTINGS_MAX_CONCURRENT_STREAMS
    ({"connection_age": 0.05}, b"max_age"),
    ({"ping_interval": 10.0}, b"too_many_pings"),
    ({"ping_interval": 0.0}, b"\x06\x01" + bytes(4) + b"the last"),  # the PING's ACK
]


@pytest.mark.parametrize(("limits", "words"), TOLD, ids=[next(iter(limits)) for limits, _ in TOLD])
async def test_what_a_connection_is_told(limits: dict[str, Any], words: bytes) -> None:
    async with limited(Scripted(), **limits) as door:
        host, _, port = door.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(ASK)
        if "ping_interval" in limits:
            writer.writelines(frame(PING, said) for said in (*[b"and more"] * 9, b"the last"))
        said = b""
        async with asyncio.timeout(PATIENCE):
            while words not in said:
                more = await reader.read(1 << 16)
                assert more, said
                said += more
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


# -- metadata ----------------------------------------------------------------------------------------------------------


class Routed(Scripted):
    """Says where the answer comes from, as a router does."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        context.trail.extend(Attempt(provider="p", model=model, started=0.0) for model in ("a", "b\x7fü"))
        return super().open(request, context)


@pytest.mark.parametrize("script", [Script(steps=saying("Hello")), Script(at_enter=Failure(Kind.OVERLOADED, "busy"))])
@BOTH
async def test_the_last_words_say_which_way_it_went(script: Script, stream: bool) -> None:
    async with grpc_door(Routed(script)) as door:
        metadata = grpc.aio.Metadata(("x-request-id", "mine"), ("traceparent", "00-1-2-01"))
        call: Any
        if stream:
            call = door.chat.CreateChatCompletionStream(streamed(), metadata=metadata, timeout=PATIENCE)
            with suppress(RpcError):
                await read(call, [])
        else:
            call = door.chat.CreateChatCompletion(whole(), metadata=metadata, timeout=PATIENCE)
        await call.code()
        trailing = dict(await call.trailing_metadata())
    trailing.pop("grpc-status-details-bin", None)
    assert trailing == {"x-request-id": "mine", "x-llmg-route": "p/b??", "x-llmg-attempts": "2"}


@pytest.mark.parametrize("given", ["has space", "x" * 129, ""])
async def test_a_request_id_that_is_none_is_replaced(given: str) -> None:
    provider = Scripted(saying("Hello"))
    async with grpc_door(provider) as door:
        call = door.chat.CreateChatCompletion(
            whole(), metadata=grpc.aio.Metadata(("x-request-id", given)), timeout=PATIENCE
        )
        await call
        assert dict(await call.trailing_metadata()) == {"x-request-id": "req_id1"}
    assert provider.calls[0].context.request_id == "req_id1"


async def test_the_trace_goes_on() -> None:
    provider = Scripted(saying("Hello"))
    async with grpc_door(provider) as door:
        metadata = grpc.aio.Metadata(("traceparent", "00-1-2-01"))
        await door.chat.CreateChatCompletion(whole(), metadata=metadata, timeout=PATIENCE)
    assert provider.calls[0].context.traceparent == "00-1-2-01"


# -- the other services ------------------------------------------------------------------------------------------------


def an_embed(*texts: str, **fields: Any) -> embeddings_pb2.CreateEmbeddingsRequest:
    inputs = [embeddings_pb2.EmbeddingInput(text=text) for text in texts]
    return embeddings_pb2.CreateEmbeddingsRequest(model="m", inputs=inputs, **fields)


VECTORS = [(1.0, -0.5), (0.25, 0.0)]


@pytest.mark.parametrize("packed", [False, True], ids=["floats", "packed"])
async def test_vectors(packed: bool) -> None:
    vectors = tuple(Embedding(i, array("f", v).tobytes() if packed else v) for i, v in enumerate(VECTORS))
    provider = Scripted([[Started("a", 1, "theirs"), Result(Embeddings(vectors)), Usage(input_tokens=4)]])
    async with grpc_door(provider) as door:
        answer = await door.embeddings.CreateEmbeddings(an_embed("one", "two", dimensions=2), timeout=PATIENCE)
    assert [tuple(vector.values) for vector in answer.embeddings] == VECTORS
    assert [vector.index for vector in answer.embeddings] == [0, 1]
    assert (answer.model, answer.usage.input_tokens) == ("m", 4)
    assert provider.calls[0].request == Embed(model="m", inputs=("one", "two"), dimensions=2)


async def test_a_bad_request_for_vectors() -> None:
    async with grpc_door(Scripted()) as door:
        with pytest.raises(RpcError) as raised:
            await door.embeddings.CreateEmbeddings(an_embed(""), timeout=PATIENCE)
    assert refusal(raised.value).field == "inputs[0]"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 2**31 - 1])
async def test_models_come_in_pages(size: int) -> None:
    names: list[str] = []
    token, pages = "", 0
    async with grpc_door(Scripted()) as door:
        while token or not pages:
            asked = models_pb2.ListModelsRequest(page_size=size, page_token=token)
            page = await door.models.ListModels(asked, timeout=PATIENCE)
            assert 0 < len(page.models) <= (size or 4)
            names += [model.id for model in page.models]
            token, pages = page.next_page_token, pages + 1
    assert names == [model.id for model in MODELS]
    assert pages == -(-4 // (size or 4))


async def test_a_page_of_less_than_nothing() -> None:
    async with grpc_door(Scripted()) as door:
        with pytest.raises(RpcError) as raised:
            await door.models.ListModels(models_pb2.ListModelsRequest(page_size=-1), timeout=PATIENCE)
    assert refusal(raised.value).field == "page_size"


async def test_a_model_by_its_name() -> None:
    async with grpc_door(Scripted()) as door:
        answer = await door.models.GetModel(models_pb2.GetModelRequest(id="c/d"), timeout=PATIENCE)
        assert answer.model == models_pb2.Model(id="c/d", created=7, owned_by="p", operations=["chat"])
        with pytest.raises(RpcError) as raised:
            await door.models.GetModel(models_pb2.GetModelRequest(id="nope"), timeout=PATIENCE)
    assert (refusal(raised.value).code, refusal(raised.value).field) == (grpc.StatusCode.NOT_FOUND, "id")


# -- the end -----------------------------------------------------------------------------------------------------------


def health(door: GrpcDoor) -> Any:
    return health_pb2_grpc.HealthStub(door.channel)


async def test_it_is_well_until_it_drains() -> None:
    gate = Gate()
    provider = Scripted([*saying("Hello")[:2], gate, *saying("Hello")[2:]])
    async with grpc_door(provider) as door:
        for service in ("", *SERVICES):
            answer = await health(door).Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watching = health(door).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        asking = door.chat.CreateChatCompletionStream(streamed(), timeout=PATIENCE)
        messages = [await asking.read()]
        await call_of(provider, gate)
        draining = asyncio.create_task(door.server.drain(PATIENCE))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        gate.open()
        while (message := await asking.read()) is not grpc.aio.EOF:
            messages.append(message)
        check(gatewayapi.events(messages))
        async with asyncio.timeout(PATIENCE / 2):  # the one who watches is not waited for
            assert await draining == 0


@BOTH
async def test_what_lasts_longer_than_the_grace_is_told_why_it_ends(stream: bool) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hello")[:2], gate])
    async with grpc_door(provider) as door:
        asking = asyncio.create_task(fails(door, stream=stream))
        await call_of(provider, gate)
        assert await door.server.drain(0.05) == 1
        told = await asking
        assert (told.code, told.kind) == (grpc.StatusCode.UNAVAILABLE, Kind.SHUTTING_DOWN)
        assert told.message == "the gateway is shutting down"
        assert provider.calls[0].exits == 1


@pytest.mark.parametrize("patience", [0, PATIENCE], ids=["who calls no more", "who calls again at once"])
async def test_no_call_is_lost_when_it_drains(patience: float) -> None:
    """gRPC has calls of which nobody has told us yet; when it stops, it cancels those."""
    told: list[Refusal] = []
    answers = asyncio.Semaphore(0)

    async def call_and_call(door: GrpcDoor) -> None:
        while True:
            try:
                await door.chat.CreateChatCompletion(whole(), timeout=PATIENCE)
                answers.release()
            except RpcError as error:
                if "onnect" in str(error.details()):  # to whom there is no more
                    return
                told.append(refusal(error))
                if not patience:
                    return

    async with grpc_door(Echo()) as door:
        async with asyncio.timeout(PATIENCE):
            callers = [asyncio.create_task(call_and_call(door)) for _ in range(100)]
            for _ in range(100):
                await answers.acquire()
            assert await door.server.drain(PATIENCE) == 0
            await asyncio.gather(*callers)
    assert len(told) == 100
    assert {(one.code, one.kind) for one in told} == {(grpc.StatusCode.UNAVAILABLE, Kind.SHUTTING_DOWN)}
    assert all(one.trailing["x-request-id"] for one in told)


# -- as it is served ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with process(tmp_path_factory.mktemp("gateway"), ECHO) as running:
        yield running


async def test_it_is_served(served: Process) -> None:
    async with grpc.aio.insecure_channel(served.grpc_address) as channel:
        chat = ChatServiceStub(channel)
        call = chat.CreateChatCompletion(whole(model="echo/some/model"), timeout=PATIENCE)
        answer = await call
        assert answer.completion.choices[0].parts[0].text == "Hello there"
        assert dict(await call.trailing_metadata())["x-llmg-route"] == "echo/some/model"
        messages = [message async for message in chat.CreateChatCompletionStream(streamed(n=2), timeout=PATIENCE)]
        check(gatewayapi.events(messages))
        with pytest.raises(RpcError) as raised:
            await chat.CreateChatCompletion(whole(model="nope"), timeout=PATIENCE)
    told = refusal(raised.value)
    assert (told.code, told.kind, told.field) == (grpc.StatusCode.NOT_FOUND, Kind.MODEL_NOT_FOUND, "chat.model")


async def buf_curl(address: str, method: str, request: Any, *, ok: bool = True) -> list[Any]:
    """What `buf curl` gives, which learns of our services from nobody but us."""
    command = [str(ROOT / ".venv/bin/buf"), "curl", "--http2-prior-knowledge", "--protocol", "grpc"]
    child = await asyncio.create_subprocess_exec(
        *command,
        "--data",
        json.dumps(request),
        f"http://{address}/llmg.gatewayapi.v1.{method}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), PATIENCE * 2)
    assert (child.returncode == 0) is ok, err.decode()
    decoder, text, answers = json.JSONDecoder(), (out if ok else err).decode().strip(), []
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:].lstrip()
    return answers


CHAT = {"model": "m", "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "Hello"}}]}]}
CURLED: list[tuple[str, Any, Any]] = [
    ("ChatService/CreateChatCompletion", {"chat": CHAT}, "FINISH_REASON_STOP"),
    ("ChatService/CreateChatCompletionStream", {"chat": CHAT}, "FINISH_REASON_STOP"),
    ("EmbeddingService/CreateEmbeddings", {"model": "m", "inputs": [{"text": "a"}]}, "embeddings"),
    ("ModelService/ListModels", {}, "echo"),
    ("ModelService/GetModel", {"id": "m"}, "echo"),
]


@pytest.mark.parametrize(("method", "request_", "said"), CURLED, ids=[method for method, _, _ in CURLED])
async def test_buf_curl_by_reflection(served: Process, method: str, request_: Any, said: str) -> None:
    answers = await buf_curl(served.grpc_address, method, request_)
    assert answers
    assert said in json.dumps(answers)


def test_buf_curl_is_asked_of_every_method() -> None:
    files = (pb, embeddings_pb2, models_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    wanted = {f"{service.name}/{method.name}" for service in services for method in service.methods}
    assert {method for method, _, _ in CURLED} == wanted


async def test_reflection_lists_the_services(served: Process) -> None:
    child = await asyncio.create_subprocess_exec(
        str(ROOT / ".venv/bin/buf"),
        *("curl", "--http2-prior-knowledge", "--protocol", "grpc", "--list-services"),
        f"http://{served.grpc_address}",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(child.communicate(), PATIENCE * 2)
    assert set(SERVICES) <= set(out.decode().split())


def test_the_port_is_as_it_was_configured(served: Process) -> None:
    host, _, port = served.grpc_address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE):
        pass

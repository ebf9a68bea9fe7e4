"""How calls fail: each of the gateway's kinds, gRPC's own, and no gateway at all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpclib.const import Status

from llmg import client as sdk
from llmg.client import Client, LlmgError
from llmg.client.errors import from_status
from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind
from llmg.core.request import Request
from llmg.doors.grpc.errors import CODES
from llmg.ports import Answering
from llmg.testing.scripted import Script, Scripted, saying
from support.doors import grpc_door
from support.http import PATIENCE

ERRORS: dict[Kind, type[LlmgError]] = {
    Kind.INVALID_REQUEST: sdk.InvalidRequestError,
    Kind.UNAUTHENTICATED: sdk.AuthenticationError,
    Kind.PERMISSION_DENIED: sdk.PermissionDeniedError,
    Kind.NOT_FOUND: sdk.NotFoundError,
    Kind.MODEL_NOT_FOUND: sdk.NotFoundError,
    Kind.CONFLICT: sdk.InvalidRequestError,
    Kind.METHOD_NOT_ALLOWED: sdk.UnimplementedError,
    Kind.REQUEST_TOO_LARGE: sdk.InvalidRequestError,
    Kind.UNSUPPORTED_MEDIA_TYPE: sdk.InvalidRequestError,
    Kind.CONTEXT_LENGTH_EXCEEDED: sdk.InvalidRequestError,
    Kind.CONTENT_FILTERED: sdk.InvalidRequestError,
    Kind.RATE_LIMITED: sdk.RateLimitError,
    Kind.QUOTA_EXCEEDED: sdk.RateLimitError,
    Kind.CANCELLED: sdk.CallCancelledError,
    Kind.CLIENT_TIMEOUT: sdk.DeadlineError,
    Kind.NOT_IMPLEMENTED: sdk.UnimplementedError,
    Kind.DEADLINE_EXCEEDED: sdk.DeadlineError,
    Kind.OVERLOADED: sdk.UnavailableError,
    Kind.SHUTTING_DOWN: sdk.UnavailableError,
    Kind.UPSTREAM_UNAVAILABLE: sdk.UnavailableError,
    Kind.UPSTREAM_TIMEOUT: sdk.UnavailableError,
    Kind.UPSTREAM_RATE_LIMITED: sdk.RateLimitError,
    Kind.UPSTREAM_AUTH: sdk.UnavailableError,
    Kind.UPSTREAM_MODEL_NOT_FOUND: sdk.NotFoundError,
    Kind.UPSTREAM_TRUNCATED: sdk.UnavailableError,
    Kind.UPSTREAM_PROTOCOL: sdk.ServerError,
    Kind.UPSTREAM_ERROR: sdk.ServerError,
    Kind.BACKEND_CRASHED: sdk.UnavailableError,
    Kind.INTERNAL: sdk.ServerError,
}


def test_every_kind_has_an_error() -> None:
    assert set(ERRORS) == set(Kind)


async def ask(client: Client) -> None:
    await client.chat("m", "Hello")


async def read(client: Client) -> None:
    async with client.stream("m", "Hello") as stream:
        await stream.get_final_completion()


Way = Callable[[Client], Awaitable[None]]
BOTH = pytest.mark.parametrize("way", [ask, read], ids=["whole", "stream"])


class Routed(Scripted):
    """Says where the answer would have come from, as a router does."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        context.trail.append(Attempt(provider="p", model="their/model", started=0.0))
        return super().open(request, context)


async def failure(client: Client, way: Way) -> LlmgError:
    with pytest.raises(LlmgError) as raised:
        await way(client)
    return raised.value


@pytest.mark.parametrize("kind", Kind)
@BOTH
async def test_a_kind_with_all_it_may_tell(kind: Kind, way: Way) -> None:
    told = Failure(kind, "größer\n", param="chat.n", code="their_code", retry_after=1.5, detail="secret")
    async with grpc_door(Routed(Script(at_enter=told))) as door, Client(door.address, timeout=PATIENCE) as client:
        error = await failure(client, way)
    assert type(error) is ERRORS[kind]
    assert (error.kind, error.status.value) == (kind.value, CODES[kind].value[0])
    assert (error.message, str(error), error.param, error.code) == ("größer\n", "größer\n", "chat.n", "their_code")
    assert (error.retry_after, error.request_id, error.route) == (1.5, "req_id1", "p/their/model")
    assert "secret" not in repr(vars(error))


@BOTH
async def test_what_is_not_known_is_none(way: Way) -> None:
    provider = Scripted(Script(at_enter=Failure(Kind.OVERLOADED, "busy")))
    async with grpc_door(provider) as door, Client(door.address, timeout=PATIENCE) as client:
        error = await failure(client, way)
    assert (error.param, error.code, error.retry_after, error.route) == (None, None, None, None)
    assert repr(error) == "UnavailableError(overloaded: busy)"


async def test_in_the_middle_of_a_stream() -> None:
    provider = Routed([*saying("Hello")[:2], Failure(Kind.UPSTREAM_TRUNCATED, "cut")])
    async with (
        grpc_door(provider) as door,
        Client(door.address, timeout=PATIENCE) as client,
        client.stream("m", "Hello") as stream,
    ):
        assert await anext(stream.text) == "Hello"
        with pytest.raises(sdk.UnavailableError) as raised:
            await anext(stream.text)
        assert stream.completion.text == "Hello"  # what came is still there
        assert stream.route == "p/their/model"
        assert await anext(stream, None) is None
    assert (raised.value.kind, raised.value.route) == ("upstream_truncated", "p/their/model")


@pytest.mark.parametrize(("fields", "param"), [({"n": 0}, "chat.n"), ({"temperature": 3}, "chat.sampling.temperature")])
async def test_a_field_that_the_gateway_refuses(fields: Any, param: str) -> None:
    async with grpc_door(Scripted()) as door, Client(door.address, timeout=PATIENCE) as client:
        with pytest.raises(sdk.InvalidRequestError) as raised:
            await client.chat("m", "Hello", **fields)
    assert raised.value.param == param


@BOTH
async def test_what_can_not_be_written_is_not_sent(way: Way) -> None:
    message = sdk.types.Message(role=2**31)  # type: ignore[arg-type]

    async def wrong(client: Client) -> None:
        if way is ask:
            await client.chat("m", [message])
        async with client.stream("m", [message]) as stream:
            await stream.get_final_completion()

    async with listener(None) as address, Client(address, timeout=PATIENCE) as client:
        error = await failure(client, wrong)
        assert (type(error), error.param) == (sdk.InvalidRequestError, "chat.messages[0].role")
        with pytest.raises(sdk.InvalidRequestError) as raised:
            await client.embed("m", "Hello", dimensions=2**40)
        assert raised.value.param == "dimensions"
        with pytest.raises(sdk.InvalidRequestError) as raised:
            await client.model(5)  # type: ignore[arg-type]
        assert raised.value.param == "id"
        stub = client.stub(sdk.types.ModelServiceStub)
        with pytest.raises(sdk.InvalidRequestError) as raised:
            await stub.list_models(sdk.types.ListModelsRequest(page_size=2**32 + 1))
        assert raised.value.param == "page_size"


@pytest.mark.parametrize("key", [None, "sk-another-1234567890"])
@BOTH
async def test_no_key_or_a_wrong_one(key: str | None, way: Way) -> None:
    provider = Scripted()
    async with (
        grpc_door(provider, keys={"mine": "sk-1234567890abcdef"}) as door,
        Client(door.address, api_key=key, timeout=PATIENCE) as client,
    ):
        error = await failure(client, way)
        with pytest.raises(sdk.AuthenticationError):
            await client.models()
    assert (type(error), error.kind, error.request_id) == (sdk.AuthenticationError, "unauthenticated", "req_id1")
    assert provider.calls == []


@BOTH
async def test_a_request_that_is_too_large(way: Way) -> None:
    async def large(client: Client) -> None:
        if way is ask:
            await client.chat("m", "x" * 3_000_000)
        async with client.stream("m", "x" * 3_000_000) as stream:
            await stream.get_final_completion()

    async with grpc_door(Scripted()) as door, Client(door.address, timeout=PATIENCE) as client:
        error = await failure(client, large)
        assert (type(error), error.kind) == (sdk.InvalidRequestError, "request_too_large")
        assert await client.models()  # the connection still serves


# -- nobody there ------------------------------------------------------------------------------------------------------


@BOTH
async def test_nobody_listens(way: Way) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with Client(address, timeout=PATIENCE) as client:
            error = await failure(client, way)
    assert (type(error), error.kind, error.status) == (sdk.UnavailableError, "unavailable", Status.UNAVAILABLE)
    assert error.message.startswith(f"no gateway answers at {address}: ")


async def test_a_host_that_does_not_exist() -> None:
    async with Client("nowhere.invalid:8081", timeout=PATIENCE) as client:
        error = await failure(client, ask)
    assert (type(error), error.kind) == (sdk.UnavailableError, "unavailable")


@asynccontextmanager
async def listener(answer: bytes | None) -> AsyncIterator[str]:
    """One that says this, whatever it is told, and hangs up; or says nothing at all."""
    held: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        if answer is not None:
            await reader.read(1 << 16)
            writer.write(answer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()
        for writer in held:
            writer.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"\0" * 100])
@BOTH
async def test_it_is_no_grpc_server(answer: bytes, way: Way) -> None:
    async with listener(answer) as address, Client(address, timeout=PATIENCE) as client:
        error = await failure(client, way)
    assert (type(error), error.kind) == (sdk.UnavailableError, "unavailable")
    assert address in error.message


# -- other servers -----------------------------------------------------------------------------------------------------

STATUSES = {
    Status.UNKNOWN: (sdk.ServerError, "internal"),
    Status.ABORTED: (sdk.InvalidRequestError, "conflict"),
    Status.ALREADY_EXISTS: (sdk.InvalidRequestError, "conflict"),
    Status.OUT_OF_RANGE: (sdk.InvalidRequestError, "invalid_request"),
    Status.DATA_LOSS: (sdk.ServerError, "internal"),
    Status.RESOURCE_EXHAUSTED: (sdk.RateLimitError, "rate_limited"),
    Status.UNAVAILABLE: (sdk.UnavailableError, "unavailable"),
}


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
@pytest.mark.parametrize("details", [None, b"", b"\xff\xff", b"\x08"], ids=["none", "empty", "garbled", "cut"])
def test_a_status_without_details_of_ours(status: Status, details: bytes | None) -> None:
    error = from_status(status, None, details, {})
    assert error.status is status
    if status in STATUSES:
        assert (type(error), error.kind) == STATUSES[status]
    assert error.message == error.kind.replace("_", " ")


class Strange(grpc.GenericRpcHandler):
    """Answers each call with these bytes, whatever was asked."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers

    def service(self, details: Any) -> Any:
        """See grpc."""
        return grpc.unary_stream_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for answer in self._answers:
            yield answer


@pytest.mark.parametrize(
    ("answers", "error"),
    [([], sdk.UnavailableError), ([b"\x0a\x03\x0a\x01\xff"], sdk.ServerError)],
    ids=["nothing", "garbled"],
)
async def test_a_server_that_answers_strangely(answers: list[bytes], error: type[LlmgError]) -> None:
    server = grpc.aio.server(handlers=[Strange(*answers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}", timeout=PATIENCE) as client:
            with pytest.raises(error):
                await client.chat("m", "Hello")
    finally:
        await server.stop(None)


async def test_a_server_that_has_no_such_service() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}", timeout=PATIENCE) as client:
            error = await failure(client, ask)
    finally:
        await server.stop(None)
    assert (type(error), error.kind) == (sdk.UnimplementedError, "not_implemented")


async def test_calls_that_are_too_many() -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
        raise AssertionError

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            """See grpc."""
            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.aio.server(handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}", timeout=PATIENCE) as client:
            error = await failure(client, ask)
    finally:
        await server.stop(None)
    assert (type(error), error.kind) == (sdk.RateLimitError, "rate_limited")

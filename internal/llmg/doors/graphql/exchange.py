"""One HTTP request: read, checked, executed, answered whole or as a stream. After the GraphQL over HTTP draft.

Two media types for a whole answer: under `application/json` a request that GraphQL refuses is answered 200, under
`application/graphql-response+json` 400. Two for a stream: `text/event-stream` (graphql-sse's distinct connections)
and `multipart/mixed` (Apollo's protocol); they are enabled by name, and asked for by `Accept`.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from graphql import GraphQLError
from starlette.types import Receive, Scope, Send
from strawberry.schema.exceptions import InvalidOperationTypeError
from strawberry.types.execution import ExecutionResult, PreExecutionError
from strawberry.types.graphql import OperationType

from llmg.core.errors import Failure, Kind, internal, invalid
from llmg.doors.graphql import errors
from llmg.doors.graphql.schema import Asking, Gateway, Schema
from llmg.doors.http.leaving import Leaving

JSON: Final = "application/json"
RESPONSE: Final = "application/graphql-response+json"
SSE: Final = "text/event-stream"
MULTIPART: Final = "multipart/mixed"
STREAMS: Final = frozenset({SSE, MULTIPART})

_BOUNDARY: Final = b"graphql"
_STREAM_TYPES: Final = {
    SSE: b"text/event-stream; charset=utf-8",
    MULTIPART: b'multipart/mixed;boundary="%b";subscriptionSpec="1.0"' % _BOUNDARY,
}
# A page of another origin can't send these without asking first (a CORS preflight), which nobody here allows.
_PREFLIGHTED: Final = (b"apollo-require-preflight", b"x-apollo-operation-name", b"graphql-require-preflight")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`max_body` in bytes, `heartbeat` in seconds, `streams`: which of STREAMS are on."""

    max_body: int
    heartbeat: float
    streams: Collection[str]


class Exchange:
    """The request of one ASGI call, and its answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, gateway: Gateway, schema: Schema, options: Options
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._schema = schema
        self._options = options
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self._admission = gateway.admission
        self.request_id = self._admission.request_id(self._header(b"x-request-id"))
        self._asking = Asking(gateway, self.request_id, self._header(b"traceparent"))
        self._leaving = Leaving(scope, receive)
        self._accepted = accepted(self.headers.get(b"accept", b"").decode("latin-1"), options.streams)
        self._started = False

    async def handle(self) -> None:
        """All of it. Nothing leaves it as an exception but a cancellation that isn't the client's leaving."""
        try:
            await self._answer()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.uncancel() > 0:
                raise
            if not self._leaving.left:
                await self._refuse(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))
        except Failure as failure:
            await self._refuse(failure)
        except Exception as mistake:  # noqa: BLE001 - the rim: nothing may leave it as a stack trace
            await self._refuse(internal(mistake))
        finally:
            self._leaving.done()

    def _header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def _answer(self) -> None:
        self._asking.principal = self._admission.principal(self._header(b"authorization"), self._header(b"x-api-key"))
        method = self._scope["method"]
        if method == "POST":
            operation, allowed = await self._posted(), _ALL
        elif method == "GET":
            operation, allowed = parse_query(self._scope.get("query_string", b"")), _READS
            if self._accepted in STREAMS and any(name in self.headers for name in _PREFLIGHTED):
                allowed = _READS | {OperationType.SUBSCRIPTION}
        else:
            raise Failure(Kind.METHOD_NOT_ALLOWED, f"{method} is not for GraphQL")
        self._leaving.watch()
        streamed = self._accepted in STREAMS
        results: Any = await self._schema.stream(
            operation.query,
            variable_values=operation.variables,
            operation_name=operation.name,
            operation_extensions=operation.extensions,
            context_value=self._asking,
            allowed_operation_types=allowed if streamed else allowed - {OperationType.SUBSCRIPTION},
        )
        async with aclosing(results):
            if streamed:
                await self._stream(results)
            else:
                await self._single(await anext(results))

    async def _posted(self) -> Operation:
        self._check_media_type()
        return parse_body(await self._body())

    def _check_media_type(self) -> None:
        """Of the body. A page of another origin can't send JSON without asking first, so that this guards from it."""
        given = self.headers.get(b"content-type", b"").decode("latin-1")
        kind, *params = [part.strip().lower() for part in given.split(";")]
        charsets = [param.partition("=")[2].strip('"') for param in params if param.startswith("charset=")]
        if kind != JSON or any(charset not in ("utf-8", "utf8") for charset in charsets):
            raise Failure(Kind.UNSUPPORTED_MEDIA_TYPE, f"the body must be {JSON} in UTF-8, and say so in Content-Type")

    async def _body(self) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._leaving.left = True
                raise asyncio.CancelledError
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._options.max_body:
                limit = self._options.max_body
                raise Failure(Kind.REQUEST_TOO_LARGE, f"the body is larger than {limit} bytes")
            if not message.get("more_body"):
                return b"".join(chunks)

    async def _single(self, result: ExecutionResult) -> None:
        refused = isinstance(result, PreExecutionError) or (
            result.data is None and all(error.path is None for error in result.errors or ())
        )
        status, more = 200, []
        if refused:
            status = 400 if self._accepted == RESPONSE else 200  # to clients of plain JSON the rest is no answer at all
            if self._scope["method"] == "GET" and any(_not_for_get(error) for error in result.errors or ()):
                status, more = 405, [(b"allow", b"POST")]
        body = msgspec.json.encode(_payload(result, bare=refused))
        await self._whole(status, body, b"%b; charset=utf-8" % self._accepted.encode(), *more)

    async def _stream(self, results: AsyncGenerator[ExecutionResult, None]) -> None:
        outlet = _OUTLETS[self._accepted](self, self._options.heartbeat)
        try:
            async for result in results:
                await outlet.next(_payload(result))
        except asyncio.CancelledError:
            if self._leaving.left:
                raise
            await outlet.next(self._refusal(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down")))
        except Exception as mistake:  # noqa: BLE001 - a stream under way must end with a clear error, whatever it was
            await outlet.next(self._refusal(internal(mistake)))
        finally:
            outlet.close()
        await outlet.complete()

    def _refusal(self, failure: Failure) -> dict[str, Any]:
        return errors.refusal(failure, self.request_id)

    async def _refuse(self, failure: Failure) -> None:
        if self._started:
            errors.report(failure, self.request_id)
            raise failure  # the server closes the connection: the answer is not whole
        kind = self._accepted if self._accepted not in STREAMS else JSON
        body = msgspec.json.encode(self._refusal(failure))
        more = [(b"allow", b"GET, POST")] if failure.kind is Kind.METHOD_NOT_ALLOWED else []
        if failure.kind is Kind.UNAUTHENTICATED:
            more.append((b"www-authenticate", b"Bearer"))
        if failure.kind is Kind.REQUEST_TOO_LARGE:
            more.append((b"connection", b"close"))  # the rest of the body is not read
        status = errors.CODES[failure.kind][1]
        await self._whole(status, body, b"%b; charset=utf-8" % kind.encode(), *more)

    async def _whole(self, status: int, body: bytes, kind: bytes, *more: tuple[bytes, bytes]) -> None:
        await self.start(status, kind, (b"content-length", b"%d" % len(body)), *more)
        await self._send({"type": "http.response.body", "body": body})

    async def start(self, status: int, kind: bytes, *more: tuple[bytes, bytes]) -> None:
        """The status line and the headers."""
        self._started = True
        own = [(b"content-type", kind), (b"vary", b"accept"), (b"x-request-id", self.request_id.encode()), *more]
        last = self._asking.last
        if last is not None and last.trail:
            own += [(b"x-llmg-route", last.route.encode()), (b"x-llmg-attempts", b"%d" % len(last.trail))]
        await self._send({"type": "http.response.start", "status": status, "headers": own})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """A piece of a stream, its head first. Waits while the client does not read."""
        if not self._started:
            caching = [(b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no")]
            await self.start(200, _STREAM_TYPES[self._accepted], *caching)
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _not_for_get(error: GraphQLError) -> bool:
    return isinstance(error.original_error, InvalidOperationTypeError)


def _payload(result: ExecutionResult, *, bare: bool = False) -> dict[str, Any]:
    """What a client gets. `bare`: nothing was executed, so there is no `data`."""
    out: dict[str, Any] = {} if bare else {"data": result.data}
    if result.errors:
        out["errors"] = [error.formatted for error in result.errors]
    if result.extensions:
        out["extensions"] = result.extensions
    return out


# --- what is asked -------------------------------------------------------------------------------------------------


class Operation(msgspec.Struct, frozen=True):
    """The request's parameters. Unknown ones are ignored, as the draft has it."""

    query: str
    variables: dict[str, Any] | None = None
    name: str | None = None
    extensions: dict[str, Any] | None = None


class _Body(msgspec.Struct, frozen=True, rename={"operation_name": "operationName"}):
    query: str | None = None
    variables: dict[str, Any] | None = None
    operation_name: str | None = None
    extensions: dict[str, Any] | None = None


_ALL: Final = frozenset(OperationType)
_READS: Final = frozenset({OperationType.QUERY})
_decode: Final = msgspec.json.Decoder(_Body).decode


def parse_body(body: bytes) -> Operation:
    """A POST's. Raises Failure (invalid_request)."""
    try:
        given = _decode(body)
    except msgspec.ValidationError as error:
        batch = body.lstrip()[:1] == b"["
        raise invalid("batches of operations are not taken" if batch else f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("the body is not valid JSON") from None
    return _operation(given)


def parse_query(query_string: bytes) -> Operation:
    """A GET's. Raises Failure (invalid_request)."""
    given: dict[str, Any] = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
    for name in ("variables", "extensions"):
        text = given.get(name)
        try:
            given[name] = msgspec.json.decode(text) if text else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise invalid(f"the parameter '{name}' is not valid JSON", name) from None
    try:
        return _operation(msgspec.convert(given, _Body))
    except msgspec.ValidationError as error:
        raise invalid(f"the parameters do not fit: {error}") from None


def _operation(given: _Body) -> Operation:
    if not given.query:
        raise invalid("there is no 'query'", "query")
    return Operation(given.query, given.variables, given.operation_name or None, given.extensions)


def accepted(accept: str, streams: Collection[str]) -> str:
    """Which media type the answer has: the first of ours that the client names; JSON where it names none.

    Weights are not looked at, but for 0; no client of GraphQL gives others than by the order.
    """
    for item in accept.split(","):
        kind, *params = [part.strip().lower() for part in item.split(";")]
        if any(re.fullmatch(r"q=0(\.0*)?", param) for param in params):
            continue
        if kind == MULTIPART and not any(param.startswith("subscriptionspec=") for param in params):
            continue  # incremental delivery's, which we have not
        if kind in (JSON, RESPONSE) or kind in streams:
            return kind
    return JSON


# --- streams -------------------------------------------------------------------------------------------------------


class _Outlet(ABC):
    """Writes a stream's payloads, and a heartbeat where none has come for `interval` seconds."""

    start = b""
    heartbeat: bytes
    end: bytes

    def __init__(self, exchange: Exchange, interval: float) -> None:
        self._exchange = exchange
        self._start = self.start
        self._lock = asyncio.Lock()
        self._quiet = True
        self._beating = asyncio.get_running_loop().create_task(self._beat(interval))

    @abstractmethod
    def frame(self, data: bytes) -> bytes:
        """A payload as this kind of stream carries it."""

    async def next(self, payload: dict[str, Any]) -> None:
        async with self._lock:
            self._quiet = False
            await self._write(self.frame(msgspec.json.encode(payload)))

    async def complete(self) -> None:
        async with self._lock:
            await self._write(self.end, more=False)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        start, self._start = self._start, b""
        await self._exchange.write(start + data, more=more)

    def close(self) -> None:
        self._beating.cancel()

    async def _beat(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            if self._quiet:
                async with self._lock:
                    await self._write(self.heartbeat)
            self._quiet = True


class _EventStream(_Outlet):
    heartbeat = b": heartbeat\n\n"
    end = b"event: complete\ndata: \n\n"  # a browser drops events without data

    def frame(self, data: bytes) -> bytes:
        return b"event: next\ndata: %b\n\n" % data


class _Multipart(_Outlet):
    # A part is complete when the boundary after it has come: so that goes out with it.
    start = b"\r\n--%b" % _BOUNDARY
    end = b"--\r\n"

    def frame(self, data: bytes) -> bytes:
        return self._part(b'{"payload":%b}' % data)

    @staticmethod
    def _part(data: bytes) -> bytes:
        return b"\r\ncontent-type: application/json\r\n\r\n%b\r\n--%b" % (data, _BOUNDARY)

    heartbeat = _part(b"{}")


_OUTLETS: Final[dict[str, type[_Outlet]]] = {SSE: _EventStream, MULTIPART: _Multipart}

"""One HTTP request: read, checked, executed, answered whole or as a stream. After the GraphQL over HTTP draft.

Two media types for a whole answer: under `application/json` a request that GraphQL refuses is answered 200, under
`application/graphql-response+json` 400. Two for a stream: `text/event-stream` (graphql-sse's distinct connections)
and `multipart/mixed` (Apollo's protocol); they are enabled by name, and asked for by `Accept`.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import structlog
from graphql import GraphQLError
from starlette.types import Receive, Scope, Send
from strawberry.schema.exceptions import InvalidOperationTypeError
from strawberry.types.execution import ExecutionResult, PreExecutionError
from strawberry.types.graphql import OperationType

from llmg.core.errors import Failure, Kind, internal, invalid
from llmg.doors.graphql import errors
from llmg.doors.graphql.asking import Asking, Gateway
from llmg.doors.graphql.schema import Schema
from llmg.doors.http import exchange as http
from llmg.doors.http.refusing import Refusal
from llmg.wire.openai.fields import refused, too_deep

JSON: Final = "application/json"
RESPONSE: Final = "application/graphql-response+json"
SSE: Final = "text/event-stream"
MULTIPART: Final = "multipart/mixed"
STREAMS: Final = frozenset({SSE, MULTIPART})

_BOUNDARY: Final = b"graphql"
_ASKED_FOR: Final = {SSE: SSE, MULTIPART: f'{MULTIPART};subscriptionSpec="1.0"'}
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


class Exchange(http.Exchange):
    """The request of one ASGI call, and its answer."""

    __slots__ = ("_accepted", "_asking", "_options", "_schema")

    log = structlog.get_logger("llmg.graphql")

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, gateway: Gateway, schema: Schema, options: Options
    ) -> None:
        super().__init__(scope, receive, send, words)
        self._schema = schema
        self._options = options
        self._asking = Asking(gateway, self.request_id, partial(http.header_of, self.headers))
        self._accepted = accepted(self.header(b"accept") or "", options.streams)

    async def handle(self) -> None:
        """All of it. Nothing leaves it as an exception but a cancellation that isn't the client's leaving."""
        await http.attend(self, self._answer())

    async def _answer(self) -> None:
        admission = self._asking.gateway.admission
        self._asking.principal = admission.principal(self.header(b"authorization"), self.header(b"x-api-key"))
        method = self.scope["method"]
        if method == "POST":
            self._check_media_type()
            operation, allowed = parse_body(await self.body(self._options.max_body)), _ALL
        elif method == "GET":
            operation, allowed = parse_query(self.scope.get("query_string", b"")), _READS
            if self._accepted in STREAMS and any(name in self.headers for name in _PREFLIGHTED):
                allowed = _READS | {OperationType.SUBSCRIPTION}
        else:
            failure = Failure(Kind.METHOD_NOT_ALLOWED, f"{method} is not for GraphQL")
            await self.fail(failure, (b"allow", b"GET, POST"))
            return
        self.watch()
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

    def _check_media_type(self) -> None:
        """Of the body. A page of another origin can't send JSON without asking first, so that this guards from it."""
        self.check_encoding()
        given = self.header(b"content-type") or ""
        kind, *params = [part.strip().lower() for part in given.split(";")]
        charsets = [param.partition("=")[2].strip('"') for param in params if param.startswith("charset=")]
        if kind != JSON or any(charset not in ("utf-8", "utf8") for charset in charsets):
            raise Failure(Kind.UNSUPPORTED_MEDIA_TYPE, f"the body must be {JSON} in UTF-8, and say so in Content-Type")

    async def _single(self, result: ExecutionResult) -> None:
        refused = isinstance(result, PreExecutionError) or (
            result.data is None and all(error.path is None for error in result.errors or ())
        )
        status, more = 200, []
        if refused:
            self._say_how_to_subscribe(result.errors or ())
            status = 400 if self._accepted == RESPONSE else 200  # to clients of plain JSON the rest is no answer at all
            if self.scope["method"] == "GET" and any(_not_for_get(error) for error in result.errors or ()):
                status, more = 405, [(b"allow", b"POST")]
        body = msgspec.json.encode(_payload(result, bare=refused))
        await self.answer(status, body, [*more, *self.way()], _in_utf8(self._accepted))

    def _say_how_to_subscribe(self, errors_: Iterable[GraphQLError]) -> None:
        """In the words of an error: a subscription's answer is a stream, which the client has to ask for."""
        ways = " or ".join(_ASKED_FOR[kind] for kind in (SSE, MULTIPART) if kind in self._options.streams)
        for error in errors_:
            cause = error.original_error
            if ways and isinstance(cause, InvalidOperationTypeError) and cause.operation_type is _SUBSCRIPTION:
                error.message = f"{error.message} without an Accept of {ways}"

    async def _stream(self, results: AsyncGenerator[ExecutionResult, None]) -> None:
        outlet = _OUTLETS[self._accepted](self, self._options.heartbeat)
        try:
            async for result in results:
                await outlet.next(_payload(result))
        except asyncio.CancelledError:
            if self.left:
                raise
            await outlet.next(self._errors(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down")))
        except Exception as mistake:  # noqa: BLE001 - a stream under way must end with a clear error, whatever it was
            await outlet.next(self._errors(internal(mistake)))
        finally:
            outlet.close()
        await outlet.complete()

    def _errors(self, failure: Failure) -> dict[str, Any]:
        return errors.refusal(failure, self.request_id)

    async def start(self, status: int, headers: http.Headers) -> None:
        """The status line and the headers."""
        await super().start(status, [*headers, (b"vary", b"accept")])

    def way(self) -> http.Headers:
        """See Exchange."""
        return () if self._asking.last is None else http.told(self._asking.last)

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """A piece of a stream, its head first. Waits while the client does not read."""
        if not self.started:
            kind = (b"content-type", _STREAM_TYPES[self._accepted])
            caching = [(b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no")]
            await self.start(200, [kind, *caching, *self.way()])
        await self.write(data, more=more)


def words(failure: Failure, headers: Mapping[bytes, bytes], request_id: str, status: int | None = None) -> Refusal:
    """This door's, of a request that is not executed: in the media type of whole answers that its client prefers."""
    kind = accepted(headers.get(b"accept", b"").decode("latin-1"), ())
    body = msgspec.json.encode({"errors": [errors.told(failure, request_id)]})
    return Refusal(status or errors.CODES[failure.kind][1], _in_utf8(kind), body)


def _in_utf8(kind: str) -> bytes:
    return b"%b; charset=utf-8" % kind.encode()


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


_SUBSCRIPTION: Final = OperationType.SUBSCRIPTION
_ALL: Final = frozenset(OperationType)
_READS: Final = frozenset({OperationType.QUERY})
_decode: Final = msgspec.json.Decoder(_Body).decode


class _Message(msgspec.Struct):
    payload: _Body


_decode_message: Final = msgspec.json.Decoder(_Message).decode


def parse_body(body: bytes) -> Operation:
    """A POST's. Raises Failure (invalid_request)."""
    try:
        if too_deep(body):
            raise RecursionError
        given = _decode(body)
    except msgspec.ValidationError as error:
        raise _unfit(error, "batches of operations are not taken" if body.lstrip()[:1] == b"[" else None) from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not valid JSON: {error}" if body.strip() else "the body is empty") from None
    return _operation(given)


def parse_query(query_string: bytes) -> Operation:
    """A GET's. Raises Failure (invalid_request)."""
    given: dict[str, Any] = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
    for name in ("variables", "extensions"):
        text = given.get(name, "")
        if too_deep(text.encode()):
            raise invalid(f"the parameter '{name}' is nested too deeply", name)
        try:
            given[name] = msgspec.json.decode(text) if text else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise invalid(f"the parameter '{name}' is not valid JSON", name) from None
    return parse_payload(given)


def parse_payload(given: object) -> Operation:
    """What was decoded already. Raises Failure (invalid_request)."""
    try:
        return _operation(msgspec.convert(given, _Body))
    except msgspec.ValidationError as error:
        raise _unfit(error) from None


def complaint(message: str | bytes, why: str) -> Failure:
    """Of a WebSocket's message that can't be read, though its grammar is JSON's; it names the field if it is ours."""
    with suppress(msgspec.DecodeError):
        try:
            _decode_message(message)
        except msgspec.ValidationError as error:
            return _unfit(error)
    return invalid(f"the message can't be read: {why}")


def _unfit(error: msgspec.ValidationError, words: str | None = None) -> Failure:
    found = refused(error)
    return invalid(words or (found.message if found.param else "the request must be an object"), found.param)


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
        await self._exchange.send(start + data, more=more)

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

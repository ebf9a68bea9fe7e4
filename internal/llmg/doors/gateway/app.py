"""The REST gateway as an ASGI application: HTTP and JSON in, RPCs out, by a table of bindings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from operator import itemgetter
from typing import Final
from urllib.parse import quote

import msgspec
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default, DescriptorPool
from google.protobuf.message import Message
from starlette.types import ASGIApp, Receive, Scope, Send

from llmg.core.errors import Failure, Kind, not_implemented
from llmg.doors.gateway import metadata, statuses
from llmg.doors.gateway.upstream import Call, Metadata, Status, Upstream
from llmg.doors.http import exchange as http
from llmg.doors.http.pages import weight
from llmg.doors.http.refusing import Refusal
from llmg.doors.http.stream import Stream, commented
from llmg.wire import jsonapi, sse
from llmg.wire.jsonapi import Source, refused
from llmg.wire.transcoding.bindings import Binding
from llmg.wire.transcoding.codec import Codec, build
from llmg.wire.transcoding.requests import Transcoder
from llmg.wire.transcoding.routes import Found, Routes


def words(failure: Failure, headers: Mapping[bytes, bytes], request_id: str, status: int | None = None) -> Refusal:
    """This door's: JSON:API's."""
    problems = jsonapi.problems(failure)
    if status is not None:
        problems = tuple(msgspec.structs.replace(problem, status=status) for problem in problems)
        failure = jsonapi.Refused(failure.kind, problems, failure.retry_after)
    return Refusal(problems[0].status, jsonapi.CONTENT_TYPE, jsonapi.encode(failure, request_id))


class Exchange(http.Exchange):
    """The request of one ASGI call, and its answer. `call`: the RPC that it became, once it has."""

    __slots__ = ("call",)

    log = structlog.get_logger("llmg.gateway")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send, words)
        self.call: Call | None = None

    def way(self) -> http.Headers:
        """See Exchange: what the RPC's metadata says."""
        return () if self.call is None else metadata.outgoing(self.call.initial, self.call.trailing)


Refused = Callable[[MethodDescriptor, Message, Failure, Metadata], Awaitable[None]]
"""Told of a request that the door refused, and that would have been this RPC: what its path says of the message, why,
and who asked."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`max_body` in bytes, `heartbeat` in seconds."""

    max_body: int
    heartbeat: float
    refused: Refused | None


# --- streams ---------------------------------------------------------------------------------------------------------


class _Events:
    """Server-sent events: a message each, an error as one of type `error`."""

    kind = b"text/event-stream; charset=utf-8"
    heartbeat = sse.comment(b"heartbeat")
    late = staticmethod(commented)

    @staticmethod
    def message(body: bytes) -> bytes:
        return b"data: %b\n\n" % body

    @staticmethod
    def error(failure: Failure, request_id: str) -> bytes:
        return sse.encode(jsonapi.encode(failure, request_id), b"error")


class _Lines:
    """JSON in lines, as grpc-gateway has it: `{"result": MESSAGE}`, `{"error": ERROR}`; empty ones mean nothing."""

    heartbeat = b"\n"

    def __init__(self, kind: bytes) -> None:
        self.kind = kind

    @staticmethod
    def late(headers: http.Headers) -> bytes:
        return b""  # a line that means nothing has no room for them

    @staticmethod
    def message(body: bytes) -> bytes:
        return b'{"result":%b}\n' % body

    @staticmethod
    def error(failure: Failure, request_id: str) -> bytes:
        return b'{"error":%b}\n' % msgspec.json.encode(jsonapi.document(failure, request_id)["errors"][0])


_DEFAULT: Final = _Lines(b"application/x-ndjson")
# By what asks for them in `Accept`. Of those that weigh the same, the first.
_FORMATS: Final[tuple[tuple[_Events | _Lines, tuple[bytes, ...]], ...]] = (
    (_Events(), (b"text/event-stream",)),
    (_Lines(b"application/jsonl"), (b"application/jsonl",)),
    (_DEFAULT, (b"application/x-ndjson", b"application/*", b"*/*")),
)


def _format(accept: bytes) -> _Events | _Lines:
    heaviest, format = max(((weight(accept, *names), format) for format, names in _FORMATS), key=itemgetter(0))
    return format if heaviest else _DEFAULT


# --- methods ---------------------------------------------------------------------------------------------------------


class _Endpoint(ABC):
    """One binding."""

    def __init__(self, binding: Binding, codec: Codec, upstream: Upstream, options: Options) -> None:
        self._transcoder = Transcoder(binding, codec)
        self._takes_body = bool(binding.body)
        self._binding = binding
        self._admit = upstream.admit
        self._options = options

    async def answer(self, exchange: Exchange, segments: list[str]) -> None:
        """One request, with the path's segments as the binding's template counts them. Raises Failure."""
        try:
            request, call = await self._read(exchange, segments)
        except Failure as failure:
            if self._options.refused is not None:
                who = metadata.who(exchange.scope, exchange.request_id)
                await self._options.refused(self._binding.rpc, self._named(segments), failure, who)
            raise
        await self.ask(exchange, request, call)

    async def _read(self, exchange: Exchange, segments: list[str]) -> tuple[Message, Call]:
        given = metadata.incoming(exchange.scope, exchange.request_id)
        self._admit(given)
        call = exchange.call = Call(
            metadata=given, headers=exchange.headers, timeout=metadata.timeout(exchange.headers)
        )
        body = await exchange.body(self._options.max_body)
        if body and self._takes_body:
            _check_media_type(exchange.headers)
        request = self._transcoder.decode(body, segments, exchange.scope["query_string"])
        exchange.watch()
        return request, call

    def _named(self, segments: list[str]) -> Message:
        """The request as far as the path says it."""
        try:
            return self._transcoder.decode(b"", segments, b"")
        except Failure:  # what is wrong with it, the client is told
            return build(self._binding.input, {})

    @abstractmethod
    async def ask(self, exchange: Exchange, request: Message, call: Call) -> None:
        """Makes the call, and an answer of what comes back. Raises Failure."""


class _Whole(_Endpoint):
    """One response."""

    def __init__(self, binding: Binding, codec: Codec, upstream: Upstream, options: Options) -> None:
        super().__init__(binding, codec, upstream, options)
        self._call = upstream.unary(binding.rpc)

    async def ask(self, exchange: Exchange, request: Message, call: Call) -> None:
        """See _Endpoint."""
        try:
            response = await self._call(request, call)
        except Status as status:
            raise statuses.failure(status, self._transcoder.source) from None
        body = self._transcoder.encode(response)
        await exchange.answer(200, body, exchange.way())


class _Streamed(_Endpoint):
    """As many responses as the server has."""

    def __init__(self, binding: Binding, codec: Codec, upstream: Upstream, options: Options) -> None:
        super().__init__(binding, codec, upstream, options)
        self._call = upstream.stream(binding.rpc)

    async def ask(self, exchange: Exchange, request: Message, call: Call) -> None:
        """See _Endpoint."""
        format = _format(exchange.headers.get(b"accept", b""))
        stream = Stream(
            exchange,
            headers=[(b"content-type", format.kind), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")],
            more=exchange.way,
            heartbeat=format.heartbeat,
            interval=self._options.heartbeat,
            failing=lambda failure: format.error(failure, exchange.request_id),
            late=format.late,
        )
        await stream.carry(self._send(stream, format, request, call))

    async def _send(self, stream: Stream, format: _Events | _Lines, request: Message, call: Call) -> None:
        encode, frame, send = self._transcoder.encode, format.message, stream.send

        def write(message: Message) -> Awaitable[None]:
            return send(frame(encode(message)))

        try:
            await self._call(request, call, write)
        except Status as status:
            raise statuses.failure(status, self._transcoder.source) from None


class _Unserved:
    """A stream of requests: HTTP has none that all clients can send."""

    def __init__(self, binding: Binding) -> None:
        self._name = binding.rpc.full_name

    async def answer(self, exchange: Exchange, segments: list[str]) -> None:
        """See _Endpoint."""
        raise not_implemented(f"a stream of requests ({self._name}) by HTTP")


_Target = _Endpoint | _Unserved


def _target(binding: Binding, codec: Codec, upstream: Upstream, options: Options) -> _Target:
    if binding.client_streaming:
        return _Unserved(binding)
    made = _Streamed if binding.server_streaming else _Whole
    return made(binding, codec, upstream, options)


def _check_media_type(headers: Mapping[bytes, bytes]) -> None:
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        words = "the body must not be compressed"
        raise refused(Kind.UNSUPPORTED_MEDIA_TYPE, words, Source(header="content-encoding"))
    kind, *params = [part.strip().lower() for part in headers.get(b"content-type", b"").split(b";")]
    charsets = [param.partition(b"=")[2].strip(b'"') for param in params if param.startswith(b"charset=")]
    is_json = kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
    if not is_json or any(charset not in (b"utf-8", b"utf8") for charset in charsets):
        words = "the body must be application/json in UTF-8, and say so in Content-Type"
        raise refused(Kind.UNSUPPORTED_MEDIA_TYPE, words, Source(header="content-type"))


class Door:
    """All bindings, behind one ASGI application."""

    def __init__(self, routes: Routes[_Target]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        exchange = Exchange(scope, receive, send)
        await http.attend(exchange, self._answer(exchange))

    async def _answer(self, exchange: Exchange) -> None:
        scope = exchange.scope
        raw = scope.get("raw_path")
        path = quote(scope["path"]) if raw is None else raw.decode("latin-1")
        try:
            found = self._routes.find(scope["method"], path)
        except ValueError as error:
            raise Failure(Kind.INVALID_REQUEST, f"invalid path: {error}") from None
        if found.target is not None:
            await found.target.answer(exchange, found.segments)
        else:
            await _refuse(exchange, found)


async def _refuse(exchange: Exchange, found: Found[_Target]) -> None:
    method, path = exchange.scope["method"], exchange.scope["path"][:200]
    if not found.methods:
        raise Failure(Kind.NOT_FOUND, f"there is nothing at {method} {path}")
    allow = (b"allow", ", ".join(sorted(_allowed(found.methods))).encode())
    if method == "OPTIONS":
        await exchange.start(204, [allow])
        await exchange.write(b"", more=False)
    else:
        await exchange.fail(Failure(Kind.METHOD_NOT_ALLOWED, f"{method} is not for {path}"), allow)


def _allowed(methods: frozenset[str]) -> frozenset[str]:
    return methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())


def make_gateway(
    *,
    upstream: Upstream,
    bindings: Iterable[Binding],
    pool: DescriptorPool | None = None,
    max_body: int = 32 << 20,
    heartbeat: float = 10.0,
    refused: Refused | None = None,
) -> ASGIApp:
    """The door, for all paths that the bindings have, and all below them; what is not there is answered 404.

    `pool` has the messages that an Any may hold; None: the process's own. `max_body` bytes; `heartbeat`: seconds of
    silence in a stream after which one is sent. `refused`: see Refused. Raises ValueError when the upstream lacks an
    RPC.
    """
    options = Options(max_body=max_body, heartbeat=heartbeat, refused=refused)
    codec = Codec(Default() if pool is None else pool)
    return Door(Routes((binding, _target(binding, codec, upstream, options)) for binding in bindings))

"""HTTP/1.1 to upstreams: a pool of kept-alive connections under httptools' parser.

Small on purpose: POST and GET with a body in memory, and the answer as it comes. No cookies (they would leak between
tenants), no redirects, no content coding, no limit on the time in total (streams may last; the limits are the
caller's). Foreign errors become Failures here, and nowhere else. `docs/decisions/0003` says why it is ours.

Life of a connection: (new) -> exchange -> idle -> exchange -> ... -> lost. An exchange is one request and its answer.
A connection is idle again when the answer was read to its end and both sides keep alive. An upstream may close an idle
one just as it is used: then nothing of an answer comes, and the request goes out once more on another.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakSet

import httptools

from llmg.core.errors import Failure, Kind

_KEPT_ALIVE: Final = 60.0  # seconds that a connection may be idle
_LINGER: Final = 1.0  # seconds that the end of an answer may take to come when all that matters has been read
_STALE: Final = 0.5  # seconds within which an idle connection that had been closed shows it
_MAX_HEAD: Final = 256 << 10  # bytes of an answer's head
_AHEAD: Final = 256 << 10  # bytes of a body that may wait to be read before the upstream is paused


class Origin:
    """Where a provider's requests go: one scheme, host and port, with its own idle connections."""

    def __init__(self, base_url: str, max_connections: int = 0) -> None:
        """`base_url` is http(s), without query; `max_connections` at the same time, 0: no limit."""
        url = urlsplit(base_url)
        self.host = url.hostname or ""
        self.port = url.port or (443 if url.scheme == "https" else 80)
        self.secure = url.scheme == "https"
        self.path = url.path.rstrip("/")
        self.authority = url.netloc.rpartition("@")[2]
        self.idle: list[Connection] = []
        self.retired = False  # nothing more is to be asked there: no connection is kept
        self.room = asyncio.Semaphore(max_connections) if max_connections else None

    def head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        """The head of a request, made once, but for the end that says how long the body is."""
        lines = [f"{method} {self.path}{path} HTTP/1.1"]
        if not any(name.lower() == "host" for name in headers):
            lines.append(f"Host: {self.authority}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode("latin-1") + b"\r\nContent-Length: "


class Connection(asyncio.Protocol):
    """One connection, and the exchange that is under way on it."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.lost = False
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser: Any = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self.heard = 0  # bytes of the answer
        self.begun = False  # its head is there
        self.complete = False  # all of it is there
        self.failure: Failure | None = None
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self._waiting_bytes = 0
        self._paused = False
        self._keep = False

    # What the event loop tells us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The upstream is there."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """The upstream is gone. An answer of no stated length ends like this."""
        self.lost = True
        if self._lingering is not None:
            self._lingering.cancel()
        if self in self.origin.idle:
            self.origin.idle.remove(self)
        if self.begun and not self.complete and exc is None and self._until_closed():
            self.complete = True
        elif not self.complete and self.failure is None:
            self.failure = _cut(exc) if self.heard else _hung_up(exc)
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Some bytes of the answer."""
        self.heard += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(_no_http("it wants another protocol"))
        except httptools.HttpParserError as error:
            self._fail(_no_http(str(error)))
        if not self.begun and self.heard > _MAX_HEAD:
            self._fail(_no_http(f"its head is larger than {_MAX_HEAD} bytes"))

    # What the parser tells us

    def on_message_begin(self) -> None:
        if self.complete:  # nobody has asked
            self._fail(_no_http("there is more than one answer"))

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self.begun = True
            self._wake()

    def on_body(self, data: bytes) -> None:
        self.body.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > _AHEAD and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if not self.begun:  # 100 Continue and its like: the answer is still to come
            self.headers.clear()
            return
        self._keep = self._parser.should_keep_alive() and not self._transport.get_write_buffer_size()
        self.complete = True
        if self._lingering is not None:
            self._finish_lingering()
        self._wake()

    # What an exchange asks of us

    def send(self, head: bytes, body: bytes) -> None:
        """The next exchange begins."""
        self._reset()
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))

    async def wait(self) -> None:
        """Until something of the answer came: its head, some of its body, its end, or a failure."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def status(self) -> int:
        """The answer's."""
        status: int = self._parser.get_status_code()
        return status

    def take(self) -> bytes:
        """The body that has come, at least a byte."""
        body = self.body
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self._waiting_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    def done(self, *, answered: bool) -> None:
        """The exchange is over for who asked. `answered`: only the end of the body may be missing, which can be waited
        for a moment, so that the connection is of use again. Else an unfinished answer ends with the connection."""
        if self.complete and self._keep and not self.lost:
            self._rest()
        elif answered and not self.complete and not self.lost:
            self._lingering = self._loop.call_later(_LINGER, self.abort)
            self.take()
        else:
            self.abort()

    def abort(self) -> None:
        """Closes the connection at once."""
        self.lost = True
        if self._lingering is not None:
            self._lingering.cancel()
        self._transport.abort()

    def _finish_lingering(self) -> None:
        assert self._lingering is not None
        self._lingering.cancel()
        self._lingering = None
        self.body.clear()
        if self._keep:
            self._rest()
        else:
            self.abort()

    def _rest(self) -> None:
        if self.origin.retired:
            self.abort()
            return
        if self._paused:  # nobody has read the end of the body
            self._transport.resume_reading()
        self.idle_since = self._loop.time()
        self.origin.idle.append(self)

    def _until_closed(self) -> bool:
        return "content-length" not in self.headers and "chunked" not in self.headers.get("transfer-encoding", "")

    def _fail(self, failure: Failure) -> None:
        self.failure = self.failure or failure
        if self in self.origin.idle:
            self.origin.idle.remove(self)
        self._wake()
        self.abort()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Exchange:
    """An upstream's answer: its head, and its body as it comes. `close` ends the upstream call if it still runs."""

    __slots__ = ("_connection", "_over", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._over = False
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers  # names in lower case

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises Failure (upstream_protocol) above `limit` bytes, (upstream_truncated) when cut."""
        connection = self._connection
        chunks: list[bytes] = []
        size = 0
        while not connection.complete or connection.body:
            chunk = await self.read_some()
            size += len(chunk)
            if size > limit:
                raise Failure(Kind.UPSTREAM_PROTOCOL, f"the upstream's answer is larger than {limit} bytes")
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read_some(self) -> bytes:
        """What has arrived, at least a byte; empty at the end. Raises Failure (upstream_truncated) when cut."""
        connection = self._connection
        while not connection.body:
            if connection.complete:
                return b""
            if connection.failure is not None:
                raise connection.failure
            await connection.wait()
        return connection.take()

    def close(self, *, answered: bool = False) -> None:
        """`answered`: all that matters was read, only the body's end may not have come yet."""
        if self._over:
            return
        self._over = True
        connection = self._connection
        connection.done(answered=answered)
        if connection.origin.room is not None:
            connection.origin.room.release()


class Transport:
    """Makes connections and keeps them. Used and closed within one running loop."""

    def __init__(self) -> None:
        self._tls: ssl.SSLContext | None = None
        self._origins: WeakSet[Origin] = WeakSet()  # those of health checks are not retired, but forgotten
        self._sweep: asyncio.TimerHandle | None = None

    async def send(self, origin: Origin, head: bytes, body: bytes = b"", connect_timeout: float = 5.0) -> Exchange:
        """Sends a request, and waits for the head of its answer. `connect_timeout` in seconds.

        Raises Failure: upstream_unavailable (refused, unknown host, no TLS, hung up), upstream_timeout (connecting took
        too long), upstream_protocol (no HTTP).
        """
        if origin.room is not None:
            await origin.room.acquire()
        try:
            connection = self._idle(origin)
            if connection is not None:
                sent = asyncio.get_running_loop().time()
                if await _answers(connection, head, body):
                    return Exchange(connection)
                # What had been closed shows it within a round trip. Later the upstream was at work on the request,
                # and to repeat it would do it twice, or kill another of its workers.
                if connection.heard or asyncio.get_running_loop().time() - sent > _STALE:
                    raise connection.failure or _hung_up(None)
            connection = await self._connect(origin, connect_timeout)
            if await _answers(connection, head, body):
                return Exchange(connection)
            raise connection.failure or _hung_up(None)
        except BaseException:
            if origin.room is not None:
                origin.room.release()
            raise

    def retire(self, origin: Origin) -> None:
        """Nothing more will be asked there. Closes the idle connections; those in use go with their exchanges."""
        origin.retired = True
        self._origins.discard(origin)
        _close_idle(origin)

    async def close(self) -> None:
        """Closes the idle connections; those in use go with their exchanges."""
        if self._sweep is not None:
            self._sweep.cancel()
        for origin in self._origins:
            _close_idle(origin)

    def _idle(self, origin: Origin) -> Connection | None:
        while origin.idle:
            connection = origin.idle.pop()  # the one used last: the others may grow old and go
            if not connection.lost:
                return connection
        return None

    async def _connect(self, origin: Origin, within: float) -> Connection:
        loop = asyncio.get_running_loop()
        if not origin.retired:
            self._origins.add(origin)
        if self._sweep is None:
            self._sweep = loop.call_later(_KEPT_ALIVE / 2, self._sweep_idle)
        try:
            async with asyncio.timeout(within):
                _, connection = await loop.create_connection(
                    lambda: Connection(origin),
                    origin.host,
                    origin.port,
                    ssl=self._context() if origin.secure else None,
                )
        except (OSError, UnicodeError) as error:  # UnicodeError: the name can't be one
            raise _unconnected(error) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _sweep_idle(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - _KEPT_ALIVE
        for origin in self._origins:
            for connection in [c for c in origin.idle if c.idle_since < oldest]:
                origin.idle.remove(connection)
                connection.abort()
        self._sweep = loop.call_later(_KEPT_ALIVE / 2, self._sweep_idle)


def _close_idle(origin: Origin) -> None:
    for connection in list(origin.idle):
        connection.abort()
    origin.idle.clear()


async def _answers(connection: Connection, head: bytes, body: bytes) -> bool:
    """Sends a request on it: does the head of an answer come?"""
    try:
        connection.send(head, body)
        while not connection.begun and connection.failure is None:
            await connection.wait()
    except BaseException:
        connection.abort()
        raise
    return connection.begun


_UNCONNECTED: tuple[tuple[type[BaseException], Kind, str], ...] = (
    (TimeoutError, Kind.UPSTREAM_TIMEOUT, "connecting to the upstream took too long"),
    (socket.gaierror, Kind.UPSTREAM_UNAVAILABLE, "the upstream's host name can't be resolved"),
    (UnicodeError, Kind.UPSTREAM_UNAVAILABLE, "the upstream's host name can't be resolved"),
    (ssl.SSLError, Kind.UPSTREAM_UNAVAILABLE, "no secure connection to the upstream can be made"),
    (OSError, Kind.UPSTREAM_UNAVAILABLE, "the upstream can't be reached"),
)


def _unconnected(error: BaseException) -> Failure:
    kind, message = next((kind, message) for type_, kind, message in _UNCONNECTED if isinstance(error, type_))
    return Failure(kind, message, detail=repr(error))


def _hung_up(error: BaseException | None) -> Failure:
    return Failure(Kind.UPSTREAM_UNAVAILABLE, "the upstream hung up before it answered", detail=_said(error))


def _cut(error: BaseException | None) -> Failure:
    return Failure(Kind.UPSTREAM_TRUNCATED, "the connection to the upstream broke in its answer", detail=_said(error))


def _said(error: BaseException | None) -> str | None:
    return None if error is None else repr(error)


def _no_http(detail: str) -> Failure:
    return Failure(Kind.UPSTREAM_PROTOCOL, "the upstream's answer is no HTTP", detail=detail)

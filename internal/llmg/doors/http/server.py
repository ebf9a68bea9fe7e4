"""The HTTP server: uvicorn's HTTP/1.1 and WebSocket, with the limits and the drain that it lacks.

Limits: the size of the headers, and the time a client takes to send. Drain: uvicorn closes idle connections at once,
and a client that was just sending its next request on one loses it; here they get a moment to send it, and with its
answer the word that the connection closes.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import unquote

import httptools
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from llmg.core.errors import Failure, Kind
from llmg.doors.http.leaving import GONE
from llmg.doors.http.refusing import OPENAI, ByPath, consequences, request_id
from llmg.doors.http.sockets import SocketProtocol, fits

# Seconds that an idle connection has for one request more when the server drains, and a client that is still sending
# to read that it was refused.
LINGER: Final = 1.0


class LimitedProtocol(HttpToolsProtocol):
    """One connection. The limits are class attributes: HttpServer makes a class with its own.

    The clock runs only while a request is incomplete: one that arrives whole, as nearly all do, sets no timer.
    """

    max_headers = 64 << 10  # bytes
    header_timeout = 10.0  # seconds
    body_timeout = 60.0  # seconds
    write_timeout = 120.0  # seconds that a client may not read what there is for it
    draining: Callable[[], bool] = staticmethod(lambda: False)
    lost: Callable[[], None] = staticmethod(lambda: None)  # called when a connection is
    words: ByPath = OPENAI  # in which requests are refused that no door has seen
    sockets: type[SocketProtocol] = SocketProtocol  # what a connection becomes that is upgraded

    _reading = "head"  # what comes next of a request: its head, its body
    _head_bytes = -1  # of a head under way; -1: none is
    _ended = False  # did a request end in the bytes at hand?
    _framing = 0  # bytes of a body under way since its last content: chunks' heads, trailers
    _clock: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _deaf = False  # what the client still sends is thrown away
    _lingering = False  # all is said, and the client may still be sending
    _answering: RequestResponseCycle | None = None  # the first of the requests under way

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: set[Callable[[], None]] = set()
        self._extensions: Any = {GONE: self._waiting}
        self._wire: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here, and must say something."""
        super().connection_made(transport)
        self._wire = transport
        self.transport = _Outlet(transport.write, self._close, self._is_closing)  # type: ignore[assignment]
        self._run_clock(self.header_timeout, "its request")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whoever waits to hear of it is told."""
        self._stop_clock()
        self._stop_stalled()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True  # uvicorn tells the last of pipelined requests only
        super().connection_lost(exc)
        for callback in list(self._waiting):
            callback()
        self.lost()

    def pause_writing(self) -> None:
        """The client does not read. Not for ever: its answer holds an upstream."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.write_timeout, self._wire.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._stop_stalled()

    def _stop_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def data_received(self, data: bytes) -> None:
        """Some bytes."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._ended = False
        self._framing += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._meet_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(Failure(Kind.INVALID_REQUEST, "the request is not valid HTTP"))
        if self._reading == "body":
            if self._framing > self.max_headers:
                self._refuse(self._headers_too_large(), 431)
            self._run_clock(self.body_timeout, "its body")
        elif self._head_bytes >= 0:  # a head has begun
            # Where in these bytes it did is not known, when the request before it ended in them.
            self._head_bytes += 0 if self._ended else len(data)
            if self._head_bytes > self.max_headers:
                self._refuse(self._headers_too_large(), 431)
            else:
                self._run_clock(self.header_timeout, "its headers")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._reading, self._head_bytes = "head", 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. A trailer is none (RFC 9110, 6.5.1), and nothing here has a use for those."""
        if self._reading == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are all there: refused when they are too large together."""
        if self._deaf or self.parser.should_upgrade():
            return
        self._stop_clock()
        if self._head_is_too_large():
            self._refuse(self._headers_too_large(), 431)
            return
        super().on_headers_complete()  # raises where the target has no path
        self._reading, self._head_bytes, self._framing = "body", -1, 0
        self.scope["extensions"] = self._extensions
        if self.draining():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._framing = 0
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._deaf or self.parser.should_upgrade():
            return
        self._reading, self._ended = "head", True
        self._stop_clock()
        super().on_message_complete()
        if not self.pipeline:  # nobody would ask for more of a large body, and the client's leaving were not seen
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _meet_upgrade(self, rest: bytes) -> None:
        """The head of a request that wishes for another protocol is whole. WebSocket is granted, if it may be."""
        if not self._wants_websocket():
            self._decline_upgrade(rest)
        elif self._head_is_too_large() or not fits(self.url, self.headers):
            self._refuse(self._headers_too_large(), 431)
        elif rest or (target := _target(self.url)) is None:  # nothing may follow before our answer (RFC 6455, 4.1)
            self._refuse(Failure(Kind.INVALID_REQUEST, "the request is no valid WebSocket handshake"))
        elif self.draining():
            self._refuse(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))
        else:
            self._upgrade(target)

    def _wants_websocket(self) -> bool:
        """Is it a handshake of WebSocket (RFC 6455, 4.1), and the only request under way?"""
        names = [name for name, _ in self.headers]
        return (
            (b"upgrade", b"websocket") in [(name, value.lower()) for name, value in self.headers]
            and self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and b"content-length" not in names
            and b"transfer-encoding" not in names
            and (self._answering is None or self._answering.response_complete)
        )

    def _upgrade(self, target: bytes) -> None:
        """From here on the connection is a WebSocket's, and none of ours."""
        self._stop_clock()
        self._stop_stalled()
        self._head_bytes = -1
        self.connections.discard(self)
        lines = _lines(self.headers)
        websocket = self.sockets(config=self.config, server_state=self.server_state, app_state=self.app_state)
        websocket.connection_made(self._wire)
        self._wire.set_protocol(websocket)
        if self.flow.write_paused:
            websocket.pause_writing()
        websocket.data_received(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, lines))

    def _decline_upgrade(self, rest: bytes) -> None:
        """A wish for another protocol is not heard (RFC 9110, 7.8): the request is read again without it.

        The parser takes what follows the head for the other protocol's, so that the body would be lost. Java's own
        client wishes for HTTP/2 with each request.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(Failure(Kind.METHOD_NOT_ALLOWED, "CONNECT is not for this server"))
            return
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"connection")]
        if not self.parser.should_keep_alive():
            kept.append((b"connection", b"close"))
        lines = _lines(kept)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        try:
            self.parser.feed_data(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, lines, rest))
        except httptools.HttpParserError:
            self._refuse(Failure(Kind.INVALID_REQUEST, "the request is not valid HTTP"))

    def _head_is_too_large(self) -> bool:
        return sum([len(name) + len(value) for name, value in self.headers]) + len(self.url) > self.max_headers

    def _headers_too_large(self) -> Failure:
        return Failure(Kind.REQUEST_TOO_LARGE, f"the headers are larger than {self.max_headers} bytes")

    def _run_clock(self, seconds: float, what: str) -> None:
        if self._clock is None and not self._deaf:
            self._clock = self.loop.call_later(seconds, self._too_slow, seconds, what)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self, seconds: float, what: str) -> None:
        self._clock = None
        if self.flow.read_paused:  # it is we who don't read
            self._run_clock(seconds, what)
            return
        self._refuse(Failure(Kind.CLIENT_TIMEOUT, f"the client took too long to send {what}"))

    def _refuse(self, failure: Failure, status: int | None = None) -> None:
        """The last that happens here: an answer in the door's own words, if it is this request's turn. `status`: where
        HTTP has one that says more than the failure's."""
        if self._deaf or self._wire.is_closing():
            return
        self._stop_clock()
        cycle, in_body = self._answering, self._reading == "body"
        self._deaf = True
        if cycle is None or cycle.response_complete or (in_body and cycle is self.cycle):
            if not (in_body and cycle is not None and cycle.response_started):
                self._wire.write(self._refusal(failure, status))
            if in_body:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self._linger()
        elif in_body:
            self._wire.close()  # of several requests at once, one that isn't answered yet is broken
        else:
            self.cycle.keep_alive = False  # those before it are answered, then the connection closes

    def _refusal(self, failure: Failure, status: int | None) -> bytes:
        """The answer to the request that is being read, as far as it is known."""
        begun = self._reading == "body" or self._head_bytes >= 0
        path, given = (_path(self.url), dict(self.headers)) if begun else ("", {})
        id = request_id(given)
        told, kind, body = self.words.at(path)(failure, given, id, status)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            *[header for header in consequences(failure) if header[0] != b"connection"],
            (b"connection", b"close"),
            (b"x-request-id", id.encode()),
        ]
        return b"%b%b\r\n%b" % (STATUS_LINE[told], _lines(headers), body)

    def _close(self) -> None:
        """Closes when all is said. To a client that is still sending, an answer and a close at once are a reset
        connection, and no answer."""
        if self._deaf or self._reading == "body":
            self._deaf = True
            self._linger()
        else:
            self._wire.close()

    def _is_closing(self) -> bool:
        return self._lingering or self._wire.is_closing()

    def _linger(self) -> None:
        self._stop_clock()
        if self._is_closing():
            return
        self._lingering = True
        self.flow.resume_reading()
        if self._wire.can_write_eof():
            self._wire.write_eof()
        self._clock = self.loop.call_later(LINGER, self._wire.close)

    def abort(self) -> None:
        """Closes, whatever is under way."""
        self._stop_clock()
        self._wire.close()

    def drain(self) -> None:
        """The next answer to begin says that the connection closes; where none is under way, it does so in a moment."""
        self.timeout_keep_alive = LINGER  # type: ignore[assignment]
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = False
        if self.idle:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(LINGER, self.timeout_keep_alive_handler)

    @property
    def idle(self) -> bool:
        """Is no request under way on this connection, not even a part of one?"""
        cycle: RequestResponseCycle | None = self.cycle
        return (cycle is None or cycle.response_complete) and self._reading == "head" and self._head_bytes < 0


class _Outlet:
    """A connection as uvicorn and its answers see it: to close it is the protocol's."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(
        self, write: Callable[[bytes], None], close: Callable[[], None], is_closing: Callable[[], bool]
    ) -> None:
        self.write = write
        self.close = close
        self.is_closing = is_closing


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _path(url: bytes) -> str:
    """As doors see it; empty where the target has none."""
    return unquote((_target(url) or b"").partition(b"?")[0].decode())


def _target(url: bytes) -> bytes | None:
    """Path and query of a request's target (RFC 9112, 3.2), whichever form it has; None where it has none."""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserError:
        return None
    if not parsed.path or not url.isascii():
        return None
    path: bytes = parsed.path
    return path + b"?" + parsed.query if parsed.query else path


class HttpServer:
    """Serves an ASGI application on a socket that is given to it, until it is told to drain."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_headers: int,
        header_timeout: float,
        body_timeout: float,
        keep_alive: float,
        backlog: int,
        access_log: bool,
        draining: Callable[[], bool],
        write_timeout: float = LimitedProtocol.write_timeout,
        tls: ssl.SSLContext | None = None,
        max_message: int = 32 << 20,
        words: ByPath = OPENAI,
        ping_interval: float = 20.0,
        ping_timeout: float = 20.0,
    ) -> None:
        """Sizes in bytes, times in seconds. `draining` turns true before `drain` is called. `words`: in which requests
        are refused that don't reach the application.

        Of WebSockets: `max_message`, the largest that clients may send; `ping_interval` between our pings, the answer
        to each of which has `ping_timeout`.
        """
        # A client that does not shake hands is one that sends no headers.
        self._secured: Any = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": header_timeout}
        lost = asyncio.Event()
        both: dict[str, Any] = {"lost": staticmethod(lost.set), "write_timeout": write_timeout, "words": words}
        limits: dict[str, Any] = {
            **both,
            "max_headers": max_headers,
            "header_timeout": header_timeout,
            "body_timeout": body_timeout,
            "draining": staticmethod(draining),
            "sockets": type("LimitedSocket", (SocketProtocol,), both),
        }
        self._config = Config(
            app,
            http=type("Limited", (LimitedProtocol,), limits),
            ws="none",  # connections are upgraded by our own protocol
            ws_max_size=max_message,
            ws_ping_interval=ping_interval,
            ws_ping_timeout=ping_timeout,
            ws_per_message_deflate=False,  # tokens are short, and each would cost its compression
            lifespan="off",
            log_config=None,
            access_log=access_log,
            timeout_keep_alive=keep_alive,  # type: ignore[arg-type]
            backlog=backlog,
            proxy_headers=False,
        )
        self._config.load()
        self._state = ServerState()
        self._lost = lost
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        self._date: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accepts connections from here on."""
        listener.setblocking(False)
        self._listener = listener
        self._tick()
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=listener, backlog=self._config.backlog, **self._secured
        )

    def _protocol(self) -> LimitedProtocol:
        protocol: Any = self._config.http_protocol_class
        made: LimitedProtocol = protocol(config=self._config, server_state=self._state, app_state={})
        return made

    def _tick(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._date = asyncio.get_running_loop().call_later(1.0, self._tick)

    async def drain(self, grace: float) -> int:
        """Takes no more connections, and lets what is in flight finish for `grace` seconds. How much did not.

        A WebSocket counts as one, whatever is under way on it.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        await self._stop_accepting()
        for connection in self._connections():
            connection.drain()
        await self._until_quiet(end)
        left = list(self._state.tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=LINGER)
        for connection in self._connections():
            connection.abort()
        if still := [task for task in left if not task.done()]:  # what waited for its client does no longer
            await asyncio.wait(still, timeout=LINGER)
        if self._date is not None:
            self._date.cancel()
        return len(left)

    async def _stop_accepting(self) -> None:
        """Closes the listener. The connections that wait in it would be reset by that: they are taken first."""
        if self._server is None or self._listener is None:
            return
        waiting: list[socket.socket] = []
        with suppress(OSError):  # nobody waits any more
            while len(waiting) < self._config.backlog:
                waiting.append(self._listener.accept()[0])
        self._server.close()
        await asyncio.gather(*(self._take(client) for client in waiting))

    async def _take(self, client: socket.socket) -> None:
        client.setblocking(False)
        with suppress(OSError, TimeoutError):  # its handshake failed, or took too long
            async with asyncio.timeout(LINGER):
                await asyncio.get_running_loop().connect_accepted_socket(self._protocol, client, **self._secured)

    def _connections(self) -> list[LimitedProtocol | SocketProtocol]:
        return [c for c in self._state.connections if isinstance(c, LimitedProtocol | SocketProtocol)]

    async def _until_quiet(self, end: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while self._state.connections:
                    self._lost.clear()
                    await self._lost.wait()
                while self._state.tasks:
                    await asyncio.wait(set(self._state.tasks))

"""The HTTP server: uvicorn's HTTP/1.1, with the limits and the drain that it lacks.

Limits: the size of the headers, and the time a client takes to send. Drain: uvicorn closes idle connections at once,
and a client that was just sending its next request on one loses it; here they get a moment to send it, and with its
answer the word that the connection closes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Final

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from llmg.core.errors import Failure, Kind
from llmg.doors.rest.exchange import GONE
from llmg.wire.openai.errors import STATUS, encode_error

LINGER: Final = 1.0  # seconds that an idle connection has for one request more when the server drains


class LimitedProtocol(HttpToolsProtocol):
    """One connection. The limits are class attributes: `limited` makes a class with others.

    The clock runs only while a request is incomplete: one that arrives whole, as nearly all do, sets no timer.
    """

    max_headers = 64 << 10  # bytes
    header_timeout = 10.0  # seconds
    body_timeout = 60.0  # seconds
    draining: Callable[[], bool] = staticmethod(lambda: False)
    lost: Callable[[], None] = staticmethod(lambda: None)  # called when a connection is

    _reading = "head"  # what comes next of a request: its head, its body
    _head_bytes = -1  # of a head under way; -1: none is
    _clock: asyncio.TimerHandle | None = None
    _refusing = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: set[Callable[[], None]] = set()
        self._extensions: Any = {GONE: self._waiting}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here, and must say something."""
        super().connection_made(transport)
        self._run_clock(self.header_timeout, "its request")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: whoever waits to hear of it is told."""
        self._stop_clock()
        super().connection_lost(exc)
        for callback in list(self._waiting):
            callback()
        self.lost()

    def data_received(self, data: bytes) -> None:
        """Some bytes."""
        if self._refusing:
            return
        super().data_received(data)
        if self._reading == "body":
            self._run_clock(self.body_timeout, "its body")
        elif self._head_bytes >= 0:  # a head has begun
            self._head_bytes += len(data)
            if self._head_bytes > self.max_headers:
                self._refuse(431, self._headers_too_large())
            else:
                self._run_clock(self.header_timeout, "its headers")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._reading, self._head_bytes = "head", 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The headers are all there: refused when they are too large together."""
        self._stop_clock()
        if sum([len(name) + len(value) for name, value in self.headers]) + len(self.url) > self.max_headers:
            self._refuse(431, self._headers_too_large())
            return
        self._reading, self._head_bytes = "body", -1
        super().on_headers_complete()
        self.scope["extensions"] = self._extensions
        if self.draining():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        if not self._refusing:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._reading = "head"
        self._stop_clock()
        if not self._refusing:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the door's own words."""
        self._refuse(400, Failure(Kind.INVALID_REQUEST, "the request is not valid HTTP"))

    def _headers_too_large(self) -> Failure:
        return Failure(Kind.REQUEST_TOO_LARGE, f"the headers are larger than {self.max_headers} bytes")

    def _run_clock(self, seconds: float, what: str) -> None:
        if self._clock is None and not self._refusing:
            self._clock = self.loop.call_later(seconds, self._too_slow, what)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self, what: str) -> None:
        self._clock = None
        failure = Failure(Kind.CLIENT_TIMEOUT, f"the client took too long to send {what}")
        self._refuse(STATUS[failure.kind][0], failure)

    def _refuse(self, status: int, failure: Failure) -> None:
        self._refusing = True
        self._stop_clock()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # it is in the midst of another answer
            return
        body = encode_error(failure)
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    @property
    def idle(self) -> bool:
        """Is no request under way on this connection, not even a part of one?"""
        cycle: RequestResponseCycle | None = self.cycle
        return (cycle is None or cycle.response_complete) and self._reading == "head" and self._head_bytes < 0


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
    ) -> None:
        """Sizes in bytes, times in seconds. `draining` turns true before `drain` is called."""
        lost = asyncio.Event()
        limits: dict[str, Any] = {
            "lost": staticmethod(lost.set),
            "max_headers": max_headers,
            "header_timeout": header_timeout,
            "body_timeout": body_timeout,
            "draining": staticmethod(draining),
        }
        self._config = Config(
            app,
            http=type("Limited", (LimitedProtocol,), limits),
            ws="none",
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
        self._date: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accepts connections from here on."""
        self._tick()
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=listener, backlog=self._config.backlog
        )

    def _protocol(self) -> LimitedProtocol:
        protocol: Any = self._config.http_protocol_class
        made: LimitedProtocol = protocol(config=self._config, server_state=self._state, app_state={})
        return made

    def _tick(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._date = asyncio.get_running_loop().call_later(1.0, self._tick)

    async def drain(self, grace: float) -> int:
        """Takes no more connections, and lets requests in flight finish for `grace` seconds. How many did not."""
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        if self._server is not None:
            self._server.close()
        for connection in self._connections():
            if connection.cycle is not None:
                connection.cycle.keep_alive = False
        await self._until_quiet(min(end, loop.time() + LINGER))
        for connection in self._connections():
            if connection.idle:
                connection.shutdown()
        await self._until_quiet(end)
        left = list(self._state.tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=LINGER)
        for connection in self._connections():
            connection.transport.close()
        if self._date is not None:
            self._date.cancel()
        return len(left)

    def _connections(self) -> list[LimitedProtocol]:
        return [c for c in self._state.connections if isinstance(c, LimitedProtocol)]

    async def _until_quiet(self, end: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while self._state.connections:
                    self._lost.clear()
                    await self._lost.wait()
                while self._state.tasks:
                    await asyncio.wait(set(self._state.tasks))

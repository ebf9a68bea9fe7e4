"""A connection that has become a WebSocket: uvicorn's protocol on websockets' core, with the limits that it lacks.

Slow is not dead: a client that has yet to read what stands before our ping is not let go for want of a pong, but when
it reads nothing for `write_timeout`. And no client makes us keep more than it may: not by pings whose answers it does
not read, nor by messages in tiny fragments.

What the system has taken to send can't be overtaken: neither by the answer to a ping nor by a short answer beside a
long one. So it takes no more than `UNSENT` ahead. By itself it takes megabytes, on which a slow client reads for longer
than its own patience with our pongs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import frames
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS, Request, Response
from websockets.server import ServerProtocol

from llmg.core.errors import Failure, Kind, invalid
from llmg.doors.http.draining import DRAIN, Drain
from llmg.doors.http.refusing import OPENAI, ByPath, request_id
from llmg.wire.websocket import Close

CLOSING: Final = 2.0  # seconds that a client has to answer our close, and to read it while it is still sending
UNSENT: Final = 128 << 10  # bytes that the system takes of us before it can send them; a round trip's worth is enough

_GOING: Final = Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down")
_FAILED: Final = Failure(Kind.INTERNAL, "the gateway failed to answer this request")

Headers = list[tuple[bytes, bytes]]


def fits(url: bytes, headers: Headers) -> bool:
    """Are these within what websockets' core takes of a handshake? Its own answer is of another shape."""
    lines = [len(url) + len(b"GET  HTTP/1.1\r\n"), *[len(name) + len(value) + 4 for name, value in headers]]
    return len(headers) <= MAX_NUM_HEADERS and max(lines) <= MAX_LINE_LENGTH


class _Core(ServerProtocol):
    """websockets' core, to which a close amid a message in fragments is a mistake. It is none (RFC 6455, 5.4).

    Who may not come in is told in the words of the door that was asked for.
    """

    def __init__(self, words: ByPath, **options: Any) -> None:
        super().__init__(**options)
        self._words = words
        self._asked: Request | None = None

    def accept(self, request: Request) -> Response:
        """The answer to a handshake."""
        self._asked = request
        response = super().accept(request)
        if self.handshake_exc is None:
            return response
        failure = invalid(f"the request is no valid WebSocket handshake: {self.handshake_exc}")
        refused = self.refuse(failure, response.status_code)
        for name in ("Allow", "Upgrade"):
            if name in response.headers:
                refused.headers[name] = response.headers[name]
        return refused

    def refuse(self, failure: Failure, status: int | None = None) -> Response:
        """The answer to a handshake that is refused. `status`: where HTTP has one that says more than the failure's."""
        assert self._asked is not None, "there was a handshake"
        asked = self._asked
        given = {name.lower().encode(): value.encode("latin-1") for name, value in asked.headers.raw_items()}
        id = request_id(given)
        told, kind, body = self._words.at(unquote(asked.path.partition("?")[0]))(failure, given, id, status)
        response = self.reject(told, body.decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = kind.decode()
        response.headers["X-Request-Id"] = id
        return response

    def recv_frame(self, frame: frames.Frame) -> None:
        if frame.opcode is frames.Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection. The limits are class attributes: HttpServer makes a class with its own."""

    write_timeout = 120.0  # seconds that a client may not read what there is for it
    lost: Callable[[], None] = staticmethod(lambda: None)  # called when a connection is
    words: ByPath = OPENAI  # in which handshakes are refused that no door has seen

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = CLOSING
        self.conn: _Core = _Core(self.words, max_size=self.config.ws_max_size, logger=self.logger)
        self.conn.debug = False  # it would log what clients and models say, whatever for
        self._drain = Drain()
        self._stalled: asyncio.TimerHandle | None = None
        self._fragments = bytearray()  # of a message that is not yet whole
        self._pong = b""  # the answer to the last ping of a client that does not read
        self._stirred = False  # has the client sent or read anything since our last ping?

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection, of which the first request is still to come."""
        super().connection_made(transport)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            wire = cast(socket.socket, transport.get_extra_info("socket"))
            with suppress(OSError):  # the client has gone already
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_stalled()
        super().connection_lost(exc)
        self.lost()

    def pause_writing(self) -> None:
        """The client does not read. Not for ever: its answers hold upstreams."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._stop_stalled()
        self._stirred = True
        self._answer_ping()
        super().resume_writing()

    def _stop_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def data_received(self, data: bytes) -> None:
        """Some bytes. After a frame that broke the rules, nobody looks at them."""
        self._stirred = True
        if self.conn.parser_exc is None:
            super().data_received(data)

    async def send(self, message: Any) -> None:
        """See ASGI. A transport that has lost its client takes all that is written, and says so in the loop's next
        turn: an answer that is there already would have none until its end."""
        if self.transport.is_closing():
            await asyncio.sleep(0)
        await super().send(message)

    def handle_connect(self, event: Request) -> None:
        """The handshake. The application gets our extension."""
        super().handle_connect(event)
        if self.response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            extensions: Any = self.scope["extensions"]
            extensions[DRAIN] = self._drain

    def handle_cont(self, event: frames.Frame) -> None:
        """A fragment more. All are kept as one: each in an object of its own would take many times its size."""
        if self.frames:
            self._fragments = bytearray(self.frames.pop())
        self._fragments += event.data
        if event.fin:
            self.frames = [bytes(self._fragments)]
            self._fragments.clear()
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """A message is whole. Text that is none is the client's mistake, and nothing for our log."""
        data = self.frames.pop()
        if self.close_sent:
            return
        try:
            if self.curr_msg_data_type == "text":
                self.queue.put_nowait({"type": "websocket.receive", "text": str(data, "utf-8")})
            else:
                self.queue.put_nowait({"type": "websocket.receive", "bytes": bytes(data)})
        except UnicodeDecodeError as error:
            self.conn.fail(Close.NOT_UTF8, f"{error.reason} at position {error.start}")
            self.handle_parser_exception()
            return
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_ping(self) -> None:
        """The answer goes at once, or, while the client does not read, that to its last ping as soon as it does."""
        self._pong = b"".join(self.conn.data_to_send()) or self._pong
        if self.writable.is_set():
            self._answer_ping()

    def _answer_ping(self) -> None:
        if self._pong:
            self.transport.write(self._pong)
            self._pong = b""

    def handle_close(self, event: frames.Frame) -> None:
        """The client closes, or answers our close."""
        self._answer_ping()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        """What came breaks the rules, or is too large. To a client that is still sending, a close frame and the end
        at once are a reset connection, and no close frame."""
        closed = self.conn.close_sent or frames.Close(Close.PROTOCOL_ERROR, "")  # none before the handshake is answered
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = self.disconnected = True
        self.stop_keepalive()
        self.read_paused = False
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def send_keepalive_ping(self) -> None:
        """Asks whether anybody is there, where that is not known."""
        self._stirred = False
        if self.writable.is_set():
            super().send_keepalive_ping()
        else:
            self.schedule_ping()

    def keepalive_timeout(self) -> None:
        """No pong in time: the client is dead, unless it has sent or read something meanwhile."""
        if self._stirred or not self.writable.is_set():
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        self.disconnected = True
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    async def run_asgi(self) -> None:
        """The application, from the handshake to the end. A socket that it leaves open is closed, with the reason."""
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:  # by the server, at the end of its grace
            await self._finish(Close.GOING_AWAY, _GOING)
        except Exception:
            self.logger.exception("Exception in ASGI application\n")
            await self._finish(Close.INTERNAL, _FAILED)
        else:
            await self._finish(Close.NORMAL, _FAILED)
        if self.close_timer is None:
            self.transport.close()

    async def _finish(self, code: Close, failure: Failure) -> None:
        if self.handshake_complete:
            if not (self.close_sent or self.disconnected):
                with suppress(ClientDisconnected):
                    await self.send({"type": "websocket.close", "code": code, "reason": ""})
        elif self.initial_response is None:
            self.conn.send_response(self.conn.refuse(failure))
            self.transport.write(b"".join(self.conn.data_to_send()))

    def drain(self) -> None:
        """The application is told."""
        self._drain.begin()

    def abort(self) -> None:
        """Closes, whatever is under way."""
        if self.writable.is_set():
            self.transport.close()
        else:
            self.transport.abort()

"""One socket: a reader, which is the connection's own task, and a task for each request.

Backpressure. A request's task takes a batch of events from its upstream, and waits for its turn at the socket before
it takes another: what waits for a client that does not read is one frame a request, and each upstream is held to the
pace at which its frames are taken. Turns are taken in the order in which they were asked for, so no request starves
another. What the reader has to say (`ready`, `pong`, refusals) waits in a list of its own, so that it goes on to hear
`cancel`; when that list is full, it stops listening.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from llmg.core import way
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, internal, invalid, not_implemented
from llmg.core.request import Request
from llmg.doors.http.draining import drain_of
from llmg.doors.http.exchange import header_of
from llmg.doors.http.handshake import Shown
from llmg.ports import Provider
from llmg.services.admission import Admission
from llmg.services.explain import LEVEL, Explain
from llmg.services.failures import log_failure
from llmg.wire import websocket as wire
from llmg.wire.websocket import Close

log = structlog.get_logger("llmg.websocket")

_UNSAID: Final = 64  # the reader's own frames that may wait before it stops listening


class Options(Struct, frozen=True, kw_only=True):
    """`max_message` in bytes, `max_requests` at once, `init_timeout` in seconds."""

    max_message: int
    max_requests: int
    init_timeout: float


class _Request:
    """A request under way. `level`: whose route it asks for; None: it is no such question. `ended`: why its task was
    cancelled, for the client."""

    __slots__ = ("context", "ended", "id", "level", "task")

    def __init__(self, id: str, context: Context, level: str | None) -> None:
        self.id = id
        self.context = context
        self.level = level
        self.ended: Failure | None = None
        self.task: asyncio.Task[None]

    def cancel(self, why: Failure) -> None:
        if self.ended is None:  # a second time would hit it while it lets go of its upstream
            self.ended = why
            self.task.cancel()


class Connection:
    """One connection, from the handshake to the close."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        pipeline: Provider,
        admission: Admission,
        options: Options,
        shown: Shown | None,
        explain: Explain | None,
    ) -> None:
        """`shown`: the key of who asks; None: `init` has to show it. `explain` None: routes are not explained here."""
        self._offered: list[str] = list(scope.get("subprotocols") or ())
        self._header = partial(header_of, dict(scope["headers"]))
        self._receive = receive
        self._send = send
        self._pipeline = pipeline
        self._admission = admission
        self._options = options
        self._shown = shown
        self._service = explain
        self._drain = drain_of(scope)
        self._greeted = False
        self._task: asyncio.Task[None] | None = None  # the reader's, while it listens
        self._close: Close | None = None  # why we hung up
        self._mute = False  # requests that end now are not told
        self._requests: dict[str, _Request] = {}  # by the client's ids: those that have not ended
        self._tasks: set[asyncio.Task[None]] = set()  # theirs, and those whose last frame waits
        self._turn = asyncio.Lock()
        self._unsaid: deque[str] = deque()
        self._saying: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """All of it."""
        await self._receive()  # websocket.connect
        protocol = wire.SUBPROTOCOL if wire.SUBPROTOCOL in self._offered else None
        await self._send({"type": "websocket.accept", "subprotocol": protocol})
        if self._offered and protocol is None:
            await self._say_goodbye(Close.SUBPROTOCOL)
            return
        await self._end(await self._serve())

    # --- the reader ------------------------------------------------------------------------------------------------

    async def _serve(self) -> Close | None:
        """Listens until there is an end. How the socket is to be closed; None: the client has gone."""
        self._task = task = asyncio.current_task()
        assert task is not None
        timer = None
        if self._shown is None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._options.init_timeout, self._init_is_late)
        self._drain.add(self._drained)
        try:
            return await self._listen()
        except asyncio.CancelledError:
            task.uncancel()
            if self._close is None:  # the server's grace is over
                self._close = Close.GOING_AWAY
            return self._close
        finally:
            self._task = None
            self._drain.discard(self._drained)
            if timer is not None:
                timer.cancel()

    async def _listen(self) -> Close | None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return None
            text = message.get("text")
            if text is None:
                return Close.BINARY
            close = self._hear(text.encode())
            if close is not None:
                return close
            if len(self._unsaid) > _UNSAID and self._saying is not None:
                await asyncio.wait({self._saying})

    def _hear(self, data: bytes) -> Close | None:
        if len(data) > self._options.max_message:
            return Close.TOO_LARGE
        try:
            return self._take(wire.decode_frame(data))
        except wire.NotJson:
            return Close.NOT_JSON
        except wire.BadFrame as bad:
            # An error under the id of a request that is under way would end it.
            self._say(wire.encode_error(bad.failure, None if bad.id in self._requests else bad.id))
            return None

    def _take(self, frame: wire.ClientFrame) -> Close | None:
        match frame:
            case wire.Start() | wire.Explain():
                return self._start(frame)
            case wire.Cancel():
                request = self._requests.get(frame.id)
                if request is not None:
                    request.cancel(Failure(Kind.CANCELLED, "the client cancelled the request"))
            case wire.Ping():
                self._say(wire.encode_frame(wire.Pong()))
            case wire.Init():
                return self._init(frame)
        return None

    def _init(self, frame: wire.Init) -> Close | None:
        if self._greeted:
            raise wire.BadFrame(invalid("there was an init already", "type"))
        if frame.key is None and self._shown is None:
            return self._keyless()
        try:
            if frame.key is not None:
                shown = Shown(api_key=frame.key)
                shown.principal(self._admission)
                self._shown = shown
        except Failure as failure:
            self._say(wire.encode_error(failure))
            return Close.UNAUTHORIZED
        self._greeted = True
        self._say(wire.encode_frame(wire.Ready(self._options.max_message, self._options.max_requests)))
        return None

    def _keyless(self) -> Close:
        failure = Failure(Kind.UNAUTHENTICATED, "an API key is needed: send it as 'key' of an init frame")
        self._say(wire.encode_error(failure))
        return Close.UNAUTHORIZED

    def _init_is_late(self) -> None:
        if self._shown is None:
            self._hang_up(Close.INIT_TIMEOUT)

    def _start(self, frame: wire.Start | wire.Explain) -> Close | None:
        if self._shown is None:
            return self._keyless()
        if frame.id in self._requests:
            raise wire.BadFrame(invalid("invalid 'id': a request of that id is under way", "id"))
        if self._drain.begun:
            raise wire.BadFrame(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"), frame.id)
        if len(self._tasks) >= self._options.max_requests:
            words = f"{self._options.max_requests} requests are under way over this socket, and no more may be"
            raise wire.BadFrame(Failure(Kind.RATE_LIMITED, words), frame.id)
        context = self._context(frame, self._shown)
        level = (frame.level or "") if isinstance(frame, wire.Explain) else None
        request = self._requests[frame.id] = _Request(frame.id, context, level)
        request.task = asyncio.get_running_loop().create_task(self._answer(request, frame))
        request.task.add_done_callback(partial(self._ended, request))
        self._tasks.add(request.task)
        return None

    def _context(self, frame: wire.Start | wire.Explain, shown: Shown) -> Context:
        try:
            principal = shown.principal(self._admission)
        except Failure as failure:
            raise wire.BadFrame(failure, frame.id) from None
        context = self._admission.context(
            "websocket",
            self._admission.request_id(),
            principal,
            traceparent=self._header("traceparent"),
            session=self._header("x-llmg-session"),
            remaining=frame.timeout if isinstance(frame, wire.Start) else None,
        )
        context.header = self._header
        return context

    # --- requests --------------------------------------------------------------------------------------------------

    async def _answer(self, request: _Request, frame: wire.Start | wire.Explain) -> None:
        """The whole of a request, in its own task."""
        try:
            answer = self._events if request.level is None else self._explanation
            last = await answer(request, wire.decode_request(frame))
        except Failure as failure:
            last = self._failed(request, failure)
        except Exception as error:  # noqa: BLE001 - the rim: a request's failure is told, and never ends the socket
            last = self._failed(request, internal(error))
        del self._requests[request.id]
        await self._write(last)

    async def _events(self, request: _Request, asked: Request) -> str:
        """Sends the answer but for its last frame, which it returns. Raises Failure."""
        encoder = wire.EventEncoder(request.id, asked)
        async with self._pipeline.open(asked, request.context) as batches:
            async for batch in batches:
                frame = encoder.encode(batch)
                if frame is not None:
                    await self._write(frame)
        return wire.encode_done(request.id, request.context)

    async def _explanation(self, request: _Request, asked: Request) -> str:
        """The only frame of an explanation. Raises Failure."""
        if self._service is None:
            raise not_implemented("the explanation of routes")
        found = await self._service.explain(asked, request.context, request.level or "")
        return wire.encode_explanation(request.id, found, request.context)

    def _ended(self, request: _Request, task: asyncio.Task[None]) -> None:
        """Its task is over. One that was cancelled, perhaps before it began, has let go of its upstream by now."""
        self._tasks.discard(task)
        if self._requests.get(request.id) is request:
            del self._requests[request.id]
            if not self._mute:
                self._say(self._failed(request, request.ended or internal(asyncio.CancelledError())))
        self._drained()

    def _failed(self, request: _Request, failure: Failure) -> str:
        context = request.context
        log_failure(log, failure, context.request_id)
        beside = () if request.level is None else (LEVEL,)
        return wire.encode_error(failure, request.id, context.request_id, way.facts(context), beside)

    # --- what is said ----------------------------------------------------------------------------------------------

    async def _write(self, frame: str) -> None:
        """Sends a frame when it is its turn. When the client has gone, nothing happens: the reader hears of it."""
        async with self._turn:
            with suppress(OSError):
                await self._send({"type": "websocket.send", "text": frame})

    def _say(self, frame: str) -> None:
        """Sends a frame as soon as may be, without waiting for it."""
        self._unsaid.append(frame)
        if self._saying is None or self._saying.done():
            self._saying = asyncio.get_running_loop().create_task(self._say_all())

    async def _say_all(self) -> None:
        while self._unsaid:
            await self._write(self._unsaid.popleft())

    # --- the end ---------------------------------------------------------------------------------------------------

    def _drained(self) -> None:
        """The server goes: this socket does when it has nothing to do."""
        if self._drain.begun and not self._tasks:
            self._hang_up(Close.GOING_AWAY)

    def _hang_up(self, close: Close) -> None:
        """Has the reader stop, to close the socket."""
        if self._close is None and self._task is not None:
            self._close = close
            self._task.cancel()

    async def _end(self, close: Close | None) -> None:
        """Lets go of all that is under way, and closes. Where it is the gateway that ends, each request is told so."""
        self._mute = close is not Close.GOING_AWAY
        under_way = list(self._requests.values())
        for request in under_way:
            request.cancel(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))
        if self._mute:
            for task in self._tasks.difference(request.task for request in under_way):
                task.cancel()  # its last frame need not be sent
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._saying is not None:
            if close is None:
                self._saying.cancel()
            await asyncio.wait({self._saying})
        if close is not None:
            await self._say_goodbye(close)

    async def _say_goodbye(self, close: Close) -> None:
        with suppress(OSError):  # the client has gone
            await self._send({"type": "websocket.close", "code": close, "reason": _reason(close)})


def _reason(close: Close) -> str:
    """In words, within the 123 bytes that a close frame has for it."""
    return wire.CLOSES[close][:123]

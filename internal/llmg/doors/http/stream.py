"""An answer in pieces: its head waits for the first of them, and where that is long in coming, heartbeats go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from llmg.core.errors import Failure, Kind, internal
from llmg.doors.http.exchange import Exchange, Headers


def commented(headers: Headers) -> bytes:
    """Headers as server-sent events have them that came too late: a line of comment each, which clients ignore."""
    return b"".join([b": %b: %b\n" % header for header in headers]) + b"\n" if headers else b""


class Stream:
    """One answer's pieces, from `carry`'s begin to its end. `send` is for what is carried."""

    __slots__ = (
        "_beating",
        "_exchange",
        "_failing",
        "_headers",
        "_heartbeat",
        "_interval",
        "_last",
        "_late",
        "_loop",
        "_more",
        "_ready",
        "_timer",
        "_told",
        "_writing",
    )

    def __init__(
        self,
        exchange: Exchange,
        *,
        headers: Headers,
        more: Callable[[], Headers],
        heartbeat: bytes,
        interval: float,
        failing: Callable[[Failure], bytes],
        late: Callable[[Headers], bytes] = lambda _: b"",
    ) -> None:
        """`more` gives the headers that are known when the first piece is there. Where the head is out by then, `late`
        makes something of them that goes before that piece; where none are known by then, before the end. `heartbeat`
        is sent after each `interval` (seconds) of silence. `failing` makes the last piece of a stream that fails under
        way."""
        self._exchange = exchange
        self._headers = headers
        self._more = more
        self._heartbeat = heartbeat
        self._interval = interval
        self._failing = failing
        self._late = late
        self._ready = False  # may a piece go out at once?
        self._told = False  # what `more` gives
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._beating: asyncio.Task[None] | None = None
        self._writing = False
        self._timer = self._loop.call_at(self._last + interval, self._fire)

    async def carry(self, sending: Awaitable[None], end: bytes = b"") -> None:
        """Waits until all is sent, and ends the answer with `end`, or with what went wrong.

        Raises Failure where nothing was sent before, so that it gets a status of its own; CancelledError when the
        client has left.
        """
        try:
            await sending
            await self._end(end)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._exchange.left or task is None or task.cancelling() == 0:
                raise
            await self._fail(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))  # it is the server that ends
        except Failure as failure:
            await self._fail(failure)
        except Exception as error:  # noqa: BLE001 - a stream under way must end with a clear error, whatever it was
            await self._fail(internal(error))
        finally:
            self._timer.cancel()
            if self._beating is not None:
                self._beating.cancel()

    async def send(self, data: bytes) -> None:
        """A piece. Waits while the client does not read."""
        if not data:
            return
        if not self._ready:
            data = await self._begin() + data
        self._last = self._loop.time()
        self._writing = True
        await self._exchange.write(data)
        self._writing = False

    async def _begin(self) -> bytes:
        """Waits until a piece may go out, after the head. What is to go before it."""
        if self._beating is not None:
            await self._beating
        self._ready = True
        if self._told:
            return b""
        more = self._more()
        self._told = bool(more)
        if self._exchange.started:
            return self._late(more)
        await self._exchange.start(200, [*self._headers, *more])
        return b""

    async def _end(self, data: bytes) -> None:
        self._timer.cancel()
        await self._exchange.write(await self._begin() + data, more=False)

    async def _fail(self, failure: Failure) -> None:
        """Before the head, a status of its own; after it, an error in the stream."""
        self._timer.cancel()
        if self._beating is not None:
            await self._beating
        if not self._exchange.started:
            raise failure
        self._exchange.report(failure)
        await self._exchange.write(await self._begin() + self._failing(failure), more=False)

    def _fire(self) -> None:
        now = self._loop.time()
        if self._writing or self._beating is not None:
            self._last = now  # the client does not read what there is
        elif now - self._last >= self._interval:
            self._last = now
            self._ready = False
            self._beating = self._loop.create_task(self._beat())
        self._timer = self._loop.call_at(self._last + self._interval, self._fire)

    async def _beat(self) -> None:
        if not self._exchange.started:
            await self._exchange.start(200, self._headers)
        await self._exchange.write(self._heartbeat)
        self._beating = None

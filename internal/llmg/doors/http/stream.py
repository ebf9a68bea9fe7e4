"""An answer in pieces: its head waits for the first of them, and where that is long in coming, heartbeats go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from llmg.core.errors import Failure, Kind, internal
from llmg.doors.http.exchange import Exchange, Headers


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
        "_loop",
        "_more",
        "_timer",
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
    ) -> None:
        """`more` gives the headers that are known when the first piece is there. `heartbeat` is sent after each
        `interval` (seconds) of silence. `failing` makes the last piece of a stream that fails under way."""
        self._exchange = exchange
        self._headers = headers
        self._more = more
        self._heartbeat = heartbeat
        self._interval = interval
        self._failing = failing
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
        if self._beating is not None or not self._exchange.started:
            await self._begin()
        self._last = self._loop.time()
        self._writing = True
        await self._exchange.write(data)
        self._writing = False

    async def _begin(self) -> None:
        if self._beating is not None:
            await self._beating
        if not self._exchange.started:
            await self._exchange.start(200, [*self._headers, *self._more()])

    async def _end(self, data: bytes) -> None:
        self._timer.cancel()
        await self._begin()
        await self._exchange.write(data, more=False)

    async def _fail(self, failure: Failure) -> None:
        """Before the head, a status of its own; after it, an error in the stream."""
        self._timer.cancel()
        if self._beating is not None:
            await self._beating
        if not self._exchange.started:
            raise failure
        self._exchange.report(failure)
        await self._exchange.write(self._failing(failure), more=False)

    def _fire(self) -> None:
        now = self._loop.time()
        if self._writing or self._beating is not None:
            self._last = now  # the client does not read what there is
        elif now - self._last >= self._interval:
            self._last = now
            self._beating = self._loop.create_task(self._beat())
        self._timer = self._loop.call_at(self._last + self._interval, self._fire)

    async def _beat(self) -> None:
        if not self._exchange.started:
            await self._exchange.start(200, self._headers)
        await self._exchange.write(self._heartbeat)
        self._beating = None

"""The places of one target: so many requests at a time, so many more that wait, first come first served.

`Places` is the pure part: who is in, who waits, who is next. `Queued` is the wrapper that does the waiting. A place is
held until the answer has been left, so a stream holds its place to its end.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from enum import Enum, auto
from typing import Generic, TypeVar

from msgspec import Struct

from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch
from llmg.core.request import Request
from llmg.ports import Answering, Provider

T = TypeVar("T", bound=Hashable)


class Limits(Struct, frozen=True, kw_only=True):
    """`max_in_flight` requests at a time; `max_queue` more wait, `timeout` seconds at most."""

    max_in_flight: int
    max_queue: int = 100
    timeout: float = 10.0


class Entry(Enum):
    """What becomes of a request that comes."""

    IN = auto()
    WAITS = auto()
    REFUSED = auto()


class Places(Generic[T]):
    """Who is in and who waits. A place that becomes free goes to who has waited longest, in the same moment."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: OrderedDict[T, None] = OrderedDict()
        self.in_flight = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def full(self) -> bool:
        """Would the next one have to wait, or be refused?"""
        return self.in_flight >= self._limits.max_in_flight

    def come(self, who: T) -> Entry:
        """`who` is in, waits, or is refused."""
        if not self.full():
            self.in_flight += 1
            return Entry.IN
        if len(self._waiting) >= self._limits.max_queue:
            return Entry.REFUSED
        self._waiting[who] = None
        return Entry.WAITS

    def leave(self) -> T | None:
        """One that was in leaves. Who is in now in its place, if anybody waited."""
        if self._waiting:
            return self._waiting.popitem(last=False)[0]
        self.in_flight -= 1
        return None

    def give_up(self, who: T) -> bool:
        """`who` waits no longer. False: it did not wait any more, but is in."""
        if who not in self._waiting:
            return False
        del self._waiting[who]
        return True


Waiter = asyncio.Future[bool]  # True: it is in; False: it has waited long enough


class Queue:
    """The places of a target, and the tasks that wait for them."""

    def __init__(self, limits: Limits, crowded: Callable[[bool], None]) -> None:
        """`crowded` is told when the last place is taken (True), and when one is free again (False)."""
        self._limits = limits
        self._crowded = crowded
        self.places: Places[Waiter] = Places(limits)

    async def enter(self, context: Context) -> None:
        """Returns with a place, to be given back by `leave`. Raises Failure (overloaded, deadline_exceeded)."""
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        entry = self.places.come(waiter)
        if entry is Entry.IN:
            if self.places.full():
                self._crowded(True)
            return
        if entry is Entry.REFUSED:
            raise self._overloaded("too many requests wait for the upstream already")
        attempt = context.trail[-1] if context.trail else None  # which, while we wait, need not stay the last
        begun = loop.time()
        due = begun + self._limits.timeout
        if context.deadline is not None:
            due = min(due, context.deadline)
        came_in = await self._turn(waiter, due)
        if attempt is not None:
            attempt.queued = loop.time() - begun
        if not came_in and due == context.deadline:
            raise Failure(Kind.DEADLINE_EXCEEDED, "the request's deadline has passed")
        if not came_in:
            raise self._overloaded("the upstream had no place for the request in time")

    async def _turn(self, waiter: Waiter, due: float) -> bool:
        timer = waiter.get_loop().call_at(due, self._expire, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            self.places.give_up(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.leave()  # the place came in the same moment as the client left
            raise
        finally:
            timer.cancel()

    def leave(self) -> None:
        """Gives the place back, or on to who waited longest."""
        waiter = self.places.leave()
        while waiter is not None and waiter.done():  # its client has left, but its task has not run since
            waiter = self.places.leave()
        if waiter is not None:
            waiter.set_result(True)
        elif self.places.in_flight == self._limits.max_in_flight - 1:
            self._crowded(False)

    def _expire(self, waiter: Waiter) -> None:
        if not waiter.done() and self.places.give_up(waiter):
            waiter.set_result(False)

    def _overloaded(self, message: str) -> Failure:
        # By then, all who wait now are in or have given up.
        return Failure(Kind.OVERLOADED, message, retry_after=self._limits.timeout)


class Queued:
    """A provider that is asked by so many at a time only."""

    def __init__(self, inner: Provider, queue: Queue) -> None:
        self._inner = inner
        self._queue = queue

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return _Placed(self._inner, self._queue, request, context)


class _Placed:
    __slots__ = ("_answering", "_context", "_inner", "_queue", "_request")

    def __init__(self, inner: Provider, queue: Queue, request: Request, context: Context) -> None:
        self._inner = inner
        self._queue = queue
        self._request = request
        self._context = context
        self._answering: Answering

    async def __aenter__(self) -> AsyncIterator[Batch]:
        await self._queue.enter(self._context)
        try:
            self._answering = self._inner.open(self._request, self._context)
            return await self._answering.__aenter__()
        except BaseException:
            self._queue.leave()
            raise

    async def __aexit__(self, *exc: object) -> bool | None:
        try:
            return await self._answering.__aexit__(*exc)  # type: ignore[arg-type]
        finally:
            self._queue.leave()

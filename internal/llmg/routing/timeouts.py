"""Time limits around one target: to its first event, between events, in total.

One timer a stream, re-armed only when it fires, because a timer for each event would cost more than the event. It
fires into the task that waits for the target, never into one that waits for a slow client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from msgspec import Struct

from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch
from llmg.core.request import Request
from llmg.ports import Answering, Provider


class Limits(Struct, frozen=True, kw_only=True):
    """Seconds."""

    first_event: float = 300.0
    idle: float = 120.0
    total: float = 3600.0


class Timeouts:
    """A provider within its time limits."""

    def __init__(self, inner: Provider, limits: Limits) -> None:
        self._inner = inner
        self._limits = limits

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return _Watched(self._inner.open(request, context), self._limits, context.deadline)


class _Watched:
    __slots__ = (
        "_asked",
        "_begun",
        "_cancelling",
        "_deadline",
        "_due",
        "_events",
        "_expired",
        "_inner",
        "_limits",
        "_loop",
        "_task",
        "_timer",
        "_waiting",
    )

    def __init__(self, inner: Answering, limits: Limits, deadline: float | None) -> None:
        self._inner = inner
        self._limits = limits
        self._asked = deadline
        self._events: AsyncIterator[Batch]
        self._task: asyncio.Task[object] | None = None
        self._waiting = False  # is it the target that we wait for?
        self._cancelling = 0  # how often the task had been cancelled before
        self._expired = False
        self._begun = False

    async def __aenter__(self) -> _Watched:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._deadline = now + self._limits.total
        if self._asked is not None:
            self._deadline = min(self._deadline, self._asked)
        self._due = min(now + self._limits.first_event, self._deadline)
        # Not later than the first event and the next can both be due: so it never has to be set back.
        self._arm(min(self._due, now + self._limits.idle))
        self._task = asyncio.current_task()
        self._wait()
        try:
            self._events = await self._inner.__aenter__()
        except BaseException as error:
            self._timer.cancel()
            self._settle(error)
            raise
        self._settle(None)
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        self._timer.cancel()
        return await self._inner.__aexit__(*exc)  # type: ignore[arg-type]

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Batch:
        if self._begun:  # the time is counted from here: a slow client's is not the target's
            self._due = min(self._loop.time() + self._limits.idle, self._deadline)
        self._wait()
        try:
            batch = await self._events.__anext__()
        except BaseException as error:
            self._settle(error)
            raise
        self._settle(None)
        self._begun = True
        return batch

    def _wait(self) -> None:
        self._waiting = True
        if self._task is not None:
            self._cancelling = self._task.cancelling()

    def _settle(self, error: BaseException | None) -> None:
        """The wait is over. If it was we who ended it, takes the cancellation back and raises what it meant."""
        self._waiting = False
        task = self._task
        if not self._expired or task is None:
            return
        self._expired = False
        others = task.uncancel() > self._cancelling  # somebody else wants the task to end, too
        if isinstance(error, asyncio.CancelledError) and not others:
            raise self._late() from None

    def _late(self) -> Failure:
        now = self._loop.time()
        if self._asked is not None and now >= self._asked:
            return Failure(Kind.DEADLINE_EXCEEDED, "the request's deadline has passed")
        if now >= self._deadline:
            return Failure(Kind.UPSTREAM_TIMEOUT, "the upstream took longer than its time in total")
        what = "its next word" if self._begun else "its first word"
        return Failure(Kind.UPSTREAM_TIMEOUT, f"the upstream kept us waiting too long for {what}")

    def _fire(self) -> None:
        now = self._loop.time()
        if self._due > now:  # something came meanwhile
            self._arm(self._due)
        elif self._waiting and self._task is not None:
            self._expired = True
            self._task.cancel()
        else:  # it is the client who keeps us waiting, not the target
            self._arm(now + 1.0)

    def _arm(self, when: float) -> None:
        self._timer = self._loop.call_at(when, self._fire)

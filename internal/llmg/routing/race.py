"""Hedged requests: the targets of a request that are asked side by side, of which the first to commit answers.

Each try runs in a task of its own from entry to exit, and tells what comes of it through one queue for all of a round:

    a round begins with one target
    it is late                            one more is asked, if there is one to spare and the budget has it
    a try fails as another might not      the others go on; if there are none, the round has failed
    a try fails as any other would        the round has failed, and the others are ended
    a try commits                         the others are ended at once, and its batches are the answer

After a failed round it goes on as without hedges: another target, a fallback, a retry, each with a round of its own.
The queue is bounded, so that a slow client slows its upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, TypeAlias

from msgspec import Struct

from llmg.core.context import Context
from llmg.core.errors import FAILS_OVER, Failure, Kind, internal
from llmg.core.events import Batch
from llmg.core.request import Request
from llmg.ports import Asked, Clock, Random
from llmg.routing.attempts import Trying, why_left
from llmg.routing.course import Course
from llmg.routing.health import spare
from llmg.routing.hedge import Hedges

_AHEAD: Final = 8  # batches that the upstream may be ahead of the client; more than a round has tries


class _Late:
    """The time after which another target is asked is over."""


class _Failed(Struct, frozen=True):
    """A try has."""

    leg: _Leg
    failure: Failure


_Said: TypeAlias = Batch | Exception | _Failed | _Late | None  # an exception: our own mistake; None: the answer's end
_LATE: Final = _Late()


class _Leg(Trying):
    """A try in a task of its own."""

    __slots__ = ("_race", "_said", "task")

    def __init__(self, race: Hedged, request: Request, asked: Asked, context: Context, clock: Clock) -> None:
        super().__init__(request, asked, context, clock)
        self._race = race
        self._said = race.said
        self.task: asyncio.Task[None]

    def start(self) -> None:
        """Once the target is chosen."""
        self.task = asyncio.get_running_loop().create_task(self._run())

    def end(self, failure: Failure) -> None:
        """Ends it from outside, for this reason."""
        self.settle(failure)
        self.task.cancel()

    def overtaken_by(self, other: _Leg) -> float | None:
        """The other, asked later, answers: the target would have taken longer than this, in seconds.

        Its policy has to know, or a target that stalls looks as good as it did before, as others always save it.
        """
        slow, fast = self.attempt, other.attempt
        assert slow is not None
        assert fast is not None
        if slow.ended is not None or slow.started >= fast.started or fast.committed is None:
            return None
        took = fast.committed - slow.started
        self._group.policy.first_event(self._chosen, took)
        return took

    async def _run(self) -> None:
        said: _Said = None
        try:
            await self._answer()
        except (Exception, asyncio.CancelledError) as error:
            if self.task.cancelling() and not isinstance(error, Failure):
                raise
            said = self._meaning(error)
        if not self.task.cancelling():  # else nobody listens any more, and what it says would be taken for the winner's
            await self._said.put(said)

    def _meaning(self, error: BaseException) -> _Said:
        if isinstance(error, Failure):
            return _Failed(self, error)
        if isinstance(error, Exception):
            return error
        return _Failed(self, internal(error))  # not the try was cancelled but the call, from within

    async def _answer(self) -> None:
        error: BaseException | None = None
        try:
            await self.enter()
            batch = await self.until_commit()
            self._race.check(batch)
            if self._race.won(self):
                await self._said.put(batch)
                if not self.over:
                    await self._rest()
        except BaseException as raised:
            error = raised
            raise
        finally:
            await self.leave(None if self.over else why_left(error))

    async def _rest(self) -> None:
        async for batch in self.events:
            await self._said.put(batch)
        self.over = True


class Hedged:
    """The answer of a model that has hedges. See `ports.Provider`."""

    def __init__(
        self,
        course: Course,
        hedges: Hedges,
        request: Request,
        asked: Asked,
        context: Context,
        clock: Clock,
        random: Random,
    ) -> None:
        hedges.asked()
        self._course = course
        self._hedges = hedges
        self._kind = (type(request), request.stream)
        self._request = request
        self._asked = asked
        self._context = context
        self._clock = clock
        self._random = random
        self._done = 0  # hedges
        self.said: asyncio.Queue[_Said]  # in this round
        self._running: list[_Leg] = []  # of this round
        self._tasks: list[asyncio.Task[None]] = []  # of all rounds
        self._timer: asyncio.TimerHandle | None = None
        self._winner: _Leg | None = None
        self._over = False

    async def __aenter__(self) -> Hedged:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._end(why_left(error))
        if ending := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(ending)

    def __aiter__(self) -> Hedged:
        return self

    async def __anext__(self) -> Batch:
        if self._over:
            raise StopAsyncIteration
        if self._winner is None:
            return await self._first()
        said = await self.said.get()
        if said is None:
            self._over = True
            raise StopAsyncIteration
        return _batch(said)

    def check(self, answer: Batch) -> None:
        """Raises Failure, where another model is to be asked instead: see `Course`."""
        self._course.check(answer, self._request, self._clock.monotonic())

    def won(self, leg: _Leg) -> bool:
        """Is this try, which has something to give, the one that answers? Then the others end here."""
        if self._winner is not None or leg not in self._running:
            return False
        self._winner = leg
        self._hedges.took(self._kind, leg.commit())
        self._running.remove(leg)
        for other in self._running:
            if (took := other.overtaken_by(leg)) is not None:
                self._hedges.took(self._kind, took)
        self._end(Failure(Kind.CANCELLED, "another target was faster"))
        self._running.append(leg)
        self._comes_last(leg)
        return True

    async def _first(self) -> Batch:
        while True:
            try:
                return await self._round()
            except Failure as failure:
                self._end(Failure(Kind.CANCELLED, "another target has refused the request"))
                now = self._clock.monotonic()
                wait = self._course.next(failure, now, self._context.deadline, self._random)
                if wait is None:
                    raise
                if wait > 0.0:
                    await asyncio.sleep(wait)

    async def _round(self) -> Batch:
        """The first batch of the answer. Raises Failure when no try is left, or no other would help."""
        self.said = asyncio.Queue(_AHEAD)
        now = self._clock.monotonic()
        self._ask(self._course.candidates(now), now)
        while True:
            said = await self.said.get()
            if isinstance(said, _Late):
                self._late()
            elif not isinstance(said, _Failed):
                return _batch(said)
            elif self._winner is None:
                self._lost(said)

    def _late(self) -> None:
        now = self._clock.monotonic()
        others = spare(self._course.group.targets, self._course.left, now)
        if others and self._winner is None and self._hedges.take(self._done):
            self._done += 1
            self._ask(others, now)

    def _lost(self, one: _Failed) -> None:
        self._running.remove(one.leg)
        if not self._running or one.failure.kind not in FAILS_OVER:
            self._comes_last(one.leg)
            raise one.failure

    def _ask(self, candidates: Sequence[int], now: float) -> None:
        leg = _Leg(self, self._request, self._asked, self._context, self._clock)
        self._course.left.remove(leg.choose(self._course.group, candidates, now))
        leg.start()
        self._running.append(leg)
        self._tasks.append(leg.task)
        after = self._hedges.after(self._kind)
        if after is not None:
            self._timer = leg.task.get_loop().call_later(after, self.said.put_nowait, _LATE)

    def _end(self, failure: Failure) -> None:
        """Of all tries that run."""
        if self._timer is not None:
            self._timer.cancel()
        for leg in self._running:
            leg.end(failure)
        self._running.clear()

    def _comes_last(self, leg: _Leg) -> None:
        """In the trail: it is the one whose answer, or failure, the client gets."""
        trail = self._context.trail
        place = next(place for place, attempt in enumerate(trail) if attempt is leg.attempt)
        trail.append(trail.pop(place))


def _batch(said: _Said) -> Batch:
    if isinstance(said, _Failed):
        raise said.failure
    if isinstance(said, Exception):
        raise said
    assert said is not None
    assert not isinstance(said, _Late)
    return said

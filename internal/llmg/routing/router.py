"""The router: a provider that asks a model's targets in turn until one commits to an answer.

Before commit, a failure that another target may not share moves on to the next. After it, never: a client does not get
a text twice. A unary answer commits when it is complete.
"""

from __future__ import annotations

import asyncio
from random import Random as Dice
from typing import Final

from llmg.core.context import Context
from llmg.core.errors import Failure
from llmg.core.events import Batch
from llmg.core.request import Request
from llmg.ports import Answering, Asked, Clock, Random
from llmg.routing.ability import Demand
from llmg.routing.attempts import Trying, why_left
from llmg.routing.course import Course
from llmg.routing.models import Finding
from llmg.routing.policies.view import View
from llmg.routing.race import Hedged

_CHANCE: Final = Dice()


class Router:
    """Answers from the targets of the request's model."""

    def __init__(self, models: Finding, clock: Clock, random: Random = _CHANCE) -> None:
        """`models` are those of callers who have no scope of their own; `random` spreads the retries."""
        self._models = models
        self._clock = clock
        self._random = random

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        models: Finding = context.principal.scope or self._models
        group = models.find(request.model)
        view = View(request, context)
        demand = Demand(request, view, context)
        left = demand.able(group)
        course = Course(group, left, group.find or models.find, demand.able)
        if not left:
            self._elsewhere(course, demand.failure(group), context)
        if group.hedges is not None:
            return Hedged(course, group.hedges, request, view, context, self._clock, self._random)
        return _Routed(course, request, view, context, self._clock, self._random)

    def _elsewhere(self, course: Course, failure: Failure, context: Context) -> None:
        """None of the model's targets can do what is asked: goes on to its fallbacks, or raises the failure."""
        asked = failure.kind in course.group.fallback_on
        if not asked or course.next(failure, self._clock.monotonic(), context.deadline, self._random) is None:
            raise failure


class _Routed(Trying):
    """One target after the other."""

    __slots__ = ("_committed", "_course", "_random")

    def __init__(
        self, course: Course, request: Request, asked: Asked, context: Context, clock: Clock, random: Random
    ) -> None:
        super().__init__(request, asked, context, clock)
        self._course = course
        self._random = random
        self._committed = False

    async def __aenter__(self) -> _Routed:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.leave(None if self.over else why_left(error))

    def __aiter__(self) -> _Routed:
        return self

    async def __anext__(self) -> Batch:
        if self.over:
            raise StopAsyncIteration
        if not self._committed:
            return await self._first()
        try:
            return await self.events.__anext__()
        except StopAsyncIteration:
            self.over = True
            raise
        except Failure as failure:
            self.settle(failure)
            raise

    async def _first(self) -> Batch:
        course, clock = self._course, self._clock
        while True:
            try:
                now = clock.monotonic()
                course.left.remove(self.choose(course.group, course.candidates(now), now))
                await self.enter()
                batch = await self.until_commit()
                course.check(batch, self._request, clock.monotonic())
            except Failure as failure:
                await self.leave(failure)
                wait = course.next(failure, clock.monotonic(), self._context.deadline, self._random)
                if wait is None:
                    raise
                if wait > 0.0:
                    await asyncio.sleep(wait)
            else:
                self._committed = True
                self.commit()
                return batch

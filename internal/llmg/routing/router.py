"""The router: a provider that asks a model's targets in turn until one commits to an answer.

Before commit, a failure that another target may not share moves on to the next. After it, never: a client does not get
a text twice. A unary answer commits when it is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random as Dice
from typing import Final, Protocol

from msgspec import Struct, field
from msgspec.structs import force_setattr

from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch
from llmg.core.request import Request
from llmg.ports import Answering, Asked, Clock, Policy, Profile, Provider, Random
from llmg.routing.ability import Demand, Operations, operations
from llmg.routing.attempts import Trying, why_left
from llmg.routing.course import Course
from llmg.routing.health import Health
from llmg.routing.hedge import Hedges
from llmg.routing.policies.base import First
from llmg.routing.policies.lowest_cost import Price
from llmg.routing.policies.view import View
from llmg.routing.race import Hedged
from llmg.routing.retries import Retries


class Target(Struct, frozen=True, kw_only=True):
    """One model of one provider. `region` and `labels` are the operator's words for it."""

    provider: str
    model: str
    inner: Provider
    weight: float = 1.0
    profile: Profile = Profile()
    health: Health = field(default_factory=Health)
    price: Price | None = None
    region: str = ""
    labels: tuple[tuple[str, str], ...] = ()


class Group(Struct, frozen=True, kw_only=True):
    """A name that clients use, and the targets that may answer for it.

    When they all fail, or one fails with a kind of `fallback_on`, the models of `fallbacks` are asked, in this order;
    then, if none of them answers either, the model's own targets again, as `retries` allow. `find` gives its
    fallbacks; None: whoever asks knows them. With `hedges`, another target is asked when the first keeps a request
    waiting. `operations` follow from the targets.
    """

    name: str
    targets: tuple[Target, ...]
    policy: Policy
    created: int = 0
    fallbacks: tuple[str, ...] = ()
    fallback_on: frozenset[Kind] = frozenset()
    retries: Retries | None = None
    hedges: Hedges | None = None
    find: Callable[[str], Group] | None = None
    operations: Operations = Operations()

    def __post_init__(self) -> None:
        """Once for all requests, as there may be many targets."""
        force_setattr(self, "operations", operations(tuple([target.profile for target in self.targets])))

    def profile(self) -> Profile:
        """What at least one of the targets can do."""
        return Profile(
            chat=any(t.profile.chat for t in self.targets),
            embed=any(t.profile.embed for t in self.targets),
            n=any(t.profile.n for t in self.targets),
        )


class Finding(Protocol):
    """Knows models by their names."""

    def find(self, name: str, /) -> Group:
        """The model of that name. Raises Failure (model_not_found)."""
        ...


class Models:
    """The models by name. A declared model wins; else `PROVIDER/MODEL` reaches a declared provider's model."""

    def __init__(self, groups: Mapping[str, Group], providers: Mapping[str, Callable[[str], Target]]) -> None:
        """`providers` give a target for any model of theirs."""
        self._groups = groups
        self._providers = providers

    def declared(self) -> Sequence[Group]:
        """Those with a name of their own."""
        return tuple(self._groups.values())

    def find(self, name: str) -> Group:
        """The model of that name. Raises Failure (model_not_found)."""
        group = self._groups.get(name)
        return group if group is not None else self._by_provider(name)

    def _by_provider(self, name: str) -> Group:
        provider, slash, model = name.partition("/")
        make = self._providers.get(provider)
        if make is None or not slash or not model:
            raise Failure(Kind.MODEL_NOT_FOUND, f"the model '{name[:200]}' does not exist", param="model")
        return only(name, make(model))


def only(name: str, target: Target) -> Group:
    """A model that has one target."""
    return Group(name=name, targets=(target,), policy=_ONLY)


_ONLY = First()
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

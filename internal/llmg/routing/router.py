"""The router: a provider that asks a model's targets in turn until one commits to an answer.

Before commit, a failure that another target may not share moves on to the next. After it, never: a client does not get
a text twice. A unary answer commits when it is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from random import Random as Dice
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from llmg.core.context import Attempt, Context
from llmg.core.errors import FAILS_OVER, Failure, Kind, internal, not_implemented
from llmg.core.events import Batch, commits
from llmg.core.request import Embed, Request
from llmg.ports import Answering, Asked, Clock, Policy, Profile, Provider, Random
from llmg.routing.course import Course
from llmg.routing.health import Health
from llmg.routing.policies.base import First
from llmg.routing.policies.view import View
from llmg.routing.retries import Retries


class Target(Struct, frozen=True, kw_only=True):
    """One model of one provider."""

    provider: str
    model: str
    inner: Provider
    weight: float = 1.0
    profile: Profile = Profile()
    health: Health = field(default_factory=Health)


class Group(Struct, frozen=True, kw_only=True):
    """A name that clients use, and the targets that may answer for it.

    When they all fail, or one fails with a kind of `fallback_on`, the models of `fallbacks` are asked, in this order;
    then, if none of them answers either, the model's own targets again, as `retries` allow.
    """

    name: str
    targets: tuple[Target, ...]
    policy: Policy
    created: int = 0
    fallbacks: tuple[str, ...] = ()
    fallback_on: frozenset[Kind] = frozenset()
    retries: Retries | None = None

    def profile(self) -> Profile:
        """What at least one of the targets can do."""
        return Profile(
            chat=any(t.profile.chat for t in self.targets),
            embed=any(t.profile.embed for t in self.targets),
            n=any(t.profile.n for t in self.targets),
        )


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
        return Group(name=name, targets=(make(model),), policy=_ONLY)


_ONLY = First()
_CHANCE: Final = Dice()


class Router:
    """Answers from the targets of the request's model."""

    def __init__(self, models: Models, clock: Clock, random: Random = _CHANCE) -> None:
        """`models` are those of callers who have no scope of their own; `random` spreads the retries."""
        self._models = models
        self._clock = clock
        self._random = random

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        models: Models = context.principal.scope or self._models
        group = models.find(request.model)
        able = partial(_able, request)
        left = able(group)
        if not left:
            what = "embeddings" if isinstance(request, Embed) else "chat"
            raise not_implemented(f"{what} for the model '{group.name}'")
        course = Course(group, left, models.find, able)
        return _Routed(course, request, context, self._clock, self._random)


def _went_well(failure: Failure | None) -> bool | None:
    """Did the target? None: what the caller or we did says nothing of it."""
    if failure is None:
        return True
    return False if failure.kind in FAILS_OVER else None


def _able(request: Request, group: Group) -> list[int]:
    embed = isinstance(request, Embed)
    return [i for i, t in enumerate(group.targets) if (t.profile.embed if embed else t.profile.chat)]


class _Routed:
    __slots__ = (
        "_asked",
        "_attempt",
        "_chosen",
        "_clock",
        "_committed",
        "_context",
        "_course",
        "_events",
        "_inner",
        "_over",
        "_random",
        "_request",
        "_target",
        "_ticket",
    )

    def __init__(self, course: Course, request: Request, context: Context, clock: Clock, random: Random) -> None:
        self._course = course
        self._random = random
        self._target: Target
        self._ticket = 0  # of the target's health
        self._request = request
        self._context = context
        self._asked: Asked = View(request, context)
        self._chosen = -1
        self._clock = clock
        self._inner: Answering | None = None
        self._events: AsyncIterator[Batch]
        self._attempt: Attempt
        self._committed = False
        self._over = False

    async def __aenter__(self) -> _Routed:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._over:
            await self._leave(None)
        elif isinstance(error, Failure):
            await self._leave(error)
        elif isinstance(error, Exception):
            await self._leave(internal(error))
        else:
            await self._leave(Failure(Kind.CANCELLED, "nobody waited for the end of the answer"))

    def __aiter__(self) -> _Routed:
        return self

    async def __anext__(self) -> Batch:
        if self._over:
            raise StopAsyncIteration
        if not self._committed:
            return await self._first()
        try:
            return await self._events.__anext__()
        except StopAsyncIteration:
            self._over = True
            raise
        except Failure as failure:
            self._attempt.failure = failure
            raise

    async def _first(self) -> Batch:
        while True:
            try:
                await self._enter()
                batch = await self._until_commit()
            except Failure as failure:
                await self._leave(failure)
                wait = self._course.next(failure, self._clock.monotonic(), self._context.deadline, self._random)
                if wait is None:
                    raise
                if wait > 0.0:
                    await asyncio.sleep(wait)
            else:
                self._committed = True
                now = self._clock.monotonic()
                self._target.health.committed(self._ticket, now)
                self._course.group.policy.first_event(self._chosen, now - self._attempt.started)
                self._context.observer.committed(self._context, self._attempt)
                return batch

    async def _enter(self) -> None:
        course, now = self._course, self._clock.monotonic()
        policy = course.group.policy
        chosen = self._chosen = policy.choose(course.candidates(now), self._asked)
        course.left.remove(chosen)
        target = self._target = course.group.targets[chosen]
        self._attempt = Attempt(provider=target.provider, model=target.model, started=now)
        self._context.trail.append(self._attempt)
        self._ticket = target.health.begin()
        policy.started(chosen)
        self._context.observer.attempt_started(self._context, self._attempt)
        request = self._request if target.model == self._request.model else replace(self._request, model=target.model)
        inner = target.inner.open(request, self._context)
        self._events = await inner.__aenter__()
        self._inner = inner

    async def _until_commit(self) -> Batch:
        events: Batch = ()
        async for batch in self._events:
            events = [*events, *batch] if events else batch
            if self._request.stream and commits(batch):
                return events
        if not commits(events):
            raise Failure(Kind.UPSTREAM_TRUNCATED, "the upstream's answer ended before it began")
        self._over = True
        return events

    async def _leave(self, failure: Failure | None) -> None:
        inner, self._inner = self._inner, None
        attempt = self._context.trail[-1] if self._context.trail else None
        if attempt is not None and attempt.ended is None:
            attempt.failure = attempt.failure or failure
            attempt.ended = self._clock.monotonic()
            self._target.health.ended(self._ticket, attempt.ended, attempt.failure)
            took = attempt.ended - attempt.started
            self._course.group.policy.ended(self._chosen, took, _went_well(attempt.failure))
            self._context.observer.attempt_ended(self._context, attempt)
        if inner is not None:
            await inner.__aexit__(None, None, None)

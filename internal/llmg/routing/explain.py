"""A dry run: which targets a request would be asked of, in which order, and why not of the others.

Goes by what the router goes by, at one moment. Nobody is asked, and nothing is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Protocol

from llmg.core.context import Context
from llmg.core.explanation import Candidate, Explanation, Stage
from llmg.core.request import Request
from llmg.ports import Ranked
from llmg.routing.ability import Demand
from llmg.routing.breaker import State
from llmg.routing.health import Health, fittest
from llmg.routing.models import Group, Target
from llmg.routing.policies.priority import Priority
from llmg.routing.policies.view import View


class Finding(Protocol):
    """Knows the models by name: `router.Models` is one."""

    def find(self, name: str, /) -> Group:
        """The model of that name. Raises Failure (model_not_found)."""
        ...


def explain(models: Finding, request: Request, context: Context, now: float) -> Explanation:
    """What the router would do with this request, at `now` (monotonic seconds). Raises Failure (model_not_found)."""
    view = View(request, context)
    demand = Demand(request, view, context)
    group = models.find(request.model)
    fallbacks = group.fallbacks if _goes_on(group, demand) else ()
    places = count(1)
    find = group.find or models.find
    stages = [_stage(each, demand, view, now, places) for each in (group, *map(find, fallbacks))]
    return Explanation(model=request.model, stages=tuple(stages))


def _goes_on(group: Group, demand: Demand) -> bool:
    """Would the fallbacks be asked? Not when no target can do it at all, unless it is for them to do just that."""
    return bool(demand.able(group)) or demand.failure(group).kind in group.fallback_on


def _stage(group: Group, demand: Demand, view: View, now: float, places: Iterator[int]) -> Stage:
    unable = {one.index: one.reason for one in demand.rejected(group)}
    able = [index for index in range(len(group.targets)) if index not in unable]
    fit = fittest(group.targets, able, now)
    ranked = group.policy.rank(fit, view) if fit else ()
    targets = [
        *[_accepted(group, one, next(places), now) for one in ranked],
        *[_rejected(group, index, state(group.targets[index].health, now)) for index in able if index not in fit],
        *[_rejected(group, index, reason) for index, reason in unable.items()],
    ]
    return Stage(model=group.name, policy=group.policy.kind, targets=tuple(targets))


def state(health: Health, now: float) -> str:
    """What is the matter with a target, in words; empty: nothing."""
    status = health.status(now)
    said = []
    if status.down:
        said.append("its health checks fail")
    if status.circuit is State.OPEN:
        wait = health.breaker.retry_after(now)
        said.append(f"circuit open for {wait:.1f} s more" if wait else "circuit open, about to be tried out")
    elif status.circuit is State.HALF_OPEN:
        said.append("circuit half-open: it is being tried out")
    if status.cooling:
        said.append(f"asked to be left alone for {status.cooling:.1f} s more")
    if health.full:
        said.append(f"no free place: {status.in_flight} in flight, {status.queued} waiting")
    return "; ".join(said)


def _accepted(group: Group, ranked: Ranked, place: int, now: float) -> Candidate:
    trouble = state(group.targets[ranked.index].health, now)
    reason = f"{ranked.why}; {trouble}" if trouble else ranked.why
    return _candidate(group, ranked.index, reason, place, ranked.score)


def _rejected(group: Group, index: int, reason: str) -> Candidate:
    return _candidate(group, index, reason)


def _candidate(
    group: Group, index: int, reason: str, place: int | None = None, score: float | None = None
) -> Candidate:
    target: Target = group.targets[index]
    tiers: Sequence[int] | None = group.policy.tiers if isinstance(group.policy, Priority) else None
    return Candidate(
        provider=target.provider,
        model=target.model,
        verdict="rejected" if place is None else "candidate",
        place=place,
        score=score,
        reason=reason,
        weight=target.weight,
        tier=None if tiers is None else tiers[index],
        price=target.price,
        context_window=target.profile.context_window,
        capabilities=tuple(sorted(target.profile.has)),
        region=target.region,
        labels=dict(target.labels),
    )

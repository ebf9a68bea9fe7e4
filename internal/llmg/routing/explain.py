"""A dry run: which targets a request would be asked of, in which order, and why not of the others.

Goes by what the router goes by, at one moment. Nobody is asked, and no policy counts it.

In full it shows how targets do and what is noted of them: latencies, requests in flight, circuits, prices, labels; by
`prefix` also whether somebody asked the like before. In outline, who would be asked in which order and what a target
can't do, but of the rest no more than that something is the matter.
"""

from __future__ import annotations

from itertools import count
from typing import Final, Protocol

from msgspec.structs import replace

from llmg.core.context import Context
from llmg.core.explanation import Candidate, Explanation, Stage
from llmg.core.request import Request
from llmg.ports import Ranked
from llmg.routing.ability import Demand
from llmg.routing.breaker import State
from llmg.routing.health import Health, fittest
from llmg.routing.models import Group
from llmg.routing.policies.priority import Priority
from llmg.routing.policies.view import View

_CHOSEN: Final = "in the policy's order"
_TROUBLE: Final = "busy or in trouble at the moment"


class Finding(Protocol):
    """Knows the models by name: `router.Models` is one."""

    def find(self, name: str, /) -> Group:
        """The model of that name. Raises Failure (model_not_found)."""
        ...


def explain(models: Finding, request: Request, context: Context, now: float, *, details: bool = True) -> Explanation:
    """What the router would do with this request, at `now` (monotonic seconds). Raises Failure (model_not_found).

    `details`: in full, not in outline.
    """
    view = View(request, context)
    demand = Demand(request, view, context)
    group = models.find(request.model)
    fallbacks = group.fallbacks if _goes_on(group, demand) else ()
    find = group.find or models.find
    run = _Run(demand, view, now, details)
    return Explanation(model=request.model, stages=tuple([run.stage(each) for each in (group, *map(find, fallbacks))]))


def _goes_on(group: Group, demand: Demand) -> bool:
    """Would the fallbacks be asked? Not when no target can do it at all, unless it is for them to do just that."""
    return bool(demand.able(group)) or demand.failure(group).kind in group.fallback_on


class _Run:
    """One explanation, stage by stage."""

    def __init__(self, demand: Demand, view: View, now: float, details: bool) -> None:
        self._demand = demand
        self._view = view
        self._now = now
        self._details = details
        self._places = count(1)

    def stage(self, group: Group) -> Stage:
        """A model, and what would become of its targets."""
        unable = {one.index: one.reason for one in self._demand.rejected(group)}
        able = [index for index in range(len(group.targets)) if index not in unable]
        fit = fittest(group.targets, able, self._now)
        targets = [
            *[self._accepted(group, ranked) for ranked in (group.policy.rank(fit, self._view) if fit else ())],
            *[self._candidate(group, index, self._trouble(group, index)) for index in able if index not in fit],
            *[self._candidate(group, index, reason) for index, reason in unable.items()],
        ]
        return Stage(model=group.name, policy=group.policy.kind, targets=tuple(targets))

    def _accepted(self, group: Group, ranked: Ranked) -> Candidate:
        trouble = self._trouble(group, ranked.index)
        why = ranked.why if self._details else _CHOSEN
        candidate = self._candidate(group, ranked.index, f"{why}; {trouble}" if trouble else why)
        score = ranked.score if self._details else None
        return replace(candidate, verdict="candidate", place=next(self._places), score=score)

    def _trouble(self, group: Group, index: int) -> str:
        words = state(group.targets[index].health, self._now)
        return _TROUBLE if words and not self._details else words

    def _candidate(self, group: Group, index: int, reason: str) -> Candidate:
        """Rejected, where nobody says otherwise."""
        target = group.targets[index]
        tiers = group.policy.tiers if isinstance(group.policy, Priority) else None
        known = Candidate(
            provider=target.provider,
            model=target.model,
            verdict="rejected",
            reason=reason,
            weight=target.weight,
            tier=None if tiers is None else tiers[index],
            context_window=target.profile.context_window,
            capabilities=tuple(sorted(target.profile.has)),
        )
        if not self._details:
            return known
        return replace(known, price=target.price, region=target.region, labels=dict(target.labels))


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

"""The way that a request would take, and why: what `services.explain` answers, and each door tells."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from llmg.core.prices import Price

Verdict = Literal["candidate", "rejected"]


class Candidate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A target. `place`: in the order of all on the way, from 1; None: it is rejected. `reason`: why this place, with
    what `score` is, or why it is rejected. `tier`: where the policy has tiers.

    In outline, `reason` says less, and there are no `score`, `price`, `region` and `labels`."""

    provider: str
    model: str
    verdict: Verdict
    place: int | None = None
    score: float | None = None
    reason: str
    weight: float
    tier: int | None = None
    price: Price | None = None
    context_window: int | None = None
    capabilities: tuple[str, ...] = ()
    region: str = ""
    labels: dict[str, str] = {}


class Stage(Struct, frozen=True, kw_only=True):
    """A model, the kind of policy that chooses among its targets, and these: in the order in which they would be asked,
    then those that are rejected."""

    model: str
    policy: str
    targets: tuple[Candidate, ...]


class Explanation(Struct, frozen=True, kw_only=True):
    """The model that is asked for, and its fallbacks, in the order in which they would be asked."""

    model: str
    stages: tuple[Stage, ...]

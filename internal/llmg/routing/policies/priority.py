"""Tiers of targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmg.ports import Asked, Policy, Ranked


class Priority:
    """The lowest tier that has candidates left; within it another policy. So a tier is asked when all below failed.

    Each tier's policy sees only its own targets, with the indexes that they have in the model.
    """

    kind = "priority"

    def __init__(self, tiers: Sequence[int], make: Callable[[int], Policy]) -> None:
        """`tiers`: each target's. `make` gives the policy of the nth tier in use, counted from 0."""
        self.tiers = tuple(tiers)
        in_use = sorted(set(tiers))
        policies = {tier: make(place) for place, tier in enumerate(in_use)}
        self._of = tuple(policies[tier] for tier in tiers)  # each target's
        self._tiers = [
            (policies[tier], [index for index, other in enumerate(tiers) if other == tier]) for tier in in_use
        ]

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        policy, members = self._tiers[0]
        if len(candidates) < len(self._of):
            left = frozenset(candidates)
            policy, members = next(
                (policy, free)
                for policy, members in self._tiers
                if (free := [index for index in members if index in left])
            )
        return policy.choose(members, asked)

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. The scores are those of each tier's policy."""
        left = frozenset(candidates)
        out: list[Ranked] = []
        for policy, members in self._tiers:
            free = [index for index in members if index in left]
            out += [
                Ranked(one.index, one.score, f"tier {self.tiers[one.index]}, {policy.kind}: {one.why}")
                for one in (policy.rank(free, asked) if free else ())
            ]
        return out

    def started(self, index: int, /) -> None:
        """See `ports.Policy`."""
        self._of[index].started(index)

    def first_event(self, index: int, seconds: float, /) -> None:
        """See `ports.Policy`."""
        self._of[index].first_event(index, seconds)

    def ended(self, index: int, seconds: float, ok: bool | None, /) -> None:
        """See `ports.Policy`."""
        self._of[index].ended(index, seconds, ok)

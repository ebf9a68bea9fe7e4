"""Smooth weighted round robin."""

from __future__ import annotations

from collections.abc import Sequence

from llmg.ports import Asked, Ranked
from llmg.routing.policies.base import Unmoved, one_by_one


class Weighted(Unmoved):
    """Smooth weighted round robin: shares are exact over a cycle, and a heavy target's turns are spread over it.

    Each turn every candidate gains its weight, the richest is chosen and pays what all gained (as nginx does it).
    """

    kind = "weighted"

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(weights)
        self._credit = [0.0] * len(self._weights)

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        if len(candidates) == 1:
            return candidates[0]
        return self._turn(self._credit, candidates)

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. The score: what each has to spend in this turn."""
        credit, weights = list(self._credit), self._weights
        total = sum(weights[index] for index in candidates)
        order = one_by_one(lambda left: left[0] if len(left) == 1 else self._turn(credit, left), candidates)
        return [self._ranked(index, total) for index in order]

    def _ranked(self, index: int, total: float) -> Ranked:
        now = self._credit[index] + self._weights[index]
        return Ranked(index, now, f"share {self._weights[index] / total:.3f}, credit {now:g}: the highest is next")

    def _turn(self, credit: list[float], candidates: Sequence[int]) -> int:
        weights = self._weights
        total = 0.0
        for index in candidates:
            credit[index] += weights[index]
            total += weights[index]
        best = max(candidates, key=credit.__getitem__)
        credit[best] -= total
        return best

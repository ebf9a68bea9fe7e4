"""Smooth weighted round robin."""

from __future__ import annotations

from collections.abc import Sequence

from llmg.ports import Asked
from llmg.routing.policies.base import Unmoved


class Weighted(Unmoved):
    """Smooth weighted round robin: shares are exact over a cycle, and a heavy target's turns are spread over it.

    Each turn every candidate gains its weight, the richest is chosen and pays what all gained (as nginx does it).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(weights)
        self._credit = [0.0] * len(self._weights)

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        if len(candidates) == 1:
            return candidates[0]
        credit, weights = self._credit, self._weights
        total = 0.0
        for index in candidates:
            credit[index] += weights[index]
            total += weights[index]
        best = max(candidates, key=credit.__getitem__)
        credit[best] -= total
        return best

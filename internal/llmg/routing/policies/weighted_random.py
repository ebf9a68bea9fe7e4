"""Weighted chance."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from llmg.ports import Asked, Random, Ranked
from llmg.routing.policies.base import Unmoved


class WeightedRandom(Unmoved):
    """Draws by weight. Many gateways that know nothing of each other still give each target its share."""

    kind = "random"

    def __init__(self, weights: Sequence[float], random: Random) -> None:
        self._weights = tuple(weights)
        self._all = list(accumulate(self._weights))
        self._random = random

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        if len(candidates) == len(self._weights):
            sums = self._all
        else:
            sums = list(accumulate([self._weights[index] for index in candidates]))
        # Rounding may lift the product to the sum itself.
        place = min(bisect_right(sums, self._random.random() * sums[-1]), len(sums) - 1)
        return candidates[place]

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. The score: the share of draws."""
        weights = self._weights
        total = sum([weights[index] for index in candidates])
        shares = [(weights[index] / total, index) for index in sorted(candidates, key=lambda index: -weights[index])]
        return [Ranked(index, share, f"share {share:.3f}") for share, index in shares]

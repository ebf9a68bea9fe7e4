"""Round robin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from llmg.ports import Asked, Ranked
from llmg.routing.policies.base import Unmoved


class RoundRobin(Unmoved):
    """Each in its turn, whatever its weight: the first candidate after the one chosen last."""

    kind = "round_robin"

    def __init__(self) -> None:
        self._last = -1

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        place = bisect_right(candidates, self._last)
        self._last = candidates[place if place < len(candidates) else 0]
        return self._last

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. No score."""
        place = bisect_right(candidates, self._last)
        in_turn = [*candidates[place:], *candidates[:place]]
        return [
            Ranked(index, None, f"{turns} turns away" if turns else "its turn") for turns, index in enumerate(in_turn)
        ]

"""What several policies are made of: no feedback at all, a count of what is in flight, a shared bound on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil

from llmg.ports import Asked, Ranked


class Unmoved:
    """Takes no notice of what becomes of the targets."""

    def started(self, index: int, /) -> None:
        """See `ports.Policy`."""

    def first_event(self, index: int, seconds: float, /) -> None:
        """See `ports.Policy`."""

    def ended(self, index: int, seconds: float, ok: bool | None, /) -> None:
        """See `ports.Policy`."""


def one_by_one(choose: Callable[[list[int]], int], candidates: Sequence[int]) -> Iterator[int]:
    """The candidates as `choose` gives them: each from those that are left. It must change nothing."""
    left = list(candidates)
    while left:
        index = choose(left)
        left.remove(index)
        yield index


class First(Unmoved):
    """Takes the first: for a model of one target, and for tests."""

    kind = "direct"

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        return candidates[0]

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`."""
        return [Ranked(index, None, "in the order of the list") for index in candidates]


class Counting(Unmoved):
    """Knows how many requests each target has in flight: those of this process, not of its siblings."""

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`: how much each target can bear, relative to the others; above 0."""
        self._weights = tuple(weights)
        self._weight = sum(self._weights)
        self._busy = [0] * len(self._weights)
        self._total = 0  # in flight
        self._choices = 0
        # Of each target: what its load would be with one request more, when it was chosen last, which it is.
        self._ranks = [(1 / weight, 0, index) for index, weight in enumerate(self._weights)]

    def started(self, index: int, /) -> None:
        """See `ports.Policy`."""
        self._count(index, 1)

    def ended(self, index: int, seconds: float, ok: bool | None, /) -> None:
        """See `ports.Policy`."""
        self._count(index, -1)

    def _count(self, index: int, more: int) -> None:
        self._total += more
        busy = self._busy[index] = self._busy[index] + more
        self._ranks[index] = ((busy + 1) / self._weights[index], self._ranks[index][1], index)

    def _least(self, candidates: Sequence[int]) -> int:
        """The one with the fewest in flight for its weight; of equals, the one not chosen for longest."""
        ranks = self._ranks
        all_of_them = len(candidates) == len(ranks)
        return min(ranks if all_of_them else [ranks[index] for index in candidates])[2]

    def _load(self, index: int) -> str:
        """What it has to do, in words."""
        return f"{self._busy[index]} in flight / weight {self._weights[index]:g}"

    def _choose(self, index: int) -> int:
        """Notes that it was chosen."""
        self._choices += 1
        self._ranks[index] = (self._ranks[index][0], self._choices, index)
        return index

    def _room(self, candidates: Sequence[int], factor: float) -> float:
        """The bound of a target with weight 1; a target's own is `_limit`.

        `factor` times what each would have in flight, this request too, if all bore alike. With 1 or more, one of
        the candidates has room always.
        """
        if len(candidates) == len(self._weights):
            return factor * (self._total + 1) / self._weight
        total = sum([self._busy[index] for index in candidates]) + 1
        return factor * total / sum([self._weights[index] for index in candidates])

    def _has_room(self, index: int, room: float, slack: int = 0) -> bool:
        return self._busy[index] < self._limit(self._weights[index], room) + slack

    def _limit(self, weight: float, room: float) -> int:
        return ceil(room * weight - 1e-9)  # not the least over a whole number: 1.1 * 10 is 11.000000000000002

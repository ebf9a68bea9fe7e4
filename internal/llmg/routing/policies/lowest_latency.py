"""Lowest time to the first event."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from llmg.ports import Asked, Clock, Random, Ranked
from llmg.routing.policies.base import Counting, one_by_one
from llmg.routing.policies.ewma import Latencies


class LowestLatency(Counting):
    """The target that took the least time to its first event of late (EWMA), and now and then the one that was not
    chosen for longest, so that one that was slow once gets another chance.

    Epsilon-greedy (Sutton and Barto, Reinforcement Learning, 2.2), as latency-based routing is in LiteLLM and others.
    What is observed comes late: alone it would send all to one target until that had become slow. So none may have
    more than `load_factor` times its fair share in flight (see `Sticky`). Under load `P2C` does better.
    """

    kind = "lowest_latency"

    def __init__(
        self,
        count: int,
        clock: Clock,
        random: Random,
        decay: float = 10.0,
        explore: float = 0.05,
        load_factor: float = 1.25,
    ) -> None:
        """`decay`: seconds after which an observation has lost most of its weight; `explore`: share, 0 to 1;
        `load_factor`: 1 or more.
        """
        super().__init__([1.0] * count)
        self._chosen = [0] * count  # when each was chosen last, counted in choices
        self._random = random
        self._explore = explore
        self._factor = load_factor
        self._latencies = Latencies(count, clock, decay, peak=False)

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        chosen = self._chosen
        stalest = min(candidates, key=chosen.__getitem__)
        if not chosen[stalest] or self._random.random() < self._explore:
            return self._note(stalest)
        return self._note(self._fastest(candidates, stalest))

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. The score: milliseconds to the first event; None: not known yet."""
        order = one_by_one(self._unexplored, candidates)
        milliseconds = [(index, self._milliseconds(index)) for index in order]
        return [Ranked(index, score, self._words(index, score)) for index, score in milliseconds]

    def _unexplored(self, candidates: Sequence[int]) -> int:
        stalest = min(candidates, key=self._chosen.__getitem__)
        return self._fastest(candidates, stalest) if self._chosen[stalest] else stalest

    def _milliseconds(self, index: int) -> float | None:
        average = self._latencies.averages[index]
        return None if average is None else average * 1000

    def _words(self, index: int, milliseconds: float | None) -> str:
        if not self._chosen[index]:
            return "not tried yet"
        known = "no answer yet" if milliseconds is None else f"ewma {milliseconds:.3g} ms"
        return f"{known}, {self._busy[index]} in flight"

    def _fastest(self, candidates: Sequence[int], stalest: int) -> int:
        """The one with the lowest average of those that have room."""
        limit = self._limit(1.0, self._room(candidates, self._factor))
        busy, averages = self._busy, self._latencies.averages
        best, lowest = stalest, inf
        for index in candidates:
            average = averages[index] or 0.0  # it has not answered yet: that is hopeful, but the limit holds
            if average < lowest and busy[index] < limit:
                best, lowest = index, average
        return best

    def _note(self, index: int) -> int:
        self._choices += 1
        self._chosen[index] = self._choices
        return index

    def first_event(self, index: int, seconds: float, /) -> None:
        """See `ports.Policy`."""
        self._latencies.observe(index, seconds)

    def ended(self, index: int, seconds: float, ok: bool | None, /) -> None:
        """See `ports.Policy`."""
        super().ended(index, seconds, ok)
        if ok is False:
            self._latencies.fail(index, seconds)

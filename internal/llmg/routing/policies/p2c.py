"""Power of two choices."""

from __future__ import annotations

from collections.abc import Sequence

from llmg.ports import Asked, Clock, Random, Ranked
from llmg.routing.policies.base import Counting
from llmg.routing.policies.ewma import Latencies


class P2C(Counting):
    """Of two targets drawn at random, the one with the lower load: expected seconds to its first event (peak EWMA)
    x (requests in flight + 1) / weight.

    Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (1996); the load measure is Finagle's and
    Linkerd's. Two random ones rather than the best of all: several gateways don't run after the same target.
    """

    kind = "p2c"

    def __init__(self, weights: Sequence[float], clock: Clock, random: Random, decay: float = 10.0) -> None:
        """`decay`: seconds after which an observation has lost most of its weight."""
        super().__init__(weights)
        self._clock = clock
        self._random = random
        self._latencies = Latencies(len(self._weights), clock, decay, peak=True)

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        count = len(candidates)
        if count == 1:
            return candidates[0]
        place = int(self._random.random() * count)
        other = int(self._random.random() * (count - 1))
        one, two = candidates[place], candidates[other + (other >= place)]
        now = self._clock.monotonic()
        return one if self._delay(one, now) <= self._delay(two, now) else two

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. The score: the odds of being chosen; of equals, each has the same."""
        now, count = self._clock.monotonic(), len(candidates)
        delays = {index: self._delay(index, now) for index in candidates}
        ranked = []
        for index in sorted(candidates, key=delays.__getitem__):
            slower = sum(other > delays[index] for other in delays.values())
            equal = sum(other == delays[index] for other in delays.values()) - 1
            odds = (2 * slower + equal) / (count * (count - 1)) if count > 1 else 1.0
            ranked.append(Ranked(index, odds, f"odds {odds:.3f}: {self._words(index, now)}"))
        return ranked

    def first_event(self, index: int, seconds: float, /) -> None:
        """See `ports.Policy`."""
        self._latencies.observe(index, seconds)

    def ended(self, index: int, seconds: float, ok: bool | None, /) -> None:
        """See `ports.Policy`."""
        super().ended(index, seconds, ok)
        if ok is False:
            self._latencies.fail(index, seconds)

    def _words(self, index: int, now: float) -> str:
        expected = self._latencies.estimate(index, now)
        known = f"ewma {expected * 1000:.3g} ms" if expected else "no latency known yet"
        return f"{known} x {self._busy[index] + 1} / weight {self._weights[index]:g}"

    def _delay(self, index: int, now: float) -> float:
        expected = self._latencies.estimate(index, now) or 1.0  # of nothing known, only what is in flight counts
        return expected * self._ranks[index][0]

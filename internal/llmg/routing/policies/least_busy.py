"""Least requests in flight."""

from __future__ import annotations

from collections.abc import Sequence

from llmg.ports import Asked, Ranked
from llmg.routing.policies.base import Counting, one_by_one


class LeastBusy(Counting):
    """The target with the fewest requests in flight for its weight; of equals, the one not chosen for longest.

    Known as least connections (nginx `least_conn`) or least requests (Envoy `LEAST_REQUEST` over all hosts).
    """

    kind = "least_busy"

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        return self._choose(self._least(candidates))

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. The score: requests in flight / weight, with this one."""
        return [
            Ranked(index, self._ranks[index][0], self._load(index)) for index in one_by_one(self._least, candidates)
        ]

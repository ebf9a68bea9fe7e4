"""Least requests in flight."""

from __future__ import annotations

from collections.abc import Sequence

from llmg.ports import Asked
from llmg.routing.policies.base import Counting


class LeastBusy(Counting):
    """The target with the fewest requests in flight for its weight; of equals, the one not chosen for longest.

    Known as least connections (nginx `least_conn`) or least requests (Envoy `LEAST_REQUEST` over all hosts).
    """

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        return self._least(candidates)

"""Asking a second target when the first keeps a request waiting: after which time, and for how many requests. Pure.

The first to commit answers; `race.py` runs them. Hedging has a budget, so that upstreams that all became slow are not
given more load for it: each request of the model pays a share of a token in, and a hedge takes a whole one out.
(J. Dean and L. A. Barroso, The Tail at Scale, 2013: a second request after the 95th percentile costs 5 % more load.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final

from msgspec import Struct

_SAVED: Final = 10.0  # hedges that may be saved up for a bad moment
_KEPT: Final = 256  # times of one kind
_ENOUGH: Final = 32  # of them, before they say anything
_RENEWED: Final = 16  # times more, and the percentile is computed anew
_PERCENTILE: Final = 0.95


class Limits(Struct, frozen=True, kw_only=True):
    """Another target is asked after `after` seconds; None: after the 95th percentile of the model's own times.

    After as long again one more, `max` of them for one request; `budget`: hedges per request, of all the model's.
    """

    after: float | None = None
    max: int = 1
    budget: float = 0.05


class Hedges:
    """A model's hedges: how long to wait for the first target, and the token bucket of their budget.

    Times are kept by `kind` of request, as a whole answer takes longer than the first word of one.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tokens = 1.0
        self._times: dict[Hashable, Times] = {}

    def asked(self) -> None:
        """A request came: it pays its share."""
        self._tokens = min(_SAVED, self._tokens + self._limits.budget)

    def after(self, kind: Hashable) -> float | None:
        """Seconds to wait before another target is asked; None: too little is known yet."""
        if self._limits.after is not None:
            return self._limits.after
        times = self._times.get(kind)
        return None if times is None else times.percentile

    def took(self, kind: Hashable, seconds: float) -> None:
        """A target's first event came after so long; or it had not, when another target was faster."""
        if self._limits.after is None:
            if kind not in self._times:
                self._times[kind] = Times()
            self._times[kind].add(seconds)

    def take(self, done: int) -> bool:
        """May a request that has had `done` hedges have one more? Then it has it."""
        if done >= self._limits.max or self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Times:
    """The latest so many times, and their 95th percentile, in seconds; None: they are too few to tell."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=_KEPT)
        self._new = 0
        self.percentile: float | None = None

    def add(self, seconds: float) -> None:
        """One more."""
        self._latest.append(seconds)
        self._new += 1
        if len(self._latest) >= _ENOUGH and (self.percentile is None or self._new >= _RENEWED):
            self._new = 0
            self.percentile = sorted(self._latest)[int(len(self._latest) * _PERCENTILE)]

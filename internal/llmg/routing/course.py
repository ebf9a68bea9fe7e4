"""Who is asked next: the targets of the model, then those of its fallbacks, then the model's own once more.

One per request. Pure but for what it takes from the model's retry budget: it says how long to wait, and does not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from llmg.core.errors import FAILS_OVER, Failure
from llmg.ports import Random
from llmg.routing.health import fittest, unfit
from llmg.routing.models import Group
from llmg.routing.retries import RETRIED


class Course:
    """`group` is the model that is being asked, `left` its targets that have not been, as indexes."""

    __slots__ = ("_able", "_find", "_names", "_own", "_retried", "group", "left")

    def __init__(
        self, group: Group, left: list[int], find: Callable[[str], Group], able: Callable[[Group], list[int]]
    ) -> None:
        """`find` gives a model by its name; `able` those of its targets that can do what is asked."""
        self.group = self._own = group
        self.left = left
        self._find = find
        self._able = able
        self._names: Iterator[str] = iter(group.fallbacks)
        self._retried = 0
        if group.retries is not None:
            group.retries.asked()

    def candidates(self, now: float) -> Sequence[int]:
        """Those to choose from. Raises Failure, with the time to come back, when none of them may be asked."""
        fit = fittest(self.group.targets, self.left, now)
        if not fit:
            raise unfit(self.group.targets, self.left, now)
        return fit

    def next(self, failure: Failure, now: float, deadline: float | None, random: Random) -> float | None:
        """After this failure: seconds to wait before somebody else is asked; None: there is nobody."""
        if self._retried == 0:
            if failure.kind in FAILS_OVER and self._any_fit(now):
                return 0.0
            if (failure.kind in FAILS_OVER or failure.kind in self._own.fallback_on) and self._falls_back(now):
                return 0.0
        return self._again(now, deadline, random) if failure.kind in RETRIED else None

    def _any_fit(self, now: float) -> bool:
        return bool(self.left) and bool(fittest(self.group.targets, self.left, now))

    def _falls_back(self, now: float) -> bool:
        for name in self._names:
            self.group = self._find(name)
            self.left = self._able(self.group)
            if self._any_fit(now):
                return True
        return False

    def _again(self, now: float, deadline: float | None, random: Random) -> float | None:
        """Any of the model's own, but only one for each token of the budget."""
        retries = self._own.retries
        if retries is None:
            return None
        self.group, self.left = self._own, self._able(self._own)
        if not self._any_fit(now):
            return None
        seconds = retries.wait(self._retried, now, deadline, random)
        self._retried += seconds is not None
        return seconds

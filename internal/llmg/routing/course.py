"""Who is asked next: the targets of the model, then those of its fallbacks, then the model's own once more.

One per request. Pure but for what it takes from the model's retry budget: it says how long to wait, and does not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmg.core.errors import FAILS_OVER, Failure, Kind
from llmg.core.events import Batch, Finished
from llmg.core.request import Chat, Request
from llmg.ports import Random
from llmg.routing.health import fittest, unfit
from llmg.routing.models import Group
from llmg.routing.retries import RETRIED


class Course:
    """`group` is the model that is being asked, `left` its targets that have not been, as indexes."""

    __slots__ = ("_able", "_find", "_names", "_own", "_retried", "group", "left")

    _names: Sequence[str]  # of the fallbacks that have not been asked

    def __init__(
        self, group: Group, left: list[int], find: Callable[[str], Group], able: Callable[[Group], list[int]]
    ) -> None:
        """`find` gives a model by its name; `able` those of its targets that can do what is asked."""
        self.group = self._own = group
        self.left = left
        self._find = find
        self._able = able
        self._names = group.fallbacks
        self._retried = 0
        if group.retries is not None:
            group.retries.asked()

    def candidates(self, now: float) -> Sequence[int]:
        """Those to choose from. Raises Failure, with the time to come back, when none of them may be asked."""
        fit = fittest(self.group.targets, self.left, now)
        if not fit:
            raise unfit(self.group.targets, self.left, now)
        return fit

    def check(self, answer: Batch, request: Request, now: float) -> None:
        """Raises Failure (content_filtered) for an answer that a filter has ended, before anything of it was given to
        the client, where that is a reason to ask another model, and one is there."""
        if (
            Kind.CONTENT_FILTERED in self._own.fallback_on
            and self._retried == 0
            and _filtered(answer, request)
            and any(self._is_fit(self._find(name), now) for name in self._names)
        ):
            raise Failure(Kind.CONTENT_FILTERED, "the upstream's content filter ended the answer")

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
        while self._names:
            name, *self._names = self._names
            self.group = self._find(name)
            self.left = self._able(self.group)
            if self._any_fit(now):
                return True
        return False

    def _is_fit(self, group: Group, now: float) -> bool:
        able = self._able(group)
        return bool(able) and bool(fittest(group.targets, able, now))

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


def _filtered(answer: Batch, request: Request) -> bool:
    """Was a filter the end of each choice?"""
    if not isinstance(request, Chat):
        return False
    ends = [event.reason for event in answer if type(event) is Finished]
    return len(ends) == request.n and all(reason == "content_filter" for reason in ends)

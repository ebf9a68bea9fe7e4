"""What a level's requests took in the last 60 seconds, and how many run. Pure: every time is an argument.

Theory of operation. Time is cut into slots of a second. What is taken is noted in its slot, and the slot is forgotten
as a whole when everything in it is older than 60 seconds: a slot `s` counts until `s + 61`. So no 60 seconds ever hold
more than was let in by the sum of 61 slots, and whatever is given back too late is so by less than one slot.

An estimate that was too high is taken back from the slot it stands in, if that still counts. What an answer took
beyond its estimate is noted when that is known, in the present slot, and may exceed the limit: then nobody is let in
until enough is forgotten. It is not noted in the request's own slot: answers of more than a minute would go free.

A slot is a ring's element: 61 pairs of numbers a level, however many requests there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from llmg.core.limits import SPAN

SLOTS: Final = SPAN + 1

Counted = Literal["requests", "tokens"]


class Told:
    """What all processes together had taken in a slot of ours, and what this one let in alone since."""

    __slots__ = ("own", "slot", "taken")

    def __init__(self, slot: int, requests: int, tokens: int) -> None:
        self.slot = slot
        self.taken: dict[Counted, int] = {"requests": requests, "tokens": tokens}
        self.own: dict[Counted, int] = {"requests": 0, "tokens": 0}

    def add(self, requests: int, tokens: int) -> None:
        """This process let that in, or gives it back."""
        self.own["requests"] += requests
        self.own["tokens"] += tokens


class Window:
    """The counts of one level, since `slot`. `held`: requests that run. `told`: of all processes, where there are more.

    Slots are whole seconds; none goes back.
    """

    __slots__ = ("_latest", "_newest", "_requests", "_tokens", "held", "requests", "tokens", "told")

    def __init__(self, slot: int) -> None:
        self._requests = [0] * SLOTS
        self._tokens = [0] * SLOTS
        self._latest = slot
        self._newest = slot  # with something in it
        self.requests = 0
        self.tokens = 0
        self.held = 0
        self.told: Told | None = None

    def advance(self, slot: int) -> None:
        """It is that late now: forgets what is too old."""
        if slot <= self._latest:
            return
        for passed in range(max(self._latest + 1, slot - SPAN), slot + 1):
            place = passed % SLOTS
            self.requests -= self._requests[place]
            self.tokens -= self._tokens[place]
            self._requests[place] = self._tokens[place] = 0
        self._latest = slot
        if self.told is not None and slot - self.told.slot >= SLOTS:
            self.told = None  # nothing of what was taken then counts any more

    def add(self, slot: int, requests: int, tokens: int) -> None:
        """Notes what was taken (or, less than 0, is given back) in a slot up to the latest. One too old is ignored."""
        if slot <= self._latest - SLOTS:
            return
        place = slot % SLOTS
        self._requests[place] += requests
        self._tokens[place] += tokens
        self.requests += requests
        self.tokens += tokens
        if slot > self._newest:
            self._newest = slot

    def wait(self, now: float, requests: int, tokens: int) -> float:
        """Seconds until so many fewer of each are counted; not more than there are."""
        for slot in range(self._latest - SPAN, self._latest + 1):
            requests -= self._requests[slot % SLOTS]
            tokens -= self._tokens[slot % SLOTS]
            if requests <= 0 and tokens <= 0:
                return slot + SLOTS - now
        raise ValueError("more than there are")

    def reset(self, now: float) -> float:
        """Seconds until nothing is counted."""
        return max(0.0, self._newest + SLOTS - now) if self.requests or self.tokens else 0.0

    def idle(self, slot: int) -> bool:
        """Is there nothing to remember when it is that late? Looks at no slot, as there may be many levels."""
        return not self.held and slot - self._newest >= SLOTS and (self.told is None or slot - self.told.slot >= SLOTS)

    def slots(self) -> Iterator[tuple[int, int, int]]:
        """What is counted: slot, requests, tokens."""
        for slot in range(self._latest - SPAN, self._latest + 1):
            requests, tokens = self._requests[slot % SLOTS], self._tokens[slot % SLOTS]
            if requests or tokens:
                yield slot, requests, tokens

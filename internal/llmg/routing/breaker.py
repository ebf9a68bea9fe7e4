"""The circuit breaker of one target: no calls for a while to one that fails. Pure: every time is an argument.

Theory of operation. A call takes a ticket when it begins, and gives it back with its outcome. A ticket is the number
of the state it was taken in; an outcome whose state is over tells nothing about the present one, and is dropped.
So the failures of calls that were on their way when the circuit opened can't close, or open, it again.

| state     | a call may begin                      | it succeeds                | it fails                   |
|-----------|---------------------------------------|----------------------------|----------------------------|
| closed    | yes                                   | counted                    | counted; too many: open    |
| open      | when `open_for` is over: half-open    | dropped: its state is over | dropped: its state is over |
| half-open | while fewer than `probes` are at work | `probes` of them: closed,  | open                       |
|           |                                       | on probation               |                            |

On probation the counts begin anew, but the next failure opens the circuit, unless a success comes first: a probe has
passed when its answer begins, which does not say that it will end well.
A call that says nothing about the target (its client left) only gives its place among the probes back. `begin` does
not refuse: who has no better target left may begin a call of an open one, which makes it half-open before its time; so
does `relent`, where something else says that the target is there again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

_SLICES: Final = 10  # of the sliding window: it moves on by a tenth of itself


class Limits(Struct, frozen=True, kw_only=True):
    """When a circuit opens, and for how long. Times in seconds.

    It opens when `failure_ratio` of the calls that ended within `window` failed, if they are `min_calls` at least, or
    when `consecutive` failed one after the other; if it is `enabled`.
    """

    enabled: bool = True
    failure_ratio: float = 0.5
    min_calls: int = 20
    window: float = 30.0
    consecutive: int = 5
    open_for: float = 5.0
    probes: int = 1


class State(StrEnum):
    """See the table above."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The state of one target. Not for several threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._window = Window(limits.window)
        self._ticket = 0  # how many states there were before this one
        self._in_a_row = 0  # failures, since the last success
        self._probing = 0  # calls at work, while half-open
        self._passed = 0  # probes that succeeded
        self.state = State.CLOSED
        self.opened = 0.0  # when it opened last, in seconds
        self.openings = 0  # how often it did

    def retry_after(self, now: float) -> float:
        """Seconds until an open circuit lets a probe through; 0: a call may begin, or when a probe has ended."""
        return max(0.0, self.opened + self._limits.open_for - now) if self.state is State.OPEN else 0.0

    def allows(self, now: float) -> bool:
        """May a call begin?"""
        if self.state is State.CLOSED:
            return True
        if self.state is State.HALF_OPEN:
            return self._probing < self._limits.probes
        return now >= self.opened + self._limits.open_for

    def begin(self) -> int:
        """A call begins, whether or not it may. The ticket to be given back with its outcome."""
        if self.state is not State.CLOSED:
            if self.state is State.OPEN:
                self._move(State.HALF_OPEN)
            self._probing += 1
        return self._ticket

    def succeeded(self, ticket: int, now: float) -> None:
        """The call was answered."""
        if ticket != self._ticket:
            return
        if self.state is State.CLOSED:
            self._in_a_row = 0
            self._window.count(now, failed=False)
            return
        self._probing -= 1
        self._passed += 1
        if self._passed >= self._limits.probes:
            self._window.clear()
            self._move(State.CLOSED)
            self._in_a_row = self._limits.consecutive - 1

    def failed(self, ticket: int, now: float) -> None:
        """It was not, and that was the target's fault."""
        if ticket != self._ticket or not self._limits.enabled:
            return
        if self.state is State.CLOSED:
            self._in_a_row += 1
            self._window.count(now, failed=True)
            if not self._too_many(now):
                return
        self.opened = now
        self.openings += 1
        self._move(State.OPEN)

    def relent(self) -> None:
        """An open circuit becomes half-open before its time."""
        if self.state is State.OPEN:
            self._move(State.HALF_OPEN)

    def dropped(self, ticket: int) -> None:
        """It ended without telling anything about the target."""
        if ticket == self._ticket and self.state is State.HALF_OPEN:
            self._probing -= 1

    def _too_many(self, now: float) -> bool:
        if self._in_a_row >= self._limits.consecutive:
            return True
        calls, failures = self._window.totals(now)
        return calls >= self._limits.min_calls and failures >= self._limits.failure_ratio * calls

    def _move(self, state: State) -> None:
        self.state = state
        self._ticket += 1
        self._in_a_row = self._probing = self._passed = 0


class Window:
    """Calls, and failures among them, of the last so many seconds, to a tenth of that."""

    def __init__(self, seconds: float) -> None:
        self._width = seconds / _SLICES
        self._calls = [0] * _SLICES
        self._failures = [0] * _SLICES
        self._latest = 0  # the number of the slice that `now` was in

    def count(self, now: float, *, failed: bool) -> None:
        """One more. Time does not go back."""
        index = self._advance(now)
        self._calls[index] += 1
        self._failures[index] += failed

    def totals(self, now: float) -> tuple[int, int]:
        """Calls, and failures."""
        self._advance(now)
        return sum(self._calls), sum(self._failures)

    def clear(self) -> None:
        """Forgets all."""
        self._calls = [0] * _SLICES
        self._failures = [0] * _SLICES

    def _advance(self, now: float) -> int:
        number = int(now / self._width)
        if number != self._latest:
            for passed in range(max(self._latest + 1, number - _SLICES + 1), number + 1):
                self._calls[passed % _SLICES] = self._failures[passed % _SLICES] = 0
            self._latest = number
        return number % _SLICES

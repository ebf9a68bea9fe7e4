"""Time under a test's hand: a clock that stands still, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class FakeClock:
    """A `ports.Clock` that moves when told to. `monotonic` and `time` in seconds."""

    def __init__(self, monotonic: float = 1000.0, time: float = 1_760_000_000.0) -> None:
        self._monotonic = monotonic
        self._time = time

    def monotonic(self) -> float:
        """See `ports.Clock`."""
        return self._monotonic

    def time(self) -> float:
        """See `ports.Clock`."""
        return self._time

    def advance(self, seconds: float) -> None:
        """Later by so much."""
        self._monotonic += seconds
        self._time += seconds


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while there is work and leaps to the next timer when there is none.

    So an hour's time limit passes in no time, and exactly. Not for real I/O: what comes from outside comes too late.
    """

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Leaping(self._leap))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def _leap(self, seconds: float) -> None:
        self._now += seconds


class _Leaping(selectors.DefaultSelector):
    def __init__(self, leap: Any) -> None:
        super().__init__()
        self._leap = leap

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        if timeout and not ready:
            self._leap(timeout)
        return ready


def run_leaping(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a `LeapingLoop`."""
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(main)

"""Moving averages of how long each target takes."""

from __future__ import annotations

from math import exp

from llmg.ports import Clock

_FAILED = 10.0  # a failure counts as so many times the average of all


class Latencies:
    """For each target an exponentially weighted moving average, in seconds, weighted by time: after `decay` seconds a
    sample has lost 63 % of its weight, however many came since.

    With `peak`, a sample above the average becomes the average at once (peak EWMA, as in Twitter's Finagle): trouble
    is believed immediately, recovery slowly. Other than there, what is not renewed goes back to the average of all
    targets, not to 0: a target that was slow once is tried again, and one that hangs looks never better than most.
    """

    def __init__(self, count: int, clock: Clock, decay: float, *, peak: bool) -> None:
        self._clock = clock
        self._decay = decay
        self._peak = peak
        self._mean = 0.0  # of all targets
        self._mean_at = 0.0
        self.averages: list[float | None] = [None] * count
        """As they were when last renewed; None: nothing is known."""
        self._times = [0.0] * count

    def observe(self, index: int, seconds: float) -> None:
        """The target took so long."""
        now = self._clock.monotonic()
        self._mean = seconds if self._mean == 0 else self._mix(self._mean, seconds, now - self._mean_at)
        self._mean_at = now
        self._put(index, seconds, now)

    def fail(self, index: int, seconds: float) -> None:
        """The target failed after so long, which may have been very soon: that must not look well."""
        self._put(index, max(seconds, _FAILED * self._mean), self._clock.monotonic())

    def estimate(self, index: int, now: float) -> float:
        """Seconds to expect; 0 while nothing is known of any target."""
        average = self.averages[index]
        if average is None:
            return self._mean
        return self._mean + (average - self._mean) * exp((self._times[index] - now) / self._decay)

    def _put(self, index: int, seconds: float, now: float) -> None:
        average = self.averages[index]
        if average is None or (self._peak and seconds > self.estimate(index, now)):
            self.averages[index] = seconds
        else:
            self.averages[index] = self._mix(average, seconds, now - self._times[index])
        self._times[index] = now

    def _mix(self, old: float, new: float, since: float) -> float:
        return new + (old - new) * exp(-since / self._decay)

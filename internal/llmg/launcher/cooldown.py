"""How long a model that could not be started is left alone."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from llmg.core.errors import Failure
from llmg.ports import Clock, Spec

FIRST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 60.0


class _Refusal(Struct, frozen=True):
    failure: Failure
    seconds: float
    until: float


class Cooldowns:
    """One cooldown per spec: 1 s after a failure, doubling with each further one up to 60 s, gone on success."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._refusals: dict[Spec, _Refusal] = {}

    def check(self, spec: Spec) -> None:
        """Raises the last failure again while it is too early for another attempt, with `retry_after`."""
        refusal = self._refusals.get(spec)
        if refusal is None:
            return
        left = refusal.until - self._clock.monotonic()
        if left > 0:
            raise again(refusal.failure, retry_after=left)

    def failed(self, spec: Spec, failure: Failure) -> Failure:
        """Starts the cooldown; the failure with its `retry_after`."""
        last = self._refusals.get(spec)
        seconds = min(last.seconds * 2, MOST_SECONDS) if last else FIRST_SECONDS
        failure = again(failure, retry_after=seconds)
        self._refusals[spec] = _Refusal(failure, seconds, self._clock.monotonic() + seconds)
        return failure

    def succeeded(self, spec: Spec) -> None:
        """Forgets what failed before."""
        self._refusals.pop(spec, None)


def again(failure: Failure, retry_after: float | None = None) -> Failure:
    """The same failure to be raised once more: an exception raised by many tasks would gather all their tracebacks."""
    return Failure(
        failure.kind,
        failure.message,
        param=failure.param,
        code=failure.code,
        retry_after=failure.retry_after if retry_after is None else retry_after,
        detail=failure.detail,
        blame=failure.blame,
    )

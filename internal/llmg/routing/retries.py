"""Asking a target again that has failed: for which kinds, after which wait, and how often at all. Pure.

Another target is asked at once and without limit; asking the same again is for when no other is left. It has a budget,
so that an upstream in trouble is not given a multiple of its load: each request of the model pays a share of a token
in, and a retry takes a whole one out.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from llmg.core.errors import Kind
from llmg.ports import Random

RETRIED: Final[frozenset[Kind]] = frozenset(
    {
        Kind.UPSTREAM_UNAVAILABLE,
        Kind.UPSTREAM_TRUNCATED,
        Kind.UPSTREAM_ERROR,
    }
)
"""What may well be over a moment later.

Not: a time limit (the client has waited long enough), a rate limit (it says when), no room (the queue has waited), a
wrong key, model or protocol (they stay wrong), a crash (it may be the request that kills), nor anything that another
target would not be asked after.
"""

_BURST: Final = 10.0  # seconds of the budget's floor that may be saved up


class Limits(Struct, frozen=True, kw_only=True):
    """`max` retries of a request, after up to `backoff` seconds, then twice that, and so on up to `max_backoff`.

    `budget`: retries per request, of all the model's; `floor`: retries a second that there are at least.
    """

    max: int = 0
    backoff: float = 0.1
    max_backoff: float = 2.0
    budget: float = 0.2
    floor: float = 1.0


class Retries:
    """A model's retries: the token bucket of its budget, and the waits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._most = max(1.0, _BURST * limits.floor, _BURST * limits.budget)
        self._tokens = self._most
        self._filled = 0.0  # when the floor was paid last, in seconds

    def asked(self) -> None:
        """A request came: it pays its share."""
        self._tokens = min(self._most, self._tokens + self._limits.budget)

    def wait(self, done: int, now: float, deadline: float | None, random: Random) -> float | None:
        """Seconds to wait before the next retry of a request that has had `done`; None: there is none.

        The waits are drawn evenly from 0 to the backoff ("full jitter"), so that those who failed together don't come
        again together.
        """
        if done >= self._limits.max:
            return None
        seconds = random.random() * min(self._limits.max_backoff, self._limits.backoff * 2**done)
        if deadline is not None and now + seconds >= deadline:
            return None
        return seconds if self._take(now) else None

    def _take(self, now: float) -> bool:
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._limits.floor)
        self._filled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

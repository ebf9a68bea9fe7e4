"""What limits say: of what is left, and to whom they hold back. The same words wherever requests are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from llmg.core.errors import Failure, Kind
from llmg.core.levels import Level, Rate, Rates

SPAN: Final = 60
"""Seconds in which requests and tokens are counted."""

What = Literal["requests", "tokens", "concurrent"]
WHATS: Final[tuple[What, ...]] = ("requests", "tokens", "concurrent")

_WORDS: Final[dict[What, str]] = {
    "requests": "{} request{} a minute",
    "tokens": "{} token{} a minute",
    "concurrent": "{} request{} at the same time",
}


Use: TypeAlias = tuple[int, int, float]
"""Of a level: requests taken, tokens taken, seconds until all of it is there again."""


class LimitReached(Failure):
    """A request that a limit holds back: rate_limited. `rates`: what is left."""

    def __init__(self, message: str, rates: Rates, retry_after: float | None) -> None:
        super().__init__(Kind.RATE_LIMITED, message, retry_after=retry_after)
        self.rates = rates


def rates(levels: Sequence[Level], uses: Sequence[Use]) -> Rates:
    """What is left where the least is left. `uses` are the levels', in their order."""
    requests: Rate | None = None
    tokens: Rate | None = None
    for level, (requests_taken, tokens_taken, reset) in zip(levels, uses, strict=True):
        limits = level.limits
        if limits.requests is not None:
            requests = _tighter(requests, limits.requests, requests_taken, reset)
        if limits.tokens is not None:
            tokens = _tighter(tokens, limits.tokens, tokens_taken, reset)
    return Rates(requests=requests, tokens=tokens)


def _tighter(rate: Rate | None, limit: int, taken: int, reset: float) -> Rate:
    left = limit - taken if limit > taken else 0  # answers may be longer than was thought
    return Rate(limit, left, reset) if rate is None or left < rate.remaining else rate


def reached(level: Level, what: What, rates: Rates, wait: float) -> LimitReached:
    """The failure of a request that finds this limit of this level reached, `wait` seconds before there is room.

    Nobody knows when one of those that run will end: then there is no retry_after.
    """
    message = f"the limit of {_limit(level, what)} is reached"
    return LimitReached(message, rates, None if what == "concurrent" else wait)


def check_size(levels: Sequence[Level], tokens: int) -> None:
    """Raises Failure (request_too_large) where a request of so many tokens can never be let in.

    Not rate_limited: clients try that again by themselves, which would be in vain.
    """
    for level in levels:
        limit = level.limits.tokens
        if limit is not None and tokens > limit:
            words = f"the request may take {tokens} tokens with its answer, more than the limit of"
            hint = "a shorter prompt or a lower max_tokens is needed"
            raise Failure(Kind.REQUEST_TOO_LARGE, f"{words} {_limit(level, 'tokens')}: {hint}")


def _limit(level: Level, what: What) -> str:
    number = getattr(level.limits, what)
    return f"{_WORDS[what].format(number, '' if number == 1 else 's')} of {level.name or 'the gateway'}"

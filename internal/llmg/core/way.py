"""What a client is told of its request's way, in no door's words: who answered, how long it took, what is left to it.

Times are told in milliseconds: in the queues of targets, and of upstreams, until the answer began or failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from llmg.core.context import Attempt, Context
from llmg.core.levels import Rate, Rates

HEADERS: Final = (
    "x-llmg-route",
    "x-llmg-policy",
    "x-llmg-attempts",
    "server-timing",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)
"""All that `headers` may give."""


def headers(context: Context) -> list[tuple[str, str]]:
    """As headers, or metadata: in printable ASCII. The number of attempts where it is not 1."""
    out: list[tuple[str, str]] = []
    trail = context.trail
    if trail:
        attempt = context.answering
        out.append(("x-llmg-route", context.route))
        if attempt.policy:
            out.append(("x-llmg-policy", attempt.policy))
        if len(trail) > 1:
            out.append(("x-llmg-attempts", str(len(trail))))
        times = _times(trail, attempt)
        if times is not None:
            out.append(("server-timing", f"queue;dur={times[0]:.1f}, upstream;dur={times[1]:.1f}"))  # W3C Server Timing
    if context.rates is not None:
        out += _limits(context.rates)
    return out


def facts(context: Context) -> dict[str, Any]:
    """As plain values: route, policy, attempts, queue_ms, upstream_ms, rate_limits; none that is not known."""
    out: dict[str, Any] = {}
    trail = context.trail
    if trail:
        attempt = context.answering
        out["route"] = context.route
        if attempt.policy:
            out["policy"] = attempt.policy
        out["attempts"] = len(trail)
        times = _times(trail, attempt)
        if times is not None:
            out["queue_ms"], out["upstream_ms"] = round(times[0], 1), round(times[1], 1)
    if context.rates is not None:
        out["rate_limits"] = {
            kind: {"limit": rate.limit, "remaining": rate.remaining, "reset": round(rate.reset, 3)}
            for kind, rate in _kinds(context.rates)
        }
    return out


def duration(seconds: float) -> str:
    """As OpenAI writes one: `120ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s`; never less than it is."""
    whole = -int(-seconds * 1000 // 1)  # milliseconds, rounded up
    if whole < 1000:
        return f"{whole}ms" if whole else "0s"
    minutes, rest = divmod(whole, 60_000)
    text = f"{rest / 1000:g}s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"


def _times(trail: list[Attempt], attempt: Attempt) -> tuple[float, float] | None:
    """Milliseconds in queues, and of upstreams with the waits between them; None: nobody has answered yet."""
    until = attempt.ended if attempt.committed is None else attempt.committed
    if until is None:
        return None
    queued = attempt.queued if len(trail) == 1 else sum([one.queued for one in trail])
    return queued * 1000, max(0.0, until - trail[0].started - queued) * 1000


def _kinds(rates: Rates) -> Iterator[tuple[str, Rate]]:
    if rates.requests is not None:
        yield "requests", rates.requests
    if rates.tokens is not None:
        yield "tokens", rates.tokens


def _limits(rates: Rates) -> Iterator[tuple[str, str]]:
    for kind, rate in _kinds(rates):
        yield f"x-ratelimit-limit-{kind}", str(rate.limit)
        yield f"x-ratelimit-remaining-{kind}", str(rate.remaining)
        yield f"x-ratelimit-reset-{kind}", duration(rate.reset)

"""Which way a request went, by its trailing metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What is left of a limit. `reset`: seconds until all of it is there again."""

    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True, slots=True)
class Way:
    """Which way a request went. `request_id` is what the gateway's log names it; `route` is PROVIDER/MODEL, the target
    that answered, after `attempts`, chosen by `policy`. `queue_ms`: how long it waited for a place at targets;
    `upstream_ms`: for the answer to begin. `rate_limits`: of `requests` and `tokens`, where there are any."""

    request_id: str | None = None
    route: str | None = None
    attempts: int = 1
    policy: str | None = None
    queue_ms: float | None = None
    upstream_ms: float | None = None
    rate_limits: Mapping[str, RateLimit] = field(default_factory=dict)


def way(trailers: Mapping[str, str]) -> Way:
    """By a call's trailing metadata. What can't be read is not known."""
    attempts = trailers.get("x-llmg-attempts", "1")
    times = {name: float(ms) for name, ms in _TIME.findall(trailers.get("server-timing", ""))}
    limits = {kind: _rate_limit(trailers, kind) for kind in ("requests", "tokens")}
    return Way(
        request_id=trailers.get("x-request-id"),
        route=trailers.get("x-llmg-route"),
        attempts=int(attempts) if attempts.isdecimal() else 1,
        policy=trailers.get("x-llmg-policy"),
        queue_ms=times.get("queue"),
        upstream_ms=times.get("upstream"),
        rate_limits={kind: limit for kind, limit in limits.items() if limit is not None},
    )


_TIME: Final = re.compile(r"(\w+);dur=(\d+(?:\.\d+)?)")
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?|(\d+)ms")  # as OpenAI's: 6m0s, 120ms


def _rate_limit(trailers: Mapping[str, str], kind: str) -> RateLimit | None:
    limit, left, reset = (trailers.get(f"x-ratelimit-{what}-{kind}", "") for what in ("limit", "remaining", "reset"))
    found = _DURATION.fullmatch(reset)
    if not (limit.isdecimal() and left.isdecimal() and found):
        return None
    hours, minutes, seconds, ms = (float(part or 0) for part in found.groups())
    return RateLimit(int(limit), int(left), hours * 3600 + minutes * 60 + seconds + ms / 1000)

"""From settings to what counts requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmg.boot.settings.limits import RateLimits
from llmg.boot.settings.limits import Redis as Config
from llmg.core.levels import UNLIMITED, Limits
from llmg.ports import Clock
from llmg.routing.limits.book import Book
from llmg.routing.limits.local import Local

if TYPE_CHECKING:
    from llmg.stores.limits import Shared
    from llmg.stores.redis import Redis


def limits_of(section: RateLimits) -> Limits:
    """A level's limits."""
    if section.unlimited:
        return UNLIMITED
    return Limits(
        requests=section.requests_per_minute, tokens=section.tokens_per_minute, concurrent=section.max_concurrent
    )


def make_redis(config: Config) -> Redis:
    """The process's connections to Redis, to be started and closed."""
    from llmg.stores.redis import Redis  # brings redis along

    return Redis(config.url.get_secret_value(), timeout=config.timeout, ca=str(config.ca) if config.ca else None)


def make_limiter(clock: Clock) -> Local:
    """A limiter of this process alone."""
    return Local(clock)


def make_shared_limiter(clock: Clock, redis: Redis, config: Config) -> Shared:
    """A limiter of all processes on that Redis, to be started after it and closed before it."""
    from llmg.stores.limits import Shared

    return Shared(redis, Book(), clock, on_failure=config.on_failure, prefix=config.prefix, lease=config.lease)

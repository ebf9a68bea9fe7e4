"""From settings to what keeps a target's troubles from its clients: its health, its queue, retries, fallbacks."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from llmg.boot.settings.models import Model
from llmg.boot.settings.models import Retries as Config
from llmg.boot.settings.providers import Resilience
from llmg.routing import breaker, queue, retries
from llmg.routing.health import Health


class State(Struct, frozen=True):
    """What is known of a provider's model, by whatever name it is asked for."""

    health: Health
    queue: queue.Queue | None


def make_state(config: Resilience) -> State:
    """Of a target that nothing is known of yet."""
    own = config.breaker
    limits = breaker.Limits(
        enabled=own.enabled,
        failure_ratio=own.failure_ratio,
        min_calls=own.min_calls,
        window=own.window,
        consecutive=own.consecutive,
        open_for=own.open_for,
        probes=own.probes,
    )
    places = queue.Limits(max_in_flight=config.max_in_flight, max_queue=config.max_queue, timeout=config.queue_timeout)
    health = Health(limits, config.max_cooldown)
    return State(health, queue.Queue(places, health.crowded) if config.max_in_flight else None)


def make_retries(config: Config) -> retries.Retries | None:
    """A model's retries; None: none at all."""
    if config.max == 0:
        return None
    return retries.Retries(
        retries.Limits(
            max=config.max,
            backoff=config.backoff,
            max_backoff=config.max_backoff,
            budget=config.budget,
            floor=config.floor,
        )
    )


def fallbacks(name: str, models: Mapping[str, Model]) -> tuple[str, ...]:
    """A model's fallbacks, after each of them its own: each once, and never the model itself."""
    found: dict[str, None] = {name: None}

    def add(of: str) -> None:
        for fallback in models[of].fallbacks if of in models else ():
            if fallback not in found:
                found[fallback] = None
                add(fallback)

    add(name)
    return tuple(found)[1:]

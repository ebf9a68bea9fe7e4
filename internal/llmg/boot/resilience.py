"""From settings to what keeps a target's troubles from its clients: health, checks, queue, retries, hedges."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Final
from urllib.parse import urljoin

import structlog
from msgspec import Struct

from llmg.boot.settings.fingerprint import fingerprint
from llmg.boot.settings.hedging import Hedge
from llmg.boot.settings.models import Retries as Config
from llmg.boot.settings.providers import BackendProvider, HealthCheck, OpenAIProvider, Provider, Resilience
from llmg.core.errors import Failure
from llmg.ports import Random
from llmg.providers.http import Transport
from llmg.providers.openai import Reach
from llmg.routing import breaker, hedge, probes, queue, retries
from llmg.routing.health import Change, Health

log = structlog.get_logger("llmg.health")


class State(Struct, frozen=True):
    """What is known of a provider's model, by whatever name it is asked for."""

    health: Health
    queue: queue.Queue | None


def make_state(config: Resilience, provider: str, model: str) -> State:
    """Of a target that nothing is known of yet. What becomes of it is logged."""
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
    health = Health(limits, config.max_cooldown, partial(_log_change, provider, model))
    if not config.max_in_flight:
        return State(health, None)
    queued = queue.Queue(places, health.crowded)
    health.waiting = lambda: queued.places.waiting
    return State(health, queued)


CHANGES: Final = {  # in the log
    None: "the target asked to be left alone",
    breaker.State.OPEN: "the target fails, and is left alone: its circuit is open",
    breaker.State.HALF_OPEN: "the target may be tried out: its circuit is half-open",
    breaker.State.CLOSED: "the target answers again: its circuit is closed",
}


def _log_change(provider: str, model: str, change: Change) -> None:
    """What repeats itself, as the trouble lasts, only for those who look closely: it may come with each request."""
    warns = change.circuit is breaker.State.OPEN
    level = log.debug if change.again else log.warning if warns else log.info
    told: dict[str, Any] = {}
    if change.seconds:
        told["again_in"] = round(change.seconds, 3)
    if change.failure is not None:
        told |= {"kind": change.failure.kind.value, "reason": change.failure.message}
    level(CHANGES[change.circuit], provider=provider, model=model, **told)


def make_prober(random: Random) -> probes.Prober:
    """Who makes the health checks that it is told, from `start` to `aclose`. Each change of an upstream is logged."""
    return probes.Prober(random, _log)


def checked(config: Provider) -> bytes | None:
    """What is asked for a provider's health check, and how: the same where that is. None: it has none."""
    if config.kind == "echo" or config.resilience.health_check is None:
        return None
    own = config.resilience.health_check
    return fingerprint(config.kind, _url(config, own) if config.kind == "openai" else config.address, own)


def make_check(
    name: str, of: Hashable, config: Provider, healths: Iterable[Health], transport: Transport, channels: Any
) -> probes.Check | None:
    """A provider's health check, for the `healths` of its targets; None: it has none.

    `of` is equal where name and settings are. `channels`: the backends' (`providers.backend.Channels`), if there are.
    """
    own = None if config.kind == "echo" else config.resilience.health_check
    if own is None:
        return None
    limits = probes.Limits(interval=own.interval, timeout=own.timeout, failures=own.failures, passes=own.passes)
    probe = PROBES[config.kind](config, own, transport, channels)
    return probes.Check(name=name, of=of, probe=probe, limits=limits, healths=tuple(healths))


def _reach_openai(config: OpenAIProvider, check: HealthCheck, transport: Transport, channels: Any) -> probes.Probe:
    return Reach(transport, _url(config, check), *config.credentials())


def _url(config: OpenAIProvider, check: HealthCheck) -> str:
    return f"{config.base_url}/models" if check.path is None else urljoin(config.base_url, check.path)


def _reach_backend(config: BackendProvider, check: HealthCheck, transport: Transport, channels: Any) -> probes.Probe:
    from llmg.providers import backend  # brings grpc along

    assert config.address is not None
    return backend.Reach(channels, config.address, config.token.get_secret_value() if config.token else "")


PROBES: Final[dict[str, Callable[[Any, HealthCheck, Transport, Any], probes.Probe]]] = {
    "openai": _reach_openai,
    "backend": _reach_backend,
}


def _log(upstream: str, failure: Failure | None) -> None:
    if failure is None:
        log.info("the upstream passes its health checks again", provider=upstream)
    else:
        log.warning(
            "the upstream fails its health checks",
            provider=upstream,
            kind=failure.kind.value,
            reason=failure.message,
            detail=failure.detail,
        )


def make_hedges(config: Hedge | None) -> hedge.Hedges | None:
    """A model's hedges; None: it has none."""
    if config is None:
        return None
    after = None if config.after == "p95" else config.after
    return hedge.Hedges(hedge.Limits(after=after, max=config.max, budget=config.budget))


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

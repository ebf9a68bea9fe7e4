"""From settings to health, queues, retries and fallbacks."""

from __future__ import annotations

from typing import Any

import pytest

from llmg.boot import build, resilience
from llmg.boot.settings import Settings
from llmg.boot.settings.models import Model, Retries
from llmg.boot.settings.providers import Breaker, Resilience
from llmg.core.errors import Failure, Kind
from llmg.providers.http import Transport
from llmg.routing.breaker import State
from llmg.routing.queue import Queued
from llmg.routing.router import Models, Target

UP = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
NOW = 1000.0
FAULT = Failure(Kind.UPSTREAM_ERROR, "words")


def _target(**fields: Any) -> dict[str, Any]:
    return {"targets": [{"provider": "up", "model": "theirs"}], **fields}


def _models(models: dict[str, Any], **provider: Any) -> Models:
    config: dict[str, Any] = {"providers": {"up": {**UP, **provider}}, "models": models}
    return build.make_models(build.Needs(Settings(**config), Transport()), 1_760_000_000)


def _only(models: Models, name: str) -> Target:
    (target,) = models.find(name).targets
    return target


@pytest.mark.parametrize(
    ("breaker", "outcomes", "state"),
    [
        ({"consecutive": 3}, "--", State.CLOSED),
        ({"consecutive": 3}, "---", State.OPEN),
        ({"consecutive": 3, "enabled": False}, "---", State.CLOSED),
        ({"failure_ratio": 0.2, "min_calls": 5}, "++++-", State.OPEN),
        ({"failure_ratio": 0.3, "min_calls": 5}, "++++-", State.CLOSED),
        ({"failure_ratio": 0.2, "min_calls": 6}, "++++-", State.CLOSED),
        ({"failure_ratio": 0.2, "min_calls": 5, "window": 3.0}, "++++-", State.CLOSED),  # a second for each call
    ],
)
def test_what_opens_a_circuit(breaker: dict[str, Any], outcomes: str, state: State) -> None:
    health = resilience.make_state(Resilience(breaker=Breaker(**breaker))).health
    for second, outcome in enumerate(outcomes):
        health.ended(health.begin(), NOW + second, None if outcome == "+" else FAULT)
    assert health.breaker.state is state


def test_for_how_long_and_how_many_try_then() -> None:
    config = Resilience(breaker=Breaker(consecutive=1, open_for=7.0, probes=2))
    health = resilience.make_state(config).health
    health.ended(health.begin(), NOW, FAULT)
    assert (health.fit(NOW + 6.9), health.fit(NOW + 7)) == (False, True)
    fit = []
    for _ in range(2):
        health.begin()
        fit.append(health.fit(NOW + 7))
    assert fit == [True, False]


def test_the_longest_cooldown() -> None:
    health = resilience.make_state(Resilience(max_cooldown=3.0)).health
    health.ended(health.begin(), NOW, Failure(Kind.UPSTREAM_RATE_LIMITED, "words", retry_after=60.0))
    assert (health.fit(NOW + 2.9), health.fit(NOW + 3)) == (False, True)


def test_retries() -> None:
    assert resilience.make_retries(Retries(max=0)) is None
    assert resilience.make_retries(Retries()) is not None


async def test_a_target_is_the_same_by_whatever_name() -> None:
    models = _models({"a": _target(), "b": _target()})
    assert _only(models, "a").health is _only(models, "b").health is _only(models, "up/theirs").health
    assert _only(models, "up/other").health is not _only(models, "a").health
    assert "other" not in str(models.declared())


async def test_places_only_where_they_are_counted() -> None:
    counted = _only(_models({"m": _target()}, resilience={"max_in_flight": 1}), "m")
    assert isinstance(counted.inner, Queued)
    assert not isinstance(_only(_models({"m": _target()}), "m").inner, Queued)


async def test_fallbacks_and_theirs() -> None:
    names = {"m": ["a", "b"], "a": ["c", "up/x"], "b": ["c", "d"], "c": [], "d": []}
    models = _models({name: _target(fallbacks=fallbacks) for name, fallbacks in names.items()})
    assert models.find("m").fallbacks == ("a", "c", "up/x", "b", "d")
    assert models.find("c").fallbacks == ()


def test_fallbacks_in_a_circle_end() -> None:
    circle = {"a": "b", "b": "c", "c": "a"}
    models = {name: Model(**_target(fallbacks=(other,))) for name, other in circle.items()}
    assert resilience.fallbacks("a", models) == ("b", "c")


async def test_what_else_leads_to_fallbacks() -> None:
    models = _models({"m": _target(fallback_on=["content_filtered"])})
    assert models.find("m").fallback_on == {Kind.CONTENT_FILTERED}

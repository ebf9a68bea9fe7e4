"""What tells pieces of the configuration apart."""

from __future__ import annotations

from typing import Any

import pytest

from llmg.boot.settings import OpenAIProvider
from llmg.boot.settings.fingerprint import fingerprint
from llmg.boot.settings.models import FlatModel

TARGET = {"provider": "up", "model": "m"}
SECRET = "sk-4711-do-not-print"


def model(**more: Any) -> FlatModel:
    """With one target, if nothing else is said."""
    return FlatModel.model_validate({"targets": [TARGET], **more})


def provider(**more: Any) -> OpenAIProvider:
    """At some address."""
    return OpenAIProvider.model_validate({"kind": "openai", "base_url": "http://a/v1", **more})


@pytest.mark.parametrize(
    "said",
    [
        {"policy": "weighted"},
        {"retries": {"max": 1}},
        {"timeouts": {}},
        {"hedge": None},
        {"fallbacks": []},
        {"targets": [{**TARGET, "weight": 1, "resilience": {"breaker": {}}, "labels": {}}]},
    ],
)
def test_it_is_the_same_whether_a_default_is_said_or_not(said: dict[str, Any]) -> None:
    assert fingerprint(model(**said)) == fingerprint(model())


def test_it_is_another_for_all_that_differs() -> None:
    others = [
        model(),
        model(policy="round_robin"),
        model(retries={"max": 2}),
        model(timeouts={"total": 1}),
        model(timeouts={"idle": 1}),
        model(fallbacks=["f"]),
        model(targets=[TARGET, TARGET]),
        model(targets=[{**TARGET, "model": "n"}]),
        model(targets=[{**TARGET, "resilience": {"max_queue": 0}}]),
        model(targets=[{**TARGET, "resilience": {"max_in_flight": 0}}]),
        model(targets=[{**TARGET, "labels": {"a": "b"}}]),
        provider(),
        provider(base_url="http://b/v1"),
        provider(api_key=SECRET),
        provider(api_key=SECRET + "2"),
        provider(headers={"a": SECRET}),
        provider(headers={"b": SECRET}),
        provider(resilience={"breaker": {"enabled": False}}),
    ]
    assert len({fingerprint(one) for one in others}) == len(others)
    assert fingerprint(model(), model()) != fingerprint(model())

"""What a client learns of a request's way from trailing metadata, whoever wrote it."""

from __future__ import annotations

from typing import Any

import pytest

from llmg.client.way import RateLimit, Way, way


@pytest.mark.parametrize(
    ("trailers", "expected"),
    [
        ({}, {}),
        (
            {"x-request-id": "r", "x-llmg-route": "p/m", "x-llmg-policy": "p2c", "x-llmg-attempts": "3"},
            {"request_id": "r", "route": "p/m", "policy": "p2c", "attempts": 3},
        ),
        ({"x-llmg-attempts": "many"}, {}),
        ({"server-timing": "queue;dur=1.2, upstream;dur=340.5"}, {"queue_ms": 1.2, "upstream_ms": 340.5}),
        ({"server-timing": "cache;desc=x, upstream;dur=3"}, {"upstream_ms": 3.0}),
        ({"server-timing": "queue;dur=soon"}, {}),
    ],
)
def test_what_is_told(trailers: dict[str, str], expected: dict[str, Any]) -> None:
    assert way(trailers) == Way(**expected)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("0s", 0.0), ("120ms", 0.12), ("1s", 1.0), ("8.64s", 8.64), ("6m0s", 360.0), ("1h1m1.5s", 3661.5), ("soon", None)],
)
def test_limits(reset: str, seconds: float | None) -> None:
    given = {"x-ratelimit-limit-tokens": "9", "x-ratelimit-remaining-tokens": "8", "x-ratelimit-reset-tokens": reset}
    expected = {} if seconds is None else {"tokens": RateLimit(9, 8, pytest.approx(seconds))}
    assert way(given).rate_limits == expected


def test_a_limit_that_is_told_in_part_is_none() -> None:
    assert way({"x-ratelimit-limit-requests": "9", "x-ratelimit-reset-requests": "1s"}).rate_limits == {}

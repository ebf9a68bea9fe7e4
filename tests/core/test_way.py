"""What is told of a request's way: names, times, limits."""

from __future__ import annotations

from typing import Any

import pytest

from llmg.core import way
from llmg.core.context import Attempt, Context
from llmg.core.levels import Rate, Rates
from llmg.testing.conformance import a_context


def _context(*trail: Attempt, rates: Rates | None = None) -> Context:
    return a_context(trail=list(trail), rates=rates)


def _attempt(model: str = "m", **fields: Any) -> Attempt:
    return Attempt(provider="p", model=model, **{"started": 1.0, "policy": "p2c", **fields})


def test_nothing_of_what_has_not_been() -> None:
    assert way.headers(_context()) == []
    assert way.facts(_context()) == {}
    under_way = _context(Attempt(provider="p", model="m", started=1.0))
    assert way.headers(under_way) == [("x-llmg-route", "p/m")]
    assert way.facts(under_way) == {"route": "p/m", "attempts": 1}


def test_one_that_was_answered() -> None:
    context = _context(_attempt(queued=0.0012, committed=1.3417, ended=9.0))
    assert way.headers(context) == [
        ("x-llmg-route", "p/m"),
        ("x-llmg-policy", "p2c"),
        ("server-timing", "queue;dur=1.2, upstream;dur=340.5"),
    ]
    assert way.facts(context) == {
        "route": "p/m",
        "policy": "p2c",
        "attempts": 1,
        "queue_ms": 1.2,
        "upstream_ms": 340.5,
    }


def test_one_that_nobody_answered() -> None:
    context = _context(_attempt("a", queued=0.5, ended=2.0), _attempt("b", started=2.5, queued=0.25, ended=4.0))
    assert dict(way.headers(context)) == {
        "x-llmg-route": "p/b",
        "x-llmg-policy": "p2c",
        "x-llmg-attempts": "2",
        "server-timing": "queue;dur=750.0, upstream;dur=2250.0",
    }


def test_of_several_at_once_the_one_that_answered() -> None:
    context = _context(_attempt("a", committed=1.5), _attempt("b", started=1.2, ended=1.5, policy="other"))
    assert dict(way.headers(context)) == {
        "x-llmg-route": "p/a",
        "x-llmg-policy": "p2c",
        "x-llmg-attempts": "2",
        "server-timing": "queue;dur=0.0, upstream;dur=500.0",
    }


def test_what_is_left() -> None:
    context = _context(rates=Rates(requests=Rate(600, 599, 0.1), tokens=Rate(100_000, 0, 60.0)))
    assert way.headers(context) == [
        ("x-ratelimit-limit-requests", "600"),
        ("x-ratelimit-remaining-requests", "599"),
        ("x-ratelimit-reset-requests", "100ms"),
        ("x-ratelimit-limit-tokens", "100000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "1m0s"),
    ]
    assert way.facts(context)["rate_limits"] == {
        "requests": {"limit": 600, "remaining": 599, "reset": 0.1},
        "tokens": {"limit": 100_000, "remaining": 0, "reset": 60.0},
    }
    assert way.facts(_context(rates=Rates(tokens=Rate(1, 1, 0.0)))) == {
        "rate_limits": {"tokens": {"limit": 1, "remaining": 1, "reset": 0.0}}
    }


def test_all_names_are_listed() -> None:
    rates = Rates(requests=Rate(1, 1, 0.0), tokens=Rate(1, 1, 0.0))
    context = _context(_attempt(ended=2.0), _attempt(ended=2.0), rates=rates)
    assert [name for name, _ in way.headers(context)] == list(way.HEADERS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90_061.5, "25h1m1.5s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert way.duration(seconds) == text

"""Retries: the waits, and the budget that keeps them a fraction of the load."""

from __future__ import annotations

import random

import pytest

from llmg.core.errors import FAILS_OVER
from llmg.routing.retries import RETRIED, Limits, Retries

NOW = 1000.0


class Loaded:
    """Dice that always fall the same."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self) -> float:
        return self._value


MOST = Loaded(0.999)


def test_what_is_retried_fails_over_too() -> None:
    assert RETRIED < FAILS_OVER


@pytest.mark.parametrize(("done", "most"), [(0, 0.1), (1, 0.2), (2, 0.4), (3, 0.5), (9, 0.5)])
def test_the_wait_doubles_up_to_its_maximum_and_is_drawn_from_all_of_it(done: int, most: float) -> None:
    retries = Retries(Limits(max=10, backoff=0.1, max_backoff=0.5))
    assert retries.wait(done, NOW, None, MOST) == pytest.approx(0.999 * most)
    assert retries.wait(done, NOW, None, Loaded(0.0)) == 0.0


def test_the_waits_are_spread_evenly() -> None:
    retries = Retries(Limits(max=1, backoff=1.0, floor=1e9))
    dice = random.Random(7)
    waits = [retries.wait(0, NOW, None, dice) or 0.0 for _ in range(10_000)]
    assert [sum(place <= wait * 10 < place + 1 for wait in waits) for place in range(10)] == pytest.approx(
        [1000] * 10, abs=120
    )


def test_no_more_than_the_maximum() -> None:
    retries = Retries(Limits(max=2))
    assert [retries.wait(done, NOW, None, MOST) is not None for done in range(4)] == [True, True, False, False]


def test_none_that_would_come_after_the_deadline() -> None:
    retries = Retries(Limits(max=1, backoff=1.0))
    assert retries.wait(0, NOW, NOW + 0.5, MOST) is None
    assert retries.wait(0, NOW, NOW + 1.5, MOST) is not None


@pytest.mark.parametrize(("budget", "expected"), [(0.2, 200), (0.0, 0), (1.0, 1000)])
def test_in_the_long_run_a_share_of_the_requests(budget: float, expected: int) -> None:
    retries = Retries(Limits(max=1, budget=budget, floor=0.0))
    granted = 0
    for _ in range(1000):
        retries.asked()
        granted += retries.wait(0, NOW, None, MOST) is not None
    assert granted == pytest.approx(expected, abs=10)  # what may be saved up


def test_without_load_the_floor() -> None:
    retries = Retries(Limits(max=1, budget=0.0, floor=2.0))
    granted = sum(retries.wait(0, NOW + step / 10, None, MOST) is not None for step in range(1000))
    assert granted == pytest.approx(2.0 * 100, abs=21)

"""Limits of this process alone: all levels or none, and what is said to whom they hold back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.errors import Failure, Kind
from llmg.core.levels import Level, Limits, Rate, Rates
from llmg.core.limits import LimitReached
from llmg.routing.limits.book import Book, Entry
from llmg.routing.limits.local import Local, Reserved
from llmg.testing.clocks import FakeClock


def _path(*limits: Limits) -> list[Level]:
    names = ("", "tenants/acme", "tenants/acme/teams/search", "tenants/acme/teams/search/endpoints/web")
    return [Level(name=name, limits=one) for name, one in zip(names, limits, strict=False)]


LIMITS = st.builds(
    Limits,
    requests=st.none() | st.integers(1, 6),
    tokens=st.none() | st.integers(10, 60),
    concurrent=st.none() | st.integers(1, 4),
)


@given(st.lists(LIMITS, min_size=3, max_size=3), st.randoms(use_true_random=False))
def test_all_levels_or_none(limits: list[Limits], dice: random.Random) -> None:
    """Two tenants under one root: what one level refuses is counted at none."""
    root, left, right = (Level(name=name, limits=one) for name, one in zip(("", "l", "r"), limits, strict=True))
    book, now = Book(), 0.0
    admitted: list[tuple[float, int, Level]] = []
    running: list[tuple[Entry, Level]] = []
    for _ in range(40):
        now += dice.choice([0.0, 0.0, 0.5, 20.0])
        if running and dice.random() < 0.4:
            entry, _ = running.pop(dice.randrange(len(running)))
            book.settle(entry, entry.tokens, now)
        tenant, tokens = dice.choice([left, right]), dice.randint(1, 10)
        free = all(_room(level, admitted, running, tokens, now) for level in (root, tenant))
        try:
            entry = book.admit([root, tenant], tokens, now)
        except LimitReached:
            assert not free
        else:
            assert free
            admitted.append((now, tokens, tenant))
            running.append((entry, tenant))


def _room(
    level: Level,
    admitted: list[tuple[float, int, Level]],
    running: list[tuple[Entry, Level]],
    tokens: int,
    now: float,
) -> bool:
    """By lists of times, the slot's rounding included."""
    mine = [took for at, took, tenant in admitted if level.name in ("", tenant.name) and int(at) > int(now) - 61]
    held = sum(level.name in ("", tenant.name) for _, tenant in running)
    limits = level.limits
    return (
        (limits.requests is None or len(mine) < limits.requests)
        and (limits.tokens is None or sum(mine) + tokens <= limits.tokens)
        and (limits.concurrent is None or held < limits.concurrent)
    )


async def _take(limiter: Local, levels: list[Level], tokens: int = 0, times: int = 1) -> list[Reserved]:
    return [await limiter.reserve(levels, tokens) for _ in range(times)]


@pytest.mark.parametrize(
    ("limits", "tokens", "times", "message", "retry_after"),
    [
        ((Limits(requests=1),), 0, 1, "the limit of 1 request a minute of the gateway is reached", 61.0),
        (
            (Limits(requests=9), Limits(requests=3)),
            0,
            3,
            "the limit of 3 requests a minute of tenants/acme is reached",
            61.0,
        ),
        (
            (Limits(), Limits(tokens=50)),
            20,
            2,
            "the limit of 50 tokens a minute of tenants/acme is reached",
            61.0,
        ),
        (
            (Limits(), Limits(), Limits(concurrent=2)),
            0,
            2,
            "the limit of 2 requests at the same time of tenants/acme/teams/search is reached",
            None,
        ),
        (
            (Limits(concurrent=2), Limits(requests=2)),
            0,
            2,
            "the limit of 2 requests a minute of tenants/acme is reached",
            61.0,
        ),
    ],
)
async def test_who_is_held_back_is_told_by_what(
    limits: tuple[Limits, ...], tokens: int, times: int, message: str, retry_after: float | None
) -> None:
    limiter = Local(FakeClock())
    levels = _path(*limits)
    await _take(limiter, levels, tokens, times)
    with pytest.raises(LimitReached) as raised:
        await limiter.reserve(levels, tokens)
    assert (raised.value.message, raised.value.kind) == (message, Kind.RATE_LIMITED)
    assert raised.value.retry_after == retry_after


async def test_it_is_named_what_lasts_longest() -> None:
    clock = FakeClock()
    limiter = Local(clock)
    root, tenant = _path(Limits(requests=1), Limits(requests=2))
    await limiter.reserve([tenant], 0)
    clock.advance(10.0)
    await limiter.reserve([root, tenant], 0)
    with pytest.raises(LimitReached, match="of the gateway") as raised:
        await limiter.reserve([root, tenant], 0)
    assert raised.value.retry_after == 61.0  # that of tenants/acme would have been 51


async def test_a_request_that_can_never_be_let_in_is_told_so() -> None:
    limiter = Local(FakeClock())
    with pytest.raises(Failure) as raised:
        await limiter.reserve(_path(Limits(tokens=1000), Limits(tokens=100)), 101)
    assert raised.value.kind is Kind.REQUEST_TOO_LARGE
    assert raised.value.retry_after is None
    assert raised.value.message == (
        "the request may take 101 tokens with its answer, more than the limit of 100 tokens a minute of tenants/acme: "
        "a shorter prompt or a lower max_tokens is needed"
    )
    (taken,) = await _take(limiter, _path(Limits(tokens=1000), Limits(tokens=100)), 100)
    assert taken.rates.tokens == Rate(100, 0, 61.0)


async def test_what_is_left_is_that_of_the_level_with_the_least() -> None:
    limiter = Local(FakeClock())
    levels = _path(Limits(requests=10, tokens=50), Limits(requests=5), Limits(concurrent=9))
    first, second = await _take(limiter, levels, 20, 2)
    assert first.rates == Rates(requests=Rate(5, 4, 61.0), tokens=Rate(50, 30, 61.0))
    assert second.rates == Rates(requests=Rate(5, 3, 61.0), tokens=Rate(50, 10, 61.0))
    first.settle(5)
    second.settle(25)
    (third,) = await _take(limiter, levels, 10)
    assert third.rates == Rates(requests=Rate(5, 2, 61.0), tokens=Rate(50, 10, 61.0))


async def test_a_place_is_free_as_soon_as_it_is_given_back() -> None:
    limiter = Local(FakeClock())
    levels = _path(Limits(concurrent=1))
    for _ in range(3):
        (taken,) = await _take(limiter, levels)
        with pytest.raises(LimitReached, match="1 request at the same time"):
            await limiter.reserve(levels, 0)
        taken.settle(0)


async def test_where_only_the_number_at_a_time_is_limited_nothing_is_left_to_tell() -> None:
    (taken,) = await _take(Local(FakeClock()), _path(Limits(concurrent=1)))
    assert taken.rates == Rates()

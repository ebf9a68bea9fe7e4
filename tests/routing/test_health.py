"""A target's health: what each kind of failure says of it, cooldowns, and who is asked when."""

from __future__ import annotations

import pytest
from msgspec import Struct

from llmg.core.errors import FAILS_OVER, Failure, Kind
from llmg.routing.breaker import Limits, State
from llmg.routing.health import COOLS, VERDICTS, Health, Verdict, fittest, unfit

NOW = 1000.0
TOUCHY = Limits(consecutive=1, open_for=5.0)


def _health() -> Health:
    return Health(TOUCHY)


def _end(health: Health, kind: Kind | None, now: float = NOW, retry_after: float | None = None) -> Health:
    failure = None if kind is None else Failure(kind, "words", retry_after=retry_after)
    health.ended(health.begin(), now, failure)
    return health


def _open(now: float = NOW) -> Health:
    return _end(_health(), Kind.UPSTREAM_ERROR, now)


def _cooling(seconds: float = 7.0, kind: Kind = Kind.UPSTREAM_RATE_LIMITED) -> Health:
    return _end(Health(), kind, retry_after=seconds)


# -- the table ------------------------------------------------------------------------------------------------------


def test_each_kind_has_a_verdict() -> None:
    assert set(VERDICTS) == set(Kind)


def test_what_opens_a_circuit_fails_over() -> None:
    assert {kind for kind, verdict in VERDICTS.items() if verdict is Verdict.FAULT} <= FAILS_OVER


@pytest.mark.parametrize("kind", Kind)
def test_only_faults_open(kind: Kind) -> None:
    health = _end(_health(), kind)
    assert (health.breaker.state is State.OPEN) == (VERDICTS[kind] is Verdict.FAULT)
    assert health.calm == health.fit(NOW) == (VERDICTS[kind] is not Verdict.FAULT)


@pytest.mark.parametrize("kind", [None, *Kind])
def test_after_a_probe(kind: Kind | None) -> None:
    health = _end(_open(), kind, NOW + 6)
    verdict = Verdict.ALIVE if kind is None else VERDICTS[kind]
    states = {Verdict.ALIVE: State.CLOSED, Verdict.FAULT: State.OPEN, Verdict.NOTHING: State.HALF_OPEN}
    assert health.breaker.state is states[verdict]
    assert health.fit(NOW + 6) == (verdict is not Verdict.FAULT)


def test_a_probe_has_passed_when_it_begins_to_answer() -> None:
    health = _open()
    ticket = health.begin()
    health.committed(ticket, NOW + 6)
    assert (health.calm, health.breaker.state) == (True, State.CLOSED)
    health.ended(ticket, NOW + 60, None)
    assert health.calm


# -- cooldown -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(COOLS))
def test_who_asks_to_be_left_alone_is(kind: Kind) -> None:
    health = _cooling(7.0, kind)
    assert (health.calm, health.fit(NOW + 6.9), health.retry_after(NOW + 2)) == (False, False, 5.0)
    assert health.fit(NOW + 7.0)
    assert health.calm


@pytest.mark.parametrize("kind", sorted(set(Kind) - COOLS))
def test_others_ask_in_vain(kind: Kind) -> None:
    assert _cooling(7.0, kind).fit(NOW)


def test_no_longer_than_the_maximum() -> None:
    health = _end(Health(max_cooldown=60.0), Kind.UPSTREAM_RATE_LIMITED, retry_after=86_400.0)
    assert (health.fit(NOW + 59), health.fit(NOW + 60)) == (False, True)


def test_a_maximum_of_nothing() -> None:
    assert _end(Health(max_cooldown=0.0), Kind.UPSTREAM_RATE_LIMITED, retry_after=7.0).calm


def test_the_latest_time_holds() -> None:
    health = _end(_cooling(7.0), Kind.UPSTREAM_RATE_LIMITED, NOW + 1, retry_after=2.0)
    assert health.retry_after(NOW + 1) == 6.0


def test_a_success_meanwhile_does_not_end_it() -> None:
    health = Health()
    earlier = health.begin()
    _end(health, Kind.UPSTREAM_RATE_LIMITED, retry_after=7.0)
    health.ended(earlier, NOW + 1, None)
    assert (health.calm, health.fit(NOW + 1)) == (False, False)


# -- who is asked ---------------------------------------------------------------------------------------------------


class Spot(Struct, frozen=True):
    """A target as `fittest` sees it."""

    health: Health


def _crowded() -> Health:
    health = Health()
    health.crowded(True)
    return health


WELL = Spot(Health())
FULL = Spot(_crowded())
LIMITED = Spot(_cooling())


def _probed() -> Spot:
    health = _open()
    health.begin()
    return Spot(health)


CASES: dict[str, tuple[list[Spot], list[int]]] = {
    "all": ([WELL, WELL], [0, 1]),
    "an open one is left out": ([Spot(_open()), WELL], [1]),
    "one that cools down is left out": ([WELL, LIMITED], [0]),
    "a full one is left out": ([FULL, WELL], [1]),
    "a full one rather than an open one": ([Spot(_open()), FULL], [1]),
    "one whose time is over takes part": ([Spot(_open(NOW - 5)), WELL], [0, 1]),
    "one that is being probed does not": ([_probed(), WELL], [1]),
    "of open ones the one that opened first": ([Spot(_open(NOW - 1)), Spot(_open(NOW - 3)), LIMITED], [1]),
    "an open one rather than one being probed": ([_probed(), Spot(_open())], [1]),
    "none that cools down": ([LIMITED, LIMITED], []),
    "nor one that is open besides": ([Spot(_end(_health(), Kind.UPSTREAM_UNAVAILABLE, retry_after=7.0))], []),
    "no second probe": ([_probed()], []),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fittest(name: str) -> None:
    spots, expected = CASES[name]
    assert list(fittest(spots, range(len(spots)), NOW)) == expected


def test_one_with_a_free_place_again_is_like_any() -> None:
    health = _crowded()
    health.crowded(False)
    assert (health.calm, health.full) == (True, False)


def test_only_of_those_left() -> None:
    assert list(fittest([WELL, WELL, Spot(_open())], [1, 2], NOW)) == [1]


def test_without_trouble_nothing_is_copied() -> None:
    left = [0, 1]
    assert fittest([WELL, WELL], left, NOW) is left


def test_why_nobody_is_fit_and_until_when() -> None:
    failure = unfit([Spot(_cooling(7.0)), Spot(_cooling(3.0))], [0, 1], NOW)
    assert (failure.kind, failure.retry_after) == (Kind.UPSTREAM_RATE_LIMITED, 3.0)
    failure = unfit([Spot(_cooling(7.0)), _probed()], [0, 1], NOW)
    assert (failure.kind, failure.retry_after) == (Kind.UPSTREAM_UNAVAILABLE, 1.0)
    failure = unfit([Spot(_cooling(7.0, Kind.UPSTREAM_UNAVAILABLE))], [0], NOW)
    assert (failure.kind, failure.retry_after) == (Kind.UPSTREAM_UNAVAILABLE, 7.0)
    assert "left alone" in failure.message

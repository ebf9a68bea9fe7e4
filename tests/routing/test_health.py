"""A target's health: what each kind of failure says of it, cooldowns, and who is asked when."""

from __future__ import annotations

import pytest
from msgspec import Struct

from llmg.core.errors import FAILS_OVER, Failure, Kind
from llmg.routing.breaker import Limits, State
from llmg.routing.health import COOLS, VERDICTS, Change, Health, Status, Verdict, fittest, spare, unfit

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


# -- who hears of it ------------------------------------------------------------------------------------------------


class Told:
    """All that is told of a target."""

    def __init__(self, limits: Limits = TOUCHY) -> None:
        self.changes: list[Change] = []
        self.health = Health(limits, told=self.changes.append)

    @property
    def circuits(self) -> list[tuple[State | None, bool]]:
        """Their states, and whether again."""
        told = [(change.circuit, change.again) for change in self.changes]
        self.changes.clear()
        return told


def test_each_change_is_told_and_nothing_else() -> None:
    told = Told(Limits(consecutive=2, open_for=5.0))
    for _ in range(3):
        _end(told.health, None)
    _end(told.health, Kind.UPSTREAM_ERROR)
    assert told.circuits == []
    _end(told.health, Kind.UPSTREAM_ERROR)
    (change,) = told.changes
    assert (change.circuit, change.seconds, change.again) == (State.OPEN, 5.0, False)
    assert change.failure is not None
    assert change.failure.kind is Kind.UPSTREAM_ERROR
    assert told.circuits == [(State.OPEN, False)]
    ticket = told.health.begin()
    assert told.circuits == [(State.HALF_OPEN, False)]
    told.health.committed(ticket, NOW + 6)
    told.health.ended(ticket, NOW + 7, None)
    assert told.circuits == [(State.CLOSED, False)]


def test_what_is_more_of_the_same_trouble_is_told_as_that() -> None:
    told = Told()
    for second in range(3):
        _end(told.health, Kind.UPSTREAM_ERROR, NOW + second)
    assert told.circuits == [
        (State.OPEN, False),
        (State.HALF_OPEN, False),
        (State.OPEN, True),
        (State.HALF_OPEN, True),
        (State.OPEN, True),
    ]
    _end(told.health, None, NOW + 9)
    _end(told.health, None, NOW + 9)
    _end(told.health, Kind.UPSTREAM_ERROR, NOW + 10)
    assert told.circuits == [(State.HALF_OPEN, True), (State.CLOSED, False), (State.OPEN, False)]


def test_a_check_that_makes_a_circuit_half_open_is_told() -> None:
    told = Told()
    _end(told.health, Kind.UPSTREAM_ERROR)
    told.health.checked(passed=True, down=False)
    assert told.circuits == [(State.OPEN, False), (State.HALF_OPEN, False)]


def test_who_asks_to_be_left_alone_is_told_once() -> None:
    told = Told()
    for now, seconds in ((NOW, 7.0), (NOW + 1, 7.0), (NOW + 1, 2.0), (NOW + 9, 3.0)):
        _end(told.health, Kind.UPSTREAM_RATE_LIMITED, now, retry_after=seconds)
    assert [(change.seconds, change.again) for change in told.changes] == [(7.0, False), (7.0, True), (3.0, False)]
    assert told.circuits == [(None, False), (None, True), (None, False)]


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


# -- health checks --------------------------------------------------------------------------------------------------


def _down() -> Health:
    health = Health()
    health.checked(passed=False, down=True)
    return health


def test_who_is_down_is_asked_only_when_no_other_is_left() -> None:
    targets = [Spot(_down()), Spot(Health()), Spot(_down())]
    assert list(fittest(targets, [0, 1, 2], NOW)) == [1]
    assert list(fittest(targets, [0, 2], NOW)) == [0, 2]


def test_rather_than_one_whose_circuit_is_open() -> None:
    targets = [Spot(_open()), Spot(_down())]
    assert list(fittest(targets, [0, 1], NOW)) == [1]
    assert list(fittest(targets, [0, 1], NOW + 5)) == [0]


def test_a_check_that_passes_brings_back() -> None:
    health = _down()
    assert not health.fit(NOW)
    health.checked(passed=True, down=False)
    assert health.calm


def test_and_has_an_open_circuit_tried_out_before_its_time() -> None:
    health = _open()
    health.checked(passed=True, down=False)
    assert health.status(NOW).circuit is State.HALF_OPEN
    assert health.fit(NOW)
    health.begin()
    assert not health.fit(NOW)


def test_but_only_once_if_the_target_fails_all_the_same() -> None:
    health = _open()
    for _ in range(2):
        health.checked(passed=True, down=False)
        if health.status(NOW).circuit is State.HALF_OPEN:
            _end(health, Kind.UPSTREAM_ERROR)
    assert health.status(NOW).circuit is State.OPEN
    health.checked(passed=False, down=False)  # now it sees what is wrong
    health.checked(passed=True, down=False)
    assert health.status(NOW).circuit is State.HALF_OPEN


def test_once_more_when_it_had_been_well_meanwhile() -> None:
    health = _open()
    health.checked(passed=True, down=False)
    _end(health, None)
    health.checked(passed=True, down=False)
    _end(health, Kind.UPSTREAM_ERROR)
    assert health.status(NOW).circuit is State.OPEN
    health.checked(passed=True, down=False)
    assert health.status(NOW).circuit is State.HALF_OPEN


def test_no_check_shortens_a_cooldown() -> None:
    health = _cooling()
    health.checked(passed=True, down=False)
    assert not health.fit(NOW)


# -- what is known, and what need not be asked ----------------------------------------------------------------------


def test_the_status_of_one_that_is_well() -> None:
    health = Health()
    health.waiting = lambda: 2
    for _ in range(5):
        health.begin()
    assert health.status(NOW) == Status(
        circuit=State.CLOSED, opened=0, cooling=0.0, down=False, retry_after=0.0, in_flight=3, queued=2
    )


def test_the_status_of_one_in_trouble() -> None:
    health = _end(_open(), Kind.UPSTREAM_RATE_LIMITED, NOW, 7.0)
    health.checked(passed=False, down=True)
    _end(health, Kind.UPSTREAM_ERROR, NOW + 1)
    before = health.breaker.state
    assert health.status(NOW + 2) == Status(
        circuit=State.OPEN, opened=2, cooling=5.0, down=True, retry_after=5.0, in_flight=0, queued=0
    )
    assert health.breaker.state is before


def test_who_may_be_asked_though_he_need_not() -> None:
    full = Health()
    full.crowded(True)
    targets = [Spot(health) for health in (Health(), full, _open(), _cooling(), _down(), _open(NOW - 9))]
    assert spare(targets, range(6), NOW) == [0, 5]
    assert spare(targets, [1, 2, 3, 4], NOW) == []

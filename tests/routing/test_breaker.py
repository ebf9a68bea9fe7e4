"""The circuit breaker: its table row by row, the window, and what late outcomes may not do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmg.routing.breaker import Breaker, Limits, State, Window

NOW = 1000.0
LIMITS = Limits(failure_ratio=0.5, min_calls=10, window=30.0, consecutive=3, open_for=5.0, probes=1)


def _fail(breaker: Breaker, times: int, now: float = NOW) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin(), now)


def _opened(limits: Limits = LIMITS) -> Breaker:
    breaker = Breaker(limits)
    _fail(breaker, limits.consecutive)
    assert breaker.state is State.OPEN
    return breaker


def _half_open(limits: Limits = LIMITS) -> tuple[Breaker, int]:
    breaker = _opened(limits)
    return breaker, breaker.begin()


# -- closed ---------------------------------------------------------------------------------------------------------


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(LIMITS)
    _fail(breaker, 2)
    assert (breaker.state, breaker.allows(NOW)) == (State.CLOSED, True)
    _fail(breaker, 1)
    assert (breaker.state, breaker.allows(NOW), breaker.opened) == (State.OPEN, False, NOW)


def test_a_success_in_between_breaks_the_row() -> None:
    breaker = Breaker(LIMITS)
    for _ in range(3):
        _fail(breaker, 2)
        breaker.succeeded(breaker.begin(), NOW)
    assert breaker.state is State.CLOSED


def test_a_call_that_tells_nothing_does_not() -> None:
    breaker = Breaker(LIMITS)
    _fail(breaker, 2)
    breaker.dropped(breaker.begin())
    _fail(breaker, 1)
    assert breaker.state is State.OPEN


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("+-+-+-+-+", State.CLOSED),  # too few calls
        ("+-+-+-+-+-", State.OPEN),
        ("+-+-+-+-++", State.CLOSED),  # four of ten
        ("+-+-+-+-++-+-", State.CLOSED),  # six of thirteen
        ("+-+-+-+-++-+--", State.OPEN),  # seven of fourteen
    ],
)
def test_a_share_of_failures_opens_it(outcomes: str, state: State) -> None:
    breaker = Breaker(LIMITS)
    for outcome in outcomes:
        (breaker.succeeded if outcome == "+" else breaker.failed)(breaker.begin(), NOW)
    assert breaker.state is state


def test_only_the_calls_of_the_window_count() -> None:
    breaker = Breaker(LIMITS)
    for place in range(100):  # one failure in two, but never ten calls within thirty seconds
        now = NOW + place * 4.0
        (breaker.succeeded if place % 2 else breaker.failed)(breaker.begin(), now)
    assert breaker.state is State.CLOSED


def test_one_that_is_not_enabled_never_opens() -> None:
    breaker = Breaker(Limits(enabled=False))
    _fail(breaker, 1000)
    assert breaker.state is State.CLOSED


# -- open -----------------------------------------------------------------------------------------------------------


def test_open_it_lets_nobody_through_until_its_time_is_over() -> None:
    breaker = _opened()
    assert (breaker.allows(NOW + 4.9), breaker.retry_after(NOW + 2)) == (False, 3.0)
    assert (breaker.allows(NOW + 5.0), breaker.retry_after(NOW + 6)) == (True, 0.0)
    assert breaker.state is State.OPEN


def test_outcomes_of_calls_that_began_before_it_opened_are_dropped() -> None:
    breaker = Breaker(LIMITS)
    earlier = breaker.begin()
    _fail(breaker, 3)
    breaker.succeeded(earlier, NOW + 1)
    breaker.failed(earlier, NOW + 1)
    assert (breaker.state, breaker.opened) == (State.OPEN, NOW)


# -- half-open ------------------------------------------------------------------------------------------------------


def test_one_probe_at_a_time() -> None:
    breaker, _ = _half_open()
    assert (breaker.state, breaker.allows(NOW + 100)) == (State.HALF_OPEN, False)


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker, probe = _half_open()
    breaker.succeeded(probe, NOW + 6)
    assert (breaker.state, breaker.allows(NOW + 6)) == (State.CLOSED, True)


def test_then_the_next_failure_opens_it() -> None:
    breaker, probe = _half_open()
    breaker.succeeded(probe, NOW + 6)
    breaker.failed(probe, NOW + 7)  # its answer broke, but it is no longer the probe
    assert breaker.state is State.CLOSED
    _fail(breaker, 1, NOW + 8)
    assert (breaker.state, breaker.opened) == (State.OPEN, NOW + 8)


def test_unless_a_success_comes_first() -> None:
    breaker, probe = _half_open()
    breaker.succeeded(probe, NOW + 6)
    breaker.succeeded(breaker.begin(), NOW + 6)
    _fail(breaker, 2, NOW + 6)
    assert breaker.state is State.CLOSED


def test_what_was_counted_before_does_not_count_after() -> None:
    breaker = Breaker(Limits(failure_ratio=0.5, min_calls=10, consecutive=100))
    _fail(breaker, 10)
    breaker.succeeded(breaker.begin(), NOW + 1)
    assert breaker.state is State.CLOSED
    breaker.succeeded(breaker.begin(), NOW + 1)
    _fail(breaker, 1, NOW + 1)
    assert breaker.state is State.CLOSED


def test_a_probe_that_fails_opens_it_anew() -> None:
    breaker, probe = _half_open()
    breaker.failed(probe, NOW + 6)
    assert (breaker.state, breaker.allows(NOW + 10), breaker.allows(NOW + 11)) == (State.OPEN, False, True)


def test_a_probe_that_tells_nothing_makes_room_for_another() -> None:
    breaker, probe = _half_open()
    breaker.dropped(probe)
    assert (breaker.state, breaker.allows(NOW)) == (State.HALF_OPEN, True)


def test_outcomes_of_calls_from_before_do_not_decide_for_the_probe() -> None:
    breaker = Breaker(LIMITS)
    earlier = breaker.begin()
    _fail(breaker, 3)
    breaker.begin()
    for outcome in (breaker.succeeded, breaker.failed):
        outcome(earlier, NOW + 6)
    breaker.dropped(earlier)
    assert (breaker.state, breaker.allows(NOW + 6)) == (State.HALF_OPEN, False)


def test_several_probes_must_all_succeed() -> None:
    limits = Limits(consecutive=3, probes=2)
    breaker, first = _half_open(limits)
    second = breaker.begin()
    assert not breaker.allows(NOW)
    states = []
    for probe in (first, second):
        breaker.succeeded(probe, NOW)
        states.append(breaker.state)
    assert states == [State.HALF_OPEN, State.CLOSED]


# -- in general -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=60))
def test_the_window_counts_what_is_younger_than_it_and_nothing_older(steps: list[tuple[float, bool]]) -> None:
    window, now, calls = Window(10.0), NOW, []
    for wait, failed in steps:
        now += wait
        window.count(now, failed=failed)
        calls.append((now, failed))
    surely = [failed for when, failed in calls if when > now - 9.0]
    perhaps = [failed for when, failed in calls if when > now - 10.0]
    counted, failures = window.totals(now)
    assert len(surely) <= counted <= len(perhaps)
    assert sum(surely) <= failures <= sum(perhaps)


class Any(RuleBasedStateMachine):
    """Whatever calls do: probes are limited, and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(Limits(consecutive=2, min_calls=4, open_for=5.0, probes=2))
        self.now = NOW
        self.tickets: list[int] = []

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_call_comes(self) -> None:
        if self.breaker.allows(self.now):
            self.tickets.append(self.breaker.begin())

    @rule(data=st.data(), outcome=st.sampled_from(["succeeded", "failed", "dropped"]))
    def a_call_ends(self, data: st.DataObject, outcome: str) -> None:
        if self.tickets:
            ticket = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
            if outcome == "dropped":
                self.breaker.dropped(ticket)
            else:
                getattr(self.breaker, outcome)(ticket, self.now)

    @invariant()
    def it_is_never_stuck(self) -> None:
        """With no call at work, one may begin at the latest when `open_for` is over."""
        if not self.tickets:
            assert self.breaker.allows(self.now + 5.0)


TestAny = Any.TestCase

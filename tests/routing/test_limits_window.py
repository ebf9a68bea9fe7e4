"""Never more than the limit in any 60 seconds, and never less than a slot's worth of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.errors import Kind
from llmg.core.levels import Level, Limits, Rate
from llmg.core.limits import LimitReached
from llmg.routing.limits.book import Book, Entry
from llmg.routing.limits.window import SLOTS, Window

# Sixteenths of a second are exact in floating point; so is all that is computed from them.
GAPS = st.one_of(st.integers(0, 32), st.integers(0, 2000)).map(lambda sixteenths: sixteenths / 16)
ROOT = Limits(requests=7, tokens=100)


@dataclass
class Taken:
    """What a request took, as a list of times would have it."""

    at: float
    tokens: int
    more: list[tuple[float, int]] = field(default_factory=list)

    def within(self, since: float) -> int:
        """Tokens after a time, that time included."""
        return (self.tokens if self.at >= since else 0) + sum(tokens for at, tokens in self.more if at >= since)


@given(st.lists(st.tuples(GAPS, st.integers(1, 100)), max_size=80))
def test_never_more_than_the_limit_in_any_60_seconds_and_hardly_less(asked: list[tuple[float, int]]) -> None:
    book, level, now = Book(), Level(limits=ROOT), 5000.0
    admitted: list[tuple[float, int]] = []
    for gap, tokens in asked:
        now += gap
        answer = _ask(book, level, tokens, now)
        if isinstance(answer, LimitReached):
            # Those of the last 60 seconds and a slot leave no room.
            recent = [taken for at, taken in admitted if at > now - SLOTS]
            assert len(recent) == 7 or sum(recent) + tokens > 100
            assert answer.retry_after is not None
            _admitted_only_then(admitted, tokens, now, answer.retry_after)
        else:
            admitted.append((now, tokens))
            recent = [taken for at, taken in admitted if at >= now - 60]
            assert len(recent) <= 7
            assert sum(recent) <= 100


def _ask(book: Book, level: Level, tokens: int, now: float) -> Entry | LimitReached:
    try:
        return book.admit([level], tokens, now)
    except LimitReached as reached:
        return reached


def _admitted_only_then(admitted: list[tuple[float, int]], tokens: int, now: float, wait: float) -> None:
    """`retry_after` is exact: a book in the same state lets the request in then, and not a moment earlier."""
    level = Level(limits=ROOT)
    for early, expected in ((1 / 16, False), (0.0, True)):
        book = Book()
        for at, taken in admitted:
            book.count([level], taken, at)
        answer = _ask(book, level, tokens, now + wait - early)
        assert isinstance(answer, Entry) == expected


@given(st.lists(st.tuples(GAPS, st.integers(0, 9), st.integers(1, 60), st.integers(0, 90)), max_size=60))
def test_settled_with_the_truth(steps: list[tuple[float, int, int, int]]) -> None:
    """In each step the nth oldest request that runs is settled, or else another one is let in."""
    book, level, now = Book(), Level(limits=Limits(tokens=100)), 5000.0
    running: list[tuple[Entry, Taken]] = []
    all_taken: list[Taken] = []
    for gap, which, tokens, truth in steps:
        now += gap
        if which < len(running):
            entry, taken = running.pop(which)
            book.settle(entry, truth, now)
            if truth < taken.tokens:
                taken.tokens = truth
            else:
                taken.more.append((now, truth - taken.tokens))
            continue
        counted = sum(taken.within(int(now) - 60) for taken in all_taken)
        assert counted == sum(tokens for _, _, _, tokens in book.counts(now))
        try:
            entry = book.admit([level], tokens, now)
        except LimitReached:
            assert counted + tokens > 100
        else:
            assert counted + tokens <= 100
            taken = Taken(now, tokens)
            all_taken.append(taken)
            running.append((entry, taken))


def test_a_minute_and_a_slot_after_a_burst_all_of_it_is_there_again() -> None:
    book, level = Book(), Level(limits=Limits(requests=3))
    for _ in range(3):
        entry = book.admit([level], 0, 100.5)
    assert entry.rates.requests == Rate(3, 0, 60.5)
    with pytest.raises(LimitReached) as raised:
        book.admit([level], 0, 160.75)
    assert (raised.value.kind, raised.value.retry_after) == (Kind.RATE_LIMITED, 0.25)
    assert raised.value.rates.requests == Rate(3, 0, 0.25)
    assert [book.admit([level], 0, 161.0).rates.requests for _ in range(3)] == [Rate(3, n, 61.0) for n in (2, 1, 0)]


def test_an_answer_longer_than_thought_is_paid_for_by_those_that_come_after_it() -> None:
    book, level = Book(), Level(limits=Limits(tokens=100))
    entry = book.admit([level], 60, 100.0)
    book.settle(entry, 250, 400.0)  # it ran for five minutes
    with pytest.raises(LimitReached) as raised:
        book.admit([level], 1, 400.5)
    # 190 more than thought are known since then, and they are all of one slot.
    assert (raised.value.retry_after, raised.value.rates.tokens) == (60.5, Rate(100, 0, 60.5))
    assert book.admit([level], 100, 461.0).rates.tokens == Rate(100, 0, 61.0)


def test_what_is_given_back_after_a_minute_is_nothing() -> None:
    book, level = Book(), Level(limits=Limits(tokens=100))
    entry = book.admit([level], 60, 100.0)
    book.admit([level], 100, 161.0)
    book.settle(entry, 0, 161.0)
    assert list(book.counts(161.0)) == [("", 161, 1, 100)]


def test_idle_levels_are_forgotten_and_busy_ones_are_not() -> None:
    book = Book()
    running = book.admit([Level(name="busy", limits=Limits(concurrent=1))], 0, 0.0)
    for number in range(1000):
        book.count([Level(name=f"l{number}", limits=Limits(tokens=1))], 1, 0.5).windows[0].held -= 1
    assert len(book) == 1001
    book.settle(book.admit([Level(name="new", limits=Limits(requests=1))], 0, 200.0), 0, 200.0)
    assert len(book) == 2
    with pytest.raises(LimitReached, match="at the same time of busy"):
        book.admit([Level(name="busy", limits=Limits(concurrent=1))], 0, 201.0)
    book.settle(running, 0, 201.0)
    book.admit([Level(name="busy", limits=Limits(concurrent=1))], 0, 201.0)


def test_idle_levels_are_forgotten_without_a_look_at_their_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a hundred thousand, and all requests wait meanwhile."""
    book = Book()
    for number in range(1000):
        book.settle(book.count([Level(name=f"l{number}", limits=Limits(requests=1))], 0, 0.5), 0, 0.5)
    advanced: list[int] = []
    monkeypatch.setattr(Window, "advance", lambda window, slot: advanced.append(slot))
    book.count([Level(name="one")], 0, 61.0)
    assert (len(book), advanced) == (1, [])


def test_no_wait_frees_more_than_there_is() -> None:
    window = Window(10)
    window.add(10, 2, 5)
    assert window.wait(12.0, 2, 5) == 59.0
    with pytest.raises(ValueError, match="more than there are"):
        window.wait(12.0, 3, 0)

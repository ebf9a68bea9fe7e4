"""What a process lets in by itself of limits that hold for several."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.levels import Level, Limits, Rate
from llmg.core.limits import LimitReached
from llmg.routing.limits.book import Book, Entry

ACME = [Level(), Level(name="tenants/acme", limits=Limits(requests=100, tokens=1000, concurrent=8))]
NAMED = "requests a minute of tenants/acme"


@dataclass
class Replicas:
    """Processes that count together, in a book of theirs, until they cannot."""

    levels: list[Level]
    books: list[Book]
    together: Book = field(default_factory=Book)
    admitted: list[tuple[float, int]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # that were told alone

    def ask_together(self, place: int, tokens: int, now: float) -> None:
        """One asks, and is told."""
        try:
            self.together.admit(self.levels, tokens, now)
        except LimitReached:
            pass
        else:
            self.books[place].count(self.levels, tokens, now)
            self.admitted.append((now, tokens))
        self.tell(place, now)

    def tell(self, place: int, now: float) -> None:
        """What all have taken in the last minute."""
        recent = [tokens for at, tokens in self.admitted if int(at) > int(now) - 61]
        self.books[place].tell(self.levels, [(len(recent), sum(recent), 0.0)], now)

    def ask_alone(self, place: int, tokens: int, now: float) -> None:
        """One decides by itself."""
        try:
            self.books[place].admit_share(self.levels, tokens, now, len(self.books))
        except LimitReached as failure:
            self.waits.append(failure.retry_after or 0.0)
        else:
            self.admitted.append((now, tokens))

    def most(self) -> tuple[int, int]:
        """Requests and tokens of the fullest 60 seconds."""
        spans = [[tokens for at, tokens in self.admitted if end - 60 <= at <= end] for end, _ in self.admitted]
        return max(map(len, spans), default=0), max(map(sum, spans), default=0)


@given(
    st.builds(Limits, requests=st.integers(4, 12), tokens=st.integers(40, 100)),
    st.integers(1, 4),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_how_much_all_of_them_let_in(limits: Limits, number: int, told: bool, dice: random.Random) -> None:
    """Never more than the limit where all were told last; else less than their shares more, in the first minute."""
    replicas, now = Replicas([Level(limits=limits)], [Book() for _ in range(number)]), 5000.0
    for _ in range(dice.randrange(30)):
        now += dice.choice([0.0, 0.25, 1.0, 20.0])
        replicas.ask_together(dice.randrange(number), dice.randint(0, 15), now)
    if told:
        for place in range(number):
            replicas.tell(place, now)
    away = now
    for _ in range(80):
        now += dice.choice([0.0, 0.25, 1.0, 20.0])
        replicas.ask_alone(dice.randrange(number), dice.randint(0, 15), now)
    requests, tokens = replicas.most()
    assert limits.requests is not None
    assert limits.tokens is not None
    more = 0 if told else number - 1
    assert requests <= limits.requests + more * (limits.requests // number)
    assert tokens <= limits.tokens + more * (limits.tokens // number)
    assert all(0 < wait <= 61 for wait in replicas.waits)
    replicas.admitted = [one for one in replicas.admitted if one[0] > away]
    requests, tokens = replicas.most()
    assert requests <= limits.requests
    assert tokens <= limits.tokens


def _take(book: Book, times: int, tokens: int = 0, now: float = 100.0, among: int = 2) -> list[Entry]:
    return [book.admit_share(ACME, tokens, now, among) for _ in range(times)]


def test_who_had_more_than_its_share_lets_in_nothing_and_the_others_their_share_of_what_was_left() -> None:
    books = [Book(), Book()]
    for book, own in zip(books, (80, 10), strict=True):
        for _ in range(own):
            book.settle(book.count(ACME, 0, 99.0), 0, 99.0)
        book.tell(ACME, [(90, 0, 0.0), (90, 0, 0.0)], 99.0)
    with pytest.raises(LimitReached, match=f"100 {NAMED}"):
        _take(books[0], 1)
    for left in (4, 3, 2, 1, 0):
        (entry,) = _take(books[1], 1)
        assert entry.rates.requests == Rate(100, left, 61.0)
        books[1].settle(entry, 0, 100.0)
    with pytest.raises(LimitReached, match=f"100 {NAMED}") as raised:
        _take(books[1], 1)
    assert raised.value.retry_after == 60.0  # what was told is of second 99
    for book in books:
        _take(book, 1, now=160.0)


def test_what_is_left_is_what_this_process_would_let_in() -> None:
    (entry,) = _take(Book(), 1, tokens=100, among=4)
    assert (entry.rates.requests, entry.rates.tokens) == (Rate(100, 24, 61.0), Rate(1000, 150, 61.0))


def test_at_least_one_is_let_in() -> None:
    levels = [Level(limits=Limits(requests=3, concurrent=1))]
    book = Book()
    book.settle(book.admit_share(levels, 0, 0.0, 7), 0, 0.0)
    with pytest.raises(LimitReached, match="3 requests a minute of the gateway"):
        book.admit_share(levels, 0, 60.0, 7)
    book.admit_share(levels, 0, 61.0, 7)
    with pytest.raises(LimitReached, match="1 request at the same time of the gateway") as raised:
        book.admit_share([Level(limits=Limits(concurrent=1))], 0, 200.0, 7)
    assert raised.value.retry_after is None


def test_a_request_of_more_tokens_than_the_share_waits() -> None:
    with pytest.raises(LimitReached, match="1000 tokens a minute of tenants/acme") as raised:
        _take(Book(), 1, tokens=501)
    assert raised.value.retry_after == 61.0


def test_tokens_that_are_given_back_are_there_again_and_what_an_answer_had_more_is_not() -> None:
    book = Book()
    entry = book.count(ACME, 300, 100.0)
    book.tell(ACME, [(1, 300, 0.0), (1, 300, 0.0)], 100.0)
    (other,) = _take(book, 1, tokens=200)  # all of the share
    book.settle(entry, 100, 101.0)
    book.settle(other, 250, 101.0)
    _take(book, 1, tokens=150, now=101.0)
    with pytest.raises(LimitReached, match="tokens a minute"):
        _take(book, 1, tokens=1, now=101.0)


def test_a_level_is_remembered_while_what_was_told_of_it_counts() -> None:
    book = Book()
    book.settle(book.count(ACME, 0, 1.0), 0, 1.0)
    book.tell(ACME, [(100, 0, 0.0), (100, 0, 0.0)], 50.0)
    with pytest.raises(LimitReached, match=NAMED):
        _take(book, 1, now=110.0)
    _take(book, 1, now=111.0)

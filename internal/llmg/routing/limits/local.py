"""Limits that hold for this process alone."""

from __future__ import annotations

from collections.abc import Sequence

from llmg.core.levels import Level, Rates
from llmg.core.limits import check_size
from llmg.ports import Clock
from llmg.routing.limits.book import Book, Entry


class Local:
    """A `ports.Limiter` that counts what this process lets in."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._book = Book()

    async def reserve(self, levels: Sequence[Level], tokens: int, /) -> Reserved:
        """See `ports.Limiter`."""
        check_size(levels, tokens)
        return Reserved(self._book, self._clock, self._book.admit(levels, tokens, self._clock.monotonic()))


class Reserved:
    """A `ports.Reservation` in a book."""

    __slots__ = ("_book", "_clock", "_entry")

    def __init__(self, book: Book, clock: Clock, entry: Entry) -> None:
        self._book = book
        self._clock = clock
        self._entry = entry

    @property
    def rates(self) -> Rates:
        """See `ports.Reservation`."""
        return self._entry.rates

    def settle(self, tokens: int, /) -> None:
        """See `ports.Reservation`."""
        self._book.settle(self._entry, tokens, self._clock.monotonic())

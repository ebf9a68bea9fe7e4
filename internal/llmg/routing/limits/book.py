"""The windows of all levels that were asked lately. Pure: every time is an argument, in monotonic seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter

from llmg.core.levels import Level, Rates
from llmg.core.limits import SPAN, Use, What, rates, reached
from llmg.routing.limits import share
from llmg.routing.limits.window import SLOTS, Told, Window


class Entry:
    """A request that was counted: in which windows, when, and with how many tokens; and what was left after it."""

    __slots__ = ("rates", "slot", "tokens", "windows")

    def __init__(self, windows: Sequence[Window], slot: int, tokens: int, rates: Rates) -> None:
        self.windows = windows
        self.slot = slot
        self.tokens = tokens
        self.rates = rates


class Book:
    """Counts requests, all levels of one or none. Not for several threads."""

    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}
        self._tidied = 0  # the slot in which idle levels were forgotten last

    def __len__(self) -> int:
        """How many levels it remembers."""
        return len(self._windows)

    def admit(self, levels: Sequence[Level], tokens: int, now: float) -> Entry:
        """Counts the request, if every level has room for it. Raises LimitReached, naming what lasts longest."""
        slot = int(now)
        windows = self._at(levels, slot)
        for level, window in zip(levels, windows, strict=True):
            limits = level.limits
            if (
                (limits.requests is not None and window.requests >= limits.requests)
                or (limits.tokens is not None and window.tokens + tokens > limits.tokens)
                or (limits.concurrent is not None and window.held >= limits.concurrent)
            ):
                raise _refusal(levels, windows, tokens, now)
        return _counted(levels, windows, slot, tokens, now)

    def admit_share(self, levels: Sequence[Level], tokens: int, now: float, among: int) -> Entry:
        """As `admit`, by the share of one in so many processes: see `share`."""
        slot = int(now)
        windows = self._at(levels, slot)
        waits = [
            (wait, level, what)
            for level, window in zip(levels, windows, strict=True)
            for what, wait in share.waits(level.limits, window, tokens, now, among)
        ]
        if waits:
            wait, level, what = max(waits, key=itemgetter(0))
            raise reached(level, what, _share_left(levels, windows, now, among), wait)
        entry = _counted(levels, windows, slot, tokens, now)
        for window in windows:
            if window.told is not None:
                window.told.add(1, tokens)
        entry.rates = _share_left(levels, windows, now, among)
        return entry

    def tell(self, levels: Sequence[Level], uses: Sequence[Use], now: float) -> None:
        """What all processes together have taken now, for `admit_share`."""
        slot = int(now)
        for window, (requests, tokens, _) in zip(self._at(levels, slot), uses, strict=True):
            window.told = Told(slot, requests, tokens)

    def count(self, levels: Sequence[Level], tokens: int, now: float) -> Entry:
        """Counts the request, whether or not there is room."""
        slot = int(now)
        return _counted(levels, self._at(levels, slot), slot, tokens, now)

    def settle(self, entry: Entry, tokens: int, now: float) -> None:
        """The request is over, and took so many tokens. Once for each entry."""
        slot = int(now)
        more = tokens - entry.tokens
        for window in entry.windows:
            window.advance(slot)
            window.held -= 1
            window.add(slot if more > 0 else entry.slot, 0, more)
            if window.told is not None and (more > 0 or slot - entry.slot < SPAN):  # else it may be forgotten there
                window.told.add(0, more)

    def counts(self, now: float) -> Iterator[tuple[str, int, int, int]]:
        """All that is counted: level, slot, requests, tokens."""
        for name, window in self._windows.items():
            window.advance(int(now))
            for slot, requests, tokens in window.slots():
                yield name, slot, requests, tokens

    def _at(self, levels: Sequence[Level], slot: int) -> list[Window]:
        """The levels' windows as they are now."""
        if slot - self._tidied >= SLOTS:
            self._tidy(slot)
        windows = []
        for level in levels:
            window = self._windows.get(level.name)
            if window is None:
                window = self._windows[level.name] = Window(slot)
            else:
                window.advance(slot)
            windows.append(window)
        return windows

    def _tidy(self, slot: int) -> None:
        self._tidied = slot
        self._windows = {name: window for name, window in self._windows.items() if not window.idle(slot)}


def _counted(levels: Sequence[Level], windows: Sequence[Window], slot: int, tokens: int, now: float) -> Entry:
    for window in windows:
        window.add(slot, 1, tokens)
        window.held += 1
    reset = slot + SLOTS - now  # of all: each has this request in its newest slot
    return Entry(windows, slot, tokens, rates(levels, [(window.requests, window.tokens, reset) for window in windows]))


def _share_left(levels: Sequence[Level], windows: Sequence[Window], now: float, among: int) -> Rates:
    pairs = zip(levels, windows, strict=True)
    return rates(levels, [share.use(level.limits, window, now, among) for level, window in pairs])


def _refusal(levels: Sequence[Level], windows: Sequence[Window], tokens: int, now: float) -> Exception:
    longest = -1.0
    which: tuple[Level, What] = (levels[0], "requests")
    for level, window in zip(levels, windows, strict=True):
        for what, wait in _waits(level, window, tokens, now):
            if wait > longest:
                longest, which = wait, (level, what)
    uses = [(window.requests, window.tokens, window.reset(now)) for window in windows]
    return reached(*which, rates(levels, uses), longest)


def _waits(level: Level, window: Window, tokens: int, now: float) -> Iterator[tuple[What, float]]:
    """What there is no room for, and for how many seconds; 0: nobody knows."""
    limits = level.limits
    if limits.requests is not None and window.requests >= limits.requests:
        yield "requests", window.wait(now, window.requests + 1 - limits.requests, 0)
    if limits.tokens is not None and window.tokens + tokens > limits.tokens:
        yield "tokens", window.wait(now, 0, window.tokens + tokens - limits.tokens)
    if limits.concurrent is not None and window.held >= limits.concurrent:
        yield "concurrent", 0.0

"""What a process lets in of limits that hold for several, while it cannot ask what the others do. Pure.

Two bounds hold, and the smaller room counts:

Its share. Of each limit one part in as many as there are processes, rounded down, but 1 at least. All that it let in
itself in the last minute counts, whoever decided about it.

Its share of what was left. What all together had taken when it was last told (`Told`) is kept in mind as long as any of
it may count. Of what the limit had left then it lets in one part, rounded down, and no more. So it makes up for those
that had taken more than their share: as exactly as what it was told is recent.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmg.core.levels import Limits
from llmg.core.limits import Use, What
from llmg.routing.limits.window import SLOTS, Counted, Told, Window


def waits(limits: Limits, window: Window, tokens: int, now: float, among: int) -> Iterator[tuple[What, float]]:
    """What a request finds no room for, and for how many seconds; 0: nobody knows."""
    asked: tuple[tuple[Counted, int | None, int], ...]
    asked = (("requests", limits.requests, 1), ("tokens", limits.tokens, tokens))
    for what, limit, needed in asked:
        if limit is not None and needed > _room(what, limit, window, among):
            yield what, _wait(what, limit, needed, window, now, among)
    if limits.concurrent is not None and window.held >= _share(limits.concurrent, among):
        yield "concurrent", 0.0


def use(limits: Limits, window: Window, now: float, among: int) -> Use:
    """The limits, less what there is room for here: so what is said to be left is what this process would let in."""
    requests = 0 if limits.requests is None else limits.requests - _room("requests", limits.requests, window, among)
    tokens = 0 if limits.tokens is None else limits.tokens - _room("tokens", limits.tokens, window, among)
    return requests, tokens, max(window.reset(now), _told_until(window) - now)


def _room(what: Counted, limit: int, window: Window, among: int) -> int:
    room = _share(limit, among) - _own(what, window)
    return room if window.told is None else min(room, _left(what, limit, window.told, among))


def _wait(what: Counted, limit: int, needed: int, window: Window, now: float, among: int) -> float:
    own = _own(what, window)
    over = needed - (_share(limit, among) - own)
    wait = 0.0
    if over > own:  # more than the share: nobody knows when the others can be asked again
        wait = SLOTS
    elif over > 0:
        wait = window.wait(now, over, 0) if what == "requests" else window.wait(now, 0, over)
    if window.told is not None and needed > _left(what, limit, window.told, among):
        wait = max(wait, _told_until(window) - now)
    return wait


def _own(what: Counted, window: Window) -> int:
    return window.requests if what == "requests" else window.tokens


def _share(limit: int, among: int) -> int:
    return max(1, limit // among)


def _left(what: Counted, limit: int, told: Told, among: int) -> int:
    """May be less than 0: answers may be longer than was thought."""
    return max(0, limit - told.taken[what]) // among - told.own[what]


def _told_until(window: Window) -> float:
    return 0.0 if window.told is None else window.told.slot + SLOTS

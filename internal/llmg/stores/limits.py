"""Limits that hold for all replicas together: counted in Redis, by `limits_link`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Final, Literal, Protocol

from llmg.core.errors import Failure, Kind
from llmg.core.levels import Level, Rates
from llmg.core.limits import WHATS, Use, check_size, rates, reached
from llmg.ports import Clock
from llmg.stores.limits_link import Link, Note
from llmg.stores.limits_scripts import FULL, Scripts
from llmg.stores.redis import Away, Redis

OnFailure = Literal["local", "open", "closed"]

_SCRIPTS: Final = Scripts()
_RETRY_AFTER: Final = 1.0  # seconds: by then Redis has been probed again


class Entry(Protocol):
    """A request that was counted."""

    @property
    def tokens(self) -> int:
        """With how many."""
        ...

    @property
    def rates(self) -> Rates:
        """What was left after it."""
        ...


class Own(Protocol):
    """What this process has counted itself: `routing.limits.book.Book`. Times are monotonic seconds."""

    def admit_share(self, levels: Sequence[Level], tokens: int, now: float, among: int) -> Entry:
        """Counts, or raises LimitReached: by the share of one in so many processes."""
        ...

    def tell(self, levels: Sequence[Level], uses: Sequence[Use], now: float) -> None:
        """What all processes together have taken."""
        ...

    def count(self, levels: Sequence[Level], tokens: int, now: float) -> Entry:
        """Counts."""
        ...

    def settle(self, entry: Any, tokens: int, now: float) -> None:
        """It is over."""
        ...

    def counts(self, now: float) -> Iterator[tuple[str, int, int, int]]:
        """Level, slot, requests, tokens."""
        ...


class Shared:
    """A `ports.Limiter` for all replicas together. While Redis is away, `on_failure` says what holds:

    `local`: each replica keeps to its share, by what it has let in itself, with and without Redis, in the last minute.
    `open`: all are let in, and counted. `closed`: none is.
    """

    def __init__(
        self,
        redis: Redis,
        own: Own,
        clock: Clock,
        *,
        on_failure: OnFailure = "local",
        prefix: str = "llmg",
        lease: float = 15.0,
        scripts: Scripts = _SCRIPTS,
    ) -> None:
        """`lease`: seconds after which a request of a replica that is gone runs no more."""
        self._own = own
        self._clock = clock
        self._on_failure = on_failure
        self._link = Link(
            redis, clock, own.counts, prefix=prefix, lease=lease, scripts=scripts, reunite=on_failure == "local"
        )
        self._numbers = count()

    @property
    def up(self) -> bool:
        """Does Redis decide?"""
        return self._link.up

    @property
    def replicas(self) -> int:
        """How many count together, as is known here: at least 1."""
        return self._link.replicas

    async def start(self) -> None:
        """Before use. Redis need not be there."""
        await self._link.start()

    async def aclose(self) -> None:
        """Notes what is to be noted, if Redis is there."""
        await self._link.aclose()

    async def reserve(self, levels: Sequence[Level], tokens: int, /) -> Reserved:
        """See `ports.Limiter`."""
        check_size(levels, tokens)
        id = f"{self._link.replica}{next(self._numbers):x}"
        if self._link.up:
            try:
                reply = await self._link.ask(id, levels, tokens)
            except Away:
                pass
            else:
                return self._answered(id, levels, tokens, reply)
        return self._alone(id, levels, tokens)

    def _answered(self, id: str, levels: Sequence[Level], tokens: int, reply: list[int]) -> Reserved:
        status, _, *rest = reply
        numbers = rest[3:] if status == FULL else rest[1:]
        uses = [(r, t, micros / 1e6) for r, t, micros in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)]
        left = rates(levels, uses)
        now = self._clock.monotonic()
        self._own.tell(levels, uses, now)
        if status == FULL:
            raise reached(levels[rest[0]], WHATS[rest[1]], left, rest[2] / 1e6)
        return self._reserved(id, levels, self._own.count(levels, tokens, now), left, rest[0], now)

    def _alone(self, id: str, levels: Sequence[Level], tokens: int) -> Reserved:
        """Without Redis."""
        if self._on_failure == "closed":
            message = "the limits cannot be checked at the moment"
            raise Failure(Kind.OVERLOADED, message, retry_after=_RETRY_AFTER)
        now = self._clock.monotonic()
        if self._on_failure == "local":
            entry = self._own.admit_share(levels, tokens, now, self._link.replicas)
        else:
            entry = self._own.count(levels, tokens, now)
        self._link.note(Note(_names(levels), now, requests=1, tokens=tokens, slot=None))
        return self._reserved(id, levels, entry, entry.rates, None, now)

    def _reserved(
        self, id: str, levels: Sequence[Level], entry: Entry, rates: Rates, slot: int | None, made: float
    ) -> Reserved:
        holding = [level.name for level in levels if level.limits.concurrent is not None]
        if holding:
            self._link.holding[id] = holding
        return Reserved(self, id, _names(levels), entry, rates, slot, made)

    def settle(self, reserved: Reserved, tokens: int) -> None:
        """A reservation is over."""
        now = self._clock.monotonic()
        self._own.settle(reserved.entry, tokens, now)
        held = self._link.holding.pop(reserved.id, None) is not None
        more = tokens - reserved.entry.tokens
        if held or more:
            slot, made = (None, now) if more > 0 else (reserved.slot, reserved.made)
            id = reserved.id if held else ""
            self._link.note(Note(reserved.levels, made, id=id, tokens=more, slot=slot))


class Reserved:
    """A `ports.Reservation` in Redis."""

    __slots__ = ("_shared", "entry", "id", "levels", "made", "rates", "slot")

    def __init__(
        self, shared: Shared, id: str, levels: Sequence[str], entry: Entry, rates: Rates, slot: int | None, made: float
    ) -> None:
        """`slot`: the server's, where it was counted there; else that of `made`, monotonic seconds."""
        self._shared = shared
        self.id = id
        self.levels = levels
        self.entry = entry
        self.rates = rates
        self.slot = slot
        self.made = made

    def settle(self, tokens: int, /) -> None:
        """See `ports.Reservation`."""
        self._shared.settle(self, tokens)


def _names(levels: Sequence[Level]) -> list[str]:
    return [level.name for level in levels]

"""Is a target fit to be asked? Its circuit breaker, the time in which it asked to be left alone, and its health checks.

One per target, whatever names it is reached by. Pure: every time is an argument, in monotonic seconds.
What the checks of its provider say is told by `checked`; `probes.py` says which of them count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final, Protocol

from msgspec import Struct

from llmg.core.errors import Failure, Kind
from llmg.routing.breaker import Breaker, Limits, State

LIMITS: Final = Limits()
MAX_COOLDOWN: Final = 60.0

_SOON: Final = 1.0  # seconds, in which a probe may be over


class Verdict(Enum):
    """What a failure says about the target."""

    FAULT = auto()  # it can't answer
    ALIVE = auto()  # it did: the request was wrong
    NOTHING = auto()


VERDICTS: Final[dict[Kind, Verdict]] = {
    Kind.INVALID_REQUEST: Verdict.ALIVE,
    Kind.UNAUTHENTICATED: Verdict.NOTHING,
    Kind.PERMISSION_DENIED: Verdict.NOTHING,
    Kind.NOT_FOUND: Verdict.ALIVE,
    Kind.MODEL_NOT_FOUND: Verdict.NOTHING,
    Kind.CONFLICT: Verdict.NOTHING,
    Kind.METHOD_NOT_ALLOWED: Verdict.NOTHING,
    Kind.REQUEST_TOO_LARGE: Verdict.ALIVE,
    Kind.UNSUPPORTED_MEDIA_TYPE: Verdict.ALIVE,
    Kind.CONTEXT_LENGTH_EXCEEDED: Verdict.ALIVE,
    Kind.CONTENT_FILTERED: Verdict.ALIVE,
    Kind.RATE_LIMITED: Verdict.NOTHING,
    Kind.QUOTA_EXCEEDED: Verdict.NOTHING,
    Kind.CANCELLED: Verdict.NOTHING,
    Kind.CLIENT_TIMEOUT: Verdict.NOTHING,
    Kind.NOT_IMPLEMENTED: Verdict.NOTHING,
    Kind.DEADLINE_EXCEEDED: Verdict.NOTHING,  # the caller's: it may have been too short for anyone
    Kind.OVERLOADED: Verdict.NOTHING,  # busy is not broken
    Kind.SHUTTING_DOWN: Verdict.NOTHING,
    Kind.UPSTREAM_UNAVAILABLE: Verdict.FAULT,
    Kind.UPSTREAM_TIMEOUT: Verdict.FAULT,
    Kind.UPSTREAM_RATE_LIMITED: Verdict.NOTHING,  # the cooldown's matter
    Kind.UPSTREAM_AUTH: Verdict.FAULT,  # our key, but it fails there whoever asks
    Kind.UPSTREAM_MODEL_NOT_FOUND: Verdict.FAULT,  # likewise
    Kind.UPSTREAM_TRUNCATED: Verdict.FAULT,
    Kind.UPSTREAM_PROTOCOL: Verdict.FAULT,
    Kind.UPSTREAM_ERROR: Verdict.FAULT,
    Kind.BACKEND_CRASHED: Verdict.FAULT,
    Kind.INTERNAL: Verdict.NOTHING,
}
"""Only what is the target's fault opens its circuit."""

COOLS: Final = frozenset({Kind.UPSTREAM_RATE_LIMITED, Kind.UPSTREAM_UNAVAILABLE, Kind.BACKEND_CRASHED})
"""With a `retry_after`, these ask to be left alone until then: 429, 503, and an engine that did not start."""


class Status(Struct, frozen=True, kw_only=True):
    """What is known of one target at a moment.

    `circuit`: closed, open or half-open; `opened`: how often it has opened since the start; `cooling`: seconds for
    which it has asked to be left alone yet; `down`: its health checks fail; `retry_after`: seconds until it may be
    asked, as far as is known, 0 if it may; `in_flight`: requests that it is working on; `queued`: those that wait for
    a place.
    """

    circuit: State
    opened: int
    cooling: float
    down: bool
    retry_after: float
    in_flight: int
    queued: int


class Change(Struct, frozen=True, kw_only=True):
    """What has become of a target: its circuit is in this state now, or (None) it asked to be left alone.

    `seconds`: until it may be asked again. `failure`: what it failed with. `again`: it is more of the same trouble, as
    its circuit has not been closed since it opened first, or it was left alone already.
    """

    circuit: State | None
    seconds: float = 0.0
    failure: Failure | None = None
    again: bool = False


Told = Callable[[Change], None]


def _nobody() -> int:
    return 0


def _unheard(change: Change) -> None:
    """Nobody has to know."""


class Health:
    """What is known of one target. `full`: a request would have to wait for a place. `down`: its health checks fail.

    `calm`: nothing is the matter, and nothing more need be asked, which is the rule and has to be quick. `waiting`
    tells how many requests wait for a place, where they are counted.
    """

    __slots__ = (
        "_asked",
        "_cool_until",
        "_limited",
        "_max_cooldown",
        "_opened",
        "_told",
        "_vouched",
        "breaker",
        "calm",
        "down",
        "full",
        "waiting",
    )

    def __init__(self, limits: Limits = LIMITS, max_cooldown: float = MAX_COOLDOWN, told: Told = _unheard) -> None:
        """`max_cooldown` seconds at most are waited, whatever the target asks; 0: it asks in vain. `told` hears of each
        change, but of health checks: their prober tells of them, once for all targets."""
        self._max_cooldown = max_cooldown
        self._told = told
        self._opened = 0  # how often its circuit has opened since it was closed
        self._cool_until = 0.0
        self._limited = False  # is it a rate limit that cools it down?
        self._vouched = False  # a check that passed has made the open circuit half-open
        self._asked = 0  # calls begun and not ended
        self.breaker = Breaker(limits)
        self.full = False
        self.down = False
        self.calm = True
        self.waiting: Callable[[], int] = _nobody

    def status(self, now: float) -> Status:
        """All of it, for who explains or counts. Cheap, and changes nothing."""
        queued = self.waiting()
        return Status(
            circuit=self.breaker.state,
            opened=self.breaker.openings,
            cooling=max(0.0, self._cool_until - now),
            down=self.down,
            retry_after=self.retry_after(now),
            in_flight=self._asked - queued,
            queued=queued,
        )

    def crowded(self, full: bool) -> None:
        """Its last place was taken, or one became free."""
        self.full = full
        self._settle()

    def down_is(self, down: bool) -> None:
        """By what is known of its checks."""
        self.down = down
        self._settle()

    def fit(self, now: float) -> bool:
        """May it be asked?"""
        return self.calm or (not self.down and self.allowed(now))

    def allowed(self, now: float) -> bool:
        """May it be asked, whatever its checks say?"""
        return not self.cooling(now) and self.breaker.allows(now)

    def cooling(self, now: float) -> bool:
        """Is it to be left alone, by its own word?"""
        if now >= self._cool_until:
            self._cool_until = 0.0
            self._settle()
        return self._cool_until > 0.0

    def retry_after(self, now: float) -> float:
        """Seconds until it may be asked, as far as is known."""
        return max(self._cool_until - now, self.breaker.retry_after(now), 0.0)

    def unfit(self, now: float) -> Failure | None:
        """Why it may not be asked, and until when."""
        if self.fit(now):
            return None
        kind, words = Kind.UPSTREAM_UNAVAILABLE, "the upstream failed too often, and is being tried out again"
        if self.cooling(now):
            kind = Kind.UPSTREAM_RATE_LIMITED if self._limited else kind
            words = "the upstream asked to be left alone for a while"
        return Failure(kind, words, retry_after=max(self.retry_after(now), _SOON))

    def begin(self) -> int:
        """It is being asked: the ticket for `committed` and `ended`."""
        self._asked += 1
        if self.calm:
            return self.breaker.begin()
        before = self.breaker.state
        ticket = self.breaker.begin()
        self._tell(before, 0.0, None)
        return ticket

    def committed(self, ticket: int, now: float) -> None:
        """It has begun to answer, which is all that a probe is for: how long the answer takes doesn't matter."""
        before = self.breaker.state
        if before is not State.CLOSED:
            self.breaker.succeeded(ticket, now)
            self._settle()
            self._tell(before, now, None)

    def ended(self, ticket: int, now: float, failure: Failure | None) -> None:
        """It has answered, or failed, or was left."""
        self._asked -= 1
        if failure is None and self.calm:
            self.breaker.succeeded(ticket, now)
            return
        before = self.breaker.state
        verdict = Verdict.ALIVE if failure is None else VERDICTS[failure.kind]
        if verdict is Verdict.ALIVE:
            self.breaker.succeeded(ticket, now)
        elif verdict is Verdict.FAULT:
            self.breaker.failed(ticket, now)
        else:
            self.breaker.dropped(ticket)
        if failure is not None:
            self._cool(failure, now)
        self._settle()
        self._tell(before, now, failure)

    def checked(self, *, passed: bool, down: bool) -> None:
        """A health check passed or not; by all that is known of them, the target is `down` or not.

        One that passes makes an open circuit half-open, but only once: if the target fails all the same, a check
        doesn't see what is wrong with it, until one fails or the circuit closes.
        """
        if not passed or self.breaker.state is State.CLOSED:
            self._vouched = False
        elif not self._vouched:
            self._vouched = True
            before = self.breaker.state
            self.breaker.relent()
            self._tell(before, 0.0, None)
        self.down_is(down)

    def _cool(self, failure: Failure, now: float) -> None:
        if failure.kind in COOLS and failure.retry_after is not None:
            until = now + min(failure.retry_after, self._max_cooldown)
            if until > max(now, self._cool_until):
                again = self._cool_until > now
                self._cool_until = until
                self._limited = failure.kind is Kind.UPSTREAM_RATE_LIMITED
                self._told(Change(circuit=None, seconds=until - now, failure=failure, again=again))

    def _tell(self, before: State, now: float, failure: Failure | None) -> None:
        """Where the circuit has changed."""
        circuit = self.breaker.state
        if circuit is before:
            return
        self._opened = 0 if circuit is State.CLOSED else self._opened + (circuit is State.OPEN)
        seconds = self.breaker.retry_after(now)
        self._told(Change(circuit=circuit, seconds=seconds, failure=failure, again=self._opened > 1))

    def _settle(self) -> None:
        calm = not self.full and not self.down and self._cool_until == 0.0
        self.calm = calm and self.breaker.state is State.CLOSED


class Askable(Protocol):
    """What `fittest` looks at in a target."""

    @property
    def health(self) -> Health:
        """Its health."""
        ...


def fittest(targets: Sequence[Askable], left: Sequence[int], now: float) -> Sequence[int]:
    """Those of `left` to choose from: the fit ones, of which those with a free place, where there are any.

    When none is fit, those that are only down by their checks, which may be wrong; else the one whose circuit opened
    first of all, if a probe of it may begin; else none.
    """
    healths = [targets[index].health for index in left]
    for health in healths:
        if not health.calm:
            break
    else:
        return left
    fit: list[int] = []
    free: list[int] = []
    for index, health in zip(left, healths, strict=True):
        if health.calm:
            free.append(index)
        elif health.fit(now):
            (fit if health.full else free).append(index)
    return free or fit or _last_resort(targets, left, now)


def spare(targets: Sequence[Askable], left: Sequence[int], now: float) -> Sequence[int]:
    """Those of `left` that are fit and have a free place: for what need not be asked at all."""
    healths = [(index, targets[index].health) for index in left]
    return [index for index, health in healths if health.calm or (not health.full and health.fit(now))]


def _last_resort(targets: Sequence[Askable], left: Sequence[int], now: float) -> Sequence[int]:
    if allowed := [index for index in left if targets[index].health.allowed(now)]:
        return allowed
    opened = [
        index
        for index in left
        if targets[index].health.breaker.state is State.OPEN and not targets[index].health.cooling(now)
    ]
    return [min(opened, key=lambda index: targets[index].health.breaker.opened)] if opened else []


def unfit(targets: Sequence[Askable], tried: Sequence[int], now: float) -> Failure:
    """Why none of them may be asked: the reason of the one that may be asked first, and when."""
    reasons = [reason for index in tried if (reason := targets[index].health.unfit(now)) is not None]
    return min(reasons, key=lambda failure: failure.retry_after or 0.0)

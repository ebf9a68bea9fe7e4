"""The one connection by which a process's limits are counted in Redis: decisions, and what is noted without waiting.

One task sends all that has come up since it sent last, in one write: notes first, in their order, so that a place that
was given back is free for who asks next. Nobody waits for a note. What could not be noted while Redis was away is noted
when it is back, or, when Redis has forgotten what it counted (its epoch is another one), all that this process has
counted of late. Every replica does so within the time of grace that the first of them gives; decisions wait for its
end, so that nothing is let in twice because a replica's counts were missing.

Where Redis is back with all it had counted, it still lacks what those let in that have not found it yet, and what they
may let in until then. So each notes what it let in alone before it greets Redis. Who then misses others that were there
when it lost Redis goes on alone until all have come, or the time of grace is over; then all of them follow Redis from
the same moment on. Who was away by itself sees that the others have greeted all along, and who begins was with nobody:
they miss nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any, Final, TypeVar

import structlog

from llmg.core.levels import Level
from llmg.ports import Clock
from llmg.stores.limits_scripts import DONE, FULL, LATE, UNKNOWN, Names, Script, Scripts, limits_of
from llmg.stores.redis import CONNECT, Away, Line, Redis

T = TypeVar("T")

log = structlog.get_logger("llmg.limits")

_BATCH: Final = 32  # notes, and as many decisions, in a write: a few milliseconds
_MOST_NOTES: Final = 20_000  # kept while Redis is away; the oldest are dropped
_MOST_HOLDS: Final = 500  # that a command renews
_SOON: Final = 0.002  # seconds that a note waits, so that it goes out with a request that follows
_LONGEST_BEAT: Final = 1.0
_GRACE: Final = 3.0  # in beats: probes and beats come at least once in each
_MISSING: Final = 1.25  # in beats: who has not greeted for so long is away, or gone
_RECENT: Final = 2.0  # in beats: who had greeted in them before we lost Redis may have lost it with us
_LOOK: Final = 0.1  # in beats: between looks for whether we are all together again
_REUNION: Final = 0.3  # in beats: from when it is settled until it is: by then, each of us has looked
_NEVER: Final = 2**52  # microseconds of the server's that will not come

Words = Sequence[str | int]


class Note:
    """Something to add to levels, and the id of a request that is over, if one is. `slot` None: that of `made`."""

    __slots__ = ("id", "levels", "made", "requests", "slot", "tokens")

    def __init__(
        self, levels: Sequence[str], made: float, *, id: str = "", requests: int = 0, tokens: int = 0, slot: int | None
    ) -> None:
        self.levels = levels
        self.made = made
        self.id = id
        self.requests = requests
        self.tokens = tokens
        self.slot = slot


class _Ask:
    __slots__ = ("again", "id", "levels", "made", "reply", "tokens")

    def __init__(self, id: str, levels: Sequence[Level], tokens: int, made: float, reply: asyncio.Future[Any]) -> None:
        self.again = False  # was it asked before, and came too late?
        self.id = id
        self.levels = levels
        self.tokens = tokens
        self.made = made
        self.reply = reply


class _OutOfStep(Exception):
    """Redis has forgotten what it counted."""


class ServerClock:
    """The server's clock, by ours: each answer bounds the difference from both sides."""

    def __init__(self) -> None:
        self._ahead: float | None = None

    def seen(self, micros: int, sent: float, received: float) -> None:
        """The server said that it was so late, between two times of ours."""
        low, high = micros / 1e6 - received, micros / 1e6 - sent
        self._ahead = low if self._ahead is None else min(max(self._ahead, low), high)

    def micros(self, ours: float) -> int:
        """How late it is there at our time."""
        return int((ours + (self._ahead or 0.0)) * 1e6)


class Replicas:
    """How many replicas count together, as far as one of them knows: at first, of itself alone.

    A Redis that was away, or has forgotten everything, knows few of them until all have greeted it again. So more are
    believed at once; fewer when it has said so for `grace` seconds without a break.
    """

    def __init__(self, grace: float) -> None:
        self.number = 1
        self._grace = grace
        self._fewer_since: float | None = None

    def seen(self, number: int, now: float) -> None:
        """So many have greeted Redis of late."""
        if number >= self.number:
            self._fewer_since = None
        elif self._fewer_since is None:
            self._fewer_since = now
        if self._fewer_since is None or now - self._fewer_since > self._grace:
            self.number = number
            self._fewer_since = None

    def lost(self) -> None:
        """Redis is away."""
        self._fewer_since = None


class Link:
    """See above. `counts` gives all that this process has counted: level, slot (our seconds), requests, tokens.

    `reunite`: are others to be waited for? It is of use where replicas let in a bounded part each while they are alone.
    """

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        counts: Callable[[float], Iterable[tuple[str, int, int, int]]],
        *,
        prefix: str,
        lease: float,
        scripts: Scripts,
        reunite: bool,
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._counts = counts
        self._names = Names(prefix)
        self._scripts = scripts
        self._line = Line(redis, [script.text for script in scripts.all()])
        self._lease = int(lease * 1e6)
        self._beat = min(_LONGEST_BEAT, lease / 3)
        self._grace = _GRACE * self._beat
        self.replica = token_hex(8)
        self._replicas = Replicas(self._grace)
        self._server = ServerClock()
        self._took = 0.0  # seconds that Redis took for what was sent last
        self._epoch = ""
        self._in_step = False
        self._heard = 0  # of Redis last: the server's microsecond
        self._lost = _NEVER  # Redis, when we were in step: the server's microsecond
        self._reunite = reunite
        self._stepped = asyncio.Event()
        self._stopping = False
        self._wake = asyncio.Event()
        self._beat_due = False
        self._asks: deque[_Ask] = deque()
        self._notes: deque[Note] = deque()
        self._renewals: deque[tuple[str, Sequence[str]]] = deque()  # a level, and ids of requests that run there
        self._renewed = 0.0  # when they all were, monotonic seconds
        self.holding: dict[str, Sequence[str]] = {}  # levels, by the id of a request that runs
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None

    @property
    def up(self) -> bool:
        """Can it be asked?"""
        return self._in_step and not self._redis.away

    @property
    def replicas(self) -> int:
        """How many processes count together, as is known: at least 1."""
        return self._replicas.number

    async def start(self) -> None:
        """Begins, and waits for the first greeting if Redis is there, for a second at most."""
        self._task = asyncio.create_task(self._run())
        self._rhythm()
        if not self._redis.away:
            with suppress(TimeoutError):
                async with asyncio.timeout(CONNECT):
                    await self._stepped.wait()

    async def aclose(self) -> None:
        """Sends what is left, if Redis is there, and ends."""
        self._stopping = True
        self._wake.set()
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            if self.up:
                await asyncio.wait([self._task], timeout=CONNECT)
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._line.aclose()

    async def ask(self, id: str, levels: Sequence[Level], tokens: int) -> list[int]:
        """What RESERVE replies: FULL or DONE. Raises Away. A request that is cancelled meanwhile is taken back."""
        reply: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._asks.append(_Ask(id, levels, tokens, self._clock.monotonic(), reply))
        self._wake.set()
        try:
            return await reply
        except asyncio.CancelledError:
            if not reply.cancel() and reply.exception() is None:  # the answer has come in the same moment
                self._take_back(id, levels, tokens, reply.result())
            raise

    def note(self, note: Note) -> None:
        """To be sent soon."""
        self._notes.append(note)
        if len(self._notes) > _MOST_NOTES and not self.up:
            self._notes.popleft()
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(_SOON, self._wake.set)

    def _take_back(self, id: str, levels: Sequence[Level], tokens: int, reply: list[int]) -> None:
        if reply[0] == DONE:
            names = [level.name for level in levels]
            self.note(Note(names, self._clock.monotonic(), id=id, tokens=-tokens, slot=reply[2]))

    def _rhythm(self) -> None:
        self._beat_due = True
        self._wake.set()
        self._timer = asyncio.get_running_loop().call_later(self._beat, self._rhythm)

    async def _run(self) -> None:
        while True:
            await self._redis.present()
            try:
                await self._get_in_step()
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    await self._flush()
                    if self._stopping:
                        return
            except (Away, _OutOfStep) as error:
                self._turn_away(error)
            except Exception as error:
                self._turn_away(error)  # whoever asks goes on without Redis, whatever it is
                log.exception("limits cannot be counted in redis")
                await asyncio.sleep(CONNECT)

    def _turn_away(self, error: Exception) -> None:
        """Who asked and has no answer gets none."""
        if self._in_step:
            self._lost = self._heard
        self._in_step = False
        self._replicas.lost()
        while self._asks:
            _refuse(self._asks.popleft().reply, error)

    async def _get_in_step(self) -> None:
        """Makes Redis and this process know the same, and each other's clock; and waits for who was lost with us."""
        await self._redis.decide(self._line.connect, CONNECT)
        told = together = False
        while not together:
            epoch, ready = await self._greet(told)
            if epoch != self._epoch:
                self._recount(epoch)
                told = False
            if told:
                together = await self._wait(ready)
            else:
                self._renew()
                await self._flush()
                told = True
        self._in_step = True
        self._stepped.set()
        self._wake.set()  # for what was let in alone while we greeted

    async def _wait(self, ready: int) -> bool:
        """Until the server's microsecond. False: not so long, as it may be sooner by now."""
        look = self._beat * _LOOK
        left = self._left(ready)
        settled = left <= 2 * look  # less than _REUNION
        await self._go_on_noting(left if settled else look)
        return settled or self._left(ready) <= 0

    def _left(self, ready: int) -> float:
        """Seconds until the server's microsecond."""
        return (ready - self._server.micros(self._clock.monotonic())) / 1e6

    def _recount(self, epoch: str) -> None:
        """Another epoch: what is to be noted is all that this process has counted."""
        self._epoch = epoch
        self._notes.clear()
        # A slot of ours lies in two of theirs: the later one, so that nothing is forgotten too soon.
        for level, slot, requests, tokens in self._counts(self._clock.monotonic()):
            self._notes.append(Note([level], slot + 1.0, requests=requests, tokens=tokens, slot=None))

    async def _go_on_noting(self, seconds: float) -> None:
        """For so long. What is let in alone meanwhile, others that wait no more are to know at once."""
        end = self._clock.monotonic() + seconds
        while (left := end - self._clock.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
            self._wake.clear()
            await self._flush()

    async def _greet(self, told: bool) -> tuple[str, int]:
        """The epoch, and the server's microsecond from which on to follow it. `told`: is all noted that was let in?"""
        lost = bool(self._epoch) or any(True for _ in self._counts(self._clock.monotonic()))
        grace = int(self._grace * 1e6)
        stay = self._lease + grace
        keys = [self._names.epoch, self._names.replicas, self._names.reunion]
        arguments: Words = [token_hex(8), grace if lost else 0, self.replica, stay, int(told), *self._reunion()]
        ((_, _, epoch, ready, replicas),) = await self._exchange(
            [self._command(self._scripts.greet, keys, arguments)], self._redis.timeout
        )
        self._replicas.seen(replicas, self._clock.monotonic())
        return epoch.decode(), ready

    def _reunion(self) -> Sequence[int]:
        """Whom we may miss, and how long: see GREET."""
        beat = self._beat * 1e6
        since = _NEVER if self._in_step or not self._reunite else self._lost - int(_RECENT * beat)
        return since, int(_MISSING * beat), int(_REUNION * beat), int(_GRACE * beat)

    def _renew(self) -> None:
        """The leases of all requests that run are to be renewed."""
        self._renewed = self._clock.monotonic()
        by_level: dict[str, list[str]] = {}
        for id, levels in self.holding.items():
            for level in levels:
                by_level.setdefault(level, []).append(id)
        self._renewals.clear()
        for level, ids in by_level.items():
            for start in range(0, len(ids), _MOST_HOLDS):
                self._renewals.append((level, ids[start : start + _MOST_HOLDS]))

    async def _flush(self) -> None:
        """Sends all there is."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._beat_due:
            self._beat_due = False
            if self._in_step:
                if (await self._greet(told=True))[0] != self._epoch:
                    raise _OutOfStep
                if self._clock.monotonic() - self._renewed >= self._lease / 3e6:
                    self._renew()
        while self._notes or self._asks or self._renewals:
            notes, asks = _some(self._notes, _BATCH), _some(self._asks, _BATCH)
            try:
                await self._send(notes, asks, _some(self._renewals, 1))
            except BaseException as error:
                # Nobody knows whether they were noted. To give back twice would let in more than the limit.
                for note in notes:
                    note.tokens = max(0, note.tokens)
                self._notes.extendleft(reversed(notes))
                for ask in asks:
                    _refuse(ask.reply, error if isinstance(error, Exception) else Away("the gateway stops"))
                raise

    async def _send(self, notes: list[Note], asks: list[_Ask], renewals: list[tuple[str, Sequence[str]]]) -> None:
        now = self._clock.monotonic()
        within = self._redis.timeout
        if asks:  # what they have waited for Redis already is theirs; what they waited for us is not its fault
            within = max(within - min(now - asks[0].made, self._took), within / 4)
        commands = [self._noting(note, within) for note in notes] + [self._asking(ask, within) for ask in asks]
        commands += [self._renewing(level, ids, within) for level, ids in renewals]
        replies = await self._exchange(commands, within)
        late = [note for note, reply in zip(notes, replies, strict=False) if reply[0] == LATE]
        self._notes.extendleft(reversed(late))
        answered = list(zip(asks, replies[len(notes) :], strict=False))
        once_more = [ask for ask, reply in answered if reply[0] == LATE and not (ask.again or ask.reply.done())]
        self._asks.extendleft(reversed(once_more))
        for ask, reply in answered:
            if reply[0] == LATE and not ask.again:
                ask.again = True  # it is there, and has counted nothing
            elif reply[0] not in (DONE, FULL):
                _refuse(ask.reply, Away("too late, or not in step"))
            elif ask.reply.done():
                self._take_back(ask.id, ask.levels, ask.tokens, reply)
            else:
                ask.reply.set_result(reply)
        if any(reply[0] == UNKNOWN for reply in replies):
            raise _OutOfStep

    async def _exchange(self, commands: Sequence[Words], within: float) -> list[Any]:
        sent = self._clock.monotonic()
        replies = await self._redis.decide(partial(self._line.ask, commands), within)
        received = self._clock.monotonic()
        for reply in replies:
            self._server.seen(reply[1], sent, received)
        self._heard = max(reply[1] for reply in replies)
        self._took = (self._heard - self._server.micros(sent)) / 1e6
        return replies

    def _noting(self, note: Note, within: float) -> Words:
        slot = self._server.micros(note.made) // 1_000_000 if note.slot is None else note.slot
        arguments: Words = [note.id, note.requests, note.tokens, slot]
        return self._guarded(self._scripts.note, self._names.of(note.levels), arguments, within)

    def _asking(self, ask: _Ask, within: float) -> Words:
        keys = self._names.of([level.name for level in ask.levels])
        arguments: Words = [ask.id, ask.tokens, self._lease, *limits_of(ask.levels)]
        return self._guarded(self._scripts.reserve, keys, arguments, within)

    def _renewing(self, level: str, ids: Sequence[str], within: float) -> Words:
        running = [id for id in ids if id in self.holding]  # the note that one is over may have gone out meanwhile
        keys = [self._names.epoch, self._names.holds(level)]
        return self._guarded(self._scripts.hold, keys, [self._lease, *running], within)

    def _guarded(self, script: Script, keys: Sequence[str], arguments: Words, within: float) -> Words:
        """A command that does nothing when we have given up on it, or are not in step."""
        return self._command(
            script, keys, [self._epoch, self._server.micros(self._clock.monotonic() + within), *arguments]
        )

    def _command(self, script: Script, keys: Sequence[str], arguments: Words) -> Words:
        return ["EVALSHA", script.sha, len(keys), *keys, *arguments]


def _some(waiting: deque[T], most: int) -> list[T]:
    """Those that have waited longest."""
    return [waiting.popleft() for _ in range(min(most, len(waiting)))]


def _refuse(reply: asyncio.Future[Any], error: Exception) -> None:
    if not reply.done():
        reply.set_exception(error if isinstance(error, Away) else Away(str(error)))

"""The connection to Redis (or Valkey) that all who need it share, and what is done when it is not there.

`client` is for those who may wait. `decide` is for those who may not: an answer that does not come within the time
limit makes Redis `away`, and whoever asks then is told so at once, until a probe in the background was answered in
time. The first probe comes at once, so that a moment's trouble (ours, too: a loop that stood still) passes unnoticed
by all but those who met it; with troubles that follow on one another, it comes later each time. So a Redis that is slow
or dead costs requests the time limit once in a while, and otherwise nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import hiredis
import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

log = structlog.get_logger("llmg.redis")

T = TypeVar("T")

_pack: Any = hiredis.pack_command  # its type knows of commands of one word only

_FIRST_WAIT: Final = 0.1  # seconds between probes; doubles
_LONGEST_WAIT: Final = 1.0
CONNECT: Final = 1.0
"""Seconds that connecting may take."""
_PATIENCE: Final = 5.0  # of those who may wait
_LOOKS: Final = 4  # for an answer, until it is too late
_POLLS: Final = 3  # after the last look: one reads what has come, one wakes who waits for it, and one to spare
_APART: Final = 5.0  # troubles that are further apart don't follow on one another


class Away(Exception):
    """Redis is not there, or did not answer in time."""


class Redis:
    """One process's connections to one Redis. Made without I/O; `start` before use, `aclose` after it."""

    def __init__(self, url: str, *, timeout: float = 0.02, ca: str | None = None) -> None:
        """`url`: `redis://` or `rediss://`, with user, password and database; `timeout`: seconds for a decision,
        `ca`: a file with the certificates that sign the server's, instead of the system's."""
        self.timeout = timeout
        options: dict[str, Any] = {"ssl_ca_certs": ca} if ca else {}
        self.client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            protocol=2,
            driver_info=None,  # would cost two questions a connection
            socket_connect_timeout=CONNECT,
            socket_timeout=_PATIENCE,
            retry=Retry(NoBackoff(), 0),  # what was asked twice would be counted twice
            **options,
        )
        self._present = asyncio.Event()
        self._lost: float | None = None  # when, once that was said; loop's seconds
        self._troubles = 0  # that followed on one another
        self._latest = -math.inf  # trouble; loop's seconds
        self._prober: asyncio.Task[None] | None = None

    @property
    def away(self) -> bool:
        """Is it known not to answer, or not known yet?"""
        return not self._present.is_set()

    async def start(self) -> None:
        """Tries to reach it, for a second at most, and goes on trying in the background."""
        self._prober = asyncio.create_task(self._probe())
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT):
                await self.present()

    async def aclose(self) -> None:
        """Closes all connections."""
        self._present.clear()
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait([self._prober])
        await self.client.aclose()

    async def present(self) -> None:
        """Waits until it is there."""
        await self._present.wait()

    async def decide(self, ask: Callable[[], Awaitable[T]], within: float | None = None) -> T:
        """What it answers, within so many seconds (`timeout`). Raises Away, at once when it is known to be."""
        if self.away:
            raise Away("Redis is away")
        try:
            return await _bounded(ask(), self.timeout if within is None else within)
        except (RedisError, OSError) as error:
            self._mark_away(error)
            raise Away(str(error)) from error

    def _mark_away(self, error: Exception) -> None:
        if self.away:  # somebody else's trouble already
            return
        now = asyncio.get_running_loop().time()
        self._troubles = self._troubles + 1 if now - self._latest < _APART else 1
        self._latest = now
        self._present.clear()
        log.debug("redis did not answer", error=_words(error))
        self._prober = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        """Tries until it is there."""
        loop = asyncio.get_running_loop()
        wait = _FIRST_WAIT * 2**self._troubles if self._troubles > 1 else 0.0
        while True:
            await asyncio.sleep(min(wait, _LONGEST_WAIT))
            try:
                await _bounded(self.client.ping(), CONNECT)  # connects
                await _bounded(self.client.ping(), self.timeout)
            except (RedisError, OSError) as error:
                wait = max(_FIRST_WAIT, wait * 2)
                if self._lost is None:
                    self._lost = loop.time()
                    log.warning("redis is away", error=_words(error))
            else:
                break
        if self._lost is not None:
            log.info("redis is back", after=round(loop.time() - self._lost, 3))
            self._lost = None
        self._present.set()


class Line:
    """A connection for many small commands: all that are there go out in one write. Not for two tasks at once.

    The client's own pipeline takes three times the CPU time, for what it can do besides.
    """

    def __init__(self, shared: Redis, scripts: Sequence[str]) -> None:
        """`scripts` are loaded with the connection, and when one of them is missing."""
        pool: Any = shared.client.connection_pool
        # Who asks has a time limit. Another one would write in a task of its own: later, where the loop is busy.
        self._connection: Any = pool.connection_class(**{**pool.connection_kwargs, "socket_timeout": None})
        self._loads = [("SCRIPT", "LOAD", script) for script in scripts]

    async def connect(self) -> None:
        """Does nothing if it is. Raises RedisError."""
        if not self._connection.is_connected:
            await self._connection.connect()
            await self.ask(self._loads)

    async def aclose(self) -> None:
        """Closes it."""
        await self._connection.disconnect()

    async def ask(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """The commands' answers. Raises RedisError for the first that failed; then, others may have been done.

        Where a script was missing, all are loaded, and the commands that missed one are sent again.
        """
        replies = await self._exchange(commands)
        missed = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missed:
            again = await self._exchange([*self._loads, *[commands[place] for place in missed]])
            for place, reply in zip(missed, again[len(self._loads) :], strict=True):
                replies[place] = reply
        for reply in replies:
            if isinstance(reply, ResponseError):
                await self.aclose()  # a server that is no primary any more says so: the next connection may find it
                raise reply
        return replies

    async def _exchange(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """Answers, and ResponseErrors among them. Left before the end, the connection is closed: what is still to come
        would be taken for the next ones' answers."""
        connection = self._connection
        replies: list[Any] = []
        try:
            packed = b"".join([_pack(tuple(words)) for words in commands])
            await connection.send_packed_command(packed, check_health=False)
            while len(replies) < len(commands):
                try:
                    replies.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
                except ResponseError as error:
                    replies.append(error)
        finally:
            if len(replies) < len(commands):
                await connection.disconnect(nowait=True)
        return replies


async def _bounded(awaitable: Awaitable[T], seconds: float) -> T:
    """Its result. Raises TimeoutError; whatever was under way is cancelled then, and its connection closed."""
    try:
        async with asyncio.timeout(None) as limit:
            looks = _Looks(limit, seconds)
            try:
                return await awaitable
            finally:
                looks.end()
    except TimeoutError as error:
        raise TimeoutError("no answer in time") from error


class _Looks:
    """Ends a time limit after so many seconds, if by then no answer has come.

    While our own loop stands still, as it does when many requests come at once, the answer may lie there unread, and
    timers may run before it is read. That is not taken for Redis's fault: it is looked for several times, of which a
    loop that stands still costs one, and what has come until the last one is read before the time is over.
    """

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._apart = seconds / _LOOKS
        self._left = _LOOKS
        self._next: asyncio.Handle = self._loop.call_later(self._apart, self._look)

    def end(self) -> None:
        """There is no more to look for."""
        self._next.cancel()

    def _look(self) -> None:
        self._left -= 1
        if self._left > 0:
            self._next = self._loop.call_later(self._apart, self._look)
        elif self._left > -_POLLS:
            self._next = self._loop.call_soon(self._look)  # the loop polls in between
        else:
            self._limit.reschedule(self._loop.time())


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

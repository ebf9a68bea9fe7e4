"""A replica of a gateway, as far as its limits go: a process of its own, with clients that never give up.

Run as a program, with its `Options` in JSON. It writes a line for each request that was let in, when that is over
(`in BEGIN END`, monotonic seconds, the same clock for all processes), and one whenever what becomes of requests changes
(`now STATUS`): `in`, `busy` (too many at the same time), `full` (for a minute), `closed` (overloaded); with `alone-`
before it while Redis is away. `ready` comes first; then it waits for a line. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from llmg.boot.system import SystemClock
from llmg.core.errors import Failure, Kind
from llmg.core.levels import Level, Limits
from llmg.routing.limits.book import Book
from llmg.stores.limits import OnFailure, Shared
from llmg.stores.redis import Redis

PATIENCE = 20.0  # seconds; what is waited for takes a few


class Options(Struct, frozen=True, kw_only=True):
    """`hold`: requests that were let in never end. `known`: so many replicas each is to know of before it is ready."""

    url: str
    limits: Limits
    tokens: int = 0
    clients: int = 10
    on_failure: OnFailure = "closed"
    timeout: float = 5.0
    lease: float = 3.0
    hold: bool = False
    known: int = 1


class Replica:
    """The process, from outside."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.admitted: list[tuple[float, float]] = []
        self.status = ""
        self.ended = False
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            word, *rest = line.decode().split()
            if word == "in":
                self.admitted.append((float(rest[0]), float(rest[1])))
            else:
                self.status = rest[0]
            await self._tell()
        self.ended = True
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[Replica], bool]) -> None:
        """Waits until it is so."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: condition(self) or self.ended)
        assert condition(self)

    def go(self) -> None:
        """Its clients begin."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    async def stop(self) -> None:
        """It ends in good order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await self._reader
            assert await self.process.wait() == 0

    def pause(self) -> None:
        """It stands still."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it stood."""
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """It is gone, as by a crash."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader


@asynccontextmanager
async def replicas(number: int, options: Options) -> AsyncIterator[list[Replica]]:
    """So many, alike."""
    program = (sys.executable, "-P", "-W", "error", __file__, msgspec.json.encode(options).decode())
    running: list[Replica] = []
    try:
        while len(running) < number:
            running.append(Replica(await asyncio.create_subprocess_exec(*program, stdin=PIPE, stdout=PIPE)))
        for replica in running:
            await replica.until(lambda one: one.status == "ready")
        for replica in running:
            replica.go()
        yield running
    finally:
        for replica in running:
            await replica.kill()


def most_at_a_time(admitted: list[tuple[float, float]]) -> int:
    """Of requests from when to when."""
    steps = sorted([(begin, 1) for begin, _ in admitted] + [(end, -1) for _, end in admitted])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


class _Clients:
    def __init__(self, options: Options, limiter: Shared) -> None:
        self._options = options
        self._limiter = limiter
        self._levels = [Level(limits=options.limits), Level(name="tenants/acme", limits=options.limits)]
        self._status = ""

    async def ask_on(self) -> None:
        """One client, for ever."""
        while True:
            try:
                reservation = await self._limiter.reserve(self._levels, self._options.tokens)
            except Failure as failure:
                self._say(_word(failure))
            else:
                begin = time.monotonic()
                self._say("in")
                try:
                    await asyncio.sleep(1e6 if self._options.hold else 0.002)  # the answer
                finally:
                    _write(f"in {begin} {time.monotonic()}")
                    reservation.settle(self._options.tokens)
            await asyncio.sleep(0.005)  # the client thinks

    def _say(self, status: str) -> None:
        status = status if self._limiter.up else f"alone-{status}"
        if status != self._status:
            self._status = status
            _write(f"now {status}")


def _word(failure: Failure) -> str:
    if failure.kind is not Kind.RATE_LIMITED:
        return "closed"
    return "busy" if failure.retry_after is None else "full"


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _main(options: Options) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    redis = Redis(options.url, timeout=options.timeout)
    limiter = Shared(redis, Book(), SystemClock(), on_failure=options.on_failure, lease=options.lease)
    await redis.start()
    await limiter.start()
    while limiter.replicas < options.known:
        await asyncio.sleep(0.01)
    _write("now ready")
    await asyncio.to_thread(sys.stdin.readline)
    clients = _Clients(options, limiter)
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(clients.ask_on()) for _ in range(options.clients)]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await limiter.aclose()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Options)))

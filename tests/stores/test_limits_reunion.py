"""Replicas that lost a Redis that then comes back with all it had counted: in simulated time, with the real scripts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.levels import Level, Limits
from llmg.core.limits import LimitReached
from llmg.routing.limits.book import Book
from llmg.stores import limits_link
from llmg.stores.limits import OnFailure, Shared
from llmg.stores.limits_scripts import Names, Scripts
from llmg.stores.redis import Away, Redis
from llmg.testing.clocks import run_leaping
from support.redis import redis_server

T = TypeVar("T")

SCRIPTS = Scripts(time="local now = tonumber(redis.call('GET', 'now'))\n")
START = 1_760_000_000
NAMES = Names("llmg")
GRACE = 3.0  # seconds


class _Clock:
    """The loop's."""

    def monotonic(self) -> float:
        """See `ports.Clock`."""
        return asyncio.get_running_loop().time()

    time = monotonic


class _Connection:
    """In the place of `stores.redis.Redis`: away when a test says so, and found back when it says so."""

    timeout = 0.02

    def __init__(self, client: Any) -> None:
        self.client = client
        self._present = asyncio.Event()
        self._present.set()

    @property
    def away(self) -> bool:
        """See Redis."""
        return not self._present.is_set()

    async def present(self) -> None:
        """See Redis."""
        await self._present.wait()

    async def decide(self, ask: Callable[[], Awaitable[T]], within: float | None = None) -> T:
        """See Redis."""
        if self.away:
            raise Away("Redis is away")
        return await ask()

    def lose(self) -> None:
        """From now on it is away."""
        self._present.clear()

    def find(self) -> None:
        """It is there again."""
        self._present.set()


class _Line:
    """In the place of `stores.redis.Line`: takes no time at all."""

    def __init__(self, shared: _Connection, scripts: Sequence[str]) -> None:
        self._client = shared.client
        self._scripts = scripts

    async def connect(self) -> None:
        """See Line."""
        for script in self._scripts:
            self._client.script_load(script)

    async def aclose(self) -> None:
        """See Line."""

    async def ask(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """See Line."""
        self._client.set("now", round((START + asyncio.get_running_loop().time()) * 1e6))
        return [self._client.execute_command(*words) for words in commands]


class _Gateways:
    """Replicas, and what they let in."""

    def __init__(self, client: Any, limits: Limits, number: int, on_failure: OnFailure = "local") -> None:
        self.client = client
        self.levels = [Level(name="tenants/acme", limits=limits)]
        self.connections = [_Connection(client) for _ in range(number)]
        self.books = [Book() for _ in range(number)]
        self.limiters = [
            Shared(cast(Redis, connection), book, _Clock(), on_failure=on_failure, scripts=SCRIPTS)
            for connection, book in zip(self.connections, self.books, strict=True)
        ]
        self.admitted: list[float] = []

    async def ask(self, place: int, times: int = 1) -> None:
        """One of them, so often."""
        for _ in range(times):
            try:
                (await self.limiters[place].reserve(self.levels, 0)).settle(0)
            except LimitReached:
                return
            self.admitted.append(_Clock().monotonic())

    async def lose(self) -> None:
        """All of them lose Redis, having just been told what was taken."""
        taken = int(self.client.hget(NAMES.counts("tenants/acme"), "requests") or 0)
        for connection, book in zip(self.connections, self.books, strict=True):
            book.tell(self.levels, [(taken, 0, 0.0)], _Clock().monotonic())
            connection.lose()

    def up(self) -> list[bool]:
        """Does Redis decide there?"""
        return [limiter.up for limiter in self.limiters]

    def most(self) -> int:
        """Requests of the fullest 60 seconds."""
        return max([sum(end - 60 <= at <= end for at in self.admitted) for end in self.admitted], default=0)


@asynccontextmanager
async def _gateways(client: Any, limits: Limits, number: int, **options: Any) -> AsyncIterator[_Gateways]:
    """They know of one another."""
    client.flushdb()
    them = _Gateways(client, limits, number, **options)
    for limiter in them.limiters:
        await limiter.start()
    assert all(them.up()), "who begins waits for nobody"
    await asyncio.sleep(1.0)
    yield them
    for limiter in them.limiters:
        await limiter.aclose()


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], Coroutine[Any, Any, None]]:
    """Runs a function with a client of a Redis of its own, on a thread, so that it may have a loop of its own."""

    async def run(simulation: Callable[[Any], None]) -> None:
        monkeypatch.setattr(limits_link, "Line", _Line)
        async with redis_server() as server:
            client: Any = redis.Redis(port=server.port, protocol=2)
            try:
                await asyncio.to_thread(simulation, client)
            finally:
                client.close()

    return run


Run = Callable[[Callable[[Any], None]], Coroutine[Any, Any, None]]


async def _lost_together(client: Any, number: int, limit: int, seed: int) -> None:
    dice = random.Random(seed)
    async with _gateways(client, Limits(requests=limit), number) as them:
        for _ in range(dice.randrange(20)):
            await them.ask(dice.randrange(number))
            await asyncio.sleep(dice.choice([0.0, 0.25, 2.0]))
        await them.lose()
        loop = asyncio.get_running_loop()
        back = loop.time() + dice.uniform(1.3, 40.0)
        alive = sorted(dice.sample(range(number), dice.randint(1, number)))  # the others have died meanwhile
        for place in alive:
            loop.call_at(back + dice.uniform(0.0, 1.5), them.connections[place].find)
        while loop.time() < back + 2.0 + GRACE:
            await them.ask(dice.choice(alive), dice.choice([1, 1, 3, limit]))
            await asyncio.sleep(dice.choice([0.01, 0.1, 0.4]))
        assert them.up() == [place in alive for place in range(number)]
        assert them.most() <= limit


async def test_those_that_lost_redis_together_never_let_in_more_than_the_limit_when_it_is_back(simulated: Run) -> None:
    def simulation(client: Any) -> None:
        @given(st.integers(1, 4), st.integers(4, 24), st.integers(0, 2**32))
        def never_more(number: int, limit: int, seed: int) -> None:
            run_leaping(_lost_together(client, number, limit, seed))

        never_more()

    await simulated(simulation)


async def test_who_was_away_alone_waits_for_nobody(simulated: Run) -> None:
    async def main(client: Any) -> None:
        async with _gateways(client, Limits(requests=10), 3) as them:
            for away in (0.02, 0.5, 2.0, 10.0):
                await asyncio.sleep(3.3)
                them.connections[0].lose()
                await them.ask(0)
                await asyncio.sleep(away)
                assert them.up() == [False, True, True]
                them.connections[0].find()
                await asyncio.sleep(0.001)
                assert them.up() == [True, True, True]

    await simulated(lambda client: run_leaping(main(client)))


async def test_who_comes_back_first_keeps_to_its_share_until_the_others_are_back(simulated: Run) -> None:
    async def main(client: Any) -> None:
        async with _gateways(client, Limits(requests=12), 3) as them:
            await them.lose()
            await asyncio.sleep(5.0)
            for place in (1, 2):
                await them.ask(place, 12)
            them.connections[0].find()
            await asyncio.sleep(1.0)
            await them.ask(0, 12)
            assert len(them.admitted) == 12
            assert them.up() == [False, False, False]
            them.connections[1].find()
            them.connections[2].find()
            await asyncio.sleep(0.29)
            assert them.up() == [False, False, False]
            await asyncio.sleep(0.02)
            assert them.up() == [True, True, True]
            assert int(client.hget(NAMES.counts("tenants/acme"), "requests")) == 12

    await simulated(lambda client: run_leaping(main(client)))


async def test_who_is_gone_is_waited_for_no_longer_than_the_time_of_grace(simulated: Run) -> None:
    async def main(client: Any) -> None:
        async with _gateways(client, Limits(requests=12), 3) as them:
            await them.lose()
            await asyncio.sleep(5.0)
            for place in (0, 1):
                them.connections[place].find()
            await asyncio.sleep(GRACE - 0.3)
            assert them.up() == [False, False, False]
            await asyncio.sleep(0.6)
            assert them.up() == [True, True, False]
            for _ in range(2):  # and then no more, though it is still known
                them.connections[0].lose()
                await them.ask(0)
                await asyncio.sleep(1.0)
                them.connections[0].find()
                await asyncio.sleep(0.001)
                assert them.up() == [True, True, False]

    await simulated(lambda client: run_leaping(main(client)))


@pytest.mark.parametrize("on_failure", ["open", "closed"])
async def test_where_shares_are_not_what_holds_nobody_is_waited_for(simulated: Run, on_failure: OnFailure) -> None:
    async def main(client: Any) -> None:
        async with _gateways(client, Limits(requests=12), 2, on_failure=on_failure) as them:
            await them.lose()
            await asyncio.sleep(5.0)
            them.connections[0].find()
            await asyncio.sleep(0.001)
            assert them.up() == [True, False]

    await simulated(lambda client: run_leaping(main(client)))

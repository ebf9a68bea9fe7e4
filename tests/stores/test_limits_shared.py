"""Limits in Redis, as one process sees them: what is let in, given back, and remembered, with Redis and without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import pytest
import uvloop
from redis import exceptions as redis_errors

from llmg.boot.system import SystemClock
from llmg.core.errors import Failure, Kind
from llmg.core.levels import Level, Limits
from llmg.core.limits import LimitReached
from llmg.ports import Clock
from llmg.routing.limits.book import Book
from llmg.stores.limits import OnFailure, Reserved, Shared
from llmg.stores.limits_link import Replicas, ServerClock
from llmg.stores.redis import Line, Redis
from support.redis import PATIENCE, RedisServer, redis_server

T = TypeVar("T")

ACME = [Level(), Level(name="tenants/acme", limits=Limits(requests=10, tokens=1000, concurrent=8))]
COUNTS = "{llmg}:limits:tenants/acme:counts"
HOLDS = "{llmg}:limits:tenants/acme:holds"


class Counted(Redis):
    """Knows how often it was asked when it was thought to be there."""

    asked = 0

    async def decide(self, ask: Callable[[], Awaitable[T]], within: float | None = None) -> T:
        """See Redis."""
        self.asked += not self.away
        return await super().decide(ask, within)


class Behind(SystemClock):
    """So many seconds late."""

    seconds = 0.0

    def monotonic(self) -> float:
        """See Clock."""
        return super().monotonic() - self.seconds


@asynccontextmanager
async def sharing(
    server: RedisServer,
    *,
    on_failure: OnFailure = "closed",
    timeout: float = 5.0,
    lease: float = 3.0,
    clock: Clock | None = None,
) -> AsyncIterator[tuple[Shared, Counted]]:
    """A limiter, and the connections it uses."""
    redis = Counted(server.url, timeout=timeout)
    limiter = Shared(redis, Book(), clock or SystemClock(), on_failure=on_failure, lease=lease)
    await redis.start()
    await limiter.start()
    try:
        yield limiter, redis
    finally:
        await limiter.aclose()
        await redis.aclose()


async def _take(limiter: Shared, times: int, tokens: int = 0) -> list[Reserved]:
    return [await limiter.reserve(ACME, tokens) for _ in range(times)]


async def _until_up(limiter: Shared) -> None:
    async with asyncio.timeout(20):
        while not limiter.up:
            await asyncio.sleep(0.01)


async def _counts(server: RedisServer) -> dict[str, int]:
    """Requests, tokens and holds of tenants/acme, as Redis has them."""
    redis: Any = Redis(server.url).client
    requests, tokens = await redis.hmget(COUNTS, "requests", "tokens")
    held = await redis.zcard(HOLDS)
    await redis.aclose()
    return {"requests": int(requests or 0), "tokens": int(tokens or 0), "held": held}


async def _settled(server: RedisServer, **expected: int) -> None:
    """Redis comes to have these."""
    async with asyncio.timeout(20):
        while await _counts(server) != expected:
            await asyncio.sleep(0.01)


async def test_what_was_taken_is_noted_and_nobody_waits_for_it() -> None:
    async with redis_server() as server, sharing(server) as (limiter, _):
        less, more, same = await _take(limiter, 3, tokens=100)
        assert await _counts(server) == {"requests": 3, "tokens": 300, "held": 3}
        less.settle(10)
        more.settle(250)
        same.settle(100)
        await _settled(server, requests=3, tokens=360, held=0)


async def test_two_replicas_count_together_and_a_place_is_free_as_soon_as_it_is_given_back() -> None:
    async with redis_server() as server, sharing(server) as (one, _), sharing(server) as (other, _):
        taken = [*await _take(one, 4), *await _take(other, 4)]
        for limiter in (one, other):
            with pytest.raises(LimitReached, match="8 requests at the same time of tenants/acme"):
                await limiter.reserve(ACME, 0)
        taken[0].settle(0)
        await one.reserve(ACME, 0)  # its note goes first
        with pytest.raises(LimitReached, match="at the same time") as raised:
            await other.reserve(ACME, 0)
        assert raised.value.rates.requests is not None
        assert raised.value.rates.requests.remaining == 1


async def test_what_is_left_at_the_end_is_noted_before_it() -> None:
    async with redis_server() as server:
        async with sharing(server) as (limiter, _):
            for taken in await _take(limiter, 5, tokens=100):
                taken.settle(20)
        assert await _counts(server) == {"requests": 5, "tokens": 100, "held": 0}


async def test_who_leaves_while_it_is_decided_takes_nothing_but_a_request() -> None:
    async with redis_server() as server, sharing(server) as (limiter, _):
        leaving = [asyncio.create_task(limiter.reserve(ACME, 100)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        assert all(task.cancelled() for task in leaving)
        await _settled(server, requests=5, tokens=0, held=0)


async def test_scripts_that_redis_has_lost_are_loaded_again() -> None:
    async with redis_server() as server, sharing(server) as (limiter, redis):
        await _take(limiter, 1)
        await redis.client.script_flush()
        await _take(limiter, 1)
        assert limiter.up
        assert (await _counts(server))["requests"] == 2


@pytest.mark.parametrize("on_failure", ["local", "open"])
async def test_a_redis_that_stands_still_holds_up_those_who_asked_it_then_and_counts_nothing_twice(
    on_failure: OnFailure,
) -> None:
    async with redis_server() as server, sharing(server, on_failure=on_failure, timeout=0.1) as (limiter, redis):
        await _until_up(limiter)
        server.pause()
        before = redis.asked
        taken = await asyncio.gather(*[limiter.reserve(ACME, 10) for _ in range(4)])
        assert not limiter.up
        assert redis.asked == before + 1
        taken += await _take(limiter, 3, tokens=10)
        assert redis.asked == before + 1
        server.resume()
        await _until_up(limiter)
        await _settled(server, requests=7, tokens=70, held=7)
        for one in taken:
            one.settle(5)
        await _settled(server, requests=7, tokens=35, held=0)


async def test_what_may_have_been_given_back_is_not_given_back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with redis_server() as server, sharing(server, timeout=0.5) as (limiter, _):
        await _take(limiter, 1, tokens=500)
        (other,) = await _take(limiter, 1, tokens=400)
        ask, lost = Line.ask, asyncio.Event()

        async def lose(line: Line, commands: Sequence[Sequence[str | int]]) -> list[Any]:
            replies = await ask(line, commands)
            if any(-400 in words for words in commands) and not lost.is_set():
                lost.set()
                await line.aclose()
                raise redis_errors.ConnectionError("the reply is lost")
            return replies

        monkeypatch.setattr(Line, "ask", lose)
        other.settle(0)
        async with asyncio.timeout(PATIENCE):
            await lost.wait()
            while not limiter.up:
                await asyncio.sleep(0.01)
        await _settled(server, requests=2, tokens=500, held=1)


async def test_what_came_too_late_is_asked_once_more() -> None:
    clock = Behind()
    async with redis_server() as server, sharing(server, clock=clock) as (limiter, redis):
        await _take(limiter, 1)
        clock.seconds = 3600.0  # so the server, by our clock, is an hour behind what we ask of it
        before = redis.asked
        await _take(limiter, 1)
        assert redis.asked >= before + 2
        assert limiter.up
        assert await _counts(server) == {"requests": 2, "tokens": 0, "held": 2}


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_who_waits_for_our_own_loop_does_not_wait_for_redis(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        async with redis_server() as server, sharing(server, timeout=0.1) as (limiter, redis):
            await _until_up(limiter)
            loop, stalling = asyncio.get_running_loop(), True

            def stall() -> None:
                end = time.perf_counter() + 0.15
                while time.perf_counter() < end:
                    pass
                if stalling:
                    loop.call_soon(stall)

            loop.call_soon(stall)
            before = redis.asked
            try:
                await asyncio.gather(*[limiter.reserve(ACME, 0) for _ in range(8)])
                with pytest.raises(LimitReached):
                    await limiter.reserve(ACME, 0)
            finally:
                stalling = False
            assert redis.asked > before

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


async def test_the_first_decision_takes_one_question() -> None:
    async with redis_server() as server, sharing(server) as (limiter, redis):
        before = redis.asked
        await limiter.reserve(ACME, 0)
        assert redis.asked == before + 1
        assert "errorstat_NOSCRIPT" not in await redis.client.info("errorstats")


async def test_a_redis_that_has_forgotten_is_told_what_was_counted() -> None:
    async with redis_server() as server, sharing(server) as (limiter, _):
        taken = await _take(limiter, 6, tokens=100)
        taken.pop().settle(40)
        await server.restart()
        await _settled(server, requests=6, tokens=540, held=5)
        await _until_up(limiter)
        taken += await _take(limiter, 3)
        for one in taken:
            one.settle(0)
        await limiter.reserve(ACME, 0)
        with pytest.raises(LimitReached, match="10 requests a minute of tenants/acme"):
            await limiter.reserve(ACME, 0)


async def _epoch(redis: Redis) -> bytes:
    """As soon as there is one."""
    async with asyncio.timeout(20):
        while True:
            with suppress(redis_errors.ConnectionError):
                epoch: Any = await redis.client.get("{llmg}:limits:epoch")
                if epoch is not None:
                    return bytes(epoch)
            await asyncio.sleep(0.01)


async def test_replicas_have_time_to_tell_it_before_anybody_is_let_in() -> None:
    async with redis_server() as server, sharing(server) as (limiter, redis):
        at_once = limiter.up  # nothing was lost: there was nothing to wait for
        assert at_once
        await _take(limiter, 1)
        await server.restart()
        epoch = await _epoch(redis)
        assert not limiter.up
        with pytest.raises(Failure, match="cannot be checked"):
            await limiter.reserve(ACME, 0)
        ready = int(epoch.decode().partition("@")[2])
        seconds, micros = await redis.client.time()
        assert ready > seconds * 1_000_000 + micros
        await _until_up(limiter)
        seconds, micros = await redis.client.time()
        assert ready <= seconds * 1_000_000 + micros


async def test_closed_nobody_is_let_in_while_it_is_away() -> None:
    async with redis_server() as server, sharing(server) as (limiter, _):
        await server.kill()
        for _ in range(3):
            with pytest.raises(Failure, match="cannot be checked") as raised:
                await limiter.reserve(ACME, 0)
            assert (raised.value.kind, raised.value.retry_after) == (Kind.OVERLOADED, 1.0)


async def test_local_holds_from_the_first_moment_with_what_was_counted_before() -> None:
    async with redis_server() as server, sharing(server, on_failure="local") as (limiter, _):
        for taken in await _take(limiter, 6):
            taken.settle(0)
        await server.kill()
        await _take(limiter, 4)
        with pytest.raises(LimitReached, match="10 requests a minute of tenants/acme"):
            await limiter.reserve(ACME, 0)


async def _until_replicas(*limiters: Shared) -> None:
    """Each of them knows of all."""
    async with asyncio.timeout(20):
        while any(limiter.replicas != len(limiters) for limiter in limiters):
            await asyncio.sleep(0.01)


async def _take_all(limiter: Shared) -> int:
    """How many there were, until the limit of requests was reached."""
    taken: list[Reserved] = []

    async def ask_on() -> None:
        while len(taken) < 100:
            taken.append(await limiter.reserve(ACME, 0))
            taken[-1].settle(0)

    with pytest.raises(LimitReached, match="the limit of 10 requests a minute of tenants/acme is reached"):
        await ask_on()
    return len(taken)


async def test_local_each_keeps_to_its_share_of_what_was_left_and_both_to_the_whole_afterwards() -> None:
    async with (
        redis_server() as server,
        sharing(server, on_failure="local") as (one, _),
        sharing(server, on_failure="local") as (other, _),
    ):
        await _until_replicas(one, other)
        for limiter in (other, one, one, one, one, one, other):
            (await limiter.reserve(ACME, 0)).settle(0)
        await server.kill()
        assert await _take_all(one) == 0  # it had its share
        assert await _take_all(other) == 1  # of the 3 that were left, rounded down
        await server.start()
        await _until_up(one)
        await _until_up(other)
        await _settled(server, requests=8, tokens=0, held=0)
        assert [await _take_all(one), await _take_all(other)] == [2, 0]
        assert [one.replicas, other.replicas] == [2, 2]


async def test_local_who_was_told_nothing_of_late_has_its_whole_share() -> None:
    async with (
        redis_server() as server,
        sharing(server, on_failure="local") as (one, _),
        sharing(server, on_failure="local") as (other, _),
    ):
        await _until_replicas(one, other)
        assert await _take_all(one) == 10
        await server.kill()
        assert [await _take_all(one), await _take_all(other)] == [0, 5]


async def test_local_what_may_run_at_a_time_is_shared() -> None:
    async with (
        redis_server() as server,
        sharing(server, on_failure="local") as (one, _),
        sharing(server, on_failure="local") as (other, _),
    ):
        await _until_replicas(one, other)
        running = await _take(one, 1)
        await server.kill()
        running += [*await _take(one, 3), *await _take(other, 4)]
        for limiter in (one, other):
            with pytest.raises(LimitReached, match="8 requests at the same time of tenants/acme"):
                await limiter.reserve(ACME, 0)
        running[0].settle(0)
        with pytest.raises(LimitReached, match="8 requests at the same time of tenants/acme"):
            await other.reserve(ACME, 0)
        await one.reserve(ACME, 0)


async def test_it_need_not_be_there_at_the_start() -> None:
    async with redis_server() as server:
        await server.kill()
        async with sharing(server, on_failure="local") as (limiter, _):
            assert not limiter.up
            await _take(limiter, 2, tokens=10)
            await server.start()
            await _until_up(limiter)
            await _settled(server, requests=2, tokens=20, held=2)


async def test_a_key_that_somebody_else_took_is_no_worse_than_no_redis() -> None:
    async with redis_server() as server, sharing(server, on_failure="local") as (limiter, redis):
        await redis.client.set(COUNTS, "mine")
        await _take(limiter, 3)
        await redis.client.delete(COUNTS)
        await _until_up(limiter)
        await _settled(server, requests=3, tokens=0, held=3)


async def test_a_request_that_can_never_be_let_in_is_not_even_asked_for() -> None:
    async with redis_server() as server, sharing(server) as (limiter, _):
        with pytest.raises(Failure) as raised:
            await limiter.reserve(ACME, 1001)
        assert raised.value.kind is Kind.REQUEST_TOO_LARGE
        assert await _counts(server) == {"requests": 0, "tokens": 0, "held": 0}


def test_the_servers_clock_is_known_the_better_the_faster_it_answered() -> None:
    clock = ServerClock()
    clock.seen(1_000_000_000, 10.0, 12.0)  # ahead by 988 to 990
    assert clock.micros(20.0) == 1_008_000_000
    clock.seen(1_001_500_000, 12.0, 12.5)  # by 989 to 989.5
    assert clock.micros(20.0) == 1_009_000_000
    clock.seen(1_010_000_000, 20.0, 30.0)  # by 980 to 990: nothing new
    assert clock.micros(20.0) == 1_009_000_000
    clock.seen(900_000_000, 40.0, 40.5)  # it was set back
    assert clock.micros(40.0) == 900_000_000


def test_more_replicas_are_believed_at_once_and_fewer_after_a_while() -> None:
    replicas = Replicas(grace=3.0)
    assert replicas.number == 1
    replicas.seen(3, 0.0)
    assert replicas.number == 3
    replicas.seen(1, 1.0)
    replicas.seen(2, 3.5)
    assert replicas.number == 3
    replicas.seen(3, 4.0)  # all are back
    replicas.seen(2, 5.0)
    replicas.lost()
    replicas.seen(2, 9.0)
    replicas.seen(2, 12.0)
    assert replicas.number == 3
    replicas.seen(2, 12.5)
    assert replicas.number == 2


async def test_the_leases_of_requests_that_run_are_renewed_and_of_those_that_are_over_not() -> None:
    async with redis_server() as server, sharing(server, lease=1.0) as (limiter, redis):
        over, _ = await _take(limiter, 2)
        client: Any = redis.client
        leases = [lease for _, lease in await client.zrange(HOLDS, 0, -1, withscores=True)]
        over.settle(0)
        async with asyncio.timeout(20):
            while min(left := [lease for _, lease in await client.zrange(HOLDS, 0, -1, withscores=True)]) <= max(
                leases
            ):
                await asyncio.sleep(0.01)
        assert len(left) == 1

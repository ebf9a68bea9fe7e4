"""Several processes and one Redis: exactly the limit is let in, whatever happens to Redis."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any

import pytest
import redis.asyncio as redis_client

from llmg.core.levels import Limits
from support.redis import PATIENCE, RedisServer, redis_server
from support.replica import Options, Replica, most_at_a_time, replicas

pytestmark = pytest.mark.heavy


async def _all(running: list[Replica], status: str) -> None:
    await asyncio.gather(*[replica.until(lambda one: one.status == status) for replica in running])


def _admitted(running: list[Replica]) -> list[tuple[float, float]]:
    return list(chain.from_iterable(replica.admitted for replica in running))


async def _stop(running: list[Replica]) -> None:
    await asyncio.gather(*[replica.stop() for replica in running])


@pytest.mark.parametrize(
    ("limits", "tokens", "expected", "at_a_time"),
    [
        (Limits(requests=300), 0, 300, None),
        (Limits(requests=200, concurrent=4), 0, 200, 4),
        (Limits(tokens=3050, requests=10_000), 10, 305, None),
    ],
    ids=["requests", "concurrent", "tokens"],
)
async def test_exactly_the_limit_is_let_in(limits: Limits, tokens: int, expected: int, at_a_time: int | None) -> None:
    async with redis_server() as redis:
        options = Options(url=redis.url, limits=limits, tokens=tokens)
        async with replicas(3, options) as running:
            await _all(running, "full")
            await _stop(running)
            admitted = _admitted(running)
            assert len(admitted) == expected
            assert at_a_time is None or most_at_a_time(admitted) == at_a_time
            assert all(replica.admitted for replica in running)


async def test_closed_exactly_the_limit_although_redis_forgets_in_between() -> None:
    async with redis_server() as redis:
        options = Options(url=redis.url, limits=Limits(requests=1200, concurrent=5), on_failure="closed")
        async with replicas(3, options) as running:
            await asyncio.gather(*[replica.until(lambda one: len(one.admitted) >= 20) for replica in running])
            await redis.kill()
            await _all(running, "alone-closed")
            before = len(_admitted(running))
            assert before < 1200
            await redis.start()
            await _all(running, "full")
            await _stop(running)
            admitted = _admitted(running)
            assert len(admitted) == 1200
            assert most_at_a_time(admitted) == 5


async def test_local_each_process_keeps_to_its_share_and_all_of_them_to_the_limit_afterwards() -> None:
    async with redis_server() as redis:
        options = Options(url=redis.url, limits=Limits(requests=1800), on_failure="local", known=3)
        async with replicas(3, options) as running:
            await asyncio.gather(*[replica.until(lambda one: len(one.admitted) >= 10) for replica in running])
            await redis.kill()
            await _all(running, "alone-full")
            alone = [len(replica.admitted) for replica in running]
            await redis.start()
            await _all(running, "full")
            await _stop(running)
            assert max(alone) <= 600
            assert len(_admitted(running)) == 1800


async def test_local_who_finds_redis_first_lets_in_nothing_on_behalf_of_those_it_has_not_heard_of() -> None:
    async with redis_server() as redis:
        options = Options(url=redis.url, limits=Limits(requests=1800), on_failure="local", known=3)
        async with replicas(3, options) as running:
            first, *others = running
            await asyncio.gather(*[replica.until(lambda one: len(one.admitted) >= 10) for replica in running])
            redis.pause()
            await _all(running, "alone-full")
            for replica in others:
                replica.pause()
            redis.resume()
            await _asked_on(redis)
            assert first.status == "alone-full"
            for replica in others:
                replica.resume()
            await _all(running, "full")
            await _stop(running)
            assert len(_admitted(running)) == 1800


async def _asked_on(redis: RedisServer) -> None:
    """Somebody has asked it so often that a replica that did not wait would let in what is left."""
    client: Any = redis_client.Redis.from_url(redis.url)
    asked = await _commands(client)
    async with asyncio.timeout(PATIENCE):
        while await _commands(client) < asked + 8:
            await asyncio.sleep(0.01)
    await client.aclose()


async def _commands(client: Any) -> int:
    return int((await client.info("commandstats"))["cmdstat_evalsha"]["calls"])


async def test_local_hardly_more_at_a_time_while_what_ran_before_is_not_over() -> None:
    async with redis_server() as redis:
        options = Options(url=redis.url, limits=Limits(requests=1200, concurrent=6), on_failure="local", known=3)
        async with replicas(3, options) as running:
            await asyncio.gather(*[replica.until(lambda one: len(one.admitted) >= 10) for replica in running])
            await redis.kill()
            await _all(running, "alone-full")
            assert max(len(replica.admitted) for replica in running) <= 400
            await redis.start()
            await _all(running, "full")
            await _stop(running)
            assert len(_admitted(running)) == 1200
            assert most_at_a_time(_admitted(running)) <= 6 + 2 + 2  # all of them one's, and two others' shares


async def test_open_all_are_let_in_and_none_afterwards() -> None:
    async with redis_server() as redis:
        options = Options(url=redis.url, limits=Limits(requests=600), on_failure="open")
        async with replicas(3, options) as running:
            await asyncio.gather(*[replica.until(lambda one: len(one.admitted) >= 10) for replica in running])
            await redis.kill()
            await asyncio.gather(*[replica.until(lambda one: len(one.admitted) > 700) for replica in running])
            assert {replica.status for replica in running} == {"alone-in"}
            await redis.start()
            await _all(running, "full")
            after = [len(replica.admitted) for replica in running]
            await _stop(running)
            # What was let in before may have ended since; each of its clients had one at most.
            assert all(0 <= len(one.admitted) - before <= 10 for one, before in zip(running, after, strict=True))


async def test_what_a_process_that_was_killed_had_running_runs_no_more_after_its_lease() -> None:
    async with redis_server() as redis:
        options = Options(url=redis.url, limits=Limits(concurrent=5), clients=5, hold=True, lease=1.0)
        async with replicas(1, options) as (holding,):
            await holding.until(lambda one: one.status == "in")
            async with replicas(1, Options(url=redis.url, limits=Limits(concurrent=5), lease=1.0)) as (waiting,):
                await waiting.until(lambda one: one.status == "busy")
                await holding.kill()
                await waiting.until(lambda one: len(one.admitted) >= 20)
                assert most_at_a_time(waiting.admitted) == 5

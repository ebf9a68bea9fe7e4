"""A Redis that is slow or dead costs little, and is missed by nobody for longer than it is gone."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import Any

import pytest
import uvloop
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from llmg.stores.redis import Away, Line, Redis
from support.http import PATIENCE
from support.redis import RedisServer, redis_server

SCRIPT = "return {KEYS[1], ARGV[1]}"


@asynccontextmanager
async def connected(server: RedisServer, timeout: float = 5.0) -> AsyncIterator[Redis]:
    redis = Redis(server.url, timeout=timeout)
    await redis.start()
    try:
        yield redis
    finally:
        await redis.aclose()


async def _there(redis: Redis) -> None:
    async with asyncio.timeout(20):
        await redis.present()


async def test_an_answer_is_given() -> None:
    async with redis_server() as server, connected(server) as redis:
        assert not redis.away
        assert await redis.decide(lambda: redis.client.set("a", "b"))
        assert await redis.decide(lambda: redis.client.get("a")) == b"b"


async def test_who_asks_a_redis_that_stands_still_waits_once_and_the_next_ones_not_at_all() -> None:
    async with redis_server() as server, connected(server, timeout=0.02) as redis:
        server.pause()
        asked = 0

        async def ask() -> object:
            nonlocal asked
            asked += 1
            return await redis.client.get("a")

        for _ in range(100):
            with pytest.raises(Away):
                await redis.decide(ask)
        assert asked == 1
        assert redis.away
        server.resume()
        await _there(redis)


async def test_it_is_said_once_that_it_is_gone_and_once_that_it_is_back() -> None:
    async with redis_server() as server, connected(server) as redis:
        with capture_logs() as logs:
            await server.kill()
            with pytest.raises(Away):
                await redis.decide(lambda: redis.client.get("a"))
            async with asyncio.timeout(20):
                while len(logs) < 2:
                    await asyncio.sleep(0.01)
            with pytest.raises(Away):
                await redis.decide(lambda: redis.client.get("a"))
            await server.start()
            await _there(redis)
        told = [line for line in logs if line["log_level"] != "debug"]
        assert [(line["event"], line["log_level"]) for line in told] == [
            ("redis is away", "warning"),
            ("redis is back", "info"),
        ]
        assert await redis.decide(lambda: redis.client.get("a")) is None


async def test_a_moments_trouble_is_not_worth_a_word() -> None:
    async with redis_server() as server, connected(server) as redis:
        with capture_logs() as logs:

            async def never() -> None:
                await asyncio.Event().wait()

            with pytest.raises(Away):
                await redis.decide(never, within=0.01)
            await _there(redis)
        assert [line["log_level"] for line in logs] == ["debug"]


async def test_a_loop_that_stood_still_is_not_redis_fault() -> None:
    async with redis_server() as server, connected(server, timeout=0.05) as redis:
        loop = asyncio.get_running_loop()
        stalled = False

        def stall() -> None:
            nonlocal stalled
            stalled = True
            end = loop.time() + 0.2
            while loop.time() < end:
                pass

        loop.call_later(0.0, stall)
        assert await redis.decide(lambda: redis.client.echo("a")) == b"a"
        assert stalled


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_answer_that_lies_there_unread_when_the_time_is_over_has_come_in_time(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        async with redis_server() as server, connected(server, timeout=0.2) as redis:
            line, loop = Line(redis, []), asyncio.get_running_loop()
            await line.connect()
            here, there = socket.socketpair()
            own = line._connection._writer.get_extra_info("socket")
            transport, _ = await loop.create_connection(lambda: Stalling(own), sock=here)
            loop.call_later(0.165, there.send, b"a")
            try:
                asked = line.ask([("BLPOP", "nothing", "0.18"), ("ECHO", "a")])
                assert await redis.decide(lambda: asked) == [None, b"a"]
            finally:
                await line.aclose()
                transport.close()
                there.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


class Stalling(asyncio.Protocol):
    """Works on what it is sent, while the loop polls: for a while, and until there is something to read elsewhere."""

    def __init__(self, elsewhere: Any) -> None:
        self._elsewhere = elsewhere

    def data_received(self, data: bytes) -> None:
        """See Protocol."""
        end = time.perf_counter() + 0.2
        while time.perf_counter() < end:
            pass
        select.select([self._elsewhere], [], [], PATIENCE)


async def test_one_that_is_not_there_yet_comes_later() -> None:
    async with redis_server() as server:
        await server.kill()
        async with connected(server) as redis:
            assert redis.away
            with pytest.raises(Away):
                await redis.decide(lambda: redis.client.get("a"))
            await server.start()
            await _there(redis)
            assert await redis.decide(lambda: redis.client.get("a")) is None


async def test_a_line_answers_in_order_and_loads_scripts_that_are_missing() -> None:
    async with redis_server() as server, connected(server) as redis:
        sha = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
        line = Line(redis, [SCRIPT])
        for _ in range(2):
            await redis.client.script_flush()
            asked = [("EVALSHA", sha, 1, "a", 1), ("ECHO", "b"), ("EVALSHA", sha, 1, "c", 2)]
            assert await line.ask(asked) == [[b"a", b"1"], b"b", [b"c", b"2"]]
        with pytest.raises(ResponseError, match="unknown command"):
            await line.ask([("ECHO", "a"), ("NONSENSE",), ("ECHO", "b")])
        assert await line.ask([("ECHO", "c")]) == [b"c"]
        await line.aclose()


async def test_a_line_that_is_connected_has_its_scripts_loaded() -> None:
    async with redis_server() as server, connected(server) as redis:
        line = Line(redis, [SCRIPT])
        await line.connect()
        assert await redis.client.script_exists(sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()) == [True]
        await line.aclose()


async def test_who_leaves_a_line_leaves_no_answer_to_the_next() -> None:
    async with redis_server() as server, connected(server) as redis:
        line = Line(redis, [])
        assert await line.ask([("ECHO", "a")]) == [b"a"]
        server.pause()
        task = asyncio.create_task(line.ask([("ECHO", "b")]))
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done
        task.cancel()
        await asyncio.wait([task])
        server.resume()
        assert await line.ask([("ECHO", "c")]) == [b"c"]
        await line.aclose()

"""The catalog in a real Redis: what becomes of it when that is slow, gone, restarted, or emptied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import structlog

from llmg.core.errors import Failure, Kind
from llmg.ports import AuditEntry, Conflict, Document
from llmg.stores import redis as connections
from llmg.stores.catalog_redis import RedisCatalog
from llmg.stores.redis import Redis
from support.redis import PATIENCE, RedisServer, redis_server


def entry(after: int, **fields: Any) -> AuditEntry:
    """Of a change."""
    made: dict[str, Any] = {"time": 1.5, "actor": "ops", "method": "UpdateLevel", "resource": "tenants/acme", **fields}
    return AuditEntry(before=after - 1, after=after, **made)


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A server of the test's own."""
    async with redis_server() as server:
        yield server


@pytest.fixture
async def make(server: RedisServer) -> AsyncIterator[Callable[..., RedisCatalog]]:
    """Gives stores of it, each with connections of its own."""
    clients: list[Redis] = []

    def make(**options: Any) -> RedisCatalog:
        clients.append(Redis(server.url))
        return RedisCatalog(clients[-1].client, **options)

    yield make
    for client in clients:
        await client.aclose()


@asynccontextmanager
async def watching(store: RedisCatalog, seen: int) -> AsyncIterator[asyncio.Queue[int]]:
    """What it tells."""
    told: asyncio.Queue[int] = asyncio.Queue()
    task = asyncio.create_task(store.watch(seen, told.put))
    try:
        yield told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it is so."""
    async with asyncio.timeout(PATIENCE):
        while not await look():
            await asyncio.sleep(0.01)


async def subscribers(server: RedisServer) -> int:
    """How many listen to changes."""
    return int((await server.command("PUBLISH {llmg:catalog}:changes 0")).strip(b":\r\n"))


async def test_after_a_restart_it_listens_again(server: RedisServer, make: Callable[..., RedisCatalog]) -> None:
    one, other = make(), make(poll=3600)
    await one.save(Document(1, {"a": {}}), entry(1))
    async with watching(other, 0) as told, asyncio.timeout(PATIENCE):
        assert await told.get() == 1
        await server.restart()  # empty
        await until(lambda: _is(subscribers(server), 1))
        await make().save(Document(1, {"b": {}}), entry(1))
        assert await told.get() == 1  # another one of the same number
        assert await other.load() == Document(1, {"b": {}})


async def _is(found: Awaitable[int], wanted: int) -> bool:
    return await found == wanted


async def test_a_catalog_that_is_gone_is_no_empty_one(server: RedisServer, make: Callable[..., RedisCatalog]) -> None:
    store = make(poll=0.01)
    await store.save(Document(1, {"a": {}}), entry(1))
    with structlog.testing.capture_logs() as logs:
        async with watching(store, 1) as told:
            await server.command("FLUSHALL")
            await until(lambda: _is(_count(logs, "the catalog is gone from Redis"), 1))
            assert told.empty()
    assert (await _failure(store.load())).kind is Kind.INTERNAL
    assert await make().load() == Document(0, {})  # who never saw it can't know


async def _count(logs: Any, words: str) -> int:
    return sum(words in line["event"] for line in logs)


async def _failure(doing: Awaitable[object]) -> Failure:
    with pytest.raises(Failure) as failed:
        await doing
    return failed.value


async def test_a_message_that_was_lost_is_made_up_for(server: RedisServer, make: Callable[..., RedisCatalog]) -> None:
    store = make(poll=0.05)
    async with watching(store, 0) as told, asyncio.timeout(PATIENCE):
        await until(lambda: _is(subscribers(server), 1))
        await server.command("HSET {llmg:catalog} version 1 tenants {}")  # and nobody is told
        assert await told.get() == 1


async def test_a_redis_that_stood_still_is_heard_again(
    server: RedisServer, make: Callable[..., RedisCatalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_PATIENCE", 0.1)
    store = make(poll=0.05)
    with structlog.testing.capture_logs() as logs:
        async with watching(store, 0) as told:
            await until(lambda: _is(subscribers(server), 1))
            server.pause()
            await until(lambda: _is(_any(logs, "the catalog's Redis can't be reached"), 1))
            assert (await _failure(store.load())).kind is Kind.UPSTREAM_UNAVAILABLE
            server.resume()
            await make().save(Document(1, {}), entry(1))
            async with asyncio.timeout(PATIENCE):
                assert await told.get() == 1


async def _any(logs: Any, words: str) -> int:
    return min(1, await _count(logs, words))


async def test_a_redis_that_is_not_there_is_a_failure(server: RedisServer, make: Callable[..., RedisCatalog]) -> None:
    store = make()
    await server.kill()
    for doing in (
        store.load(),
        store.save(Document(1, {}), entry(1)),
        store.append(entry(1)),
        store.entries(1, ""),
    ):
        failure = await _failure(doing)
        assert (failure.kind, failure.message) == (Kind.UPSTREAM_UNAVAILABLE, "the catalog's Redis can't be reached")


async def test_what_is_no_catalog_is_a_failure(server: RedisServer, make: Callable[..., RedisCatalog]) -> None:
    await server.command("HSET {llmg:catalog} version 1 tenants [1]")
    assert (await _failure(make().load())).kind is Kind.INTERNAL


async def test_the_same_change_asked_for_twice_is_made_once(make: Callable[..., RedisCatalog]) -> None:
    store = make()
    for _ in range(2):  # as by a client whose connection broke before the answer
        await store.save(Document(1, {"a": {}}), entry(1, request_id="req_1"))
    with pytest.raises(Conflict):
        await store.save(Document(1, {"a": {}}), entry(1, request_id="req_2"))
    found, _ = await store.entries(10, "")
    assert len(found) == 1


async def test_the_log_does_not_grow_without_end(server: RedisServer, make: Callable[..., RedisCatalog]) -> None:
    store = make(kept=10)
    for number in range(500):
        await store.append(entry(1, resource=str(number)))
    length = int((await server.command("XLEN {llmg:catalog}:audit:refused")).strip(b":\r\n"))
    assert 10 <= length < 200  # Redis forgets them by the hundred
    found, _ = await store.entries(3, "")
    assert [e.resource for e in found] == ["499", "498", "497"]


async def test_what_was_refused_takes_no_change_s_place(make: Callable[..., RedisCatalog]) -> None:
    store = make(kept=10)
    await store.save(Document(1, {}), entry(1, resource="change"))
    for _ in range(500):
        await store.append(entry(1, resource="refused"))
    found, token = await store.entries(1000, "")
    assert (found[-1].resource, token) == ("change", "")


async def test_the_log_tells_in_which_order_it_was(make: Callable[..., RedisCatalog]) -> None:
    """Many in each millisecond, some refused and some not, wherever a page ends."""
    store = make()
    done: list[tuple[int, str]] = []
    for version in range(1, 101):
        await store.save(Document(version, {}), entry(version))
        await store.append(entry(version, outcome="forbidden"))
        done += [(version, "ok"), (version, "forbidden")]
    for size in (1, 2, 3, 50, 199, 200, 201):
        seen: list[tuple[int, str]] = []
        token = ""
        while True:
            page, token = await store.entries(size, token)
            seen += [(e.after, e.outcome) for e in page]
            if not token:
                break
        assert seen == done[::-1]


async def test_an_error_of_the_one_that_is_told_ends_the_watch(make: Callable[..., RedisCatalog]) -> None:
    store = make()
    await store.save(Document(1, {}), entry(1))

    async def fail(version: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(PATIENCE):
            await store.watch(0, fail)

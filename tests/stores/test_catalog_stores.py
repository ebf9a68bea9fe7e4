"""What every store of the catalog does, with two processes' stores before the same place."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from llmg.core.errors import Failure, Kind
from llmg.ports import AuditEntry, CatalogStore, Conflict, Document
from llmg.stores.catalog_file import FileCatalog
from llmg.stores.catalog_fixed import FixedCatalog
from llmg.stores.catalog_redis import RedisCatalog
from llmg.stores.redis import Redis
from support.http import PATIENCE
from support.redis import redis_server

WRITER = """
import asyncio, sys
from pathlib import Path
from llmg.ports import AuditEntry, Conflict, Document

def make(kind, place):
    if kind == "file":
        from llmg.stores.catalog_file import FileCatalog
        return FileCatalog(Path(place))
    from llmg.stores.catalog_redis import RedisCatalog
    from llmg.stores.redis import Redis
    return RedisCatalog(Redis(place).client)

async def add(store, name):
    while True:
        held = await store.load()
        document = Document(held.version + 1, {**held.tenants, name: {}})
        entry = AuditEntry(time=0.0, actor="a", method="m", resource=name, before=held.version, after=document.version)
        try:
            return await store.save(document, entry)
        except Conflict:
            continue

async def main(kind, place, own):
    store = make(kind, place)  # its connections end with the process
    for number in range(5):
        await asyncio.gather(*(add(store, f"{own}-{number}-{task}") for task in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""

Make = Callable[[], CatalogStore]


class Place:
    """Where a catalog is; `make` gives one more store of it."""

    def __init__(self, kind: str, address: str, make: Make) -> None:
        self.kind = kind
        self.address = address
        self.make = make


@pytest.fixture(params=["file", "redis"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Each kind that can be changed."""
    if request.param == "file":
        path = tmp_path / "catalog.yaml"
        yield Place("file", str(path), lambda: FileCatalog(path, interval=0.01))
        return
    clients: list[Redis] = []
    async with redis_server() as server:

        def make() -> CatalogStore:
            clients.append(Redis(server.url))
            return RedisCatalog(clients[-1].client)

        yield Place("redis", server.url, make)
        for client in clients:
            await client.aclose()


def entry(after: int, **fields: Any) -> AuditEntry:
    """Of a change."""
    made: dict[str, Any] = {"time": 1.5, "actor": "ops", "method": "UpdateLevel", "resource": "tenants/acme", **fields}
    return AuditEntry(**{"before": after - 1, "after": after, **made})


@asynccontextmanager
async def watching(store: CatalogStore, seen: int) -> AsyncIterator[asyncio.Queue[int]]:
    """What it tells."""
    told: asyncio.Queue[int] = asyncio.Queue()
    task = asyncio.create_task(store.watch(seen, told.put))
    try:
        yield told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_there_is_none_at_first(place: Place) -> None:
    store = place.make()
    assert await store.load() == Document(0, {})
    assert await store.entries(10, "") == ([], "")


async def test_what_is_saved_is_held_for_all(place: Place) -> None:
    one, other = place.make(), place.make()
    tenants = {"acme": {"labels": {"a": "b"}, "allow": ["*"], "limits": {"requests_per_minute": 3}}}
    await one.save(Document(1, tenants), entry(1))
    assert await other.load() == Document(1, tenants)


async def test_who_was_slower_is_told_so(place: Place) -> None:
    one, other = place.make(), place.make()
    await one.save(Document(1, {"one": {}}), entry(1))
    with pytest.raises(Conflict):
        await other.save(Document(1, {"other": {}}), entry(1, resource="tenants/other"))
    with pytest.raises(Conflict):
        await other.save(Document(3, {"other": {}}), entry(3))
    assert await other.load() == Document(1, {"one": {}})
    found, _ = await one.entries(10, "")
    assert found == [entry(1)]


async def test_a_change_is_seen_by_the_other_within_a_second(place: Place) -> None:
    one, other = place.make(), place.make()
    async with watching(other, 0) as told:
        for version in range(1, 4):
            await one.save(Document(version, {f"t{version}": {}}), entry(version))
            async with asyncio.timeout(1.0):
                assert await told.get() == version
            assert (await other.load()).tenants == {f"t{version}": {}}
        assert told.empty()


async def test_what_happened_before_it_watched_is_told(place: Place) -> None:
    one, other = place.make(), place.make()
    await one.save(Document(1, {}), entry(1))
    async with watching(other, 0) as told, asyncio.timeout(PATIENCE):
        assert await told.get() == 1


async def test_what_was_refused_is_in_the_log_and_is_no_version(place: Place) -> None:
    store = place.make()
    await store.save(Document(1, {"acme": {}}), entry(1))
    refused = entry(1, before=1, outcome="invalid_request")
    await store.append(refused)
    assert await store.load() == Document(1, {"acme": {}})
    await store.save(Document(2, {}), entry(2))
    found, _ = await store.entries(10, "")
    assert found == [entry(2), refused, entry(1)]


async def test_the_log_comes_in_pages(place: Place) -> None:
    store = place.make()
    for version in range(1, 8):
        await store.save(Document(version, {}), entry(version))
    first, token = await store.entries(3, "")
    await store.save(Document(8, {}), entry(8))  # which changes no page that follows
    second, token = await store.entries(3, token)
    third, end = await store.entries(3, token)
    assert [[e.after for e in page] for page in (first, second, third)] == [[7, 6, 5], [4, 3, 2], [1]]
    assert end == ""


@pytest.mark.parametrize("token", ["x", "3", "-1", "9" * 30, "1-", "5-5-5"])
async def test_a_token_of_its_own_making_is_refused(place: Place, token: str) -> None:
    store = place.make()
    await store.save(Document(1, {}), entry(1))
    with pytest.raises(Failure, match="page_token") as failed:
        await store.entries(3, token)
    assert failed.value.kind is Kind.INVALID_REQUEST


async def test_no_change_of_many_processes_is_lost(place: Place) -> None:
    writers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, place.kind, place.address, f"p{number}")
        for number in range(4)
    ]
    async with asyncio.timeout(60):
        assert [await writer.wait() for writer in writers] == [0, 0, 0, 0]
    store = place.make()
    held = await store.load()
    wanted = {f"p{p}-{number}-{task}" for p in range(4) for number in range(5) for task in range(4)}
    assert set(held.tenants) == wanted
    assert held.version == len(wanted)
    found, _ = await store.entries(1000, "")
    assert [e.after for e in found] == list(range(len(wanted), 0, -1))
    assert {e.resource for e in found} == wanted


async def test_that_of_the_configuration_file_is_changed_there() -> None:
    tenants: dict[str, Any] = {"acme": {}}
    store = FixedCatalog(lambda: tenants)
    assert await store.load() == Document(0, {"acme": {}})
    with pytest.raises(Failure, match="the catalog is in the configuration file: edit it there") as failed:
        await store.save(Document(1, {}), entry(1))
    assert failed.value.kind is Kind.METHOD_NOT_ALLOWED
    await store.append(entry(1))
    assert await store.entries(10, "") == ((), "")
    async with watching(store, 0) as told:
        assert told.empty()


async def test_tenants_of_the_configuration_are_gathered_beside_the_requests() -> None:
    threads: list[int] = []

    def tenants() -> dict[str, Any]:
        threads.append(threading.get_ident())
        return {}

    assert await FixedCatalog(tenants).load() == Document(0, {})
    assert threads != [threading.get_ident()]

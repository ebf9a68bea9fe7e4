"""What a start reads, and how often."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from boot.conftest import Serve
from llmg.boot.administration import open_catalog
from llmg.boot.container import Container
from llmg.boot.serve import serve as run
from llmg.boot.settings import Settings
from llmg.core.context import ADMIN, Context, Principal
from llmg.ports import AuditEntry, Document
from llmg.services.admin import Changes
from llmg.services.admission import digest
from llmg.stores.catalog_file import FileCatalog
from support.gateway import ECHO, chat
from support.http import PATIENCE

KEY = "sk-" + "a" * 32


def catalog(revoked: bool = False) -> str:
    key = {"id": "k", "sha256": digest(KEY).hex(), "revoked": revoked}
    endpoint = {"endpoints": {"web": {"keys": [key]}}}
    return json.dumps({"tenants": {"acme": {"teams": {"t": {"groups": {"g": endpoint}}}}}})


async def test_the_catalog_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Document] = []
    load = FileCatalog.load

    async def counted(store: FileCatalog) -> Document:
        read.append(await load(store))
        return read[-1]

    monkeypatch.setattr(FileCatalog, "load", counted)
    file = tmp_path / "catalog.json"
    file.write_text(catalog())
    off = {"catalog": {"file": file}, "grpc": {"enabled": False}, "server": {"grace": 0}}
    settings = Settings(**off)  # type: ignore[arg-type]
    found, held = await open_catalog(settings)
    assert list(found.tenants) == ["acme"]
    stop, ready = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        tasks.create_task(run(found, {}, None, stop, ready=ready.set, held=held))
        await ready.wait()
        stop.set()
    assert read == [held]


async def test_a_change_that_was_begun_is_made_before_the_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, ready, saving = asyncio.Event(), asyncio.Event(), asyncio.Event()
    made: list[Container] = []
    save = FileCatalog.save

    def container(**given: Any) -> Any:
        made.append(Container(**given))
        return made[-1]

    async def slow(store: FileCatalog, document: Document, entry: AuditEntry) -> None:
        saving.set()
        await stop.wait()
        for _ in range(1000):  # all else is ended by then
            await asyncio.sleep(0)
        await save(store, document, entry)

    monkeypatch.setattr("llmg.boot.serve.Container", container)
    monkeypatch.setattr(FileCatalog, "save", slow)
    file = tmp_path / "catalog.json"
    file.write_text(catalog())
    off = {"catalog": {"file": file}, "grpc": {"enabled": False}, "server": {"grace": 0}}
    settings, held = await open_catalog(Settings(**off))  # type: ignore[arg-type]
    ops = Principal(key_id="ops", roles=frozenset({ADMIN}))
    context = Context(id="i", request_id="r", door="grpc", created=0, principal=ops)
    async with asyncio.timeout(PATIENCE):
        running = asyncio.create_task(run(settings, {}, None, stop, ready=ready.set, held=held))
        await ready.wait()
        asking = asyncio.create_task(made[0].admin().create_level(context, "tenants/globex", Changes()))
        await saving.wait()
        asking.cancel()
        stop.set()
        await running
    assert "globex" in file.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_its_keys_are_good_from_the_start_and_its_changes_are_seen(
    serve: Serve, tmp_path: Path, workers: str
) -> None:
    file = tmp_path / "catalog.json"
    file.write_text(catalog())
    gateway = await serve({**ECHO, "catalog": {"file": str(file)}}, "--workers", workers, ready=int(workers))
    shown = {"x-api-key": KEY}
    assert (await gateway.post("/v1/chat/completions", chat("echo/x"), shown)).status == 200
    applied = [entry for entry in gateway.entries if entry["event"] == "catalog in force"]
    assert len(applied) == (0 if workers == "1" else 2)  # who is alone serves what was read before it listened
    file.write_text(catalog(revoked=True))
    await gateway.said("the catalog was taken over", int(workers))
    assert (await gateway.post("/v1/chat/completions", chat("echo/x"), shown)).status == 401

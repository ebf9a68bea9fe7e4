"""What a start reads, and how often."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from boot.conftest import Serve
from llmg.boot.administration import open_catalog
from llmg.boot.serve import serve as run
from llmg.boot.settings import Settings
from llmg.ports import Document
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

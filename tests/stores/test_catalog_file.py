"""The catalog in a file: what people and other processes do to it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from llmg.core.errors import Failure, Kind
from llmg.ports import AuditEntry, Conflict, Document
from llmg.stores import catalog_file, catalog_text
from llmg.stores.catalog_file import EDIT, FileCatalog
from support.http import PATIENCE

WRITER = """
import asyncio, sys
from pathlib import Path
from llmg.ports import AuditEntry, Document
from llmg.stores.catalog_file import FileCatalog

async def main():
    store = FileCatalog(Path(sys.argv[1]))
    for number in range(10**6):
        held = await store.load()
        entry = AuditEntry(time=0.0, actor="a", method="m", resource="r", before=held.version, after=held.version + 1)
        tenants = {f"t{i}": {"labels": {"at": str(held.version + 1)}} for i in range(2000)}
        await store.save(Document(held.version + 1, tenants), entry)
        print(number, flush=True)

asyncio.run(main())
"""

BOMB = "tenants: {a: &a0 {}, " + ", ".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 60)) + "}"


def entry(after: int, **fields: Any) -> AuditEntry:
    """Of a change."""
    made: dict[str, Any] = {"time": 1.0, "actor": "ops", "method": "UpdateLevel", "resource": "tenants/acme", **fields}
    return AuditEntry(before=after - 1, after=after, **made)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the catalog is."""
    return tmp_path / "catalog.yaml"


@asynccontextmanager
async def watching(store: FileCatalog, seen: int) -> AsyncIterator[asyncio.Queue[int]]:
    """What it tells."""
    told: asyncio.Queue[int] = asyncio.Queue()
    task = asyncio.create_task(store.watch(seen, told.put))
    try:
        yield told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_what_people_write_is_read_and_what_is_written_people_can_read(path: Path) -> None:
    path.write_text(
        "tenants:\n  acme:\n    teams: {search: }\n"
        "    labels: &own {since: 2026-01-01}  # a text\n  other: {labels: *own}\n"
    )
    store = FileCatalog(path)
    held = await store.load()
    labels = {"since": "2026-01-01"}
    assert held == Document(1, {"acme": {"teams": {"search": None}, "labels": labels}, "other": {"labels": labels}})
    await store.save(Document(2, {"acme": {"labels": {"since": "2026-01-01", "on": "yes"}}}), entry(2))
    assert path.read_text().splitlines()[1:] == [
        "tenants:",
        "  acme:",
        "    labels:",
        "      since: '2026-01-01'",
        "      'on': 'yes'",
    ]
    assert (await store.load()).tenants == {"acme": {"labels": {"since": "2026-01-01", "on": "yes"}}}


async def test_json_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    path.write_text('{"tenants": {"acme": {}}}')
    store = FileCatalog(path)
    assert await store.load() == Document(1, {"acme": {}})
    await store.save(Document(2, {"other": {}}), entry(2))
    assert json.loads(path.read_text()) == {"tenants": {"other": {}}}


keys = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(keys, values, max_size=4))
@pytest.mark.parametrize("as_yaml", [True, False])
def test_what_is_written_is_what_is_read(as_yaml: bool, tenants: dict[str, Any]) -> None:
    assert catalog_text.parse(catalog_text.serialize(tenants, as_yaml=as_yaml)) == tenants


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("tenants: [", "neither YAML nor JSON (line 2, column 1)"),
        ("tenants: {}\nproviders: {}", "expected `tenants` at its top, and nothing else"),
        ("tenants: {a: {}, a: {}}", "a key stands twice (line 1, column 18)"),
        ("tenants: [a]", "expected a mapping below `tenants`"),
        ("tenants: !!python/object:os.system {}", "tags (`!...`) are not understood (line 1, column 10)"),
        ("tenants: {1: {}}", "a key is not text: put it in quotes (line 1, column 11)"),
        (BOMB, "its aliases stand for too much (line 1, column 487)"),
        ("tenants: *a", "an alias without its anchor (line 1, column 10)"),
        ("tenants: {}\n---\ntenants: {}", "a second document begins (line 2, column 1)"),
        ("tenants: \x01", "a control character"),
        ("{" * 100_000, "nested too deeply (line 1, column 101)"),
        ("- " * 100_000, "nested too deeply (line 1, column 201)"),
        ("\xff", "not UTF-8"),
    ],
)
async def test_a_file_that_is_no_catalog_says_why(path: Path, text: str, words: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Failure, match=re.escape(words)) as failed:
        await FileCatalog(path).load()
    assert failed.value.kind is Kind.INTERNAL


async def test_a_change_by_hand_is_a_version_that_is_logged_once(path: Path) -> None:
    stores = [FileCatalog(path), FileCatalog(path)]
    await stores[0].save(Document(1, {"acme": {}}), entry(1))
    path.write_text("tenants: {by: {}, hand: {}}")
    for store in stores:
        assert await store.load() == Document(2, {"by": {}, "hand": {}})
    with pytest.raises(Conflict):
        await stores[0].save(Document(2, {}), entry(2))
    found, more = await stores[1].entries(10, "")
    assert [(e.after, e.method, e.actor) for e in found] == [(2, EDIT, ""), (1, "UpdateLevel", "ops")]
    assert more == ""


async def test_a_change_by_hand_is_told(path: Path) -> None:
    store = FileCatalog(path, interval=0.01)
    await store.save(Document(1, {}), entry(1))
    async with watching(store, 1) as told, asyncio.timeout(PATIENCE):
        path.write_text("tenants: {by: {}}")
        assert await told.get() == 2
        path.unlink()  # not an empty catalog: what is known is kept
        path.write_text("tenants: {once: {}, more: {}}")
        assert await told.get() == 3


async def test_a_file_that_is_gone_is_no_empty_catalog(path: Path) -> None:
    store = FileCatalog(path)
    await store.save(Document(1, {"acme": {}}), entry(1))
    path.unlink()
    with pytest.raises(Failure, match=r"catalog\.yaml is gone"):
        await store.load()
    with pytest.raises(Failure, match="gone"):
        await store.save(Document(2, {}), entry(2))


async def test_what_a_link_points_to_is_changed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path.symlink_to(tmp_path / "there" / "real.yaml")
    await FileCatalog(path).save(Document(1, {"acme": {}}), entry(1))
    assert path.is_symlink()
    assert "acme" in (tmp_path / "there" / "real.yaml").read_text()


async def test_a_link_that_leads_elsewhere_is_a_change(path: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "catalog.yaml").write_text(f"tenants: {{{name}: {{}}}}")
    (tmp_path / "now").symlink_to("one")  # as a volume of Kubernetes is made, and exchanged
    path.symlink_to("now/catalog.yaml")
    store = FileCatalog(path, interval=0.01)
    assert await store.load() == Document(1, {"one": {}})
    async with watching(store, 1) as told, asyncio.timeout(PATIENCE):
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").replace(tmp_path / "now")
        assert await told.get() == 2
    assert await store.load() == Document(2, {"two": {}})


async def test_what_could_not_be_read_for_a_moment_is_read_then(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("tenants: {one: {}}")
    store = FileCatalog(path, interval=0.01)
    assert (await store.load()).version == 1
    opened, failed = os.open, asyncio.Event()
    loop = asyncio.get_running_loop()

    def too_many(name: Any, flags: int, *args: Any) -> int:
        if str(name).endswith(".audit.jsonl"):
            loop.call_soon_threadsafe(failed.set)
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(name, flags, *args)

    async with watching(store, 1) as told, asyncio.timeout(PATIENCE):
        with monkeypatch.context() as crowded:
            crowded.setattr(os, "open", too_many)
            path.write_text("tenants: {two: {}}")
            await failed.wait()
        assert await told.get() == 2


async def test_where_it_cannot_be_looked_for_the_watch_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    path = folder / "catalog.yaml"
    folder.mkdir()
    path.write_text("tenants: {one: {}}")
    store = FileCatalog(path, interval=0.01)
    assert (await store.load()).version == 1
    with structlog.testing.capture_logs() as logs:
        async with watching(store, 1) as told, asyncio.timeout(PATIENCE):
            aside = folder.rename(tmp_path / "aside")
            folder.write_text("no folder")
            while not logs:
                await asyncio.sleep(0.01)
            folder.unlink()
            (aside / "catalog.yaml").write_text("tenants: {two: {}}")
            aside.rename(folder)
            assert await told.get() == 2
    assert [entry["event"] for entry in logs] == [
        "the catalog catalog.yaml has a log that can't be opened: Not a directory"
    ]


async def test_a_log_that_is_not_ours_is_told(path: Path) -> None:
    path.write_text("tenants: {}")
    Path(f"{path}.audit.jsonl").write_text("no line of ours\n")
    for asked in (FileCatalog(path).load(), FileCatalog(path).entries(1, "")):
        with pytest.raises(Failure, match="the catalog's log can't be used") as raised:
            await asked
        assert raised.value.kind is Kind.INTERNAL


async def test_only_the_owner_may_read_it_unless_its_owner_said_so(path: Path) -> None:
    store = FileCatalog(path)
    await store.save(Document(1, {}), entry(1))
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    await store.save(Document(2, {}), entry(2))
    assert path.stat().st_mode & 0o777 == 0o640


async def test_a_file_that_can_only_be_read_is_followed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def only_reading(name: Any, flags: int, *args: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return opened(name, flags, *args)

    path.write_text("tenants: {acme: {}}")
    monkeypatch.setattr(os, "open", only_reading)
    store = FileCatalog(path)
    assert await store.load() == Document(1, {"acme": {}})
    with pytest.raises(Failure, match="can't be written: Permission denied"):
        await store.save(Document(2, {}), entry(2))
    path.write_text("tenants: {other: {}}")
    assert await store.load() == Document(2, {"other": {}})


async def test_a_writer_that_dies_between_file_and_log_leaves_one_version(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileCatalog(path)
    await store.save(Document(1, {"a": {}}), entry(1))

    def die(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(catalog_file._Ledger, "append", die)
        with pytest.raises(MemoryError):
            await store.save(Document(2, {"b": {}}), entry(2))
    assert await FileCatalog(path).load() == Document(2, {"b": {}})
    found, _ = await store.entries(10, "")
    assert [(e.after, e.method) for e in found] == [(2, EDIT), (1, "UpdateLevel")]


async def test_half_a_line_of_the_log_was_never_written(path: Path) -> None:
    store = FileCatalog(path)
    await store.save(Document(1, {"a": {}}), entry(1))
    with open(f"{path}.audit.jsonl", "a") as file:
        file.write('{"time":1.0,"actor":"o')
    await store.save(Document(2, {"b": {}}), entry(2))
    found, _ = await store.entries(10, "")
    assert [e.after for e in found] == [2, 1]


async def test_a_writer_that_is_killed_leaves_the_file_whole(path: Path) -> None:
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for line in writer.stdout:
            if line == "2\n":  # it goes on writing
                break
        writer.kill()
        writer.wait(PATIENCE)
        writer.stdout.close()
        held = await FileCatalog(path).load()
        assert {tenant["labels"]["at"] for tenant in held.tenants.values()} == {str(held.version)}
    found, more = await FileCatalog(path).entries(10_000, "")
    assert more == ""
    assert [e.after for e in found] == list(range(held.version, 0, -1))


async def test_the_log_is_read_backwards_over_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_file, "_BLOCK", 64)
    store = FileCatalog(path)
    for number in range(1, 30):
        await store.save(Document(number, {}), entry(number, resource="x" * (number * 7 % 150)))
    seen: list[int] = []
    token = ""
    while True:
        found, token = await store.entries(4, token)
        seen += [e.after for e in found]
        if not token:
            break
    assert seen == list(range(29, 0, -1))


async def test_each_line_has_the_digest_of_the_file_and_nothing_secret(path: Path) -> None:
    store = FileCatalog(path)
    await store.save(Document(1, {"acme": {"upstreams": {"up": {"api_key": "sk-secret"}}}}), entry(1))
    line = Path(f"{path}.audit.jsonl").read_bytes()
    assert json.loads(line)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert b"sk-secret" not in line


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("tenants: {acme: {}}", "ok"),
        ("tenants: {bad: {}}", "conflict"),
        ("tenants: [", "invalid_request"),
        ("", "invalid_request"),
    ],
)
async def test_an_edit_is_logged_with_what_became_of_it(path: Path, text: str, outcome: str) -> None:
    def check(tenants: dict[str, Any]) -> None:
        if "bad" in tenants:
            raise Failure(Kind.CONFLICT, "no")

    store = FileCatalog(path, check=check)
    path.write_text(text)
    with suppress(Failure):
        await store.load()
    await FileCatalog(path).append(entry(1))
    (_, edit), _ = await store.entries(10, "")
    assert (edit.method, edit.before, edit.after, edit.outcome) == (EDIT, 0, 1, outcome)


async def test_what_was_refused_is_logged_though_the_file_is_gone(path: Path) -> None:
    store = FileCatalog(path)
    await store.save(Document(1, {"acme": {}}), entry(1))
    path.unlink()
    await store.append(entry(1, outcome="conflict"))
    assert [e.outcome for e in (await store.entries(10, ""))[0]] == ["conflict", "ok"]

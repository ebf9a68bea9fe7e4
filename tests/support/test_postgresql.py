"""The PostgreSQL of the tests is a real one, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.postgresql import PostgresqlServer, postgresql_server


def _shared_memory(server: PostgresqlServer) -> str:
    """The number by which the system knows its segment."""
    return (server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]


def _segments() -> list[str]:
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def _refused(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_after_a_crash_it_has_what_was_committed_and_at_the_end_nothing_is_left() -> None:
    async with postgresql_server() as server:
        await server.command("CREATE TABLE records (id int PRIMARY KEY, word text)")
        await server.command("INSERT INTO records VALUES (1, 'kept')")
        before = server.processes()
        await server.kill()
        await _refused(server.port)
        await server.start()
        assert await server.command("SELECT * FROM records") == "1|kept"
        pids, segment = [*before, *server.processes()], _shared_memory(server)
        assert segment in _segments()
        await server.kill()
    await _refused(server.port)
    assert not [pid for pid in pids if _lives(pid)]
    assert segment not in _segments()
    assert not server.data.exists()


async def test_paused_it_answers_nothing_until_it_goes_on() -> None:
    async with postgresql_server() as server:
        server.pause()
        asking = asyncio.create_task(server.command("SELECT 1"))
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.close()
        await writer.wait_closed()
        assert not asking.done()
        server.resume()
        assert await asking == "1"


async def test_what_it_refuses_is_told_with_its_words() -> None:
    async with postgresql_server() as server:
        with pytest.raises(AssertionError, match='relation "records" does not exist'):
            await server.command("SELECT * FROM records")

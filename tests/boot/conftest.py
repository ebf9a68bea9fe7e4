"""What the tests of the boot room share: `llmg` as a process, its log, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.gateway import Gateway
from support.http import PATIENCE

ROOT = Path(__file__).parents[2]
MARK = "TEST_MARK"
STARTED_WITHIN = 60.0  # seconds


def at(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    host, _, port = url.partition("://")[2].rpartition(":")
    return host, int(port)


class Served(Gateway):
    """`llmg serve` in a process of its own, and its log as it comes."""

    def __init__(self, child: subprocess.Popen[bytes], mark: str) -> None:
        super().__init__(("", 0))
        self.pid = child.pid
        self.grpc_address = ""
        self.lines: list[str] = []
        self.entries: list[dict[str, Any]] = []
        self._child = child
        self._mark = mark
        self._news = asyncio.Condition()
        self._over = False
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._child.stderr is not None
        reader = asyncio.StreamReader(limit=1 << 20)
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, self._child.stderr)
        async for line in reader:
            async with self._news:
                self.lines.append(line.decode())
                if line.startswith(b"{"):
                    self.entries.append(json.loads(line))
                self._news.notify_all()
        async with self._news:
            self._over = True
            self._news.notify_all()

    async def said(self, event: str, count: int = 1, patience: float = PATIENCE) -> list[dict[str, Any]]:
        """The entries of that name, as soon as there are so many."""

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.entries if entry.get("event") == event]

        async with asyncio.timeout(patience), self._news:
            await self._news.wait_for(lambda: self._over or len(found()) >= count)
        assert len(found()) >= count, f"it did not say {event!r} {count} times:\n" + "".join(self.lines)
        return found()

    async def ready(self, count: int) -> None:
        """Waits until so many processes serve."""
        entries = await self.said("ready", count, STARTED_WITHIN)
        if "address" in entries[0]:
            self.address = at(entries[0]["address"])
        self.grpc_address = entries[0].get("grpc_address", "")

    def tell(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._child.send_signal(number)

    async def ended(self) -> int:
        """Its exit code; waits for its end."""
        return await asyncio.to_thread(self._child.wait, PATIENCE)  # asyncio's own would wait for its children, too

    async def over(self) -> None:
        """Waits until all that it said has been read."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(self._reading)

    def processes(self) -> list[int]:
        """All that came out of it and still run, whoever their parent is by now."""
        wanted = f"{MARK}={self._mark}".encode()
        return [pid for pid in _pids() if wanted in _environment(pid)]

    async def gone(self) -> None:
        """Waits until none of its processes runs any more."""
        async with asyncio.timeout(PATIENCE):
            while left := self.processes():
                await end_of(left[0])

    async def close(self) -> None:
        """Ends what the test has left running."""
        sys.stdout.write("".join(self.lines))  # pytest shows it where the test has failed
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        await self.ended()
        async with asyncio.timeout(PATIENCE):
            await self._reading

    @property
    def complaints(self) -> list[str]:
        """What it said that is no entry in JSON, and its errors."""
        errors = [json.dumps(entry) for entry in self.entries if entry["level"] in ("error", "critical")]
        return [line for line in self.lines if not line.startswith("{")] + errors


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts `llmg serve`: a configuration, then more words; `ready`: how many processes are waited for.

    At the test's end none of its processes may be left; one that was not told to end is killed.
    """
    started: list[Served] = []

    async def start(config: Mapping[str, Any], *words: str, ready: int = 1, **env: str) -> Served:
        file = tmp_path / f"{len(started)}.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML
        mark = uuid.uuid4().hex
        free = "127.0.0.1:0"
        own = {"LLMG_HTTP__SERVER_ADDR": free, "LLMG_GRPC__SERVER_ADDR": free, MARK: mark, **env}
        child = subprocess.Popen(
            [sys.executable, "-m", "llmg.boot", "serve", "-c", str(file), *words],
            cwd=tmp_path,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        served = Served(child, mark)
        started.append(served)
        if ready:
            await served.ready(ready)
        return served

    yield start
    for served in started:
        running = served.processes()
        left = running if await _has_ended(served) else []
        await served.close()
        assert not left, f"processes were left behind: {left}\n" + "".join(served.lines)


async def _has_ended(served: Served) -> bool:
    """Whether it ended by itself, before it is killed."""
    return served.pid not in served.processes()


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or it is not ours
        return []


async def end_of(pid: int) -> None:
    """Waits for the end of a process, which need not be our child."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(watch, over.set)
    try:
        async with asyncio.timeout(PATIENCE):
            await over.wait()
    finally:
        loop.remove_reader(watch)
        os.close(watch)


class Gate:
    """What comes to it waits until it is opened."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    def open(self) -> None:
        """For all who wait, and all who will."""
        self._open.set()

    async def passed(self) -> None:
        """Waits."""
        async with asyncio.timeout(PATIENCE):
            await self._open.wait()


class Engines:
    """What the test's engines tell, and the gate at which their predictions wait."""

    def __init__(self, inbox: socket.socket, server: asyncio.Server, arrived: asyncio.Queue[asyncio.StreamWriter]):
        self._inbox = inbox
        self._port = server.sockets[0].getsockname()[1]
        self._arrived = arrived

    def config(self, **env: str) -> dict[str, Any]:
        """A configuration whose model `polly` is such an engine's."""
        env |= {"TELL": str(self._inbox.getsockname()[1]), "GATE": str(self._port)}
        command = [sys.executable, str(Path(__file__).with_name("engine.py"))]
        provider = {"kind": "backend", "engine": "parrot", "external": command, "env": env}
        target = {"provider": "local", "model": "polly"}
        return {"providers": {"local": provider}, "models": {"polly": {"targets": [target]}}}

    def started(self) -> list[int]:
        """The pids of all that have started up to now."""
        pids = []
        while True:
            try:
                pids.append(int(self._inbox.recv(100).split()[1]))
            except BlockingIOError:
                return pids

    async def prediction(self) -> asyncio.StreamWriter:
        """The next one that waits: what is written there is its answer. (With SLOW, the loading comes first.)"""
        async with asyncio.timeout(60):
            return await self._arrived.get()


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    """For local models."""
    arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def arrive(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await arrived.put(writer)

    server = await asyncio.start_server(arrive, "127.0.0.1", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
        inbox.bind(("127.0.0.1", 0))
        inbox.setblocking(False)
        async with server:
            yield Engines(inbox, server, arrived)


async def say(writer: asyncio.StreamWriter, words: bytes) -> None:
    """Answers a prediction."""
    writer.write(words)
    writer.close()
    await writer.wait_closed()

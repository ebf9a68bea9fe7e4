"""What the launcher's tests share: the loops they run on, a clock, and an ear for what the test engine tells."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from llmg.launcher.local import LocalLauncher
from llmg.ports import Spec

HERE = Path(__file__).parent


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What is run on is uvloop; the two have transports of their own for processes, so those are tested on both."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.name == "test_process.py":
        factories["asyncio"] = asyncio.new_event_loop
    return factories


class FakeClock:
    """Stands still until it is set."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Ear:
    """Hears what test engines tell. `heard` keeps all of it, as (event, pid)."""

    def __init__(self, inbox: socket.socket) -> None:
        self._inbox = inbox
        self.port = inbox.getsockname()[1]
        self.heard: list[tuple[str, int]] = []

    async def hear(self, event: str) -> int:
        """The pid of the next engine that tells this."""
        async with asyncio.timeout(30):
            while True:
                told, _, pid = (await asyncio.get_running_loop().sock_recv(self._inbox, 100)).decode().partition(" ")
                self.heard.append((told, int(pid)))
                if told == event:
                    return int(pid)

    def drain(self) -> list[tuple[str, int]]:
        """All that was told up to now."""
        while True:
            try:
                told, _, pid = self._inbox.recv(100).decode().partition(" ")
            except BlockingIOError:
                return self.heard
            self.heard.append((told, int(pid)))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ear() -> Iterator[Ear]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
        inbox.bind(("127.0.0.1", 0))
        inbox.setblocking(False)
        yield Ear(inbox)


MakeSpec = Callable[..., Spec]


@pytest.fixture
def make_spec(ear: Ear) -> MakeSpec:
    """A spec of the test engine. Keywords in capitals are its environment, the others the spec's fields."""

    def make(**fields: object) -> Spec:
        env = {"TELL": str(ear.port)} | {name: str(value) for name, value in fields.items() if name.isupper()}
        given = {name: value for name, value in fields.items() if not name.isupper()}
        whole = {
            "engine": "parrot",
            "model": "polly",
            "external": (sys.executable, str(HERE / "engine.py")),
            "env": tuple(env.items()),
            "startup_timeout": 60.0,
        }
        return Spec(**(whole | given))  # type: ignore[arg-type]

    return make


@pytest.fixture
async def launcher(clock: FakeClock) -> AsyncIterator[LocalLauncher]:
    made = LocalLauncher(clock)
    yield made
    await made.aclose()


async def ended(pid: int) -> None:
    """Waits for the end of a process, which need not be our child. Fails when that takes more than 30 s."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(watch, over.set)
    try:
        async with asyncio.timeout(30):
            await over.wait()
    finally:
        loop.remove_reader(watch)
        os.close(watch)


def exists(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

"""What configurations are made of is kept from the cyclic collector; what only was there at the time is not lost."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from llmg.boot import collector
from llmg.boot.reload import Source
from llmg.boot.serve import listen, run_alone
from llmg.boot.settings import Settings
from support.gateway import ECHO, in_process


class Knot:
    """Something that refers to itself, as a connection and its protocol do."""

    def __init__(self) -> None:
        self.itself = self


def what_was_there_at_a_reload_goes_all_the_same() -> None:
    left: weakref.WeakSet[Knot] = weakref.WeakSet()
    gc.collect()
    bound = (len(gc.get_objects()) + gc.get_freeze_count()) // 2 + 100_000
    most = 0
    for _ in range(2 * bound // 5000):
        with collector.paused():
            knots = [Knot() for _ in range(5000)]
        left.update(knots)
        del knots
        most = max(most, len(left))
    assert most < bound
    assert gc.isenabled()


def it_is_looked_at_seldom() -> None:
    looks: list[str] = []

    def look(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            looks.append(phase)

    with collector.paused():
        pass
    gc.callbacks.append(look)
    for _ in range(100):
        with collector.paused():
            made = [[number] for number in range(100)]
    del made
    assert looks == []


def a_gateway_alone_in_its_process_calms_it() -> None:
    asyncio.run(_serve_until_calm())
    assert gc.get_threshold() == (50_000, 20, 50)


async def _serve_until_calm() -> None:
    settings = Settings(**{"grpc": {"enabled": False}, **ECHO})
    source = Source(Path("absent.yaml"), Path.cwd(), settings, (None,))
    serving = asyncio.create_task(run_alone(settings, {"http": listen(("127.0.0.1", 0), 16)}, source))
    async with asyncio.timeout(20):
        while not gc.get_freeze_count():
            await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


async def test_a_gateway_within_another_process_leaves_it_alone() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    async with in_process(ECHO) as gateway:
        assert (await gateway.chat()).status == 200
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


@pytest.mark.parametrize(
    "shown",
    [
        what_was_there_at_a_reload_goes_all_the_same,
        it_is_looked_at_seldom,
        a_gateway_alone_in_its_process_calms_it,
    ],
)
def test_in_a_process_of_its_own(shown: Callable[[], None]) -> None:
    """Where nothing is but what it is about: the tests' own is large, and has a collector as it comes."""
    path = os.pathsep.join(word for word in sys.path if word)
    command = [sys.executable, "-W", "error", __file__, shown.__name__]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=60)


if __name__ == "__main__":
    globals()[sys.argv[1]]()

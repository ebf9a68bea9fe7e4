"""What a large catalog costs: `python tools/routing/catalog.py [ENDPOINTS]`, each with two keys, in groups of ten.

Prints seconds of processor time for a whole reload (read, check, make), the longest that it held up the event loop, and
microseconds for looking a key up and finding a model.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop

from llmg.boot import build, collector
from llmg.boot.current import Current
from llmg.boot.reload import Reloader, read
from llmg.boot.system import SystemClock
from llmg.providers.http import Transport
from llmg.services.admission import Authenticator, digest

_ROUNDS: Final = 5
_CALLS: Final = 200_000


def secret(number: int) -> str:
    """A key of an endpoint."""
    return f"sk-{number:032x}"


def config(endpoints: int, label: str) -> dict[str, Any]:
    """A configuration with so many."""
    groups: dict[str, Any] = {}
    for number in range(endpoints):
        keys = [{"id": f"k{i}", "sha256": digest(secret(2 * number + i)).hex()} for i in range(2)]
        keys[0]["expires"] = "2100-01-01T00:00:00Z"
        group = groups.setdefault(f"g{number // 10}", {"endpoints": {}})
        group["endpoints"][f"e{number}"] = {"alias": f"a{number}", "keys": keys}
    return {
        "labels": {"round": label},
        "providers": {"echo": {"kind": "echo"}},
        "models": {"m": {"targets": [{"provider": "echo", "model": "m"}]}},
        "tenants": {"acme": {"teams": {"search": {"groups": groups}}}},
    }


def write(file: Path, endpoints: int, round: int) -> None:
    """The configuration of that round."""
    file.write_text(json.dumps(config(endpoints, str(round))))


class Pulse:
    """How late the event loop is, at worst."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - begun - 0.001)


async def reloads(file: Path, endpoints: int) -> Current:
    """Measures reloads of the file."""
    await asyncio.to_thread(write, file, endpoints, 0)
    source = read(file)
    current = Current(build.Needs(source.read, Transport()), SystemClock())
    reloader, pulse = Reloader(source, current), Pulse()
    collector.calm()
    beating = asyncio.create_task(pulse.run())
    took, late = [], []
    for number in range(_ROUNDS):
        await asyncio.to_thread(write, file, endpoints, number + 1)
        pulse.worst = 0.0
        begun = time.process_time()
        assert await reloader.reload()
        took.append(time.process_time() - begun)
        late.append(pulse.worst)
    beating.cancel()
    print(f"{endpoints} endpoints, {len(current.catalog)} keys")
    print(f"reload: {min(took):.2f} s, at worst {max(took):.2f} s; event loop held up for {max(late) * 1e3:.0f} ms")
    return current


def cost(call: Callable[[], object]) -> float:
    """Microseconds of processor time, at best."""
    best = float("inf")
    for _ in range(_ROUNDS):
        begun = time.process_time()
        for _ in range(_CALLS):
            call()
        best = min(best, time.process_time() - begun)
    return best / _CALLS * 1e6


def main() -> None:
    """The entry point."""
    endpoints = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        current = uvloop.run(reloads(Path(folder) / "config.json", endpoints))
    key = secret(endpoints)
    keys = Authenticator(lambda: current.catalog, SystemClock())
    scope = keys.authenticate(key).scope
    print(f"key look-up: {cost(lambda: keys.authenticate(key)):.2f} us; model: {cost(lambda: scope.find('m')):.2f} us")


if __name__ == "__main__":
    main()

"""What a large catalog costs: `python tools/routing/catalog.py [ENDPOINTS]`, each with two keys, in groups of ten.

Prints seconds of processor time for a whole reload (read, check, make) and the longest that it held up the event loop,
where endpoints say nothing but their keys, where each says one thing more of its own, and where each says everything;
the same for a change by the admin API until it is answered, and for the next process until it goes by it, with the
catalog in a file of JSON and of YAML; and microseconds for looking a key up and finding a model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import structlog
import uvloop

from llmg.boot import build, collector
from llmg.boot.administration import make_admin, make_store, open_catalog
from llmg.boot.current import Current
from llmg.boot.reload import Reloader, read
from llmg.boot.settings import Settings
from llmg.boot.settings.catalog import Source
from llmg.boot.system import RandomIds, SystemClock
from llmg.core.context import ADMIN, Context, Principal
from llmg.providers.http import Transport
from llmg.services.admin import Admin, Changes, Following
from llmg.services.admission import Authenticator, digest
from llmg.stores.catalog_text import serialize

_ROUNDS: Final = 5
_CALLS: Final = 200_000
_OPS: Final = Context(
    id="", request_id="", door="", created=0, principal=Principal(key_id="ops", roles=frozenset({ADMIN}))
)


def secret(number: int) -> str:
    """A key of an endpoint."""
    return f"sk-{number:032x}"


def own(number: int) -> dict[str, Any]:
    """All that an endpoint may say of itself, beside its keys."""
    return {
        "limits": {"requests_per_minute": 60, "tokens_per_minute": 100_000, "max_concurrent": 8},
        "labels": {"center": f"c{number}", "stage": "production"},
        "allow": ["m", f"up/m{number}*"],
        "models": {"own": {"targets": [{"provider": "up", "model": f"m{number}"}]}},
        "upstreams": {"up": {"api_key": secret(number), "headers": {"X-Endpoint": f"e{number}"}}},
    }


KINDS: Final = {"plain": (), **{name: (name,) for name in own(0)}, "all of them": tuple(own(0))}
"""What each endpoint says, by the name that is printed."""


def config(endpoints: int, label: str, said: Collection[str] = ()) -> dict[str, Any]:
    """A configuration with so many, each of which says this."""
    groups: dict[str, Any] = {}
    for number in range(endpoints):
        keys = [{"id": f"k{i}", "sha256": digest(secret(2 * number + i)).hex()} for i in range(2)]
        keys[0]["expires"] = "2100-01-01T00:00:00Z"
        group = groups.setdefault(f"g{number // 10}", {"endpoints": {}})
        more = {name: value for name, value in own(number).items() if name in said}
        group["endpoints"][f"e{number}"] = {"alias": f"a{number}", "keys": keys, **more}
    return {
        "labels": {"round": label},
        "providers": {"echo": {"kind": "echo"}, "up": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}},
        "models": {"m": {"targets": [{"provider": "echo", "model": "m"}]}},
        "tenants": {"acme": {"teams": {"search": {"groups": groups}}}},
    }


def write(file: Path, endpoints: int, said: Collection[str], round: int) -> None:
    """The configuration of that round."""
    file.write_text(json.dumps(config(endpoints, str(round), said)))


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


async def reloads(file: Path, endpoints: int, kind: str) -> Current:
    """Measures reloads of the file."""
    await asyncio.to_thread(write, file, endpoints, KINDS[kind], 0)
    source = read(file)
    current = Current(build.Needs(source.read, Transport()), SystemClock())
    reloader, pulse = Reloader(source, current), Pulse()
    collector.calm()
    beating = asyncio.create_task(pulse.run())
    took, late = [], []
    for number in range(_ROUNDS):
        await asyncio.to_thread(write, file, endpoints, KINDS[kind], number + 1)
        pulse.worst = 0.0
        begun = time.process_time()
        assert await reloader.reload()
        took.append(time.process_time() - begun)
        late.append(pulse.worst)
    beating.cancel()
    words = f"{median(took):.2f} s, at worst {max(took):.2f} s; event loop held up for {max(late) * 1e3:.0f} ms"
    print(f"reload of {endpoints} endpoints, {kind}: {words}")
    return current


async def changes(folder: Path, endpoints: int, kind: str, name: str) -> None:
    """Measures changes of a catalog in a file of that name."""
    whole = config(endpoints, "0", KINDS[kind])
    file = folder / name
    file.write_bytes(serialize(whole.pop("tenants"), as_yaml=file.suffix != ".json"))
    made = [await _process(Settings(**whole, catalog=Source(file=file))) for _ in range(2)]
    collector.calm()
    answered, followed = [], []
    for number in range(_ROUNDS):
        begun = time.process_time()
        await made[0][0].update_level(_OPS, "tenants/acme", Changes(labels={"round": str(number)}))
        changed = time.process_time()
        await made[1][1].refresh()
        answered.append(changed - begun)
        followed.append(time.process_time() - changed)
    words = f"{median(answered):.2f} s until it is answered, {median(followed):.2f} s for the next process"
    print(f"change in {name} of {endpoints} endpoints, {kind}: {words}")


async def _process(settings: Settings) -> tuple[Admin, Following]:
    settings, held = await open_catalog(settings)
    current = Current(build.Needs(settings, Transport()), SystemClock())
    return make_admin(
        store=make_store(lambda: current.settings),
        settings=lambda: current.settings,
        apply=current.apply_tenants,
        clock=SystemClock(),
        ids=RandomIds(),
        held=held,
    )


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
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    endpoints = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        plain, *more = [partial(reloads, Path(folder) / "config.json", endpoints, kind) for kind in KINDS]
        current = uvloop.run(plain())
        for measure in more:
            uvloop.run(measure())
        for kind in ("plain", "all of them"):
            for name in ("catalog.json", "catalog.yaml"):
                uvloop.run(changes(Path(folder), endpoints, kind, name))
    key = secret(endpoints)
    keys = Authenticator(lambda: current.catalog, SystemClock())
    scope = keys.authenticate(key).scope
    print(f"key look-up: {cost(lambda: keys.authenticate(key)):.2f} us; model: {cost(lambda: scope.find('m')):.2f} us")


if __name__ == "__main__":
    main()

"""What clients notice when one of three upstreams fails: a run with real processes, and a table of counts.

Three upstreams, the gateway, and a steady load of clients, half of them with streams. One upstream at a time is
killed, frozen, or made to answer errors within streams of status 200, and brought back; the others are well. Exits
with 1 when a client got an error instead of an answer that another upstream could have given, when a stream that had
begun ended without saying why, or when the upstream was not asked again.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from load import Counts, Load
from processes import Gateway, Upstream

Action = Callable[[Upstream], Awaitable[None]]


async def _freeze(one: Upstream) -> None:
    one.freeze()


async def _thaw(one: Upstream) -> None:
    one.thaw()


# what happens to an upstream, how that is done, and how it is undone
FAULTS: Sequence[tuple[str, Action, Action]] = (
    ("killed", Upstream.kill, Upstream.start),
    ("frozen", _freeze, _thaw),
    ("errors in 200 streams, before a word", lambda one: one.fault("early"), lambda one: one.fault("none")),
    ("errors in 200 streams, after a word", lambda one: one.fault("late"), lambda one: one.fault("none")),
)


@dataclass(frozen=True)
class Phase:
    """What one upstream did, and what the clients noticed meanwhile. `back_after`: seconds until it answered again."""

    what: str
    counts: Counts
    back_after: float | None = None

    def held(self) -> bool:
        """Nobody got an error that need not have been."""
        return self.counts.refused == self.counts.cut_unclear == 0


async def run(clients: int, requests: int, patience: float) -> list[Phase]:
    """A phase without trouble, and two for each fault: while it lasts, and after it. Each is `requests` long."""
    upstreams = [Upstream(f"up{number}") for number in (1, 2, 3)]
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(upstreams, Path(folder))
        await asyncio.gather(*(one.start() for one in upstreams))
        try:
            await gateway.start()
            try:
                async with Load(gateway.url, clients) as load:
                    return await _phases(load, upstreams, requests, patience)
            finally:
                await gateway.stop()
        finally:
            await asyncio.gather(*(one.stop() for one in upstreams))


async def _phases(load: Load, upstreams: Sequence[Upstream], requests: int, patience: float) -> list[Phase]:
    phases = [Phase("all are well", await _count(load, requests, patience))]
    for number, (what, begin, end) in enumerate(FAULTS):
        one = upstreams[number % len(upstreams)]
        counts = load.start_anew()
        await begin(one)
        await load.until(lambda counts: counts.requests >= requests, patience)
        phases.append(Phase(f"one is {what}" if "error" not in what else f"one gives {what}", counts))
        await end(one)
        phases.append(await _recovery(load, one, requests, patience))
    return phases


async def _count(load: Load, requests: int, patience: float) -> Counts:
    counts = load.start_anew()
    await load.until(lambda counts: counts.requests >= requests, patience)
    return counts


async def _recovery(load: Load, one: Upstream, requests: int, patience: float) -> Phase:
    counts, begun = load.start_anew(), time.monotonic()
    back = await load.until(lambda counts: counts.routes.get(one.name, 0) > 0, patience)
    seconds = time.monotonic() - begun
    await load.until(lambda counts: counts.requests >= requests, patience)
    return Phase("it is back", counts, seconds if back else None)


def table(phases: Sequence[Phase]) -> str:
    """In Markdown."""
    head = (
        "",
        "requests",
        "answered",
        "by another target",
        "cut, with a clear error",
        "cut without",
        "refused",
        "back",
    )
    rows = [head, ("---",) + ("---:",) * (len(head) - 1)]
    for phase in phases:
        counts = phase.counts
        figures = (counts.requests, counts.answered, counts.failed_over, counts.cut, counts.cut_unclear, counts.refused)
        back = "" if phase.back_after is None else f"{phase.back_after:.1f} s"
        rows.append((phase.what, *map(str, figures), back))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What clients notice when one of three upstreams fails.")
    parser.add_argument("--clients", type=int, default=24, help="at a time (default 24)")
    parser.add_argument("--requests", type=int, default=3000, help="in each phase, at least (default 3000)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for each phase, at most (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there, too")
    arguments = parser.parse_args()
    phases = asyncio.run(run(arguments.clients, arguments.requests, arguments.patience))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(phase) for phase in phases]))
    print(table(phases))
    came_back = all(phase.back_after is not None for phase in phases if phase.what == "it is back")
    return 0 if came_back and all(phase.held() for phase in phases) else 1


if __name__ == "__main__":
    sys.exit(main())

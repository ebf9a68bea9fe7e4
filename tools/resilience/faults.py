"""What clients notice when one of three upstreams fails.

One upstream at a time is killed, frozen, or made to answer errors within streams of status 200, and brought back; the
others are well.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from load import Counts, Load
from processes import Upstream, running
from tables import markdown, seconds

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
    async with running() as (gateway, upstreams), Load(gateway.url, clients) as load:
        return await _phases(load, upstreams, requests, patience)


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
    took = time.monotonic() - begun
    await load.until(lambda counts: counts.requests >= requests, patience)
    return Phase("it is back", counts, took if back else None)


def table(phases: Sequence[Phase]) -> str:
    """In Markdown."""
    head = ("", "requests", "answered", "by another target", "cut, with a clear error", "cut without", "refused")
    rows = []
    for phase in phases:
        counts = phase.counts
        figures = (counts.requests, counts.answered, counts.failed_over, counts.cut, counts.cut_unclear, counts.refused)
        rows.append((phase.what, *map(str, figures), seconds(phase.back_after)))
    return markdown((*head, "back"), rows)


def held(phases: Sequence[Phase]) -> bool:
    """No client got an error that need not have been, and each upstream was asked again."""
    came_back = all(phase.back_after is not None for phase in phases if phase.what == "it is back")
    return came_back and all(phase.held() for phase in phases)

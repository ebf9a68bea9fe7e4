"""How many requests pay for finding out that an upstream is gone, with and without health checks.

One of three upstreams is killed or frozen while nobody asks anything; then clients come, and later it is brought back.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from load import Counts, Load
from processes import Upstream, running
from tables import markdown, seconds

Action = Callable[[Upstream], Awaitable[None]]
CHECKS: Mapping[str, object] = {"health_check": {"interval": "200ms", "timeout": "1s"}}
OPEN_FOR: Mapping[str, object] = {"breaker": {"open_for": "2s"}}
FAILS = "fails its health checks"  # as the gateway's log says it


async def _freeze(one: Upstream) -> None:
    one.freeze()


async def _thaw(one: Upstream) -> None:
    one.thaw()


# what happens to the upstream, how that is done, and how it is undone
TROUBLES: Sequence[tuple[str, Action, Action]] = (
    ("killed", Upstream.kill, Upstream.start),
    ("frozen", _freeze, _thaw),
)


@dataclass(frozen=True)
class Outage:
    """What happened, and what became of the requests. `back_after`: seconds until it answered again."""

    what: str
    checked: bool
    counts: Counts
    back_after: float | None

    def paid(self) -> int:
        """Requests that were asked of the upstream in vain."""
        return self.counts.failed_over + self.counts.refused


async def run(clients: int, requests: int, patience: float) -> list[Outage]:
    """Each of `TROUBLES`, without and with checks, `requests` long."""
    outages = []
    for checked in (False, True):
        async with running(resilience={**OPEN_FOR, **(CHECKS if checked else {})}) as (gateway, upstreams):
            for one, (what, begin, end) in zip(upstreams, TROUBLES, strict=False):
                await begin(one)
                if checked:
                    await gateway.until_logged(FAILS, one.name)
                async with Load(gateway.url, clients) as load:
                    counts = load.start_anew()
                    await load.until(lambda counts: counts.requests >= requests, patience)
                    load.start_anew()
                    outages.append(Outage(what, checked, counts, await _back(load, one, end, patience)))
    return sorted(outages, key=lambda outage: outage.what, reverse=True)


async def _back(load: Load, one: Upstream, end: Action, patience: float) -> float | None:
    await end(one)
    begun = time.monotonic()
    back = await load.until(lambda counts: counts.routes.get(one.name, 0) > 0, patience)
    return time.monotonic() - begun if back else None


def table(outages: Sequence[Outage]) -> str:
    """In Markdown."""
    rows = []
    for outage in outages:
        checks = "with checks" if outage.checked else "without"
        figures = (outage.counts.requests, outage.paid(), outage.counts.refused)
        rows.append((f"one is {outage.what}, {checks}", *map(str, figures), seconds(outage.back_after)))
    return markdown(("", "requests", "paid for it", "refused", "back"), rows)


def held(outages: Sequence[Outage]) -> bool:
    """Nobody was refused, the upstream was asked again, and fewer paid where it was checked."""
    fine = all(outage.counts.refused == 0 and outage.back_after is not None for outage in outages)
    pairs = zip(outages[::2], outages[1::2], strict=True)
    return fine and all(checked.paid() < without.paid() for without, checked in pairs)

"""What hedging does about an upstream that now and then lets an answer begin late, and what it costs.

One of three upstreams has each tenth of its answers begin half a second later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

from load import Counts, Load
from processes import running
from tables import markdown, milliseconds

WAYS: Mapping[str, Mapping[str, object]] = {
    "without": {},
    "`after: 150ms`": {"hedge": {"after": "150ms"}},
    "`after: p95`": {"hedge": {"after": "p95"}},
}
BUDGET = 0.05  # hedges per request, by default
SAVED = 10  # hedges that may have been saved up before the count began


@dataclass(frozen=True)
class Way:
    """How the requests were hedged, and what became of them."""

    what: str
    counts: Counts

    def waits(self) -> tuple[float, float]:
        """Seconds to the first word of a stream: p50, p99."""
        percentiles = quantiles(self.counts.waits, n=100)
        return percentiles[49], percentiles[98]

    def extra(self) -> int:
        """Targets that were asked on top of one for each request."""
        return self.counts.attempts - self.counts.answered


async def run(clients: int, requests: int, patience: float) -> list[Way]:
    """As many requests for each of `WAYS`."""
    return [Way(what, await _count(model, clients, requests, patience)) for what, model in WAYS.items()]


async def _count(model: Mapping[str, object], clients: int, requests: int, patience: float) -> Counts:
    async with running(model) as (gateway, upstreams), Load(gateway.url, clients) as load:
        await upstreams[0].fault("moody")
        counts = load.start_anew()
        await load.until(lambda counts: counts.requests >= requests, patience)
        return counts


def table(ways: Sequence[Way]) -> str:
    """In Markdown."""
    rows = []
    for way in ways:
        share = f"{way.extra() / way.counts.answered:.1%}"
        rows.append((way.what, str(way.counts.requests), *map(milliseconds, way.waits()), share))
    return markdown(("", "requests", "p50", "p99", "asked in addition"), rows)


def held(ways: Sequence[Way]) -> bool:
    """All was answered, and hedging kept to its budget."""
    answered = all(way.counts.answered == way.counts.requests for way in ways)
    return answered and all(way.extra() <= SAVED + BUDGET * way.counts.requests for way in ways)

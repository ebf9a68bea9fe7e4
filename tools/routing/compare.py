"""Compares the policies in simulated situations, and measures what a choice costs. Prints Markdown.

python tools/routing/compare.py [--requests 10000] [--seed 1] [--only NAME] [--cost]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import timeit
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from simulation import Engine, MakePolicy, Outcome, Visit, simulate
from traffic import SITUATIONS, Situation

from llmg.boot.system import SystemClock
from llmg.core.context import Context
from llmg.core.events import Batch, Closed, Delta, Finished, Opened, Started
from llmg.core.request import Chat, Message, Request, Text
from llmg.ports import Answering, Asked, Policy, Provider
from llmg.routing import policies
from llmg.routing.models import Group, Target
from llmg.routing.policies.lowest_cost import Price
from llmg.routing.policies.view import View
from llmg.routing.router import Router
from llmg.testing.models import Models


def _weights(engines: Sequence[Engine]) -> list[float]:
    return [1.0] * len(engines)


def _prices(engines: Sequence[Engine]) -> list[Price]:
    return [Price(input=engine.input_price, output=engine.output_price) for engine in engines]


def _tiers(engines: Sequence[Engine]) -> list[int]:
    """The fast ones first."""
    paces = sorted({engine.decode for engine in engines}, reverse=True)
    return [paces.index(engine.decode) for engine in engines]


def _session(asked: Asked) -> str | None:
    return asked.session


POLICIES: dict[str, MakePolicy] = {
    "round_robin": lambda engines, clock, seed: policies.RoundRobin(),
    "least_busy": lambda engines, clock, seed: policies.LeastBusy(_weights(engines)),
    "weighted": lambda engines, clock, seed: policies.Weighted(_weights(engines)),
    "random": lambda engines, clock, seed: policies.WeightedRandom(_weights(engines), random.Random(seed)),
    "p2c": lambda engines, clock, seed: policies.P2C(_weights(engines), clock, random.Random(seed)),
    "lowest_latency": lambda engines, clock, seed: policies.LowestLatency(len(engines), clock, random.Random(seed)),
    "lowest_cost": lambda engines, clock, seed: policies.LowestCost(_prices(engines), _weights(engines)),
    "priority": lambda engines, clock, seed: policies.Priority(
        _tiers(engines), lambda _: policies.LeastBusy(_weights(engines))
    ),
    "sticky": lambda engines, clock, seed: policies.Sticky(
        [f"engine{n}" for n in range(len(engines))], _weights(engines), _session
    ),
    "prefix": lambda engines, clock, seed: policies.Prefix(_weights(engines), clock),
}
"""The two to compare with come first."""


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so many (0 to 1) don't exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def row(name: str, outcome: Outcome) -> str:
    """One line of a table."""
    cells = [name]
    for seconds in (outcome.firsts, outcome.lasts):
        cells += [f"{sum(seconds) / len(seconds):.2f}", f"{percentile(seconds, 0.99):.2f}"]
    cells += [f"{outcome.hit_rate:.0%}", f"{1000 * outcome.cost / len(outcome.lasts):.2f}"]
    return f"| {' | '.join(cells)} |"


def table(situation: Situation, requests: int, seed: int) -> Iterator[str]:
    """The lines of one situation's table. Seconds; USD for 1,000 requests."""
    visits: list[Visit] = situation.traffic(random.Random(seed), requests)
    yield f"### {situation.name}\n\n{situation.says}\n"
    yield "| policy | first event, mean | p99 | whole answer, mean | p99 | cache hits | USD per 1,000 |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, make in POLICIES.items():
        yield row(name, simulate(situation.engines, visits, make, situation.gateways))
    yield ""


class Instant:
    """A provider that has answered already."""

    answer: Batch = (Started("a", 1, "m"), Opened(0, 0, "text"), Delta(0, 0, "hi"), Closed(0, 0), Finished(0, "stop"))

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return _Answer(self.answer)


class _Answer:
    def __init__(self, batch: Batch) -> None:
        self._batches = iter([batch])

    async def __aenter__(self) -> _Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def __aiter__(self) -> _Answer:
        return self

    async def __anext__(self) -> Batch:
        for batch in self._batches:
            return batch
        raise StopAsyncIteration


def a_request(characters: int = 4_000) -> Chat:
    """A prompt of so many characters, in two messages."""
    half = "lorem ipsum " * (characters // 24)
    system = Message(role="system", parts=(Text(half),))
    return Chat(model="m", messages=(system, Message(role="user", parts=(Text(half),))), user="someone")


def _contexts() -> Iterator[Context]:
    """Each of another session."""
    return (Context(id="i", request_id="r", door="d", created=0, session=f"s{n}", trail=[]) for n in count())


def choosing(policy: Policy, targets: int, rounds: int) -> float:
    """Microseconds of a view, a choice and three words of feedback. The best of five."""
    chat, everyone, contexts = a_request(), list(range(targets)), _contexts()

    def once() -> None:
        index = policy.choose(everyone, View(chat, next(contexts)))
        policy.started(index)
        policy.first_event(index, 0.2)
        policy.ended(index, 1.0, True)

    return min(timeit.repeat(once, number=rounds, repeat=5)) / rounds * 1e6


def asking(provider: Provider, rounds: int) -> float:
    """Microseconds of a request to a provider, to its end. The best of five."""
    chat, contexts = a_request(), _contexts()

    async def all_of_them() -> None:
        for _ in range(rounds):
            async with provider.open(chat, next(contexts)) as batches:
                async for _ in batches:
                    pass

    return min(timeit.repeat(lambda: asyncio.run(all_of_them()), number=1, repeat=5)) / rounds * 1e6


def a_router(policy: Policy, targets: int) -> Router:
    """A router with a model of that many targets, which answer at once."""
    group = Group(
        name="m",
        targets=tuple(Target(provider=f"p{n}", model="m", inner=Instant()) for n in range(targets)),
        policy=policy,
    )
    return Router(Models({"m": group}, {}), SystemClock())


def costs(targets: int, rounds: int = 4_000) -> Iterator[str]:
    """The lines of the table of costs."""
    yield f"| policy | choice and feedback, us | router in all, us ({targets} targets) |"
    yield "|---|---:|---:|"
    engines = [Engine()] * targets
    alone = asking(Instant(), rounds)
    for name, make in POLICIES.items():
        policy = make(engines, SystemClock(), 1)
        inside = choosing(policy, targets, rounds)
        yield f"| {name} | {inside:.1f} | {asking(a_router(policy, targets), rounds) - alone:.1f} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="requests in each situation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[situation.name for situation in SITUATIONS], help="one situation")
    parser.add_argument("--cost", action="store_true", help="measure what a choice costs instead")
    given = parser.parse_args()
    if given.cost:
        print("\n".join(costs(100)))
        return
    for situation in SITUATIONS:
        if given.only in (None, situation.name):
            for line in table(situation, given.requests, given.seed):
                print(line, flush=True)


if __name__ == "__main__":
    main()

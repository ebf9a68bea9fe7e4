"""Traffic that does not come evenly, and engines that are not alike: the situations that policies are compared in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from math import exp, log

from simulation import Engine, Visit


@dataclass(frozen=True, slots=True)
class Situation:
    """Engines, traffic (from a seed and a number of requests), and how many gateways there are."""

    name: str
    says: str
    engines: tuple[Engine, ...]
    traffic: Callable[[random.Random, int], list[Visit]]
    gateways: int = 1


def arrivals(dice: random.Random, rate: float, burst: float = 1.0) -> Iterator[float]:
    """Poisson arrivals, seconds; for two seconds in ten `burst` times as many as in the others, `rate` on average."""
    calm = rate / (0.8 + 0.2 * burst)
    now = 0.0
    while True:
        now += dice.expovariate(calm * (burst if now % 10 < 2 else 1.0))
        yield now


def lengths(dice: random.Random, median: int, spread: float) -> int:
    """Log-normal, as lengths of prompts and answers are; at least 1."""
    return max(1, round(exp(dice.gauss(log(median), spread))))


def strangers(rate: float, burst: float = 1.0) -> Callable[[random.Random, int], list[Visit]]:
    """Each prompt another one, 4 blocks in the median, answered by 80 tokens."""

    def traffic(dice: random.Random, number: int) -> list[Visit]:
        fresh = count(1)
        return [
            Visit(
                at=at,
                session=f"s{next(fresh)}",
                prompt=tuple(islice(fresh, min(64, lengths(dice, 4, 0.8)))),
                output_tokens=min(1000, lengths(dice, 80, 0.7)),
            )
            for at in islice(arrivals(dice, rate, burst), number)
        ]

    return traffic


def conversations(
    rate: float, systems: int, live: int, system_blocks: int = 16, burst: float = 1.0
) -> Callable[[random.Random, int], list[Visit]]:
    """`live` conversations at any time, each upon one of the system prompts. Each turn has all before it, and 3 blocks
    more; after 12 turns on average, a new one takes its place. The first system prompt has half of them.
    """

    def traffic(dice: random.Random, number: int) -> list[Visit]:
        fresh = count(1)
        prompts = [tuple(islice(fresh, system_blocks)) for _ in range(systems)]

        def begin() -> tuple[str, tuple[int, ...]]:
            which = 0 if dice.random() < 0.5 else dice.randrange(systems)
            return f"s{next(fresh)}", prompts[which]

        going = [begin() for _ in range(live)]
        visits = []
        for at in islice(arrivals(dice, rate, burst), number):
            place = dice.randrange(live)
            session, before = going[place]
            prompt = (*before, *islice(fresh, 3))
            visits.append(Visit(at, session, prompt, min(600, lengths(dice, 60, 0.5))))
            going[place] = begin() if dice.random() < 1 / 12 else (session, prompt)
        return visits

    return traffic


FAST = Engine()
HALF = replace(FAST, prefill=5_000.0, decode=20.0, input_price=0.4, output_price=1.6)
SLOW = replace(FAST, prefill=1_000.0, decode=10.0, input_price=0.1, output_price=0.4)


def _one_falls_ill(engines: Sequence[Engine]) -> tuple[Engine, ...]:
    return (replace(engines[0], slow=(60.0, 120.0)), *engines[1:])


SITUATIONS = (
    Situation(
        "alike",
        "Eight equal engines, even traffic, no prompt like another.",
        (FAST,) * 8,
        strangers(rate=40),
    ),
    Situation(
        "mixed",
        "Sixteen engines: ten fast ones, four of half the pace, two of a tenth to a quarter; bursts of five times the "
        "traffic. The policies are not told which is which (all weights are 1).",
        (FAST,) * 10 + (HALF,) * 4 + (SLOW,) * 2,
        strangers(rate=50, burst=5),
    ),
    Situation(
        "mixed, 4 gateways",
        "The same, through four gateways (or workers), each of which knows of its own requests only.",
        (FAST,) * 10 + (HALF,) * 4 + (SLOW,) * 2,
        strangers(rate=50, burst=5),
        gateways=4,
    ),
    Situation(
        "one falls ill",
        "Eight equal engines; one does all at a tenth of its pace from the 60th second to the 120th.",
        _one_falls_ill((FAST,) * 8),
        strangers(rate=40),
    ),
    Situation(
        "conversations",
        "Eight equal engines, 400 conversations upon eight system prompts of 2,048 tokens, one of which has more than "
        "half of them; a cache holds 1,500 blocks of 128 tokens; bursts of three times the traffic.",
        (FAST,) * 8,
        conversations(rate=24, systems=8, live=400, burst=3),
    ),
    Situation(
        "one hot prompt",
        "Eight equal engines; all requests begin with the same 8,192 tokens.",
        (FAST,) * 8,
        conversations(rate=30, systems=1, live=2_000, system_blocks=64, burst=3),
    ),
)

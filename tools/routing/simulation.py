"""A model of engines behind a gateway, in discrete events: what would a policy have done with this traffic?

An engine has so many slots. A request waits for one, first come first served; then its prompt is read, one prompt at
a time, but for what the engine's prefix cache holds of it; then its answer is written, at the same pace for each slot.
The cache keeps the blocks used last. Nothing fails, and nothing but the draw of the traffic is left to chance.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from llmg.ports import Clock, Policy

BLOCK = 128
"""Tokens; a prompt is a whole number of blocks."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A request: when it comes (seconds), what it says (blocks), how much it wants (tokens). It is an `Asked`."""

    at: float
    session: str | None
    prompt: tuple[int, ...]
    output_tokens: int
    user: str | None = None

    @property
    def input_tokens(self) -> int:
        return len(self.prompt) * BLOCK

    def header(self, name: str, /) -> str | None:
        return None

    def blocks(self, size: int, /) -> Sequence[int]:
        return self.prompt


@dataclass(frozen=True, slots=True)
class Engine:
    """What a target can do: `prefill` and `decode` in tokens a second (all slots, each slot); `cache` in blocks.

    Between the seconds of `slow` it does all at a tenth of its pace.
    """

    prefill: float = 10_000.0
    decode: float = 40.0
    slots: int = 16
    cache: int = 1_500
    input_price: float = 1.0
    output_price: float = 4.0
    slow: tuple[float, float] = (0.0, 0.0)


class SimulatedClock:
    """Where the simulation is."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Target:
    """An engine at work."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.free = engine.slots
        self.waiting: deque[Job] = deque()
        self.read_until = 0.0  # when the prompts that it has taken are read
        self.cache: OrderedDict[int, None] = OrderedDict()

    def take(self, job: Job, now: float) -> None:
        """Gives the request a slot: sets when it says its first word and its last."""
        engine = self.engine
        pace = 0.1 if engine.slow[0] <= now < engine.slow[1] else 1.0
        self.free -= 1
        job.hits = self._look_up(job.visit.prompt)
        # The last block is always read: something has to give the first word.
        read = max(1, len(job.visit.prompt) - job.hits) * BLOCK / (engine.prefill * pace)
        self.read_until = job.first = max(now, self.read_until) + read
        job.last = job.first + job.visit.output_tokens / (engine.decode * pace)

    def _look_up(self, prompt: Sequence[int]) -> int:
        hits = 0
        for block in prompt:
            if block not in self.cache:
                break
            hits += 1
        for block in reversed(prompt):  # so that a prefix is dropped after what goes on from it
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.engine.cache:
            self.cache.popitem(last=False)
        return hits


@dataclass(slots=True)
class Job:
    """A request under way."""

    visit: Visit
    policy: Policy
    target: int
    first: float = 0.0
    last: float = 0.0
    hits: int = 0


@dataclass(slots=True)
class Outcome:
    """What became of all: seconds to the first event and to the end; blocks; USD."""

    firsts: list[float] = field(default_factory=list)
    lasts: list[float] = field(default_factory=list)
    blocks: int = 0
    hits: int = 0
    cost: float = 0.0
    picks: list[int] = field(default_factory=list)

    @property
    def hit_rate(self) -> float:
        """Of the prompts' blocks, how many had been read before."""
        return self.hits / self.blocks


MakePolicy = Callable[[Sequence[Engine], Clock, int], Policy]
"""The policy of one gateway, from the engines, the clock and the gateway's number."""


def simulate(engines: Sequence[Engine], visits: Sequence[Visit], make: MakePolicy, gateways: int = 1) -> Outcome:
    """Sends the visits, in their order, through gateways in turn, each with a policy of its own."""
    clock = SimulatedClock()
    run = _Run(engines, clock)
    policies = [make(engines, clock, number) for number in range(gateways)]
    arrivals = iter(enumerate(visits))
    arrival = next(arrivals, None)
    while arrival or run.agenda:
        if arrival and (not run.agenda or arrival[1].at <= run.agenda[0][0]):
            number, visit = arrival
            clock.now = visit.at
            run.arrive(visit, policies[number % gateways])
            arrival = next(arrivals, None)
        else:
            clock.now, _, happen, job = heapq.heappop(run.agenda)
            happen(job)
    return run.outcome


class _Run:
    def __init__(self, engines: Sequence[Engine], clock: SimulatedClock) -> None:
        self.clock = clock
        self.targets = [Target(engine) for engine in engines]
        self.all = range(len(engines))
        self.agenda: list[tuple[float, int, Callable[[Job], None], Job]] = []
        self.order: Iterator[int] = count()
        self.outcome = Outcome(picks=[0] * len(engines))

    def arrive(self, visit: Visit, policy: Policy) -> None:
        index = policy.choose(self.all, visit)
        self.outcome.picks[index] += 1
        policy.started(index)
        job = Job(visit, policy, index)
        target = self.targets[index]
        if target.free:
            self._take(target, job)
        else:
            target.waiting.append(job)

    def _take(self, target: Target, job: Job) -> None:
        target.take(job, self.clock.now)
        self._at(job.first, self._first, job)

    def _first(self, job: Job) -> None:
        seconds = self.clock.now - job.visit.at
        job.policy.first_event(job.target, seconds)
        self.outcome.firsts.append(seconds)
        self._at(job.last, self._last, job)

    def _last(self, job: Job) -> None:
        seconds = self.clock.now - job.visit.at
        job.policy.ended(job.target, seconds, True)
        self._note(job, seconds)
        target = self.targets[job.target]
        target.free += 1
        if target.waiting:
            self._take(target, target.waiting.popleft())

    def _note(self, job: Job, seconds: float) -> None:
        outcome, visit, engine = self.outcome, job.visit, self.targets[job.target].engine
        outcome.lasts.append(seconds)
        outcome.blocks += len(visit.prompt)
        outcome.hits += job.hits
        outcome.cost += (engine.input_price * visit.input_tokens + engine.output_price * visit.output_tokens) / 1e6

    def _at(self, when: float, happen: Callable[[Job], None], job: Job) -> None:
        heapq.heappush(self.agenda, (when, next(self.order), happen, job))

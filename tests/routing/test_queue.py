"""A target's places: first come first served, bounded, and never lost, whoever leaves when."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmg.core.context import Attempt
from llmg.core.errors import Failure, Kind
from llmg.core.events import Event
from llmg.core.request import Chat
from llmg.routing.queue import Entry, Limits, Places, Queue, Queued
from llmg.routing.timeouts import Limits as TimeLimits
from llmg.routing.timeouts import Timeouts
from llmg.testing.clocks import run_leaping
from llmg.testing.conformance import a_context, assert_conforms, collect
from llmg.testing.scripted import Gate, Script, Scripted, Step, saying

CHAT = Chat(model="m", messages=(), stream=True)
GOOD = saying("a", "b")


class Comings(RuleBasedStateMachine):
    """Places against a model of them: a set of who is in and a line of who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Places[int] = Places(Limits(max_in_flight=2, max_queue=3))
        self.inside = 0
        self.line: deque[int] = deque()
        self.names = iter(range(10**9))

    @rule()
    def one_comes(self) -> None:
        who = next(self.names)
        entry = self.places.come(who)
        if self.inside < 2:
            assert entry is Entry.IN
            self.inside += 1
        elif len(self.line) < 3:
            assert entry is Entry.WAITS
            self.line.append(who)
        else:
            assert entry is Entry.REFUSED

    @rule()
    def one_leaves(self) -> None:
        if self.inside:
            expected = self.line.popleft() if self.line else None
            self.inside -= expected is None
            assert self.places.leave() == expected

    @rule(data=st.data())
    def one_gives_up(self, data: st.DataObject) -> None:
        if self.line:
            who = data.draw(st.sampled_from(sorted(self.line)))
            self.line.remove(who)
            assert self.places.give_up(who)
            assert not self.places.give_up(who)

    @invariant()
    def they_agree(self) -> None:
        assert (self.places.in_flight, self.places.waiting) == (self.inside, len(self.line))
        assert self.places.full() == (self.inside == 2)


TestComings = Comings.TestCase


class Asked:
    """A target with places, and the tasks that ask it."""

    def __init__(self, inner: Scripted, limits: Limits) -> None:
        self.inner = inner
        self.crowded = False
        self.queue = Queue(limits, self._crowd)
        self.provider = Queued(inner, self.queue)

    def ask(self, deadline: float | None = None) -> asyncio.Task[list[Event]]:
        context = a_context(deadline=deadline)
        return asyncio.create_task(collect(self.provider, CHAT, context))

    def _crowd(self, full: bool) -> None:
        assert full != self.crowded
        self.crowded = full

    def counts(self) -> tuple[int, int]:
        """In flight and waiting."""
        assert self.crowded == self.queue.places.full()
        return self.queue.places.in_flight, self.queue.places.waiting


def _nobody(full: bool) -> None:
    """Need not know whether there is a place."""


def _after(gate: Gate) -> list[Step]:
    return [gate, *GOOD]


async def _pause() -> None:
    """Everybody who can go on does."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    gates = [Gate() for _ in range(4)]
    asked = Asked(Scripted(*[_after(gate) for gate in gates]), Limits(max_in_flight=1))
    tasks = [asked.ask() for _ in gates]
    for place, (gate, task) in enumerate(zip(gates, tasks, strict=True)):
        await asyncio.wait_for(gate.reached.wait(), 5)
        assert (len(asked.inner.calls), asked.counts()) == (place + 1, (1, 3 - place))
        gate.open()
        await asyncio.wait_for(task, 5)
    assert asked.counts() == (0, 0)


async def test_a_stream_holds_its_place_to_its_end() -> None:
    gate = Gate()
    asked = Asked(Scripted([*GOOD[:2], gate, *GOOD[2:]], GOOD), Limits(max_in_flight=1))
    first = asked.ask()
    await asyncio.wait_for(gate.reached.wait(), 5)
    second = asked.ask()
    await _pause()
    assert asked.counts() == (1, 1)
    gate.open()
    await asyncio.wait_for(asyncio.gather(first, second), 5)
    assert asked.counts() == (0, 0)


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    gate = Gate()
    asked = Asked(Scripted([gate, *GOOD]), Limits(max_in_flight=1, max_queue=1, timeout=7.0))
    tasks = [asked.ask(), asked.ask()]
    await asyncio.wait_for(gate.reached.wait(), 5)
    with pytest.raises(Failure, match="too many requests wait") as raised:
        await asked.ask()
    assert (raised.value.kind, raised.value.retry_after) == (Kind.OVERLOADED, 7.0)
    gate.open()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)


def test_who_has_waited_long_enough_is_told() -> None:
    async def main() -> None:
        gate = Gate()
        asked = Asked(Scripted([gate, *GOOD]), Limits(max_in_flight=1, timeout=7.0))
        first = asked.ask()
        await gate.reached.wait()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(Failure, match="no place for the request in time") as raised:
            await asked.ask()
        assert asyncio.get_running_loop().time() - begun == pytest.approx(7.0, abs=0.01)
        assert (raised.value.kind, raised.value.retry_after, asked.counts()) == (Kind.OVERLOADED, 7.0, (1, 0))
        with pytest.raises(Failure, match="deadline") as raised:
            await asked.ask(deadline=asyncio.get_running_loop().time() + 3.0)
        assert raised.value.kind is Kind.DEADLINE_EXCEEDED
        assert asyncio.get_running_loop().time() - begun == pytest.approx(10.0, abs=0.01)
        gate.open()
        await first
        assert asked.counts() == (0, 0)

    run_leaping(main())


def test_time_in_the_queue_is_not_the_upstreams() -> None:
    async def main() -> None:
        queue = Queue(Limits(max_in_flight=1, timeout=100.0), _nobody)
        await queue.enter(a_context())
        provider = Queued(Timeouts(Scripted(GOOD), TimeLimits(first_event=1.0)), queue)
        attempt = Attempt(provider="p", model="m", started=0.0)
        task = asyncio.create_task(collect(provider, CHAT, a_context(trail=[attempt])))
        asyncio.get_running_loop().call_later(50.0, queue.leave)
        assert await task == [event for batch in GOOD for event in batch]
        assert attempt.queued == pytest.approx(50.0, abs=0.01)

    run_leaping(main())


@pytest.mark.parametrize("script", [Script(at_open=Failure(Kind.UPSTREAM_ERROR, "x")), Script(at_enter=ValueError())])
async def test_a_call_that_could_not_begin_gives_its_place_back(script: Script) -> None:
    asked = Asked(Scripted(script), Limits(max_in_flight=1))
    with pytest.raises((Failure, ValueError)):
        await asked.ask()
    assert asked.counts() == (0, 0)


async def test_who_leaves_the_queue_is_gone_at_once() -> None:
    gate = Gate()
    asked = Asked(Scripted([gate, *GOOD], GOOD), Limits(max_in_flight=1, max_queue=1))
    first, second = asked.ask(), asked.ask()
    await asyncio.wait_for(gate.reached.wait(), 5)
    second.cancel()
    await asyncio.wait([second])
    third = asked.ask()
    gate.open()
    await asyncio.wait_for(asyncio.gather(first, third), 5)
    assert (len(asked.inner.calls), asked.counts()) == (2, (0, 0))


async def test_a_place_that_comes_as_its_client_leaves_goes_to_the_next() -> None:
    queue = Queue(Limits(max_in_flight=1), _nobody)
    await queue.enter(a_context())
    leaving, staying = (asyncio.create_task(queue.enter(a_context())) for _ in range(2))
    await _pause()
    queue.leave()
    leaving.cancel()  # it has the place by now, and does not know yet
    await asyncio.wait_for(staying, 5)
    assert leaving.cancelled()
    assert (queue.places.in_flight, queue.places.waiting) == (1, 0)


async def test_a_client_that_has_left_is_passed_over_before_its_task_runs() -> None:
    queue = Queue(Limits(max_in_flight=1), _nobody)
    await queue.enter(a_context())
    leaving, staying = (asyncio.create_task(queue.enter(a_context())) for _ in range(2))
    await _pause()
    leaving.cancel()
    queue.leave()
    await asyncio.wait_for(staying, 5)
    assert leaving.cancelled()
    assert (queue.places.in_flight, queue.places.waiting) == (1, 0)


def test_who_leaves_in_the_moment_its_time_is_over_is_just_gone() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, problem: problems.append(problem))
        queue = Queue(Limits(max_in_flight=1, timeout=7.0), _nobody)
        await queue.enter(a_context())
        waiting = asyncio.create_task(queue.enter(a_context()))
        loop.call_at(7.0, waiting.cancel)
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert queue.places.waiting == 0

    problems: list[dict[str, object]] = []
    run_leaping(main())
    assert problems == []


class Dawdling(Scripted):
    """Waits at gates that open by chance."""

    def __init__(self, dice: random.Random) -> None:
        self.gates = [Gate() for _ in range(3)]
        for gate in self.gates:
            asyncio.get_running_loop().call_later(dice.uniform(0, 30), gate.open)
        held, midway, entering = self.gates
        super().__init__(
            GOOD,
            [held, *GOOD],
            Script(at_enter=entering, steps=GOOD),
            [*GOOD[:2], midway, *GOOD[2:]],
            Script(at_open=Failure(Kind.UPSTREAM_ERROR, "x")),
            [Failure(Kind.UPSTREAM_ERROR, "x")],
            Script(at_enter=Failure(Kind.UPSTREAM_ERROR, "x")),
            *[_after(held) for _ in range(20)],
            GOOD,
        )


@given(st.randoms(use_true_random=False))
def test_nothing_leaks_whoever_leaves_when(dice: random.Random) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        asked = Asked(Dawdling(dice), Limits(max_in_flight=dice.randint(1, 3), max_queue=5, timeout=10.0))
        tasks = []
        for _ in range(40):
            task = asked.ask(deadline=loop.time() + dice.choice([0.5, 5.0, 50.0]))
            tasks.append(task)
            if dice.random() < 0.5:
                loop.call_later(dice.choice([0.0, dice.uniform(0, 30)]), task.cancel)
            await asyncio.sleep(dice.choice([0.0, 0.0, dice.uniform(0, 2)]))
            assert asked.counts()[0] <= 3
            assert asked.counts()[1] <= 5
        came = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, list | Failure | asyncio.CancelledError) for one in came)
        assert asked.counts() == (0, 0)
        ended = [call.exits for call in asked.inner.calls if call.entered.is_set()]
        assert ended == [1] * len(ended)

    run_leaping(main())


async def test_a_queue_is_a_provider_like_any() -> None:
    await assert_conforms(Queued(Scripted(GOOD), Queue(Limits(max_in_flight=1), _nobody)), CHAT)

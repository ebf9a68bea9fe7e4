"""Hedged requests: when a second target is asked, and that the first to commit answers, alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random as Dice
from typing import Any

import pytest

from llmg.core.context import Attempt, Context, Observer
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch, Delta, Embedding, Embeddings, Event, Opened, Result, Started
from llmg.core.request import Chat, Embed, Request
from llmg.ports import Answering, Provider
from llmg.routing import breaker, queue, retries
from llmg.routing.breaker import State
from llmg.routing.health import Health
from llmg.routing.hedge import Hedges, Limits, Times
from llmg.routing.models import Group, Target
from llmg.routing.policies.base import First
from llmg.routing.race import Hedged
from llmg.routing.retries import Retries
from llmg.routing.router import Router
from llmg.testing.clocks import FakeClock, run_leaping
from llmg.testing.conformance import a_context, assert_conforms, collect
from llmg.testing.models import Models
from llmg.testing.scripted import Gate, Script, Scripted, Step, saying

# -- the budget -----------------------------------------------------------------------------------------------------


def test_requests_pay_for_hedges() -> None:
    hedges = Hedges(Limits(after=1.0, budget=0.25))
    taken = []
    for _ in range(12):
        hedges.asked()
        taken.append(hedges.take(0))
    assert taken == [True, False, False, True] + [False, False, False, True] * 2


def test_they_are_saved_up_for_a_bad_moment() -> None:
    hedges = Hedges(Limits(after=1.0, budget=0.5))
    for _ in range(1000):
        hedges.asked()
    assert [hedges.take(0) for _ in range(12)] == [True] * 10 + [False] * 2


@pytest.mark.parametrize("most", [1, 3])
def test_a_request_has_so_many(most: int) -> None:
    hedges = Hedges(Limits(after=1.0, max=most, budget=1.0))
    for _ in range(10):
        hedges.asked()
    assert [hedges.take(done) for done in range(5)] == [done < most for done in range(5)]


# -- after which time -----------------------------------------------------------------------------------------------


def test_after_a_time_that_is_given() -> None:
    hedges = Hedges(Limits(after=0.7))
    hedges.took("chat", 5.0)
    assert hedges.after("chat") == 0.7


def test_after_the_time_in_which_most_answers_begin() -> None:
    hedges = Hedges(Limits())
    for number in range(100):
        assert (hedges.after("chat") is None) == (number < 32)
        hedges.took("chat", number / 100)
    assert hedges.after("chat") == pytest.approx(0.9, abs=0.1)
    assert hedges.after("embed") is None  # each kind for itself


def test_the_latest_times_count() -> None:
    times = Times()
    for _ in range(300):
        times.add(9.0)
    for _ in range(256):
        times.add(0.5)
    assert times.percentile == 0.5


def test_one_in_twenty_is_longer() -> None:
    times = Times()
    for number in range(256):
        times.add(float(number % 32))  # each of 32 times alike
    assert times.percentile == 30.0


# -- the race -------------------------------------------------------------------------------------------------------

GOOD, BETTER = saying("hello"), saying("good", "morning")
CHAT = Chat(model="m", messages=(), stream=True)
WHOLE = Chat(model="m", messages=())
EMBED = Embed(model="m", inputs=("hi",))
VECTOR: list[Step] = [[Started("a1", 1, "m"), Result(Embeddings((Embedding(0, (1.0,)),)))]]
SOON = 0.001  # seconds
NEVER = 3600.0
DOWN_KIND = Kind.UPSTREAM_UNAVAILABLE
DOWN: list[Step] = [Failure(Kind.UPSTREAM_UNAVAILABLE, "said down")]
WRONG: list[Step] = [Failure(Kind.INVALID_REQUEST, "said wrong")]


class Told(First):
    """A policy that takes the first, and remembers what it was told. Each target that starts takes so many seconds."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._clock = clock
        self._seconds = seconds

    def started(self, index: int, /) -> None:
        self.told.append(("started", index))
        self._clock.advance(self._seconds)

    def first_event(self, index: int, seconds: float, /) -> None:
        self.told.append(("first_event", index, seconds))

    def ended(self, index: int, seconds: float, ok: bool | None, /) -> None:
        self.told.append(("ended", index, ok))


class Recorder(Observer):
    """Remembers what it was told, as words."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def attempt_started(self, context: Context, attempt: Attempt) -> None:
        self.told.append(f"started {attempt.model}")

    def attempt_ended(self, context: Context, attempt: Attempt) -> None:
        self.told.append(f"ended {attempt.model} {'well' if attempt.failure is None else attempt.failure.kind.value}")

    def committed(self, context: Context, attempt: Attempt) -> None:
        self.told.append(f"committed {attempt.model}")


class Counted(Hedges):
    """Knows when a hedge was asked for."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.wanted = asyncio.Event()

    def take(self, done: int) -> bool:
        self.wanted.set()
        return super().take(done)


class Gateway:
    """A router before targets `m0`, `m1` and so on, with a clock that only the start of a target moves."""

    def __init__(
        self,
        *providers: Provider,
        after: float = SOON,
        most: int = 1,
        budget: float = 1.0,
        step: float = 0.0,
        **fields: Any,
    ) -> None:
        self.clock = FakeClock()
        self.hedges = Counted(Limits(after=after, max=most, budget=budget))
        self.policy = Told(self.clock, step)
        self.recorder = Recorder()
        self.context = a_context(observer=self.recorder)
        self.targets = tuple(
            Target(provider="p", model=f"m{n}", inner=inner, health=Health(breaker.Limits(consecutive=1)))
            for n, inner in enumerate(providers)
        )
        group = Group(name="m", targets=self.targets, policy=self.policy, hedges=self.hedges, **fields)
        other = Target(provider="p", model="a0", inner=Scripted(BETTER))
        fallback = Group(name="a", targets=(other,), policy=First())
        self.router = Router(Models({"m": group, "a": fallback}, {}), self.clock)

    async def ask(self, request: Request = CHAT) -> list[Event]:
        """All that the client gets."""
        return await asyncio.wait_for(collect(self.router, request, self.context), 5)

    @property
    def trail(self) -> list[tuple[str, Kind | None]]:
        """Who was asked, and how that ended."""
        return [(attempt.model, attempt.failure.kind if attempt.failure else None) for attempt in self.context.trail]


def _all(script: list[list[Event]]) -> list[Event]:
    return [event for batch in script for event in batch]


def _later(steps: Sequence[Step]) -> tuple[Gate, list[Step]]:
    gate = Gate()
    return gate, [gate, *steps]


def _never() -> Scripted:
    return Scripted(_later(GOOD)[1])


async def _until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not seen():
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("request_", "answer"), [(CHAT, BETTER), (WHOLE, BETTER), (EMBED, VECTOR)], ids=["stream", "whole", "vectors"]
)
async def test_when_the_first_keeps_waiting_another_answers(request_: Request, answer: list[list[Event]]) -> None:
    first, second, third = _never(), Scripted(answer), Scripted(GOOD)
    gateway = Gateway(first, second, third)
    assert await gateway.ask(request_) == _all(answer)
    assert gateway.trail == [("m0", Kind.CANCELLED), ("m1", None)]
    assert first.calls[0].cancelled.is_set()
    assert [call.exits for call in (first.calls[0], second.calls[0])] == [1, 1]
    assert not third.calls
    loser = gateway.context.trail[0]
    assert loser.failure is not None
    assert loser.failure.message == "another target was faster"
    assert [attempt.ended for attempt in gateway.context.trail] == [1000.0, 1000.0]
    assert gateway.recorder.told == ["started m0", "started m1", "committed m1", "ended m0 cancelled", "ended m1 well"]
    assert gateway.targets[0].health.calm  # it was slow, not broken
    assert all(target.health.status(1000.0).in_flight == 0 for target in gateway.targets)


async def test_the_first_may_still_be_the_faster_one() -> None:
    gate, slow = _later(BETTER)
    other_gate, slower = _later(GOOD)
    first, second = Scripted(slow), Scripted(slower)
    gateway = Gateway(first, second)
    asking = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(other_gate.reached.wait(), 5)
    gate.open()
    assert await asyncio.wait_for(asking, 5) == _all(BETTER)
    assert gateway.trail == [("m1", Kind.CANCELLED), ("m0", None)]  # who answers comes last
    assert second.calls[0].cancelled.is_set()


async def test_in_time_nobody_else_is_asked() -> None:
    first, second = Scripted(GOOD), Scripted(BETTER)
    gateway = Gateway(first, second, after=NEVER)
    assert await gateway.ask() == _all(GOOD)
    assert gateway.trail == [("m0", None)]
    assert gateway.policy.told == [("started", 0), ("first_event", 0, 0.0), ("ended", 0, True)]
    assert not second.calls


async def test_what_had_come_of_the_slower_one_is_never_shown() -> None:
    gate = Gate()
    begun: list[Step] = [[Started("theirs", 1, "m"), Opened(0, 0, "reasoning")], gate, *GOOD]
    gateway = Gateway(Scripted(begun), Scripted(BETTER))
    assert await gateway.ask() == _all(BETTER)


async def test_who_commits_in_the_same_moment_is_too_late() -> None:
    gate = Gate()
    first, second = Scripted([gate, *GOOD]), Scripted([gate, *BETTER])
    gateway = Gateway(first, second)
    asking = asyncio.create_task(gateway.ask())
    await _until(lambda: bool(second.calls))
    await asyncio.wait_for(second.calls[0].entered.wait(), 5)
    gate.open()
    assert await asyncio.wait_for(asking, 5) == _all(GOOD)
    assert gateway.trail == [("m1", Kind.CANCELLED), ("m0", None)]


async def test_the_policy_learns_that_a_target_was_overtaken() -> None:
    gateway = Gateway(_never(), Scripted(BETTER), step=2.0)
    await gateway.ask()
    assert gateway.policy.told == [
        ("started", 0),
        ("started", 1),
        ("first_event", 1, 2.0),
        ("first_event", 0, 4.0),  # so long at least
        ("ended", 0, None),
        ("ended", 1, True),
    ]


async def test_but_nothing_of_one_that_only_began_later() -> None:
    gate, slow = _later(BETTER)
    other_gate, slower = _later(GOOD)
    gateway = Gateway(Scripted(slow), Scripted(slower), step=2.0)
    asking = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(other_gate.reached.wait(), 5)
    gate.open()
    await asyncio.wait_for(asking, 5)
    assert gateway.policy.told[2:] == [("first_event", 0, 4.0), ("ended", 1, None), ("ended", 0, True)]


# -- failures -------------------------------------------------------------------------------------------------------


async def test_when_one_fails_the_other_goes_on() -> None:
    gate, slow = _later(GOOD)
    gateway = Gateway(Scripted(slow), Scripted(DOWN))
    asking = asyncio.create_task(gateway.ask())
    await _until(lambda: ("m1", DOWN_KIND) in gateway.trail)
    gate.open()
    assert await asyncio.wait_for(asking, 5) == _all(GOOD)
    assert gateway.trail == [("m1", DOWN_KIND), ("m0", None)]


async def test_also_when_it_is_the_first() -> None:
    gate, fails_late = _later(DOWN)
    other_gate, slow = _later(BETTER)
    gateway = Gateway(Scripted(fails_late), Scripted(slow), Scripted(GOOD))
    asking = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(other_gate.reached.wait(), 5)
    gate.open()
    await _until(lambda: ("m0", DOWN_KIND) in gateway.trail)
    other_gate.open()
    assert await asyncio.wait_for(asking, 5) == _all(BETTER)
    assert gateway.trail == [("m0", DOWN_KIND), ("m1", None)]


async def test_when_both_fail_the_next_is_asked() -> None:
    gate, fails_late = _later(DOWN)
    gateway = Gateway(Scripted(fails_late), Scripted(DOWN), Scripted(GOOD))
    asking = asyncio.create_task(gateway.ask())
    await _until(lambda: ("m1", DOWN_KIND) in gateway.trail)
    gate.open()
    assert await asyncio.wait_for(asking, 5) == _all(GOOD)
    assert gateway.trail == [("m1", DOWN_KIND), ("m0", DOWN_KIND), ("m2", None)]


async def test_before_its_time_a_failure_is_like_any() -> None:
    gateway = Gateway(Scripted(DOWN), Scripted(GOOD), after=NEVER)
    assert await gateway.ask() == _all(GOOD)
    assert gateway.trail == [("m0", DOWN_KIND), ("m1", None)]


async def test_retries_hold_and_the_last_failure_is_told() -> None:
    retry = Retries(retries.Limits(max=1, backoff=SOON))
    gateway = Gateway(Scripted(DOWN), Scripted(DOWN), after=NEVER, retries=retry)
    with pytest.raises(Failure, match="said down"):
        await gateway.ask()
    assert gateway.trail == [("m0", DOWN_KIND), ("m1", DOWN_KIND), ("m0", DOWN_KIND)]


async def test_fallbacks_hold() -> None:
    gateway = Gateway(Scripted(DOWN), Scripted(DOWN), after=NEVER, fallbacks=("a",))
    assert await gateway.ask() == _all(BETTER)
    assert gateway.trail == [("m0", DOWN_KIND), ("m1", DOWN_KIND), ("a0", None)]


@pytest.mark.parametrize("falls_back", [True, False])
async def test_what_any_other_would_refuse_ends_both(falls_back: bool) -> None:
    first = _never()
    fields: dict[str, Any] = {"fallbacks": ("a",), "fallback_on": frozenset([Kind.INVALID_REQUEST])}
    gateway = Gateway(first, Scripted(WRONG), **(fields if falls_back else {}))
    if falls_back:
        assert await gateway.ask() == _all(BETTER)
    else:
        with pytest.raises(Failure, match="said wrong"):
            await gateway.ask()
    after = [("a0", None)] if falls_back else []
    assert gateway.trail == [("m0", Kind.CANCELLED), ("m1", Kind.INVALID_REQUEST), *after]
    assert first.calls[0].cancelled.is_set()
    assert gateway.targets[0].health.calm


async def test_after_commit_a_failure_ends_the_answer() -> None:
    gateway = Gateway(_never(), Scripted([*BETTER[:2], *DOWN]), Scripted(GOOD))
    events: list[Event] = []

    async def read() -> None:
        async with gateway.router.open(CHAT, gateway.context) as batches:
            async for batch in batches:
                events.extend(batch)

    with pytest.raises(Failure, match="said down"):
        await asyncio.wait_for(read(), 5)
    assert events == _all(BETTER[:2])
    assert gateway.trail == [("m0", Kind.CANCELLED), ("m1", DOWN_KIND)]
    assert gateway.targets[1].health.breaker.state is State.OPEN


@pytest.mark.parametrize("place", ["enter", "before", "after"])
async def test_our_own_mistake_passes_through(place: str) -> None:
    oops = ValueError("oops")
    scripts = {
        "enter": Script(at_enter=oops),
        "before": Script(steps=[oops]),
        "after": Script(steps=[*BETTER[:2], oops]),
    }
    first = _never()
    gateway = Gateway(first, Scripted(scripts[place]))
    with pytest.raises(ValueError, match="oops"):
        await gateway.ask()
    assert ("m1", Kind.INTERNAL) in gateway.trail
    assert first.calls[0].exits == 1


class Cancelling:
    """A provider whose call is cancelled from within, as by a channel that is closed."""

    def open(self, request: Request, context: Context, /) -> Answering:
        return self

    async def __aenter__(self) -> AsyncIterator[Batch]:
        raise asyncio.CancelledError

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError("it was never entered")


async def test_a_call_that_is_cancelled_from_within_is_told() -> None:
    with pytest.raises(Failure) as raised:
        await Gateway(Cancelling(), after=NEVER).ask()
    assert raised.value.kind is Kind.INTERNAL


class Deaf:
    """A provider that goes on when it is cancelled, as if a library of its own had lost that."""

    def open(self, request: Request, context: Context, /) -> Answering:
        return self._answer()

    @asynccontextmanager
    async def _answer(self) -> AsyncIterator[AsyncIterator[Batch]]:
        yield self._events()

    async def _events(self) -> AsyncIterator[Batch]:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        for batch in GOOD:
            yield batch


async def test_who_does_not_hear_that_it_was_overtaken_does_not_end_the_answer() -> None:
    gate = Gate()
    gateway = Gateway(Deaf(), Scripted([*BETTER[:2], gate, *BETTER[2:]]))
    asking = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gate.reached.wait(), 5)
    for _ in range(20):  # turns of the loop, in which the other says all that it has
        await asyncio.sleep(0)
    gate.open()
    assert await asking == _all(BETTER)
    assert gateway.trail == [("m0", Kind.CANCELLED), ("m1", None)]


# -- how many -------------------------------------------------------------------------------------------------------


async def test_without_a_budget_nobody_else_is_asked() -> None:
    gate, slow = _later(GOOD)
    second = Scripted(BETTER)
    gateway = Gateway(Scripted(slow), second, budget=0.0)
    assert gateway.hedges.take(0)  # the last of it
    gateway.hedges.wanted.clear()
    asking = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gateway.hedges.wanted.wait(), 5)
    gate.open()
    assert await asyncio.wait_for(asking, 5) == _all(GOOD)
    assert not second.calls


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_so_many_more_each_after_as_long_again(most: int) -> None:
    gates = [Gate() for _ in range(4)]
    providers = [Scripted([gate, *GOOD]) for gate in gates]
    gateway = Gateway(*providers, most=most)
    for _ in range(9):
        gateway.hedges.asked()
    asking = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gates[most].reached.wait(), 5)
    gates[most].open()
    assert await asyncio.wait_for(asking, 5) == _all(GOOD)
    assert [name for name, _ in gateway.trail] == [f"m{n}" for n in range(most + 1)]


async def test_only_who_is_fit_is_asked_without_need() -> None:
    gateway = Gateway(_never(), Scripted(GOOD), Scripted(GOOD), Scripted(BETTER))
    broken = gateway.targets[1].health
    broken.ended(broken.begin(), 1000.0, Failure(Kind.UPSTREAM_ERROR, "words"))
    gateway.targets[2].health.crowded(True)
    await gateway.ask()
    assert gateway.trail == [("m0", Kind.CANCELLED), ("m3", None)]


# -- leaving --------------------------------------------------------------------------------------------------------


async def test_when_the_client_leaves_both_end() -> None:
    gates = [Gate(), Gate()]
    providers = [Scripted([gate, *GOOD]) for gate in gates]
    gateway = Gateway(*providers)
    asking = asyncio.create_task(collect(gateway.router, CHAT, gateway.context))
    for gate in gates:
        await asyncio.wait_for(gate.reached.wait(), 5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asking, 5)
    assert gateway.trail == [("m0", Kind.CANCELLED), ("m1", Kind.CANCELLED)]
    assert [provider.calls[0].exits for provider in providers] == [1, 1]
    assert all(provider.calls[0].cancelled.is_set() for provider in providers)
    assert len(asyncio.all_tasks()) == 1
    assert all(target.health.calm for target in gateway.targets)


@pytest.mark.parametrize("request_", [CHAT, WHOLE])
async def test_who_leaves_after_a_batch_ends_the_answer(request_: Chat) -> None:
    inner = Scripted(saying(*["word"] * 100))
    gateway = Gateway(inner)
    async with gateway.router.open(request_, gateway.context) as batches:
        await anext(batches)
    assert inner.calls[0].exits == 1
    assert gateway.trail == [("m0", Kind.CANCELLED if request_.stream else None)]
    assert len(asyncio.all_tasks()) == 1


async def test_who_asks_for_nothing_asks_nobody() -> None:
    inner = Scripted(GOOD)
    async with Gateway(inner).router.open(CHAT, a_context()):
        pass
    assert not inner.calls


async def test_a_slow_client_slows_the_upstream() -> None:
    inner = Scripted(saying(*["word"] * 100))
    gateway = Gateway(inner)
    async with gateway.router.open(CHAT, gateway.context) as batches:
        await anext(batches)
        for _ in range(50):  # however long it has
            await asyncio.sleep(0)
        assert inner.calls[0].given < 15
        rest = [batch async for batch in batches]
    assert len(rest) == 100


async def test_the_time_in_a_queue_is_that_of_who_waited() -> None:
    gate, slow = _later(GOOD)
    health = Health()
    places = queue.Queue(queue.Limits(max_in_flight=1), health.crowded)
    gateway = Gateway(queue.Queued(Scripted(GOOD), places), Scripted(slow))
    await places.enter(a_context())
    asking = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gate.reached.wait(), 5)
    places.leave()
    assert await asyncio.wait_for(asking, 5) == _all(GOOD)
    loser, winner = gateway.context.trail
    assert (loser.model, winner.model) == ("m1", "m0")
    assert loser.queued == 0.0 < winner.queued


async def test_hedged_or_not_it_is_a_provider_like_any() -> None:
    await assert_conforms(Gateway(Scripted(GOOD), Scripted(GOOD)).router, CHAT)


async def test_a_model_without_hedges_has_no_race() -> None:
    target = Target(provider="p", model="m0", inner=Scripted(GOOD))
    router = Router(Models({"m": Group(name="m", targets=(target,), policy=First())}, {}), FakeClock())
    assert not isinstance(router.open(CHAT, a_context()), Hedged)
    assert isinstance(Gateway(Scripted(GOOD)).router.open(CHAT, a_context()), Hedged)


# -- whatever happens -----------------------------------------------------------------------------------------------


class Moody:
    """A provider that takes its time, fails now and then, and says its name in each word."""

    def __init__(self, name: str, dice: Dice) -> None:
        self._name = name
        self._dice = dice
        self.at_work = 0

    def open(self, request: Request, context: Context, /) -> Answering:
        return self._answer()

    @asynccontextmanager
    async def _answer(self) -> AsyncIterator[AsyncIterator[Batch]]:
        self.at_work += 1
        try:
            await self._moment()
            yield self._words()
        finally:
            self.at_work -= 1

    async def _words(self) -> AsyncIterator[Batch]:
        for batch in saying(*[self._name] * self._dice.randrange(1, 20)):
            await self._moment()
            yield batch

    async def _moment(self) -> None:
        await asyncio.sleep(self._dice.choice((0.0, 0.0, 0.01, 0.3, 2.0)))
        if self._dice.random() < 0.05:
            raise Failure(self._dice.choice((Kind.UPSTREAM_ERROR, Kind.INVALID_REQUEST, Kind.OVERLOADED)), "words")


async def _play(seed: int) -> str:
    """One request's course, whose client may leave at any time. Asserts what must hold; gives who answered."""
    dice = Dice(seed)
    providers = [Moody(f"m{n}", dice) for n in range(4)]
    gateway = Gateway(*providers, after=0.02, most=dice.randrange(1, 4))
    for _ in range(dice.randrange(9)):
        gateway.hedges.asked()
    request = dice.choice((CHAT, WHOLE))
    said = ""
    with suppress(Failure, TimeoutError):
        async with asyncio.timeout(dice.choice((0.01, 0.5, 60.0))):
            async with gateway.router.open(request, gateway.context) as batches:
                async for batch in batches:
                    said += "".join(event.data for event in batch if isinstance(event, Delta))  # type: ignore[misc]
                    await asyncio.sleep(dice.choice((0.0, 0.0, 1.0)))
    last = gateway.context.trail[-1].model
    assert said == last * (len(said) // 2)
    assert all(attempt.ended is not None for attempt in gateway.context.trail)
    assert [provider.at_work for provider in providers] == [0] * 4
    assert all(target.health.status(0.0).in_flight == 0 for target in gateway.targets)
    started = [index for what, index, *_ in gateway.policy.told if what == "started"]
    assert sorted(started) == sorted(index for what, index, *_ in gateway.policy.told if what == "ended")
    assert len(asyncio.all_tasks()) == 1
    return said and last


def test_whatever_happens_one_answers_and_nothing_is_left() -> None:
    async def main() -> set[str]:
        return {await _play(seed) for seed in range(400)}

    assert {"", "m0", "m1"} <= run_leaping(main())

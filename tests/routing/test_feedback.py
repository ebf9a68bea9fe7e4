"""What the router tells a policy: of each outcome, once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from llmg.core.errors import Failure, Kind
from llmg.core.request import Chat, Message, Text
from llmg.ports import Asked
from llmg.routing.models import Group, Target
from llmg.routing.policies.base import First
from llmg.routing.router import Router
from llmg.testing.clocks import FakeClock
from llmg.testing.conformance import a_context, collect
from llmg.testing.models import Models
from llmg.testing.scripted import Gate, Script, Scripted, saying

GOOD = saying("hello")
DOWN = Failure(Kind.UPSTREAM_UNAVAILABLE, "words")


class Told(First):
    """A policy that takes the first, and remembers what it was asked and told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.asked: list[Asked] = []

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        self.asked.append(asked)
        return candidates[0]

    def started(self, index: int, /) -> None:
        self.told.append(f"started {index}")

    def first_event(self, index: int, seconds: float, /) -> None:
        self.told.append(f"first {index} {seconds:g}")

    def ended(self, index: int, seconds: float, ok: bool | None, /) -> None:
        self.told.append(f"ended {index} {seconds:g} {ok}")


class Routing:
    """A router over scripted providers, and its policy."""

    def __init__(self, *scripts: Scripted) -> None:
        self.policy = Told()
        self.clock = FakeClock()
        targets = tuple(Target(provider=f"p{n}", model="m", inner=inner) for n, inner in enumerate(scripts))
        groups = {"smart": Group(name="smart", targets=targets, policy=self.policy)}
        self.router = Router(Models(groups, {}), self.clock)


def _chat(*, stream: bool) -> Chat:
    return Chat(model="smart", messages=(Message(role="user", parts=(Text("hi"),)),), stream=stream, user="u")


def _late(gate: Gate) -> Scripted:
    return Scripted([gate, *GOOD])


@pytest.mark.parametrize("stream", [True, False])
async def test_success(stream: bool) -> None:
    gate = Gate()
    routing = Routing(_late(gate))
    task = asyncio.create_task(collect(routing.router, _chat(stream=stream), a_context()))
    await asyncio.wait_for(gate.reached.wait(), 5)
    assert routing.policy.told == ["started 0"]
    routing.clock.advance(2.5)
    gate.open()
    await asyncio.wait_for(task, 5)
    assert routing.policy.told == ["started 0", "first 0 2.5", "ended 0 2.5 True"]


async def test_the_first_event_and_the_end_are_timed_apart() -> None:
    gate = Gate()
    routing = Routing(Scripted([*GOOD[:2], gate, *GOOD[2:]]))
    task = asyncio.create_task(collect(routing.router, _chat(stream=True), a_context()))
    await asyncio.wait_for(gate.reached.wait(), 5)
    routing.clock.advance(4)
    gate.open()
    await asyncio.wait_for(task, 5)
    assert routing.policy.told == ["started 0", "first 0 0", "ended 0 4 True"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [Script(at_open=DOWN), Script(at_enter=DOWN), Script(steps=[DOWN]), Script()])
async def test_a_failure_and_the_next_target(script: Script, stream: bool) -> None:
    routing = Routing(Scripted(script), Scripted(GOOD))
    await collect(routing.router, _chat(stream=stream), a_context())
    assert routing.policy.told == ["started 0", "ended 0 0 False", "started 1", "first 1 0", "ended 1 0 True"]
    first, second = routing.policy.asked
    assert first is second
    assert first.user == "u"


async def test_a_failure_after_commit() -> None:
    routing = Routing(Scripted([*GOOD[:2], DOWN]))
    with pytest.raises(Failure):
        await collect(routing.router, _chat(stream=True), a_context())
    assert routing.policy.told == ["started 0", "first 0 0", "ended 0 0 False"]


@pytest.mark.parametrize("kind", [Kind.INVALID_REQUEST, Kind.CONTEXT_LENGTH_EXCEEDED, Kind.CONTENT_FILTERED])
async def test_what_the_caller_did_says_nothing_of_the_target(kind: Kind) -> None:
    routing = Routing(Scripted([Failure(kind, "words")]))
    with pytest.raises(Failure):
        await collect(routing.router, _chat(stream=True), a_context())
    assert routing.policy.told == ["started 0", "ended 0 0 None"]


async def test_our_own_mistake_says_nothing_of_the_target() -> None:
    routing = Routing(Scripted([ValueError("oops")]))
    with pytest.raises(ValueError, match="oops"):
        await collect(routing.router, _chat(stream=True), a_context())
    assert routing.policy.told == ["started 0", "ended 0 0 None"]


@pytest.mark.parametrize("place", ["entering", "before commit", "after commit", "unary"])
async def test_cancellation_is_neither(place: str) -> None:
    gate = Gate()
    script = {
        "entering": Script(at_enter=gate),
        "before commit": Script(steps=[GOOD[0], gate]),
        "after commit": Script(steps=[*GOOD[:2], gate]),
        "unary": Script(steps=[*GOOD[:2], gate]),
    }[place]
    routing = Routing(Scripted(script))
    task = asyncio.create_task(collect(routing.router, _chat(stream=place != "unary"), a_context()))
    await asyncio.wait_for(gate.reached.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    first = ["first 0 0"] if place == "after commit" else []
    assert routing.policy.told == ["started 0", *first, "ended 0 0 None"]


async def test_leaving_early_is_neither() -> None:
    routing = Routing(Scripted(GOOD))
    async with routing.router.open(_chat(stream=True), a_context()) as batches:
        await anext(batches)
    assert routing.policy.told == ["started 0", "first 0 0", "ended 0 0 None"]


async def test_nobody_asked_nobody_told() -> None:
    routing = Routing(Scripted(GOOD))
    async with routing.router.open(_chat(stream=True), a_context()):
        pass
    assert routing.policy.told == []

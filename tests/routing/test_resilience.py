"""The router with targets in trouble: who is asked, who is spared, and what the client is told when nobody is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Event, Opened
from llmg.core.request import Chat, Embed
from llmg.ports import Profile
from llmg.routing import queue, retries
from llmg.routing.breaker import Limits, State
from llmg.routing.health import Health
from llmg.routing.models import Group, Target
from llmg.routing.policies.base import First
from llmg.routing.retries import RETRIED, Retries
from llmg.routing.router import Router
from llmg.testing.clocks import FakeClock, run_leaping
from llmg.testing.conformance import a_context, collect
from llmg.testing.models import Models
from llmg.testing.scripted import Gate, Scripted, Step, saying

GOOD = saying("hello")
TOUCHY = Limits(consecutive=2, open_for=5.0)
CHAT = Chat(model="m", messages=(), stream=True)


def _failing(kind: Kind, retry_after: float | None = None) -> list[Step]:
    return [Failure(kind, f"said {kind.value}", retry_after=retry_after)]


DOWN = _failing(Kind.UPSTREAM_UNAVAILABLE)
BUSY = _failing(Kind.UPSTREAM_RATE_LIMITED, 7.0)


def _group(name: str, *providers: Scripted, **fields: Any) -> Group:
    """Its targets are named after it: `m0`, `m1` and so on."""
    targets = tuple(
        Target(provider="p", model=f"{name}{n}", inner=inner, health=Health(TOUCHY))
        for n, inner in enumerate(providers)
    )
    return Group(name=name, targets=targets, policy=First(), **fields)


class Gateway:
    """A router and its clock."""

    def __init__(self, *groups: Group) -> None:
        self.clock = FakeClock()
        self.router = Router(Models({group.name: group for group in groups}, {}), self.clock)
        self.targets = groups[0].targets

    async def ask(self, context: Context | None = None) -> list[str]:
        """Who was asked, in this order; raises what the client is told."""
        context = context or a_context()
        await collect(self.router, CHAT, context)
        return _routes(context)

    async def told(self) -> tuple[Failure, list[str]]:
        """What the client is told, and who was asked."""
        context = a_context()
        with pytest.raises(Failure) as raised:
            await self.ask(context)
        return raised.value, _routes(context)


def _routes(context: Context) -> list[str]:
    return [attempt.model for attempt in context.trail]


# -- circuits -------------------------------------------------------------------------------------------------------


async def test_a_target_that_fails_is_spared_and_then_tried_again() -> None:
    gateway = Gateway(_group("m", Scripted(DOWN, DOWN, DOWN, GOOD), Scripted(GOOD)))
    assert [await gateway.ask() for _ in range(3)] == [["m0", "m1"], ["m0", "m1"], ["m1"]]
    gateway.clock.advance(5)
    assert [await gateway.ask() for _ in range(2)] == [["m0", "m1"], ["m1"]]
    gateway.clock.advance(5)
    assert [await gateway.ask() for _ in range(2)] == [["m0"], ["m0"]]


async def test_one_request_at_a_time_tries_it_again() -> None:
    gate = Gate()
    gateway = Gateway(_group("m", Scripted(DOWN, DOWN, [gate, *GOOD], GOOD), Scripted(GOOD)))
    for _ in range(2):
        await gateway.ask()
    gateway.clock.advance(5)
    probe = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gate.reached.wait(), 5)
    assert await gateway.ask() == ["m1"]
    gate.open()
    assert await asyncio.wait_for(probe, 5) == ["m0"]
    assert await gateway.ask() == ["m0"]


async def test_a_stream_that_tries_it_again_need_only_begin() -> None:
    gate = Gate()
    gateway = Gateway(_group("m", Scripted(DOWN, DOWN, [*GOOD[:2], gate, *GOOD[2:]], GOOD), Scripted(GOOD)))
    for _ in range(2):
        await gateway.ask()
    gateway.clock.advance(5)
    probe = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gate.reached.wait(), 5)
    assert await gateway.ask() == ["m0"]
    gate.open()
    assert await asyncio.wait_for(probe, 5) == ["m0"]


async def test_a_probe_whose_client_leaves_makes_room_for_the_next() -> None:
    gate = Gate()
    gateway = Gateway(_group("m", Scripted(DOWN, DOWN, [gate, *GOOD], GOOD), Scripted(GOOD)))
    for _ in range(2):
        await gateway.ask()
    gateway.clock.advance(5)
    probe = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gate.reached.wait(), 5)
    probe.cancel()
    await asyncio.wait([probe])
    assert await gateway.ask() == ["m0"]


async def test_a_failure_after_commit_counts_too() -> None:
    cut: list[Step] = [*GOOD[:2], *DOWN]
    gateway = Gateway(_group("m", Scripted(cut), Scripted(GOOD)))
    for _ in range(2):
        assert (await gateway.told())[1] == ["m0"]
    assert await gateway.ask() == ["m1"]


async def test_when_all_are_open_the_one_that_opened_first_is_asked_all_the_same() -> None:
    gateway = Gateway(_group("m", Scripted(DOWN, DOWN, GOOD), Scripted(DOWN)))
    for _ in range(2):
        assert (await gateway.told())[1] == ["m0", "m1"]
        gateway.clock.advance(1)
    assert [target.health.breaker.state for target in gateway.targets] == [State.OPEN, State.OPEN]
    assert await gateway.ask() == ["m0"]
    assert gateway.targets[0].health.calm


async def test_while_that_one_is_asked_the_others_are_told_at_once() -> None:
    gate = Gate()
    gateway = Gateway(_group("m", Scripted(DOWN, DOWN, [gate, *GOOD])))
    for _ in range(2):
        await gateway.told()
    probe = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gate.reached.wait(), 5)
    failure, asked = await gateway.told()
    assert (failure.kind, failure.retry_after, asked) == (Kind.UPSTREAM_UNAVAILABLE, 1.0, [])
    assert "failed too often" in failure.message
    gate.open()
    assert await asyncio.wait_for(probe, 5) == ["m0"]


async def test_what_the_upstream_said_is_told_rather_than_that_the_rest_is_spared() -> None:
    gateway = Gateway(_group("m", Scripted(GOOD, GOOD, DOWN), Scripted(BUSY)))
    gateway.targets[1].health.ended(0, 1000.0, Failure(Kind.UPSTREAM_RATE_LIMITED, "x", retry_after=60.0))
    for _ in range(2):
        await gateway.ask()
    failure, asked = await gateway.told()
    assert (failure.message, asked) == ("said upstream_unavailable", ["m0"])


# -- cooldown -------------------------------------------------------------------------------------------------------


async def test_a_target_that_asks_to_be_left_alone_is() -> None:
    gateway = Gateway(_group("m", Scripted(BUSY, GOOD), Scripted(GOOD)))
    assert [await gateway.ask() for _ in range(2)] == [["m0", "m1"], ["m1"]]
    gateway.clock.advance(7)
    assert await gateway.ask() == ["m0"]


async def test_also_when_there_is_no_other() -> None:
    gateway = Gateway(_group("m", Scripted(BUSY, GOOD)))
    await gateway.told()
    gateway.clock.advance(2)
    failure, asked = await gateway.told()
    assert (failure.kind, failure.retry_after, asked) == (Kind.UPSTREAM_RATE_LIMITED, 5.0, [])
    gateway.clock.advance(5)
    assert await gateway.ask() == ["m0"]


# -- places ---------------------------------------------------------------------------------------------------------


def _with_places(limits: queue.Limits, *providers: Scripted) -> Group:
    targets = []
    for n, inner in enumerate(providers):
        health = Health()
        queued = queue.Queued(inner, queue.Queue(limits, health.crowded))
        targets.append(Target(provider="p", model=f"m{n}", inner=queued, health=health))
    return Group(name="m", targets=tuple(targets), policy=First())


async def test_a_target_without_a_free_place_is_passed_over() -> None:
    gate = Gate()
    gateway = Gateway(_with_places(queue.Limits(max_in_flight=1), Scripted([gate, *GOOD]), Scripted(GOOD)))
    first = asyncio.create_task(gateway.ask())
    await asyncio.wait_for(gate.reached.wait(), 5)
    assert await gateway.ask() == ["m1"]
    gate.open()
    assert await asyncio.wait_for(first, 5) == ["m0"]


async def test_when_all_are_full_and_nobody_may_wait_the_client_is_told() -> None:
    gate = Gate()
    limits = queue.Limits(max_in_flight=1, max_queue=0, timeout=3.0)
    gateway = Gateway(_with_places(limits, Scripted([gate, *GOOD]), Scripted([gate, *GOOD])))
    tasks = [asyncio.create_task(gateway.ask()) for _ in range(2)]
    await asyncio.wait_for(gate.reached.wait(), 5)
    await asyncio.sleep(0)
    failure, asked = await gateway.told()
    assert (failure.kind, failure.retry_after, asked) == (Kind.OVERLOADED, 3.0, ["m0", "m1"])
    gate.open()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 5) == [["m0"], ["m1"]]
    assert all(target.health.calm for target in gateway.targets)  # busy is not broken


# -- fallbacks ------------------------------------------------------------------------------------------------------


async def test_when_all_targets_have_failed_the_fallbacks_are_asked_in_order() -> None:
    gateway = Gateway(
        _group("m", Scripted(DOWN), Scripted(DOWN), fallbacks=("a", "b")),
        _group("a", Scripted(_failing(Kind.UPSTREAM_TIMEOUT))),
        _group("b", Scripted(GOOD)),
    )
    assert await gateway.ask() == ["m0", "m1", "a0", "b0"]


async def test_when_none_of_the_targets_may_be_asked_too() -> None:
    gateway = Gateway(_group("m", Scripted(BUSY), fallbacks=("a",)), _group("a", Scripted(GOOD)))
    assert [await gateway.ask() for _ in range(2)] == [["m0", "a0"], ["a0"]]


async def test_the_last_failure_is_told() -> None:
    gateway = Gateway(
        _group("m", Scripted(DOWN), fallbacks=("a",)), _group("a", Scripted(_failing(Kind.UPSTREAM_PROTOCOL)))
    )
    failure, asked = await gateway.told()
    assert (failure.kind, asked) == (Kind.UPSTREAM_PROTOCOL, ["m0", "a0"])


@pytest.mark.parametrize("kind", [Kind.CONTEXT_LENGTH_EXCEEDED, Kind.CONTENT_FILTERED, Kind.INVALID_REQUEST])
@pytest.mark.parametrize("asked_for", [True, False])
async def test_what_the_model_refused_is_asked_of_fallbacks_only_where_that_was_asked_for(
    kind: Kind, asked_for: bool
) -> None:
    fields = {"fallbacks": ("a",), "fallback_on": frozenset([kind] if asked_for else [])}
    gateway = Gateway(_group("m", Scripted(_failing(kind)), Scripted(GOOD), **fields), _group("a", Scripted(GOOD)))
    if asked_for:
        assert await gateway.ask() == ["m0", "a0"]  # and not m1, which is the same model
    else:
        assert (await gateway.told())[1] == ["m0"]


FILTERED = saying(reason="content_filter")
CUT = saying("hel", reason="content_filter")
ON_FILTER: dict[str, Any] = {"fallbacks": ("a", "b"), "fallback_on": frozenset([Kind.CONTENT_FILTERED])}


def _event_list(script: list[list[Event]]) -> list[Event]:
    return [event for batch in script for event in batch]


@pytest.mark.parametrize(
    ("script", "stream", "fields", "asked"),
    [
        (FILTERED, True, ON_FILTER, ["m0", "a0"]),
        (FILTERED, False, ON_FILTER, ["m0", "a0"]),
        (CUT, False, ON_FILTER, ["m0", "a0"]),
        (CUT, True, ON_FILTER, ["m0"]),  # the client has had some of it
        ([_event_list(CUT)], True, ON_FILTER, ["m0", "a0"]),  # not yet, as all came at once
        (FILTERED, False, {"fallbacks": ("a",)}, ["m0"]),
        (FILTERED, True, ON_FILTER | {"fallbacks": ("none",)}, ["m0"]),
        (GOOD, False, ON_FILTER, ["m0"]),
    ],
)
async def test_an_answer_that_a_filter_ended(
    script: list[list[Event]], stream: bool, fields: dict[str, Any], asked: list[str]
) -> None:
    mute = Target(provider="p", model="none0", inner=Scripted(GOOD), profile=Profile(chat=False))
    gateway = Gateway(
        _group("m", Scripted(script), Scripted(GOOD), **fields),
        _group("a", Scripted(GOOD)),
        _group("b", Scripted(GOOD)),
        Group(name="none", targets=(mute,), policy=First()),
    )
    context = a_context()
    events = await collect(gateway.router, Chat(model="m", messages=(), stream=stream), context)
    assert _routes(context) == asked
    assert events == _event_list(script if asked == ["m0"] else GOOD)


async def test_when_filters_end_all_the_last_answer_is_given() -> None:
    groups = [_group(name, Scripted(CUT), **(ON_FILTER if name == "m" else {})) for name in ("m", "a", "b")]
    context = a_context()
    events = await collect(Gateway(*groups).router, Chat(model="m", messages=()), context)
    assert (_routes(context), events) == (["m0", "a0", "b0"], _event_list(CUT))


async def test_where_a_filter_ended_some_choices_the_others_are_an_answer() -> None:
    both = [*saying("hello"), *saying(choice=1, reason="content_filter")[1:]]
    both[0].append(Opened(1, 0, "text"))
    gateway = Gateway(_group("m", Scripted(both), **ON_FILTER), _group("a", Scripted(GOOD)), _group("b"))
    context = a_context()
    await collect(gateway.router, Chat(model="m", messages=(), n=2), context)
    assert _routes(context) == ["m0"]


async def test_after_commit_no_fallback_either() -> None:
    gateway = Gateway(_group("m", Scripted([*GOOD[:2], *DOWN]), fallbacks=("a",)), _group("a", Scripted(GOOD)))
    assert (await gateway.told())[1] == ["m0"]


async def test_a_fallback_that_lacks_the_operation_is_passed_over() -> None:
    talks = Target(provider="p", model="a0", inner=Scripted(GOOD), profile=Profile(embed=False))
    gateway = Gateway(
        _group("m", Scripted(DOWN), fallbacks=("a", "b")),
        Group(name="a", targets=(talks,), policy=First()),
        _group("b", Scripted(GOOD)),
    )
    context = a_context()
    await collect(gateway.router, Embed(model="m", inputs=("hi",)), context)
    assert _routes(context) == ["m0", "b0"]


# -- retries --------------------------------------------------------------------------------------------------------


def _once(**fields: Any) -> Retries:
    return Retries(retries.Limits(max=1, **fields))


async def test_when_no_other_is_left_the_same_is_asked_again() -> None:
    gateway = Gateway(_group("m", Scripted(DOWN, GOOD), Scripted(DOWN), retries=_once(backoff=0.001)))
    assert await gateway.ask() == ["m0", "m1", "m0"]


async def test_fallbacks_come_first() -> None:
    gateway = Gateway(
        _group("m", Scripted(DOWN, GOOD), fallbacks=("a",), retries=_once(backoff=0.001)), _group("a", Scripted(DOWN))
    )
    assert await gateway.ask() == ["m0", "a0", "m0"]


async def test_a_retry_is_one_attempt() -> None:
    gateway = Gateway(_group("m", Scripted(DOWN), Scripted(DOWN), retries=_once(backoff=0.001)))
    assert (await gateway.told())[1] == ["m0", "m1", "m0"]


async def test_requests_pay_for_retries() -> None:
    up = Health(Limits(enabled=False))
    target = Target(provider="p", model="m0", inner=Scripted(DOWN), health=up)
    budget = _once(backoff=0.001, budget=0.5, floor=0.0)
    gateway = Gateway(Group(name="m", targets=(target,), policy=First(), retries=budget))
    attempts = [len((await gateway.told())[1]) for _ in range(30)]
    assert attempts[-8:] == [1, 2] * 4 or attempts[-8:] == [2, 1] * 4


@pytest.mark.parametrize("kind", sorted(set(Kind) - RETRIED))
async def test_what_would_not_be_over_is_not_retried(kind: Kind) -> None:
    gateway = Gateway(_group("m", Scripted(_failing(kind), GOOD), retries=_once(backoff=0.001)))
    assert (await gateway.told())[1] == ["m0"]


class Half:
    """Chance that always says a half."""

    def random(self) -> float:
        return 0.5


def test_a_retry_waits() -> None:
    async def main() -> None:
        models = Models({"m": _group("m", Scripted(DOWN, GOOD), retries=_once(backoff=60.0, max_backoff=60.0))}, {})
        context = a_context()
        await collect(Router(models, FakeClock(), Half()), CHAT, context)
        assert _routes(context) == ["m0", "m0"]
        assert asyncio.get_running_loop().time() == pytest.approx(30.0, abs=0.01)

    run_leaping(main())


def test_a_client_may_leave_while_its_retry_waits() -> None:
    async def main() -> None:
        inner = Scripted(DOWN, GOOD)
        models = Models({"m": _group("m", inner, retries=_once(backoff=60.0, max_backoff=60.0))}, {})
        trail: list[Attempt] = []
        task = asyncio.create_task(collect(Router(models, FakeClock(), Half()), CHAT, a_context(trail=trail)))
        asyncio.get_running_loop().call_later(1.0, task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.get_running_loop().time() == pytest.approx(1.0, abs=0.01)
        assert [(attempt.failure and attempt.failure.kind) for attempt in trail] == [Kind.UPSTREAM_UNAVAILABLE]
        assert [call.exits for call in inner.calls] == [1]

    run_leaping(main())

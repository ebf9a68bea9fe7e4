"""The router: failover before commit and never after, exits exactly once, and what it tells of its tries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmg.core.context import Attempt, Context, Observer
from llmg.core.errors import FAILS_OVER, Failure, Kind
from llmg.core.events import (
    Closed,
    Delta,
    Embedding,
    Embeddings,
    Event,
    Finished,
    Notice,
    Opened,
    Result,
    Started,
    Whole,
    check,
)
from llmg.core.request import Chat, Embed, Message, Request, Text
from llmg.ports import Profile, Provider
from llmg.routing.models import Group, Target
from llmg.routing.policies import Weighted
from llmg.routing.policies.base import First
from llmg.routing.router import Router
from llmg.testing.clocks import FakeClock
from llmg.testing.conformance import a_context, assert_conforms, collect
from llmg.testing.models import Models
from llmg.testing.scripted import Call, Gate, Script, Scripted, saying

STARTED = Started("a1", 1, "m")
OTHERS = sorted(set(Kind) - FAILS_OVER)


class Recorder(Observer):
    """Remembers what it was told, as words."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def attempt_started(self, context: Context, attempt: Attempt) -> None:
        self.told.append(f"started {attempt.route}")

    def attempt_ended(self, context: Context, attempt: Attempt) -> None:
        how = "well" if attempt.failure is None else attempt.failure.kind.value
        self.told.append(f"ended {attempt.route} {how}")

    def committed(self, context: Context, attempt: Attempt) -> None:
        self.told.append(f"committed {attempt.route}")


def _chat(model: str = "smart", *, stream: bool = True) -> Chat:
    return Chat(model=model, messages=(Message(role="user", parts=(Text("hi"),)),), stream=stream)


def _router(*providers: Scripted, clock: FakeClock | None = None, profile: Profile | None = None) -> Router:
    """`smart` is model mN of provider pN in their order; `direct` takes any model of the first."""
    targets = tuple(
        Target(provider=f"p{n}", model=f"m{n}", inner=inner, profile=profile or Profile())
        for n, inner in enumerate(providers)
    )
    groups = {"smart": Group(name="smart", targets=targets, policy=First())}
    direct = {"direct": _direct(providers[0], profile or Profile())}
    return Router(Models(groups, direct), clock or FakeClock())


def _context() -> tuple[Context, Recorder]:
    recorder = Recorder()
    return a_context(observer=recorder), recorder


def _once(call: Call) -> bool:
    return call.exits == 1


def _failing(kind: Kind) -> Failure:
    return Failure(kind, "words")


GOOD = saying("hello")


async def test_the_first_target_answers() -> None:
    first, second = Scripted(GOOD), Scripted(GOOD)
    context, recorder = _context()
    events = await collect(_router(first, second), _chat(), context)
    assert events == [event for batch in GOOD for event in batch]
    assert [call.request.model for call in first.calls] == ["m0"]
    assert not second.calls
    assert _once(first.calls[0])
    assert recorder.told == ["started p0/m0", "committed p0/m0", "ended p0/m0 well"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", ["open", "enter", "first", "after Started", "after an opened part"])
@pytest.mark.parametrize("kind", sorted(FAILS_OVER))
async def test_before_commit_the_next_target_takes_over(kind: Kind, place: str, stream: bool) -> None:
    failure = _failing(kind)
    script = {
        "open": Script(at_open=failure),
        "enter": Script(at_enter=failure),
        "first": Script(steps=[failure]),
        "after Started": Script(steps=[[STARTED], [], failure]),
        "after an opened part": Script(steps=[[STARTED, Opened(0, 0, "text")], failure]),
    }[place]
    first, second = Scripted(script), Scripted(GOOD)
    context, recorder = _context()
    events = await collect(_router(first, second), _chat(stream=stream), context)
    assert events == [event for batch in GOOD for event in batch]
    assert first.calls[0].exits == (0 if place in ("open", "enter") else 1)
    assert _once(second.calls[0])
    assert [(a.route, a.failure) for a in context.trail] == [("p0/m0", failure), ("p1/m1", None)]
    assert recorder.told == [
        "started p0/m0",
        f"ended p0/m0 {kind.value}",
        "started p1/m1",
        "committed p1/m1",
        "ended p1/m1 well",
    ]


@pytest.mark.parametrize("place", ["open", "enter", "first"])
@pytest.mark.parametrize("kind", OTHERS)
async def test_what_is_wrong_everywhere_is_not_tried_again(kind: Kind, place: str) -> None:
    failure = _failing(kind)
    script = {
        "open": Script(at_open=failure),
        "enter": Script(at_enter=failure),
        "first": Script(steps=[[STARTED], failure]),
    }[place]
    first, second = Scripted(script), Scripted(GOOD)
    context, recorder = _context()
    with pytest.raises(Failure) as raised:
        await collect(_router(first, second), _chat(), context)
    assert raised.value is failure
    assert not second.calls
    assert recorder.told == ["started p0/m0", f"ended p0/m0 {kind.value}"]


COMMITTING: dict[str, list[Event]] = {
    "text": [STARTED, Opened(0, 0, "text"), Delta(0, 0, "a")],
    "a tool's name": [STARTED, Opened(0, 0, "tool", "c", "f")],
    "an empty answer": [STARTED, Finished(0, "stop")],
    "a result": [STARTED, Result(Embeddings((Embedding(0, (1.0,)),)))],
}


@pytest.mark.parametrize("name", COMMITTING)
async def test_after_commit_never(name: str) -> None:
    failure = _failing(Kind.UPSTREAM_UNAVAILABLE)
    first, second = Scripted([COMMITTING[name], failure]), Scripted(GOOD)
    context, recorder = _context()
    async with _router(first, second).open(_chat(), context) as batches:
        assert await anext(batches) == COMMITTING[name]
        with pytest.raises(Failure) as raised:
            await anext(batches)
    assert raised.value is failure
    assert not second.calls
    assert _once(first.calls[0])
    assert recorder.told == ["started p0/m0", "committed p0/m0", "ended p0/m0 upstream_unavailable"]
    assert context.trail[0].failure is failure


async def test_a_unary_answer_commits_when_it_is_complete() -> None:
    gate = Gate()
    first, second = Scripted([*GOOD[:2], gate, _failing(Kind.UPSTREAM_TRUNCATED)]), Scripted(GOOD)
    context, recorder = _context()
    task = asyncio.create_task(collect(_router(first, second), _chat(stream=False), context))
    await asyncio.wait_for(gate.reached.wait(), 5)
    assert recorder.told == ["started p0/m0"]
    gate.open()
    assert await asyncio.wait_for(task, 5) == [event for batch in GOOD for event in batch]
    assert recorder.told[-2:] == ["committed p1/m1", "ended p1/m1 well"]


async def test_a_unary_answer_is_one_batch() -> None:
    async with _router(Scripted(GOOD)).open(_chat(stream=False), a_context()) as batches:
        assert [batch async for batch in batches] == [[event for batch in GOOD for event in batch]]


@pytest.mark.parametrize("before", [[], [[]]])
async def test_an_answer_in_its_own_bytes_passes_undecoded(before: list[list[Event]]) -> None:
    def decode() -> list[Event]:
        raise AssertionError("nobody asked for its events")

    whole = Whole("openai", b"{}", decode)
    async with _router(Scripted([*before, whole])).open(_chat(stream=False), a_context()) as batches:
        assert await anext(batches) is whole


async def test_what_came_before_commit_is_given_with_it() -> None:
    steps: list[list[Event]] = [
        [STARTED],
        [],
        [Notice("route")],
        [Opened(0, 0, "text"), Delta(0, 0, "a")],
        [Closed(0, 0), Finished(0, "stop")],
    ]
    async with _router(Scripted(steps)).open(_chat(), a_context()) as batches:
        given = [batch async for batch in batches]
    assert given == [[*steps[0], *steps[2], *steps[3]], steps[4]]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("steps", [[], [[]], [[STARTED]], [[STARTED, Opened(0, 0, "text")]]])
async def test_an_answer_without_content_is_truncated_and_fails_over(steps: list[list[Event]], stream: bool) -> None:
    first, second = Scripted(steps), Scripted(GOOD)
    context, _ = _context()
    await collect(_router(first, second), _chat(stream=stream), context)
    assert [a.failure and a.failure.kind for a in context.trail] == [Kind.UPSTREAM_TRUNCATED, None]
    assert _once(first.calls[0])


async def test_when_all_fail_the_last_failure_is_told() -> None:
    failures = [_failing(Kind.UPSTREAM_TIMEOUT), _failing(Kind.OVERLOADED), _failing(Kind.BACKEND_CRASHED)]
    providers = [Scripted([failure]) for failure in failures]
    context, _ = _context()
    with pytest.raises(Failure) as raised:
        await collect(_router(*providers), _chat(), context)
    assert raised.value is failures[-1]
    assert [a.failure for a in context.trail] == failures
    assert all(_once(provider.calls[0]) for provider in providers)


async def test_attempts_are_timed() -> None:
    clock = FakeClock(monotonic=100.0)
    gate = Gate()
    context, _ = _context()
    task = asyncio.create_task(collect(_router(Scripted([gate, *GOOD]), clock=clock), _chat(), context))
    await asyncio.wait_for(gate.reached.wait(), 5)
    clock.advance(2.5)
    gate.open()
    await asyncio.wait_for(task, 5)
    assert (context.trail[0].started, context.trail[0].ended) == (100.0, 102.5)


# --- leaving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [0, 1, 2])
async def test_leaving_early_exits_the_target_once(batches: int) -> None:
    first = Scripted(GOOD)
    context, recorder = _context()
    async with _router(first).open(_chat(), context) as stream:
        for _ in range(batches):
            await anext(stream)
    assert [call.exits for call in first.calls] == ([1] if batches else [])
    assert recorder.told[-1:] == (["ended p0/m0 cancelled"] if batches else [])


@pytest.mark.parametrize("place", ["entering", "before commit", "after commit", "unary"])
async def test_cancellation_exits_the_target_once(place: str) -> None:
    gate = Gate()
    script = {
        "entering": Script(at_enter=gate),
        "before commit": Script(steps=[[STARTED], gate]),
        "after commit": Script(steps=[*GOOD[:2], gate]),
        "unary": Script(steps=[*GOOD[:2], gate]),
    }[place]
    first, second = Scripted(script), Scripted(GOOD)
    context, recorder = _context()
    task = asyncio.create_task(collect(_router(first, second), _chat(stream=place != "unary"), context))
    await asyncio.wait_for(gate.reached.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert first.calls[0].cancelled.is_set()
    assert first.calls[0].exits == (0 if place == "entering" else 1)
    assert not second.calls
    assert recorder.told[-1] == "ended p0/m0 cancelled"
    assert context.trail[0].ended is not None


async def test_our_own_mistake_passes_through_and_exits_the_target_once() -> None:
    first, second = Scripted([*GOOD[:2], ValueError("oops")]), Scripted(GOOD)
    with pytest.raises(ValueError, match="oops"):
        await collect(_router(first, second), _chat())
    assert _once(first.calls[0])
    assert not second.calls


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "model"), [("direct/x", "x"), ("direct/org/x:7b", "org/x:7b")])
async def test_a_providers_model_by_name(name: str, model: str) -> None:
    inner = Scripted(GOOD)
    context, _ = _context()
    await collect(_router(inner), _chat(name), context)
    assert inner.calls[0].request.model == model
    assert context.trail[0].route == f"direct/{model}"


async def test_a_declared_model_wins() -> None:
    declared, provider = Scripted(GOOD), Scripted(GOOD)
    target = Target(provider="p", model="m", inner=declared)
    groups = {"direct/x": Group(name="direct/x", targets=(target,), policy=Weighted([1.0]))}
    models = Models(groups, {"direct": _direct(provider, Profile())})
    await collect(Router(models, FakeClock()), _chat("direct/x"))
    assert len(declared.calls) == 1
    assert not provider.calls
    assert [group.name for group in models.declared()] == ["direct/x"]


@pytest.mark.parametrize("name", ["none", "", "smart/x", "none/x", "direct", "direct/", "/x", "x" * 300])
async def test_an_unknown_model(name: str) -> None:
    with pytest.raises(Failure, match="does not exist") as raised:
        await collect(_router(Scripted(GOOD)), _chat(name))
    assert (raised.value.kind, raised.value.param) == (Kind.MODEL_NOT_FOUND, "model")
    assert len(raised.value.message) < 250


# --- what a target can do ------------------------------------------------------------------------------------------

EMBED = Embed(model="smart", inputs=("hi",))


@pytest.mark.parametrize(
    ("request_", "profile", "what"),
    [(EMBED, Profile(embed=False), "embeddings"), (_chat(), Profile(chat=False), "chat")],
)
async def test_what_no_target_has_is_not_implemented(request_: Request, profile: Profile, what: str) -> None:
    inner = Scripted(GOOD)
    with pytest.raises(Failure, match=f"{what} for the model 'smart' is not implemented") as raised:
        await collect(_router(inner, profile=profile), request_)
    assert raised.value.kind is Kind.NOT_IMPLEMENTED
    assert not inner.calls


async def test_only_targets_that_have_the_operation_are_asked() -> None:
    talks, embeds = Scripted(GOOD), Scripted([COMMITTING["a result"]])
    targets = (
        Target(provider="p0", model="m0", inner=talks, profile=Profile(embed=False)),
        Target(provider="p1", model="m1", inner=embeds, profile=Profile(chat=False, n=False)),
    )
    group = Group(name="smart", targets=targets, policy=First())
    assert group.profile() == Profile()
    router = Router(Models({"smart": group}, {}), FakeClock())
    await collect(router, EMBED)
    await collect(router, _chat())
    assert [len(talks.calls), len(embeds.calls)] == [1, 1]


async def test_the_router_is_a_provider_like_any() -> None:
    fails: Any = [_failing(Kind.OVERLOADED)]
    await assert_conforms(_router(Scripted(fails), Scripted(GOOD)), _chat())


def _direct(provider: Provider, profile: Profile) -> Callable[[str], Target]:
    return lambda model: Target(provider="direct", model=model, inner=provider, profile=profile)


async def test_after_a_target_that_said_nothing_the_next_is_heard_to_its_end() -> None:
    first, second = Scripted([[STARTED]]), Scripted(GOOD)
    events = await collect(_router(first, second), _chat(stream=True))
    check(events)

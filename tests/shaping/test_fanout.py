"""Several choices from a target that gives one: merged, counted once, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from llmg.core.assemble import assemble
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Annotated, Batch, Closed, Delta, Event, Extra, Finished, Notice, Opened, Started, check
from llmg.core.request import Chat, Embed, Request
from llmg.core.usage import Usage
from llmg.ports import Answering
from llmg.providers.echo import Echo
from llmg.shaping.fanout import Fanout
from llmg.testing.conformance import a_context, assert_conforms, collect
from llmg.testing.scripted import Gate, Script, Scripted, Step, saying

USAGE = Usage(input_tokens=7, output_tokens=2, reasoning_tokens=1, cached_tokens=3)
GOOD = saying("hel", "lo", usage=USAGE)
CHAT = Chat(model="m", messages=(), n=3, stream=True)


async def _until(holds: Callable[[], bool]) -> None:
    """Lets the other tasks run until it holds."""
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0)


async def _quiet(count: Callable[[], int]) -> int:
    """The count, once it no longer grows."""
    before = -1
    while before != count():
        before = count()
        for _ in range(50):
            await asyncio.sleep(0)
    return before


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [2, 3, 16])
async def test_choices_are_merged(n: int, stream: bool) -> None:
    inner = Scripted(GOOD)
    events = await collect(Fanout(inner), replace(CHAT, n=n, stream=stream))
    check(events)
    answer = assemble(events)
    assert [(c.index, c.parts[0].data, c.reason) for c in answer.choices] == [(i, "hello", "stop") for i in range(n)]
    assert sum(isinstance(event, Started) for event in events) == 1
    assert isinstance(events[0], Started)
    assert [call.request for call in inner.calls] == [replace(CHAT, n=1, stream=stream)] * n
    assert [call.exits for call in inner.calls] == [1] * n


async def test_prompt_tokens_count_once() -> None:
    events = await collect(Fanout(Scripted(GOOD)), CHAT)
    usages = [event for event in events if isinstance(event, Usage)]
    assert usages == [Usage(input_tokens=7, output_tokens=6, reasoning_tokens=3, cached_tokens=3)]
    assert events[-1] is usages[0]


async def test_usage_is_final_and_without_one_calls_price() -> None:
    partial = replace(USAGE, final=False)
    priced = replace(USAGE, extra=Extra(dialect="d", item={"price": 1}), accepted_prediction_tokens=1)
    inner = Scripted([[partial], *GOOD[:-1], [partial]], [*GOOD[:-1], [priced]])
    events = await collect(Fanout(inner), replace(CHAT, n=2))
    check(events)
    usages = [event for event in events if isinstance(event, Usage)]
    assert [(u.output_tokens, u.accepted_prediction_tokens, u.final, u.extra) for u in usages] == [(4, 1, True, UNSET)]


async def test_no_usage_given_none_made_up() -> None:
    events = await collect(Fanout(Scripted(saying("a"))), CHAT)
    assert not [event for event in events if isinstance(event, Usage)]


async def test_each_event_gets_its_choice() -> None:
    steps: list[Step] = [
        [Started("a", 1, "m"), Notice("cache"), Opened(0, 0, "text"), Delta(0, 0, "x"), Annotated(0, 0, {"n": 1})],
        [Closed(0, 0), Finished(0, "stop")],
    ]
    events = await collect(Fanout(Scripted(steps)), replace(CHAT, n=2))
    check(events)
    assert sum(isinstance(event, Notice) for event in events) == 2
    for kind in (Opened, Delta, Annotated, Closed, Finished):
        assert sorted(event.choice for event in events if isinstance(event, kind)) == [0, 1]


async def test_seeds_differ() -> None:
    inner = Scripted(GOOD)
    await collect(Fanout(inner), replace(CHAT, seed=41))
    assert [call.request.seed for call in inner.calls if isinstance(call.request, Chat)] == [41, 42, 43]


@pytest.mark.parametrize("request_", [replace(CHAT, n=1), Embed(model="m", inputs=("a",))])
async def test_one_choice_passes_through(request_: Request) -> None:
    inner = Scripted(GOOD)
    events = await collect(Fanout(inner), request_)
    assert events == [event for batch in GOOD for event in batch]
    assert inner.calls[0].request is request_


@pytest.mark.parametrize("place", ["open", "enter", "first", "later"])
async def test_a_failure_ends_all(place: str) -> None:
    failure = Failure(Kind.OVERLOADED, "words")
    gate = Gate()
    waits = Script(steps=[*GOOD[:2], gate])
    fails = {
        "open": Script(at_open=failure),
        "enter": Script(at_enter=failure),
        "first": Script(steps=[failure]),
        "later": Script(steps=[*GOOD[:2], failure]),
    }[place]
    inner = Scripted(waits, fails, waits)
    with pytest.raises(Failure) as raised:
        await asyncio.wait_for(collect(Fanout(inner), CHAT), 5)
    assert raised.value is failure
    for call in (inner.calls[0], inner.calls[2]):
        assert call.exits <= 1
        assert call.exited.is_set() is call.entered.is_set()


async def test_events_before_a_failure_are_given() -> None:
    inner = Scripted([*GOOD[:2], Failure(Kind.OVERLOADED, "words")])
    given: list[Event] = []
    async with Fanout(inner).open(replace(CHAT, n=2), a_context()) as batches:
        with pytest.raises(Failure, match="words"):
            await _take_all(batches, given)
    assert Delta(0, 0, "hel") in given


async def _take_all(batches: AsyncIterator[Batch], given: list[Event]) -> None:
    async for batch in batches:
        given.extend(batch)


async def test_our_own_mistake_is_not_lost_in_a_task() -> None:
    with pytest.raises(Failure) as raised:
        await asyncio.wait_for(collect(Fanout(Scripted([ValueError("oops")])), CHAT), 5)
    assert raised.value.kind is Kind.INTERNAL
    assert "oops" in (raised.value.detail or "")


class Cancelling:
    """A target whose call is cancelled from within, as a client library may do."""

    def open(self, request: Request, context: Context, /) -> Answering:
        return self

    async def __aenter__(self) -> AsyncIterator[Batch]:
        raise asyncio.CancelledError

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError("never entered")


async def test_a_call_cancelled_from_within_is_a_failure() -> None:
    with pytest.raises(Failure) as raised:
        await asyncio.wait_for(collect(Fanout(Cancelling()), CHAT), 5)
    assert raised.value.kind is Kind.INTERNAL


@pytest.mark.parametrize("batches", [0, 1])
async def test_leaving_early_cancels_all(batches: int) -> None:
    inner = Scripted([*GOOD[:2], Gate()])
    async with Fanout(inner).open(CHAT, a_context()) as stream:
        for _ in range(batches):
            await anext(stream)
        await _until(lambda: len(inner.calls) == 3 and all(call.given == 2 for call in inner.calls))
    assert [call.cancelled.is_set() for call in inner.calls] == [True] * 3
    assert [call.exits for call in inner.calls] == [1] * 3
    assert len(asyncio.all_tasks()) == 1


async def test_cancellation_cancels_all() -> None:
    gate = Gate()
    inner = Scripted([*GOOD[:2], gate])
    task = asyncio.create_task(collect(Fanout(inner), CHAT))
    await _until(lambda: len(inner.calls) == 3 and all(call.given == 2 for call in inner.calls))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert [call.exits for call in inner.calls] == [1] * 3
    assert len(asyncio.all_tasks()) == 1


async def test_a_slow_client_bounds_the_read_ahead() -> None:
    long = saying(*["x"] * 1000)
    inner = Scripted(long)
    async with Fanout(inner).open(CHAT, a_context()) as stream:
        await anext(stream)
        ahead = await _quiet(lambda: sum(call.given for call in inner.calls))
        # A queue of 8 for each call, one batch in the hands of each, one with the client.
        assert 0 < ahead <= 8 * 3 + 3 + 1
        rest = [event async for batch in stream for event in batch]
    assert sum(isinstance(event, Delta) for event in rest) >= 3000 - 1


async def test_it_is_a_provider_like_any() -> None:
    said = Chat(model="m", messages=(), n=3)
    await assert_conforms(Fanout(Scripted(saying("a", usage=USAGE))), said)
    await assert_conforms(Fanout(Echo()), said)

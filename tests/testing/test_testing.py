"""What is shipped for tests is tested, too: a conformance suite that passes everything would prove nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch, Closed, Delta, Event, Finished, Opened, Started
from llmg.core.request import Chat
from llmg.providers.echo import Echo
from llmg.testing.clocks import FakeClock, run_leaping
from llmg.testing.conformance import a_context, assert_conforms, collect
from llmg.testing.ids import CountingIds
from llmg.testing.scripted import Gate, Script, Scripted, saying

CHAT = Chat(model="m", messages=())
GOOD = saying("a", "b")
WHOLE: list[Event] = [event for batch in GOOD for event in batch]


def test_a_clock_moves_when_told_to() -> None:
    clock = FakeClock(monotonic=5.0, time=100.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (7.5, 102.5)


def test_time_leaps() -> None:
    async def main() -> tuple[float, list[str]]:
        said: list[str] = []

        async def say(word: str, after: float) -> None:
            await asyncio.sleep(after)
            said.append(word)

        await asyncio.gather(say("late", 86_400.0), say("soon", 60.0), say("now", 0.0))
        return asyncio.get_running_loop().time(), said

    took, said = run_leaping(main())
    assert took == pytest.approx(86_400.0)
    assert said == ["now", "soon", "late"]


def test_ids_count() -> None:
    ids = CountingIds("a")
    assert [ids.new(), ids.new()] == ["a1", "a2"]


async def test_a_script_is_played_and_the_last_one_again() -> None:
    provider = Scripted(GOOD, [[Finished(0, "stop")]])
    assert [await collect(provider, CHAT) for _ in range(3)] == [WHOLE, [Finished(0, "stop")], [Finished(0, "stop")]]
    assert [(call.given, call.exits, call.request) for call in provider.calls] == [
        (4, 1, CHAT),
        (1, 1, CHAT),
        (1, 1, CHAT),
    ]


async def test_a_gate_holds() -> None:
    gate = Gate()
    provider = Scripted([gate, *GOOD])
    task = asyncio.create_task(collect(provider, CHAT))
    await asyncio.wait_for(gate.reached.wait(), 5)
    assert provider.calls[0].given == 0
    gate.open()
    assert await asyncio.wait_for(task, 5) == WHOLE
    assert not provider.calls[0].cancelled.is_set()


@pytest.mark.parametrize("script", [Script(at_open=ValueError("oops")), Script(at_enter=ValueError("oops"))])
async def test_a_script_may_fail_before_it_begins(script: Script) -> None:
    provider = Scripted(script)
    with pytest.raises(ValueError, match="oops"):
        await collect(provider, CHAT)
    assert not provider.calls[0].entered.is_set()
    assert provider.calls[0].exits == 0


async def test_good_providers_conform() -> None:
    await assert_conforms(Echo(), CHAT)
    await assert_conforms(Scripted(GOOD), CHAT)


_FORGETS_ONE = Scripted(GOOD, GOOD, GOOD, GOOD, saying("other"))
BAD: dict[str, tuple[Scripted, type[Exception], str]] = {
    "breaks the grammar": (Scripted([[Delta(0, 0, "a")]]), Failure, "may not come here"),
    "stops short": (Scripted([[Started("a", 1, "m"), Opened(0, 0, "text")]]), Failure, "before it was finished"),
    "says another thing unary": (_FORGETS_ONE, AssertionError, "the stream says"),
    "fails": (Scripted([Failure(Kind.OVERLOADED, "words")]), Failure, "words"),
    "closes twice": (
        Scripted([[Started("a", 1, "m"), Opened(0, 0, "text"), Closed(0, 0), Closed(0, 0)]]),
        Failure,
        "part is done",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_providers_do_not_conform(name: str) -> None:
    provider, error, words = BAD[name]
    with pytest.raises(error, match=words):
        await assert_conforms(provider, CHAT)


async def test_leaving_twice_or_going_on_after_leaving_is_noticed() -> None:
    answering = Scripted(GOOD).open(CHAT, a_context())
    stream: AsyncIterator[Batch] = await answering.__aenter__()
    await answering.__aexit__(None, None, None)
    with pytest.raises(AssertionError, match="after the exit"):
        await anext(stream)

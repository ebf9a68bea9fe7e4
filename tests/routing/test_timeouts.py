"""Time limits, on a loop whose time leaps: hours pass at once, and exactly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch, Event
from llmg.core.request import Chat, Request
from llmg.ports import Answering
from llmg.routing.timeouts import Limits, Timeouts
from llmg.testing.clocks import run_leaping
from llmg.testing.conformance import a_context, assert_conforms, collect
from llmg.testing.scripted import Gate, Script, Scripted, saying

CHAT = Chat(model="m", messages=(), stream=True)
GOOD = saying("a", "b")
ALL = [event for batch in GOOD for event in batch]
LIMITS = Limits(first_event=300.0, idle=120.0, total=3600.0)


class Slow:
    """Gives a batch after each of these many seconds; `entering` takes some, too."""

    def __init__(self, *waits: float, entering: float = 0.0, stubborn: bool = False) -> None:
        self._waits = iter(waits)
        self._entering = entering
        self._stubborn = stubborn
        self._batches = iter(GOOD)
        self.exits = 0

    def open(self, request: Request, context: Context, /) -> Answering:
        return self

    async def __aenter__(self) -> Slow:
        await asyncio.sleep(self._entering)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.exits += 1

    def __aiter__(self) -> Slow:
        return self

    async def __anext__(self) -> Batch:
        try:
            await asyncio.sleep(next(self._waits, 0.0))
        except asyncio.CancelledError:
            if not self._stubborn:
                raise
        return next(self._batches, None) or await self._end()

    async def _end(self) -> Batch:
        raise StopAsyncIteration


async def _timed(
    inner: Any, limits: Limits = LIMITS, deadline: float | None = None
) -> tuple[Failure | list[Event], float]:
    """What came of it, and after how long."""
    begun = asyncio.get_running_loop().time()
    try:
        came: Failure | list[Event] = await collect(Timeouts(inner, limits), CHAT, a_context(deadline=deadline))
    except Failure as failure:
        came = failure
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    return came, asyncio.get_running_loop().time() - begun


FIRST, NEXT, TOTAL = "its first word", "its next word", "time in total"
LATE: dict[str, tuple[Slow, float | None, float, Kind, str]] = {
    # the target; the request's deadline; when it is over, of what kind, in which words
    "entering": (Slow(entering=301), None, 300, Kind.UPSTREAM_TIMEOUT, FIRST),
    "the first event": (Slow(301), None, 300, Kind.UPSTREAM_TIMEOUT, FIRST),
    "entering and the first event together": (Slow(200, entering=200), None, 300, Kind.UPSTREAM_TIMEOUT, FIRST),
    "the second event": (Slow(10, 121), None, 130, Kind.UPSTREAM_TIMEOUT, NEXT),
    "the second event, the first at once": (Slow(0, 121), None, 120, Kind.UPSTREAM_TIMEOUT, NEXT),
    "the third event": (Slow(299, 119, 121), None, 538, Kind.UPSTREAM_TIMEOUT, NEXT),
    "the end": (Slow(0, 0, 0, 0, 1e9), None, 120, Kind.UPSTREAM_TIMEOUT, NEXT),
    "the deadline while entering": (Slow(entering=50), 40.0, 40, Kind.DEADLINE_EXCEEDED, "deadline"),
    "the deadline before the first event": (Slow(50), 40.0, 40, Kind.DEADLINE_EXCEEDED, "deadline"),
    "the deadline between events": (Slow(30, 30), 40.0, 40, Kind.DEADLINE_EXCEEDED, "deadline"),
    "a deadline that has passed": (Slow(50), -1.0, 0, Kind.DEADLINE_EXCEEDED, "deadline"),
}


@pytest.mark.parametrize("name", LATE)
def test_late(name: str) -> None:
    inner, deadline, after, kind, words = LATE[name]
    failure, took = run_leaping(_timed(inner, deadline=deadline))
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert words in failure.message
    assert took == pytest.approx(after, abs=0.01)
    assert inner.exits == (0 if "entering" in name and "together" not in name else 1)


def test_in_total() -> None:
    inner = Slow(200, 100, 100, 100)
    failure, took = run_leaping(_timed(inner, Limits(first_event=300, idle=120, total=450)))
    assert isinstance(failure, Failure)
    assert (failure.kind, TOTAL in failure.message) == (Kind.UPSTREAM_TIMEOUT, True)
    assert took == pytest.approx(450, abs=0.01)
    assert inner.exits == 1


@pytest.mark.parametrize("waits", [(), (299, 119, 119, 119), (0, 119), (299,)])
def test_in_time(waits: tuple[float, ...]) -> None:
    inner = Slow(*waits)
    events, took = run_leaping(_timed(inner))
    assert events == ALL
    assert took == pytest.approx(sum(waits), abs=0.01)
    assert inner.exits == 1


@pytest.mark.parametrize("inner", [Slow(), Slow(250), Slow(301), Slow(entering=301), Slow(0, 0, 121)])
def test_no_timer_is_left_behind(inner: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        call_at, timers = loop.call_at, list[asyncio.TimerHandle]()

        def recorded(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            timers.append(call_at(*args, **kwargs))
            return timers[-1]

        monkeypatch.setattr(loop, "call_at", recorded)
        await _timed(inner)
        return bool(timers) and all(timer.cancelled() or timer.when() <= loop.time() for timer in timers)

    assert run_leaping(main())


@pytest.mark.parametrize("dawdles", [60.0, 119.0, 121.0, 700.0])
def test_a_slow_client_is_not_counted(dawdles: float) -> None:
    """The target needs 100 of its 120 seconds each time, whatever the client does in between."""

    async def main() -> tuple[Any, float]:
        given: list[Event] = []
        async with Timeouts(Slow(100, 100, 100, 100), LIMITS).open(CHAT, a_context()) as batches:
            async for batch in batches:
                given.extend(batch)
                await asyncio.sleep(dawdles)
        return given, 0.0

    assert run_leaping(main())[0] == ALL


def test_a_slow_client_does_not_save_a_slow_target() -> None:
    async def main() -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        async with Timeouts(Slow(0, 200), LIMITS).open(CHAT, a_context()) as batches:
            await anext(batches)
            await asyncio.sleep(500)
            asked = loop.time()
            with pytest.raises(Failure, match=NEXT):
                await anext(batches)
            return None, loop.time() - asked

    assert run_leaping(main())[1] == pytest.approx(120, abs=0.01)


@pytest.mark.parametrize("place", ["entering", "iterating"])
async def test_cancellation_from_outside_stays_one(place: str) -> None:
    gate = Gate()
    inner = Scripted(Script(at_enter=gate) if place == "entering" else Script(steps=[GOOD[0], gate]))
    task = asyncio.create_task(collect(Timeouts(inner, LIMITS), CHAT))
    await asyncio.wait_for(gate.reached.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert inner.calls[0].cancelled.is_set()


@pytest.mark.parametrize("outside_first", [True, False])
def test_cancellation_from_outside_at_the_same_moment_stays_one(outside_first: bool) -> None:
    async def main() -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(collect(Timeouts(Slow(1000), LIMITS), CHAT))
        if outside_first:
            loop.call_at(loop.time() + LIMITS.first_event, task.cancel)
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(0)  # it arms its timer
            loop.call_at(loop.time() + LIMITS.first_event, task.cancel)
        await asyncio.wait([task])
        return task.cancelled(), 0.0

    assert run_leaping(main())[0] is True


def test_an_outer_limit_is_not_taken_for_ours() -> None:
    async def main() -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(50):
                await collect(Timeouts(Slow(1000), LIMITS), CHAT)
        return None, loop.time()

    assert run_leaping(main())[1] == pytest.approx(50, abs=0.01)


def test_a_task_that_was_cancelled_before_still_has_limits() -> None:
    """Somebody cancelled it earlier and it went on (to clean up, say): the limit is still told as one."""

    async def cleaning_up() -> tuple[Any, float]:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            with pytest.raises(Failure, match=FIRST):
                await collect(Timeouts(Slow(1000), LIMITS), CHAT)
        return "cleaned", 0.0

    async def main() -> tuple[Any, float]:
        task = asyncio.create_task(cleaning_up())
        await asyncio.sleep(1)
        task.cancel()
        return await task

    assert run_leaping(main())[0] == "cleaned"


def test_a_target_that_will_not_be_cancelled_still_answers() -> None:
    events, took = run_leaping(_timed(Slow(301, stubborn=True)))
    assert events == ALL
    assert took == pytest.approx(300, abs=0.01)


def test_a_failure_of_the_target_passes() -> None:
    failure = Failure(Kind.OVERLOADED, "words")
    came, _ = run_leaping(_timed(Scripted(Script(at_enter=failure))))
    assert came is failure
    came, _ = run_leaping(_timed(Scripted([GOOD[0], failure])))
    assert came is failure


async def test_it_is_a_provider_like_any() -> None:
    await assert_conforms(Timeouts(Scripted(GOOD), LIMITS), CHAT)

"""Active health checks: what counts, when they are made, and what they find out about real processes."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmg.core.errors import Failure, Kind
from llmg.providers.http import Transport
from llmg.providers.openai import Reach
from llmg.routing import breaker
from llmg.routing.breaker import State
from llmg.routing.health import Health
from llmg.routing.probes import Check, Limits, Prober, Streak
from llmg.testing.clocks import run_leaping
from support.http import PATIENCE
from support.upstream import KEY, Call, upstream

UPSTREAM = Path(__file__).parents[2] / "tools" / "resilience" / "upstream.py"
DOWN = Failure(Kind.UPSTREAM_UNAVAILABLE, "it is not there")
NEVER = 3600.0


# -- what counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("went", "down"),
    [
        ("-", "d"),  # the first of all decides
        ("+-+-+-", "      "),
        ("+--", "  d"),
        ("+--+-", "  d  "),
        ("---+", "ddd "),
        ("+---+--", "  dd  d"),
    ],
)
def test_two_in_a_row_make_it_down_and_one_brings_it_back(went: str, down: str) -> None:
    streak = Streak(Limits())
    seen, changes = "", 0
    for one in went:
        before = streak.down
        assert streak.count(passed=one == "+") == (streak.down is not before)
        changes += streak.down is not before
        seen += "d" if streak.down else " "
    assert seen == down


def test_as_many_as_are_wanted() -> None:
    streak = Streak(Limits(failures=3, passes=2))
    streak.count(passed=True)
    assert [streak.count(passed=False) for _ in range(4)] == [False, False, True, False]
    assert [streak.count(passed=one) for one in (True, False, True, True, True)] == [False, False, False, True, False]


# -- when they are made ---------------------------------------------------------------------------------------------


class Asked:
    """An upstream that is asked: when, and what it says to that."""

    def __init__(self, *outcomes: Exception | None, takes: float = 0.0) -> None:
        self.times: list[float] = []
        self._outcomes = outcomes or (None,)
        self._takes = takes
        self.at_once = 0
        self._now = 0

    async def __call__(self) -> None:
        outcome = self._outcomes[min(len(self.times), len(self._outcomes) - 1)]
        self.times.append(asyncio.get_running_loop().time())
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            await asyncio.sleep(self._takes)
        finally:
            self._now -= 1
        if outcome is not None:
            raise outcome


def _check(
    probe: Callable[[], Awaitable[None]], *healths: Health, name: str = "up", of: str = "", limits: Limits | None = None
) -> Check:
    return Check(name=name, of=of or name, probe=probe, limits=limits or Limits(), healths=healths)


def _kind(failure: Failure | None) -> Kind | None:
    return None if failure is None else failure.kind


class Run:
    """A prober whose time leaps, and what it told."""

    def __init__(self, *checks: Check) -> None:
        self.told: list[tuple[str, Kind | None]] = []
        self.prober = Prober(random.Random(3), lambda name, failure: self.told.append((name, _kind(failure))))
        self.prober.watch(checks)

    def for_(self, seconds: float, *then: Callable[[], None]) -> None:
        """Checks for so long, then does that and checks for as long again, and so on."""

        async def main() -> None:
            self.prober.start()
            await asyncio.sleep(seconds)
            for step in then:
                step()
                await asyncio.sleep(seconds)
            await self.prober.aclose()
            assert len(asyncio.all_tasks()) == 1

        run_leaping(main())


def test_each_interval_but_not_exactly() -> None:
    asked = Asked()
    Run(_check(asked)).for_(1000)
    gaps = [after - before for before, after in zip(asked.times, asked.times[1:], strict=False)]
    assert asked.times[0] == pytest.approx(0.0)
    assert 9.0 <= min(gaps) < 9.5 < 10.5 < max(gaps) <= 11.0


def test_one_at_a_time() -> None:
    slow = Asked(takes=NEVER)
    run = Run(_check(slow, limits=Limits(interval=1.0, timeout=5.0)))
    run.for_(100)
    assert slow.at_once == 1
    assert run.told == [("up", Kind.UPSTREAM_TIMEOUT)]


def test_its_targets_are_told_and_a_change_once() -> None:
    one, two, other = Health(), Health(), Health()
    run = Run(_check(Asked(DOWN, DOWN, DOWN, None), one, two), _check(Asked(), other, name="well"))
    seen: list[tuple[bool, bool, bool]] = []
    look = lambda: seen.append((one.down, two.calm, other.calm))  # noqa: E731
    run.for_(15.0, look, look, look)
    assert run.told == [("up", Kind.UPSTREAM_UNAVAILABLE), ("up", None)]
    assert seen == [(True, False, True), (False, True, True), (False, True, True)]


def test_our_own_mistake_does_not_end_the_checks() -> None:
    run = Run(_check(Asked(ValueError("oops"), None)))
    run.for_(30.0)
    assert run.told == [("up", Kind.INTERNAL), ("up", None)]


def test_others_from_now_on() -> None:
    gone, stays, comes = Asked(DOWN), Asked(DOWN), Asked()
    of_gone, of_stays, more = Health(), Health(), Health()
    run = Run(_check(gone, of_gone, name="gone"), _check(stays, of_stays, name="stays"))

    def reload() -> None:
        assert of_gone.down
        assert of_stays.down
        run.prober.watch([_check(stays, more, name="stays"), _check(comes, of_gone, name="comes")])
        assert (of_gone.down, of_stays.down, more.down) == (False, False, True)

    run.for_(15.0, reload)
    assert len(gone.times) == 2
    assert stays.times == pytest.approx([0.0, 10.0, 20.0, 30.0], abs=3.5)  # in its own time
    assert comes.times[0] == pytest.approx(15.0)
    assert run.told == [("gone", DOWN.kind), ("stays", DOWN.kind)]


def test_another_way_to_ask_begins_anew() -> None:
    before, after = Asked(DOWN), Asked()
    health = Health()
    run = Run(_check(before, health, of="1"))
    run.for_(15.0, lambda: run.prober.watch([_check(after, health, of="2")]))
    assert len(before.times) == 2
    assert len(after.times) == 2
    assert not health.down


def test_afterwards_nothing_is_down_for_their_sake() -> None:
    health = Health()
    Run(_check(Asked(DOWN), health)).for_(5.0)
    assert health.calm


# -- what is asked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 301, 401, 403, 404, 429, 500, 501, 502, 503])
async def test_any_answer_but_a_servers_error(status: int) -> None:
    async def act(call: Call) -> None:
        await call.json(status, {})

    transport = Transport()
    async with upstream(act) as server:
        reach = Reach(transport, f"{server.base_url}/models?x=1", KEY, {"x-team": "red"})
        failed = None
        try:
            await reach()
        except Failure as failure:
            failed = failure.kind
        await transport.close()
    assert failed == (Kind.UPSTREAM_UNAVAILABLE if status in (500, 502, 503) else None)
    call = server.last
    assert (call.method, call.path, call.raw) == ("GET", "/v1/models?x=1", b"")
    assert (call.headers["authorization"], call.headers["x-team"]) == (f"Bearer {KEY}", "red")


async def test_nobody_there() -> None:
    async with upstream() as server:
        url = f"{server.base_url}/models"
    with pytest.raises(Failure) as raised:
        await Reach(Transport(), url)()
    assert raised.value.kind is Kind.UPSTREAM_UNAVAILABLE


class Other:
    """An upstream in a process of its own, at a port that stays the same."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: Process

    async def start(self) -> None:
        """Returns when it listens."""
        command = (sys.executable, str(UPSTREAM), str(self.port))
        self.process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=DEVNULL)
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await self.process.stdout.readline() == b"ready\n"

    async def kill(self) -> None:
        """Whatever it does."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def _other() -> AsyncIterator[Other]:
    other = Other()
    await other.start()
    try:
        yield other
    finally:
        if other.process.returncode is None:
            await other.kill()


async def test_a_process_that_is_frozen_killed_and_brought_back() -> None:
    health = Health(breaker.Limits(consecutive=1, open_for=NEVER))
    told: asyncio.Queue[Kind | None] = asyncio.Queue()
    prober = Prober(random.Random(3), lambda name, failure: told.put_nowait(_kind(failure)))
    transport = Transport()
    limits = Limits(interval=0.02, timeout=1.0)
    async with _other() as other, asyncio.timeout(PATIENCE):
        reach = Reach(transport, f"http://127.0.0.1:{other.port}/v1/models")
        prober.watch([_check(reach, health, limits=limits)])
        prober.start()

        other.process.send_signal(signal.SIGSTOP)
        assert await told.get() is Kind.UPSTREAM_TIMEOUT
        assert health.down
        other.process.send_signal(signal.SIGCONT)
        assert await told.get() is None
        assert health.calm

        await other.kill()
        health.ended(health.begin(), 1000.0, DOWN)  # a request paid, too
        assert await told.get() is Kind.UPSTREAM_UNAVAILABLE
        assert health.status(1000.0).circuit is State.OPEN
        await other.start()
        assert await told.get() is None
        assert health.status(1000.0).circuit is State.HALF_OPEN
        assert health.fit(1000.0)  # long before its time
        await prober.aclose()
    assert told.empty()
    await transport.close()

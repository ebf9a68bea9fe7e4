"""What is not in an answer, through every door: who is let in, how long it may take, who leaves, who does not read."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmg.boot.system import SystemClock
from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch, Closed, Delta, Finished, Opened, Started
from llmg.core.levels import Rate, Rates
from llmg.core.request import Request
from llmg.ports import Answering, Provider
from llmg.routing.router import Router
from llmg.routing.timeouts import Limits, Timeouts
from llmg.testing.models import Models
from llmg.testing.scripted import Gate, Script, Scripted, saying
from scenarios.asking import Client, Door, Told, Way, asked, behind, failed
from scenarios.clients import sockets
from scenarios.columns import DOORS, STREAMS
from support.http import PATIENCE

KEY = "key-" + "a" * 20
SEEN_WITHIN = 0.2  # seconds until a provider knows that its client has left
through_each = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
through_each_stream = pytest.mark.parametrize("door", STREAMS.values(), ids=STREAMS)


@asynccontextmanager
async def at(door: Door, provider: Provider, keys: Mapping[str, str] = {}, **how: Any) -> AsyncIterator[Client]:
    """Somebody at the door."""
    async with door.serve(behind(provider, keys)) as served, served.client(**how) as client:
        yield client


@through_each
@pytest.mark.parametrize("key", [None, "key-" + "b" * 20])
async def test_the_wrong_key(door: Door, key: str | None) -> None:
    provider = Scripted(saying("secret"))
    async with at(door, provider, {"app": KEY}, key=key) as client:
        assert await client.ask(asked()) == failed(Kind.UNAUTHENTICATED, None)
    assert provider.calls == []


@through_each
async def test_the_right_key(door: Door) -> None:
    provider = Scripted(saying("hi"))
    async with at(door, provider, {"app": KEY}, key=KEY) as client:
        assert (await client.ask(asked())).failure is None
    assert provider.calls[0].context.principal.key_id == "app"


@through_each
async def test_a_session(door: Door) -> None:
    provider = Scripted(saying("hi"))
    async with at(door, provider, session="s-1") as client:
        assert (await client.ask(asked())).failure is None
    async with at(door, provider) as client:
        assert (await client.ask(asked())).failure is None
    assert [call.context.session for call in provider.calls] == ["s-1", None]
    assert [call.context.header("x-llmg-session") for call in provider.calls] == ["s-1", None]


class Routed(Scripted):
    """A provider that tells how it was reached, as the router does, and what is left, as limits do."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        tried = Attempt(provider="p", model="a", started=7.0, ended=7.1, group="m", policy="weighted")
        answers = Attempt(
            provider="p", model="b", started=7.1, queued=0.02, committed=7.6, group="m", policy="weighted"
        )
        context.trail += [tried, answers]
        context.rates = Rates(requests=Rate(600, 599, 0.1), tokens=Rate(100_000, 64_000, 21.6))
        return super().open(request, context)


WAY = Way(
    route="p/b",
    policy="weighted",
    attempts=2,
    times=(20.0, 580.0),  # from the first attempt on
    limits={"requests": (600, 599, 0.1), "tokens": (100_000, 64_000, 21.6)},
)


@through_each
@pytest.mark.parametrize("failure", [None, Failure(Kind.RATE_LIMITED, "too many", retry_after=2.0)])
async def test_the_way_is_told_the_same(door: Door, failure: Failure | None) -> None:
    provider = Routed(Script(steps=saying("hi"), at_enter=failure))
    async with at(door, provider) as client, client.begin(asked()) as reading:
        told = await reading.rest()
        assert told.failure == (None if failure is None else failure.kind)
        assert reading.way == WAY


@through_each
async def test_no_way_is_told_of_a_request_that_went_none(door: Door) -> None:
    async with at(door, Scripted(saying("hi"))) as client, client.begin(asked()) as reading:
        await reading.rest()
        assert reading.way == Way()


@through_each
async def test_a_model_that_nobody_declared(door: Door) -> None:
    async with at(door, Router(Models({}, {}), SystemClock())) as client:
        assert await client.ask(asked()) == failed(Kind.MODEL_NOT_FOUND, "model")


@through_each
async def test_a_deadline_that_passes(door: Door) -> None:
    provider = Scripted(Script(steps=saying("hi")), Script(at_enter=Gate()))
    within = Timeouts(provider, Limits(first_event=PATIENCE, idle=PATIENCE, total=PATIENCE))
    async with at(door, within) as client:
        assert (await client.ask(asked())).failure is None  # gRPC's clients begin to count before they are connected
        assert await client.ask(asked(), timeout=0.2) == failed(Kind.DEADLINE_EXCEEDED, None)
    _, call = provider.calls
    assert call.context.deadline is not None
    async with asyncio.timeout(PATIENCE):
        await call.cancelled.wait()


@through_each
async def test_a_client_that_leaves_before_the_first_word(door: Door) -> None:
    provider = Scripted(Script(steps=[Gate()]))
    async with at(door, provider) as client:
        async with client.begin(asked()):
            call = await first_call(provider)
        async with asyncio.timeout(SEEN_WITHIN):
            await call.cancelled.wait()
            await call.exited.wait()


@through_each_stream
async def test_a_client_that_leaves_in_mid_stream(door: Door) -> None:
    first, *_ = saying("Hello")
    provider = Scripted(Script(steps=[first, [Opened(0, 0, "text"), Delta(0, 0, "Hello")], Gate()]))
    async with at(door, provider) as client:
        async with client.begin(asked()) as reading:
            await reading.some()
        async with asyncio.timeout(SEEN_WITHIN):
            await provider.calls[0].cancelled.wait()
            await provider.calls[0].exited.wait()


@through_each
async def test_an_answer_under_way_outlives_the_drain(door: Door) -> None:
    gate = Gate()
    start, *rest = saying("Hello", " there")
    provider = Scripted(Script(steps=[start, gate, *rest]))
    async with door.serve(behind(provider)) as served, served.client() as client, client.begin(asked()) as reading:
        async with asyncio.timeout(PATIENCE):
            await gate.reached.wait()
        draining = asyncio.create_task(served.drain(PATIENCE))
        gate.open()
        told = await reading.rest()
        assert (told.failure, told.choices[0][1][0][1]) == (None, "Hello there")
        await draining


@through_each
async def test_an_answer_that_takes_longer_than_the_drain_is_cut_with_a_word(door: Door) -> None:
    provider = Scripted(Script(steps=[Gate()]))
    async with door.serve(behind(provider)) as served, served.client() as client, client.begin(asked()) as reading:
        await first_call(provider)
        draining = asyncio.create_task(served.drain(0))
        assert await reading.rest() == failed(Kind.SHUTTING_DOWN, None)
        await draining


async def first_call(provider: Scripted) -> Any:
    """The provider's first call, as soon as it has been entered."""
    async with asyncio.timeout(PATIENCE):
        while not provider.calls:
            await asyncio.sleep(0)
        await provider.calls[0].entered.wait()
    return provider.calls[0]


# -- a long answer -----------------------------------------------------------------------------------------------------

EVENTS = 100_000
BATCH = 50
WORD = "x" * 200
TAKEN_AT_MOST = 0.5  # of the answer, while nobody reads it: what fits into sockets and queues


class Long:
    """A provider of a long answer, which counts what was taken of it."""

    def __init__(self, events: int = EVENTS) -> None:
        self.events = events
        self.taken = 0
        self.left = asyncio.Event()

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return _Long(self)


class _Long:
    def __init__(self, provider: Long) -> None:
        self._provider = provider
        self._batches = _batches(provider.events)

    async def __aenter__(self) -> _Long:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._provider.left.set()

    def __aiter__(self) -> _Long:
        return self

    async def __anext__(self) -> Batch:
        batch = next(self._batches, None)
        if batch is None:
            raise StopAsyncIteration
        self._provider.taken += len(batch)
        return batch


def _batches(events: int) -> Iterator[Batch]:
    yield [Started("a", 1, "m"), Opened(0, 0, "text")]
    for _ in range(events // BATCH):
        yield [Delta(0, 0, WORD)] * BATCH
    yield [Closed(0, 0), Finished(0, "stop")]


@through_each_stream
async def test_a_slow_reader_slows_its_own_upstream_alone(door: Door) -> None:
    provider = Long()
    async with door.serve(behind(provider)) as served, served.client(slow=True) as client:
        tracemalloc.start()
        try:
            async with client.begin(asked()) as reading:
                await reading.some()
                taken = await plateau(provider)
                _, peak = tracemalloc.get_traced_memory()
                assert taken < EVENTS * TAKEN_AT_MOST
                assert peak < 32 << 20  # the answer is of 20 MB in words alone, and as Python objects of more
                assert not provider.left.is_set()
        finally:
            tracemalloc.stop()
        async with asyncio.timeout(PATIENCE):
            await provider.left.wait()


@pytest.mark.parametrize("door", sockets.DOORS.values(), ids=sockets.DOORS)
async def test_what_a_slow_reader_has_yet_to_read_is_little_before_the_answer_to_its_ping(door: Door) -> None:
    """Else it takes a server that is there for one that is not."""
    provider = Long()
    async with at(door, provider) as client, client.begin(asked()) as reading:
        await reading.some()
        await plateau(provider)
        assert isinstance(reading, sockets.SocketReading)
        assert await reading.ping() < 1 << 20


@pytest.mark.parametrize("door", sockets.DOORS.values(), ids=sockets.DOORS)
async def test_who_leaves_in_the_middle_of_a_long_answer_ends_it(door: Door) -> None:
    """Though its upstream never waits for anything, and the server is not held up by the client."""
    provider = Long()
    async with at(door, provider) as client:
        async with client.begin(asked()) as reading:
            assert isinstance(reading, sockets.SocketReading)
            await reading.some()
            await reading.ping()
        async with asyncio.timeout(PATIENCE):
            await provider.left.wait()
    assert provider.taken < EVENTS * TAKEN_AT_MOST


async def plateau(provider: Long) -> int:
    """What is taken in the end: a byte went a thousand times through the kernel, and nothing more was."""
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    turns = taken = 0
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        async with asyncio.timeout(PATIENCE):
            while turns < 1000:
                await loop.sock_sendall(here, b"?")
                await loop.sock_recv(there, 1)
                turns = turns + 1 if provider.taken == taken else 0
                taken = provider.taken
    return taken


@through_each
async def test_a_long_answer_arrives_whole(door: Door) -> None:
    provider = Long(EVENTS // 5)
    async with at(door, provider) as client:
        told: Told = await client.ask(asked())
    assert told.failure is None
    assert len(told.choices[0][1][0][1]) == provider.events * len(WORD)

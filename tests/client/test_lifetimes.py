"""Deadlines, cancellation, slow readers, servers that go and come: nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmg.client import Client, DeadlineError, LlmgError, UnavailableError, types
from llmg.client.transport import Channel
from llmg.core.context import Context
from llmg.core.events import Batch, Closed, Delta, Event, Finished, Opened, Started
from llmg.core.request import Request
from llmg.doors.grpc.server import GrpcServer, Limits
from llmg.doors.grpc.services import Inference
from llmg.ports import Answering, Provider
from llmg.testing.scripted import Call, Gate, Script, Scripted, saying
from support.doors import admission, grpc_door, some_models
from support.http import PATIENCE

PROMPTLY = 1.0  # seconds; it is milliseconds, on a machine that has nothing else to do


async def prompt(event: asyncio.Event) -> None:
    """Waits for what must happen at once."""
    async with asyncio.timeout(PROMPTLY):
        await event.wait()


async def reached(provider: Scripted, gate: Gate) -> Call:
    """The call, when it waits at the gate."""
    async with asyncio.timeout(PATIENCE):
        await gate.reached.wait()
    return provider.calls[-1]


def waiting() -> tuple[Scripted, Gate]:
    """A provider that says a word and then waits."""
    gate = Gate()
    return Scripted([*saying("Hello")[:2], gate, *saying("Hello")[2:]]), gate


@asynccontextmanager
async def client_of(pipeline: Provider, **kwargs: Any) -> AsyncIterator[Client]:
    """A client of a door before this pipeline."""
    async with grpc_door(pipeline) as door, Client(door.address, **kwargs) as client:
        yield client


# -- leaving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["break", "exception", "cancel", "close", "unread"])
async def test_leaving_a_stream_frees_the_upstream_at_once(how: str) -> None:
    provider, gate = waiting()

    async def use(client: Client) -> None:
        async with client.stream("m", "Hello") as stream:
            if how == "unread":
                await reached(provider, gate)
                return
            async for _ in stream.text:
                await reached(provider, gate)
                if how == "exception":
                    raise KeyError("mine")
                if how == "cancel":
                    await asyncio.Event().wait()
                if how == "close":
                    await client.close()
                break

    async with client_of(provider) as client:
        using = asyncio.create_task(use(client))
        call = await reached(provider, gate)
        if how == "cancel":
            using.cancel()
        (outcome,) = await asyncio.gather(using, return_exceptions=True)
        await prompt(call.exited)
        assert call.cancelled.is_set()
    assert type(outcome) is {"exception": KeyError, "cancel": asyncio.CancelledError}.get(how, type(None))


async def test_cancelling_a_whole_answer() -> None:
    provider, gate = waiting()
    async with client_of(provider) as client:
        asking = asyncio.create_task(client.chat("m", "Hello"))
        call = await reached(provider, gate)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await prompt(call.exited)
        assert call.cancelled.is_set()
        gate.open()
        assert (await client.chat("m", "Hello")).text == "Hello"  # others may go on


async def test_closing_the_client_ends_its_calls() -> None:
    provider, gate = waiting()
    async with grpc_door(provider) as door:
        client = Client(door.address)
        asking = asyncio.create_task(client.chat("m", "Hello"))
        call = await reached(provider, gate)
        await client.close()
        channel: Any = client._made
        assert channel._open == set()  # gone, not only told to go
        with pytest.raises(UnavailableError, match="Connection closed"):
            await asking
        await prompt(call.exited)


async def test_reading_after_leaving() -> None:
    provider, _gate = waiting()
    async with client_of(provider) as client:
        async with client.stream("m", "Hello") as stream:
            await anext(stream.text)
        assert [event async for event in stream if not isinstance(event, types.Delta)] == []
        assert stream.completion.text == "Hello"


# -- deadlines ---------------------------------------------------------------------------------------------------------


async def ask(client: Client, **kwargs: Any) -> None:
    await client.chat("m", "Hello", **kwargs)


async def read(client: Client, **kwargs: Any) -> None:
    async with client.stream("m", "Hello", **kwargs) as stream:
        await stream.get_final_completion()


@pytest.mark.parametrize("way", [ask, read], ids=["whole", "stream"])
async def test_a_deadline(way: Any) -> None:
    provider, _gate = waiting()
    async with client_of(provider, timeout=PATIENCE) as client:
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineError) as raised:
            await way(client, timeout=0.3)
        assert asyncio.get_running_loop().time() - began < 0.3 + PROMPTLY
        (call,) = provider.calls
        await prompt(call.exited)
        assert call.context.deadline is not None
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    assert raised.value.kind == "deadline_exceeded"


@pytest.mark.parametrize("timeout", [0, -1])
async def test_no_time_at_all(timeout: float) -> None:
    provider = Scripted()
    async with client_of(provider) as client:
        with pytest.raises(DeadlineError):
            await client.chat("m", "Hello", timeout=timeout)
    assert provider.calls == []


async def test_the_deadline_that_counts() -> None:
    provider = Scripted(saying("Hello"))
    async with (
        grpc_door(provider) as door,
        Client(door.address, timeout=1000.0) as client,
        Client(door.address) as free,
    ):
        await client.chat("m", "Hello")
        await client.chat("m", "Hello", timeout=math.inf)
        await free.chat("m", "Hello")
    first, *others = (call.context.deadline for call in provider.calls)
    assert first is not None
    assert others == [None, None]


async def test_a_deadline_while_it_connects() -> None:
    """Nobody takes the connection's first words."""
    held: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with Client("{}:{}".format(*server.sockets[0].getsockname())) as client:
        with pytest.raises(DeadlineError):
            await client.chat("m", "Hello", timeout=0.2)
    server.close()
    for writer in held:
        writer.close()


async def test_timeouts_of_the_callers_own_are_not_ours() -> None:
    provider, _gate = waiting()
    async with client_of(provider, timeout=PATIENCE) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), client.stream("m", "Hello") as stream:
                await stream.get_final_completion()
        with pytest.raises(TimeoutError, match="mine"):
            async with client.stream("m", "Hello") as stream:
                raise TimeoutError("mine")


async def test_an_interrupted_call_leaves_its_task_as_it_was() -> None:
    """A task that stays marked as cancelled would be cancelled by the next group or timeout that it is in."""
    provider, _gate = waiting()
    async with client_of(provider) as client:
        async with asyncio.TaskGroup() as group:
            with pytest.raises(DeadlineError):
                await client.chat("m", "Hello", timeout=0.1)
            group.create_task(asyncio.sleep(0))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(DeadlineError):
                await client.chat("m", "Hello", timeout=0.1)
            await asyncio.sleep(0)


async def test_cancelled_and_out_of_time_at_once() -> None:
    """Whoever cancels the task is obeyed, though the call's time is up at the same moment."""
    provider, gate = waiting()
    async with client_of(provider) as client:
        asking = asyncio.create_task(client.chat("m", "Hello"))
        await reached(provider, gate)
        (protocol,) = client._made._open  # type: ignore[union-attr]
        asking.cancel()
        protocol.processor.close()  # interrupts all calls
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert asking.cancelled()


# -- slow readers ------------------------------------------------------------------------------------------------------


class Long:
    """A provider with so many events to give, as large as these."""

    def __init__(self, events: int, size: int) -> None:
        self.left = events
        self.given = 0
        self._data = "x" * size
        self.exited = asyncio.Event()

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return self

    async def __aenter__(self) -> AsyncIterator[Batch]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.exited.set()

    def __aiter__(self) -> Long:
        return self

    async def __anext__(self) -> Batch:
        if self.left < 0:
            raise StopAsyncIteration
        start: list[Event] = [Started("s", 1, "m"), Opened(0, 0, "text")] if not self.given else []
        end: list[Event] = [] if self.left else [Closed(0, 0), Finished(0, "stop")]
        some = min(self.left, 16)
        self.given += some
        self.left = self.left - some if self.left else -1
        return [*start, *[Delta(0, 0, self._data)] * some, *end]


async def standstill(provider: Long) -> int:
    """How many events it has given, when it is asked for no more."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        seen, since = -1, loop.time()
        while loop.time() - since < 0.3:
            if provider.given != seen:
                seen, since = provider.given, loop.time()
            await asyncio.sleep(0.01)
    return seen


class Either:
    """`m` is one provider, anything else the other."""

    def __init__(self, m: Provider, other: Provider) -> None:
        self._m = m
        self._other = other

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return (self._m if request.model == "m" else self._other).open(request, context)


async def test_a_slow_reader_holds_its_own_upstream_back_and_no_other() -> None:
    provider = Long(1_000_000, 1000)
    async with client_of(Either(provider, Scripted(saying("Hello")))) as client:
        async with client.stream("m", "Hello") as stream:
            await anext(stream.text)
            held = await standstill(provider)
            assert held < 20_000  # of 1 kB
            assert (await client.chat("other", "Hello", timeout=PATIENCE)).text == "Hello"
            for _ in range(held):
                await anext(stream)
            assert await standstill(provider) > held
        await prompt(provider.exited)


async def test_a_long_answer_to_its_end() -> None:
    provider = Long(20_000, 10)
    async with client_of(provider) as client, client.stream("m", "Hello", timeout=PATIENCE) as stream:
        assert len((await stream.get_final_completion()).text) == 200_000


# -- servers that go, and come -----------------------------------------------------------------------------------------


async def test_a_server_that_drains_finishes_what_it_has_begun() -> None:
    provider, gate = waiting()
    async with grpc_door(provider) as door, Client(door.address, timeout=PATIENCE) as client:
        asking = asyncio.create_task(client.chat("m", "Hello"))
        async with client.stream("m", "Hello") as stream:
            await anext(stream.text)
            while len(provider.calls) < 2 or not all(call.given == 2 for call in provider.calls):
                await asyncio.sleep(0)
            draining = asyncio.create_task(door.server.drain(PATIENCE))
            channel: Any = client._made
            async with asyncio.timeout(PATIENCE):
                while channel._connected:  # until the goodbye has come
                    await asyncio.sleep(0.001)
            with pytest.raises(UnavailableError):
                await client.chat("m", "Hello")  # nobody takes new ones
            gate.open()
            assert (await stream.get_final_completion()).text == "Hello"
        assert (await asking).text == "Hello"
        assert await draining == 0
        async with asyncio.timeout(PATIENCE):
            while channel._open:
                await asyncio.sleep(0.001)


async def test_a_server_that_has_no_more_time() -> None:
    provider, gate = waiting()
    async with (
        grpc_door(provider) as door,
        Client(door.address, timeout=PATIENCE) as client,
        client.stream("m", "Hello") as stream,
    ):
        await anext(stream.text)
        await reached(provider, gate)
        assert await door.server.drain(0.05) == 1
        with pytest.raises(UnavailableError) as raised:
            await stream.get_final_completion()
    assert raised.value.kind == "shutting_down"
    assert raised.value.request_id


async def served(address: str, **limits: Any) -> tuple[GrpcServer, str]:
    provider = Scripted(saying("Hello"))
    server = GrpcServer(
        Inference(provider, admission()), some_models(), limits=Limits(**limits), reflection=False, reuse_port=True
    )
    return server, f"127.0.0.1:{await server.start(address)}"


async def test_a_server_that_comes_again() -> None:
    first, address = await served("127.0.0.1:0")
    async with Client(address, timeout=PATIENCE) as client:
        assert (await client.chat("m", "Hello")).text == "Hello"
        await first.drain(0)
        with pytest.raises(LlmgError):
            await client.chat("m", "Hello")
        second, _ = await served(address)
        assert (await client.chat("m", "Hello")).text == "Hello"
        await second.drain(0)


async def test_connections_that_may_not_grow_old_lose_no_call() -> None:
    server, address = await served("127.0.0.1:0", connection_age=0.1)
    loop = asyncio.get_running_loop()
    async with Client(address, timeout=PATIENCE) as client:
        until, connections = loop.time() + 1.0, set()
        while loop.time() < until:
            assert (await client.chat("m", "Hello")).text == "Hello"
            channel: Any = client._made
            connections.add(id(channel._protocol))
        assert len(connections) > 2
    await server.drain(0)


async def test_a_server_that_has_vanished_is_noticed() -> None:
    """Its machine is gone, say: nothing comes any more, not even a farewell."""
    provider, gate = waiting()
    async with grpc_door(provider) as door:
        host, _, port = door.address.rpartition(":")
        gone = asyncio.Event()
        writers: list[asyncio.StreamWriter] = []

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up, down = await asyncio.open_connection(host, int(port))
            writers.extend([writer, down])

            async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                while data := await source.read(1 << 16):
                    if not gone.is_set():
                        target.write(data)

            await asyncio.gather(copy(reader, down), copy(up, writer))

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        name, number = server.sockets[0].getsockname()
        channel = Channel(name, number, keepalive=0.2)
        stub = types.ChatServiceStub(channel)
        chat = types.Chat(model="m", messages=[types.Message(role=types.Role.USER)])
        asking = asyncio.create_task(stub.create_chat_completion(types.CreateChatCompletionRequest(chat=chat)))
        await reached(provider, gate)
        gone.set()
        with pytest.raises(UnavailableError, match="was lost"):
            async with asyncio.timeout(PATIENCE):
                await asking
        await channel.aclose()
        for writer in writers:
            writer.close()
        server.close()


async def test_without_a_gateway_nothing_is_left() -> None:
    async with Client() as unused:
        assert unused._made is None


async def test_a_script_that_fails_to_open_is_told() -> None:
    provider = Scripted(Script(at_open=ValueError("a secret")))
    async with client_of(provider) as client:
        with pytest.raises(LlmgError) as raised:
            await client.chat("m", "Hello")
    assert raised.value.kind == "internal"
    assert "secret" not in raised.value.message

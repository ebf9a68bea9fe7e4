"""One process that is told to stop: nothing in flight is lost, nothing lasts longer than the grace."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from boot.conftest import Gate, Serve, Served
from support.gateway import ECHO, chat, to_upstream
from support.http import Connection, Response, cut_events, request
from support.upstream import Act, Call, Upstream, chunk, good, stall, stall_midway, upstream, words

PATH = "/v1/chat/completions"
STOPS = [signal.SIGTERM, signal.SIGINT]


def config(base_url: str, **server: Any) -> dict[str, Any]:
    """Model `m` is upstream's, model `echo` says back what it is asked."""
    both = to_upstream(base_url)
    both["providers"] |= ECHO["providers"]
    both["models"]["echo"] = ECHO["models"]["m"]
    return {**both, "server": {"grace": "20s", **server}}


def held(gate: Gate) -> Act:
    """A good answer, the end of which waits at the gate; a stream's beginning does not."""

    async def act(call: Call) -> None:
        if not call.body.get("stream"):
            await gate.passed()
            await good(call)
            return
        await words(call, "Hello")
        await gate.passed()
        await call.event(chunk({"content": " there"}))
        await call.event(chunk({}, "stop"))
        await call.close_stream()

    return act


def asking(model: str = "m", **fields: Any) -> bytes:
    return request("POST", PATH, json.dumps(chat(model, **fields)).encode())


async def connections(stack: AsyncExitStack, gateway: Served, count: int) -> list[Connection]:
    return [await stack.enter_async_context(gateway.connect()) for _ in range(count)]


async def responses(clients: Sequence[Connection]) -> list[Response]:
    return list(await asyncio.gather(*(client.response() for client in clients)))


async def begun(up: Upstream, count: int) -> None:
    """Waits until so many requests have come to the upstream."""
    await up.call(count - 1)


def text_of(response: Response) -> str:
    """What a stream says, which must be whole."""
    *events, done = response.events
    assert done == "[DONE]", response
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def stopped(gateway: Served) -> dict[str, Any]:
    """Its last words. It has ended well, and without complaints."""
    assert await gateway.ended() == 0, gateway.lines
    await gateway.gone()
    entry = (await gateway.said("stopped"))[0]
    assert gateway.complaints == []
    return entry


@pytest.mark.parametrize("number", STOPS)
async def test_what_is_in_flight_is_answered(serve: Serve, number: signal.Signals) -> None:
    gate = Gate()
    async with upstream(held(gate)) as up, AsyncExitStack() as stack:
        gateway = await serve(config(up.base_url))
        wholes = await connections(stack, gateway, 100)
        streams = await connections(stack, gateway, 100)
        for client in wholes:
            await client.send(asking())
        for client in streams:
            await client.send(asking(stream=True))
        await asyncio.gather(*(client.head() for client in streams))  # these can't say any more that they close
        await begun(up, 200)

        gateway.tell(number)
        await gateway.said("draining")
        gate.open()
        for response in await responses(wholes):
            assert response.status == 200
            assert response.headers["connection"] == "close"
            assert response.json()["choices"][0]["message"]["content"] == "Hello there"
        for client in streams:
            body = b"".join([piece async for piece in client.chunks()])
            assert text_of(Response(200, {}, body)) == "Hello there"
        assert (await stopped(gateway))["cut_off"] == 0


async def test_no_request_is_lost_under_load(serve: Serve) -> None:
    """Clients that ask without a pause learn of the end by an answer, never by a connection that breaks."""
    gateway = await serve(ECHO)
    everybody_talks = asyncio.Barrier(201)

    async def talk(client: Connection, stream: bool) -> int:
        answered = 0
        while True:
            await client.send(asking(text="Say it again", stream=stream))
            response = await client.response()
            if stream:
                assert text_of(response) == "Say it again"
            else:
                assert response.json()["choices"][0]["message"]["content"] == "Say it again"
            answered += 1
            if answered == 1:
                await everybody_talks.wait()
            if "connection" in response.headers:
                assert response.headers["connection"] == "close"
                assert await client.closed() == b""
                return answered

    async with AsyncExitStack() as stack:
        clients = await connections(stack, gateway, 200)
        talks = [asyncio.create_task(talk(client, index % 2 == 0)) for index, client in enumerate(clients)]
        async with asyncio.timeout(20):
            await everybody_talks.wait()
        gateway.tell(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert min(await asyncio.gather(*talks)) > 1
    assert (await stopped(gateway))["cut_off"] == 0


async def test_connections_that_nobody_has_accepted_yet(serve: Serve) -> None:
    gateway = await serve(ECHO)
    async with AsyncExitStack() as stack:
        gateway.tell(signal.SIGSTOP)  # the kernel goes on making connections
        clients = await connections(stack, gateway, 60)
        for client in clients:
            await client.send(asking())
        gateway.tell(signal.SIGTERM)
        gateway.tell(signal.SIGCONT)
        for response in await responses(clients):
            assert response.json()["choices"][0]["message"]["content"] == "Hello"
    await stopped(gateway)


async def test_requests_that_are_still_being_sent(serve: Serve) -> None:
    gateway = await serve(ECHO)
    whole = asking()
    parts = [1, len(whole) // 3, len(whole) - 1]  # within the first line, the headers, the body
    async with AsyncExitStack() as stack:
        clients = await connections(stack, gateway, len(parts))
        for client, at in zip(clients, parts, strict=True):
            assert (await client.ask("GET", "/healthz")).status == 200
            await client.send(whole[:at])
        await gateway.ask("GET", "/healthz")  # by now the parts were read, too: they came before
        gateway.tell(signal.SIGTERM)
        await gateway.said("draining")
        for client, at in zip(clients, parts, strict=True):
            await client.send(whole[at:])
        for response in await responses(clients):
            assert response.status == 200
            assert response.headers["connection"] == "close"
    assert (await stopped(gateway))["cut_off"] == 0


async def test_readyz_says_no_while_it_drains(serve: Serve) -> None:
    gateway = await serve(ECHO)
    async with gateway.connect() as client:
        assert (await client.ask("GET", "/readyz")).status == 200
        await client.send(b"GET /readyz HTTP/1.1\r\n")
        await gateway.ask("GET", "/healthz")
        gateway.tell(signal.SIGTERM)
        await gateway.said("draining")
        await client.send(b"Host: localhost\r\n\r\n")
        response = await client.response()
        assert response.status == 503
        assert response.error["code"] == "shutting_down"
        assert response.headers["connection"] == "close"
    await stopped(gateway)


async def test_idle_connections_are_closed_and_new_ones_refused(serve: Serve) -> None:
    gate = Gate()
    async with upstream(held(gate)) as up, AsyncExitStack() as stack:
        gateway = await serve(config(up.base_url))
        used, unused, busy = await connections(stack, gateway, 3)
        assert (await used.ask("GET", "/healthz")).status == 200
        await busy.send(asking())
        await begun(up, 1)
        gateway.tell(signal.SIGTERM)
        await gateway.said("draining")
        assert await used.closed() == b""
        assert await unused.closed() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*gateway.address)
        gate.open()
        assert (await busy.response()).status == 200
    await stopped(gateway)


async def test_a_stream_that_had_begun_leaves_time_for_one_request_more(serve: Serve) -> None:
    """Its head could not say that the connection closes."""
    gate = Gate()
    async with upstream(held(gate)) as up:
        gateway = await serve(config(up.base_url))
        async with gateway.connect() as client:
            await client.send(asking(stream=True))
            await client.head()
            gateway.tell(signal.SIGTERM)
            await gateway.said("draining")
            gate.open()
            assert [piece async for piece in client.chunks()]
            response = await client.post(PATH, chat("echo", "One more"))
            assert response.json()["choices"][0]["message"]["content"] == "One more"
            assert response.headers["connection"] == "close"
    await stopped(gateway)


@pytest.mark.parametrize("grace", [0, "300ms"])
async def test_after_the_grace_what_is_left_is_told(serve: Serve, grace: object) -> None:
    async with upstream(stall_midway, stall_midway, stall) as up, AsyncExitStack() as stack:
        gateway = await serve(config(up.base_url, grace=grace))
        begun_stream, whole, waiting_stream = await connections(stack, gateway, 3)
        await begun_stream.send(asking(stream=True))
        await begun_stream.head()
        first = await begun_stream.chunk()
        await whole.send(asking())
        await begun(up, 2)
        await waiting_stream.send(asking(stream=True))
        await begun(up, 3)

        gateway.tell(signal.SIGTERM)
        rest = b"".join([piece async for piece in begun_stream.chunks()])
        last = json.loads(cut_events(first + rest)[-1])
        assert last["error"]["code"] == "shutting_down"
        assert b"[DONE]" not in rest
        for client in (whole, waiting_stream):
            response = await client.response()
            assert response.status == 503
            assert response.error["code"] == "shutting_down"
            assert response.headers["connection"] == "close"
        assert (await stopped(gateway))["cut_off"] == 3
        for call in up.calls:
            await call.until_gone()


async def test_a_client_that_does_not_read_holds_nobody_up(serve: Serve) -> None:
    async def flood(call: Call) -> None:
        await words(call)
        while True:
            await call.event(chunk({"content": "la" * 8192}))

    async with upstream(flood) as up:
        gateway = await serve(config(up.base_url, grace="100ms"))
        async with gateway.connect(receive_buffer=4096) as client:
            await client.send(asking(stream=True))
            call = await up.call()
            async with asyncio.timeout(20):
                await call.paused.wait()
            gateway.tell(signal.SIGTERM)
            assert await gateway.ended() == 0
    await gateway.gone()


@pytest.mark.parametrize("first", STOPS)
@pytest.mark.parametrize("second", STOPS)
async def test_the_second_signal_ends_it_at_once(serve: Serve, first: signal.Signals, second: signal.Signals) -> None:
    async with upstream(stall) as up:
        gateway = await serve(config(up.base_url))
        async with gateway.connect() as client:
            await client.send(asking())
            await begun(up, 1)
            gateway.tell(first)
            await gateway.said("draining")
            gateway.tell(second)
            assert await gateway.ended() == -second
            assert await client.closed() == b""
        await up.last.until_gone()
    await gateway.gone()
    assert gateway.complaints == []

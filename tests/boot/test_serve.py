"""One gateway process: what it says, what it opens and closes, and the local models below it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from boot.conftest import Engines, Gate, Serve, Served, end_of, say
from llmg.boot.serve import at, listen, reserve
from llmg.boot.settings import Settings
from llmg.boot.version import version
from llmg.core.errors import Kind
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceStub
from support.doors import refusal
from support.gateway import ECHO, chat, in_process, to_upstream
from support.http import PATIENCE, Response, request
from support.upstream import ANSWER, Call, good, stall, upstream

POLLY = request("POST", "/v1/chat/completions", json.dumps(chat("polly")).encode())


def content(response: Response) -> str:
    assert response.status == 200, response
    said: str = response.json()["choices"][0]["message"]["content"]
    return said


async def test_it_says_what_it_is(serve: Serve) -> None:
    gateway = await serve(ECHO)
    (entry,) = await gateway.said("ready")
    assert entry["models"] == ["m"]
    assert entry["pid"] == gateway.pid
    assert {"version": entry["version"], "commit": entry["commit"]}.items() <= version().items()
    assert (await gateway.ask("GET", "/version")).json() == version()
    (model,) = (await gateway.ask("GET", "/v1/models")).json()["data"]
    assert (model["id"], model["owned_by"]) == ("m", "echo")
    assert (await gateway.ask("GET", "/readyz")).status == 200
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert [entry["event"] for entry in gateway.entries] == ["ready", "draining", "stopped"]
    assert gateway.complaints == []


def test_where_it_listens() -> None:
    with listen(("127.0.0.1", 0), 16) as listener:
        assert at(listener, Settings()) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not listener.getblocking()


async def test_it_closes_its_connections_to_upstreams() -> None:
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"Hello")
        body = json.dumps(ANSWER).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body)
        while await reader.read(1 << 16):
            pass
        writer.close()
        closed.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        async with in_process(to_upstream("http://{}:{}/v1".format(*server.sockets[0].getsockname()))) as gateway:
            assert content(await gateway.chat()) == "Hello there"
            assert not closed.is_set()
        async with asyncio.timeout(PATIENCE):
            await closed.wait()


async def test_a_request_that_is_cut_off_ends_the_upstream_call() -> None:
    async with upstream(stall) as up:
        async with in_process(to_upstream(up.base_url)) as gateway, gateway.connect() as client:
            await client.send(request("POST", "/v1/chat/completions", json.dumps(chat()).encode()))
            await up.call()
        await up.last.until_gone()


@pytest.mark.parametrize("slow", [{}, {"SLOW": "yes"}], ids=["loaded", "loading"])
async def test_a_local_model_answers_before_it_is_stopped(serve: Serve, engines: Engines, slow: dict[str, str]) -> None:
    gateway = await serve(engines.config(**slow))
    async with gateway.connect() as client:
        await client.send(POLLY)
        waiting = await engines.prediction()
        gateway.tell(signal.SIGTERM)
        await gateway.said("draining")
        if slow:
            await say(waiting, b"")
            waiting = await engines.prediction()
        await say(waiting, b"Polly")
        assert content(await client.response()) == "Polly"
    assert await gateway.ended() == 0
    await gateway.gone()
    assert len(engines.started()) == 1
    assert gateway.complaints == []


@pytest.mark.parametrize("slow", [{}, {"SLOW": "yes"}], ids=["loaded", "loading"])
async def test_a_local_model_that_takes_longer_than_the_grace(
    serve: Serve, engines: Engines, slow: dict[str, str]
) -> None:
    gateway = await serve({**engines.config(**slow), "server": {"grace": "100ms"}})
    async with gateway.connect() as client:
        await client.send(POLLY)
        waiting = await engines.prediction()
        gateway.tell(signal.SIGTERM)
        response = await client.response()
        assert response.status == 503
        assert response.error["code"] == "shutting_down"
    assert await gateway.ended() == 0
    await gateway.gone()
    waiting.close()


async def test_a_killed_gateway_leaves_no_engine(serve: Serve, engines: Engines) -> None:
    gateway = await serve(engines.config())
    async with gateway.connect() as client:
        await client.send(POLLY)
        waiting = await engines.prediction()
        (engine,) = engines.started()
        gateway.tell(signal.SIGKILL)
        assert await client.closed() == b""
        await end_of(engine)
        waiting.close()
    await gateway.gone()


async def test_a_limit_on_connections_holds_requests_back() -> None:
    gate = Gate()

    async def held(call: Call) -> None:
        await gate.passed()
        await good(call)

    async with (
        upstream(held) as up,
        in_process(to_upstream(up.base_url, max_connections=1)) as gateway,
        gateway.connect() as first,
        gateway.connect() as second,
    ):
        ask = request("POST", "/v1/chat/completions", json.dumps(chat()).encode())
        await first.send(ask)
        await up.call()
        await second.send(ask)
        assert (await gateway.chat("nope")).status == 404  # the gateway has read the second one by now
        assert len(up.calls) == 1
        gate.open()
        for client in (first, second):
            assert content(await client.response()) == "Hello there"
        assert up.connections == 1


# -- gRPC beside HTTP --------------------------------------------------------------------------------------------------

SAID = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=pb.TextPart(text="Hello there"))])
ASKED = pb.CreateChatCompletionRequest(chat=pb.Chat(model="m", messages=[SAID]))


@asynccontextmanager
async def grpc_client(gateway: Served) -> AsyncIterator[ChatServiceStub]:
    """A client with a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(gateway.grpc_address, options) as channel:
        yield ChatServiceStub(channel)


async def by_grpc(gateway: Served) -> str:
    """What a whole answer by gRPC says."""
    async with grpc_client(gateway) as client:
        answer = await client.CreateChatCompletion(ASKED, timeout=PATIENCE)
    return answer.completion.choices[0].parts[0].text


async def test_grpc_and_http_are_served_together(serve: Serve) -> None:
    gateway = await serve(ECHO)
    assert content(await gateway.chat()) == "Hello"
    assert await by_grpc(gateway) == "Hello there"
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert gateway.complaints == []


async def test_without_grpc(serve: Serve) -> None:
    gateway = await serve({**ECHO, "grpc": {"enabled": False}})
    assert gateway.grpc_address == ""
    assert content(await gateway.chat()) == "Hello"


async def test_workers_share_the_port_of_grpc(serve: Serve) -> None:
    gateway = await serve(ECHO, "--workers", "2", ready=2)
    first, second = await gateway.said("ready", 2)
    assert first["grpc_address"] == second["grpc_address"]
    assert not first["grpc_address"].endswith(":0")
    for _ in range(10):
        assert await by_grpc(gateway) == "Hello there"
    other = await serve(ECHO, ready=0, LLMG_GRPC__SERVER_ADDR=gateway.grpc_address)
    assert await other.ended() == 1
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()
    assert gateway.complaints == []


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("shared", [False, True])
async def test_a_port_of_grpc_that_is_taken(serve: Serve, workers: str, shared: bool) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        gateway = await serve(ECHO, "--workers", workers, ready=0, LLMG_GRPC__SERVER_ADDR=address)
        assert await gateway.ended() == 1
        await gateway.gone()
        await gateway.over()
    assert gateway.lines == [f"can't listen on {address} (grpc.server_addr): Address already in use\n"]


def test_a_port_that_is_reserved_can_be_listened_at() -> None:
    with reserve(("127.0.0.1", 0)) as held, listen(held.getsockname(), 1) as listener:
        assert listener.getsockname() == held.getsockname()
        with pytest.raises(OSError, match="in use"):
            reserve(held.getsockname())


@pytest.mark.parametrize("grace", ["20s", "100ms"])
async def test_both_drain_within_one_grace(serve: Serve, grace: str) -> None:
    gate = Gate()

    async def held(call: Call) -> None:
        await gate.passed()
        await good(call)

    async with upstream(held) as up:
        gateway = await serve({**to_upstream(up.base_url), "server": {"grace": grace}})
        async with gateway.connect() as client, grpc_client(gateway) as grpc_stub:
            await client.send(request("POST", "/v1/chat/completions", json.dumps(chat()).encode()))
            asking = grpc_stub.CreateChatCompletion(ASKED, timeout=PATIENCE)
            await up.call(1)
            gateway.tell(signal.SIGTERM)
            await gateway.said("draining")
            if grace == "20s":
                gate.open()
                assert content(await client.response()) == "Hello there"
                assert (await asking).completion.choices[0].parts[0].text == "Hello there"
            else:
                assert (await client.response()).error["code"] == "shutting_down"
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await asking
                assert refusal(raised.value).kind is Kind.SHUTTING_DOWN
        assert await gateway.ended() == 0
        gate.open()
    (entry,) = await gateway.said("stopped")
    assert entry["cut_off"] == (0 if grace == "20s" else 2)
    errors = [entry for entry in gateway.entries if entry["level"] == "error"]
    assert errors == []

"""One gateway process: what it says, what it opens and closes, and the local models below it."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import pytest

from boot.conftest import Engines, Gate, Serve, end_of, say
from llmg.boot.serve import at, listen, needs_launcher
from llmg.boot.settings import Settings
from llmg.boot.version import version
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
        assert at(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not listener.getblocking()


@pytest.mark.parametrize(
    ("provider", "needs"),
    [
        ({"kind": "backend", "engine": "xllamacpp"}, True),
        ({"kind": "backend", "address": "127.0.0.1:50051"}, False),
        ({"kind": "openai", "base_url": "http://127.0.0.1/v1"}, False),
        ({"kind": "echo"}, False),
    ],
)
def test_a_launcher_only_for_engines_of_its_own(provider: dict[str, Any], needs: bool) -> None:
    settings = Settings(providers={"p": provider})  # type: ignore[dict-item]
    assert needs_launcher(settings) is needs


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

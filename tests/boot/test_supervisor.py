"""Several workers behind one port: what they share, and what happens when one of the processes ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from boot.conftest import Engines, Gate, Serve, Served, end_of, say
from llmg.boot import supervisor
from llmg.boot.reload import Source
from llmg.boot.serve import listen
from llmg.boot.settings import Settings
from support.gateway import ECHO, chat, to_upstream
from support.http import PATIENCE, Connection, Response, request
from support.upstream import Act, Call, good, upstream

PATH = "/v1/chat/completions"
WORKERS = 3


def held(gate: Gate) -> Act:
    async def act(call: Call) -> None:
        await gate.passed()
        await good(call)

    return act


def asking(model: str = "m") -> bytes:
    return request("POST", PATH, json.dumps(chat(model)).encode())


def content(response: Response) -> str:
    assert response.status == 200, response
    said: str = response.json()["choices"][0]["message"]["content"]
    return said


async def workers(gateway: Served, count: int = WORKERS) -> list[int]:
    """The pids of those that were started, in that order."""
    return [entry["pid"] for entry in await gateway.said("worker started", count)]


@contextmanager
def alone(pid: int, others: list[int]) -> Iterator[None]:
    """The others stand still: this one alone accepts connections."""
    still = [other for other in others if other != pid]
    for other in still:
        os.kill(other, signal.SIGSTOP)
    try:
        yield
    finally:
        for other in still:
            os.kill(other, signal.SIGCONT)


async def pinned(stack: AsyncExitStack, gateway: Served, pids: list[int]) -> list[Connection]:
    """A connection to each worker."""
    clients = []
    for pid in pids:
        with alone(pid, pids):
            client = await stack.enter_async_context(gateway.connect())
            assert (await client.ask("GET", "/healthz")).status == 200
        clients.append(client)
    return clients


async def test_all_serve_at_one_port(serve: Serve) -> None:
    gateway = await serve(ECHO, "--workers", str(WORKERS), ready=WORKERS)
    pids = await workers(gateway)
    assert len(set(pids)) == WORKERS
    async with AsyncExitStack() as stack:
        for client in await pinned(stack, gateway, pids):
            assert content(await client.post(PATH, chat())) == "Hello"
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()
    assert gateway.complaints == []


async def test_a_local_model_runs_once(serve: Serve, engines: Engines) -> None:
    gateway = await serve(engines.config(), "--workers", str(WORKERS), ready=WORKERS)
    pids = await workers(gateway)
    async with AsyncExitStack() as stack:
        clients = await pinned(stack, gateway, pids)
        for client in clients:
            await client.send(asking("polly"))
        for _ in clients:
            await say(await engines.prediction(), b"Hello")
        for client in clients:
            assert content(await client.response()) == "Hello"
    (engine,) = engines.started()
    assert engine in gateway.processes()
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()
    assert gateway.complaints == []


@pytest.mark.parametrize("whom", ["the supervisor", "everybody"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop_it_answers_what_is_in_flight(
    serve: Serve, engines: Engines, whom: str, number: signal.Signals
) -> None:
    """A terminal and some service managers tell all processes, after which the supervisor tells the workers again."""
    gate = Gate()
    async with upstream(held(gate)) as up, AsyncExitStack() as stack:
        gateway = await serve(both(engines, up.base_url), "--workers", str(WORKERS), ready=WORKERS)
        pids = await workers(gateway)
        asks_upstream = [c for _ in range(20) for c in await pinned_lightly(stack, gateway)]
        clients = await pinned(stack, gateway, pids)
        for client in asks_upstream:
            await client.send(asking())
        for client in clients:
            await client.send(asking("polly"))
        await up.call(len(asks_upstream) - 1)
        predictions = [await engines.prediction() for _ in clients]

        for pid in pids if whom == "everybody" else []:
            os.kill(pid, number)
        gateway.tell(number)
        await gateway.said("draining", WORKERS + 1)
        gate.open()
        for writer in predictions:
            await say(writer, b"Polly")
        for client in clients:
            assert content(await client.response()) == "Polly"
        for client in asks_upstream:
            assert content(await client.response()) == "Hello there"
    assert await gateway.ended() == 0
    await gateway.gone()
    assert gateway.complaints == []


def both(engines: Engines, base_url: str) -> dict[str, Any]:
    """Model `polly` is a local one, `m` the upstream's."""
    local, up = engines.config(), to_upstream(base_url)
    return {name: {**local[name], **up[name]} for name in ("providers", "models")}


async def pinned_lightly(stack: AsyncExitStack, gateway: Served) -> list[Connection]:
    """Connections to whichever workers take them."""
    return [await stack.enter_async_context(gateway.connect()) for _ in range(3)]


async def test_a_killed_worker_takes_only_its_own_connections_along(serve: Serve, engines: Engines) -> None:
    gate = Gate()
    async with upstream(held(gate)) as up, AsyncExitStack() as stack:
        gateway = await serve(both(engines, up.base_url), "--workers", str(WORKERS), ready=WORKERS)
        pids = await workers(gateway)
        killed, *kept = await pinned(stack, gateway, pids)
        for client in (killed, *kept):
            await client.send(asking())
        await up.call(WORKERS - 1)

        os.kill(pids[0], signal.SIGKILL)
        assert await killed.closed() == b""
        entry = (await gateway.said("a worker ended by itself"))[0]
        assert (entry["pid"], entry["code"]) == (pids[0], -signal.SIGKILL)
        gate.open()
        for client in kept:
            assert content(await client.response()) == "Hello there"

        await gateway.said("ready", WORKERS + 1)
        *_, new = await workers(gateway, WORKERS + 1)
        (client,) = await pinned(stack, gateway, [new])
        await client.send(asking("polly"))  # it reaches the supervisor's launcher, too
        await say(await engines.prediction(), b"Hello")
        assert content(await client.response()) == "Hello"
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()


async def test_without_a_supervisor_the_workers_drain_and_end(serve: Serve, engines: Engines) -> None:
    gate = Gate()
    async with upstream(held(gate)) as up, AsyncExitStack() as stack:
        gateway = await serve(both(engines, up.base_url), "--workers", str(WORKERS), ready=WORKERS)
        clients = await pinned(stack, gateway, await workers(gateway))
        await clients[0].send(asking("polly"))
        await say(await engines.prediction(), b"Hello")
        assert content(await clients[0].response()) == "Hello"
        (engine,) = engines.started()
        for client in clients:
            await client.send(asking())
        await up.call(WORKERS - 1)

        gateway.tell(signal.SIGKILL)
        assert await gateway.ended() == -signal.SIGKILL
        await gateway.said("draining", WORKERS)
        await end_of(engine)
        gate.open()
        for client in clients:
            assert content(await client.response()) == "Hello there"
    await gateway.gone()
    assert gateway.complaints == []


async def test_the_second_signal_ends_all_at_once(serve: Serve, engines: Engines) -> None:
    async with AsyncExitStack() as stack:
        gateway = await serve(engines.config(), "--workers", str(WORKERS), ready=WORKERS)
        clients = await pinned(stack, gateway, await workers(gateway))
        for client in clients:
            await client.send(asking("polly"))
        predictions = [await engines.prediction() for _ in clients]
        gateway.tell(signal.SIGTERM)
        await gateway.said("draining", WORKERS + 1)
        gateway.tell(signal.SIGINT)
        assert await gateway.ended() == -signal.SIGINT
        for client in clients:
            assert await client.closed() == b""
        await gateway.gone()
        for writer in predictions:
            writer.close()


async def test_a_worker_that_finds_no_catalog_waits_for_it_while_others_serve(serve: Serve, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("tenants: {acme: {}}")
    gateway = await serve({**ECHO, "catalog": {"file": str(catalog)}}, "--workers", "2", ready=2)
    catalog.write_text("tenants: [")
    await gateway.said("the catalog was not taken over", 2)
    os.kill((await workers(gateway, 2))[0], signal.SIGKILL)
    (entry,) = await gateway.said("the catalog can't be taken over, so this process does not serve yet")
    assert "it is neither YAML nor JSON" in entry["reason"]
    assert (await gateway.ask("GET", "/healthz")).status == 200
    catalog.write_text("tenants: {other: {}}")
    await gateway.said("ready", 3)
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()
    assert len(await gateway.said("the catalog can't be taken over, so this process does not serve yet")) == 1
    assert [line for line in gateway.lines if not line.startswith("{")] == []


async def test_told_to_stop_while_a_worker_waits_for_its_catalog(serve: Serve, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("tenants: {}")
    gateway = await serve({**ECHO, "catalog": {"file": str(catalog)}}, "--workers", "2", ready=2)
    catalog.write_text("")
    os.kill((await workers(gateway, 2))[0], signal.SIGKILL)
    await gateway.said("the catalog can't be taken over, so this process does not serve yet")
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()


async def test_where_no_worker_comes_to_serve_the_supervisor_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Else the system would accept connections that nobody answers."""
    real = subprocess.Popen

    def popen(words: list[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", "raise SystemExit(3)"], **kwargs)

    monkeypatch.setattr(subprocess, "Popen", popen)
    settings = Settings(server={"workers": 2}, **ECHO)  # type: ignore[arg-type]
    source = Source(tmp_path / "absent.yaml", tmp_path, settings, (None,))
    listener = listen(("127.0.0.1", 0), 16)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(supervisor.NobodyServes, match="the log says why"):
            await supervisor.supervise(settings, {"http": listener}, source)
    assert listener.fileno() == -1
    assert "".join(capfd.readouterr()).count("a worker ended by itself") >= 2


async def test_told_to_stop_while_the_workers_start(serve: Serve) -> None:
    gateway = await serve(ECHO, "--workers", str(WORKERS), ready=0)
    await gateway.said("worker started", WORKERS, 60)
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()


@pytest.mark.parametrize("settings", [b"", b"\0\0", (100).to_bytes(8, "big") + b"half"])
def test_a_worker_whose_supervisor_died_early_ends(settings: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        done = subprocess.run(
            [sys.executable, "-m", "llmg.boot.worker", "", f"http={fd}"],
            input=settings,
            pass_fds=(fd,),
            capture_output=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert done.stderr == b""


async def test_a_worker_that_can_not_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As when there is no memory for one more process at the moment."""
    started = asyncio.Event()
    refusals = [OSError(12, "Cannot allocate memory")]
    real = subprocess.Popen

    def popen(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        if refusals:
            raise refusals.pop()
        started.set()
        return real(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(supervisor, "_BACKOFF", (0.0, 0.0))
    settings = Settings(server={"workers": 1}, **ECHO)  # type: ignore[arg-type]
    source = Source(tmp_path / "absent.yaml", tmp_path, settings, (None,))
    supervising = asyncio.create_task(supervisor.supervise(settings, {"http": listen(("127.0.0.1", 0), 16)}, source))
    async with asyncio.timeout(PATIENCE):
        await started.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await supervising
    assert "Cannot allocate memory" in "".join(capsys.readouterr())

"""A client that leaves, or does not read: the upstream call ends, or waits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support import upstream as acts
from support.gateway import Gateway, chat, in_process, to_upstream
from support.http import connect, request
from support.upstream import Act, Call, Upstream, upstream

CHAT = "/v1/chat/completions"
PROMPTLY = 1.0  # seconds; it is milliseconds, on a machine that has nothing else to do


async def prompt(event: asyncio.Event) -> None:
    """Waits for what must happen at once."""
    async with asyncio.timeout(PROMPTLY):
        await event.wait()


@pytest.fixture(autouse=True)
async def quiet(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Nobody's leaving is an error: nothing is logged, and no task is left behind."""
    before = asyncio.all_tasks()
    yield
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


def asking(text: str = "Hello", **fields: Any) -> bytes:
    """A chat request in bytes."""
    return request("POST", CHAT, json.dumps(chat(text=text, **fields)).encode())


MOMENTS: dict[str, tuple[Act, bool]] = {
    "before the head of a whole answer": (acts.stall, False),
    "before the body of a whole answer": (acts.stall_after_head, False),
    "in the body of a whole answer": (acts.stall_midway, False),
    "before the head of a stream": (acts.stall, True),
    "before the first event": (acts.stall_after_head, True),
    "in the midst of a stream": (acts.stall_midway, True),
}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(("act", "stream"), MOMENTS.values(), ids=MOMENTS)
async def test_the_upstream_is_hung_up_on(act: Act, stream: bool, reset: bool) -> None:
    async with upstream(act, acts.good) as up, in_process(to_upstream(up.base_url)) as gateway:
        async with gateway.connect() as connection:
            await connection.send(asking(stream=stream))
            call = await up.call()
            assert (await gateway.chat()).status == 200  # by now the gateway has read what the first call gave
            if act is acts.stall_midway and stream:
                await connection.head()
                await connection.chunk()
            assert not call.gone.is_set()
            await connection.leave(reset=reset)
            await prompt(call.gone)
        assert (await gateway.chat(stream=stream)).status == 200


@pytest.mark.parametrize("size", [1 << 10, 100 << 10, 2 << 20])
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_however_large_the_request_was(size: int, stream: bool) -> None:
    """The server stops to read a connection while a large body waits to be taken."""
    async with (
        upstream(acts.stall) as up,
        in_process(to_upstream(up.base_url)) as gateway,
        gateway.connect() as connection,
    ):
        await connection.send(asking("x" * size, stream=stream))
        call = await up.call()
        await connection.leave()
        await prompt(call.gone)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_when_a_large_body_came_after_its_head(stream: bool) -> None:
    head, _, body = asking("x" * (100 << 10), stream=stream).partition(b"\r\n\r\n")
    async with (
        upstream(acts.good, acts.stall) as up,
        in_process(to_upstream(up.base_url)) as gateway,
        gateway.connect() as connection,
    ):
        await connection.send(head + b"\r\n\r\n")
        assert (await gateway.chat()).status == 200  # by now the gateway waits for the body
        await connection.send(body)
        call = await up.call(1)
        await connection.leave()
        await prompt(call.gone)


async def test_with_requests_waiting_behind() -> None:
    """The server stops to read a connection with a request in waiting: the next word to its client finds out."""
    heartbeat = {"http": {"heartbeat": "50ms"}}
    async with upstream(acts.stall) as up, in_process({**to_upstream(up.base_url), **heartbeat}) as gateway:
        async with gateway.connect() as connection:
            await connection.send(asking(stream=True) + asking("second"))
            call = await up.call()
            await connection.leave(reset=True)
            await prompt(call.gone)
        assert len(up.calls) == 1


async def test_in_the_midst_of_its_own_body() -> None:
    async with upstream(acts.good) as up, in_process(to_upstream(up.base_url)) as gateway:
        async with gateway.connect() as connection:
            await connection.send(asking()[:-10])
            await connection.leave()
        assert (await gateway.chat()).status == 200
        assert len(up.calls) == 1


async def test_many_at_once() -> None:
    async with upstream(acts.stall_midway) as up, in_process(to_upstream(up.base_url)) as gateway:

        async def come_and_go(number: int) -> None:
            async with gateway.connect() as connection:
                await connection.send(asking(stream=True))
                await connection.head()
                await connection.leave(reset=number % 2 == 0)

        await asyncio.gather(*map(come_and_go, range(50)))
        for call in up.calls:
            await prompt(call.gone)
        assert len(up.calls) == 50


# -- a client that does not read ------------------------------------------------------------------------------------


async def _until_it_stands_still(gateway: Gateway, up: Upstream, call: Call) -> int:
    """Waits until nothing more is written to the gateway; how many bytes were."""
    async with asyncio.timeout(20):
        await call.paused.wait()
        while True:
            before = call.written
            for _ in range(5):
                assert (await gateway.chat()).status == 200
            if call.written == before:
                return before


async def test_a_client_that_does_not_read_holds_its_upstream_back() -> None:
    async with (
        upstream(acts.endless, acts.good) as up,
        in_process(to_upstream(up.base_url)) as gateway,
        gateway.connect(receive_buffer=16 << 10) as connection,
    ):
        await connection.send(asking(stream=True))
        await connection.head()
        call = await up.call()
        written = await _until_it_stands_still(gateway, up, call)
        assert written < 24 << 20  # most of it in the kernel's buffers
        for _ in range(200):
            await connection.chunk()
        assert not call.gone.is_set()
        await connection.leave()
        await prompt(call.gone)


async def test_a_client_that_never_reads_is_let_go() -> None:
    async with (
        upstream(acts.endless) as up,
        in_process({**to_upstream(up.base_url), "http": {"write_timeout": "200ms"}}) as gateway,
        gateway.connect(receive_buffer=16 << 10) as connection,
    ):
        await connection.send(asking(stream=True))
        await connection.head()
        call = await up.call()
        async with asyncio.timeout(20):  # until the buffers are full, and then the limit
            await call.gone.wait()


async def test_a_client_that_does_not_read_gets_no_heartbeats() -> None:
    """They would pile up."""
    config = {"http": {"heartbeat": "20ms"}}
    async with (
        upstream(acts.endless, acts.good) as up,
        in_process({**to_upstream(up.base_url), **config}) as gateway,
        gateway.connect(receive_buffer=16 << 10) as connection,
    ):
        await connection.send(asking(stream=True))
        await connection.head()
        call = await up.call()
        await _until_it_stands_still(gateway, up, call)
        tasks = len(asyncio.all_tasks())
        await _heartbeats(5)
        assert len(asyncio.all_tasks()) <= tasks
        for _ in range(400):
            await connection.chunk()
        await connection.leave()
        await prompt(call.gone)


async def _heartbeats(count: int) -> None:
    """Waits for as long as that many take, elsewhere."""
    config = {"http": {"heartbeat": "20ms"}}
    async with (
        upstream(acts.stall) as up,
        in_process({**to_upstream(up.base_url), **config}) as gateway,
        gateway.connect() as connection,
    ):
        await connection.send(asking(stream=True))
        await connection.head()
        for _ in range(count):
            await connection.chunk()


# -- the gateway that leaves ----------------------------------------------------------------------------------------


async def test_when_the_gateway_stops_a_stream_that_outlasts_the_grace_ends_with_a_clear_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with upstream(acts.stall_midway) as up:
        async with in_process(to_upstream(up.base_url)) as gateway:
            stream = await _begin(gateway.address, asking(stream=True))
            unary = await _begin(gateway.address, asking())
            silent = await _begin(gateway.address, asking(stream=True))
            await up.call(2)
        async with stream as connection:
            response = await connection.response()
            assert response.status == 200
            assert json.loads(response.events[-1])["error"]["code"] == "shutting_down"
        async with unary as connection:
            response = await connection.response()
            assert response.status == 503
            assert response.error["code"] == "shutting_down"
        async with silent as connection:
            await connection.closed()
        for call in up.calls:
            await prompt(call.gone)


class _begin:
    """A connection on which something was sent; left by `async with`."""

    def __init__(self, address: tuple[str, int], data: bytes) -> None:
        self._data = data
        self._connecting = connect(address)

    def __await__(self) -> Any:
        return self._enter().__await__()

    async def _enter(self) -> _begin:
        self._connection = await self._connecting.__aenter__()
        await self._connection.send(self._data)
        return self

    async def __aenter__(self) -> Any:
        return self._connection

    async def __aexit__(self, *exc: Any) -> None:
        await self._connecting.__aexit__(*exc)

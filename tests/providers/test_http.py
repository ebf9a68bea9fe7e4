"""The HTTP client, over real sockets: what becomes of its connections."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llmg.core.errors import Failure, Kind
from llmg.providers.http import Exchange, Origin, Transport
from support.upstream import Act, Call, Upstream, upstream


class Client:
    """A transport and one origin."""

    def __init__(self, transport: Transport, origin: Origin) -> None:
        self._transport = transport
        self.origin = origin

    async def post(self, body: bytes = b"{}") -> Exchange:
        """A request, and the head of its answer."""
        head = self.origin.head("POST", "/x", {"X-A": "b"})
        async with asyncio.timeout(10):
            return await self._transport.send(self.origin, head, body, 5.0)

    async def read(self, body: bytes = b"{}") -> bytes:
        """A request, and the body of its answer."""
        exchange = await self.post(body)
        async with asyncio.timeout(10):
            data = await exchange.read(64 << 20)
        exchange.close(answered=True)
        return data


@asynccontextmanager
async def client(*script: Act, max_connections: int = 0) -> AsyncIterator[tuple[Client, Upstream]]:
    """A client and its upstream."""
    async with upstream(*script) as up:
        transport = Transport()
        try:
            yield Client(transport, Origin(up.base_url, max_connections)), up
        finally:
            await transport.close()


async def ok(call: Call) -> None:
    """A short answer."""
    await call.answer(200, b'"ok"')


def raw(data: bytes, *, close: bool = False) -> Act:
    """An answer byte for byte."""

    async def act(call: Call) -> None:
        await call.write(data)
        if close:
            call.hang_up()

    return act


async def test_what_is_sent() -> None:
    async with client(ok) as (made, up):
        assert await made.read(b'{"a": 1}') == b'"ok"'
        assert (up.last.method, up.last.path, up.last.body) == ("POST", "/v1/x", {"a": 1})
        assert up.last.headers == {
            "host": f"127.0.0.1:{up.address[1]}",
            "x-a": "b",
            "content-length": "8",
        }


async def test_one_connection_for_one_call_after_another() -> None:
    async with client(ok) as (made, up):
        for _ in range(5):
            await made.read()
        assert up.connections == 1


async def test_one_connection_each_for_calls_side_by_side() -> None:
    together = asyncio.Barrier(4)

    async def act(call: Call) -> None:
        await together.wait()
        await ok(call)

    async with client(act) as (made, up):
        for _ in range(2):
            await asyncio.gather(*(made.read() for _ in range(4)))
        assert up.connections == 4


async def test_no_more_connections_than_allowed() -> None:
    under_way = most = 0

    async def act(call: Call) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await call.head(200, content_length="4")
        under_way -= 1
        await call.write(b'"ok"')

    async with client(act, max_connections=2) as (made, up):
        assert await asyncio.gather(*(made.read() for _ in range(10))) == [b'"ok"'] * 10
        assert most <= 2
        assert up.connections <= 2


async def test_who_waits_for_a_connection_may_leave_and_one_that_failed_makes_room() -> None:
    async def never(call: Call) -> None:
        await call.until_gone()

    async def hang_up(call: Call) -> None:
        call.hang_up()

    async with client(never, hang_up, ok, max_connections=1) as (made, up):
        first = asyncio.create_task(made.post())
        await up.call()
        waiting = asyncio.create_task(made.post())
        last = asyncio.create_task(made.post())
        for task in (waiting, first):
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        with pytest.raises(Failure):
            await last
        assert await made.read() == b'"ok"'


BODY = json.dumps("x" * 100).encode()

FRAMINGS: dict[str, tuple[bytes, bytes]] = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY), BODY),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n", b"abc"),
    "nothing": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "go on first": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1", b"1"),
    "hints first": (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1",
        b"1",
    ),
}


@pytest.mark.parametrize(("data", "body"), FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "byte by byte"])
async def test_how_an_answer_may_be_framed(data: bytes, body: bytes, whole: bool) -> None:
    async def act(call: Call) -> None:
        for start in range(0, len(data), len(data) if whole else 1):
            await call.write(data[start : start + (len(data) if whole else 1)])
            await asyncio.sleep(0)

    async with client(act) as (made, up):
        assert await made.read() == body
        assert await made.read() == body
        assert up.connections == 1


async def test_an_answer_that_ends_with_its_connection() -> None:
    async with client(raw(b"HTTP/1.1 200 OK\r\n\r\nabc", close=True)) as (made, up):
        assert await made.read() == b"abc"
        assert await made.read() == b"abc"
        assert up.connections == 2


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"], ids=["it says so", "HTTP/1.0"]
)
async def test_a_connection_that_is_not_kept(head: bytes) -> None:
    async with client(raw(head + b"Content-Length: 1\r\n\r\n1", close=True)) as (made, up):
        assert await made.read() == b"1"
        assert await made.read() == b"1"
        assert up.connections == 2


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"hello\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 abc\r\n\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nContent-Length: one\r\n\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20), Kind.UPSTREAM_PROTOCOL),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Kind.UPSTREAM_PROTOCOL),
        (b"HTTP/1.1 2", Kind.UPSTREAM_TRUNCATED),
        (b"HTTP/1.1 200 OK\r\nX-Half: ", Kind.UPSTREAM_TRUNCATED),
        (b"", Kind.UPSTREAM_UNAVAILABLE),
    ],
)
async def test_what_is_no_answer(data: bytes, kind: Kind) -> None:
    async with client(raw(data, close=True), ok) as (made, _):
        with pytest.raises(Failure) as caught:
            await made.read()
        assert caught.value.kind is kind
        assert await made.read() == b'"ok"'


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
    ids=["length", "chunks"],
)
async def test_an_answer_that_is_cut(data: bytes) -> None:
    async with client(raw(data, close=True), ok) as (made, _):
        exchange = await made.post()
        assert await exchange.read_some() == b"abc"
        with pytest.raises(Failure) as caught:
            await exchange.read_some()
        assert caught.value.kind is Kind.UPSTREAM_TRUNCATED
        exchange.close()
        assert await made.read() == b'"ok"'


async def test_an_answer_without_a_length_that_is_reset_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        asking = asyncio.create_task(Client(Transport(), Origin("http://{}:{}".format(*listener.getsockname()))).post())
        taken, _ = await asyncio.get_running_loop().sock_accept(listener)
        taken.setblocking(False)
        with taken:
            await asyncio.get_running_loop().sock_recv(taken, 1000)
            taken.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
            exchange = await asking
            assert await exchange.read_some() == b"abc"
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
        with pytest.raises(Failure) as caught:
            await exchange.read_some()
        assert caught.value.kind is Kind.UPSTREAM_TRUNCATED
        exchange.close()


@pytest.mark.parametrize("size", [1, 100 << 10, 300_000])
async def test_a_whole_answer_that_is_left_unread(size: int) -> None:
    async with client(raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, b"x" * size)), ok) as (made, up):
        exchange = await made.post()
        async with asyncio.timeout(10):
            while not exchange._connection.complete:
                await asyncio.sleep(0)
        exchange.close()
        assert await made.read() == b'"ok"'
        assert up.connections == 1


async def test_the_half_of_an_answer_that_is_left_unread() -> None:
    async with client(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 400_000), ok) as (made, up):
        exchange = await made.post()
        exchange.close()
        async with asyncio.timeout(1):
            while up.open:
                await asyncio.sleep(0)
        assert await made.read() == b'"ok"'


async def test_the_rest_of_a_large_answer_that_was_too_large() -> None:
    async with client(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n" + b"x" * 600_000), ok) as (made, _):
        exchange = await made.post()
        with pytest.raises(Failure) as caught:
            await exchange.read(1000)
        assert caught.value.kind is Kind.UPSTREAM_PROTOCOL
        exchange.close()
        assert await made.read() == b'"ok"'
        assert await made.read() == b'"ok"'


async def test_an_upstream_that_talks_when_nobody_has_asked_is_left() -> None:
    """As servers do that say 408 before they close."""

    async def act(call: Call) -> None:
        await ok(call)
        await call.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    async with client(act, ok) as (made, up):
        assert await made.read() == b'"ok"'
        async with asyncio.timeout(10):
            await up.last.answered.wait()
            while up.open:
                await asyncio.sleep(0)
        assert await made.read() == b'"ok"'
        assert up.connections == 2


async def test_a_slow_reader_holds_the_upstream_back() -> None:
    async def endless(call: Call) -> None:
        await call.open_stream()
        while True:
            await call.piece(b"x" * 65536)

    async with client(endless) as (made, up):
        exchange = await made.post()
        async with asyncio.timeout(10):
            await up.last.paused.wait()
        before = up.last.written
        for _ in range(100):
            assert await exchange.read_some()
        exchange.close()
        async with asyncio.timeout(2):
            await up.last.gone.wait()
        assert before < 24 << 20


UNREACHABLE: dict[str, tuple[str, Kind]] = {
    "no such host": ("http://nowhere.invalid/v1", Kind.UPSTREAM_UNAVAILABLE),
    "no name of a host": ("http://a..b/v1", Kind.UPSTREAM_UNAVAILABLE),
    "a name that is too long": (f"http://{'a' * 70}.invalid/v1", Kind.UPSTREAM_UNAVAILABLE),
    "nobody listens": ("http://127.0.0.1:1/v1", Kind.UPSTREAM_UNAVAILABLE),
}


@pytest.mark.parametrize(("url", "kind"), UNREACHABLE.values(), ids=UNREACHABLE)
async def test_an_upstream_that_can_not_be_reached(url: str, kind: Kind) -> None:
    with pytest.raises(Failure) as caught:
        await Client(Transport(), Origin(url)).post()
    assert caught.value.kind is kind


async def test_an_upstream_without_tls() -> None:
    class Plain(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            transport.close()

    server = await asyncio.get_running_loop().create_server(Plain, "127.0.0.1", 0)
    with pytest.raises(Failure) as caught:
        await Client(Transport(), Origin("https://{}:{}".format(*server.sockets[0].getsockname()))).post()
    assert caught.value.kind is Kind.UPSTREAM_UNAVAILABLE
    server.close()


@pytest.mark.parametrize(
    ("url", "host", "port", "authority"),
    [
        ("http://localhost:8000/v1/", "localhost", 8000, "localhost:8000"),
        ("https://api.example.com/v1", "api.example.com", 443, "api.example.com"),
        ("http://[::1]:9/v1", "::1", 9, "[::1]:9"),
        ("http://10.0.0.1", "10.0.0.1", 80, "10.0.0.1"),
    ],
)
def test_where_a_base_url_leads(url: str, host: str, port: int, authority: str) -> None:
    origin = Origin(url)
    assert (origin.host, origin.port) == (host, port)
    head: Any = origin.head("POST", "/chat", {})
    assert f"\r\nHost: {authority}\r\n".encode() in head
    assert head.startswith(b"POST /v1/chat " if "/v1" in url else b"POST /chat ")

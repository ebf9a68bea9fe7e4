"""HTTP/1.1 by hand, over a real socket: what is sent is what the test says, byte for byte."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from msgspec import Struct

PATIENCE = 20.0  # seconds: after these a test has failed
Headers = Mapping[str, str]


class Response(Struct, frozen=True):
    """A whole answer. The names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape, which is asserted."""
        assert self.headers["content-type"] == "application/json", self
        body = self.json()
        assert set(body) == {"error"}, body
        assert set(body["error"]) == {"message", "type", "param", "code"}, body
        assert body["error"]["message"], body
        error: dict[str, Any] = body["error"]
        return error

    @property
    def events(self) -> list[str]:
        """The data of the server-sent events, and their comments."""
        return cut_events(self.body)


def cut_events(body: bytes) -> list[str]:
    """Server-sent events of one line each: their data; comments as they are."""
    return [block.removeprefix("data: ") for block in body.decode().split("\n\n") if block]


def request(method: str, path: str, body: bytes = b"", headers: Headers | None = None) -> bytes:
    """A request in bytes. A `Content-Length` is added where there is a body and none was given."""
    given = {"Host": "localhost", **(headers or {})}
    if body and not {"content-length", "transfer-encoding"} & {name.lower() for name in given}:
        given["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(pieces: Iterable[bytes]) -> bytes:
    """A body in chunks (RFC 9112, 7.1)."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Connection:
    """A client's connection. All that waits, waits for `PATIENCE` at most."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Some bytes."""
        self._writer.write(data)
        async with asyncio.timeout(PATIENCE):
            await self._writer.drain()

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Headers | None = None) -> Response:
        """A request and its answer."""
        await self.write(method, path, body, headers)
        return await self.response(method)

    async def write(self, method: str, path: str, body: bytes = b"", headers: Headers | None = None) -> None:
        """A request."""
        await self.send(request(method, path, body, headers))

    async def exactly(self, size: int) -> bytes:
        """So many bytes."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(size)

    async def post(self, path: str, body: Any, headers: Headers | None = None) -> Response:
        """A request with a body in JSON."""
        return await self.ask("POST", path, json.dumps(body).encode(), headers)

    async def head(self) -> tuple[int, dict[str, str]]:
        """An answer's status and headers."""
        async with asyncio.timeout(PATIENCE):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        pairs = [line.partition(":") for line in lines]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        assert len(headers) == len(pairs), f"a header came twice: {raw!r}"
        return int(first.split()[1]), headers

    async def response(self, method: str = "GET") -> Response:
        """A whole answer."""
        status, headers = await self.head()
        if method == "HEAD":
            return Response(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Response(status, headers, b"".join([piece async for piece in self.chunks()]))
        return Response(status, headers, await self.exactly(int(headers["content-length"])))

    async def chunk(self) -> bytes:
        """The next chunk of a body; empty at its end. Raises IncompleteReadError where the body is cut."""
        async with asyncio.timeout(PATIENCE):
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            return (await self._reader.readexactly(size + 2))[:-2]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks to the body's end."""
        while piece := await self.chunk():
            yield piece

    async def closed(self) -> bytes:
        """Waits until the other side has closed; what it sent until then."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read()

    async def leave(self, *, reset: bool = False) -> None:
        """Closes, in the middle of whatever is under way; `reset`: without a farewell."""
        if reset:
            self._writer.transport.abort()
        self._writer.close()
        with suppress(ConnectionError):  # the other side was faster
            await self._writer.wait_closed()


@asynccontextmanager
async def connect(address: tuple[str, int], *, receive_buffer: int | None = None) -> AsyncIterator[Connection]:
    """A connection to `address`. With a small `receive_buffer` (bytes) the server soon feels that we don't read."""
    client = socket.socket()
    client.setblocking(False)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(client, address)
    except OSError:
        client.close()
        raise
    limit = 1 << 20 if receive_buffer is None else receive_buffer
    connection = Connection(*await asyncio.open_connection(sock=client, limit=limit))
    try:
        yield connection
    finally:
        await connection.leave()

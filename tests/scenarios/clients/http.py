"""What the doors of HTTP share: a server with all of them, and an answer that is read from a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct

from scenarios.asking import Asked, Behind, Client, Door, Look, Reader, Reading, Served, Shape, Told, Way, by_headers
from support.doors import HttpDoors, rest_door
from support.http import Connection, Response

SMALL = 4096  # bytes


class Posted(Struct, frozen=True, kw_only=True):
    """How one door is asked by a POST: where, with which body and headers, and what its answer tells.

    A timeout goes into the body, or becomes a header by `deadline`.
    `way`: what it tells of the request's way. `content`: does this piece of the answer hold some content?
    """

    path: str
    body: Callable[[Asked, float | None], Any]
    told: Callable[[Response], Told]
    headers: Mapping[str, str] = {}
    deadline: Callable[[float], Mapping[str, str]] = lambda seconds: {}
    content: Callable[[bytes], bool] | None = None
    way: Callable[[Response], Way] = lambda response: by_headers(response.headers)


class HttpReading(Reading):
    """An answer by HTTP."""

    def __init__(self, connection: Connection, posted: Posted) -> None:
        self._connection = connection
        self._posted = posted
        self._head: tuple[int, dict[str, str]] | None = None
        self._read = b""

    async def some(self) -> None:
        """See Reading."""
        if self._posted.content is None:
            return
        await self._started()
        while not self._posted.content(self._read):
            self._read += await self._connection.chunk()

    async def rest(self) -> Told:
        """See Reading."""
        status, headers = await self._started()
        if headers.get("transfer-encoding") == "chunked":
            body = self._read + b"".join([piece async for piece in self._connection.chunks()])
        else:
            body = await self._connection.exactly(int(headers["content-length"]))
        response = Response(status, headers, body)
        self.way = self._posted.way(response)
        return self._posted.told(response)

    async def _started(self) -> tuple[int, dict[str, str]]:
        if self._head is None:
            self._head = await self._connection.head()
        return self._head


class HttpClient(Client):
    """Each request has a connection of its own."""

    def __init__(self, doors: HttpDoors, posted: Posted, key: str | None, session: str | None, slow: bool) -> None:
        self._doors = doors
        self._posted = posted
        self._slow = slow
        self._headers = {"Content-Type": "application/json", **posted.headers}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        if session is not None:
            self._headers["X-Llmg-Session"] = session

    @asynccontextmanager
    async def begin(self, asked: Asked, *, timeout: float | None = None) -> AsyncIterator[Reading]:
        """See Client."""
        headers = {**self._headers, **({} if timeout is None else self._posted.deadline(timeout))}
        async with self._doors.connect(receive_buffer=SMALL if self._slow else None) as connection:
            body = msgspec.json.encode(self._posted.body(asked, timeout))
            await connection.write("POST", self._posted.path, body, headers)
            yield HttpReading(connection, self._posted)


class HttpServed(Served):
    """The server, and one of its doors."""

    def __init__(self, doors: HttpDoors, posted: Posted) -> None:
        self._doors = doors
        self._posted = posted

    @asynccontextmanager
    async def client(
        self, *, key: str | None = None, session: str | None = None, slow: bool = False
    ) -> AsyncIterator[Client]:
        """See Served."""
        yield HttpClient(self._doors, self._posted, key, session, slow)

    async def drain(self, grace: float) -> None:
        """See Served."""
        await self._doors.drain(grace)


def door(posted: Posted, *, streams: bool = False, raw: Shape | None = None) -> Door:
    """A row for a door that is asked so."""

    @asynccontextmanager
    async def serve(behind: Behind) -> AsyncIterator[Served]:
        async with http_doors(behind) as doors:
            yield HttpServed(doors, posted)

    return Door(serve=serve, streams=streams, raw=raw)


def http_doors(behind: Behind) -> AbstractAsyncContextManager[HttpDoors]:
    """All doors of HTTP."""
    return rest_door(behind.pipeline, let_in=behind.let_in, models=behind.models, admin=behind.admin)


class HttpReader:
    """Somebody with a key."""

    def __init__(self, doors: HttpDoors, key: str) -> None:
        self._doors = doors
        self._headers = {"Authorization": f"Bearer {key}"}

    async def get(self, path: str) -> Response:
        """What is there."""
        return await self._doors.ask("GET", path, headers=self._headers)

    async def post(self, path: str, body: Any) -> Response:
        """What a body in JSON is answered with."""
        return await self._doors.post(path, body, {**self._headers, "Content-Type": "application/json"})


def look(reader: Callable[[HttpDoors, str], Reader], *, missing: Told, administers: bool = False) -> Look:
    """A row for whoever looks around so."""

    @asynccontextmanager
    async def at(behind: Behind, key: str) -> AsyncIterator[Reader]:
        async with http_doors(behind) as doors:
            yield reader(doors, key)

    return Look(at=at, missing=missing, administers=administers)

"""What the doors of HTTP share: a server with all of them, and an answer that is read from a connection."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from msgspec import Struct

from llmg.ports import Provider
from scenarios.asking import Asked, Client, Door, Reading, Served, Told, Way, by_headers
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
            await connection.write(
                "POST", self._posted.path, json.dumps(self._posted.body(asked, timeout)).encode(), headers
            )
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


def door(posted: Posted, *, streams: bool) -> Door:
    """A row for a door that is asked so."""

    @asynccontextmanager
    async def serve(provider: Provider, keys: Mapping[str, str]) -> AsyncIterator[Served]:
        async with rest_door(provider, keys=keys) as doors:
            yield HttpServed(doors, posted)

    made: Callable[[Provider, Mapping[str, str]], AbstractAsyncContextManager[Served]] = serve
    return Door(serve=made, streams=streams)

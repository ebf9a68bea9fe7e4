"""WebSockets on our own server: an application behind it, the door of `llmg.v1`, and a client of that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct
from starlette.types import ASGIApp
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from llmg.boot.serve import listen
from llmg.doors.http.server import HttpServer
from llmg.doors.rest.app import Routes, make_door
from llmg.doors.websocket.app import make_websocket
from llmg.ports import Provider
from llmg.services.admission import Admission
from llmg.wire import websocket as wire
from support.doors import admission
from support.gateway import Gateway
from support.http import PATIENCE

PATH = "/v1/ws"
_frame = msgspec.json.Decoder(wire.ServerFrame).decode


class Draining:
    """Says to a server whether it drains."""

    def __init__(self) -> None:
        self.on = False

    def __call__(self) -> bool:
        return self.on


class Served(Gateway):
    """An application on a server of ours."""

    def __init__(self, address: tuple[str, int], server: HttpServer, draining: Draining) -> None:
        super().__init__(address)
        self.server = server
        self._draining = draining

    def url(self, path: str = PATH) -> str:
        """For WebSocket clients."""
        return "ws://{}:{}{}".format(*self.address, path)

    async def drain(self, grace: float) -> int:
        """As the gateway does when it is told to stop."""
        self._draining.on = True
        return await self.server.drain(grace)


@asynccontextmanager
async def serving(app: ASGIApp, **options: Any) -> AsyncIterator[Served]:
    """This application, on our own server with these options."""
    draining = Draining()
    defaults: dict[str, Any] = {
        "max_headers": 1 << 16,
        "header_timeout": 10.0,
        "body_timeout": 10.0,
        "keep_alive": 10.0,
        "backlog": 16,
        "access_log": False,
    }
    server = HttpServer(app, **{**defaults, **options}, draining=draining)
    listener = listen(("127.0.0.1", 0), 16)
    await server.start(listener)
    served = Served(listener.getsockname(), server, draining)
    try:
        yield served
    finally:
        await served.drain(0)


@asynccontextmanager
async def websocket_door(
    pipeline: Provider,
    *,
    keys: Mapping[str, str] = {},
    let_in: Admission | None = None,
    server: Mapping[str, Any] = {},
    **options: Any,
) -> AsyncIterator[Served]:
    """The door before this pipeline; `options` are its own, `server` the server's. `let_in`: see `rest_door`."""
    door = make_websocket(pipeline=pipeline, admission=let_in or admission(keys), **options)
    async with serving(make_door(Routes({PATH: door}, sockets={PATH: door})), **server) as served:
        yield served


class Answer(Struct):
    """All that was said of one request."""

    events: list[wire.AnyEvent]
    end: wire.Done | wire.Error

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(e.text for e in self.events if isinstance(e, wire.Delta) and isinstance(e.text, str))

    @property
    def problem(self) -> wire.Problem:
        """Why it failed."""
        assert isinstance(self.end, wire.Error), self.end
        return self.end.error


class Client:
    """One connection."""

    def __init__(self, wire: ClientConnection) -> None:
        self.wire = wire

    async def send(self, **frame: Any) -> None:
        """A frame."""
        await self.wire.send(json.dumps(frame))

    async def start(self, id: str = "1", operation: str | None = None, **request: Any) -> None:
        """A request; a chat, where nothing else is said."""
        asked = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **request}
        extra = {} if operation is None else {"operation": operation}
        await self.send(type="start", id=id, request=asked, **extra)

    async def receive(self) -> wire.ServerFrame:
        """The next frame. It is held against the frames that there are."""
        async with asyncio.timeout(PATIENCE):
            frame: wire.ServerFrame = _frame(await self.wire.recv(decode=False))
        return frame

    async def problem(self) -> wire.Error:
        """The next frame, which is an error."""
        frame = await self.receive()
        assert isinstance(frame, wire.Error), frame
        return frame

    async def answers(self, count: int) -> dict[str, Answer]:
        """What is said until so many requests have ended, by their ids."""
        events: dict[str, list[wire.AnyEvent]] = {}
        ended: dict[str, Answer] = {}
        while len(ended) < count:
            frame = await self.receive()
            if isinstance(frame, wire.Events):
                assert frame.id not in ended
                events.setdefault(frame.id, []).extend(frame.events)
            elif isinstance(frame, wire.Done | wire.Error) and isinstance(frame.id, str):
                assert frame.id not in ended
                ended[frame.id] = Answer(events.get(frame.id, []), frame)
            else:
                raise AssertionError(frame)
        return ended

    async def answer(self, id: str = "1") -> Answer:
        """What is said of the only request."""
        return (await self.answers(1))[id]

    async def alive(self) -> None:
        """Asserts that the socket still works, and that nothing else was said."""
        await self.send(type="ping")
        assert await self.receive() == wire.Pong()

    async def closed(self) -> int:
        """How the server closed the connection."""
        async with asyncio.timeout(PATIENCE):
            await self.wire.wait_closed()
        assert self.wire.close_code is not None
        return self.wire.close_code


@asynccontextmanager
async def client(served: Served, path: str = PATH, **options: Any) -> AsyncIterator[Client]:
    """A connection, which has not yet said anything."""
    given = {"subprotocols": [Subprotocol(wire.SUBPROTOCOL)], "compression": None, **options}
    async with connect(served.url(path), **given) as connection:
        yield Client(connection)

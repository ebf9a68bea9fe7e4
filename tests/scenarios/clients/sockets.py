"""WebSockets: llmg.v1, and GraphQL's two protocols."""

from __future__ import annotations

import asyncio
import base64
import socket
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final

import msgspec
from msgspec import UNSET, Raw
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from llmg.core import events as core
from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.core.events import check
from llmg.core.usage import Usage
from llmg.wire import websocket as wire
from llmg.wire.openai.embeddings import floats
from scenarios.asking import Asked, Behind, Client, Door, Reading, Served, Shape, Told, Way, by_facts, failed, told
from scenarios.clients.graphql import VECTORS, operation, refused, streamed, vectors, way
from scenarios.clients.http import SMALL, http_doors
from support import graphql
from support.doors import HttpDoors
from support.http import PATIENCE

ID = "1"
# Bytes of what has come and is not read. By itself the system gives megabytes, and each answer to a ping stands behind
# them: a loaded machine reads those for longer than its client waits for the answer.
ROOM = 256 << 10

CLOSES: Final[dict[int, Kind]] = {
    wire.Close.NOT_JSON: Kind.INVALID_REQUEST,
    wire.Close.NOT_UTF8: Kind.INVALID_REQUEST,
    wire.Close.PROTOCOL_ERROR: Kind.INVALID_REQUEST,
    wire.Close.TOO_LARGE: Kind.REQUEST_TOO_LARGE,
    4403: Kind.UNAUTHENTICATED,  # in GraphQL's protocols
}
"""What is told of a message that has no id to answer to: the connection closes, with one of these."""


def _closed(how: ConnectionClosed) -> Told:
    if how.rcvd is None:  # without a word
        raise how
    return failed(CLOSES[how.rcvd.code], None)


class SocketReading(Reading):
    """An answer by WebSocket, of the only request of its connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._frames: list[bytes] = []

    async def some(self) -> None:
        """See Reading."""
        while not any(b"elta" in frame for frame in self._frames):
            self._frames.append(await self._receive())

    async def rest(self) -> Told:
        """See Reading."""
        while (told := self.told(self._frames)) is None:
            try:
                self._frames.append(await self._receive())
            except ConnectionClosed as closed:
                return _closed(closed)
        return told

    async def ping(self) -> int:
        """Asks whether the server is there, and reads until it has said so: how many bytes stood before that."""
        answered, stood = asyncio.ensure_future(await self._connection.ping()), 0
        while not answered.done():
            self._frames.append(await self._receive())
            stood += len(self._frames[-1])
        return stood

    async def _receive(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self._connection.recv(decode=False)

    @abstractmethod
    def told(self, frames: list[bytes]) -> Told | None:
        """What these tell, if they have come to an end."""


class Own(SocketReading):
    """`llmg.v1`."""

    def told(self, frames: list[bytes]) -> Told | None:
        """See SocketReading."""
        last = _frame(frames[-1]) if frames else None
        self.way = by_facts(msgspec.json.decode(frames[-1])) if frames else Way()
        if isinstance(last, wire.Error):
            return failed(last.error.code, last.error.param or None, last.error.retry_after or None)
        if not isinstance(last, wire.Done):
            return None
        given = [_event(event) for frame in frames[:-1] for event in _events(frame)]
        check(given)
        return told(assemble(given))


_frame: Any = msgspec.json.Decoder(wire.ServerFrame).decode


def _events(frame: bytes) -> list[wire.AnyEvent]:
    decoded = _frame(frame)
    assert isinstance(decoded, wire.Events)
    return decoded.events


def _event(given: Any) -> core.Event:
    decoded: core.Event = _DECODE[type(given)](given)
    return decoded


def _logprob(given: wire.Logprob) -> core.TokenLogprob:
    own = None if given.bytes is UNSET else given.bytes
    return core.TokenLogprob(given.token, given.logprob, own, tuple(_logprob(one) for one in given.top or ()))


def _delta(given: wire.Delta) -> core.Delta:
    logprobs = UNSET if given.logprobs is UNSET else tuple(_logprob(one) for one in given.logprobs)
    return core.Delta(given.choice, given.part, given.data or given.text or "", logprobs)


def _usage(given: wire.Usage) -> Usage:
    counts = {name: getattr(given, name) for name in given.__struct_fields__ if name not in ("estimated", "final")}
    return Usage(**counts, source="estimated" if given.estimated else "upstream")


_DECODE: dict[type, Any] = {
    wire.Started: lambda g: core.Started(g.id, g.created, g.model, g.system_fingerprint, g.service_tier),
    wire.Opened: lambda g: core.Opened(g.choice, g.part, g.kind, g.id, g.name),
    wire.Delta: _delta,
    wire.Annotated: lambda g: core.Annotated(g.choice, g.part, g.annotation),
    wire.Closed: lambda g: core.Closed(g.choice, g.part),
    wire.Finished: lambda g: core.Finished(g.choice, g.reason, g.native_reason),
    wire.Usage: _usage,
    wire.Notice: lambda g: core.Notice(g.kind, g.data),
    wire.Result: lambda g: core.Result(core.Embeddings(tuple(_embedding(one) for one in g.embeddings))),
}


def _embedding(given: wire.Embedding) -> core.Embedding:
    if given.packed is not UNSET:
        assert given.values is UNSET
        return core.Embedding(given.index, tuple(floats(base64.b64decode(given.packed))))
    assert given.values is not UNSET
    return core.Embedding(given.index, tuple(given.values))


class ByGraphQL(SocketReading):
    """An operation, in either protocol."""

    results: Callable[[Iterator[dict[str, Any]]], Told] = staticmethod(streamed)

    def told(self, frames: list[bytes]) -> Told | None:
        """See SocketReading."""
        last = msgspec.json.decode(frames[-1]) if frames else {}
        if last.get("type") == "error":
            errors = last["payload"]
            return self.results(iter([{"errors": errors if isinstance(errors, list) else [errors]}]))
        if last.get("type") != "complete":
            return None
        items = [msgspec.json.decode(frame) for frame in frames[:-1]]
        payloads = [item["payload"] for item in items if item["type"] in ("next", "data")]
        self.way = way(iter(payloads))
        return self.results(iter(payloads))


class VectorsByGraphQL(ByGraphQL):
    """A mutation."""

    results = staticmethod(lambda results: vectors(next(results)))


class Speaker(Client):
    """Each request has a connection of its own."""

    path: ClassVar[str]
    protocol: ClassVar[str]
    reading: ClassVar[type[SocketReading]]

    def __init__(self, doors: HttpDoors, key: str | None, session: str | None, slow: bool) -> None:
        self._url = "ws://{}:{}{}".format(*doors.address, self.path)
        self._address = doors.address
        given = {"Authorization": None if key is None else f"Bearer {key}", "X-Llmg-Session": session}
        self._headers = {name: value for name, value in given.items() if value is not None}
        self._slow = slow

    @asynccontextmanager
    async def begin(self, asked: Asked, *, timeout: float | None = None) -> AsyncIterator[Reading]:
        """See Client."""
        try:
            connection = await self._connect()
        except InvalidStatus as status:
            yield Refused(self.refused(msgspec.json.decode(status.response.body or b"")))
            return
        async with connection:
            if (refusal := await self.greet(connection)) is None:
                await connection.send(msgspec.json.encode(self.start(asked, timeout)), text=True)
                yield self.reading(connection)
            else:
                yield Refused(refusal)
            connection.transport.abort()

    def refused(self, body: Any) -> Told:
        """What the answer to a handshake tells that is refused."""
        return failed(Kind(body["error"]["code"]), None)

    async def _connect(self) -> ClientConnection:
        own = socket.socket()
        own.setblocking(False)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL if self._slow else ROOM)
        await asyncio.get_running_loop().sock_connect(own, self._address)
        return await connect(
            self._url,
            sock=own,
            subprotocols=[Subprotocol(self.protocol)],
            compression=None,
            additional_headers=self._headers,
            max_size=None,
            max_queue=1 if self._slow else 16,
        )

    @abstractmethod
    async def greet(self, connection: ClientConnection) -> Told | None:
        """What comes first. What the server has against it, if it closes there."""

    @abstractmethod
    def start(self, asked: Asked, timeout: float | None) -> dict[str, Any]:
        """The frame that asks."""


class Refused(Reading):
    """A connection that was not to be."""

    def __init__(self, told: Told) -> None:
        self._told = told

    async def some(self) -> None:
        """See Reading."""
        raise AssertionError(self._told)

    async def rest(self) -> Told:
        """See Reading."""
        return self._told


class SpeaksOwn(Speaker):
    """`llmg.v1`, which without a key in a header has to greet."""

    path, protocol, reading = "/v1/ws", wire.SUBPROTOCOL, Own
    operation: wire.Operation = "chat.completions"
    encoding: ClassVar[dict[str, str]] = {}

    async def greet(self, connection: ClientConnection) -> Told | None:
        """See Speaker."""
        await connection.send('{"type":"init"}')
        frame = _frame(await connection.recv(decode=False))
        return failed(frame.error.code, None) if isinstance(frame, wire.Error) else None

    def start(self, asked: Asked, timeout: float | None) -> dict[str, Any]:
        """See Speaker."""
        own = {} if timeout is None else {"timeout": timeout}
        request = asked.openai if isinstance(asked.openai, Raw) else {**asked.openai, **self.encoding}
        return {"type": "start", "id": ID, "operation": self.operation, "request": request, **own}


class EmbedsOwn(SpeaksOwn):
    """A request for vectors."""

    operation = "embeddings"


class EmbedsPacked(EmbedsOwn):
    """In base64."""

    encoding: ClassVar[dict[str, str]] = {"encoding_format": "base64"}


class SpeaksGraphQL(Speaker):
    """`graphql-transport-ws`."""

    path, protocol, reading = "/graphql", "graphql-transport-ws", ByGraphQL
    word = "subscribe"
    document = graphql.STREAM

    def refused(self, body: Any) -> Told:
        """See Speaker."""
        found = refused(body)
        assert found is not None, body
        return found

    async def greet(self, connection: ClientConnection) -> Told | None:
        """See Speaker."""
        await connection.send('{"type":"connection_init"}')
        try:
            answer = msgspec.json.decode(await connection.recv(decode=False))
        except ConnectionClosed as closed:
            return _closed(closed)
        if answer["type"] == "connection_error":
            return failed(Kind[answer["payload"]["extensions"]["code"]], None)
        assert answer["type"] == "connection_ack"
        return None

    def start(self, asked: Asked, timeout: float | None) -> dict[str, Any]:
        """See Speaker."""
        return {"type": self.word, "id": ID, "payload": operation(self.document, asked, timeout)}


class SpeaksLegacy(SpeaksGraphQL):
    """`graphql-ws`, the protocol of subscriptions-transport-ws."""

    protocol = "graphql-ws"
    word = "start"


class EmbedsGraphQL(SpeaksGraphQL):
    """A mutation, which is an operation like others there."""

    reading = VectorsByGraphQL
    document = VECTORS


class EmbedsLegacy(SpeaksLegacy):
    """A mutation."""

    reading = VectorsByGraphQL
    document = VECTORS


class SocketServed(Served):
    """The server, and those who come to it by WebSocket."""

    def __init__(self, doors: HttpDoors, speaker: type[Speaker]) -> None:
        self._doors = doors
        self._speaker = speaker

    @asynccontextmanager
    async def client(
        self, *, key: str | None = None, session: str | None = None, slow: bool = False
    ) -> AsyncIterator[Client]:
        """See Served."""
        yield self._speaker(self._doors, key, session, slow)

    async def drain(self, grace: float) -> None:
        """See Served."""
        await self._doors.drain(grace)


def _door(speaker: type[Speaker], *, streams: bool = False, raw: Shape | None = None) -> Door:
    @asynccontextmanager
    async def serve(behind: Behind) -> AsyncIterator[Served]:
        async with http_doors(behind) as doors:
            yield SocketServed(doors, speaker)

    return Door(serve=serve, streams=streams, raw=raw)


DOORS = {
    "WebSocket": _door(SpeaksOwn, streams=True, raw="websocket"),
    "GraphQL transport-ws": _door(SpeaksGraphQL, streams=True, raw="graphql"),
    "GraphQL ws (legacy)": _door(SpeaksLegacy, streams=True, raw="graphql"),
}
EMBEDDERS = {
    "WebSocket": _door(EmbedsOwn, raw="websocket"),
    "WebSocket base64": _door(EmbedsPacked),
    "GraphQL transport-ws": _door(EmbedsGraphQL, raw="graphql"),
    "GraphQL ws (legacy)": _door(EmbedsLegacy, raw="graphql"),
}

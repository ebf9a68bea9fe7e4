"""Our Python client, over another gRPC stack than the server's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeAlias

from llmg.client import Client as PythonClient
from llmg.client import LlmgError, types
from llmg.client.way import Way as PythonWay
from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1.embeddings_pb2 import CreateEmbeddingsResponse
from scenarios.asking import Asked, Behind, Client, Door, Look, Reader, Reading, Served, Told, Way, failed, told
from scenarios.clients.grpc import served, vectors
from support import gatewayapi
from support.doors import GrpcDoor
from support.http import PATIENCE

Asking: TypeAlias = Literal["whole", "stream", "vectors"]


def _told(raw: types.ChatCompletion | types.CreateEmbeddingsResponse) -> Told:
    if isinstance(raw, types.CreateEmbeddingsResponse):
        return vectors(CreateEmbeddingsResponse.FromString(bytes(raw)))
    return told(assemble(gatewayapi.whole(pb.ChatCompletion.FromString(bytes(raw)))))


def _refused(error: LlmgError) -> Told:
    return failed(Kind(error.kind), error.param, error.retry_after)


def _way(given: PythonWay) -> Way:
    times = None if given.queue_ms is None or given.upstream_ms is None else (given.queue_ms, given.upstream_ms)
    limits = {kind: (one.limit, one.remaining, one.reset) for kind, one in given.rate_limits.items()}
    return Way(route=given.route, policy=given.policy, attempts=given.attempts, times=times, limits=limits)


class _Whole(Reading):
    def __init__(self, answering: asyncio.Future[Any]) -> None:
        self._answering = answering

    async def some(self) -> None:
        pass

    async def rest(self) -> Told:
        try:
            answer = await self._answering
        except LlmgError as error:
            self.way = _way(error.way)
            return _refused(error)
        self.way = _way(answer.way)
        return _told(answer.raw)


class _Streamed(Reading):
    def __init__(self, entering: asyncio.Future[Any]) -> None:
        self._entering = entering

    async def some(self) -> None:
        async for event in await self._entering:
            if isinstance(event, types.Delta):
                return

    async def rest(self) -> Told:
        try:
            answer = await (await self._entering).get_final_completion()
        except LlmgError as error:
            self.way = _way(error.way)
            return _refused(error)
        self.way = _way(answer.way)
        return _told(answer.raw)


class PythonSpeaker(Client):
    """A connection."""

    def __init__(self, client: PythonClient, asking: Asking) -> None:
        self._client = client
        self._asking = asking

    @asynccontextmanager
    async def begin(self, asked: Asked, *, timeout: float | None = None) -> AsyncIterator[Reading]:
        """See Client."""
        assert isinstance(asked.openai, dict)
        fields: dict[str, Any] = {**asked.openai, "timeout": timeout or PATIENCE}
        async with AsyncExitStack() as stack:
            going: asyncio.Future[Any]
            if self._asking == "stream":
                going = asyncio.ensure_future(stack.enter_async_context(self._client.stream(**fields)))
            elif self._asking == "vectors":
                going = asyncio.ensure_future(self._client.embed(inputs=fields.pop("input"), **fields))
            else:
                going = asyncio.ensure_future(self._client.chat(**fields))
            try:
                yield _Streamed(going) if self._asking == "stream" else _Whole(going)
            finally:
                going.cancel()
                await asyncio.wait({going})


class PythonServed(Served):
    """The server, and our client of it."""

    def __init__(self, door: GrpcDoor, asking: Asking) -> None:
        self._door = door
        self._asking = asking

    @asynccontextmanager
    async def client(
        self, *, key: str | None = None, session: str | None = None, slow: bool = False
    ) -> AsyncIterator[Client]:
        """See Served. gRPC's own window is all the room there is."""
        metadata = {} if session is None else {"x-llmg-session": session}
        async with PythonClient(self._door.address, api_key=key, metadata=metadata) as client:
            yield PythonSpeaker(client, self._asking)

    async def drain(self, grace: float) -> None:
        """See Served."""
        await self._door.server.drain(grace)


def _door(asking: Asking) -> Door:
    @asynccontextmanager
    async def serve(behind: Behind) -> AsyncIterator[Served]:
        async with served(behind) as door:
            yield PythonServed(door, asking)

    return Door(serve=serve, streams=asking == "stream")


class PythonReader(Reader):
    """Of the lists."""

    def __init__(self, client: PythonClient) -> None:
        self._client = client

    async def models(self) -> list[str] | Told:
        """See Reader."""
        return await _names(self._client.models(), lambda models: [model.id for model in models])

    async def model(self, name: str) -> list[str] | Told:
        """See Reader."""
        return await _names(self._client.model(name), lambda model: [model.id])


async def _names(call: Awaitable[Any], names: Callable[[Any], list[str]]) -> list[str] | Told:
    try:
        return names(await call)
    except LlmgError as error:
        return _refused(error)


@asynccontextmanager
async def _look(behind: Behind, key: str) -> AsyncIterator[Reader]:
    async with served(behind) as door, PythonClient(door.address, api_key=key) as client:
        yield PythonReader(client)


DOORS = {"Python client, stream": _door("stream"), "Python client, whole": _door("whole")}
EMBEDDERS = {"Python client": _door("vectors")}
READERS = {"Python client": Look(at=_look, missing=failed(Kind.MODEL_NOT_FOUND, "id"))}

"""Our Python client, over another gRPC stack than the server's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from llmg.client import Client as PythonClient
from llmg.client import LlmgError, types
from llmg.client.way import Way as PythonWay
from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.ports import Provider
from scenarios.asking import Asked, Client, Door, Reading, Served, Told, Way, failed, told
from support import gatewayapi
from support.doors import GrpcDoor, grpc_door
from support.http import PATIENCE


def _told(raw: types.ChatCompletion) -> Told:
    return told(assemble(gatewayapi.whole(pb.ChatCompletion.FromString(bytes(raw)))))


def _refused(error: LlmgError) -> Told:
    return failed(Kind(error.kind), error.param, error.retry_after)


def _way(given: PythonWay) -> Way:
    times = None if given.queue_ms is None or given.upstream_ms is None else (given.queue_ms, given.upstream_ms)
    limits = {kind: (one.limit, one.remaining, one.reset) for kind, one in given.rate_limits.items()}
    return Way(route=given.route, policy=given.policy, attempts=given.attempts, times=times, limits=limits)


class _Whole(Reading):
    def __init__(self, answering: asyncio.Task[Any]) -> None:
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
    def __init__(self, entering: asyncio.Task[Any]) -> None:
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

    def __init__(self, client: PythonClient, stream: bool) -> None:
        self._client = client
        self._stream = stream

    @asynccontextmanager
    async def begin(self, asked: Asked, *, timeout: float | None = None) -> AsyncIterator[Reading]:
        """See Client."""
        fields: dict[str, Any] = {**asked.openai, "timeout": timeout or PATIENCE}
        async with AsyncExitStack() as stack:
            if self._stream:
                going = asyncio.ensure_future(stack.enter_async_context(self._client.stream(**fields)))
            else:
                going = asyncio.ensure_future(self._client.chat(**fields))
            try:
                yield _Streamed(going) if self._stream else _Whole(going)
            finally:
                going.cancel()
                await asyncio.wait({going})


class PythonServed(Served):
    """The server, and our client of it."""

    def __init__(self, door: GrpcDoor, stream: bool) -> None:
        self._door = door
        self._stream = stream

    @asynccontextmanager
    async def client(
        self, *, key: str | None = None, session: str | None = None, slow: bool = False
    ) -> AsyncIterator[Client]:
        """See Served. gRPC's own window is all the room there is."""
        metadata = {} if session is None else {"x-llmg-session": session}
        async with PythonClient(self._door.address, api_key=key, metadata=metadata) as client:
            yield PythonSpeaker(client, self._stream)

    async def drain(self, grace: float) -> None:
        """See Served."""
        await self._door.server.drain(grace)


def _door(stream: bool) -> Door:
    @asynccontextmanager
    async def serve(provider: Provider, keys: Mapping[str, str]) -> AsyncIterator[Served]:
        async with grpc_door(provider, keys=keys) as served:
            yield PythonServed(served, stream)

    return Door(serve=serve, streams=stream)


DOORS = {"Python client, stream": _door(stream=True), "Python client, whole": _door(stream=False)}

"""gRPC: unary, and as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import json_format

from llmg.core.assemble import assemble
from llmg.core.events import Event, check
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.ports import Provider
from scenarios.asking import Asked, Client, Door, Reading, Served, Told, by_headers, failed, told
from support import gatewayapi
from support.doors import GrpcDoor, grpc_door, refusal
from support.http import PATIENCE


class _Streamed(Reading):
    def __init__(self, call: Any) -> None:
        self._call = call
        self._messages = aiter(call)
        self._events: list[Event] = []

    async def some(self) -> None:
        while not any(type(event).__name__ == "Delta" for event in self._events):
            self._events += gatewayapi.events([await anext(self._messages)])

    async def rest(self) -> Told:
        try:
            async for message in self._messages:
                self._events += gatewayapi.events([message])
        except grpc.aio.AioRpcError as error:
            return _refused(error)
        finally:
            self.way = by_headers(dict(await self._call.trailing_metadata()))
        return _told(self._events)


class _Whole(Reading):
    def __init__(self, call: Any) -> None:
        self._call = call

    async def some(self) -> None:
        pass

    async def rest(self) -> Told:
        try:
            answer = await self._call
        except grpc.aio.AioRpcError as error:
            return _refused(error)
        finally:
            self.way = by_headers(dict(await self._call.trailing_metadata()))
        return _told(gatewayapi.whole(answer.completion))


def _told(events: list[Event]) -> Told:
    check(events)
    return told(assemble(events))


def _refused(error: grpc.aio.AioRpcError) -> Told:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:  # the client's own word: it did not wait for the server's
        from llmg.core.errors import Kind

        return failed(Kind.DEADLINE_EXCEEDED, None)
    found = refusal(error)
    return failed(found.kind, found.field, found.retry_after)


class GrpcClient(Client):
    """A channel."""

    def __init__(self, door: GrpcDoor, stream: bool, key: str | None, session: str | None) -> None:
        self._door = door
        self._stream = stream
        given = {"authorization": None if key is None else f"Bearer {key}", "x-llmg-session": session}
        self._metadata = tuple((name, value) for name, value in given.items() if value is not None)

    @asynccontextmanager
    async def begin(self, asked: Asked, *, timeout: float | None = None) -> AsyncIterator[Reading]:
        """See Client."""
        chat = json_format.ParseDict(asked.gateway, pb.Chat())
        options: dict[str, Any] = {"timeout": timeout or PATIENCE, "metadata": self._metadata}
        if self._stream:
            request = pb.CreateChatCompletionStreamRequest(chat=chat)
            call: Any = self._door.chat.CreateChatCompletionStream(request, **options)
        else:
            call = self._door.chat.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=chat), **options)
        try:
            yield _Streamed(call) if self._stream else _Whole(call)
        finally:
            call.cancel()


class GrpcServed(Served):
    """The server, and a client's channel to it."""

    def __init__(self, door: GrpcDoor, stream: bool) -> None:
        self._door = door
        self._stream = stream

    @asynccontextmanager
    async def client(
        self, *, key: str | None = None, session: str | None = None, slow: bool = False
    ) -> AsyncIterator[Client]:
        """See Served. gRPC's own window is all the room there is."""
        yield GrpcClient(self._door, self._stream, key, session)

    async def drain(self, grace: float) -> None:
        """See Served."""
        await self._door.server.drain(grace)


def _door(stream: bool) -> Door:
    @asynccontextmanager
    async def serve(provider: Provider, keys: Mapping[str, str]) -> AsyncIterator[Served]:
        async with grpc_door(provider, keys=keys) as served:
            yield GrpcServed(served, stream)

    return Door(serve=serve, streams=stream)


DOORS = {"gRPC stream": _door(stream=True), "gRPC unary": _door(stream=False)}

"""gRPC: unary, and as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import grpc
from google.protobuf import json_format
from msgspec import Struct

from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.core.events import Embedding, Embeddings, Event, Result, Started, check
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1.admin_pb2 import ListLevelsRequest
from llmg.gatewayapi.v1.admin_pb2_grpc import AdminServiceStub
from llmg.gatewayapi.v1.embeddings_pb2 import CreateEmbeddingsRequest, CreateEmbeddingsResponse
from llmg.gatewayapi.v1.models_pb2 import GetModelRequest, ListModelsRequest
from scenarios.asking import (
    Administrator,
    Asked,
    Behind,
    Client,
    Door,
    Look,
    Reader,
    Reading,
    Served,
    Told,
    by_headers,
    failed,
    told,
)
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
    def __init__(self, call: Any, told: Callable[[Any], Told]) -> None:
        self._call = call
        self._told = told

    async def some(self) -> None:
        pass

    async def rest(self) -> Told:
        try:
            answer = await self._call
        except grpc.aio.AioRpcError as error:
            return _refused(error)
        finally:
            self.way = by_headers(dict(await self._call.trailing_metadata()))
        return self._told(answer)


def _told(events: list[Event]) -> Told:
    check(events)
    return told(assemble(events))


def vectors(answer: CreateEmbeddingsResponse) -> Told:
    """What the answer to a request for vectors tells."""
    found = tuple(Embedding(one.index, tuple(one.values)) for one in answer.embeddings)
    events: list[Event] = [Started("", 0, answer.model), Result(Embeddings(found))]
    return told(assemble([*events, gatewayapi.usage(answer.usage)] if answer.HasField("usage") else events))


_OWN: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Kind.DEADLINE_EXCEEDED,  # the client did not wait for the server's
    grpc.StatusCode.RESOURCE_EXHAUSTED: Kind.REQUEST_TOO_LARGE,  # our server does not get to see the message
}
"""What gRPC says by itself, without details."""


def _refused(error: grpc.aio.AioRpcError) -> Told:
    if "grpc-status-details-bin" not in dict(error.trailing_metadata() or ()):
        return failed(_OWN[error.code()], None)
    found = refusal(error)
    return failed(found.kind, found.field, found.retry_after)


class Method(Struct, frozen=True, kw_only=True):
    """How a call is made: what is sent of a request, as what, and what its answer tells. Streams tell by themselves."""

    path: str
    request: Callable[[dict[str, Any]], Any]
    answer: Any
    told: Callable[[Any], Told] | None = None


CHAT: Final = Method(
    path="/llmg.gatewayapi.v1.ChatService/CreateChatCompletion",
    request=lambda given: json_format.ParseDict({"chat": given}, pb.CreateChatCompletionRequest()),
    answer=pb.CreateChatCompletionResponse,
    told=lambda answer: _told(gatewayapi.whole(answer.completion)),
)
STREAM: Final = Method(
    path="/llmg.gatewayapi.v1.ChatService/CreateChatCompletionStream",
    request=lambda given: json_format.ParseDict({"chat": given}, pb.CreateChatCompletionStreamRequest()),
    answer=pb.CreateChatCompletionStreamResponse,
)
VECTORS: Final = Method(
    path="/llmg.gatewayapi.v1.EmbeddingService/CreateEmbeddings",
    request=lambda given: json_format.ParseDict(given, CreateEmbeddingsRequest()),
    answer=CreateEmbeddingsResponse,
    told=vectors,
)


class GrpcClient(Client):
    """A channel."""

    def __init__(self, door: GrpcDoor, method: Method, key: str | None, session: str | None) -> None:
        self._door = door
        self._method = method
        given = {"authorization": None if key is None else f"Bearer {key}", "x-llmg-session": session}
        self._metadata = tuple((name, value) for name, value in given.items() if value is not None)

    @asynccontextmanager
    async def begin(self, asked: Asked, *, timeout: float | None = None) -> AsyncIterator[Reading]:
        """See Client."""
        method, channel = self._method, self._door.channel
        sent = asked.protobuf if asked.protobuf is not None else method.request(asked.typed).SerializeToString()
        made: Any = channel.unary_stream if method.told is None else channel.unary_unary
        options: dict[str, Any] = {"timeout": timeout or PATIENCE, "metadata": self._metadata}
        call = made(method.path, response_deserializer=method.answer.FromString)(sent, **options)
        try:
            yield _Streamed(call) if method.told is None else _Whole(call, method.told)
        finally:
            call.cancel()


class GrpcServed(Served):
    """The server, and a client's channel to it."""

    def __init__(self, door: GrpcDoor, method: Method) -> None:
        self._door = door
        self._method = method

    @asynccontextmanager
    async def client(
        self, *, key: str | None = None, session: str | None = None, slow: bool = False
    ) -> AsyncIterator[Client]:
        """See Served. gRPC's own window is all the room there is."""
        yield GrpcClient(self._door, self._method, key, session)

    async def drain(self, grace: float) -> None:
        """See Served."""
        await self._door.server.drain(grace)


def _door(method: Method) -> Door:
    @asynccontextmanager
    async def serve(behind: Behind) -> AsyncIterator[Served]:
        async with served(behind) as door:
            yield GrpcServed(door, method)

    return Door(serve=serve, streams=method.told is None, raw="grpc")


def served(behind: Behind) -> AbstractAsyncContextManager[GrpcDoor]:
    """A server of gRPC."""
    return grpc_door(behind.pipeline, let_in=behind.let_in, models=behind.models, admin=behind.admin)


class GrpcReader(Administrator):
    """Of the lists."""

    def __init__(self, door: GrpcDoor, key: str) -> None:
        self._door = door
        self._admin: Any = AdminServiceStub(door.channel)
        self._options: dict[str, Any] = {"timeout": PATIENCE, "metadata": (("authorization", f"Bearer {key}"),)}

    async def models(self) -> list[str] | Told:
        """See Reader."""
        call = self._door.models.ListModels(ListModelsRequest(), **self._options)
        return await _names(call, lambda answer: [model.id for model in answer.models])

    async def model(self, name: str) -> list[str] | Told:
        """See Reader."""
        call = self._door.models.GetModel(GetModelRequest(id=name), **self._options)
        return await _names(call, lambda answer: [answer.model.id])

    async def tenants(self) -> list[str] | Told:
        """See Administrator."""
        call = self._admin.ListLevels(ListLevelsRequest(), **self._options)
        return await _names(call, lambda answer: [level.name for level in answer.levels])


async def _names(call: Awaitable[Any], names: Callable[[Any], list[str]]) -> list[str] | Told:
    try:
        return names(await call)
    except grpc.aio.AioRpcError as error:
        return _refused(error)


@asynccontextmanager
async def _look(behind: Behind, key: str) -> AsyncIterator[Reader]:
    async with served(behind) as door:
        yield GrpcReader(door, key)


DOORS = {"gRPC stream": _door(STREAM), "gRPC unary": _door(CHAT)}
EMBEDDERS = {"gRPC": _door(VECTORS)}
READERS = {"gRPC": Look(at=_look, missing=failed(Kind.MODEL_NOT_FOUND, "id"), administers=True)}

"""Doors before a pipeline of the test's own, over real sockets: gRPC, and REST beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from llmg.boot.container import Draining
from llmg.boot.serve import listen
from llmg.boot.system import SystemClock
from llmg.core.context import SILENT, Principal
from llmg.core.errors import Failure, Kind
from llmg.doors.gateway.app import make_gateway
from llmg.doors.gateway.app import words as jsonapi_words
from llmg.doors.gateway.inprocess import InProcess
from llmg.doors.graphql.app import make_graphql
from llmg.doors.graphql.exchange import words as graphql_words
from llmg.doors.grpc.served import DESCRIPTORS, handlers
from llmg.doors.grpc.server import GrpcServer, Limits
from llmg.doors.grpc.services import Inference
from llmg.doors.http.server import HttpServer
from llmg.doors.rest.app import Routes, make_door, openai_routes
from llmg.doors.rest.explain import ExplainRoute
from llmg.doors.rest.inference import ChatCompletions, Embeddings
from llmg.doors.websocket.app import make_websocket
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceStub
from llmg.gatewayapi.v1.embeddings_pb2_grpc import EmbeddingServiceStub
from llmg.gatewayapi.v1.models_pb2_grpc import ModelServiceStub
from llmg.ports import Provider
from llmg.routing.catalog import EVERYBODY, Catalog, Key
from llmg.services.admin import Admin
from llmg.services.admission import Admission, Authenticator, digest
from llmg.services.explain import Explain
from llmg.services.models import Model, Models
from llmg.testing.ids import CountingIds
from llmg.wire.transcoding.bindings import bindings
from support.gateway import Gateway

MODELS = tuple(Model(id=name, created=7, owner="p", operations=("chat",)) for name in ("a", "b", "c/d", "e"))


def some_models(models: Sequence[Model] = MODELS) -> Models:
    """A list of models, for the doors that show one."""

    def find(name: str, _: Principal) -> Model:
        for model in models:
            if model.id == name:
                return model
        raise Failure(Kind.MODEL_NOT_FOUND, f"the model '{name}' does not exist", param="model")

    return Models(lambda _: models, find)


def admission(keys: Mapping[str, str] = {}) -> Admission:
    """Lets in who has one of these keys, by name; everybody, where there are none."""
    known = {digest(key): Key(Principal(key_id=name)) for name, key in keys.items()}
    catalog, clock = Catalog(keys=known) if keys else EVERYBODY, SystemClock()
    return Admission(Authenticator(lambda: catalog, clock), clock, CountingIds(), SILENT)


class GrpcDoor:
    """A server of gRPC, and a client's stubs."""

    def __init__(self, server: GrpcServer, address: str, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.address = address
        self.channel = channel
        self.chat: Any = ChatServiceStub(channel)
        self.embeddings: Any = EmbeddingServiceStub(channel)
        self.models: Any = ModelServiceStub(channel)


@asynccontextmanager
async def grpc_door(
    pipeline: Provider,
    *,
    max_message: int = 1 << 20,
    models: Models | None = None,
    keys: Mapping[str, str] = {},
    let_in: Admission | None = None,
    explain: Explain | None = None,
    admin: Admin | None = None,
) -> AsyncIterator[GrpcDoor]:
    """The gRPC door before this pipeline. `let_in`: where it is not done by keys."""
    inference = Inference(pipeline, let_in or admission(keys), explain=explain)
    limits = Limits(message=max_message)
    server = GrpcServer(inference, models or some_models(), admin=admin, limits=limits, reflection=True)
    address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
    try:
        async with grpc.aio.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
            yield GrpcDoor(server, address, channel)
    finally:
        await server.drain(0)


class HttpDoors(Gateway):
    """A server of HTTP with everything that HTTP carries."""

    def __init__(self, server: HttpServer, address: tuple[str, int], draining: Draining) -> None:
        super().__init__(address)
        self._server = server
        self._draining = draining

    async def drain(self, grace: float) -> int:
        """Tells it to stop; how many requests were cut."""
        self._draining.on = True
        return await self._server.drain(grace)


@asynccontextmanager
async def rest_door(
    pipeline: Provider,
    *,
    keys: Mapping[str, str] = {},
    models: Models | None = None,
    let_in: Admission | None = None,
    explain: Explain | None = None,
    admin: Admin | None = None,
) -> AsyncIterator[HttpDoors]:
    """All doors of HTTP before this pipeline. `let_in`: where it is not done by keys."""
    let_in, models, draining = let_in or admission(keys), models or some_models(), Draining()
    made = (pipeline, let_in, 1 << 20, 10.0)
    openai = openai_routes(
        chat=ChatCompletions(*made),
        embeddings=Embeddings(*made),
        models=models,
        admission=let_in,
        explain=None if explain is None else ExplainRoute(explain, let_in, 1 << 20),
    )
    graphql = _when_asked(
        lambda: make_graphql(pipeline=pipeline, models=models, admission=let_in, explain=explain, admin=admin)
    )
    websocket = make_websocket(pipeline=pipeline, admission=let_in, explain=explain)
    inference = Inference(pipeline, let_in, door="gateway", explain=explain)
    upstream = InProcess(handlers(inference, models, admin), let_in)
    gateway = make_gateway(upstream=upstream, bindings=bindings(DESCRIPTORS), max_body=1 << 20)
    sockets = {"/graphql": graphql, "/v1/ws": websocket}
    own = Routes(sockets, {"/api/{path:rest}": gateway}, sockets, {"/api": jsonapi_words, "/graphql": graphql_words})
    door = make_door(openai, own, draining=draining)
    server = HttpServer(
        door,
        words=door.words,
        max_headers=1 << 16,
        header_timeout=10.0,
        body_timeout=10.0,
        keep_alive=10.0,
        backlog=16,
        access_log=False,
        draining=draining,
    )
    listener = listen(("127.0.0.1", 0), 16)
    await server.start(listener)
    doors = HttpDoors(server, listener.getsockname(), draining)
    try:
        yield doors
    finally:
        await doors.drain(0)


def _when_asked(make: Callable[[], ASGIApp]) -> ASGIApp:
    """Made for the first who asks: it takes as long as all the rest, and many a test asks another door."""
    made = cache(make)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await made()(scope, receive, send)

    return app


class Refusal(Struct, frozen=True, kw_only=True):
    """What a call that failed tells, all of it."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    metadata: dict[str, str]
    field: str | None
    retry_after: float | None
    trailing: dict[str, str | bytes]

    @property
    def kind(self) -> Kind:
        """The gateway's own word for it."""
        return Kind[self.reason]


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """An error, with its details. Asserts that they agree with the status."""
    trailing = dict(error.trailing_metadata())
    raw = trailing.pop("grpc-status-details-bin")
    assert isinstance(raw, bytes)
    status = Status.FromString(raw)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    known: tuple[Message, ...] = (info, bad, retry)
    unpacked = [message for detail in status.details for message in known if detail.Unpack(message)]
    assert len(unpacked) == len(status.details)
    return Refusal(
        code=error.code(),
        message=status.message,
        reason=info.reason,
        domain=info.domain,
        metadata=dict(info.metadata),
        field=bad.field_violations[0].field if bad.field_violations else None,
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry in unpacked else None,
        trailing=trailing,
    )

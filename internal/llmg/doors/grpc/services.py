"""The gateway's gRPC services: each call becomes a request, its events or its answer become messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from llmg.core import way
from llmg.core.assemble import assemble
from llmg.core.context import Context, Principal
from llmg.core.errors import Failure, Kind, internal, invalid, not_implemented
from llmg.core.events import Batch
from llmg.core.request import Request
from llmg.doors.grpc.errors import Metadata, abort
from llmg.gatewayapi.v1 import chat_pb2, embeddings_pb2, models_pb2, routing_pb2
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceServicer
from llmg.gatewayapi.v1.embeddings_pb2_grpc import EmbeddingServiceServicer
from llmg.gatewayapi.v1.models_pb2_grpc import ModelServiceServicer
from llmg.gatewayapi.v1.routing_pb2_grpc import RoutingServiceServicer
from llmg.ports import Provider
from llmg.services.admission import Admission
from llmg.services.explain import Explain
from llmg.services.failures import log_failure
from llmg.services.models import Model, Models
from llmg.services.whole import whole
from llmg.wire import explanation
from llmg.wire.gateway import (
    EventEncoder,
    chat_path,
    decode_chat,
    decode_embed,
    embed_path,
    encode_answer,
    encode_embeddings,
)

log = structlog.get_logger("llmg.grpc")

_PAGES: Final = 1000  # models at the most in one page

Call = grpc.aio.ServicerContext[Any, Any]
Given = Mapping[str, str | bytes]
# The message's own path of a field, by what pipelines call it.
Place = Callable[[str], str]
# Told of a call that is refused, before its client is.
Refused = Callable[[Context, Failure], Awaitable[None]]


class Inference:
    """What the services of inference share: the pipeline, a context per call, failures as statuses."""

    def __init__(
        self, pipeline: Provider, admission: Admission, door: str = "grpc", explain: Explain | None = None
    ) -> None:
        """`explain` None: routes are not explained here."""
        self.door = door
        self.admission = admission
        self.explain = explain
        self.cut: set[asyncio.Task[Any]] = set()  # calls that did not end in time
        self.most = 0  # calls at once, of those who have a key; 0: any
        self.late: set[asyncio.Task[Any]] = set()  # calls whose messages did not arrive in time
        self._calls: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}  # in flight, and when their messages are late
        self._answering: set[_Answering] = set()  # whoever asks may do so
        self._pipeline = pipeline

    def begin(self, timeout: float) -> asyncio.Task[Any]:
        """This task is a call, to its end. Its message has so many seconds to arrive."""
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = task.get_loop().call_later(timeout, self._too_late, task)
        task.add_done_callback(self._over)
        return task

    def arrived(self, task: asyncio.Task[Any]) -> None:
        """Its message is there."""
        self._calls[task].cancel()

    def _too_late(self, task: asyncio.Task[Any]) -> None:
        self.late.add(task)
        task.cancel()

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._calls.pop(task).cancel()
        self.late.discard(task)

    def caller(self, call: Call) -> Principal:
        """Who it is that calls. Raises Failure (unauthenticated)."""
        return self.principal(_given(call))

    def principal(self, given: Given) -> Principal:
        """Who shows this metadata. Raises Failure (unauthenticated)."""
        return self.admission.principal(_text(given, "authorization"), _text(given, "x-api-key"))

    def enter(self, answering: _Answering) -> None:
        """One more is answered. Raises Failure (rate_limited)."""
        if self.most and len(self._answering) >= self.most:  # RESOURCE_EXHAUSTED, as gRPC's own limits say
            raise Failure(Kind.RATE_LIMITED, f"{self.most} calls are under way, and no more may be")
        self._answering.add(answering)

    def leave(self, answering: _Answering) -> None:
        """It is over, if it was let in at all."""
        self._answering.discard(answering)

    def answering(self, request: object, call: Call, place: Place, refused: Refused | None = None) -> _Answering:
        """Lets the caller in, with a request that could be read."""
        return _Answering(self, request, call, place, refused)

    def open(self, request: Request, context: Context) -> Any:
        """The answer's events."""
        return self._pipeline.open(request, context)

    async def whole(self, request: Request, context: Context) -> Batch:
        """All events of the answer."""
        return await whole(self._pipeline, request, context)

    async def finish(self, grace: float) -> int:
        """Waits `grace` seconds for the calls in flight, and ends those that are left. How many they were."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._calls:
                    await asyncio.wait(self._calls)
        left = set(self._calls)
        for task in left:
            self.cut.add(task)
            task.add_done_callback(self.cut.discard)
            task.cancel()
        return len(left)


class _Answering:
    """One call, from who asks to its status: gives its context. Failures inside end the call; one that ends well says
    its way. (A class, because `asynccontextmanager` costs as much as the rest of it.)"""

    __slots__ = ("_call", "_context", "_given", "_inference", "_place", "_refused", "_request", "_task")

    def __init__(
        self, inference: Inference, request: object, call: Call, place: Place, refused: Refused | None
    ) -> None:
        self._inference = inference
        self._request = request
        self._call = call
        self._place = place
        self._refused = refused
        self._given = _given(call)
        self._context = inference.admission.context(
            inference.door,
            inference.admission.request_id(self._text("x-request-id")),
            traceparent=self._text("traceparent"),
            session=self._text("x-llmg-session"),
            remaining=call.time_remaining(),
        )
        # A call in process may have headers that are no metadata.
        self._context.header = getattr(call, "header", None) or partial(_text, self._given)
        self._task: asyncio.Task[Any]

    async def __aenter__(self) -> Context:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        try:
            self._context.principal = self._inference.principal(self._given)
            self._inference.enter(self)
            if isinstance(self._request, Failure):
                raise self._request
        except BaseException as error:
            await self.__aexit__(None, error, None)
            raise
        return self._context

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        task, inference = self._task, self._inference
        try:
            if error is None:
                self._call.set_trailing_metadata(trailing(self._context))
            elif isinstance(error, Exception):  # the rim: nothing may leave it as a stack trace
                failure = error if isinstance(error, Failure) else internal(error)
                if self._refused is not None:
                    await self._refused(self._context, failure)
                await self._abort(failure, None if failure.param is None else self._place(failure.param))
            elif isinstance(error, asyncio.CancelledError) and task in inference.cut:
                task.uncancel()
                await self._abort(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))
            else:  # in process, a deadline cancels the call, and is told with this
                self._call.set_trailing_metadata(trailing(self._context))
        finally:
            inference.leave(self)

    def _text(self, name: str) -> str | None:
        return _text(self._given, name)

    async def _abort(self, failure: Failure, field: str | None = None) -> None:
        context = self._context
        log_failure(log, failure, context.request_id)
        await abort(self._call, failure, field, trailing(context))


def _given(call: Call) -> Given:
    """The metadata of a call."""
    return dict(call.invocation_metadata() or ())


def _text(metadata: Given, name: str) -> str | None:
    value = metadata.get(name)
    return value if isinstance(value, str) else None


def trailing(context: Context) -> Metadata:
    """The request's id, and its way: see `core.way`."""
    return (("x-request-id", context.request_id), *way.headers(context))


class Chat(ChatServiceServicer):
    """See chat.proto."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def CreateChatCompletion(
        self, request: chat_pb2.CreateChatCompletionRequest, context: Call
    ) -> chat_pb2.CreateChatCompletionResponse:
        """A whole answer."""
        async with self._inference.answering(request, context, _in_chat) as own:
            chat = decode_chat(request.chat, stream=False)
            return encode_answer(assemble(await self._inference.whole(chat, own)), chat.model)

    async def CreateChatCompletionStream(  # type: ignore[override]  # see below
        self, request: chat_pb2.CreateChatCompletionStreamRequest, context: Call
    ) -> None:
        """The answer's events, a message for each read of the upstream.

        Written, not yielded: a generator that is left while it yields would not let go of the upstream.
        """
        async with self._inference.answering(request, context, _in_chat) as own:
            chat = decode_chat(request.chat, stream=True)
            encoder = EventEncoder(chat.model)
            begun = False
            async with self._inference.open(chat, own) as batches:
                async for batch in batches:
                    message = encoder.encode(batch)
                    if message is None:
                        continue
                    if not begun:  # in process, what is known by now goes into the head of the answer
                        begun = True
                        context.set_trailing_metadata(trailing(own))
                    try:
                        await context.write(message)
                    except grpc.aio.InternalError:  # that the client has gone can be known here before we are cancelled
                        raise asyncio.CancelledError from None


class Embeddings(EmbeddingServiceServicer):
    """See embeddings.proto."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def CreateEmbeddings(
        self, request: embeddings_pb2.CreateEmbeddingsRequest, context: Call
    ) -> embeddings_pb2.CreateEmbeddingsResponse:
        """Vectors for texts."""
        async with self._inference.answering(request, context, embed_path) as own:
            embed = decode_embed(request)
            return encode_embeddings(assemble(await self._inference.whole(embed, own)), embed.model)


class ModelList(ModelServiceServicer):
    """See models.proto."""

    def __init__(self, inference: Inference, models: Models) -> None:
        self._inference = inference
        self._models = models

    async def ListModels(self, request: models_pb2.ListModelsRequest, context: Call) -> models_pb2.ListModelsResponse:
        """A page of the models; the token is the name that the page before ended with."""
        async with self._inference.answering(request, context, _as_it_is) as own:
            if request.page_size < 0:
                raise Failure(Kind.INVALID_REQUEST, "invalid 'page_size': expected at least 0", param="page_size")
            later = [model for model in self._models.list(own.principal) if model.id > request.page_token]
            size = min(request.page_size or _PAGES, _PAGES)
            page = later[:size]
            token = page[-1].id if len(later) > size else ""
            return models_pb2.ListModelsResponse(models=[_model(m) for m in page], next_page_token=token)

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Call) -> models_pb2.GetModelResponse:
        """One model."""
        async with self._inference.answering(request, context, _in_get_model) as own:
            return models_pb2.GetModelResponse(model=_model(self._models.get(request.id, own.principal)))


class Routing(RoutingServiceServicer):
    """See routing.proto."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def ExplainRoute(
        self, request: routing_pb2.ExplainRouteRequest, context: Call
    ) -> routing_pb2.ExplainRouteResponse:
        """Where a request would go."""
        async with self._inference.answering(request, context, partial(explanation.path, request)) as own:
            if self._inference.explain is None:
                raise not_implemented("the explanation of routes")
            asked = explanation.decode_request(request)
            found = await self._inference.explain.explain(asked, own, request.level)
            return explanation.encode_explanation(found)


def _in_chat(param: str) -> str:
    path = chat_path(param)
    return param if path is None else f"chat.{path}"


def _in_get_model(param: str) -> str:
    return "id" if param == "model" else param


def _as_it_is(param: str) -> str:
    return param


def decoder(message: Any) -> Callable[[bytes], Any]:
    """Reads messages of that class. Bytes that are none give a Failure: raised, gRPC would tell it its own way."""
    parse = message.FromString

    def decode(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return invalid("the request is not a valid message")

    return decode


def _model(model: Model) -> models_pb2.Model:
    return models_pb2.Model(id=model.id, created=model.created, owned_by=model.owner, operations=list(model.operations))

"""The gateway's gRPC services: each call becomes a request, its events or its answer become messages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import grpc
import structlog

from llmg.core.assemble import assemble
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, internal
from llmg.core.events import Batch
from llmg.core.request import Request
from llmg.doors.grpc.errors import Metadata, abort
from llmg.gatewayapi.v1 import chat_pb2, embeddings_pb2, models_pb2
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceServicer
from llmg.gatewayapi.v1.embeddings_pb2_grpc import EmbeddingServiceServicer
from llmg.gatewayapi.v1.models_pb2_grpc import ModelServiceServicer
from llmg.ports import Provider
from llmg.services.admission import Admission
from llmg.services.models import Model, Models
from llmg.wire.gateway import EventEncoder, decode_chat, decode_embed, encode_answer, encode_embeddings

log = structlog.get_logger("llmg.grpc")

_PAGES: Final = 1000  # models at the most in one page
_NAME: Final = re.compile(r"\w+")
_SAME: Final[Mapping[str, str]] = MappingProxyType({})
_IN_CHAT: Final = MappingProxyType(
    {field.name: f"chat.sampling.{field.name}" for field in chat_pb2.Sampling.DESCRIPTOR.fields}
    | {field.name: f"chat.{field.name}" for field in chat_pb2.Chat.DESCRIPTOR.fields}
)
_IN_GET_MODEL: Final = MappingProxyType({"model": "id"})

Call = grpc.aio.ServicerContext[Any, Any]

# Each file of ours has one service.
DESCRIPTORS: Final = tuple(
    service for file in (chat_pb2, embeddings_pb2, models_pb2) for service in file.DESCRIPTOR.services_by_name.values()
)


class Inference:
    """What the services of inference share: the pipeline, a context per call, failures as statuses."""

    def __init__(self, pipeline: Provider, admission: Admission, door: str = "grpc") -> None:
        self.door = door
        self.admission = admission
        self.calls: set[asyncio.Task[Any]] = set()  # in flight
        self.cut: set[asyncio.Task[Any]] = set()  # of these, those that did not end in time
        self._pipeline = pipeline

    def answering(self, call: Call, names: Mapping[str, str] = _SAME) -> _Answering:
        """Lets the caller in. `names` are the message's own for fields of the request that it has elsewhere."""
        return _Answering(self, call, names)

    def open(self, request: Request, context: Context) -> Any:
        """The answer's events."""
        return self._pipeline.open(request, context)

    async def whole(self, request: Request, context: Context) -> Batch:
        """All events of the answer."""
        events: Batch = ()
        async with self._pipeline.open(request, context) as batches:
            async for batch in batches:
                events = [*events, *batch] if events else batch
        return events

    async def finish(self, grace: float) -> int:
        """Waits `grace` seconds for the calls in flight, and ends those that are left. How many they were."""
        if self.calls:
            await asyncio.wait(set(self.calls), timeout=grace)
        left = set(self.calls)
        self.cut |= left
        for task in left:
            task.cancel()
        return len(left)


class _Answering:
    """One call, from who asks to its status: gives its context. Failures inside end the call; one that ends well says
    its way. (A class, because `asynccontextmanager` costs as much as the rest of it.)"""

    __slots__ = ("_call", "_context", "_given", "_inference", "_names", "_task")

    def __init__(self, inference: Inference, call: Call, names: Mapping[str, str]) -> None:
        self._inference = inference
        self._call = call
        self._names = names
        self._given: dict[str, str | bytes] = dict(call.invocation_metadata() or ())
        self._context = inference.admission.context(
            inference.door,
            inference.admission.request_id(self._text("x-request-id")),
            traceparent=self._text("traceparent"),
            remaining=call.time_remaining(),
        )
        self._task: asyncio.Task[Any]

    async def __aenter__(self) -> Context:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._inference.calls.add(task)
        try:
            self._context.principal = self._inference.admission.principal(
                self._text("authorization"), self._text("x-api-key")
            )
        except BaseException as error:
            await self.__aexit__(None, error, None)
            raise
        return self._context

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        task, inference = self._task, self._inference
        try:
            if error is None:
                self._call.set_trailing_metadata(trailing(self._context))
            elif isinstance(error, Failure):
                await self._abort(error, self._field(error.param))
            elif isinstance(error, Exception):  # the rim: nothing may leave it as a stack trace
                await self._abort(internal(error))
            elif isinstance(error, asyncio.CancelledError) and task in inference.cut:
                task.uncancel()
                await self._abort(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))
        finally:
            inference.calls.discard(task)
            inference.cut.discard(task)

    def _field(self, param: str | None) -> str | None:
        """The message's own path of what a pipeline calls `messages[0].role`."""
        head = _NAME.match(param or "")
        if param is None or head is None:
            return param
        return self._names.get(head[0], head[0]) + param[head.end() :]

    def _text(self, name: str) -> str | None:
        value = self._given.get(name)
        return value if isinstance(value, str) else None

    async def _abort(self, failure: Failure, field: str | None = None) -> None:
        context = self._context
        if failure.detail is not None or failure.blame != "caller":
            level = log.error if failure.kind is Kind.INTERNAL else log.warning
            level(failure.message, kind=failure.kind.value, request_id=context.request_id, detail=failure.detail)
        await abort(self._call, failure, field, trailing(context))


def trailing(context: Context) -> Metadata:
    """The request's id, which target answered, and after how many tries where it was not the first."""
    out = [("x-request-id", context.request_id)]
    if context.trail:
        out.append(("x-llmg-route", context.route))
    if len(context.trail) > 1:
        out.append(("x-llmg-attempts", str(len(context.trail))))
    return tuple(out)


class Chat(ChatServiceServicer):
    """See chat.proto."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def CreateChatCompletion(
        self, request: chat_pb2.CreateChatCompletionRequest, context: Call
    ) -> chat_pb2.CreateChatCompletionResponse:
        """A whole answer."""
        async with self._inference.answering(context, _IN_CHAT) as own:
            chat = decode_chat(request.chat, stream=False)
            return encode_answer(assemble(await self._inference.whole(chat, own)), chat.model)

    async def CreateChatCompletionStream(  # type: ignore[override]  # see below
        self, request: chat_pb2.CreateChatCompletionStreamRequest, context: Call
    ) -> None:
        """The answer's events, a message for each read of the upstream.

        Written, not yielded: a generator that is left while it yields would not let go of the upstream.
        """
        async with self._inference.answering(context, _IN_CHAT) as own:
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
                    await context.write(message)


class Embeddings(EmbeddingServiceServicer):
    """See embeddings.proto."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def CreateEmbeddings(
        self, request: embeddings_pb2.CreateEmbeddingsRequest, context: Call
    ) -> embeddings_pb2.CreateEmbeddingsResponse:
        """Vectors for texts."""
        async with self._inference.answering(context) as own:
            embed = decode_embed(request)
            return encode_embeddings(assemble(await self._inference.whole(embed, own)), embed.model)


class ModelList(ModelServiceServicer):
    """See models.proto."""

    def __init__(self, inference: Inference, models: Models) -> None:
        self._inference = inference
        self._models = models

    async def ListModels(self, request: models_pb2.ListModelsRequest, context: Call) -> models_pb2.ListModelsResponse:
        """A page of the models; the token is the name that the page before ended with."""
        async with self._inference.answering(context):
            if request.page_size < 0:
                raise Failure(Kind.INVALID_REQUEST, "invalid 'page_size': expected at least 0", param="page_size")
            later = [model for model in self._models.list() if model.id > request.page_token]
            size = min(request.page_size or _PAGES, _PAGES)
            page = later[:size]
            token = page[-1].id if len(later) > size else ""
            return models_pb2.ListModelsResponse(models=[_model(m) for m in page], next_page_token=token)

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Call) -> models_pb2.GetModelResponse:
        """One model."""
        async with self._inference.answering(context, _IN_GET_MODEL):
            return models_pb2.GetModelResponse(model=_model(self._models.get(request.id)))


def _model(model: Model) -> models_pb2.Model:
    return models_pb2.Model(id=model.id, created=model.created, owned_by=model.owner, operations=list(model.operations))


def handlers(inference: Inference, models: Models) -> dict[str, Callable[[Any, Call], Awaitable[Any]]]:
    """The methods of all services by their names on a channel (`/package.Service/Method`), to be called in process."""
    chat, embeddings, listing = Chat(inference), Embeddings(inference), ModelList(inference, models)
    return {
        f"/{service.full_name}/{method.name}": getattr(servicer, method.name)
        for service, servicer in zip(DESCRIPTORS, (chat, embeddings, listing), strict=True)
        for method in service.methods
    }

"""The gateway's gRPC services: each call becomes a request, its events or its answer become messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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
_IN_CHAT: Final = MappingProxyType({"model": "chat.model"})
_IN_GET_MODEL: Final = MappingProxyType({"model": "id"})

Call = grpc.aio.ServicerContext[Any, Any]


class Inference:
    """What the services of inference share: the pipeline, a context per call, failures as statuses."""

    def __init__(self, pipeline: Provider, admission: Admission, door: str = "grpc") -> None:
        self._door = door
        self._pipeline = pipeline
        self._admission = admission
        self._calls: set[asyncio.Task[Any]] = set()
        self._cut: set[asyncio.Task[Any]] = set()

    def context(self, call: Call) -> Context:
        """The context of a call, of nobody yet: its deadline, request id and trace parent."""
        given = _metadata(call)
        return self._admission.context(
            self._door,
            self._admission.request_id(given.get("x-request-id")),
            traceparent=given.get("traceparent"),
            remaining=call.time_remaining(),
        )

    def admit(self, call: Call, context: Context) -> None:
        """Finds out who calls. Raises Failure (unauthenticated)."""
        given = _metadata(call)
        context.principal = self._admission.principal(given.get("authorization"), given.get("x-api-key"))

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

    @asynccontextmanager
    async def failing(
        self, call: Call, context: Context, names: Mapping[str, str] = MappingProxyType({})
    ) -> AsyncIterator[None]:
        """Lets the caller in. Failures inside end the call with their status; one that ends well says its way.

        `names` are the message's own for fields of the request that it has elsewhere.
        """
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            self.admit(call, context)
            yield
        except Failure as failure:
            await self._abort(call, context, failure, names.get(failure.param or "", failure.param))
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            await self._abort(call, context, Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))
        except Exception as error:  # noqa: BLE001 - the rim: nothing may leave it as a stack trace
            await self._abort(call, context, internal(error))
        else:
            call.set_trailing_metadata(trailing(context))
        finally:
            self._calls.discard(task)
            self._cut.discard(task)

    async def finish(self, grace: float) -> int:
        """Waits `grace` seconds for the calls in flight, and ends those that are left. How many they were."""
        if self._calls:
            await asyncio.wait(set(self._calls), timeout=grace)
        left = set(self._calls)
        self._cut |= left
        for task in left:
            task.cancel()
        return len(left)

    async def _abort(self, call: Call, context: Context, failure: Failure, field: str | None = None) -> None:
        if failure.detail is not None or failure.blame != "caller":
            level = log.error if failure.kind is Kind.INTERNAL else log.warning
            level(failure.message, kind=failure.kind.value, request_id=context.request_id, detail=failure.detail)
        await abort(call, failure, field, trailing(context))


def _metadata(call: Call) -> dict[str, str]:
    given: Any = call.invocation_metadata()
    return {key: value for key, value in given or () if isinstance(value, str)}


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
        own = self._inference.context(context)
        async with self._inference.failing(context, own, _IN_CHAT):
            chat = decode_chat(request.chat, stream=False)
            return encode_answer(assemble(await self._inference.whole(chat, own)), chat.model)

    async def CreateChatCompletionStream(  # type: ignore[override]  # see below
        self, request: chat_pb2.CreateChatCompletionStreamRequest, context: Call
    ) -> None:
        """The answer's events, a message for each read of the upstream.

        Written, not yielded: a generator that is left while it yields would not let go of the upstream.
        """
        own = self._inference.context(context)
        async with self._inference.failing(context, own, _IN_CHAT):
            chat = decode_chat(request.chat, stream=True)
            encoder = EventEncoder(chat.model)
            async with self._inference.open(chat, own) as batches:
                async for batch in batches:
                    message = encoder.encode(batch)
                    if message is not None:
                        await context.write(message)


class Embeddings(EmbeddingServiceServicer):
    """See embeddings.proto."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def CreateEmbeddings(
        self, request: embeddings_pb2.CreateEmbeddingsRequest, context: Call
    ) -> embeddings_pb2.CreateEmbeddingsResponse:
        """Vectors for texts."""
        own = self._inference.context(context)
        async with self._inference.failing(context, own):
            embed = decode_embed(request)
            return encode_embeddings(assemble(await self._inference.whole(embed, own)), embed.model)


class ModelList(ModelServiceServicer):
    """See models.proto."""

    def __init__(self, inference: Inference, models: Models) -> None:
        self._inference = inference
        self._models = models

    async def ListModels(self, request: models_pb2.ListModelsRequest, context: Call) -> models_pb2.ListModelsResponse:
        """A page of the models; the token is the name that the page before ended with."""
        own = self._inference.context(context)
        async with self._inference.failing(context, own):
            if request.page_size < 0:
                raise Failure(Kind.INVALID_REQUEST, "invalid 'page_size': expected at least 0", param="page_size")
            later = [model for model in self._models.list() if model.id > request.page_token]
            size = min(request.page_size or _PAGES, _PAGES)
            page = later[:size]
            token = page[-1].id if len(later) > size else ""
            return models_pb2.ListModelsResponse(models=[_model(m) for m in page], next_page_token=token)

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Call) -> models_pb2.GetModelResponse:
        """One model."""
        own = self._inference.context(context)
        async with self._inference.failing(context, own, _IN_GET_MODEL):
            return models_pb2.GetModelResponse(model=_model(self._models.get(request.id)))


def _model(model: Model) -> models_pb2.Model:
    return models_pb2.Model(id=model.id, created=model.created, owned_by=model.owner, operations=list(model.operations))

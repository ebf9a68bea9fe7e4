"""The RPCs of the engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from llmg.backendapi import backend_pb2 as pb
from llmg.backends.servicer import Servicer, StatusError
from llmg.backends.xllamacpp.answers import Answer, Chunk
from llmg.backends.xllamacpp.engine import Engine
from llmg.backends.xllamacpp.params import Params, text_params, vector_params
from llmg.backends.xllamacpp.prompts import prompt, refused, schema_probe

State = pb.StatusResponse.State


class XllamacppServicer(Servicer):
    """Serves one GGUF model.

    Text and vectors need llama.cpp in two set-ups, so there are two engines over the same mapped file. The one that
    `ModelOptions.Embeddings` names is opened by LoadModel, the other by the first call that needs it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._options: pb.ModelOptions | None = None
        self._engines: dict[Callable[[pb.ModelOptions], Params], Engine] = {}
        self._opening = asyncio.Lock()
        self._tokens_per_second = 0.0

    # -- the model --

    async def load(self, options: pb.ModelOptions) -> None:
        self._options = options
        try:
            await self._engine(vector_params if options.Embeddings else text_params)
        except BaseException:
            self._options = None
            raise

    async def unload(self) -> None:
        async with self._opening:
            self._options = None
            engines, self._engines = self._engines, {}
            for engine in engines.values():
                await engine.close()

    async def _engine(self, params: Callable[[pb.ModelOptions], Params]) -> Engine:
        async with self._opening:
            if self._options is None:
                raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, "model not loaded")
            if params not in self._engines:
                self._engines[params] = await Engine.open(params(self._options))
            return self._engines[params]

    # -- text --

    async def Predict(
        self, request: pb.PredictOptions, context: grpc.aio.ServicerContext[pb.PredictOptions, pb.Reply]
    ) -> pb.Reply:
        async with self._answering(request, context) as (answer, batches):
            chunks: list[Chunk] = []
            async for batch in batches:
                chunks += batch
            return answer.read(chunks) or pb.Reply()

    async def PredictStream(
        self, request: pb.PredictOptions, context: grpc.aio.ServicerContext[pb.PredictOptions, pb.Reply]
    ) -> AsyncIterator[pb.Reply]:
        async with self._answering(request, context) as (answer, batches):
            async for batch in batches:
                if reply := answer.read(batch):
                    yield reply

    @contextlib.asynccontextmanager
    async def _answering(
        self, request: pb.PredictOptions, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[tuple[Answer, AsyncIterator[list[Chunk]]]]:
        """The call and its reader; on leaving, the call is ended and what is known of it sent as trailing metadata."""
        engine = await self._engine(text_params)
        asked = prompt(request)
        if probe := schema_probe(asked):
            await _check_kept(engine, probe)
        answer = Answer(asked.top_logprobs)
        async with contextlib.aclosing(engine.stream(asked.chat, asked.body)) as batches:
            yield answer, batches
        self._tokens_per_second = answer.tokens_per_second
        context.set_trailing_metadata(answer.trailing(self.identity))

    # -- tokens and vectors --

    async def TokenizeString(
        self,
        request: pb.PredictOptions,
        context: grpc.aio.ServicerContext[pb.PredictOptions, pb.TokenizationResponse],
    ) -> pb.TokenizationResponse:
        engine = await self._engine(text_params)
        tokens = (await engine.http("POST", "/tokenize", {"content": request.Prompt}))["tokens"]
        return pb.TokenizationResponse(length=len(tokens), tokens=tokens)

    async def Detokenize(
        self,
        request: pb.DetokenizeRequest,
        context: grpc.aio.ServicerContext[pb.DetokenizeRequest, pb.DetokenizeResponse],
    ) -> pb.DetokenizeResponse:
        engine = await self._engine(text_params)
        answer = await engine.http("POST", "/detokenize", {"tokens": list(request.tokens)})
        return pb.DetokenizeResponse(content=answer["content"])

    async def Embedding(
        self, request: pb.PredictOptions, context: grpc.aio.ServicerContext[pb.PredictOptions, pb.EmbeddingResult]
    ) -> pb.EmbeddingResult:
        text = request.Embeddings or list(request.EmbeddingTokens)
        if not text:
            raise refused("there is nothing to embed: Embeddings and EmbeddingTokens are both empty")
        engine = await self._engine(vector_params)
        answer = await engine.vector(text)
        vector = answer["data"][0]["embedding"]
        return pb.EmbeddingResult(
            embeddings=vector,
            tokens=1,
            dim=len(vector),
            prompt_tokens=answer["usage"]["prompt_tokens"],
            layout=pb.EMBEDDING_LAYOUT_FINAL,
        )

    # -- what is going on --

    async def Status(
        self, request: pb.HealthMessage, context: grpc.aio.ServicerContext[pb.HealthMessage, pb.StatusResponse]
    ) -> pb.StatusResponse:
        if self._options is None:
            return pb.StatusResponse(state=State.UNINITIALIZED, memory=_memory())
        busy = any(slot["is_processing"] for slot in await self._slots())
        return pb.StatusResponse(state=State.BUSY if busy else State.READY, memory=_memory())

    async def GetMetrics(
        self, request: pb.MetricsRequest, context: grpc.aio.ServicerContext[pb.MetricsRequest, pb.MetricsResponse]
    ) -> pb.MetricsResponse:
        await self._engine(text_params)
        # one slot fits into the answer: a busy one, else the one that was used last
        slot = max(await self._slots(), key=lambda slot: (slot["is_processing"], slot.get("id_task", -1)))
        work = (slot.get("next_token") or [{}])[0]
        return pb.MetricsResponse(
            slot_id=slot["id"],
            tokens_per_second=self._tokens_per_second,
            tokens_generated=work.get("n_decoded", 0),
            prompt_tokens_processed=slot.get("n_prompt_tokens_processed", 0),
        )

    async def ModelMetadata(
        self,
        request: pb.ModelOptions,
        context: grpc.aio.ServicerContext[pb.ModelOptions, pb.ModelMetadataResponse],
    ) -> pb.ModelMetadataResponse:
        engine = await self._engine(text_params)
        facts = await engine.http("GET", "/props")
        sample = {"messages": [{"role": "user", "content": "Hello"}]}
        rendered = await engine.http("POST", "/apply-template", sample)
        template = facts.get("chat_template", "")
        return pb.ModelMetadataResponse(
            supports_thinking="enable_thinking" in template or "<think>" in template,
            rendered_template=rendered["prompt"],
            media_marker=facts.get("media_marker", ""),
        )

    async def _slots(self) -> list[dict[str, Any]]:
        return [slot for engine in list(self._engines.values()) for slot in await engine.http("GET", "/slots")]


async def _check_kept(engine: Engine, probe: dict[str, Any]) -> None:
    async with contextlib.aclosing(engine.stream(False, probe)) as batches:
        replies = [reply async for batch in batches if (reply := Answer().read(batch))]
    if b"".join(reply.message for reply in replies) == b"#":
        raise refused("Grammar: llama.cpp can't keep to this JSON schema for a finished prompt; its log says why")


def _memory() -> pb.MemoryUsageData | None:
    """What this process holds, in bytes, where the system tells it as Linux does."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {
        key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    breakdown = {"anonymous": sizes.get("RssAnon", 0), "mapped_files": sizes.get("RssFile", 0)}
    return pb.MemoryUsageData(total=sizes.get("VmRSS", 0), breakdown=breakdown)

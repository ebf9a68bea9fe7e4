"""`POST /v1/chat/completions` and `POST /v1/embeddings`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from llmg.core.assemble import assemble
from llmg.core.context import Context, Principal
from llmg.core.errors import Failure
from llmg.core.events import Batch, Whole
from llmg.core.request import Chat, Embed, Request
from llmg.doors.http.exchange import header_of
from llmg.doors.http.stream import Stream, commented
from llmg.doors.rest.exchange import Exchange, Guarded
from llmg.ports import Provider
from llmg.services.admission import Admission, seconds
from llmg.services.whole import whole
from llmg.wire import sse
from llmg.wire.openai import DIALECT
from llmg.wire.openai.answers import encode_answer
from llmg.wire.openai.chunks import ChunkEncoder
from llmg.wire.openai.embeddings import decode_embed, encode_embeddings
from llmg.wire.openai.errors import encode_error
from llmg.wire.openai.requests import decode_chat
from llmg.wire.openai.splice import splice_answer

_EVENT_STREAM: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_HEARTBEAT: Final = sse.comment(b"heartbeat")


class Asking(Guarded):
    """What is asked by a POST, with one context a request."""

    methods = frozenset({"POST"})

    def context(self, exchange: Exchange, principal: Principal) -> Context:
        """The request's. Raises Failure (invalid_request)."""
        context = exchange.context = self._admission.context(
            "rest",
            exchange.request_id,
            principal,
            traceparent=exchange.header(b"traceparent"),
            session=exchange.header(b"x-llmg-session"),
            remaining=seconds(exchange.header(b"x-llmg-timeout")),
        )
        context.header = partial(header_of, exchange.headers)
        return context


class Inference(Asking):
    """What both have in common: the pipeline."""

    def __init__(self, pipeline: Provider, admission: Admission, max_body: int, heartbeat: float) -> None:
        """`max_body` in bytes, `heartbeat` in seconds."""
        super().__init__(admission)
        self._pipeline = pipeline
        self._max_body = max_body
        self._heartbeat = heartbeat

    async def _whole(
        self, exchange: Exchange, request: Request, context: Context, encode: Callable[[Batch, Context], bytes]
    ) -> None:
        exchange.watch()
        events = await whole(self._pipeline, request, context)
        await exchange.answer(200, encode(events, context), exchange.way())


class ChatCompletions(Inference):
    """Chat, whole or streamed."""

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        principal = self.admit(exchange)
        exchange.check_encoding()
        asked = decode_chat(await exchange.body(self._max_body))
        chat, context = asked.chat, self.context(exchange, principal)
        if chat.stream:
            await self._stream(exchange, chat, context, ChunkEncoder(chat.model, asked.include_usage))
        else:
            await self._whole(exchange, chat, context, partial(_chat_answer, chat.model))

    async def _stream(self, exchange: Exchange, chat: Chat, context: Context, encoder: ChunkEncoder) -> None:
        stream = Stream(
            exchange,
            headers=_EVENT_STREAM,
            more=exchange.way,
            heartbeat=_HEARTBEAT,
            interval=self._heartbeat,
            failing=_error_event,
            late=commented,
        )
        exchange.watch()
        await stream.carry(self._send(stream, chat, context, encoder), sse.DONE)

    async def _send(self, stream: Stream, chat: Chat, context: Context, encoder: ChunkEncoder) -> None:
        async with self._pipeline.open(chat, context) as batches:
            async for batch in batches:
                await stream.send(encoder.encode(batch))


class Embeddings(Inference):
    """Vectors for texts."""

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        principal = self.admit(exchange)
        exchange.check_encoding()
        embed: Embed = decode_embed(await exchange.body(self._max_body))
        await self._whole(exchange, embed, self.context(exchange, principal), partial(_embeddings_answer, embed))


def _chat_answer(model: str, events: Batch, context: Context) -> bytes:
    if isinstance(events, Whole) and events.dialect == DIALECT:
        return splice_answer(events.raw, context.id, model)
    return encode_answer(assemble(events), model)


def _embeddings_answer(embed: Embed, events: Batch, _: Context) -> bytes:
    return encode_embeddings(assemble(events), embed)


def _error_event(failure: Failure) -> bytes:
    return sse.encode(encode_error(failure))

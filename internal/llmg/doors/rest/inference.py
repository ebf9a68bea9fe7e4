"""`POST /v1/chat/completions` and `POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from llmg.core.assemble import assemble
from llmg.core.context import Context, Principal
from llmg.core.errors import Failure, Kind, internal
from llmg.core.events import Batch, Whole
from llmg.core.request import Chat, Embed, Request
from llmg.doors.rest.exchange import Exchange, Guarded
from llmg.ports import Provider
from llmg.services.admission import Admission
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


class Inference(Guarded):
    """What both have in common: the pipeline, and one context a request."""

    methods = frozenset({"POST"})

    def __init__(self, pipeline: Provider, admission: Admission, max_body: int, heartbeat: float) -> None:
        """`max_body` in bytes, `heartbeat` in seconds."""
        super().__init__(admission)
        self._pipeline = pipeline
        self._max_body = max_body
        self._heartbeat = heartbeat

    def _context(self, exchange: Exchange, principal: Principal) -> Context:
        trace = exchange.header(b"traceparent")
        return self._admission.context("rest", exchange.request_id, principal, traceparent=trace)

    async def _whole(
        self, exchange: Exchange, request: Request, context: Context, encode: Callable[[Batch, Context], bytes]
    ) -> None:
        exchange.watch()
        events: Batch = ()
        async with self._pipeline.open(request, context) as batches:
            async for batch in batches:
                events = [*events, *batch] if events else batch
        await exchange.answer(200, encode(events, context), _route(context))


class ChatCompletions(Inference):
    """Chat, whole or streamed."""

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        principal = self.admit(exchange)
        asked = decode_chat(await exchange.body(self._max_body))
        chat, context = asked.chat, self._context(exchange, principal)
        if chat.stream:
            await self._stream(exchange, chat, context, ChunkEncoder(chat.model, asked.include_usage))
        else:
            await self._whole(exchange, chat, context, partial(_chat_answer, chat.model))

    async def _stream(self, exchange: Exchange, chat: Chat, context: Context, encoder: ChunkEncoder) -> None:
        stream = _EventStream(exchange, context, self._heartbeat)
        exchange.watch()
        try:
            async with self._pipeline.open(chat, context) as batches:
                async for batch in batches:
                    await stream.send(encoder.encode(batch))
            await stream.end(sse.DONE)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if exchange.left or task is None or task.cancelling() == 0:
                raise
            await stream.fail(Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))  # it is the server that ends
        except Failure as failure:
            await stream.fail(failure)
        except Exception as error:  # noqa: BLE001 - a stream under way must end with a clear error, whatever it was
            await stream.fail(internal(error))
        finally:
            stream.close()


class Embeddings(Inference):
    """Vectors for texts."""

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        principal = self.admit(exchange)
        embed: Embed = decode_embed(await exchange.body(self._max_body))
        await self._whole(exchange, embed, self._context(exchange, principal), partial(_embeddings_answer, embed))


def _chat_answer(model: str, events: Batch, context: Context) -> bytes:
    if isinstance(events, Whole) and events.dialect == DIALECT:
        return splice_answer(events.raw, context.id, model)
    return encode_answer(assemble(events), model)


def _embeddings_answer(embed: Embed, events: Batch, _: Context) -> bytes:
    return encode_embeddings(assemble(events), embed)


class _EventStream:
    """A stream of server-sent events: its head waits for content, and when that is long in coming, heartbeats go."""

    __slots__ = ("_beating", "_context", "_exchange", "_interval", "_last", "_loop", "_timer", "_writing")

    def __init__(self, exchange: Exchange, context: Context, interval: float) -> None:
        self._exchange = exchange
        self._context = context
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._beating: asyncio.Task[None] | None = None
        self._writing = False
        self._timer = self._loop.call_at(self._last + interval, self._fire)

    async def send(self, data: bytes) -> None:
        if not data:
            return
        if self._beating is not None or not self._exchange.started:
            await self._begin()
        self._last = self._loop.time()
        self._writing = True
        await self._exchange.write(data)
        self._writing = False

    async def end(self, data: bytes) -> None:
        self._timer.cancel()
        await self._begin()
        await self._exchange.write(data, more=False)

    async def _begin(self) -> None:
        if self._beating is not None:
            await self._beating
        if not self._exchange.started:
            await self._exchange.start(200, [*_EVENT_STREAM, *_route(self._context)])

    async def fail(self, failure: Failure) -> None:
        """Before the head, a status of its own; after it, an error event, and no [DONE]."""
        self._timer.cancel()
        if self._beating is not None:
            await self._beating
        if not self._exchange.started:
            raise failure
        self._exchange.report(failure)
        await self._exchange.write(sse.encode(encode_error(failure)), more=False)

    def close(self) -> None:
        self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()

    def _fire(self) -> None:
        now = self._loop.time()
        if self._writing or self._beating is not None:
            self._last = now  # the client does not read what there is
        elif now - self._last >= self._interval:
            self._last = now
            self._beating = self._loop.create_task(self._beat())
        self._timer = self._loop.call_at(self._last + self._interval, self._fire)

    async def _beat(self) -> None:
        if not self._exchange.started:
            await self._exchange.start(200, _EVENT_STREAM)
        await self._exchange.write(_HEARTBEAT)
        self._beating = None


def _route(context: Context) -> list[tuple[bytes, bytes]]:
    """Where the answer comes from, and after how many tries."""
    if not context.trail:
        return []
    route = (b"x-llmg-route", context.route.encode())
    return [route] if len(context.trail) == 1 else [route, (b"x-llmg-attempts", b"%d" % len(context.trail))]

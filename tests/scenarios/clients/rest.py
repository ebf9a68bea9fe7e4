"""REST in OpenAI's shape: whole, and as server-sent events."""

from __future__ import annotations

from typing import Any

import msgspec

from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.core.events import Event
from llmg.testing.conformance import a_context
from llmg.wire import sse
from llmg.wire.openai.answers import decode_answer
from llmg.wire.openai.chunks import ChunkDecoder
from scenarios.asking import Asked, Told, failed, told
from scenarios.clients.http import Posted, door
from support.http import Response


def _streaming(asked: Asked, _: float | None) -> dict[str, Any]:
    return {**asked.openai, "stream": True, "stream_options": {"include_usage": True}}


def _refused(response: Response) -> Told:
    error, after = response.error, response.headers.get("retry-after")
    return failed(Kind(error["code"]), error["param"], None if after is None else float(after))


def _whole(response: Response) -> Told:
    if response.status != 200:
        return _refused(response)
    return told(assemble(decode_answer(response.body, a_context())))


def _streamed(response: Response) -> Told:
    if response.status != 200:
        return _refused(response)
    decoder, out = ChunkDecoder(a_context()), list[Event]()
    for event in sse.Decoder().feed(response.body):
        if event.data == b"[DONE]":
            decoder.end(out)
            return told(assemble(out))
        if error := msgspec.json.decode(event.data).get("error"):
            return failed(Kind(error["code"]), error["param"])
        decoder.feed(event.data, out)
    raise AssertionError("the stream has no end")


def _header(seconds: float) -> dict[str, str]:
    return {"X-Llmg-Timeout": str(seconds)}


PATH = "/v1/chat/completions"
DOORS = {
    "REST SSE": door(
        Posted(
            path=PATH, body=_streaming, told=_streamed, deadline=_header, content=lambda read: b'"content":"' in read
        ),
        streams=True,
    ),
    "REST unary": door(
        Posted(path=PATH, body=lambda asked, _: asked.openai, told=_whole, deadline=_header), streams=False
    ),
}

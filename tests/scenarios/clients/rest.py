"""REST in OpenAI's shape: whole, and as server-sent events."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.core.events import Event
from llmg.testing.conformance import a_context
from llmg.wire import sse
from llmg.wire.openai.answers import decode_answer
from llmg.wire.openai.chunks import ChunkDecoder
from llmg.wire.openai.embeddings import decode_embeddings
from scenarios.asking import Asked, Told, failed, told
from scenarios.asking import Reader as Looking
from scenarios.clients.http import HttpReader, Posted, door, look
from support.http import Response


def _streaming(asked: Asked, _: float | None) -> dict[str, Any]:
    return {**_typed(asked), "stream": True, "stream_options": {"include_usage": True}}


def _packed(asked: Asked, _: float | None) -> dict[str, Any]:
    return {**_typed(asked), "encoding_format": "base64"}


def _typed(asked: Asked) -> dict[str, Any]:
    assert isinstance(asked.openai, dict)
    return asked.openai


def _refused(response: Response) -> Told:
    error, after = response.error, response.headers.get("retry-after")
    return failed(Kind(error["code"]), error["param"], None if after is None else float(after))


def _whole(response: Response) -> Told:
    if response.status != 200:
        return _refused(response)
    return told(assemble(decode_answer(response.body, a_context())))


def _vectors(response: Response) -> Told:
    if response.status != 200:
        return _refused(response)
    return told(assemble(decode_embeddings(response.body, a_context())))


def _packed_vectors(response: Response) -> Told:
    if response.status == 200:
        assert all(isinstance(vector["embedding"], str) for vector in response.json()["data"])
    return _vectors(response)


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


class Reader(HttpReader, Looking):
    """Of the lists."""

    async def models(self) -> list[str] | Told:
        """See Reader."""
        response = await self.get("/v1/models")
        return [model["id"] for model in response.json()["data"]] if response.status == 200 else _refused(response)

    async def model(self, name: str) -> list[str] | Told:
        """See Reader."""
        response = await self.get(f"/v1/models/{quote(name)}")
        return [response.json()["id"]] if response.status == 200 else _refused(response)


PATH = "/v1/chat/completions"
VECTORS = "/v1/embeddings"
DOORS = {
    "REST SSE": door(
        Posted(
            path=PATH, body=_streaming, told=_streamed, deadline=_header, content=lambda read: b'"content":"' in read
        ),
        streams=True,
    ),
    "REST unary": door(
        Posted(path=PATH, body=lambda asked, _: asked.openai, told=_whole, deadline=_header), raw="openai"
    ),
}
EMBEDDERS = {
    "REST": door(
        Posted(path=VECTORS, body=lambda asked, _: asked.openai, told=_vectors, deadline=_header), raw="openai"
    ),
    "REST base64": door(Posted(path=VECTORS, body=_packed, told=_packed_vectors, deadline=_header)),
}
READERS = {"REST": look(Reader, missing=failed(Kind.MODEL_NOT_FOUND, "model"))}

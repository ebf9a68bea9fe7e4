"""The REST gateway: whole, as server-sent events, as newline-delimited JSON."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format

from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.core.events import Event, check
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1.embeddings_pb2 import CreateEmbeddingsResponse
from scenarios.asking import Administrator, Asked, Told, failed, told
from scenarios.clients.grpc import vectors
from scenarios.clients.http import HttpReader, Posted, door, look
from support import gatewayapi
from support.http import Response

PATH = "/api/v1/chat/completions"
VECTORS = "/api/v1/embeddings"


def _body(asked: Asked, _: float | None) -> Any:
    return asked.gateway


def _refused(response: Response) -> Told:
    assert response.headers["content-type"] == "application/vnd.api+json"
    after = response.headers.get("retry-after")
    return _failed(response.json(), None if after is None else float(after))


def _failed(document: dict[str, Any], after: float | None = None) -> Told:
    (error,) = document.get("errors", [document])
    source = error.get("source", {})
    return failed(Kind(error["code"].lower()), source.get("pointer") or source.get("parameter"), after)


def _whole(response: Response) -> Told:
    if response.status != 200:
        return _refused(response)
    completion = json_format.Parse(response.body, pb.ChatCompletion())
    return told(assemble(gatewayapi.whole(completion)))


def _vectors(response: Response) -> Told:
    if response.status != 200:
        return _refused(response)
    return vectors(json_format.Parse(response.body, CreateEmbeddingsResponse()))


def _streamed(pieces: re.Pattern[bytes], response: Response) -> Told:
    if response.status != 200:
        return _refused(response)
    assert response.headers["transfer-encoding"] == "chunked"
    events: list[Event] = []
    for piece in pieces.finditer(response.body):
        if piece["error"]:
            return _failed(json.loads(piece["error"]))
        events += gatewayapi.events([json_format.Parse(piece["message"], pb.CreateChatCompletionStreamResponse())])
    check(events)
    return told(assemble(events))


def _stream(accept: str, pieces: bytes) -> Posted:
    return Posted(
        path=f"{PATH}:stream",
        body=_body,
        told=partial(_streamed, re.compile(pieces, re.M)),
        headers={"Accept": accept},
        deadline=_deadline,
        content=lambda read: b'"delta"' in read,
    )


def _deadline(seconds: float) -> dict[str, str]:
    return {"Grpc-Timeout": f"{int(seconds * 1000)}m"}


class Reader(HttpReader, Administrator):
    """Of the lists."""

    async def models(self) -> list[str] | Told:
        """See Reader."""
        return self._names(await self.get("/api/v1/models"), "models", "id")

    async def model(self, name: str) -> list[str] | Told:
        """See Reader."""
        response = await self.get(f"/api/v1/models/{quote(name)}")
        return [response.json()["id"]] if response.status == 200 else _refused(response)

    async def tenants(self) -> list[str] | Told:
        """See Administrator."""
        return self._names(await self.get("/api/v1/tenants"), "levels", "name")

    def _names(self, response: Response, what: str, name: str) -> list[str] | Told:
        return [one[name] for one in response.json()[what]] if response.status == 200 else _refused(response)


DOORS = {
    "gateway unary": door(Posted(path=PATH, body=_body, told=_whole, deadline=_deadline), raw="gateway"),
    "gateway SSE": door(
        _stream("text/event-stream", rb"^(?:event: error\ndata: (?P<error>.*)|data: (?P<message>.*))$"),
        streams=True,
        raw="gateway",
    ),
    "gateway NDJSON": door(
        _stream("application/x-ndjson", rb'^(?:\{"error":(?P<error>.*)\}|\{"result":(?P<message>.*)\})$'),
        streams=True,
        raw="gateway",
    ),
}
EMBEDDERS = {"gateway": door(Posted(path=VECTORS, body=_body, told=_vectors, deadline=_deadline), raw="gateway")}
READERS = {"gateway": look(Reader, missing=failed(Kind.MODEL_NOT_FOUND, "id"), administers=True)}

"""The REST gateway: whole, as server-sent events, as newline-delimited JSON."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from google.protobuf import json_format

from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.core.events import Event, check
from llmg.gatewayapi.v1 import chat_pb2 as pb
from scenarios.asking import Asked, Told, failed, told
from scenarios.clients.http import Posted, door
from support import gatewayapi
from support.http import Response

PATH = "/api/v1/chat/completions"


def _body(asked: Asked, _: float | None) -> dict[str, Any]:
    return asked.gateway


def _refused(response: Response) -> Told:
    assert response.headers["content-type"] == "application/vnd.api+json"
    after = response.headers.get("retry-after")
    return _failed(response.json(), None if after is None else float(after))


def _failed(document: dict[str, Any], after: float | None = None) -> Told:
    (error,) = document.get("errors", [document])
    return failed(Kind(error["code"].lower()), error.get("source", {}).get("pointer"), after)


def _whole(response: Response) -> Told:
    if response.status != 200:
        return _refused(response)
    completion = json_format.Parse(response.body, pb.ChatCompletion())
    return told(assemble(gatewayapi.whole(completion)))


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


DOORS = {
    "gateway unary": door(Posted(path=PATH, body=_body, told=_whole, deadline=_deadline), streams=False),
    "gateway SSE": door(
        _stream("text/event-stream", rb"^(?:event: error\ndata: (?P<error>.*)|data: (?P<message>.*))$"), streams=True
    ),
    "gateway NDJSON": door(
        _stream("application/x-ndjson", rb'^(?:\{"error":(?P<error>.*)\}|\{"result":(?P<message>.*)\})$'), streams=True
    ),
}

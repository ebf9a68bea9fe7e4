"""GraphQL: a mutation, and a subscription over each transport."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.core.events import Event, check
from llmg.wire import sse
from scenarios.asking import Asked, Told, failed, told
from scenarios.clients.http import Posted, door
from support import graphql
from support.http import Response


def operation(document: str, asked: Asked, timeout: float | None) -> dict[str, Any]:
    """A request's body."""
    return {"query": document, "variables": {"input": graphql.input_of(asked.gateway), "timeout": timeout}}


def refused(result: dict[str, Any]) -> Told | None:
    """What an answer's error tells, if there is one."""
    if not (errors := result.get("errors")):
        return None
    (error,) = errors
    given = error["extensions"]
    return failed(Kind[given["code"]], given.get("param"), given.get("retryAfter"))


def streamed(results: Iterator[dict[str, Any]]) -> Told:
    """What a subscription's results tell."""
    events: list[Event] = []
    for result in results:
        if (failure := refused(result)) is not None:
            return failure
        events += graphql.events([result["data"]["chatCompletion"]])
    check(events)
    return told(assemble(events))


def _whole(response: Response) -> Told:
    result = response.json()
    return refused(result) or told(assemble(graphql.whole(result["data"]["createChatCompletion"])))


def _by_sse(response: Response) -> Told:
    return _refused_whole(response) or streamed(_sse_results(response.body))


def _sse_results(body: bytes) -> Iterator[dict[str, Any]]:
    for event in sse.Decoder().feed(body):
        if event.type == b"complete":
            return
        if event.data:
            yield json.loads(event.data)
    raise AssertionError("the stream has no end")


def _by_multipart(response: Response) -> Told:
    return _refused_whole(response) or streamed(_multipart_results(response.body))


def _multipart_results(body: bytes) -> Iterator[dict[str, Any]]:
    assert body.rstrip().endswith(b"--graphql--"), "the stream has no end"
    for piece in body.split(b"--graphql")[1:-1]:
        part = json.loads(piece.partition(b"\r\n\r\n")[2])
        if part.get("payload") is not None:
            yield part["payload"]
        elif "errors" in part:
            yield part


def _refused_whole(response: Response) -> Told | None:
    return refused(response.json()) if response.headers["content-type"].startswith("application/") else None


def _by(accept: str, read: Any) -> Posted:
    return Posted(
        path="/graphql",
        body=partial(operation, graphql.STREAM),
        told=read,
        headers={"Accept": accept},
        content=lambda body: b'"Delta"' in body,
    )


DOORS = {
    "GraphQL mutation": door(
        Posted(path="/graphql", body=partial(operation, graphql.WHOLE), told=_whole), streams=False
    ),
    "GraphQL SSE": door(_by("text/event-stream", _by_sse), streams=True),
    "GraphQL multipart": door(_by('multipart/mixed;subscriptionSpec="1.0"', _by_multipart), streams=True),
}

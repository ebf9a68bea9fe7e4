"""GraphQL: a mutation, and a subscription over each transport."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from msgspec import Raw

from llmg.core.assemble import assemble
from llmg.core.errors import Kind
from llmg.core.events import Embedding, Embeddings, Event, Result, Started, check
from llmg.wire import sse
from scenarios.asking import Administrator, Asked, Told, Way, by_facts, by_headers, failed, told
from scenarios.clients.http import HttpReader, Posted, door, look
from support import graphql
from support.http import Response

VECTORS = f"""mutation ($input: CreateEmbeddingsInput!, $timeout: Float) {{
  createEmbeddings(input: $input, timeout: $timeout) {{ model embeddings {{ index values }}
    usage {{ {graphql.USAGE} }} }}
}}"""


def operation(document: str, asked: Asked, timeout: float | None) -> dict[str, Any]:
    """A request's body."""
    return {"query": document, "variables": {"input": _input(asked.gateway), "timeout": timeout}}


def _input(given: dict[str, Any] | Raw) -> Any:
    if isinstance(given, Raw):
        return Raw(bytes(given).replace(b'"ROLE_', b'"'))
    made = graphql.input_of(given)
    for one in made.get("inputs", ()):
        if "tokens" in one:
            one["tokens"] = one["tokens"]["ids"]
    return made


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


def vectors(result: dict[str, Any]) -> Told:
    """What the answer to a request for vectors tells."""
    if (failure := refused(result)) is not None:
        return failure
    payload = result["data"]["createEmbeddings"]
    found = tuple(Embedding(one["index"], tuple(one["values"])) for one in payload["embeddings"])
    events: list[Event] = [Started("", 0, payload["model"]), Result(Embeddings(found))]
    return told(assemble(events if payload["usage"] is None else [*events, graphql.usage(payload["usage"])]))


def way(results: Iterator[dict[str, Any]]) -> Way:
    """What an operation's results tell of its way: once in a stream that goes well, and again where it fails."""
    told = [by_facts(result["extensions"]) for result in results if "extensions" in result]
    return told[-1] if told else Way()


def _way(results: Callable[[bytes], Iterator[dict[str, Any]]], response: Response) -> Way:
    """By the body; the headers tell the same."""
    found = way(results(response.body))
    assert found == by_headers(response.headers)
    return found


def _streamed_way(results: Callable[[bytes], Iterator[dict[str, Any]]], response: Response) -> Way:
    whole = response.headers["content-type"].startswith("application/")
    return _way(_one if whole else results, response)


def _one(body: bytes) -> Iterator[dict[str, Any]]:
    yield json.loads(body)


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


def _by(accept: str, read: Any, results: Callable[[bytes], Iterator[dict[str, Any]]]) -> Posted:
    return Posted(
        path="/graphql",
        body=partial(operation, graphql.STREAM),
        told=read,
        headers={"Accept": accept},
        content=lambda body: b'"Delta"' in body,
        way=partial(_streamed_way, results),
    )


class Reader(HttpReader, Administrator):
    """Of the lists."""

    async def models(self) -> list[str] | Told:
        """See Reader."""
        return await self._names("{ models { id } }", lambda data: [one["id"] for one in data["models"]])

    async def model(self, name: str) -> list[str] | Told:
        """See Reader."""
        asked = f"{{ model(id: {json.dumps(name)}) {{ id }} }}"
        return await self._names(asked, lambda data: [data["model"]["id"]])

    async def tenants(self) -> list[str] | Told:
        """See Administrator."""
        asked = "{ levels { levels { name } } }"
        return await self._names(asked, lambda data: [one["name"] for one in data["levels"]["levels"]])

    async def _names(self, document: str, names: Callable[[dict[str, Any]], list[str]]) -> list[str] | Told:
        result = (await self.post("/graphql", {"query": document})).json()
        return refused(result) or names(result["data"])


DOORS = {
    "GraphQL mutation": door(
        Posted(path="/graphql", body=partial(operation, graphql.WHOLE), told=_whole, way=partial(_way, _one)),
        raw="graphql",
    ),
    "GraphQL SSE": door(_by("text/event-stream", _by_sse, _sse_results), streams=True, raw="graphql"),
    "GraphQL multipart": door(
        _by('multipart/mixed;subscriptionSpec="1.0"', _by_multipart, _multipart_results), streams=True, raw="graphql"
    ),
}
EMBEDDERS = {
    "GraphQL mutation": door(
        Posted(
            path="/graphql",
            body=partial(operation, VECTORS),
            told=lambda response: vectors(response.json()),
            way=partial(_way, _one),
        ),
        raw="graphql",
    )
}
READERS = {"GraphQL": look(Reader, missing=failed(Kind.MODEL_NOT_FOUND, "id"), administers=True)}

"""The GraphQL door over HTTP: queries, mutations, streams, errors, limits, and who may send what."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlencode

import pytest
from graphql import get_introspection_query
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from graph.serving import CHAT, STREAM, Door, asking, serving
from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Closed, Delta, Embeddings, Event, Finished, Notice, Opened, Result, Started, TokenLogprob
from llmg.core.request import Chat, Request
from llmg.core.usage import Usage
from llmg.doors.graphql.errors import CODES
from llmg.doors.http.server import LimitedProtocol
from llmg.ports import Answering
from llmg.providers.echo import Echo
from llmg.testing.scripted import Gate, Script, Scripted, saying
from support.http import PATIENCE, connect, cut_events, request

EVENTS = "text/event-stream"
MULTIPART = 'multipart/mixed;boundary="graphql";subscriptionSpec=1.0,application/json'
RESPONSE = "application/graphql-response+json"
SERVERS = [pytest.param(LimitedProtocol, id="our server"), pytest.param(HttpToolsProtocol, id="another server")]


def payloads(body: bytes) -> list[Any]:
    """Of a stream of server-sent events, which must be complete."""
    *events, last = body.decode().split("\n\n")[:-1]
    assert last == "event: complete\ndata: "
    return [json.loads(event.removeprefix("event: next\ndata: ")) for event in events if not event.startswith(":")]


def parts(body: bytes) -> list[Any]:
    """Of a multipart stream, which must be complete."""
    first, *blocks, last = body.decode().split("\r\n--graphql")
    assert (first, last) == ("", "--\r\n")
    return [json.loads(block.partition("\r\n\r\n")[2]) for block in blocks]


async def test_models() -> None:
    async with serving() as door:
        answer = await door.ask("{ models { id created ownedBy operations } }")
    assert answer["data"]["models"] == [
        {"id": "m", "created": 1_700_000_000, "ownedBy": "echo", "operations": ["chat", "embed"]}
    ]


async def test_a_model_is_a_node() -> None:
    async with serving() as door:
        answer = await door.ask('{ model(id: "m") { id } node(id: "m") { id ... on Model { ownedBy } } }')
    assert answer["data"] == {"model": {"id": "m"}, "node": {"id": "m", "ownedBy": "echo"}}


async def test_an_unknown_model() -> None:
    async with serving() as door:
        answer = await door.ask('{ model(id: "x") { id } models { id } }')
    assert answer["data"] == {"model": None, "models": [{"id": "m"}]}
    assert answer["errors"][0]["extensions"]["code"] == "MODEL_NOT_FOUND"


async def test_a_whole_answer() -> None:
    async with serving() as door:
        response = await door.post({"query": CHAT, "variables": asking()}, x_request_id="mine")
    assert response.json()["data"]["createChatCompletion"] == {
        "id": "id1",
        "model": "m",
        "choices": [{"text": "Hello there"}],
    }
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["content-type"] == "application/json; charset=utf-8"


async def test_all_of_a_request_arrives() -> None:
    provider = Scripted(saying("ok"))
    full = asking(
        tools=[{"name": "f", "parameters": {"type": "object"}, "strict": True}],
        toolChoice={"mode": "NAMED", "name": "f"},
        parallelToolCalls=False,
        outputFormat={"schema": {"schema": {"type": "object"}, "name": "s"}},
        sampling={"temperature": 0.5, "topP": 0.9, "topK": 5, "logitBias": {"7": -1.5}, "maxTokens": 9},
        n=2,
        stop=["."],
        seed=2**40,
        logprobs=True,
        topLogprobs=3,
        reasoningEffort="low",
        user="u",
        metadata={"a": "b"},
        extra={"store": True},
    )
    async with serving(provider) as door:
        await door.ask(CHAT, full)
    chat = provider.calls[0].request
    assert isinstance(chat, Chat)
    plain: Any = json.loads(json.dumps({name: _plain(getattr(chat, name)) for name in chat.__struct_fields__}))
    assert plain["tools"] == ["Tool(name='f', description=UNSET, parameters={'type': 'object'}, strict=True)"]
    assert plain["tool_choice"] == "ToolChoice(mode='named', name='f')"
    assert plain["output"].startswith("SchemaOutput(schema={'type': 'object'}, name='s'")
    assert (chat.sampling.top_k, chat.sampling.logit_bias, chat.sampling.max_tokens) == (5, {"7": -1.5}, 9)
    assert (chat.n, chat.stop, chat.seed, chat.logprobs, chat.top_logprobs) == (2, (".",), 2**40, True, 3)
    assert (chat.reasoning_effort, chat.user, chat.metadata, chat.extra) == ("low", "u", {"a": "b"}, {"store": True})
    assert (chat.parallel_tool_calls, chat.stream) == (False, False)


def _plain(value: Any) -> Any:
    return [repr(item) for item in value] if isinstance(value, tuple) else repr(value)


async def test_all_kinds_of_parts_arrive_in_order() -> None:
    provider = Scripted(saying("ok"))
    given: list[dict[str, Any]] = [
        {"text": {"text": "t"}},
        {"image": {"url": "http://i", "detail": "low"}},
        {"audio": {"data": "AAEC", "format": "wav"}},
        {"file": {"id": "f"}},
        {"toolCall": {"id": "c", "name": "f", "arguments": "{}"}},
        {"toolResult": {"callId": "c", "parts": [{"text": {"text": "r"}}]}},
        {"reasoning": {"text": "hm"}},
        {"refusal": {"text": "no"}},
    ]
    async with serving(provider) as door:
        await door.ask(CHAT, asking(messages=[{"role": "ASSISTANT", "parts": given}]))
    chat = provider.calls[0].request
    assert isinstance(chat, Chat)
    names = [type(part).__name__ for part in chat.messages[0].parts]
    assert names == ["Text", "Image", "Audio", "File", "ToolCall", "ToolResult", "Reasoning", "Refusal"]
    assert getattr(chat.messages[0].parts[2], "data") == "AAEC"  # noqa: B009 - the union has it in one member


async def test_embeddings() -> None:
    query = """mutation ($input: CreateEmbeddingsInput!) { createEmbeddings(input: $input) {
      model embeddings { index values } usage { inputTokens estimated } } }"""
    given = {"input": {"model": "m", "inputs": [{"text": "a b"}, {"tokens": [1, 2]}], "dimensions": 3}}
    async with serving() as door:
        answer = (await door.ask(query, given))["data"]["createEmbeddings"]
    assert [(e["index"], len(e["values"])) for e in answer["embeddings"]] == [(0, 3), (1, 3)]
    assert answer["usage"] == {"inputTokens": 4, "estimated": True}


@pytest.mark.parametrize(("accept", "cut"), [(EVENTS, payloads), (MULTIPART, parts)], ids=["SSE", "multipart"])
async def test_a_stream(accept: str, cut: Any) -> None:
    script: list[list[Event]] = [
        [Started("a", 1, "up"), Opened(0, 0, "reasoning"), Delta(0, 0, "hm"), Closed(0, 0), Opened(0, 1, "text")],
        [],
        [Delta(0, 1, "Grü"), Delta(0, 1, "ße", (TokenLogprob("ße", -0.5, (195, 159)),))],
        [Closed(0, 1), Finished(0, "stop"), Usage(input_tokens=1), Notice("switched", {"to": "b"})],
    ]
    async with serving(Scripted(script)) as door:
        response = await door.post({"query": STREAM, "variables": asking()}, accept=accept)
    given = [item.get("payload", item)["data"]["chatCompletion"] for item in cut(response.body)]
    assert [payload["text"] for payload in given] == ["", "Grüße", ""]
    assert [[event["__typename"] for event in payload["events"]] for payload in given] == [
        ["Started", "Opened", "Delta", "Closed", "Opened"],
        ["Delta", "Delta"],
        ["Closed", "Finished", "Usage", "Notice"],
    ]
    assert given[1]["events"][0] == {"__typename": "Delta", "part": 1, "delta": "Grü"}
    assert given[2]["events"][1]["reason"] == "STOP"


async def test_a_stream_that_fails_ends_with_the_error() -> None:
    failure = Failure(Kind.UPSTREAM_RATE_LIMITED, "slow down", retry_after=1.5, code="tpm", detail="secret")
    async with serving(Scripted([*saying("Hi")[:2], failure])) as door:
        response = await door.post({"query": STREAM, "variables": asking()}, accept=EVENTS, x_request_id="r")
    *events, last = payloads(response.body)
    assert [event["data"]["chatCompletion"]["text"] for event in events] == ["", "Hi"]
    assert last["errors"][0]["message"] == "slow down"
    extensions = {"code": "UPSTREAM_RATE_LIMITED", "requestId": "r", "retryAfter": 1.5, "upstreamCode": "tpm"}
    assert last["errors"][0]["extensions"] == extensions
    assert b"secret" not in response.body


async def test_heartbeats_while_nothing_comes() -> None:
    gate = Gate()
    async with serving(Scripted([gate, *saying("Hi")]), heartbeat=0.01) as door, connect(door.address) as connection:
        body = json.dumps({"query": STREAM, "variables": asking()}).encode()
        headers = {"Content-Type": "application/json", "Accept": EVENTS}
        await connection.send(request("POST", "/graphql", body, headers))
        assert (await connection.head())[0] == 200
        assert cut_events(await connection.chunk()) == [": heartbeat"]
        gate.open()
        assert b"Hi" in b"".join([piece async for piece in connection.chunks()])


@pytest.mark.parametrize("http", SERVERS)
@pytest.mark.parametrize(("query", "accept"), [(CHAT, "*/*"), (STREAM, EVENTS), (STREAM, MULTIPART)])
async def test_a_client_that_leaves_ends_the_upstream(query: str, accept: str, http: Any) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate])
    before = asyncio.all_tasks()
    async with serving(provider, http=http) as door:
        async with connect(door.address) as connection, asyncio.timeout(PATIENCE):
            body = json.dumps({"query": query, "variables": asking()}).encode()
            headers = {"Content-Type": "application/json", "Accept": accept}
            await connection.send(request("POST", "/graphql", body, headers))
            await gate.reached.wait()
            assert not provider.calls[0].exited.is_set()
            await connection.leave()
            await provider.calls[0].exited.wait()
        assert provider.calls[0].cancelled.is_set()
        assert provider.calls[0].exits == 1
    assert asyncio.all_tasks() <= before


async def test_a_client_that_does_not_read_and_leaves() -> None:
    """The door waits in a write then, not for the upstream."""
    big = [[Delta(0, 0, "x" * 100_000)] for _ in range(500)]
    provider = Scripted([*saying("Hi")[:1], *big, *saying("Hi")[-1:]])
    async with serving(provider) as door, connect(door.address, receive_buffer=4096) as connection:
        body = json.dumps({"query": STREAM, "variables": asking()}).encode()
        await connection.send(request("POST", "/graphql", body, {"Content-Type": "application/json", "Accept": EVENTS}))
        assert (await connection.head())[0] == 200
        await connection.leave(reset=True)
        async with asyncio.timeout(PATIENCE):
            await provider.calls[0].exited.wait()
        assert provider.calls[0].given < 500


class Routed:
    """The echo, as a router would have found it."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        context.trail.append(Attempt(provider="p", model="ü\r\nx: y", started=0.0))
        return Echo().open(request, context)


async def test_the_route_is_told() -> None:
    async with serving(Routed()) as door:
        response = await door.post({"query": CHAT, "variables": asking()})
    assert response.headers["x-llmg-route"] == "p/???x: y"
    assert "x-llmg-attempts" not in response.headers  # it was the first
    told = {"requestId": response.headers["x-request-id"], "route": "p/???x: y", "attempts": 1}
    assert response.json()["extensions"] == told


@pytest.mark.parametrize("accept", ["application/json", EVENTS])
async def test_a_server_that_stops_says_so(accept: str) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hi")[:2], gate])
    async with AsyncExitStack() as connections:
        async with serving(provider, grace=0.1) as door:
            connection = await connections.enter_async_context(connect(door.address))
            body = json.dumps({"query": STREAM if accept == EVENTS else CHAT, "variables": asking()}).encode()
            headers = {"Content-Type": "application/json", "Accept": accept}
            await connection.send(request("POST", "/graphql", body, headers))
            async with asyncio.timeout(PATIENCE):
                await gate.reached.wait()
        response = await connection.response()
    assert provider.calls[0].exits == 1
    assert b'"SHUTTING_DOWN"' in response.body
    assert response.status == (200 if accept == EVENTS else 503)


# --- errors --------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_code() -> None:
    assert CODES.keys() == set(Kind)
    assert {code for code, _ in CODES.values()} == {kind.name for kind in Kind}


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_failure_of_each_kind(kind: Kind) -> None:
    failure = Failure(kind, "what happened", param="model", detail="Traceback: secret")
    async with serving(Scripted(Script(at_enter=failure))) as door:
        response = await door.post({"query": CHAT, "variables": asking()})
    (error,) = response.json()["errors"]
    assert error["message"] == "what happened"
    assert error["path"] == ["createChatCompletion"]
    request_id = response.headers["x-request-id"]
    assert error["extensions"] == {"code": kind.name, "param": "input.model", "requestId": request_id}


async def test_our_own_mistake_shows_nothing_of_itself() -> None:
    async with serving(Scripted([RuntimeError("secret")])) as door:
        whole = await door.post({"query": CHAT, "variables": asking()})
        stream = await door.post({"query": STREAM, "variables": asking()}, accept=EVENTS)
    for body in (whole.body, stream.body):
        assert b"secret" not in body
        assert b"INTERNAL" in body


async def test_an_answer_that_is_none_of_a_chat() -> None:
    odd: list[list[Event]] = [[Started("a", 1, "m"), Result(Embeddings(()))]]
    async with serving(Scripted(odd)) as door:
        response = await door.post({"query": STREAM, "variables": asking()}, accept=EVENTS)
    assert payloads(response.body)[-1]["errors"][0]["extensions"]["code"] == "UPSTREAM_PROTOCOL"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "input.model"),
    ({"messages": []}, "input.messages"),
    ({"n": 0}, "input.n"),
    ({"n": "two"}, "input.n"),
    ({"n": 129}, "input.n"),
    ({"topLogprobs": 21, "logprobs": True}, "input.topLogprobs"),
    ({"topLogprobs": 2}, "input.topLogprobs"),
    ({"seed": "x"}, "input.seed"),
    ({"seed": 2**63}, "input.seed"),
    ({"sampling": {"temperature": 2.1}}, "input.sampling.temperature"),
    ({"sampling": {"topP": -0.1}}, "input.sampling.topP"),
    ({"sampling": {"topK": -5}}, "input.sampling.topK"),
    ({"sampling": {"repetitionPenalty": -1}}, "input.sampling.repetitionPenalty"),
    ({"sampling": {"minP": 1.5}}, "input.sampling.minP"),
    ({"sampling": {"frequencyPenalty": 3}}, "input.sampling.frequencyPenalty"),
    ({"sampling": {"presencePenalty": -3}}, "input.sampling.presencePenalty"),
    ({"sampling": {"maxTokens": 0}}, "input.sampling.maxTokens"),
    ({"sampling": {"logitBias": {"5": 101}}}, "input.sampling.logitBias.5"),
    ({"sampling": {"logitBias": [1]}}, "input.sampling.logitBias"),
    ({"tools": [{"name": ""}]}, "input.tools[0].name"),
    ({"tools": [{"name": "f", "parameters": [1]}]}, "input.tools[0].parameters"),
    ({"toolChoice": {"mode": "NAMED"}}, "input.toolChoice.name"),
    ({"outputFormat": {"json": False}}, "input.outputFormat.json"),
    ({"outputFormat": {"schema": {"schema": 1}}}, "input.outputFormat.schema.schema"),
    ({"metadata": {"a": 1}}, "input.metadata.a"),
    ({"extra": "x"}, "input.extra"),
    ({"extra": {"store": True, "model": "dear"}}, "input.extra.model"),
    ({"extra": {"stream_options": {}}}, "input.extra.stream_options"),
    ({"unheard": 1}, "input.unheard"),
    ({"messages": [{"role": "NOBODY"}]}, "input.messages[0].role"),
    ({"messages": [{"parts": []}]}, "input.messages[0].role"),
    ({"messages": [{"role": "TOOL", "parts": [{"text": {"text": "x"}}]}]}, "input.messages[0].parts"),
    (
        {"messages": [{"role": "USER", "parts": [{"audio": {"data": "*", "format": "wav"}}]}]},
        "input.messages[0].parts[0].audio.data",
    ),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{param}-{i}" for i, (_, param) in enumerate(BAD)])
async def test_bad_input_names_the_field(fields: dict[str, Any], param: str) -> None:
    async with serving() as door:
        error = await door.refused(CHAT, asking(**fields))
    assert error["extensions"]["code"] == "INVALID_REQUEST"
    assert error["extensions"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"inputs": []}, "input.inputs"),
        ({"inputs": [{"text": "a"}] * 2049}, "input.inputs"),
        ({"dimensions": 0}, "input.dimensions"),
        ({"dimensions": 65_537}, "input.dimensions"),
    ],
    ids=["no inputs", "too many inputs", "no dimensions", "too many dimensions"],
)
async def test_a_bad_request_for_vectors_names_the_field(fields: dict[str, Any], param: str) -> None:
    query = "mutation ($input: CreateEmbeddingsInput!) { createEmbeddings(input: $input) { model } }"
    async with serving() as door:
        error = await door.refused(query, {"input": {"model": "m", "inputs": [{"text": "a"}], **fields}})
    assert error["extensions"]["code"] == "INVALID_REQUEST"
    assert error["extensions"]["param"] == param


@pytest.mark.parametrize(
    ("param", "path"),
    [
        ("temperature", "input.sampling.temperature"),
        ("max_completion_tokens", "input.sampling.maxTokens"),
        ("messages[0].content", "input.messages[0].parts"),
        ("response_format", "input.outputFormat"),
        ("a_field_of_its_own", "a_field_of_its_own"),
    ],
)
async def test_a_field_that_the_upstream_refuses(param: str, path: str) -> None:
    provider = Scripted(Script(at_enter=Failure(Kind.INVALID_REQUEST, "not so", param=param)))
    async with serving(provider) as door:
        error = await door.refused(CHAT, asking())
    assert error["extensions"]["param"] == path


@pytest.mark.parametrize(
    ("param", "path"), [("input[0]", "input.inputs[0]"), ("model", "input.model"), ("dimensions", "input.dimensions")]
)
async def test_a_field_of_vectors_that_the_upstream_refuses(param: str, path: str) -> None:
    query = "mutation ($input: CreateEmbeddingsInput!) { createEmbeddings(input: $input) { model } }"
    provider = Scripted(Script(at_enter=Failure(Kind.INVALID_REQUEST, "not so", param=param)))
    async with serving(provider) as door:
        error = await door.refused(query, {"input": {"model": "m", "inputs": [{"text": "a"}]}})
    assert error["extensions"]["param"] == path


@pytest.mark.parametrize("part", [{}, {"text": {"text": "a"}, "refusal": {"text": "b"}}, {"text": None}])
async def test_a_part_is_of_one_kind(part: dict[str, Any]) -> None:
    async with serving() as door:
        error = await door.refused(CHAT, asking(messages=[{"role": "USER", "parts": [part]}]))
    assert error["extensions"]["code"] == "INVALID_REQUEST"


# --- the protocol --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accept", "status"), [("application/json", 200), (RESPONSE, 400), ("*/*", 200)])
@pytest.mark.parametrize(
    "query",
    ["{", "{ }", "{ models { } }", "fragment f on Model { } { models { ...f } }", "{ nope }", "{ model { id } }"],
)
async def test_a_document_that_is_refused(query: str, accept: str, status: int) -> None:
    async with serving() as door:
        response = await door.post({"query": query}, accept=accept)
    assert response.status == status
    assert response.headers["content-type"].startswith(RESPONSE if accept == RESPONSE else "application/json")
    assert set(response.json()) == {"errors"}
    code = "GRAPHQL_PARSE_FAILED" if query == "{" or "{ }" in query else "GRAPHQL_VALIDATION_FAILED"
    assert response.json()["errors"][0]["extensions"]["code"] == code


@pytest.mark.parametrize("accept", ["application/json", EVENTS, MULTIPART])
async def test_one_of_several_operations_must_be_named(accept: str) -> None:
    asked = {"query": "query A { models { id } } query B { models { operations } }"}
    async with serving() as door:
        for _ in range(2):  # a document that is known to be good is not checked again
            refused = (await door.post(asked, accept=accept)).body
            assert b"'operationName'" in refused
            assert b"GRAPHQL_VALIDATION_FAILED" in refused
            assert b'"m"' not in refused
            named = (await door.post({**asked, "operationName": "B"}, accept=accept)).body
            assert b'"operations":["chat","embed"]' in named
        path = "/graphql?" + urlencode({"query": asked["query"], "operationName": "A"})
        assert (await door.raw("GET", path)).json() == {"data": {"models": [{"id": "m"}]}}


@pytest.mark.parametrize("depth", [300, 3000, 100_000])
async def test_a_body_that_is_nested_too_deeply_is_told_so(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    body = f'{{"query": "{{ models {{ id }} }}", "variables": {{"x": {deep}}}}}'.encode()
    path = "/graphql?" + urlencode({"query": "{ models { id } }", "variables": deep[: min(depth, 1000)]})
    async with serving() as door:
        posted = await door.raw("POST", "/graphql", body, content_type="application/json")
        got = await door.raw("GET", path)
    assert (posted.status, got.status) == (400, 400)
    assert posted.json()["errors"][0]["message"] == "the body is nested too deeply"
    assert got.json()["errors"][0]["message"] == "the parameter 'variables' is nested too deeply"


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"query": 1}', b"{}", b"[]", b'[{"query": "{models{id}}"}]', b"\xff", b"[" * 100_000]
)
async def test_a_body_that_is_refused(body: bytes) -> None:
    async with serving() as door:
        response = await door.raw("POST", "/graphql", body, content_type="application/json")
    assert response.status == 400
    assert response.json()["errors"][0]["extensions"]["code"] == "INVALID_REQUEST"


async def test_a_body_that_is_too_large() -> None:
    async with serving(max_body=100) as door:
        response = await door.post({"query": CHAT, "variables": asking("x" * 100)})
    assert response.status == 413


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_what_a_page_of_another_origin_could_send_unasked_is_refused(kind: str) -> None:
    provider = Scripted(saying("Hi"))
    async with serving(provider) as door:
        body = json.dumps({"query": CHAT, "variables": asking()}).encode()
        response = await door.raw("POST", "/graphql", body, **({"content_type": kind} if kind else {}))
    assert response.status == 415
    assert provider.calls == []


async def test_get_reads() -> None:
    async with serving() as door:
        found = await door.raw("GET", "/graphql?" + urlencode({"query": "{ models { id } }"}))
        wrong = await door.raw("GET", "/graphql?" + urlencode({"query": "{ models { id } }", "variables": "{"}))
    assert found.json() == {"data": {"models": [{"id": "m"}]}}
    assert wrong.status == 400


@pytest.mark.parametrize(("query", "accept"), [(CHAT, "*/*"), (STREAM, "*/*"), (STREAM, EVENTS), (CHAT, EVENTS)])
async def test_get_asks_no_model(query: str, accept: str) -> None:
    provider = Scripted(saying("Hi"))
    path = "/graphql?" + urlencode({"query": query, "variables": json.dumps(asking())})
    async with serving(provider) as door:
        response = await door.raw("GET", path, accept=accept)
    assert provider.calls == []
    assert b'"errors"' in response.body
    assert response.status == (200 if accept == EVENTS else 405)


async def test_get_streams_where_a_preflight_was_needed() -> None:
    path = "/graphql?" + urlencode({"query": STREAM, "variables": json.dumps(asking())})
    async with serving() as door:
        response = await door.raw("GET", path, accept=EVENTS, apollo_require_preflight="1")
    assert "".join(p["data"]["chatCompletion"]["text"] for p in payloads(response.body)) == "Hello there"


async def test_other_methods() -> None:
    async with serving() as door:
        response = await door.raw("DELETE", "/graphql")
    assert (response.status, response.headers["allow"]) == (405, "GET, POST")


async def test_a_subscription_needs_a_transport_that_is_on() -> None:
    async with serving(transports=["multipart/mixed"]) as door:
        for accept in ("application/json", EVENTS):
            response = await door.post({"query": STREAM, "variables": asking()}, accept=accept)
            told = response.json()["errors"][0]["message"]
            accepted = 'multipart/mixed;subscriptionSpec="1.0"'
            assert told == f"subscriptions are not allowed without an Accept of {accepted}"
            assert "data" not in response.json()
    async with serving() as door:
        told = await door.refused(STREAM, asking())
        assert told["message"].endswith(f"without an Accept of {EVENTS} or {accepted}")
    async with serving(transports=["graphql-ws"]) as door:
        assert (await door.refused(STREAM, asking()))["message"] == "subscriptions are not allowed"


# --- limits --------------------------------------------------------------------------------------------------------


async def refusal(door: Door, query: str) -> str:
    """The message of a document's refusal, which must be GraphQL's."""
    error = await door.refused(query)
    assert error["extensions"]["code"] in ("GRAPHQL_VALIDATION_FAILED", "GRAPHQL_PARSE_FAILED")
    message: str = error["message"]
    return message


async def test_limits() -> None:
    spread = "query { ...a } fragment a on Query { models { ...b } } fragment b on Model { x: id y: id z: id }"
    async with serving(max_depth=2, max_aliases=2, max_tokens=60) as door:
        assert "depth" not in json.dumps(await door.ask("{ models { id } }"))
        assert "3 aliases" in await refusal(door, spread)
        assert "3 aliases" in await refusal(door, "{ models { a: id b: id c: id } }")
        assert "token" in (await refusal(door, "{" + " models { id }" * 30 + "}")).lower()
    async with serving(max_depth=1) as door:
        assert "2 deep" in await refusal(door, "{ models { id } }")
        assert "2 deep" in await refusal(door, "{ ... on Query { models { ...f } } } fragment f on Model { id }")


async def test_introspection_is_limited_too() -> None:
    fields = "fields { name } " * 20
    async with serving() as door:
        assert (await door.ask(get_introspection_query()))["data"]["__schema"]["types"]
        nested = "{ __schema { a: types { ...t } b: types { ...t } } } fragment t on __Type { %s }"
        assert "16 aliases" in await refusal(door, nested % "".join(f"a{i}: name " for i in range(7)))
        assert (await door.ask("{ a: __typename b: __schema { c: types { name } } }"))["data"]["b"]
        chain = "ofType { " * 29 + "name" + " }" * 29
        assert "32 deep" in await refusal(door, f"{{ __schema {{ types {{ {chain} }} }} }}")
        assert "802 fields" in await refusal(
            door, f"{{ __schema {{ types {{ {'...t ' * 20} }} }} }} fragment t on __Type {{ {fields} }}"
        )


async def test_a_long_document() -> None:
    async with serving() as door:
        comment = "#" + "x" * (100 << 10)
        message = await refusal(door, f"{{ models {{ id }} }} {comment}")
        assert "102400" in message
        response = await door.post({"query": comment}, accept="text/event-stream")
        assert "102400" in payloads(response.body)[0]["errors"][0]["message"]
        assert (await door.ask(f"{{ models {{ id }} }} {comment[:100_000]}"))["data"]


async def test_a_chain_of_fragments() -> None:
    inner = "... { " * 30 + "...f%d" + " }" * 30
    chain = " ".join(f"fragment f{i} on Query {{ {inner % (i + 1)} }}" for i in range(40))
    async with serving(max_tokens=10_000) as door:
        message = await refusal(door, f"{{ ...f0 }} {chain} fragment f40 on Query {{ __typename }}")
    assert "nested too deeply" in message


async def test_many_fragments() -> None:
    """Validation compares each with each."""
    async with serving() as door:
        for count in (64, 65):
            many = " ".join(f"fragment f{i} on Query {{ __typename }}" for i in range(count))
            answer = await door.ask(f"{{ {' '.join(f'...f{i}' for i in range(count))} }} {many}")
            words = [error["message"] for error in answer.get("errors", [])]
            assert words == ([] if count == 64 else ["65 fragments; 64 are allowed"])


async def test_fragments_that_double_cost_nothing() -> None:
    chain = " ".join(f"fragment f{i} on Model {{ ...f{i + 1} ...f{i + 1} }}" for i in range(60))
    async with serving() as door, asyncio.timeout(PATIENCE):
        answer = await door.ask(f"{{ models {{ ...f0 }} }} {chain} fragment f60 on Model {{ a: id }}")
    fields, aliases = (error["message"] for error in answer["errors"])
    assert f"{2**60 + 1} fields" in fields
    assert f"{2**60} aliases" in aliases


async def test_fragments_in_a_circle() -> None:
    async with serving() as door:
        answer = await door.ask("{ models { ...f } } fragment f on Model { id ...f }")
    assert "itself" in answer["errors"][0]["message"]


async def test_introspection_has_a_switch() -> None:
    async with serving() as door:
        assert (await door.ask("{ __schema { queryType { name } } }"))["data"]["__schema"]
    async with serving(introspection=False) as door:
        for _ in range(2):
            assert "introspection" in (await refusal(door, "{ __schema { __typename } }")).lower()
        assert "Did you mean" not in await refusal(door, "{ model(id: 1) { ownedB } }")


async def test_a_document_is_kept_once_it_was_good() -> None:
    async with serving() as door:
        for _ in range(2):
            assert (await door.refused("{ nope }"))["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
            assert (await door.ask("{ models { id } }"))["data"] == {"models": [{"id": "m"}]}
        for number in range(300):
            assert (await door.ask(f"query q{number} {{ models {{ id }} }}"))["data"]

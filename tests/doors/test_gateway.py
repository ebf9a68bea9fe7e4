"""The REST gateway, over real sockets: in process, and in front of a gRPC server that it knows by reflection alone."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import trustme
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as PbAny
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from llmg.boot.gateway import Gateway as Told
from llmg.boot.gateway import make_app
from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Embedding, Embeddings, Result, Started, check
from llmg.core.request import Request
from llmg.core.usage import Usage
from llmg.doors.gateway.inprocess import InProcess
from llmg.doors.gateway.remote import describe
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.ports import Answering
from llmg.services.admission import LONGEST
from llmg.testing.scripted import Call, Gate, Script, Scripted, saying
from llmg.wire.openai.errors import STATUS
from support import exotic, gatewayapi, sockets
from support.doors import MODELS, admission
from support.gateway import Gateway
from support.http import PATIENCE, Response
from support.restgateway import (
    IN_PROCESS,
    MAX_BODY,
    REMOTE,
    Served,
    exotic_app,
    exotic_gateway,
    our_gateway,
    remote_app,
    serving,
    streamed,
)

ROOT = Path(__file__).parents[2]
PROMPTLY = 1.0  # seconds; it is milliseconds, on a machine that has nothing else to do
YEAR = 365 * 86400.0
JSON = {"Content-Type": "application/json"}
CHAT = {"model": "m", "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "Hello there"}}]}]}
WHOLE, STREAM = "/api/v1/chat/completions", "/api/v1/chat/completions:stream"
SSE, NDJSON = "text/event-stream", "application/x-ndjson"

WHERE = pytest.mark.parametrize("where", [IN_PROCESS, REMOTE])
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
FORMATS = pytest.mark.parametrize("kind", [SSE, NDJSON], ids=["sse", "ndjson"])


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No task outlives a test."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(PATIENCE):
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left)


async def prompt(event: asyncio.Event) -> None:
    """Waits for what must happen at once."""
    async with asyncio.timeout(PROMPTLY):
        await event.wait()


async def call_of(provider: Scripted, gate: Gate) -> Call:
    """The first call, when it waits at the gate."""
    async with asyncio.timeout(PATIENCE):
        await gate.reached.wait()
    return provider.calls[0]


def path(*, stream: bool) -> str:
    return STREAM if stream else WHOLE


def errors(response: Response) -> list[dict[str, Any]]:
    """Those of a JSON:API document, whose form is asserted."""
    assert response.headers["content-type"] == "application/vnd.api+json", response
    found: list[dict[str, Any]] = response.json()["errors"]
    assert found
    for error in found:
        assert (error["id"], error["status"]) == (response.headers["x-request-id"], str(response.status))
        assert error["detail"]
        assert error["title"]
    return found


def refused(response: Response, status: int, code: str, source: dict[str, str] | None = None, says: str = "") -> None:
    """The one error that it is."""
    (error,) = errors(response)
    assert (response.status, error["code"], error.get("source")) == (status, code, source), error
    assert says in error["detail"]


# --- our own services ------------------------------------------------------------------------------------------------


@WHERE
async def test_a_whole_answer(where: str) -> None:
    provider = Scripted(saying("Hello", " there", usage=Usage(input_tokens=2, output_tokens=3)))
    async with our_gateway(where, provider) as gateway:
        response = await gateway.post(WHOLE, {**CHAT, "sampling": {"maxTokens": 5}, "seed": "7"}, JSON)
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    answer = json_format.ParseDict(response.json(), pb.ChatCompletion())
    assert answer.choices[0].parts[0].text == "Hello there"
    assert answer.usage.output_tokens == 3
    request: Any = provider.calls[0].request
    assert (request.model, request.sampling.max_tokens, request.seed, request.stream) == ("m", 5, 7, False)
    assert provider.calls[0].context.door == ("gateway" if where == IN_PROCESS else "grpc")


@WHERE
@FORMATS
async def test_a_stream(where: str, kind: str) -> None:
    provider = Scripted([*saying("Hello", " there"), [Usage(input_tokens=2)]])
    async with our_gateway(where, provider) as gateway:
        response = await gateway.post(STREAM, CHAT, {**JSON, "Accept": kind})
    assert response.status == 200
    assert response.headers["content-type"].split(";")[0] == kind
    assert response.headers["cache-control"] == "no-cache"
    pieces = list(streamed(response.body, kind))
    assert [what for what, _ in pieces] == ["message"] * 5
    messages = [json_format.Parse(text, pb.CreateChatCompletionStreamResponse()) for _, text in pieces]
    check(gatewayapi.events(messages))
    request: Any = provider.calls[0].request
    assert request.stream is True


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, NDJSON),
        ("*/*", NDJSON),
        ("application/jsonl", "application/jsonl"),
        ("application/json", NDJSON),
        ("text/html, text/event-stream;q=0.5", "text/event-stream; charset=utf-8"),
        ("text/event-stream;q=0", NDJSON),
        ("application/x-ndjson, text/event-stream;q=0.1", NDJSON),
        ("application/x-ndjson;q=0.1, text/event-stream;q=0.2", "text/event-stream; charset=utf-8"),
        ("application/jsonl, text/event-stream;q=0.9", "application/jsonl"),
        ("application/x-ndjson, text/event-stream", "text/event-stream; charset=utf-8"),
        ("application/json, text/event-stream", "text/event-stream; charset=utf-8"),
        ("text/event-stream, */*", "text/event-stream; charset=utf-8"),
        ("text/event-stream;q=0.5, */*", NDJSON),
        ("application/x-ndjson;q=0, text/event-stream;q=0.1, */*", "text/event-stream; charset=utf-8"),
    ],
)
async def test_what_kind_of_stream(accept: str | None, kind: str) -> None:
    async with our_gateway(IN_PROCESS, Scripted(saying("Hello"))) as gateway:
        headers = JSON if accept is None else {**JSON, "Accept": accept}
        assert (await gateway.post(STREAM, CHAT, headers)).headers["content-type"] == kind


@WHERE
@BOTH
@pytest.mark.parametrize("kind", Kind)
async def test_each_failure_has_its_status(where: str, stream: bool, kind: Kind) -> None:
    failure = Failure(kind, "it went wrong", detail="secret", retry_after=1.5, code="own")
    async with our_gateway(where, Scripted(Script(at_enter=failure))) as gateway:
        response = await gateway.post(path(stream=stream), CHAT, JSON)
    refused(response, STATUS[kind][0], kind.value, None, "it went wrong")
    assert response.headers["retry-after"] == "2"
    assert errors(response)[0]["meta"] == {"retry_after": 1.5, "upstream_code": "own"}
    assert response.headers.get("www-authenticate") == ("Bearer" if kind is Kind.UNAUTHENTICATED else None)
    assert b"secret" not in response.body


@WHERE
@FORMATS
async def test_a_failure_in_a_stream(where: str, kind: str) -> None:
    failure = Failure(Kind.UPSTREAM_TRUNCATED, "it broke off", retry_after=3.0)
    async with our_gateway(where, Scripted([*saying("Hello")[:2], failure])) as gateway:
        response = await gateway.post(STREAM, CHAT, {**JSON, "Accept": kind})
    pieces = list(streamed(response.body, kind))
    assert [what for what, _ in pieces] == ["message", "message", "error"]
    told = json.loads(pieces[-1][1])
    error = told["errors"][0] if kind == SSE else told["error"]
    assert (error["status"], error["code"], error["detail"]) == ("502", "upstream_truncated", "it broke off")
    assert error["meta"] == {"retry_after": 3}


@WHERE
@BOTH
@pytest.mark.parametrize(
    ("body", "source", "says"),
    [
        ({}, {"pointer": "/model"}, "it is required"),
        ({"model": "m"}, {"pointer": "/messages"}, "at least one"),
        ({**CHAT, "messages": [{"role": 9}]}, {"pointer": "/messages/0/role"}, "it is required"),
        ({**CHAT, "messages": [{"role": "USER"}]}, {"pointer": "/messages/0/role"}, "expected one of"),
        ({**CHAT, "topLogprobs": 3}, {"pointer": "/topLogprobs"}, "logprobs"),
        ({**CHAT, "top_logprobs": "x"}, {"pointer": "/top_logprobs"}, "expected an integer"),
        ({**CHAT, "sampling": {"logitBias": {"5": 101}}}, {"pointer": "/sampling/logitBias/5"}, "-100 to 100"),
        ({**CHAT, "temperature": 1}, {"pointer": "/temperature"}, "there is no such field"),
        ({**CHAT, "extra": {"model": "dear"}}, {"pointer": "/extra/model"}, "the request's own fields"),
        ({**CHAT, "extra": {"x": 1, "stream_options": {}}}, {"pointer": "/extra/stream_options"}, ""),
    ],
)
async def test_a_fault_in_the_body(where: str, stream: bool, body: Any, source: dict[str, str], says: str) -> None:
    async with our_gateway(where, Scripted()) as gateway:
        refused(await gateway.post(path(stream=stream), body, JSON), 400, "invalid_request", source, says)


@WHERE
@BOTH
@pytest.mark.parametrize(
    ("param", "pointer"),
    [("messages[0].content[1].image_url.url", "/messages/0/parts/1/image/url"), ("max_tokens", "/sampling/maxTokens")],
)
async def test_a_field_that_the_upstream_refuses(where: str, stream: bool, param: str, pointer: str) -> None:
    failure = Failure(Kind.INVALID_REQUEST, "not so", param=param)
    async with our_gateway(where, Scripted(Script(at_enter=failure))) as gateway:
        response = await gateway.post(path(stream=stream), CHAT, JSON)
    refused(response, 400, "invalid_request", {"pointer": pointer}, "not so")


@WHERE
async def test_embeddings(where: str) -> None:
    vectors = (Embedding(0, array("f", (0.1, -0.5)).tobytes()), Embedding(1, (1.0, 0.0)))
    provider = Scripted([[Started("a", 1, "theirs"), Result(Embeddings(vectors)), Usage(input_tokens=4)]])
    async with our_gateway(where, provider) as gateway:
        body = {"model": "m", "inputs": [{"text": "a"}, {"tokens": {"ids": [1]}}]}
        response = await gateway.post("/api/v1/embeddings", body, JSON)
        assert response.json()["embeddings"] == [{"values": [0.1, -0.5]}, {"index": 1, "values": [1.0, 0.0]}]
        wrong = await gateway.post("/api/v1/embeddings", {"model": "m", "inputs": [{"text": ""}]}, JSON)
        refused(wrong, 400, "invalid_request", {"pointer": "/inputs/0"}, "it is empty")


@WHERE
async def test_models(where: str) -> None:
    async with our_gateway(where, Scripted()) as gateway:
        listed = (await gateway.ask("GET", "/api/v1/models?page_size=2&pageToken=a")).json()
        assert [model["id"] for model in listed["models"]] == ["b", "c/d"]
        assert listed["nextPageToken"] == "c/d"
        one = (await gateway.ask("GET", "/api/v1/models/c/d")).json()
        assert one == {"id": "c/d", "created": "7", "ownedBy": "p", "operations": ["chat"]}
        refused(await gateway.ask("GET", "/api/v1/models/no"), 404, "model_not_found", {"parameter": "id"}, "'no'")
        wrong = await gateway.ask("GET", "/api/v1/models?pageSize=-1")
        refused(wrong, 400, "invalid_request", {"parameter": "pageSize"}, "at least 0")
        head = await gateway.ask("HEAD", "/api/v1/models")
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) > len(MODELS)


@WHERE
async def test_keys(where: str) -> None:
    async with our_gateway(where, Scripted(saying("Hello")), keys={"me": "secret"}) as gateway:
        for stream in (False, True):
            response = await gateway.post(path(stream=stream), CHAT, {**JSON, "Authorization": "Bearer wrong"})
            refused(response, 401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"
            for key in ({"Authorization": "Bearer secret"}, {"X-Api-Key": "secret"}):
                assert (await gateway.post(path(stream=stream), CHAT, {**JSON, **key})).status == 200


@BOTH
@pytest.mark.parametrize(
    "headers", [{}, {"Content-Encoding": "gzip"}, {"Grpc-Timeout": "soon"}, {"Grpc-Metadata-Authorization": "x"}]
)
async def test_without_a_key_no_body_is_read(stream: bool, headers: dict[str, str]) -> None:
    provider = Scripted(saying("Hello"))
    async with our_gateway(IN_PROCESS, provider, keys={"me": "secret"}) as gateway:
        for sent in (b"", b"not even JSON"):
            async with gateway.connect() as connection:
                await connection.write("POST", path(stream=stream), sent, {**headers, "Content-Length": str(MAX_BODY)})
                refused(await connection.response("POST"), 401, "unauthenticated")
    assert provider.calls == []


async def test_a_key_in_grpc_metadata_opens() -> None:
    async with our_gateway(IN_PROCESS, Scripted(saying("Hello")), keys={"me": "secret"}) as gateway:
        for header in ({"Grpc-Metadata-Authorization": "Bearer secret"}, {"Grpc-Metadata-X-Api-Key": "secret"}):
            assert (await gateway.post(WHOLE, CHAT, {**JSON, **header})).status == 200


async def test_headers_that_are_no_metadata_are_known_in_process() -> None:
    provider = Scripted(saying("Hello"), saying("Hello"), saying("Hello"))
    async with our_gateway(IN_PROCESS, provider) as gateway:
        for given in ({"X-Own": "a"}, {"Grpc-Metadata-X-Own": "b", "X-Own": "a"}, {}):
            assert (await gateway.post(WHOLE, CHAT, {**JSON, **given})).status == 200
    assert [call.context.header("x-own") for call in provider.calls] == ["a", "b", None]


class Routed(Scripted):
    """Says where the answer comes from, as a router does."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        context.trail.extend(Attempt(provider="p", model=model, started=0.0) for model in ("a", "b"))
        return super().open(request, context)


@WHERE
@BOTH
async def test_the_way_of_a_request(where: str, stream: bool) -> None:
    provider = Routed(saying("Hello"))
    async with our_gateway(where, provider) as gateway:
        given = {"X-Request-Id": "mine", "Traceparent": "00-1-2-01"}
        response = await gateway.post(path(stream=stream), CHAT, {**JSON, **given})
        assert response.headers["x-request-id"] == "mine"
        own = await gateway.post(path(stream=stream), CHAT, {**JSON, "X-Request-Id": "not one"})
    context = provider.calls[0].context
    assert (context.request_id, context.traceparent) == ("mine", "00-1-2-01")
    assert provider.calls[1].context.request_id == own.headers["x-request-id"] != "not one"
    # Of a stream elsewhere it is known too late for the head.
    known = ("p/b", "2") if not stream or where == IN_PROCESS else (None, None)
    assert (response.headers.get("x-llmg-route"), response.headers.get("x-llmg-attempts")) == known


@BOTH
async def test_the_way_of_a_request_whose_deadline_passes(stream: bool) -> None:
    async with our_gateway(IN_PROCESS, Routed(Script(at_enter=Gate()))) as gateway:
        response = await gateway.post(path(stream=stream), CHAT, {**JSON, "Grpc-Timeout": "20m"})
    assert response.status == 504
    assert response.headers["x-llmg-route"] == "p/b"


@WHERE
async def test_the_way_of_a_request_that_fails(where: str) -> None:
    async with our_gateway(where, Routed(Script(at_enter=Failure(Kind.OVERLOADED, "busy")))) as gateway:
        response = await gateway.post(WHOLE, CHAT, JSON)
    assert (response.status, response.headers["x-llmg-route"], response.headers["x-llmg-attempts"]) == (503, "p/b", "2")


@WHERE
@BOTH
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
async def test_a_client_that_leaves(where: str, stream: bool, reset: bool, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hello")[:2], gate])
    async with our_gateway(where, provider) as gateway, gateway.connect() as connection:
        body = json.dumps(CHAT).encode()
        head = f"POST {path(stream=stream)} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        await connection.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        call = await call_of(provider, gate)
        if stream:
            await connection.head()
        await connection.leave(reset=reset)
        await prompt(call.exited)
        assert call.cancelled.is_set()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@WHERE
@BOTH
@pytest.mark.parametrize("header", [{"Grpc-Timeout": "200m"}, {"X-Llmg-Timeout": "0.2"}], ids=["gRPC's", "our own"])
async def test_a_deadline(where: str, stream: bool, header: dict[str, str]) -> None:
    gate = Gate()
    provider = Scripted([gate])
    async with our_gateway(where, provider) as gateway:
        response = await gateway.post(path(stream=stream), CHAT, {**JSON, **header})
        refused(response, 504, "deadline_exceeded")
        call = provider.calls[0]
        await prompt(call.exited)
        assert call.context.deadline is not None
        for wrong in ("1", "soon", "123456789S", "-1S"):
            response = await gateway.post(path(stream=stream), CHAT, {**JSON, "Grpc-Timeout": wrong})
            refused(response, 400, "invalid_request", {"header": "grpc-timeout"}, "expected up to eight digits")
        response = await gateway.post(path(stream=stream), CHAT, {**JSON, "X-Llmg-Timeout": "soon"})
        refused(response, 400, "invalid_request", {"header": "x-llmg-timeout"}, "seconds above 0")
    assert len(provider.calls) == 1


@WHERE
@BOTH
@pytest.mark.parametrize("header", [{"Grpc-Timeout": "99999999H"}, {"X-Llmg-Timeout": "1e11"}])
async def test_a_deadline_beyond_all_clocks(where: str, stream: bool, header: dict[str, str]) -> None:
    provider = Scripted(saying("Hello"))
    async with our_gateway(where, provider) as gateway:
        assert (await gateway.post(path(stream=stream), CHAT, {**JSON, **header})).status == 200
    deadline = provider.calls[0].context.deadline
    assert deadline is not None
    assert YEAR < deadline - time.monotonic() <= LONGEST  # gRPC itself has no more than 27,000 hours


@WHERE
@FORMATS
async def test_heartbeats_before_the_first_message(where: str, kind: str) -> None:
    gate = Gate()
    provider = Scripted([gate, *saying("Hello")])
    async with our_gateway(where, provider, heartbeat=0.02) as gateway, gateway.connect() as connection:
        body = json.dumps(CHAT).encode()
        head = f"POST {STREAM} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nAccept: {kind}\r\n"
        await connection.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, headers = await connection.head()
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)
        beats = [await connection.chunk() for _ in range(3)]
        assert set(beats) == {b": heartbeat\n\n" if kind == SSE else b"\n"}
        gate.open()
        rest = b"".join([piece async for piece in connection.chunks()])
    assert [what for what, _ in streamed(rest, kind) if what != "heartbeat"] == ["message"] * 3


@WHERE
async def test_the_way_is_told_after_heartbeats(where: str) -> None:
    """As comments: the head went out when it was not known."""
    gate = Gate()
    provider = Routed([gate, *saying("Hello")])
    async with our_gateway(where, provider, heartbeat=0.02) as gateway, gateway.connect() as connection:
        await connection.write("POST", STREAM, json.dumps(CHAT).encode(), {**JSON, "Accept": SSE})
        _, headers = await connection.head()
        assert "x-llmg-route" not in headers
        await connection.chunk()
        gate.open()
        rest = b"".join([piece async for piece in connection.chunks()])
    way = b": x-llmg-route: p/b\n"
    assert rest.count(way) == 1
    if where == IN_PROCESS:
        assert rest.index(way) < rest.index(b"data: ")
    else:  # a server elsewhere says it with its status
        assert rest.index(way) > rest.rindex(b"data: ")


@WHERE
@FORMATS
async def test_a_failure_after_heartbeats(where: str, kind: str) -> None:
    gate = Gate()
    provider = Scripted([gate, Failure(Kind.OVERLOADED, "busy")])
    async with our_gateway(where, provider, heartbeat=0.02) as gateway, gateway.connect() as connection:
        body = json.dumps(CHAT).encode()
        head = f"POST {STREAM} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nAccept: {kind}\r\n"
        await connection.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert (await connection.head())[0] == 200
        await connection.chunk()
        gate.open()
        rest = b"".join([piece async for piece in connection.chunks()])
    last = list(streamed(rest, kind))[-1]
    assert last[0] == "error"
    assert b'"code":"overloaded"' in last[1]


@BOTH
async def test_what_lasts_longer_than_the_grace(stream: bool) -> None:
    gate = Gate()
    provider = Scripted([gate])
    async with our_gateway(IN_PROCESS, provider) as gateway:
        asking = asyncio.create_task(gateway.post(path(stream=stream), CHAT, JSON))
        call = await call_of(provider, gate)
        assert await gateway.drain(0.05) == 1
        refused(await asking, 503, "shutting_down")
        assert call.exits == 1


@WHERE
async def test_a_mistake_of_ours_is_told_without_details(where: str) -> None:
    async with our_gateway(where, Scripted(Script(at_enter=RuntimeError("secret")))) as gateway:
        for stream in (False, True):
            response = await gateway.post(path(stream=stream), CHAT, JSON)
            refused(response, 500, "internal")
            assert b"secret" not in response.body


async def test_a_slow_reader_slows_its_own_upstream() -> None:
    provider = Scripted([*saying("x" * 50_000)[:1], *([saying("x" * 50_000)[1]] * 2000)])
    async with (
        our_gateway(IN_PROCESS, provider) as gateway,
        gateway.connect(receive_buffer=16 << 10) as connection,
    ):
        body = json.dumps(CHAT).encode()
        head = f"POST {STREAM} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        await connection.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await connection.head()
        call = provider.calls[0]
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            seen, since = -1, loop.time()
            while loop.time() - since < 0.3:
                if call.given != seen:
                    seen, since = call.given, loop.time()
                await asyncio.sleep(0.01)
        assert call.given < 1000  # of 50 kB
        await connection.leave()
        await prompt(call.exited)


# --- all of google.api.http ------------------------------------------------------------------------------------------


@pytest.fixture(params=[IN_PROCESS, REMOTE])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """The exotic service, in process and elsewhere."""
    async with exotic_gateway(request.param, exotic.Answers()) as gateway:
        yield gateway


AN_ANY, TIME = {"any": {"@type": "x/exotic.Inner", "name": "a"}}, "2020-01-01T00:00:00Z"
ANSWERED: list[tuple[str, Any, Any]] = [
    ("POST /exotic/all", {"text": "a", "inner": {"size": 0}}, {"text": "a", "inner": {"size": 0}}),
    ("POST /exotic/all", AN_ANY, AN_ANY),
    ("POST /exotic/all", {"value": None, "timestamp": TIME}, {"value": None, "timestamp": TIME}),
    ("POST /exotic/all", None, {}),
    ("GET /exotic/query", None, {}),
    ("GET /exotic/query?inner.tags=a&inner.tags=b&number=5", None, {"inner": {"tags": ["a", "b"]}, "number": 5}),
    ("SEARCH /exotic/query?text=a", None, {"text": "a"}),
    ("GET /exotic/any", None, {}),
    ("DELETE /exotic/any?text=a", None, {"text": "a"}),
    ("PUT /exotic/a%2Fb/part/groups/c?number=1", {"size": 2}, {"name": "groups/c", "size": 2}),
    ("PATCH /exotic/list", ["a", "b"], ["a", "b"]),
    ("PATCH /exotic/map", {"a": {"name": "b"}}, {"a": {"name": "b"}}),
    ("GET /exotic/texts/a%2Fb%20c", None, "a/b c"),
    ("GET /exotic/texts/all/a/b%2Fc/d%20e", None, "a/b%2Fc/d e"),
    ("GET /exotic/texts/all", None, ""),
    ("GET /exotic/texts/al%6C", None, ""),
    ("GET /exotic/texts/two/a/of/b", None, "a/of/b"),
    (f"GET /exotic/typed/7/{TIME}/2", None, {"number": 7, "timestamp": TIME, "color": "COLOR_BLUE"}),
    ("DELETE /exotic/things/a/b:purge", None, {}),
    ("POST /exotic/raw", {"a": [1, None, {"b": "c"}]}, {"a": [1, None, {"b": "c"}]}),
]


@pytest.mark.parametrize(("request_", "body", "answer"), ANSWERED)
async def test_every_kind_of_rule(served: Served, request_: str, body: Any, answer: Any) -> None:
    method, _, target = request_.partition(" ")
    data = b"" if body is None else json.dumps(body).encode()
    response = await served.ask(method, target, data, JSON if data else {})
    assert (response.status, response.json()) == (200, answer)


BAD, KIND = "invalid_request", {"header": "content-type"}
FORM, LATIN = (
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "application/json; charset=latin-1"},
)
GZIP = {**JSON, "Content-Encoding": "gzip"}
REFUSED: list[tuple[str, bytes, dict[str, str], int, str, dict[str, str] | None, str]] = [
    ("GET /exotic", b"", {}, 404, "not_found", None, "nothing at GET /exotic"),
    ("GET /api", b"", {}, 404, "not_found", None, ""),
    ("GET /exotic/Unbound", b"", {}, 404, "not_found", None, ""),
    ("GET /exotic/texts/%zz", b"", {}, 400, BAD, None, "percent"),
    ("GET /exotic/texts/%ff", b"", {}, 400, BAD, None, "UTF-8"),
    ("GET /exotic/all", b"", {}, 405, "method_not_allowed", None, "GET is not for /exotic/all"),
    ("POST /exotic/upload", b"{}", JSON, 501, "not_implemented", None, "stream of requests"),
    ("POST /exotic/all", b"{}", {}, 415, "unsupported_media_type", KIND, "application/json"),
    ("POST /exotic/all", b"a=b", FORM, 415, "unsupported_media_type", KIND, ""),
    ("POST /exotic/all", b"{}", LATIN, 415, "unsupported_media_type", KIND, ""),
    ("POST /exotic/all", b"{}", GZIP, 415, "unsupported_media_type", {"header": "content-encoding"}, "compressed"),
    ("POST /exotic/all", b" " * (MAX_BODY + 1), JSON, 413, "request_too_large", None, "larger than"),
    ("POST /exotic/all", b"{]", JSON, 400, BAD, {"pointer": ""}, "not valid JSON"),
    ("POST /exotic/all", b'{"a":1}', JSON, 400, BAD, {"pointer": "/a"}, "no such field"),
    ("GET /exotic/query?number=x", b"", {}, 400, BAD, {"parameter": "number"}, "expected an integer"),
    ("GET /exotic/query", b"{}", JSON, 400, BAD, {"pointer": ""}, "takes no body"),
]


@pytest.mark.parametrize(("request_", "body", "headers", "status", "code", "source", "says"), REFUSED)
async def test_what_is_refused(
    served: Served,
    request_: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    source: dict[str, str] | None,
    says: str,
) -> None:
    method, _, target = request_.partition(" ")
    refused(await served.ask(method, target, body, headers), status, code, source, says)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=UTF-8", "application/merge-patch+json"]
)
async def test_kinds_of_json(served: Served, kind: str) -> None:
    assert (await served.ask("POST", "/exotic/all", b"{}", {"Content-Type": kind})).status == 200


async def test_methods(served: Served) -> None:
    assert (await served.ask("GET", "/exotic/all")).headers["allow"] == "OPTIONS, POST"
    assert (await served.ask("PUT", "/exotic/query")).headers["allow"] == "GET, HEAD, OPTIONS, SEARCH"
    async with served.connect() as connection:
        await connection.send(b"OPTIONS /exotic/query HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers = await connection.head()
        assert (status, headers["allow"]) == (204, "GET, HEAD, OPTIONS, SEARCH")
        assert (await connection.ask("HEAD", "/exotic/query?text=a")).headers["content-length"] == "12"
        assert (await connection.ask("HEAD", "/exotic/nothing")).status == 404


@pytest.mark.parametrize(("depth", "status"), [(95, 200), (98, 200), (100, 400), (5000, 400)])
async def test_what_is_nested_deeply(served: Served, depth: int, status: int) -> None:
    body = b'{"inner":' * depth + b'{"size":1}' + b"}" * depth
    response = await served.ask("POST", "/exotic/all", body, JSON)
    assert response.status == status
    if status == 400:
        refused(response, 400, BAD, {"pointer": ""}, "nested too deeply")


async def test_metadata(served: Served) -> None:
    headers = {
        "Host": "test",
        "Grpc-Metadata-X-Own": "a b",
        "Grpc-Metadata-Own-Bin": base64.b64encode(b"\x00\xff").decode(),
        "Authorization": "Bearer key",
        "Traceparent": "00-1-2-01",
        "X-Request-Id": "mine",
        "User-Agent": "me/1",
        "X-Forwarded-For": "10.0.0.1",
        "X-Secret": "x",
        "Te": "trailers",
    }
    response = await served.ask("GET", "/exotic/metadata", headers=headers)
    seen = response.json()
    expected = {
        "x-own": "a b",
        "own-bin": "00ff",
        "authorization": "Bearer key",
        "grpcgateway-authorization": "Bearer key",
        "grpcgateway-user-agent": "me/1",
        "grpcgateway-host": "test",
        "traceparent": "00-1-2-01",
        "x-request-id": "mine",
        "x-forwarded-for": "10.0.0.1, 127.0.0.1",
        "x-forwarded-host": "test",
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert not {"x-secret", "te", "grpc-timeout"} & set(seen)
    found = {name: value for name, value in response.headers.items() if name.startswith(("grpc-", "x-"))}
    assert found == {
        "grpc-metadata-x-first": "1",
        "grpc-metadata-x-data-bin": "AAE=",
        "grpc-trailer-x-last": "2",
        "x-llmg-route": "p/m",
        "x-llmg-attempts": "3",
        "x-request-id": "mine",
    }


def details(code: int, *infos: Any) -> str:
    """In hex, as the exotic service takes it."""
    packed = []
    for info in infos:
        packed.append(PbAny())
        packed[-1].Pack(info)
    raw: bytes = Status(code=code, message="m", details=packed).SerializeToString()
    return raw.hex()


STATUSES = [499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401]


async def fail(gateway: Served, code: int, detail: str = "", words: str = "words") -> Response:
    """What a call that fails so is answered with."""
    return await gateway.post(f"/exotic/fail/{words}", {"size": code, "name": detail}, JSON)


@pytest.mark.parametrize(("code", "status"), list(enumerate(STATUSES, start=1)))
async def test_each_status_of_grpc(served: Served, code: int, status: int) -> None:
    response = await fail(served, code)
    name = next(each.name.lower() for each in grpc.StatusCode if each.value[0] == code)
    refused(response, status, name)


async def test_the_words_of_a_server_on_its_own_faults_are_not_for_clients() -> None:
    async with exotic_gateway(REMOTE, exotic.Answers()) as gateway:
        for code in (2, 13, 14, 15):
            assert b"secret" not in (await fail(gateway, code, words="secret")).body
        assert b"not%20secret".replace(b"%20", b" ") in (await fail(gateway, 3, words="not%20secret")).body


async def test_what_else_a_status_tells(served: Served) -> None:
    info = ErrorInfo(reason="NO_STOCK", domain="shop", metadata={"shelf": "a"})
    response = await fail(served, 9, details(9, info, RetryInfo(retry_delay={"seconds": 5})))
    refused(response, 400, "no_stock", None, "words")
    assert response.headers["retry-after"] == "5"
    assert errors(response)[0]["meta"] == {"domain": "shop", "shelf": "a", "retry_after": 5}


async def test_a_status_of_our_own_kind(served: Served) -> None:
    info = ErrorInfo(reason="CONTEXT_LENGTH_EXCEEDED", domain="llmg", metadata={"code": "theirs"})
    response = await fail(served, 3, details(3, info))
    refused(response, 400, "context_length_exceeded", None, "words")
    assert errors(response)[0]["meta"] == {"upstream_code": "theirs"}


async def test_several_fields_at_fault(served: Served) -> None:
    faults = [("inner.tags[0]", "too long"), ("text", ""), ("long_number", "too large")]
    violations = [BadRequest.FieldViolation(field=field, description=words) for field, words in faults]
    response = await fail(served, 3, details(3, BadRequest(field_violations=violations)))
    assert [(error["source"], error["detail"]) for error in errors(response)] == [
        ({"pointer": "/tags/0"}, "too long"),
        ({"parameter": "text"}, "words"),
        ({"parameter": "longNumber"}, "too large"),
    ]


async def test_details_that_can_not_be_read(served: Served) -> None:
    refused(await fail(served, 5, "ff"), 404, "not_found", None, "words")


@FORMATS
async def test_streams_of_messages(served: Served, kind: str) -> None:
    response = await served.ask("GET", "/exotic/many/3", headers={"Accept": kind})
    pieces = [(what, json.loads(text)) for what, text in streamed(response.body, kind)]
    assert pieces == [("message", {"number": n, "inner": {"name": f"n{n}"}}) for n in (1, 2, 3)]
    response = await served.post("/exotic/many", {"number": 2}, {**JSON, "Accept": kind})
    assert [json.loads(text) for _, text in streamed(response.body, kind)] == [{"name": "n1"}, {"name": "n2"}]
    response = await served.ask("GET", "/exotic/many/0", headers={"Accept": kind})
    assert (response.status, response.body) == (200, b"")
    response = await served.ask("GET", "/exotic/many/1?text=enough", headers={"Accept": kind})
    assert [what for what, _ in streamed(response.body, kind)] == ["message", "error"]
    refused(await served.ask("GET", "/exotic/many/0?text=enough"), 429, "resource_exhausted", None, "enough")


@WHERE
@pytest.mark.parametrize("target", ["/exotic/wait", "/exotic/waits"])
async def test_a_server_hears_of_the_client_that_leaves(where: str, target: str) -> None:
    answers = exotic.Answers()
    async with exotic_gateway(where, answers) as gateway, gateway.connect() as connection:
        await connection.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nGrpc-Timeout: 30S\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            await answers.entered.wait()
        assert answers.remaining is not None
        assert 20 < answers.remaining < 31
        await connection.leave()
        await prompt(answers.left)


async def test_what_a_server_says_of_itself() -> None:
    async with exotic.server(exotic.Answers()) as address, grpc.aio.insecure_channel(address) as channel:
        pool, services = await describe(channel, PATIENCE)
    assert [service.full_name for service in services] == [exotic.NAME]
    assert pool.FindMessageTypeByName("google.protobuf.Any").full_name == "google.protobuf.Any"


async def test_a_server_that_goes() -> None:
    answers = exotic.Answers()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(exotic.server(answers))
        async with remote_app(address) as app, serving(app) as gateway:
            asking = [asyncio.create_task(gateway.ask("GET", target)) for target in ("/exotic/wait", "/exotic/waits")]
            async with asyncio.timeout(PATIENCE):
                while answers.waiting < len(asking):
                    answers.entered.clear()
                    await answers.entered.wait()
            await stack.aclose()
            for response in await asyncio.gather(*asking):
                refused(response, 503, "unavailable", None, "the server is not available")
            refused(await gateway.ask("GET", "/exotic/query"), 503, "unavailable")


# --- servers that can't be asked -------------------------------------------------------------------------------------


async def test_a_server_without_reflection() -> None:
    async with (
        exotic.server(exotic.Answers(), reflecting=False) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        with pytest.raises(Failure, match="has no reflection") as raised:
            await describe(channel, PATIENCE)
    assert raised.value.kind is Kind.NOT_IMPLEMENTED


async def test_a_server_that_is_not_there() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(Failure, match=r"does not answer|did not answer") as raised:
            await describe(channel, 1.0)
    assert raised.value.kind is Kind.UPSTREAM_UNAVAILABLE


async def test_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with grpc.aio.insecure_channel("{}:{}".format(*silent.getsockname())) as channel:
            with pytest.raises(Failure, match=r"did not answer within 0\.3 s"):
                await describe(channel, 0.3)


async def test_an_rpc_that_nobody_answers_here() -> None:
    with pytest.raises(ValueError, match=r"nobody answers exotic\.Exotic\.All"):
        InProcess({}, admission()).unary(exotic.service().methods_by_name["All"])


# --- llmg-gateway ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "cmd/llmg-gateway"), *arguments, "--log-format", "json"]


@asynccontextmanager
async def commanded(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """The process, and what it logged when it was ready."""
    line = command("--listen", "127.0.0.1:0", *arguments)
    child = await asyncio.create_subprocess_exec(*line, stderr=asyncio.subprocess.PIPE)
    try:
        assert child.stderr is not None
        async with asyncio.timeout(60):
            ready = json.loads(await child.stderr.readline())
        yield child, ready
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_the_command() -> None:
    async with exotic.server(exotic.Answers()) as address, commanded("--target", address) as (child, ready):
        assert (ready["event"], ready["target"], ready["rpcs"]) == ("ready", address, 15)
        host, _, port = ready["address"].removeprefix("http://").partition(":")
        gateway = Gateway((host, int(port)))
        assert (await gateway.post("/exotic/all", {"text": "a"}, JSON)).json() == {"text": "a"}
        refused(await gateway.ask("GET", "/nothing"), 404, "not_found")
        assert (await gateway.ask("GET", "/healthz")).status == 200
        assert (await gateway.ask("GET", "/readyz")).status == 200
        document = (await gateway.ask("GET", "/openapi.json")).json()
        assert "/exotic/all" in document["paths"]
        assert (await gateway.ask("GET", "/exotic/query", headers={"Host": "evil.example"})).status == 403
        child.send_signal(signal.SIGTERM)
        assert child.stderr is not None
        async with asyncio.timeout(PATIENCE):
            said = (await child.stderr.read()).decode()
            assert await child.wait() == 0, said
        assert [json.loads(line)["event"] for line in said.splitlines()] == ["draining", "stopped"]


async def test_the_command_speaks_tls_with_its_clients(tmp_path: Path) -> None:
    issuer = trustme.CA()
    own, clients = issuer.issue_cert("127.0.0.1"), issuer.issue_cert("someone@client.example")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issuer.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = ("--tls-cert", "cert.pem", "--tls-key", "key.pem", "--tls-client-ca", "ca.pem")
    arguments = [str(tmp_path / word) if word.endswith(".pem") else word for word in files]
    async with exotic.server(exotic.Answers()) as address, commanded("--target", address, *arguments) as (_, ready):
        origin = ready["address"]
        assert origin.startswith("https://")
        asked = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        with pytest.raises(aiohttp.ClientError):  # it wants to know who asks
            await fetched(origin, asked)
        clients.configure_cert(asked)
        assert await fetched(origin, asked) == {"text": "a"}


async def fetched(origin: str, asked: ssl.SSLContext) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"{origin}/exotic/query?text=a", ssl=asked) as answer:
        return await answer.json()


async def test_the_command_speaks_tls_with_the_server(tmp_path: Path) -> None:
    issuer = trustme.CA()
    own = issuer.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
    issuer.cert_pem.write_to_path(tmp_path / "ca.pem")
    credentials = grpc.ssl_server_credentials([(own.private_key_pem.bytes(), chain)])
    async with exotic.server(exotic.Answers(), credentials=credentials) as address:
        target = address.replace("127.0.0.1", "localhost")
        told = Told(
            target=target,
            credentials=grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes()),
        )
        async with told.channel() as channel:
            app, rpcs = await make_app(told, channel, lambda: False)
            assert rpcs == 15
            async with serving(app) as gateway:
                assert (await gateway.ask("GET", "/exotic/query?text=a")).json() == {"text": "a"}


async def test_the_command_speaks_as_its_only_door_at_each_path() -> None:
    async with exotic.server(exotic.Answers()) as address, Told(target=address).channel() as channel:
        app, _ = await make_app(Told(target=address), channel, lambda: True)
        async with sockets.serving(app, words=app.words) as gateway:
            refused(await gateway.ask("GET", "/nowhere"), 404, "not_found")
            refused(await gateway.ask("POST", "/healthz"), 405, "method_not_allowed")
            refused(await gateway.ask("GET", "/readyz"), 503, "shutting_down")
            refused(await gateway.ask("GET", "http://localhost"), 400, "invalid_request")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--target", "127.0.0.1:1", "--connect-timeout", "1"), 1, "127.0.0.1:1: the server"),
        (("--target", "a:1", "--listen", "nowhere"), 2, "--listen: expected HOST:PORT"),
        (("--target", "a:1", "--target-ca", "/no/such"), 2, "--target-ca: /no/such can't be read"),
        (("--target", "a:1", "--tls-cert", "/no/such"), 2, "--tls-cert and --tls-key: one needs the other"),
        (("--target", "a:1", "--tls-cert", "/no/such", "--tls-key", "/no"), 2, "/no/such can't be read"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], code: int, says: str) -> None:
    line = command("--listen", "127.0.0.1:0", *arguments)
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# --- whatever comes --------------------------------------------------------------------------------------------------


async def asgi(
    app: Any, method: str, target: str, body: bytes, headers: list[tuple[bytes, bytes]]
) -> tuple[int, bytes]:
    """One request, without a socket."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("latin-1", "replace"),
        "query_string": query.encode("utf-8", "replace"),
        "headers": headers,
        "client": ("127.0.0.1", 1),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


SEGMENTS = st.lists(
    st.sampled_from(
        ["exotic", "all", "query", "texts", "many", "typed", "part", "list", "1", "%2F", "%zz", "a:purge", ""]
    ),
    max_size=5,
).map(lambda parts: "/" + "/".join(parts))
KNOWN = st.sampled_from([request.partition(" ")[2].partition("?")[0] for request, _, _ in ANSWERED])
QUERIES = st.text("abt=&%+.1[]ü", max_size=12) | st.sampled_from(["text=a", "number=1", "inner.size=x", "flag=true"])
BODIES = st.binary(max_size=20) | st.sampled_from([json.dumps(body).encode() for _, body, _ in ANSWERED])
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"content-type", b"accept", b"grpc-timeout", b"grpc-metadata-a", b"grpc-metadata-a-bin", b"host"]
        ),
        st.sampled_from([b"application/json", b"text/event-stream", b"9S", b"x", b"\xff", b"", b"AA=="]),
    ),
    max_size=3,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]), SEGMENTS | KNOWN, QUERIES, BODIES, HEADERS)
async def test_bad_input_is_never_our_mistake(
    method: str, target: str, query: str, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    app = exotic_app(exotic.Answers())
    status, answer = await asgi(app, method, f"{target}?{query}", body, headers)
    assert status < 500, answer
    if status >= 400:
        assert json.loads(answer)["errors"][0]["status"] == str(status)

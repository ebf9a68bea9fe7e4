"""What doors log of failures: each once, and not what somebody who knew more of it has logged before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc
import pytest
from structlog.testing import capture_logs

from llmg.core.errors import Failure, Kind
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.ports import Provider
from llmg.testing.scripted import Script, Scripted
from llmg.wire.websocket import Error
from support.doors import grpc_door, rest_door
from support.gateway import chat
from support.http import PATIENCE
from support.sockets import client, websocket_door

MESSAGE = {"role": "ROLE_USER", "parts": [{"text": {"text": "Hello"}}]}
MUTATION = """mutation { createChatCompletion(
    input: { model: "m", messages: [{ role: USER, parts: [{ text: { text: "Hello" } }] }] }
) { id } }"""
JSON = {"Content-Type": "application/json"}


async def by_rest(provider: Provider) -> None:
    async with rest_door(provider) as gateway:
        assert (await gateway.post("/v1/chat/completions", chat())).status >= 400


async def by_gateway(provider: Provider) -> None:
    async with rest_door(provider) as gateway:
        body = {"model": "m", "messages": [MESSAGE]}
        assert (await gateway.post("/api/v1/chat/completions", body, JSON)).status >= 400


async def by_graphql(provider: Provider) -> None:
    async with rest_door(provider) as gateway:
        assert "errors" in (await gateway.post("/graphql", {"query": MUTATION}, JSON)).json()


async def by_websocket(provider: Provider) -> None:
    async with websocket_door(provider) as door, client(door) as it:
        await it.start("a")
        assert isinstance(await it.receive(), Error)


async def by_grpc(provider: Provider) -> None:
    said = pb.Part(text=pb.TextPart(text="Hello"))
    asked = pb.Chat(model="m", messages=[pb.Message(role=pb.ROLE_USER, parts=[said])])
    async with grpc_door(provider) as door:
        with pytest.raises(grpc.aio.AioRpcError):
            await door.chat.CreateChatCompletion(pb.CreateChatCompletionRequest(chat=asked), timeout=PATIENCE)


@pytest.mark.parametrize("ask", [by_rest, by_gateway, by_graphql, by_websocket, by_grpc])
@pytest.mark.parametrize(
    ("kind", "detail", "before", "level"),
    [
        (Kind.UPSTREAM_TIMEOUT, None, False, "warning"),
        (Kind.INTERNAL, "a trace", False, "error"),
        (Kind.INVALID_REQUEST, "what they said", False, "warning"),
        (Kind.INVALID_REQUEST, None, False, None),
        (Kind.UPSTREAM_TIMEOUT, "what they said", True, None),
    ],
)
async def test_a_failure_is_logged_once(
    ask: Callable[[Provider], Awaitable[None]], kind: Kind, detail: str | None, before: bool, level: str | None
) -> None:
    failure = Failure(kind, "it went wrong", detail=detail)
    failure.logged = before
    provider = Scripted(Script(at_enter=failure))
    with capture_logs() as logs:
        await ask(provider)
    assert len(provider.calls) == 1
    said = [(entry["log_level"], entry["event"], entry["kind"], entry["detail"]) for entry in logs]
    assert said == ([] if level is None else [(level, "it went wrong", kind.value, detail)])
    assert all(entry["request_id"] for entry in logs)

"""Times that clients give: one beyond what timers and gRPC can count is clipped, at each door."""

from __future__ import annotations

import time

from llmg.services.admission import LONGEST
from llmg.testing.scripted import Scripted, saying
from support.doors import rest_door
from support.gateway import chat
from support.sockets import client, websocket_door

# The gateway's own are in test_gateway.py.
FOREVER = 1e300
GRAPHQL = """mutation ($timeout: Float) { createChatCompletion(
  input: {model: "m", messages: [{role: USER, parts: [{text: {text: "Hello"}}]}]}, timeout: $timeout) { id } }"""


def clipped(provider: Scripted) -> bool:
    """Is the only request's deadline the last that there is?"""
    (call,) = provider.calls
    assert call.context.deadline is not None
    return LONGEST - 60 < call.context.deadline - time.monotonic() <= LONGEST


async def test_rest() -> None:
    provider = Scripted(saying("Hello"))
    async with rest_door(provider) as doors:
        answer = await doors.post("/v1/chat/completions", chat(), {"X-Llmg-Timeout": str(FOREVER)})
    assert answer.status == 200
    assert clipped(provider)


async def test_graphql() -> None:
    provider = Scripted(saying("Hello"))
    async with rest_door(provider) as doors:
        asked = {"query": GRAPHQL, "variables": {"timeout": FOREVER}}
        answer = await doors.post("/graphql", asked, {"Content-Type": "application/json"})
    assert "errors" not in answer.json()
    assert clipped(provider)


async def test_websocket() -> None:
    provider = Scripted(saying("Hello"))
    async with websocket_door(provider) as door, client(door) as it:
        await it.send(type="start", id="1", request=chat(), timeout=FOREVER)
        assert (await it.answer()).text == "Hello"
    assert clipped(provider)

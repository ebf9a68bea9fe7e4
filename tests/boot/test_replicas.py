"""Several processes of a gateway and one Redis: one catalog, and one count of what all doors have let in."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from boot.conftest import Serve, Served
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceStub
from llmg.services.admission import digest
from support.gateway import ECHO, chat
from support.http import PATIENCE
from support.redis import redis_server

pytestmark = pytest.mark.heavy

KEY = "sk-" + "a" * 32
ADMIN = "sk-" + "b" * 32
LIMIT = 30
WEB = "tenants/acme/teams/search/groups/prod/endpoints/web"
MUTATION = "mutation ($input: ChatInput!) { createChatCompletion(input: $input) { model } }"
PARTS = [{"text": {"text": "Hello"}}]

Door = Callable[[Served], Awaitable[bool]]
"""Asks, and says whether it was let in; if not, the limit was reached."""


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


async def _rest(gateway: Served) -> bool:
    answer = await gateway.post("/v1/chat/completions", chat(), _headers(KEY))
    return _let_in(answer.status, 200, 429)


async def _rest_stream(gateway: Served) -> bool:
    answer = await gateway.post("/v1/chat/completions", chat(stream=True), _headers(KEY))
    return _let_in(answer.status, 200, 429)


async def _gateway(gateway: Served) -> bool:
    asked = {"model": "m", "messages": [{"role": "ROLE_USER", "parts": PARTS}]}
    answer = await gateway.post("/api/v1/chat/completions", asked, _headers(KEY))
    return _let_in(answer.status, 200, 429)


async def _graphql(gateway: Served) -> bool:
    variables = {"input": {"model": "m", "messages": [{"role": "USER", "parts": PARTS}]}}
    answer = await gateway.post("/graphql", {"query": MUTATION, "variables": variables}, _headers(KEY))
    errors = answer.json().get("errors")
    return _let_in(errors[0]["extensions"]["code"] if errors else None, None, "RATE_LIMITED")


async def _websocket(gateway: Served) -> bool:
    url = "ws://{}:{}/v1/ws".format(*gateway.address)
    async with connect(url, subprotocols=[Subprotocol("llmg.v1")]) as socket:
        for frame in ({"type": "init", "key": KEY}, {"type": "start", "id": "1", "request": chat()}):
            await socket.send(json.dumps(frame))
        async for said in socket:
            told = json.loads(said)
            if told["type"] in ("done", "error"):
                return _let_in(told.get("error", {}).get("code"), None, "rate_limited")
    raise AssertionError("the socket was closed")


async def _grpc(gateway: Served) -> bool:
    said = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=pb.TextPart(text="Hello"))])
    asked = pb.CreateChatCompletionRequest(chat=pb.Chat(model="m", messages=[said]))
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        stub: Any = ChatServiceStub(channel)
        call = stub.CreateChatCompletion(asked, timeout=PATIENCE, metadata=(("authorization", f"Bearer {KEY}"),))
        return _let_in(await call.code(), grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)


def _let_in(found: object, well: object, held_back: object) -> bool:
    assert found in (well, held_back), found
    return found == well


DOORS: tuple[Door, ...] = (_rest, _rest_stream, _gateway, _graphql, _websocket, _grpc)


async def test_workers_let_in_exactly_the_limit_by_whatever_doors(serve: Serve) -> None:
    key = {"id": "k", "sha256": digest(KEY).hex()}
    groups = {"prod": {"endpoints": {"web": {"keys": [key], "limits": {"requests_per_minute": LIMIT}}}}}
    async with redis_server() as redis:
        config = {
            **ECHO,
            "redis": {"url": redis.url, "timeout": "5s"},  # whatever else this machine does meanwhile
            "tenants": {
                "acme": {"limits": {"requests_per_minute": 2 * LIMIT}, "teams": {"search": {"groups": groups}}}
            },
        }
        gateway = await serve(config, "--workers", "3", ready=3)
        async with asyncio.timeout(PATIENCE):
            asked = [door(gateway) for _ in range(LIMIT // 2) for door in DOORS]
            assert sum(await asyncio.gather(*asked)) == LIMIT
            assert not any(await asyncio.gather(*[door(gateway) for door in DOORS]))
        gateway.tell(signal.SIGTERM)
        assert await gateway.ended() == 0
        assert gateway.complaints == []


async def test_what_is_changed_at_one_replica_holds_at_the_other_within_a_second(serve: Serve) -> None:
    async with redis_server() as redis:
        config = {**ECHO, "redis": {"url": redis.url}, "catalog": {"redis": True}, "admin": {"keys": {"ops": ADMIN}}}
        one, other = await serve(config), await serve(config)

        async def change(path: str) -> Any:
            answer = await one.post(f"/api/v1/{path}", {}, _headers(ADMIN))
            assert answer.status == 200, answer
            return answer.json()

        async def until(key: str, status: int) -> float:
            """Seconds until the other replica says so to this key."""
            begun = time.monotonic()
            async with asyncio.timeout(PATIENCE), other.connect() as client:
                while (await client.ask("GET", "/v1/models", headers=_headers(key))).status != status:
                    await asyncio.sleep(0.01)
            return time.monotonic() - begun

        pieces = WEB.split("/")
        for end in range(2, len(pieces) + 1, 2):
            await change("/".join(pieces[:end]))
        key = (await change(f"{WEB}:issueKey"))["secret"]
        known = await until(key, 200)
        (listed,) = (await one.ask("GET", f"/api/v1/{WEB}:keys", headers=_headers(ADMIN))).json()["keys"]
        await change(f"{listed['name']}:revokeKey")
        revoked = await until(key, 401)
        assert max(known, revoked) < 1.0
        for gateway in (one, other):
            gateway.tell(signal.SIGTERM)
            assert await gateway.ended() == 0
            assert gateway.complaints == []

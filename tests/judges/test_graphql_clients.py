"""GraphQL clients for Node: each in the way that its users have it, against the whole gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from judges.programs import KEY, node
from support.gateway import Gateway, in_process, to_upstream
from support.http import PATIENCE
from support.upstream import Act, Call, Upstream, chunk, cut_midway, endless, saying, upstream, words

WORDS = ("Grüße, ", "世界", " 🎉", "\n", "and so on")
# What each of them makes of a wrong key.
REFUSED: Mapping[str, Any] = {
    "graphql-ws": {"refused": "4403 the API key is not valid"},
    "subscriptions-transport-ws": {"texts": [], "codes": ["UNAUTHENTICATED"]},
    "graphql-sse": {"refused": "Server responded with 401: Unauthorized"},
    "apollo": {"texts": [], "codes": ["UNAUTHENTICATED"]},
    "urql": {"texts": [], "codes": ["UNAUTHENTICATED"]},
}
CLIENTS = pytest.mark.parametrize("client", REFUSED)


async def speech(call: Call) -> None:
    """The same words, whole or streamed one by one."""
    if not call.body.get("stream"):
        await saying("".join(WORDS))(call)
        return
    await words(call, *WORDS)
    await call.event(chunk({}, "stop"))
    await call.close_stream()


@asynccontextmanager
async def before(act: Act) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """The gateway before an upstream that does this."""
    async with upstream(act) as up, in_process({**to_upstream(up.base_url), "keys": {"judges": KEY}}) as gateway:
        yield gateway, up


def where(gateway: Gateway, key: str = KEY) -> str:
    """What a script is told."""
    host, port = gateway.address
    told: Mapping[str, Any] = {
        "http": f"http://{host}:{port}/graphql",
        "socket": f"ws://{host}:{port}/graphql",
        "authorization": f"Bearer {key}",
    }
    return json.dumps(told)


async def ask(client: str, scenario: str, gateway: Gateway, key: str = KEY) -> Any:
    """What came of a scenario."""
    async with node("run.mjs", client, scenario, where(gateway, key)) as script:
        return await script.result()


@CLIENTS
async def test_whole_answers(client: str) -> None:
    async with before(speech) as (gateway, _):
        answer = await ask(client, "whole", gateway)
    assert answer == {"models": ["m"], "texts": ["".join(WORDS)], "codes": []}


@CLIENTS
async def test_a_stream(client: str) -> None:
    async with before(speech) as (gateway, _):
        answer = await ask(client, "stream", gateway)
    assert answer["codes"] == []
    assert "".join(answer["texts"]) == "".join(WORDS)


@CLIENTS
async def test_requests_that_fail(client: str) -> None:
    async with before(speech) as (gateway, up):
        assert await ask(client, "failing", gateway) == {"whole": ["MODEL_NOT_FOUND"], "stream": ["MODEL_NOT_FOUND"]}
        assert up.calls == []


@CLIENTS
async def test_a_wrong_key(client: str) -> None:
    async with before(speech) as (gateway, up):
        answer = await ask(client, "refused", gateway, key="another")
        assert up.calls == []
    assert REFUSED[client] == answer


@CLIENTS
async def test_a_stream_that_fails_midway(client: str) -> None:
    async with before(cut_midway) as (gateway, _):
        answer = await ask(client, "stream", gateway)
    assert "".join(answer["texts"]) == "Hello"
    assert answer["codes"] == ["UPSTREAM_TRUNCATED"]


@CLIENTS
async def test_leaving_in_mid_stream_frees_the_upstream(client: str) -> None:
    async with before(endless) as (gateway, up), node("run.mjs", client, "leaving", where(gateway)) as script:
        assert await script.result() == {"left": True}
        async with asyncio.timeout(PATIENCE):  # its process goes on
            await up.last.gone.wait()

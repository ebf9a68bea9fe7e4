"""A stream whose first word is long in coming: its status goes out, and comments keep it alive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from unittest.mock import ANY

import openai
import pytest

from support import upstream as acts
from support.gateway import chat, in_process, to_upstream
from support.http import PATIENCE, request
from support.upstream import Act, Call, Upstream, upstream

CHAT = "/v1/chat/completions"
BEAT = b": heartbeat\n\n"


def beating(up: Upstream, **fields: Any) -> Mapping[str, Any]:
    """A gateway whose heart beats often."""
    return {**to_upstream(up.base_url, **fields), "http": {"heartbeat": "50ms"}}


class Held:
    """An act that begins when it is let go."""

    def __init__(self, act: Act) -> None:
        self._act = act
        self.go = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.go.wait()
        await self._act(call)


async def test_the_status_goes_out_then_comments_then_the_answer() -> None:
    held = Held(acts.good)
    async with upstream(held) as up, in_process(beating(up)) as gateway, gateway.connect() as connection:
        asked = asyncio.ensure_future(connection.post(CHAT, chat(stream=True)))
        await up.call()
        async with gateway.connect() as other:  # as long as another client hears three of them, this one does, too
            await other.send(_request())
            await other.head()
            for _ in range(3):
                assert await other.chunk() == BEAT
        held.go.set()
        response = await asked
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        comments = [event for event in response.events if event == ": heartbeat"]
        assert len(comments) >= 3
        assert response.events[: len(comments)] == comments
        way, *chunks = response.events[len(comments) : -1]
        assert named(way) == {"x-llmg-route": "up/their-model", "x-llmg-policy": "weighted", "server-timing": ANY}
        said = [json.loads(event) for event in chunks]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in said) == "Hello there"
        assert response.events[-1] == "[DONE]"


def named(comment: str) -> dict[str, str]:
    """The headers that a comment tells."""
    lines = [line.removeprefix(": ").partition(": ") for line in comment.splitlines()]
    assert all(line.startswith(": ") for line in comment.splitlines()), comment
    return {name: value for name, _, value in lines}


def _request() -> bytes:
    return request("POST", CHAT, json.dumps(chat(stream=True)).encode())


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (acts.hang_up, "upstream_unavailable"),
        (acts.rate_limited, "upstream_rate_limited"),
        (acts.html(200), "upstream_protocol"),
        (acts.error_with_200, "upstream_error"),
    ],
)
async def test_a_later_failure_comes_in_the_stream(act: Act, code: str) -> None:
    held = Held(act)
    async with upstream(held) as up, in_process(beating(up)) as gateway, gateway.connect() as connection:
        await connection.send(_request())
        status, _ = await connection.head()
        assert status == 200
        assert await connection.chunk() == BEAT
        held.go.set()
        *beats, last = [piece async for piece in connection.chunks()]
        assert set(beats) <= {BEAT}
        way, _, last = last.partition(b"\n\n")
        assert named(way.decode())["x-llmg-route"] == "up/their-model"  # where it was tried last
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code


async def test_a_time_limit_comes_in_the_stream() -> None:
    limits = {"first_event": "300ms"}
    async with upstream(acts.stall) as up, in_process(beating(up, timeouts=limits)) as gateway:
        response = await gateway.chat(stream=True)
        assert response.status == 200
        assert json.loads(response.events[-1])["error"]["code"] == "upstream_timeout"
        await (await up.call()).until_gone()


async def test_the_next_target_may_still_answer() -> None:
    held = Held(acts.html(502))
    async with upstream(held) as first, upstream(acts.good) as second:
        both = beating(first)
        both["providers"]["two"] = {"kind": "openai", "base_url": second.base_url}
        both["models"]["m"]["targets"][0]["weight"] = 1e9
        both["models"]["m"]["targets"].append({"provider": "two", "model": "b"})
        async with in_process(both) as gateway, gateway.connect() as connection:
            await connection.send(_request())
            await connection.head()
            assert await connection.chunk() == BEAT
            held.go.set()
            body = b"".join([piece async for piece in connection.chunks()])
            assert body.endswith(b"data: [DONE]\n\n")
            assert b" there" in body


async def test_what_a_head_has_told_is_not_told_again() -> None:
    """Neither is what nobody knows: this head waited for the answer."""
    async with upstream(acts.good) as up, in_process(to_upstream(up.base_url)) as gateway:
        response = await gateway.chat(stream=True)
        assert response.headers["x-llmg-route"] == "up/their-model"
        assert not [event for event in response.events if event.startswith(":")]


async def test_a_pause_in_the_midst_of_an_answer_is_filled() -> None:
    held = Held(acts.stall)

    async def act(call: Call) -> None:
        await acts.words(call, "Hello")
        async with asyncio.timeout(PATIENCE):
            await held.go.wait()
        await call.event(acts.chunk({"content": " there"}))
        await call.event(acts.chunk({}, "stop"))
        await call.close_stream()

    async with upstream(act) as up, in_process(beating(up)) as gateway, gateway.connect() as connection:
        await connection.send(_request())
        await connection.head()
        while await connection.chunk() != BEAT:
            pass
        held.go.set()
        body = b"".join([piece async for piece in connection.chunks()])
        assert body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_between_two_beats() -> None:
    async with upstream(acts.stall) as up, in_process(beating(up)) as gateway, gateway.connect() as connection:
        await connection.send(_request())
        await connection.head()
        assert await connection.chunk() == BEAT
        await connection.leave()
        async with asyncio.timeout(1):
            await (await up.call()).gone.wait()


async def test_openais_sdk_does_not_mind_them() -> None:
    held = Held(acts.good)
    async with (
        upstream(held) as up,
        in_process(beating(up)) as gateway,
        openai.AsyncOpenAI(base_url=gateway.base_url, api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
        )  # the head is here: the first beat has come
        held.go.set()
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(said) == "Hello there"


async def test_openais_sdk_raises_what_comes_in_the_stream() -> None:
    held = Held(acts.html(502))
    async with (
        upstream(held) as up,
        in_process(beating(up)) as gateway,
        openai.AsyncOpenAI(base_url=gateway.base_url, api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        held.go.set()
        with pytest.raises(openai.APIError) as caught:
            await anext(aiter(stream))
        assert caught.value.code == "upstream_error"

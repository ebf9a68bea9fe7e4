"""The provider for OpenAI-compatible upstreams, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog.testing

from llmg.core.assemble import assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import Delta
from llmg.core.request import Chat, Embed
from llmg.providers.http import Origin, Transport
from llmg.providers.openai import OpenAI, retry_after
from llmg.testing.conformance import a_context, assert_conforms, collect
from llmg.wire.openai.embeddings import decode_embed
from llmg.wire.openai.requests import decode_chat
from support import upstream as acts
from support.gateway import in_process, to_upstream
from support.upstream import ANSWER, KEY, Act, Call, Upstream, upstream

OTHER_SECRET = "another-secret-in-a-header"


@asynccontextmanager
async def provider(*script: Act, **options: Any) -> AsyncIterator[tuple[OpenAI, Upstream]]:
    """A provider and its upstream."""
    async with upstream(*script) as up:
        transport = Transport()
        try:
            yield OpenAI(transport, Origin(up.base_url), **{"api_key": KEY, **options}), up
        finally:
            await transport.close()


def a_chat(**fields: Any) -> Chat:
    """A request as the door decodes it."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **fields}
    return decode_chat(json.dumps(body).encode()).chat


def an_embed(**fields: Any) -> Embed:
    """A request for vectors, as the door decodes it."""
    return decode_embed(json.dumps({"model": "m", "input": "Hello", **fields}).encode())


async def failure_of(made: OpenAI, request: Chat | Embed) -> Failure:
    """What it fails with."""
    with pytest.raises(Failure) as caught:
        await collect(made, request)
    return caught.value


async def test_it_keeps_to_the_port() -> None:
    async with provider(acts.good) as (made, _):
        await assert_conforms(made, a_chat())


# -- what is sent ---------------------------------------------------------------------------------------------------


async def test_the_headers() -> None:
    headers = {"OpenAI-Organization": "org-1", "X-Team": "blue", "User-Agent": "mine"}
    async with provider(acts.good, headers=headers) as (made, up):
        await collect(made, a_chat())
        sent = up.last.headers
        assert up.last.path == "/v1/chat/completions"
        assert sent["authorization"] == f"Bearer {KEY}"
        assert sent["content-type"] == "application/json"
        assert sent["openai-organization"] == "org-1"
        assert sent["x-team"] == "blue"
        assert sent["user-agent"] == "mine"
        assert sent["accept-encoding"] == "identity"
        assert "cookie" not in sent


async def test_no_key_no_header() -> None:
    async with provider(acts.good, api_key=None) as (made, up):
        await collect(made, a_chat())
        assert "authorization" not in up.last.headers


async def test_cookies_are_not_kept() -> None:
    """They would go from one tenant to the next."""
    async with provider(acts.answering(200, ANSWER, set_cookie="session=1"), acts.good) as (made, up):
        await collect(made, a_chat())
        await collect(made, a_chat())
        assert "cookie" not in up.last.headers


async def test_redirects_are_not_followed() -> None:
    """The key would go along."""
    async with provider(acts.good) as (_, elsewhere):

        async def moved(call: Call) -> None:
            await call.answer(307, b"", location=f"{elsewhere.base_url}/chat/completions")

        async with provider(moved) as (made, _):
            assert (await failure_of(made, a_chat())).kind is Kind.UPSTREAM_PROTOCOL
            assert elsewhere.calls == []


@pytest.mark.parametrize("asked", [{}, {"stream_options": {"include_usage": False}}, {"stream_options": {"x": 1}}])
async def test_the_usage_of_a_stream_is_always_asked_for(asked: dict[str, Any]) -> None:
    async with provider(acts.good) as (made, up):
        answer = assemble(await collect(made, a_chat(stream=True, **asked)))
        assert up.last.body["stream_options"]["include_usage"] is True
        assert answer.usage
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 2)


@pytest.mark.parametrize(
    ("asked", "told"), [({}, 0), ({"stream_options": {"include_usage": True}}, 1)], ids=["not asked", "asked"]
)
async def test_and_told_to_clients_who_asked(asked: dict[str, Any], told: int) -> None:
    async with upstream(acts.good) as up, in_process(to_upstream(up.base_url)) as gateway:
        response = await gateway.chat(stream=True, **asked)
        chunks = [json.loads(event) for event in response.events[:-1]]
        assert sum("usage" in chunk and chunk["usage"] is not None for chunk in chunks) == told
        assert sum(chunk["choices"] == [] for chunk in chunks) == told


UNKNOWN = {"x_top": {"a": [1, None]}, "safety": "low", "provider": {"order": ["x"]}}


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_unknown_fields_pass_both_ways(stream: bool) -> None:
    """Through the whole gateway: only the model's name and the id are ours."""

    async def act(call: Call) -> None:
        choice = {**ANSWER["choices"][0], "x_choice": 1}
        choice["message"] = {**choice["message"], "x_message": {"deep": True}}
        if not stream:
            await call.json(200, {**ANSWER, "choices": [choice], "x_answer": [1, 2]})
            return
        await call.open_stream()
        await call.event(acts.chunk({"role": "assistant", "content": ""}))
        await call.event(acts.chunk({"content": "Hi", "x_delta": 3}, x_chunk="yes"))
        await call.event(acts.chunk({}, "stop"))
        await call.close_stream()

    async with upstream(act) as up, in_process(to_upstream(up.base_url)) as gateway:
        messages = [{"role": "user", "content": "Hello", "x_message": 1}]
        body = {"model": "m", "messages": messages, "stream": stream, "temperature": 0.30, **UNKNOWN}
        response = await gateway.post("/v1/chat/completions", body)
        sent = up.last.body
        assert {name: sent[name] for name in UNKNOWN} == UNKNOWN
        assert sent["messages"] == messages
        assert sent["model"] == "their-model"
        assert b'"temperature":0.3' in up.last.raw.replace(b" ", b"")
        if stream:
            said = [json.loads(event) for event in response.events[:-1]]
            assert any(chunk.get("x_chunk") == "yes" for chunk in said)
            assert any(chunk["choices"][0]["delta"].get("x_delta") == 3 for chunk in said)
        else:
            answer = response.json()
            assert answer["x_answer"] == [1, 2]
            assert answer["choices"][0]["x_choice"] == 1
            assert answer["choices"][0]["message"]["x_message"] == {"deep": True}
            assert answer["model"] == "m"
            assert answer["id"] != ANSWER["id"]


async def test_vectors_in_both_encodings() -> None:
    packed = base64.b64encode(b"\x00\x00\x80\x3f\x00\x00\x00\x40").decode()  # 1.0, 2.0

    async def act(call: Call) -> None:
        vector: Any = packed if call.body.get("encoding_format") == "base64" else [1.0, 2.0]
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        await call.json(200, {"object": "list", "data": data, "model": "theirs", "usage": usage})

    async with upstream(act) as up, in_process(to_upstream(up.base_url)) as gateway:
        plain = (await gateway.post("/v1/embeddings", {"model": "m", "input": "Hello"})).json()
        short = (await gateway.post("/v1/embeddings", {"model": "m", "input": "x", "encoding_format": "base64"})).json()
        assert up.last.path == "/v1/embeddings"
        assert plain["data"][0]["embedding"] == [1.0, 2.0]
        assert short["data"][0]["embedding"] == packed
        assert plain["model"] == "m"
        assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


# -- secrets --------------------------------------------------------------------------------------------------------


def leaking(call: Call) -> dict[str, Any]:
    """An error in which all headers are that came."""
    said = f"you sent {dict(call.headers)}"
    return {"error": {"message": said, "type": "invalid_request_error", "param": said, "code": said}}


async def refusing_400(call: Call) -> None:
    """Says it with the right status."""
    await call.json(400, leaking(call))


async def refusing_500(call: Call) -> None:
    """Whose words are for the log alone."""
    await call.json(500, leaking(call))


async def refusing_200(call: Call) -> None:
    """Says it with a good status."""
    await call.json(200, leaking(call))


async def refusing_in_stream(call: Call) -> None:
    """Says it in a stream, as what the caller got wrong."""
    await acts.words(call, "Hello")
    await call.event(leaking(call))


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("act", [refusing_400, refusing_500, refusing_200, refusing_in_stream])
async def test_secrets_are_in_no_answer_and_in_no_log(act: Act, stream: bool) -> None:
    if act is refusing_in_stream and not stream:
        act = refusing_200
    headers = {"X-Other-Key": OTHER_SECRET, "X-Short": "1"}
    async with upstream(act) as up, in_process(to_upstream(up.base_url, api_key=KEY, headers=headers)) as gateway:
        with structlog.testing.capture_logs() as logs:
            response = await gateway.chat(stream=stream)
        assert b"error" in response.body
        for secret in (KEY, OTHER_SECRET):
            assert secret in str(up.last.headers)
            assert secret.encode() not in response.body
            assert secret not in str(response.headers)
            assert secret not in str(logs)


# -- how it is read -------------------------------------------------------------------------------------------------


async def test_a_stream_however_it_was_cut_into_pieces() -> None:
    events = [acts.chunk({"role": "assistant", "content": ""}), acts.chunk({"content": "Grüße, 世界 🙂"})]
    events += [acts.chunk({}, "stop"), acts.USAGE]
    raw = b"".join(b"data: %b\n\n" % json.dumps(event, ensure_ascii=False).encode() for event in events)
    raw += b"data: [DONE]\n\n"
    for size in (1, 3, 7, 64, len(raw)):

        async def act(call: Call, size: int = size) -> None:
            await call.open_stream()
            for start in range(0, len(raw), size):
                await call.piece(raw[start : start + size])
            await call.write(b"0\r\n\r\n")

        async with provider(act) as (made, _):
            answer = assemble(await collect(made, a_chat(stream=True)))
            assert answer.choices[0].parts[0].data == "Grüße, 世界 🙂"


async def test_each_read_of_the_upstream_is_a_batch() -> None:
    go = asyncio.Event()

    async def act(call: Call) -> None:
        await acts.words(call, "one")
        await go.wait()
        await call.event(acts.chunk({"content": "two"}))
        await call.event(acts.chunk({}, "stop"))
        await call.close_stream()

    async with provider(act) as (made, _), made.open(a_chat(stream=True), a_context()) as batches:
        said = ""
        async for batch in batches:
            said += "".join(str(event.data) for event in batch if isinstance(event, Delta))
            if said == "one":
                go.set()
        assert said == "onetwo"


async def test_a_stream_that_was_answered_whole() -> None:
    """Some upstreams can't stream, and don't say so."""
    async with provider(acts.answering(200, ANSWER)) as (made, _):
        answer = assemble(await collect(made, a_chat(stream=True)))
        assert answer.choices[0].parts[0].data == "Hello there"


async def test_an_answer_without_a_content_type() -> None:
    async def act(call: Call) -> None:
        body = json.dumps(ANSWER).encode()
        await call.head(200, content_length=str(len(body)))
        await call.write(body)

    async with provider(act) as (made, _):
        assert assemble(await collect(made, a_chat())).choices[0].reason == "stop"


async def test_an_answer_that_ends_with_its_connection() -> None:
    async def act(call: Call) -> None:
        await call.head(200, content_type="application/json", connection="close")
        await call.write(json.dumps(ANSWER).encode())
        call.hang_up()

    async with provider(act) as (made, _):
        assert assemble(await collect(made, a_chat())).choices[0].reason == "stop"


async def test_a_no_error_is_no_error() -> None:
    async with provider(acts.answering(200, {"error": None, **ANSWER})) as (made, _):
        assert assemble(await collect(made, a_chat())).choices[0].reason == "stop"


async def test_a_request_of_several_megabytes() -> None:
    async with provider(acts.good) as (made, up):
        await collect(made, a_chat(user="x" * (4 << 20)))
        assert len(up.last.raw) > 4 << 20


async def test_what_it_has_not_says_so() -> None:
    async with provider(acts.answering(404, {"error": {"message": "no embeddings here"}})) as (made, _):
        assert (await failure_of(made, an_embed())).message == "no embeddings here"


async def test_leaving_a_stream_early_closes_its_connection_and_no_other() -> None:
    async with provider(acts.good, acts.stall_midway, acts.good) as (made, up):
        await collect(made, a_chat())
        async with made.open(a_chat(stream=True), a_context()) as batches:
            await anext(aiter(batches))
        async with asyncio.timeout(1):
            await up.last.gone.wait()
        await collect(made, a_chat())
        assert up.connections == 2


async def test_an_end_that_does_not_come_is_not_waited_for() -> None:
    """After [DONE] the answer is complete, whatever the upstream does with its connection."""
    over = asyncio.Event()

    async def act(call: Call) -> None:
        await acts.words(call, "Hello")
        await call.event(acts.chunk({}, "stop"))
        await call.event(b"[DONE]")
        async with asyncio.timeout(10):
            await over.wait()
        await call.write(b"0\r\n\r\n")

    async with provider(act, acts.good) as (made, up):
        async with asyncio.timeout(5):
            assert assemble(await collect(made, a_chat(stream=True))).choices[0].reason == "stop"
        over.set()
        await up.last.answered.wait()


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("3", 3.0), ("1.5", 1.5), ("", None), ("86401", None), ("tomorrow", None)]
)
def test_seconds_to_wait(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds

"""OpenAI's own SDK against the real SmolLM2."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import grpc.aio
import openai
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from live.conftest import ENDLESS, METADATA, Engine, sdk
from llmg.backendapi import backend_pb2 as pb
from llmg.backendapi.backend_pb2_grpc import BackendStub
from support.gateway import Process, chat, process
from support.http import request

MODEL = "smollm2"
CAPITAL: Any = [{"role": "user", "content": "Name the capital of France."}]
State = pb.StatusResponse.State
PROMPTLY = 2.0  # seconds; it is well below one where nothing else wants the processor


async def ask(client: openai.AsyncOpenAI, **fields: Any) -> ChatCompletion:
    """A whole answer, greedy where nothing else is said."""
    given = {"model": MODEL, "messages": CAPITAL, "temperature": 0, "max_tokens": 24, **fields}
    answer: ChatCompletion = await client.chat.completions.create(**given)
    return answer


async def stream(client: openai.AsyncOpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    """The same as a stream."""
    given = {"model": MODEL, "messages": CAPITAL, "temperature": 0, "max_tokens": 24, "stream": True, **fields}
    chunks: Any = await client.chat.completions.create(**given)
    return [chunk async for chunk in chunks]


def text(answer: ChatCompletion | list[ChatCompletionChunk], choice: int = 0) -> str:
    """What was said."""
    if isinstance(answer, ChatCompletion):
        return answer.choices[choice].message.content or ""
    return "".join(c.delta.content or "" for chunk in answer for c in chunk.choices if c.index == choice)


async def test_whole(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client)
    assert "Paris" in text(answer)
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_streamed(client: openai.AsyncOpenAI) -> None:
    chunks = await stream(client)
    assert text(chunks) == text(await ask(client))
    assert len(chunks) > 4
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {MODEL}
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


async def test_streamed_with_usage(client: openai.AsyncOpenAI) -> None:
    chunks = await stream(client, stream_options={"include_usage": True})
    answer = await ask(client)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert answer.usage is not None
    assert chunks[-1].usage.prompt_tokens == answer.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_without_asyncio(served: Process) -> None:
    with openai.OpenAI(base_url=served.base_url, api_key="none", max_retries=0, timeout=60) as client:
        answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_tokens=24)
        assert "Paris" in text(answer)
        with client.chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=24, stream=True
        ) as chunks:
            assert text(list(chunks)) == text(answer)


async def test_several_choices_count_their_prompt_once(client: openai.AsyncOpenAI) -> None:
    one = await ask(client)
    two = await ask(client, n=2, temperature=1.5, max_tokens=16)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert all(choice.message.content for choice in two.choices)
    assert one.usage is not None
    assert two.usage is not None
    assert two.usage.prompt_tokens == one.usage.prompt_tokens
    assert 16 < two.usage.completion_tokens <= 32 or two.choices[0].finish_reason == "stop"


async def test_several_choices_streamed(client: openai.AsyncOpenAI) -> None:
    one = await ask(client)
    chunks = await stream(client, n=3, stream_options={"include_usage": True})
    assert [text(chunks, choice) for choice in range(3)] == [text(one)] * 3
    ended = sorted(c.index for chunk in chunks for c in chunk.choices if c.finish_reason)
    assert ended == [0, 1, 2]
    assert chunks[-1].usage is not None
    assert one.usage is not None
    assert chunks[-1].usage.prompt_tokens == one.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == 3 * one.usage.completion_tokens


async def test_log_probabilities(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, logprobs=True, top_logprobs=3, max_tokens=8)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode().startswith(text(answer))
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert [top.logprob for top in token.top_logprobs] == sorted(
            [top.logprob for top in token.top_logprobs], reverse=True
        )
    chunks = await stream(client, logprobs=True, top_logprobs=3, max_tokens=8)
    streamed = [
        token for chunk in chunks for c in chunk.choices if c.logprobs is not None for token in c.logprobs.content or ()
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]


async def test_log_probabilities_without_rivals(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, logprobs=True, max_tokens=4)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content
    assert all(token.top_logprobs == [] for token in answer.choices[0].logprobs.content)
    assert (await ask(client, max_tokens=4)).choices[0].logprobs is None


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "London", "Rome"]},
        "visits": {"type": "integer", "minimum": 0, "maximum": 9},
        "tags": {"type": "array", "items": {"enum": ["big", "old"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "visits", "tags"],
    "additionalProperties": False,
}


async def test_an_answer_that_fits_a_schema(client: openai.AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "visit", "schema": SCHEMA, "strict": True}}
    for said in (
        text(await ask(client, response_format=form, max_tokens=80)),
        text(await stream(client, response_format=form, max_tokens=80)),
    ):
        Draft202012Validator(SCHEMA).validate(json.loads(said))


class Weather(BaseModel):
    """What is asked for by its type."""

    sky: Literal["clear", "cloudy", "dark"]
    warm: bool


async def test_an_answer_of_a_type(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model=MODEL, messages=CAPITAL, temperature=0, max_tokens=60, response_format=Weather
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)


async def test_some_json(client: openai.AsyncOpenAI) -> None:
    question: Any = [{"role": "user", "content": 'Answer in JSON: {"answer": 4}. What is 2 and 2?'}]
    answer = await ask(client, messages=question, response_format={"type": "json_object"}, max_tokens=200)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text(answer)), dict)
    else:
        assert text(answer).lstrip().startswith("{")


async def test_stop_words(client: openai.AsyncOpenAI) -> None:
    whole = text(await ask(client))
    word = whole.split()[3]
    answer = await ask(client, stop=[word])
    assert text(answer) == whole[: whole.index(word)]
    assert answer.choices[0].finish_reason == "stop"
    assert text(await stream(client, stop=word)) == whole[: whole.index(word)]


async def test_the_same_seed_says_the_same(client: openai.AsyncOpenAI) -> None:
    story: Any = [{"role": "user", "content": "Tell me a story."}]
    said = [text(await ask(client, messages=story, temperature=1.2, seed=seed)) for seed in (7, 7, 8, 9)]
    assert said[0] == said[1]
    assert len(set(said)) > 1


async def test_no_more_than_so_many_tokens(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    chunks = await stream(client, max_tokens=None, max_completion_tokens=3)
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["length"]


async def test_many_at_once(client: openai.AsyncOpenAI) -> None:
    alone = text(await ask(client))
    whole = await asyncio.gather(*(ask(client) for _ in range(6)), *(ask(client, n=2) for _ in range(2)))
    streams = await asyncio.gather(*(stream(client) for _ in range(6)))
    said = [text(answer) for answer in whole] + [text(answer) for answer in streams]
    assert all("Paris" in one for one in said), (alone, said)


# -- vectors --------------------------------------------------------------------------------------------------------


async def test_vectors(client: openai.AsyncOpenAI) -> None:
    one = await client.embeddings.create(model=MODEL, input="hello world", encoding_format="float")
    assert one.model == MODEL
    assert len(one.data) == 1
    assert len(one.data[0].embedding) == 576
    assert one.usage.prompt_tokens == one.usage.total_tokens > 0
    packed = await client.embeddings.create(model=MODEL, input="hello world")  # base64, unpacked by the SDK
    assert packed.data[0].embedding == pytest.approx(one.data[0].embedding, abs=1e-5)
    several = await client.embeddings.create(model=MODEL, input=["a cat", "hello world", "a cat"])
    assert [vector.index for vector in several.data] == [0, 1, 2]
    assert several.data[1].embedding == pytest.approx(one.data[0].embedding, abs=1e-3)
    assert several.data[0].embedding == pytest.approx(several.data[2].embedding, abs=1e-3)
    assert several.data[0].embedding != pytest.approx(several.data[1].embedding, abs=1e-2)
    assert several.usage.prompt_tokens > one.usage.prompt_tokens


async def test_vectors_of_tokens(client: openai.AsyncOpenAI) -> None:
    one = await client.embeddings.create(model=MODEL, input=[28120, 905])
    assert len(one.data) == 1
    two = await client.embeddings.create(model=MODEL, input=[[28120, 905], [42]])
    assert len(two.data) == 2
    assert two.data[0].embedding == pytest.approx(one.data[0].embedding, abs=1e-3)


async def test_a_length_that_the_vectors_do_not_have(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model=MODEL, input="hello", dimensions=10)
    assert caught.value.param == "dimensions"
    assert "576" in caught.value.message


# -- models and refusals --------------------------------------------------------------------------------------------


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    model = await client.models.retrieve(MODEL)
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "local")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nope")


async def test_a_model_that_does_not_exist(client: openai.AsyncOpenAI) -> None:
    for name in ("nope", "local/nope", "local/../../../etc/passwd", "local//etc/passwd"):
        with pytest.raises(openai.NotFoundError) as caught:
            await ask(client, model=name)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
        assert str(Path.cwd()) not in caught.value.message
        assert ".py" not in caught.value.message


async def test_a_wrong_parameter(client: openai.AsyncOpenAI) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(client, temperature=9, stream=streamed)
        assert caught.value.param == "temperature"
        assert caught.value.type == "invalid_request_error"


async def test_a_schema_that_can_not_be_kept(client: openai.AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError):
        await ask(client, response_format=form)


async def test_more_than_the_context_holds(client: openai.AsyncOpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 6000}]
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(client, messages=long, stream=streamed)
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model=MODEL, input="word " * 6000)
    assert caught.value.code == "context_length_exceeded"


# -- leaving --------------------------------------------------------------------------------------------------------


async def until(stub: BackendStub, state: Any) -> None:
    """Asks the engine until it is in that state."""
    async with asyncio.timeout(PROMPTLY):
        while (await stub.Status(pb.HealthMessage(), metadata=METADATA)).state != state:
            pass


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
async def test_the_slot_of_a_client_that_left_is_free_again(
    to_engine: Process, engine: Engine, streamed: bool, n: int
) -> None:
    async with grpc.aio.insecure_channel(engine.address) as channel, to_engine.connect() as connection:
        stub = BackendStub(channel)
        await until(stub, State.READY)
        body = json.dumps(chat(MODEL, "Tell me a story.", stream=streamed, n=n, **ENDLESS)).encode()
        await connection.send(request("POST", "/v1/chat/completions", body))
        if streamed:
            await connection.head()
            await connection.chunk()
        await until(stub, State.BUSY)
        await connection.leave()
        await until(stub, State.READY)
        metrics = await stub.GetMetrics(pb.MetricsRequest(), metadata=METADATA)
        assert metrics.tokens_generated < 2000


async def test_the_sdk_that_closes_its_stream(to_engine: Process, engine: Engine) -> None:
    async with grpc.aio.insecure_channel(engine.address) as channel, sdk(to_engine) as client:
        chunks = await client.chat.completions.create(model=MODEL, messages=CAPITAL, stream=True, **ENDLESS)
        await anext(aiter(chunks))
        await until(BackendStub(channel), State.BUSY)
        await chunks.close()
        await until(BackendStub(channel), State.READY)


# -- a crash --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Process]:
    """A gateway whose engine may be killed."""
    with process(tmp_path) as gateway:
        yield gateway


async def test_a_killed_engine(mortal: Process) -> None:
    """Each call under way ends with a clear error, the next one is answered."""
    async with sdk(mortal) as client:
        await ask(client, max_tokens=1)
        pid = mortal.find("model loaded")["pid"]
        streams = [
            await client.chat.completions.create(model=MODEL, messages=CAPITAL, stream=True, **ENDLESS)
            for _ in range(3)
        ]
        unary = asyncio.create_task(ask(client, **ENDLESS))
        for chunks in streams:
            await anext(aiter(chunks))
        os.kill(pid, signal.SIGKILL)
        for chunks in streams:
            with pytest.raises(openai.APIError, match="signal 9") as caught:
                _ = [chunk async for chunk in chunks]
            assert caught.value.code == "backend_crashed"
        with pytest.raises(openai.APIStatusError, match="signal 9") as refused:
            await unary
        assert refused.value.status_code == 502
        assert refused.value.code == "backend_crashed"
        assert "Paris" in text(await ask(client))
        assert mortal.find("model loaded")["generation"] == 2

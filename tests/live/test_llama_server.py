"""Against an upstream that we did not write: llama.cpp's own HTTP server says what the engine says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from live.conftest import MODEL_FILE, TOKEN, Engine, sdk
from support.gateway import STARTED_WITHIN, Gateway, Log, process
from support.http import PATIENCE

KEY = "sk-llama-server"
SERVER = Path(__file__).with_name("llama_server.py")

CASES: dict[str, dict[str, Any]] = {
    "a fact": {"messages": [{"role": "user", "content": "Name the capital of France."}]},
    "a system": {
        "messages": [
            {"role": "system", "content": "You are a pirate. Answer in one sentence."},
            {"role": "user", "content": "Who are you?"},
        ],
    },
    "a conversation": {
        "messages": [
            {"role": "user", "content": "My name is Zoë."},
            {"role": "assistant", "content": "Nice to meet you, Zoë!"},
            {"role": "user", "content": "What is my name?"},
        ],
    },
    "a limit": {"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 10},
    "another script": {"messages": [{"role": "user", "content": "日本語で挨拶してください 🙂"}], "max_tokens": 24},
    "a stop word": {"messages": [{"role": "user", "content": "Count to ten: 1, 2, 3,"}], "stop": ["5"]},
    "a schema": {
        "messages": [{"role": "user", "content": "Pick one."}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "pick",
                "schema": {
                    "type": "object",
                    "properties": {"pick": {"enum": ["a", "b"]}},
                    "required": ["pick"],
                    "additionalProperties": False,
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def both(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway before the engine, as `ours`, and before llama.cpp's server, as `theirs`."""
    command = [sys.executable, str(SERVER), MODEL_FILE, KEY]
    popen = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    assert popen.stdin is not None
    log = Log(popen)
    try:
        address = log.line("serving on", STARTED_WITHIN).split()[-1]
        config = {
            "providers": {
                "engine": {"kind": "backend", "address": engine.address, "token": TOKEN},
                "server": {"kind": "openai", "base_url": f"{address}/v1", "api_key": KEY},
                "locked-out": {"kind": "openai", "base_url": f"{address}/v1", "api_key": "sk-wrong-key"},
            },
            "models": {
                "ours": {"targets": [{"provider": "engine", "model": "smollm2"}]},
                "theirs": {"targets": [{"provider": "server", "model": "smollm2"}]},
            },
        }
        with process(tmp_path_factory.mktemp("both"), config) as gateway:
            yield gateway
    finally:
        popen.stdin.close()
        try:
            popen.wait(PATIENCE)
        finally:
            popen.kill()
            popen.wait()
            log.close()


@pytest.fixture
async def client(both: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's SDK."""
    async with sdk(both) as made:
        yield made


Told = tuple[str, str | None, tuple[int, int, int]]


async def whole(client: openai.AsyncOpenAI, model: str, case: dict[str, Any]) -> Told:
    """(text, finish reason, token counts) of a whole answer."""
    answer = await client.chat.completions.create(model=model, **{"temperature": 0, "max_tokens": 40, **case})
    assert answer.model == model
    usage = answer.usage
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    return answer.choices[0].message.content, answer.choices[0].finish_reason, counts


async def streamed(client: openai.AsyncOpenAI, model: str, case: dict[str, Any]) -> Told:
    """The same of a stream."""
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model=model,
            stream=True,
            stream_options={"include_usage": True},
            **{"temperature": 0, "max_tokens": 40, **case},
        )
    ]
    assert {chunk.model for chunk in chunks} == {model}
    usage = chunks[-1].usage
    assert usage is not None
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    (reason,) = [choice.finish_reason for choice in choices if choice.finish_reason]
    return "".join(choice.delta.content or "" for choice in choices), reason, counts


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_both_say_the_same(client: openai.AsyncOpenAI, case: dict[str, Any]) -> None:
    theirs = await whole(client, "theirs", case)
    assert theirs[0]
    assert await whole(client, "ours", case) == theirs
    assert await streamed(client, "ours", case) == theirs
    assert await streamed(client, "theirs", case) == theirs


async def logprobs(client: openai.AsyncOpenAI, model: str) -> list[tuple[str, float]]:
    """Each token, and how likely it was."""
    answer = await client.chat.completions.create(
        model=model, messages=CASES["a fact"]["messages"], temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    return [(token.token, token.logprob) for token in answer.choices[0].logprobs.content or ()]


async def test_the_same_log_probabilities(client: openai.AsyncOpenAI) -> None:
    ours, theirs = await logprobs(client, "ours"), await logprobs(client, "theirs")
    if theirs[-1][0] == "":  # in a whole answer, though in no stream, the server tells of the end's token, too
        theirs.pop()
    assert [token for token, _ in ours] == [token for token, _ in theirs]
    assert [sure for _, sure in ours] == pytest.approx([sure for _, sure in theirs], abs=0.02)


async def test_the_same_refusal_of_a_long_prompt(client: openai.AsyncOpenAI) -> None:
    for model in ("ours", "theirs"):
        with pytest.raises(openai.BadRequestError) as caught:
            await whole(client, model, {"messages": [{"role": "user", "content": "word " * 6000}]})
        assert caught.value.code in ("context_length_exceeded", "exceed_context_size_error")


async def test_a_wrong_key_is_ours_to_mend_and_is_not_told(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await whole(client, "locked-out/smollm2", CASES["a fact"])
    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_auth"
    assert "sk-wrong-key" not in str(caught.value.response.text)

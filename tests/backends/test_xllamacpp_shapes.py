"""The pure halves of the engine xllamacpp: requests into llama.cpp's shape, and its chunks into replies."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import xllamacpp

from llmg.backendapi import backend_pb2 as pb
from llmg.backends.servicer import StatusError
from llmg.backends.xllamacpp.answers import Answer, Chunk, status
from llmg.backends.xllamacpp.params import text_params, vector_params
from llmg.backends.xllamacpp.prompts import SAMPLING, prompt


def body(**fields: Any) -> dict[str, Any]:
    return prompt(pb.PredictOptions(**({"Prompt": "hi"} | fields))).body


def chat(**fields: Any) -> dict[str, Any]:
    return prompt(pb.PredictOptions(**({"Messages": [pb.Message(role="user", content="hi")]} | fields))).body


# -- requests --


def test_every_call_reports_so_that_it_can_be_cancelled() -> None:
    assert body()["stream"] is True
    assert body()["return_progress"] is True


def test_what_is_not_said_is_taken_as_zero_only_where_zero_means_something() -> None:
    said = body()
    assert {name: said[name] for name in ("temperature", "top_k", "min_p", "repeat_last_n", "seed")} == {
        "temperature": 0, "top_k": 0, "min_p": 0, "repeat_last_n": 0, "seed": 0,
    }  # fmt: skip
    assert not {"top_p", "typical_p", "repeat_penalty", "mirostat_tau", "max_tokens"} & said.keys()


@pytest.mark.parametrize("field", sorted(SAMPLING))
def test_each_sampling_field_goes_out_under_its_name(field: str) -> None:
    value = True if field == "IgnoreEOS" else 1
    assert body(**{field: value})[SAMPLING[field][0]] == value


def test_messages_keep_what_they_carry() -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        pb.Message(role="user", content="hi", name="ann"),
        pb.Message(role="assistant", reasoning_content="hm", tool_calls=json.dumps(calls)),
        pb.Message(role="tool", content="42", tool_call_id="a"),
    ]
    assert chat(Messages=messages)["messages"] == [
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "42", "tool_call_id": "a"},
    ]


def test_images_and_sounds_go_to_the_last_message_of_the_user() -> None:
    messages = [pb.Message(role="user", content="look"), pb.Message(role="assistant", content="I look")]
    sent = chat(Messages=messages, Images=["AAAA"], Audios=["BBBB"])["messages"]
    assert [part["type"] for part in sent[0]["content"]] == ["image_url", "input_audio", "text"]
    assert sent[0]["content"][0]["image_url"]["url"].endswith("base64,AAAA")
    assert sent[1]["content"] == "I look"


@pytest.mark.parametrize("choice", ["auto", '"auto"'])
def test_tools_and_the_choice_are_passed_on(choice: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    sent = chat(Tools=json.dumps(tools), ToolChoice=choice)
    assert (sent["tools"], sent["tool_choice"]) == (tools, "auto")
    named = {"type": "function", "function": {"name": "f"}}
    assert chat(Tools=json.dumps(tools), ToolChoice=json.dumps(named))["tool_choice"] == named


def test_metadata_becomes_arguments_of_the_template_and_the_explicit_ones_win() -> None:
    metadata = {"enable_thinking": "true", "reasoning_effort": "low", "user": "ann"}
    assert chat(Metadata=metadata)["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "low"}
    metadata["chat_template_kwargs"] = '{"reasoning_effort": "high", "x": 1}'
    assert chat(Metadata=metadata)["chat_template_kwargs"] == {
        "enable_thinking": True, "reasoning_effort": "high", "x": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("grammar", "sent"),
    [
        ('{"type": "integer"}', {"json_schema": {"type": "integer"}}),
        ("{}", {"json_schema": {}}),
        ('root ::= "a"', {"grammar": 'root ::= "a"'}),
        ("  ", {}),
    ],
)
def test_a_json_object_is_a_schema_and_other_text_a_grammar(grammar: str, sent: dict[str, Any]) -> None:
    said = chat(Grammar=grammar)
    assert {key: said[key] for key in ("json_schema", "grammar") if key in said} == sent


# -- answers --


def chunk(**delta: Any) -> Chunk:
    return {"choices": [{"index": 0, "finish_reason": None, "delta": delta}]}


def finish(reason: str) -> Chunk:
    return {"choices": [{"index": 0, "finish_reason": reason, "delta": {}}]}


USAGE: Chunk = {"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 7}}


def test_deltas_keep_their_order_and_join_with_their_kind() -> None:
    reply = Answer().read(
        [chunk(reasoning_content="h"), chunk(reasoning_content="m"), chunk(content="a"), chunk(content="b")]
    )
    assert reply is not None
    assert [(delta.reasoning_content, delta.content) for delta in reply.chat_deltas] == [("hm", ""), ("", "ab")]
    assert reply.message == b"ab"


def test_pieces_of_tool_calls_keep_their_index() -> None:
    def call(index: int, **parts: Any) -> Chunk:
        return chunk(tool_calls=[{"index": index} | parts])

    answer = Answer()
    reply = answer.read(
        [
            call(0, id="a", type="function", function={"name": "f", "arguments": ""}),
            call(0, function={"arguments": '{"x":'}),
            call(0, function={"arguments": "1}"}),
            call(1, id="b", type="function", function={"name": "g", "arguments": "{}"}),
            finish("tool_calls"),
        ]
    )
    assert reply is not None
    calls = [call for delta in reply.chat_deltas for call in delta.tool_calls]
    assert [(call.index, call.id, call.name, call.arguments) for call in calls] == [
        (0, "a", "f", ""), (0, "", "", '{"x":'), (0, "", "", "1}"), (1, "b", "g", "{}"),
    ]  # fmt: skip
    assert ("llmg-finish-reason", "tool_calls") in answer.trailing("m")


def test_any_cut_of_the_chunks_gives_the_same_answer() -> None:
    chunks = [chunk(role="assistant", content=None), chunk(content="a"), chunk(content="b"), finish("stop"), USAGE]
    for cut in range(len(chunks) + 1):
        answer = Answer()
        replies = [reply for part in (chunks[:cut], chunks[cut:]) if (reply := answer.read(part))]
        assert b"".join(reply.message for reply in replies) == b"ab"
        assert (replies[-1].tokens, replies[-1].prompt_tokens) == (5, 7)
        assert answer.finish_reason == "stop"


def test_what_says_nothing_new_gives_no_reply() -> None:
    assert Answer().read([chunk(role="assistant", content=None)]) is None
    assert Answer().read([]) is None


def test_half_an_answer_is_an_error() -> None:
    answer = Answer()
    answer.read([chunk(content="a")])
    with pytest.raises(StatusError, match="without finishing") as error:
        answer.trailing("m")
    assert error.value.code == grpc.StatusCode.INTERNAL


def test_an_error_in_the_stream_is_raised() -> None:
    error = {"error": {"code": 400, "type": "exceed_context_size_error", "message": "too long"}}
    with pytest.raises(StatusError, match="too long") as raised:
        Answer().read([chunk(content="a"), error])
    assert raised.value.trailing == (("llmg-error-kind", "context_length_exceeded"),)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("invalid_request_error", grpc.StatusCode.INVALID_ARGUMENT),
        ("unavailable_error", grpc.StatusCode.UNAVAILABLE),
        ("server_error", grpc.StatusCode.INTERNAL),
        ("something new", grpc.StatusCode.INTERNAL),
    ],
)
def test_errors_have_the_status_of_their_type(kind: str, code: grpc.StatusCode) -> None:
    assert status({"type": kind, "message": "words"}).code == code


# -- loading --


def options(tmp_path: Path, **fields: Any) -> pb.ModelOptions:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + fields.pop("metadata", b""))
    return pb.ModelOptions(ModelFile=str(path), **fields)


def test_the_context_is_for_each_slot_and_batches_are_small_on_a_cpu(tmp_path: Path) -> None:
    params = text_params(options(tmp_path, ContextSize=1024, Threads=3, Options=["parallel:2"]))
    assert (params.n_parallel, params.n_ctx, params.n_batch, params.n_ubatch) == (2, 2048, 24, 24)
    params = text_params(options(tmp_path, NGPULayers=99))
    assert (params.n_parallel, params.n_ctx, params.n_batch) == (4, 4 * 4096, 512)
    assert text_params(options(tmp_path, NBatch=64)).n_batch == 64
    assert text_params(options(tmp_path, NBatch=1)).n_batch == 4  # a token for each slot


def test_the_fields_reach_llama_cpp(tmp_path: Path) -> None:
    params = text_params(
        options(
            tmp_path, MMap=True, MLock=True, MainGPU="1", TensorSplit="1,3", FlashAttention="off", RopeScaling="yarn",
            CacheTypeKey="q8_0", CacheTypeValue="Q4_0", NoKVOffload=True, MMProj="/p", Options=["verbosity:3"],
        )
    )  # fmt: skip
    assert params.load_mode == xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP_MLOCK
    assert (params.main_gpu, list(params.tensor_split)[:3], params.no_kv_offload) == (1, [1.0, 3.0, 0.0], True)
    assert params.flash_attn_type == xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    assert params.rope_scaling_type == xllamacpp.llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_YARN
    assert params.cache_type_k == xllamacpp.ggml_type.GGML_TYPE_Q8_0
    assert params.cache_type_v == xllamacpp.ggml_type.GGML_TYPE_Q4_0
    assert (params.mmproj.path, params.verbosity) == ("/p", 3)


def test_nobody_else_may_use_llama_cpps_own_port(tmp_path: Path) -> None:
    one, two = (text_params(options(tmp_path)) for _ in range(2))
    assert one.hostnames == ["127.0.0.1"]
    assert len(one.api_keys[0]) > 20
    assert one.api_keys != two.api_keys


def test_vectors_are_pooled_as_the_model_says_else_by_their_mean(tmp_path: Path) -> None:
    pooling = xllamacpp.llama_pooling_type
    assert vector_params(options(tmp_path)).pooling_type == pooling.LLAMA_POOLING_TYPE_MEAN
    said = options(tmp_path, metadata=b"\0bert.pooling_type\0")
    assert vector_params(said).pooling_type == pooling.LLAMA_POOLING_TYPE_UNSPECIFIED
    asked = options(tmp_path, Options=["pooling:cls"])
    assert vector_params(asked).pooling_type == pooling.LLAMA_POOLING_TYPE_CLS
    assert vector_params(asked).n_batch == 2048


def test_an_unknown_option_is_logged_and_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text_params(options(tmp_path, Options=["paralel:2"]))
    assert "paralel" in caplog.text

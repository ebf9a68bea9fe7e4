"""Requests from what people have, to what the gateway understands."""

from __future__ import annotations

from typing import Any

import pytest

from llmg.client import InvalidRequestError, checks, requests
from llmg.client import types as t
from llmg.core import request as core
from llmg.core.request import Chat, Sampling, SchemaOutput, Text
from llmg.gatewayapi.v1 import chat_pb2
from llmg.gatewayapi.v1.embeddings_pb2 import Tokens
from llmg.wire.gateway import decode_chat

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2.5, None, True, "x"]}}, "required": ("n",)}
PLAIN_SCHEMA = {**SCHEMA, "required": ["n"]}


def decoded(messages: Any = "Hello", **fields: Any) -> Chat:
    """A chat as the gateway takes it."""
    raw = bytes(requests.chat("m", messages, fields))  # type: ignore[arg-type]
    return decode_chat(chat_pb2.Chat.FromString(raw), stream=False)


# -- fields ------------------------------------------------------------------------------------------------------------

FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
FIELDS: list[tuple[str, Any, Any]] = [
    ("tools", [{"type": "function", "function": FUNCTION}], None),
    ("tools", [t.Tool(name="f")], (core.Tool(name="f"),)),
    ("tool_choice", "none", core.ToolChoice(mode="none")),
    ("tool_choice", "auto", core.ToolChoice(mode="auto")),
    ("tool_choice", "required", core.ToolChoice(mode="required")),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}, core.ToolChoice(mode="named", name="f")),
    ("tool_choice", t.ToolChoice(mode=t.ToolChoiceMode.NONE), core.ToolChoice(mode="none")),
    ("parallel_tool_calls", False, False),
    ("response_format", {"type": "text"}, core.TextOutput()),
    ("response_format", {"type": "json_object"}, core.JsonOutput()),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": False, "description": "d"}},
        SchemaOutput(name="s", schema=PLAIN_SCHEMA, strict=False, description="d"),
    ),
    ("response_format", t.OutputFormat(grammar=t.GrammarOutput(grammar="g")), core.GrammarOutput("g")),
    ("temperature", 0.0, Sampling(temperature=0.0)),
    ("top_p", 0.5, Sampling(top_p=0.5)),
    ("top_k", 0, Sampling(top_k=0)),
    ("min_p", 0.0, Sampling(min_p=0.0)),
    ("frequency_penalty", -1, Sampling(frequency_penalty=-1)),
    ("presence_penalty", 2, Sampling(presence_penalty=2)),
    ("repetition_penalty", 1.5, Sampling(repetition_penalty=1.5)),
    ("logit_bias", {"7": -100}, Sampling(logit_bias={"7": -100.0})),
    ("max_tokens", 9, Sampling(max_tokens=9)),
    ("max_tokens", 2**31 - 1, Sampling(max_tokens=2**31 - 1)),
    ("max_completion_tokens", 9, Sampling(max_tokens=9)),
    ("temperature", 1, Sampling(temperature=1.0)),
    ("n", 2, 2),
    ("stop", "x", ("x",)),
    ("stop", ["x", "y"], ("x", "y")),
    ("seed", 0, 0),
    ("seed", -(2**63), -(2**63)),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("logprobs", False, False),
    ("top_logprobs", 0, 0),
    ("reasoning_effort", "low", "low"),
    ("user", "", ""),
    ("metadata", {"a": "b"}, {"a": "b"}),
    ("extra", {"a": {"b": [1, (2,)]}}, {"a": {"b": [1, [2]]}}),
]
OWN_NAME = {"response_format": "output"}


@pytest.mark.parametrize(("name", "given", "expected"), FIELDS, ids=[f"{row[0]}-{i}" for i, row in enumerate(FIELDS)])
def test_a_field(name: str, given: Any, expected: Any) -> None:
    chat = decoded(**{name: given})
    if isinstance(expected, Sampling):
        assert chat.sampling == expected
    elif name == "tools" and expected is None:
        assert chat.tools == (core.Tool(name="f", description="d", parameters=PLAIN_SCHEMA, strict=True),)
    else:
        assert getattr(chat, OWN_NAME.get(name, name)) == expected
    assert chat.messages == (core.Message(role="user", parts=(Text("Hello"),)),)


def test_there_is_a_row_for_each_field() -> None:
    assert {row[0] for row in FIELDS} == set(requests.ChatFields.__annotations__)


def test_there_is_a_name_for_all_that_a_chat_may_be_asked() -> None:
    chat = {field.name for field in chat_pb2.Chat.DESCRIPTOR.fields}
    sampling = {field.name for field in chat_pb2.Sampling.DESCRIPTOR.fields}
    others = {"response_format": "output_format", "max_completion_tokens": "max_tokens"}
    named = {others.get(name, name) for name in requests.ChatFields.__annotations__}
    assert named == (chat | sampling) - {"model", "messages", "sampling"}


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert decoded(max_completion_tokens=1, max_tokens=2).sampling == Sampling(max_tokens=1)


def test_none_is_as_good_as_absent() -> None:
    nothing = dict.fromkeys(requests.ChatFields.__annotations__)
    assert bytes(requests.chat("m", "Hello", nothing)) == bytes(requests.chat("m", "Hello", {}))  # type: ignore[arg-type]


def test_a_field_that_is_none() -> None:
    with pytest.raises(TypeError, match="no field 'temprature'"):
        requests.chat("m", "Hello", {"temprature": 1})  # type: ignore[typeddict-unknown-key]


# -- messages ----------------------------------------------------------------------------------------------------------

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES: list[tuple[Any, core.Message]] = [
    ({"role": "system", "content": "Be kind."}, core.Message(role="system", parts=(Text("Be kind."),))),
    ({"role": "developer", "content": [], "name": "n"}, core.Message(role="developer", name="n")),
    (
        {"role": "user", "content": ["a", {"type": "text", "text": "b"}]},
        core.Message(role="user", parts=(Text("a"), Text("b"))),
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
        core.Message(role="user", parts=(core.Image("u", "low"),)),
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": "u"}]},
        core.Message(role="user", parts=(core.Image("u"),)),
    ),
    (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AP8=", "format": "wav"}}]},
        core.Message(role="user", parts=(core.Audio("AP8=", "wav"),)),
    ),
    (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": b"\0\xff", "format": "wav"}}]},
        core.Message(role="user", parts=(core.Audio("AP8=", "wav"),)),
    ),
    (
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "i"}}]},
        core.Message(role="user", parts=(core.File(id="i"),)),
    ),
    (
        {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:x", "filename": "n"}}]},
        core.Message(role="user", parts=(core.File(data="data:x", name="n"),)),
    ),
    (
        {"role": "assistant", "content": None, "tool_calls": [CALL, t.ToolCall(id="d", name="g", arguments="")]},
        core.Message(role="assistant", parts=(core.ToolCall("c", "f", "{}"), core.ToolCall("d", "g", ""))),
    ),
    (
        {"role": "assistant", "content": "b", "reasoning_content": "a", "refusal": None, "tool_calls": None},
        core.Message(role="assistant", parts=(core.Reasoning("a"), Text("b"))),
    ),
    (
        {"role": "assistant", "refusal": "No."},
        core.Message(role="assistant", parts=(core.Refusal("No."),)),
    ),
    (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        core.Message(role="assistant", parts=(core.Refusal("No."),)),
    ),
    (
        {"role": "tool", "tool_call_id": "c", "content": "12:00"},
        core.Message(role="tool", parts=(core.ToolResult("c", (Text("12:00"),)),)),
    ),
    (
        t.Message(role=t.Role.USER, parts=[t.Part(text=t.TextPart(text="raw"))]),
        core.Message(role="user", parts=(Text("raw"),)),
    ),
    (
        {"role": "user", "content": [t.Part(text=t.TextPart(text="raw"))]},
        core.Message(role="user", parts=(Text("raw"),)),
    ),
]


@pytest.mark.parametrize(("given", "expected"), MESSAGES, ids=range(len(MESSAGES)))
def test_a_message(given: Any, expected: core.Message) -> None:
    assert decoded([given]).messages == (expected,)


# -- what is neither ---------------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, str]] = [
    ({"messages": ["Hello"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}]}, "messages[0].content[0].y"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "?", "format": "w"}}]}
            ]
        },
        "messages[0].content[0].input_audio.data",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0].type"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {1, 2}}}}]},
        "tools[0].function.parameters",
    ),
    ({"tool_choice": "perhaps"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.name"),
    ({"extra": {"a": object()}}, "extra"),
    ({"extra": [1]}, "extra"),
]


@pytest.mark.parametrize(("given", "param"), WRONG, ids=[f"{row[1]}-{i}" for i, row in enumerate(WRONG)])
def test_what_is_refused_before_it_is_sent(given: Any, param: str) -> None:
    messages = given.pop("messages", "Hello")
    with pytest.raises(InvalidRequestError) as raised:
        requests.chat("m", messages, given)
    assert (raised.value.kind, raised.value.param) == ("invalid_request", param)
    assert f"'{param}'" in raised.value.message


INT32, INT64 = (
    "expected an integer from -2147483648 to 2147483647",
    f"expected an integer from {-(2**63)} to {2**63 - 1}",
)
TEXT, CUT = "expected a text, not ", "half of a surrogate pair is no character"

# What is given, the field at fault, and what is said of it.
UNFIT: list[tuple[Any, str, str]] = [
    ({"max_tokens": 2**32 + 3}, "max_tokens", f"{INT32}, not 4294967299"),
    ({"max_tokens": 10**30}, "max_tokens", f"{INT32}, not 1000000000000000000000000000000"),
    ({"max_tokens": 10**5000}, "max_tokens", f"{INT32}, not one of 16610 bits"),
    ({"max_tokens": -(2**31) - 1}, "max_tokens", INT32),
    ({"max_tokens": "x"}, "max_tokens", f"{INT32}, not str"),
    ({"max_completion_tokens": 2**31}, "max_completion_tokens", INT32),
    ({"n": 2**32 + 1}, "n", INT32),
    ({"n": 1.5}, "n", f"{INT32}, not 1.5"),
    ({"n": True}, "n", f"{INT32}, not True"),
    ({"top_k": 2**33}, "top_k", INT32),
    ({"top_logprobs": 2**31}, "top_logprobs", INT32),
    ({"seed": 2**63}, "seed", INT64),
    ({"seed": 2**64 + 1}, "seed", INT64),
    ({"temperature": "hot"}, "temperature", "expected a number, not str"),
    ({"temperature": False}, "temperature", "expected a number, not False"),
    ({"top_p": 10**400}, "top_p", "expected a number, not one of 1329 bits"),
    ({"logit_bias": {"a": "b"}}, "logit_bias.a", "expected a number, not str"),
    ({"logit_bias": {5: 1}}, "logit_bias", "expected texts as keys, not 5"),
    ({"logit_bias": 5}, "logit_bias", "expected a dictionary, not 5"),
    ({"metadata": {"a": 5}}, "metadata.a", TEXT),
    ({"metadata": {"\ud83d": "a"}}, "metadata", CUT),
    ({"stop": ["a", 5]}, "stop[1]", TEXT),
    ({"stop": 5}, "stop", "expected a text or a list, not 5"),
    ({"logprobs": 1}, "logprobs", "expected True or False, not 1"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "expected True or False, not str"),
    ({"user": "\ud800"}, "user", CUT),
    ({"reasoning_effort": 5}, "reasoning_effort", TEXT),
    ({"tools": 5}, "tools", "expected a list, not 5"),
    ({"tools": [t.Tool(name=5)]}, "tools[0].name", TEXT),  # type: ignore[arg-type]
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]}, "tools[0].function.strict", "True or"),
    ({"tool_choice": 5}, "tool_choice", "expected a dictionary, not 5"),
    ({"tool_choice": {"type": "function", "function": {"name": 5}}}, "tool_choice.function.name", TEXT),
    ({"response_format": {"type": []}}, "response_format.type", f"{TEXT}list"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": 5}}},
        "response_format.json_schema.schema",
        "expected a dictionary, not 5",
    ),
    ({"extra": {"a": 10**400}}, "extra", "expected JSON"),
    ({"extra": {5: "a"}}, "extra", TEXT),
    ({"messages": 5}, "messages", "expected a text or a list, not 5"),
    ({"messages": {"role": "user"}}, "messages", "expected a text or a list, not dict"),
    ({"messages": "\ud800"}, "messages", CUT),
    ({"messages": [{"role": []}]}, "messages[0].role", TEXT),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "expected a text or a list, not 5"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", CUT),
    ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages[0].content[0].type", TEXT),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "messages[0].content[0].text",
        TEXT,
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": 5}}]}]},
        "messages[0].content[0].input_audio.data",
        "expected bytes or a text in base64",
    ),
    ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name", TEXT),
    ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls", "expected a list, not 5"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        f"{TEXT}dict",
    ),
    ({"model": 5}, "model", TEXT),
]


@pytest.mark.parametrize(("given", "param", "words"), UNFIT, ids=[f"{row[1]}-{i}" for i, row in enumerate(UNFIT)])
def test_what_is_of_another_type(given: Any, param: str, words: str) -> None:
    given = {"model": "m", "messages": "Hello", **given}
    with pytest.raises(InvalidRequestError) as raised:
        requests.chat(given.pop("model"), given.pop("messages"), given)
    assert (raised.value.kind, raised.value.param) == ("invalid_request", param)
    assert raised.value.message.startswith(f"invalid '{param}': ")
    assert words in raised.value.message


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


def test_json_may_be_as_deep_as_the_gateway_reads_it() -> None:
    def read(levels: int) -> None:
        request = t.CreateChatCompletionRequest(chat=requests.chat("m", "Hello", {"extra": nested(levels)}))
        checks.message(request)
        chat_pb2.CreateChatCompletionRequest.FromString(bytes(request))

    read(32)
    for levels in (33, 60, 900):
        with pytest.raises(InvalidRequestError, match="nested too deeply") as raised:
            read(levels)
        assert raised.value.param == "extra"


# -- embeddings --------------------------------------------------------------------------------------------------------

UNFIT_INPUTS: list[tuple[Any, str, str]] = [
    (5, "inputs", "expected a text or a list, not 5"),
    ([5], "inputs[0]", "expected a text or a list of tokens, not 5"),
    (["\ud800"], "inputs[0]", CUT),
    ([[1, "a"]], "inputs[0][1]", INT32),
    ([[1], [2**31]], "inputs[1][0]", INT32),
]


@pytest.mark.parametrize(("inputs", "param", "words"), UNFIT_INPUTS, ids=[row[1] for row in UNFIT_INPUTS])
def test_inputs_of_another_type(inputs: Any, param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        requests.embeddings("m", inputs, None, None)
    assert raised.value.param == param
    assert words in raised.value.message


# -- the contract's own messages ---------------------------------------------------------------------------------------

UNFIT_MESSAGES: list[tuple[Any, str, str]] = [
    (t.Message(role="user"), "role", INT32),  # type: ignore[arg-type]
    (t.Message(parts=5), "parts", "expected a list, not 5"),  # type: ignore[arg-type]
    (t.Message(parts=[t.TextPart(text="x")]), "parts[0]", "expected types.Part, not TextPart"),  # type: ignore[list-item]
    (t.Message(parts=[t.Part(text=t.TextPart(text="\ud800"))]), "parts[0].text.text", CUT),
    (t.AudioPart(data="AP8="), "data", "expected bytes, not str"),  # type: ignore[arg-type]
    (t.Chat(metadata={"a": 5}), "metadata.a", TEXT),  # type: ignore[dict-item]
    (t.Sampling(top_k=2**31), "top_k", INT32),
    (t.CreateEmbeddingsRequest(dimensions=2**31), "dimensions", INT32),
]


@pytest.mark.parametrize(("given", "param", "words"), UNFIT_MESSAGES, ids=[row[1] for row in UNFIT_MESSAGES])
def test_a_message_of_the_contract_that_can_not_be_written(given: Any, param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        checks.message(given)
    assert raised.value.param == param
    assert words in raised.value.message


@pytest.mark.parametrize("kind", [chat_pb2.Chat, chat_pb2.Sampling, Tokens], ids=lambda kind: kind.__name__)
def test_what_fits_is_what_protobuf_itself_takes(kind: Any) -> None:
    ours = getattr(t, kind.__name__)
    values: list[Any] = [0, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, 2**63, 1.5, "x", "\ud800"]
    for field in kind.DESCRIPTOR.fields:
        if field.message_type is not None:
            continue
        for value in values:
            if isinstance(value, int | float) and field.type == field.TYPE_BOOL:
                continue  # protobuf takes numbers, too
            given = [value] if field.is_repeated else value
            assert fits(ours, field.name, given) == protobuf_takes(kind, field.name, given), (field.name, value)


def fits(kind: Any, name: str, given: Any) -> bool:
    try:
        checks.field(kind, name, given, name)
    except InvalidRequestError:
        return False
    return True


def protobuf_takes(kind: Any, name: str, given: Any) -> bool:
    try:
        kind(**{name: given}).SerializeToString()
    except (TypeError, ValueError):
        return False
    return True

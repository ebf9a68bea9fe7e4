"""Requests from what people have, to what the gateway understands."""

from __future__ import annotations

from typing import Any

import pytest

from llmg.client import InvalidRequestError, requests
from llmg.client import types as t
from llmg.core import request as core
from llmg.core.request import Chat, Sampling, SchemaOutput, Text
from llmg.gatewayapi.v1 import chat_pb2
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
    ("n", 2, 2),
    ("stop", "x", ("x",)),
    ("stop", ["x", "y"], ("x", "y")),
    ("seed", 0, 0),
    ("seed", -(2**63), -(2**63)),
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
    named = {"output_format" if name == "response_format" else name for name in requests.ChatFields.__annotations__}
    assert named == (chat | sampling) - {"model", "messages", "sampling"}


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

"""Chat and embeddings requests in OpenAI's dialect: what is decoded encodes to the same, nothing unknown is lost."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from msgspec.structs import replace

from llmg.core.errors import Failure, Kind
from llmg.core.request import (
    Audio,
    Chat,
    File,
    GrammarOutput,
    Image,
    JsonOutput,
    Message,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Sampling,
    SchemaOutput,
    Text,
    TextOutput,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from llmg.wire.openai.embeddings import decode_embed, encode_embed
from llmg.wire.openai.requests import check_extra, decode_chat, encode_chat, encode_message
from wire.generated import chats, embeds, messages, names, objects, plain, texts, unknown


def _chat(**fields: Any) -> Chat:
    return decode_chat(
        msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})
    ).chat


def _message(**fields: Any) -> Message:
    return _chat(messages=[fields]).messages[0]


def _raw(body: bytes) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in msgspec.json.decode(body, type=dict[str, Raw]).items()}


# --- there and back ------------------------------------------------------------------------------------------------


@given(chats())
def test_a_chat_comes_back(chat: Chat) -> None:
    back = decode_chat(encode_chat(chat))
    assert replace(back.chat, origin=UNSET) == chat
    assert back.include_usage is chat.stream


@given(embeds)
def test_an_embed_comes_back(embed: Any) -> None:
    assert replace(decode_embed(encode_embed(embed)), origin=UNSET) == embed


@given(messages())
def test_a_message_comes_back(message: Message) -> None:
    assert _chat(messages=[encode_message(message)]).messages == (message,)


# --- the same dialect: the client's own bytes ----------------------------------------------------------------------

_SPACES = st.sampled_from(["", " ", "\n\t"])
_PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "x_new"]), "text": texts}, optional={"x_part": plain})
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": texts | st.lists(_PART, max_size=2)},
    optional={"x_message": plain, "name": names},
)
_FUNCTION = st.fixed_dictionaries({"name": names}, optional={"parameters": objects, "x_function": plain})
_TOOL = st.fixed_dictionaries({"type": st.just("function"), "function": _FUNCTION}, optional={"x_tool": plain})
_BODY = st.fixed_dictionaries(
    {"model": names, "messages": st.lists(_MESSAGE, min_size=1, max_size=3)},
    optional={
        "tools": st.lists(_TOOL, max_size=2),
        "temperature": st.floats(0, 2) | st.none(),
        "max_tokens": st.integers(1, 100) | st.none(),
        "stop": st.none() | texts | st.lists(texts, max_size=2),
        "stream": st.booleans(),
        "x_top": plain,
        "functions": plain,
    },
)


@given(_BODY, _SPACES)
def test_only_the_model_is_exchanged(body: dict[str, Any], space: str) -> None:
    sent = json.dumps(body, separators=(space + ",", ":" + space)).encode()
    forwarded = _raw(encode_chat(replace(decode_chat(sent).chat, model="x")))
    own = {"model": b'"x"'}
    if body.get("stream"):
        own["stream_options"] = b'{"include_usage":true}'
    assert forwarded == {**_raw(sent), **own}


@given(_BODY)
def test_a_body_sent_on_with_all_changed_says_the_same(body: dict[str, Any]) -> None:
    chat = decode_chat(json.dumps(body).encode()).chat
    rewritten = decode_chat(encode_chat(replace(chat, origin=UNSET))).chat
    # An empty text and none are one to all roles but the assistant's.
    assert replace(rewritten, origin=UNSET, messages=()) == replace(chat, origin=UNSET, messages=())
    said = [(m.role, m.name, m.extra, m.parts or (Text(""),)) for m in chat.messages]
    assert [(m.role, m.name, m.extra, m.parts or (Text(""),)) for m in rewritten.messages] == said


OURS = ("model", "messages", "n", "stream", "stream_options", "max_completion_tokens", "response_format", "logit_bias")


@pytest.mark.parametrize("name", OURS)
def test_a_field_of_ours_is_no_extra(name: str) -> None:
    check_extra({"x_new": {name: 1}, name.upper(): 1}, "input.extra")
    with pytest.raises(Failure) as raised:
        check_extra({"x_new": 1, name: 1}, "input.extra")
    assert (raised.value.kind, raised.value.param) == (Kind.INVALID_REQUEST, f"input.extra.{name}")
    assert f"'input.extra.{name}'" in raised.value.message


@pytest.mark.parametrize("chat", [_chat(), replace(_chat(), origin=UNSET)], ids=["as it came", "made"])
def test_what_is_extra_goes_over_no_field_of_ours(chat: Chat) -> None:
    extra = {**dict.fromkeys(OURS, 1), "x_new": 1}
    assert _raw(encode_chat(replace(chat, extra=extra))) == {**_raw(encode_chat(chat)), "x_new": b"1"}


@given(unknown, names)
def test_an_embed_keeps_what_is_unknown(extra: dict[str, Any], model: str) -> None:
    sent = json.dumps({"model": "m", "input": "hi", **extra}).encode()
    forwarded = _raw(encode_embed(replace(decode_embed(sent), model=model)))
    assert forwarded == {**_raw(sent), "model": json.dumps(model).encode()}


CHANGES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # a body's fields, what is changed in it once decoded, the fields then (None: gone)
    ({"n": 3}, {"n": 1}, {"n": 1}),
    ({}, {"n": 2}, {"n": 2}),
    ({"stream": True}, {"stream": False}, {"stream": None, "stream_options": None}),
    ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    (
        {"stream": True, "stream_options": {"include_usage": False, "x": 1}},
        {},
        {"stream_options": {"include_usage": True, "x": 1}},
    ),
    ({"max_completion_tokens": 9}, {"sampling": Sampling(max_tokens=5)}, {"max_completion_tokens": 5}),
    ({"max_tokens": 9}, {"sampling": Sampling(max_tokens=5)}, {"max_tokens": 5}),
    ({"max_tokens": 9}, {"sampling": Sampling()}, {"max_tokens": None}),
    ({"response_format": {"type": "json_object"}}, {"output": UNSET}, {"response_format": None}),
    (
        {"response_format": {"type": "json_object"}},
        {"output": GrammarOutput("root ::= x")},
        {"response_format": None, "grammar": "root ::= x"},
    ),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tools": UNSET}, {"tools": None}),
    ({"seed": 1}, {"seed": UNSET}, {"seed": None}),
    ({"user": "u"}, {"user": "v"}, {"user": "v"}),
]


@pytest.mark.parametrize(("given_fields", "change", "expected"), CHANGES)
def test_what_changed_goes_out_changed(
    given_fields: dict[str, Any], change: dict[str, Any], expected: dict[str, Any]
) -> None:
    forwarded = msgspec.json.decode(encode_chat(replace(_chat(**given_fields, x_top=[1]), **change)))
    assert {name: forwarded.get(name) for name in expected} == expected
    assert forwarded["x_top"] == [1]
    assert forwarded["messages"] == [{"role": "user", "content": "hi"}]


def test_a_part_of_another_dialect_can_not_be_sent() -> None:
    foreign = Message(role="user", parts=(Opaque("other", {"type": "x"}),))
    with pytest.raises(Failure, match="Opaque") as raised:
        encode_chat(Chat(model="m", messages=(foreign,)))
    assert raised.value.kind is Kind.INVALID_REQUEST


# --- what each field means -----------------------------------------------------------------------------------------

MEANINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"n": None, "stop": None, "seed": None, "user": None}, {"n": 1, "stop": UNSET, "seed": UNSET, "user": UNSET}),
    ({"stop": "a"}, {"stop": ("a",)}),
    ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
    ({"temperature": 1}, {"sampling": Sampling(temperature=1.0)}),
    ({"max_tokens": 5, "max_completion_tokens": 7}, {"sampling": Sampling(max_tokens=7)}),
    ({"logit_bias": {"5": 1}}, {"sampling": Sampling(logit_bias={"5": 1.0})}),
    ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    ({"response_format": {"type": "text"}}, {"output": TextOutput()}),
    ({"response_format": {"type": "json_object"}}, {"output": JsonOutput()}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"a": 1}, "strict": True}}},
        {"output": SchemaOutput(schema={"a": 1}, name="s", strict=True)},
    ),
    ({"grammar": "g"}, {"output": GrammarOutput("g")}),
    ({"tool_choice": "required"}, {"tool_choice": ToolChoice(mode="required")}),
    (
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": ToolChoice(mode="named", name="f")},
    ),
    (
        {"tool_choice": {"type": "allowed_tools", "x": 1}},
        {"tool_choice": Opaque("openai", {"type": "allowed_tools", "x": 1})},
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}]},
        {"tools": (Tool(name="f", parameters={"a": 1}),)},
    ),
    (
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        {"tools": (Opaque("openai", {"type": "custom", "custom": {"name": "f"}}),)},
    ),
    ({"x_top": {"a": [1]}}, {"extra": {"x_top": {"a": [1]}}}),
    ({"stream": True}, {"stream": True}),
    ({"stream": None}, {"stream": False}),
]


@pytest.mark.parametrize(("fields", "expected"), MEANINGS)
def test_fields(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    chat = _chat(**fields)
    assert {name: getattr(chat, name) for name in expected} == expected


PARTS: list[tuple[dict[str, Any], tuple[Part, ...]]] = [
    ({"role": "user", "content": "a"}, (Text("a"),)),
    ({"role": "user", "content": [{"type": "text", "text": "a"}]}, (Text("a"),)),
    ({"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}, (Text("a", {"cache": 1}),)),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
        (Image("u", "low"),),
    ),
    (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "d", "format": "wav"}}]},
        (Audio("d", "wav"),),
    ),
    ({"role": "user", "content": [{"type": "file", "file": {"file_id": "i"}}]}, (File("i"),)),
    (
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "u"}}]},
        (Opaque("openai", {"type": "video_url", "video_url": {"url": "u"}}),),
    ),
    (
        {"role": "user", "content": [{"type": "x_new", "id": "i"}]},
        (Opaque("openai", {"type": "x_new", "id": "i"}),),
    ),
    ({"role": "assistant", "content": None, "refusal": "no"}, (Refusal("no"),)),
    ({"role": "assistant", "content": "a", "reasoning_content": "hm"}, (Reasoning("hm"), Text("a"))),
    (
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}],
        },
        (ToolCall("c", "f", ""),),
    ),
    (
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}", "y": 2}, "x": 1}],
        },
        (ToolCall("c", "f", "{}", {"x": 1, "function": {"y": 2}}),),
    ),
    (
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "i"}}]},
        (Opaque("openai", {"id": "c", "type": "custom", "custom": {"name": "f", "input": "i"}}),),
    ),
    ({"role": "tool", "tool_call_id": "c", "content": "r"}, (ToolResult("c", (Text("r"),)),)),
    (
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}], "x": 1},
        (ToolResult("c", (Text("r"),)),),
    ),
]


@pytest.mark.parametrize(("message", "expected"), PARTS)
def test_parts(message: dict[str, Any], expected: tuple[Part, ...]) -> None:
    decoded = _message(**message)
    assert decoded.parts == expected
    assert _message(**encode_message(decoded)) == decoded


# --- what is wrong is named ----------------------------------------------------------------------------------------

USER = {"role": "user", "content": "hi"}
BAD: list[tuple[dict[str, Any], str, str]] = [
    # fields of a body, the parameter that is named, words of the message
    ({"model": None}, "model", "expected `str`"),
    ({"model": 5}, "model", "expected `str`"),
    ({"model": ""}, "model", "length >= 1"),
    ({"messages": None}, "messages", "expected `array`"),
    ({"messages": "hi"}, "messages", "expected `array`"),
    ({"messages": {}}, "messages", "expected `array`"),
    ({"messages": []}, "messages", "at least one"),
    ({"messages": [5]}, "messages[0]", "expected `object`"),
    ({"messages": [USER, {"content": "a"}]}, "messages[1].role", "required"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "'robot' is none of assistant,"),
    ({"messages": [{"role": 1, "content": "a"}]}, "messages[0].role", "expected `str`"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got `int`"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]", "expected `object`"),
    ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type", "expected `str`"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "required"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]},
        "messages[0].content[0].image_url",
        "expected `object`",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].image_url.url",
        "required",
    ),
    ({"messages": [{"role": "user", "content": "a", "name": 5}]}, "messages[0].name", "expected `str"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id", "needs it"),
    ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls", "expected `array`"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
        "messages[0].tool_calls[0].id",
        "required",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]}]},
        "messages[0].tool_calls[0].function.name",
        "required",
    ),
    ({"tools": {}}, "tools", "expected `array`"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
    ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name", "expected `str`"),
    ({"tools": [{"type": 5}]}, "tools[0].type", "expected `str`"),
    ({"tool_choice": "maybe"}, "tool_choice", "none, auto, required"),
    ({"tool_choice": 5}, "tool_choice", "none, auto, required"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
    ({"parallel_tool_calls": "yes"}, "parallel_tool_calls", "expected `bool"),
    ({"response_format": "json"}, "response_format", "expected `object"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "'yaml' is none of text, json_object, json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name", "required"),
    ({"temperature": "hot"}, "temperature", "expected `float"),
    ({"temperature": -0.1}, "temperature", ">= 0"),
    ({"temperature": 2.1}, "temperature", "<= 2"),
    ({"top_p": 1.1}, "top_p", "<= 1"),
    ({"top_p": -1}, "top_p", ">= 0"),
    ({"min_p": 2}, "min_p", "<= 1"),
    ({"top_k": 1.5}, "top_k", "expected `int"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "<= 2"),
    ({"presence_penalty": -2.5}, "presence_penalty", ">= -2"),
    ({"logit_bias": []}, "logit_bias", "expected `object"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "-100 to 100"),
    ({"logit_bias": {"4": 1, "5": -101}}, "logit_bias.5", "-100 to 100"),
    ({"logit_bias": {"5": "x"}}, "logit_bias", "expected `float`"),
    ({"top_k": -5}, "top_k", ">= -1"),
    ({"repetition_penalty": -1}, "repetition_penalty", ">= 0"),
    ({"seed": 2**63}, "seed", f"<= {2**63 - 1}"),
    ({"seed": -(2**63) - 1}, "seed", f">= {-(2**63)}"),
    ({"seed": 10**30}, "seed", f"<= {2**63 - 1}"),
    ({"tool_choice": {"type": "function", "function": {"name": ""}}}, "tool_choice.function.name", "length >= 1"),
    ({"tool_choice": {"type": "function", "function": {"name": "f", "x": 1}}}, "tool_choice.function.x", "no such"),
    ({"max_tokens": 0}, "max_tokens", ">= 1"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", ">= 1"),
    ({"max_tokens": "5"}, "max_tokens", "expected `int"),
    ({"n": 0}, "n", ">= 1"),
    ({"n": 129}, "n", "<= 128"),
    ({"n": 1.5}, "n", "expected `int"),
    ({"n": "2"}, "n", "expected `int"),
    ({"n": True}, "n", "expected `int"),
    ({"stop": 5}, "stop", "got `int`"),
    ({"stop": [5]}, "stop[0]", "expected `str`"),
    ({"seed": "x"}, "seed", "expected `int"),
    ({"logprobs": 1}, "logprobs", "expected `bool"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "<= 20"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", ">= 0"),
    ({"top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
    ({"user": 5}, "user", "expected `str"),
    ({"metadata": {"a": 5}}, "metadata", "expected `str`"),
    ({"metadata": []}, "metadata", "expected `object"),
    ({"stream": "yes"}, "stream", "expected `bool"),
    ({"stream_options": 1}, "stream_options", "expected `object"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "expected `bool"),
    ({"reasoning_effort": 1}, "reasoning_effort", "expected `str"),
]


@pytest.mark.parametrize(("fields", "param", "words"), BAD)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(Failure) as raised:
        _chat(**fields)
    failure = raised.value
    assert (failure.kind, failure.param) == (Kind.INVALID_REQUEST, param)
    assert failure.message.startswith(f"invalid '{param}': ")
    assert words in failure.message


BAD_EMBEDS: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "got `null`"),
    ({"input": 5}, "input", "got `int`"),
    ({"input": []}, "input", "it is empty"),
    ({"input": [""]}, "input", "is empty"),
    ({"input": ["a", ""]}, "input", "is empty"),
    ({"input": [[]]}, "input", "is empty"),
    ({"input": ["a", 5]}, "input", "can't be mixed"),
    ({"input": [[1, "a"]]}, "input[0][1]", "expected `int`"),
    ({"input": [True]}, "input[0]", "got `bool`"),
    ({"model": 5}, "model", "expected `str`"),
    ({"dimensions": 0}, "dimensions", ">= 1"),
    ({"encoding_format": "hex"}, "encoding_format", "hex"),
    ({"user": 5}, "user", "expected `str"),
]


@pytest.mark.parametrize(("fields", "param", "words"), BAD_EMBEDS)
def test_what_is_wrong_in_an_embed_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(Failure) as raised:
        decode_embed(msgspec.json.encode({"model": "m", "input": "hi", **fields}))
    assert (raised.value.kind, raised.value.param) == (Kind.INVALID_REQUEST, param)
    assert words in raised.value.message


def _deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


_HEAD, _TAIL = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"input":"hi",', b"}"
BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the body is empty"),
    "spaces": (b" \n", "the body is empty"),
    "no JSON": (b"<html>", "not valid JSON"),
    "cut off": (b'{"model":', "not valid JSON"),
    "more after it": (b'{"model":"m"} {}', "not valid JSON"),
    "an array": (b"[]", "must be a JSON object"),
    "a string": (b'"hi"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "bad UTF-8": (b'{"model":"\xff"}', "not valid UTF-8 (byte 10)"),
    "half a surrogate pair": (_HEAD + rb'"user":"\ud800"' + _TAIL, "not valid JSON"),
    "a bad escape in what is unknown": (_HEAD + rb'"x":"\q"' + _TAIL, "not valid JSON"),
    "a bad number in what is unknown": (_HEAD + rb'"x":01' + _TAIL, "not valid JSON"),
    "nested in what is unknown": (_HEAD + b'"x":' + _deep(2000) + _TAIL, "nested too deeply"),
    "nested in a known field": (_HEAD + b'"user":' + _deep(2000) + _TAIL, "nested too deeply"),
    "nested all through": (b'{"a":' * 2000 + b"1" + b"}" * 2000, "nested too deeply"),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("decode", [decode_chat, decode_embed])
def test_bodies_that_are_none(decode: Any, name: str) -> None:
    body, words = BODIES[name]
    with pytest.raises(Failure) as raised:
        decode(body)
    assert raised.value.kind is Kind.INVALID_REQUEST
    assert words in raised.value.message


def test_model_and_messages_are_required() -> None:
    for body, param in ((b"{}", "model"), (b'{"model":"m"}', "messages")):
        with pytest.raises(Failure, match=f"invalid '{param}': it is required") as raised:
            decode_chat(body)
        assert raised.value.param == param


@pytest.mark.parametrize("depth", [10, 100, 400, 700, 900, 990, 1000, 1100, 1500, 5000, 100_000])
@pytest.mark.parametrize("where", ["metadata", "messages", "tools", "tool_choice", "response_format", "x_new", "input"])
def test_any_depth_is_a_value_or_a_failure(where: str, depth: int) -> None:
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    wrapped = {
        "messages": b'[{"role":"user","content":[{"type":"x","y":' + nested + b"}]}]",
        "tools": b'[{"type":"x","y":' + nested + b"}]",
        "tool_choice": b'{"type":"x","y":' + nested + b"}",
        "response_format": b'{"type":"json_schema","json_schema":{"name":"s","schema":' + nested + b"}}",
    }
    head = b'{"model":"m",' + (b"" if where == "messages" else b'"messages":[{"role":"user","content":"hi"}],')
    body = head + b'"' + where.encode() + b'":' + wrapped.get(where, nested) + b"}"
    try:
        decoded = decode_chat(body).chat
    except Failure as failure:
        decoded = None
        kind: Kind | None = failure.kind
    else:
        kind = None
    assert kind in (None, Kind.INVALID_REQUEST)
    assert (decoded is not None) == (kind is None)


_WORDS = """
    model messages role content type text image_url url tool_calls function name id tools
    tool_choice n stop stream stream_options response_format json_schema input x
"""
_NAMES = st.sampled_from(_WORDS.split())
_VALUES = plain | st.sampled_from(["user", "assistant", "tool", "text", "function", "image_url", "auto", "json_schema"])
_LIKELY: st.SearchStrategy[Any] = st.recursive(
    _VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5), max_leaves=15
)


@given(st.dictionaries(_NAMES, _LIKELY, max_size=6), _LIKELY)
def test_any_body_is_a_request_or_a_failure(fields: dict[str, Any], messages_given: Any) -> None:
    for decode, body in (
        (decode_chat, {**fields, "model": "m", "messages": [messages_given]}),
        (decode_chat, fields),
        (decode_embed, {**fields, "model": "m"}),
    ):
        try:
            decoded: Any = decode(msgspec.json.encode(body))
        except Failure as failure:
            assert failure.kind is Kind.INVALID_REQUEST  # noqa: PT017 - whether it fails is not ours to say
        else:
            assert decoded is not None

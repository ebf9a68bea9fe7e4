"""The gateway's own messages: requests in, events and answers out, and what is refused by name."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct as PbStruct
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from llmg.core.assemble import Answer, assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import (
    Annotated,
    Closed,
    Delta,
    Embedding,
    Embeddings,
    Event,
    Finished,
    Notice,
    Opened,
    Result,
    Started,
    TokenLogprob,
    check,
)
from llmg.core.request import (
    Audio,
    Chat,
    Embed,
    File,
    GrammarOutput,
    Image,
    JsonOutput,
    Message,
    Opaque,
    Output,
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
from llmg.core.usage import Usage
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1 import embeddings_pb2
from llmg.wire.gateway import (
    ROLES,
    EventEncoder,
    chat_path,
    decode_chat,
    decode_embed,
    embed_path,
    encode_answer,
    encode_embeddings,
    encode_usage,
)
from support import gatewayapi
from wire.generated import chats, embeds, objects, streams, usages

# --- requests: the inverse of the decoder ---------------------------------------------------------------------------

_ROLES = {role: number for number, role in ROLES.items()}
_PLAIN = ("parallel_tool_calls", "n", "seed", "logprobs", "top_logprobs", "reasoning_effort", "user")


def _struct(value: dict[str, Any]) -> PbStruct:
    out = PbStruct()
    out.update(value)
    return out


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not UNSET}


def _encode_chat(chat: Chat) -> pb.Chat:
    out = pb.Chat(model=chat.model, **_known(**{name: getattr(chat, name) for name in _PLAIN}))
    out.messages.extend(_encode_message(message) for message in chat.messages)
    for tool in () if chat.tools is UNSET else chat.tools:
        assert isinstance(tool, Tool)
        out.tools.add(**_known(name=tool.name, description=tool.description, strict=tool.strict))
        if tool.parameters is not UNSET:
            out.tools[-1].parameters.CopyFrom(_struct(tool.parameters))
    if isinstance(chat.tool_choice, ToolChoice):
        mode = f"MODE_{chat.tool_choice.mode.upper()}"
        out.tool_choice.CopyFrom(pb.ToolChoice(mode=mode, **_known(name=chat.tool_choice.name)))
    if chat.output is not UNSET:
        out.output_format.CopyFrom(_encode_output(chat.output))
    sampling = {name: getattr(chat.sampling, name) for name in Sampling.__struct_fields__}
    out.sampling.CopyFrom(pb.Sampling(**_known(**sampling)))
    out.stop.extend(() if chat.stop is UNSET else chat.stop)
    out.metadata.update({} if chat.metadata is UNSET else chat.metadata)
    if chat.extra is not UNSET:
        out.extra.CopyFrom(_struct(chat.extra))
    return out


def _encode_message(message: Message) -> pb.Message:
    parts = [_encode_part(part) for part in message.parts]
    return pb.Message(role=_ROLES[message.role], parts=parts, **_known(name=message.name))  # type: ignore[arg-type]


def _encode_part(part: Part) -> pb.Part:
    match part:
        case Text():
            return pb.Part(text=pb.TextPart(text=part.text))
        case Image():
            return pb.Part(image=pb.ImagePart(url=part.url, **_known(detail=part.detail)))
        case Audio():
            return pb.Part(audio=pb.AudioPart(data=base64.b64decode(part.data), format=part.format))
        case File():
            return pb.Part(file=pb.FilePart(**_known(id=part.id, data=part.data, name=part.name)))
        case ToolCall():
            return pb.Part(tool_call=pb.ToolCall(id=part.id, name=part.name, arguments=part.arguments))
        case ToolResult():
            parts = [_encode_part(inner) for inner in part.parts]
            return pb.Part(tool_result=pb.ToolResult(call_id=part.call_id, parts=parts))
        case Reasoning():
            return pb.Part(reasoning=pb.ReasoningPart(text=part.text))
        case Refusal():
            return pb.Part(refusal=pb.RefusalPart(text=part.text))
        case Opaque():
            raise AssertionError("it has no message")


def _encode_output(output: Output) -> pb.OutputFormat:
    match output:
        case TextOutput():
            return pb.OutputFormat(text=pb.TextOutput())
        case JsonOutput():
            return pb.OutputFormat(json=pb.JsonOutput())
        case GrammarOutput():
            return pb.OutputFormat(grammar=pb.GrammarOutput(grammar=output.grammar))
        case SchemaOutput():
            own = _known(name=output.name, description=output.description, strict=output.strict)
            return pb.OutputFormat(schema=pb.SchemaOutput(schema=_struct(output.schema), **own))


def _sayable_part(part: Part) -> Part:
    """Without what has no field in the messages."""
    match part:
        case Opaque():
            return Text("opaque")
        case ToolResult():
            return replace(part, parts=tuple(map(_sayable_part, part.parts)))
        case Audio():
            return Audio(base64.b64encode(part.data.encode()).decode(), part.format)
        case Text() | Image() | File() | ToolCall():
            return replace(part, extra=UNSET)
    return part


def _sayable(chat: Chat) -> Chat:
    messages = tuple(
        replace(
            message,
            role="user" if message.role == "function" else message.role,
            parts=tuple(map(_sayable_part, message.parts)),
            extra=UNSET,
        )
        for message in chat.messages
    )
    tools = UNSET if chat.tools is UNSET else tuple(tool for tool in chat.tools if isinstance(tool, Tool)) or UNSET
    sampling = replace(chat.sampling, logit_bias=chat.sampling.logit_bias or UNSET)
    return replace(
        chat,
        messages=messages,
        tools=tools,
        tool_choice=UNSET if isinstance(chat.tool_choice, Opaque) else chat.tool_choice,
        sampling=sampling,
        stop=chat.stop or UNSET,
        metadata=chat.metadata or UNSET,
    )


@given(chats().map(_sayable))
def test_a_chat_comes_in_as_it_was_meant(chat: Chat) -> None:
    assert decode_chat(pb.Chat.FromString(_encode_chat(chat).SerializeToString()), stream=chat.stream) == chat


@given(embeds)
def test_a_request_for_vectors_comes_in_as_it_was_meant(embed: Embed) -> None:
    asked = replace(embed, extra=UNSET, packed=False)
    message = embeddings_pb2.CreateEmbeddingsRequest(
        model=asked.model, **_known(dimensions=asked.dimensions, user=asked.user)
    )
    for item in asked.inputs:
        if isinstance(item, str):
            message.inputs.add(text=item)
        else:
            message.inputs.add(tokens=embeddings_pb2.Tokens(ids=item))
    assert decode_embed(message) == asked


def test_what_is_not_set_is_the_models_to_choose() -> None:
    asked = pb.Chat(model="m", messages=[pb.Message(role=pb.ROLE_USER)])
    assert decode_chat(asked, stream=False) == Chat(model="m", messages=(Message(role="user"),))


def test_what_is_set_to_nothing_is_set() -> None:
    asked = pb.Chat(model="m", messages=[pb.Message(role=pb.ROLE_USER)])
    asked.sampling.temperature, asked.seed, asked.logprobs, asked.user = 0.0, 0, False, ""
    chat = decode_chat(asked, stream=False)
    assert (chat.sampling.temperature, chat.seed, chat.logprobs, chat.user) == (0.0, 0, False, "")


@given(objects)
def test_json_comes_in_whole(value: dict[str, Any]) -> None:
    asked = pb.Chat(model="m", messages=[pb.Message(role=pb.ROLE_USER)])
    asked.extra.CopyFrom(_struct({"x": value}))
    assert decode_chat(asked, stream=False).extra == {"x": value}


def test_whole_numbers_are_whole_again() -> None:
    asked = pb.Chat(model="m", messages=[pb.Message(role=pb.ROLE_USER)])
    asked.extra.update({"a": 3, "b": [2.5, {"c": -7}], "huge": 1e300})
    chat = decode_chat(asked, stream=False)
    assert isinstance(chat.extra, dict)
    assert [repr(chat.extra[name]) for name in ("a", "b", "huge")] == ["3", "[2.5, {'c': -7}]", "1e+300"]


# --- requests that are refused --------------------------------------------------------------------------------------


def _user(*parts: pb.Part) -> pb.Message:
    return pb.Message(role=pb.ROLE_USER, parts=parts)


def _asked(**fields: Any) -> pb.Chat:
    return pb.Chat(**{"model": "m", "messages": [_user()], **fields})


def _not_a_number(value: float = math.nan) -> PbStruct:
    out = PbStruct()
    out.fields["x"].list_value.values.add().number_value = value
    return out


BAD: list[tuple[pb.Chat, str]] = [
    (_asked(model=""), "chat.model"),
    (_asked(messages=[]), "chat.messages"),
    (_asked(messages=[_user(), pb.Message()]), "chat.messages[1].role"),
    (_asked(messages=[pb.Message(role=99)]), "chat.messages[0].role"),  # type: ignore[arg-type]
    (_asked(messages=[_user(pb.Part(text=pb.TextPart()), pb.Part())]), "chat.messages[0].parts[1]"),
    (_asked(messages=[pb.Message(role=pb.ROLE_TOOL)]), "chat.messages[0].parts"),
    (_asked(messages=[pb.Message(role=pb.ROLE_TOOL, parts=[pb.Part(text=pb.TextPart())])]), "chat.messages[0].parts"),
    (
        _asked(messages=[_user(pb.Part(tool_result=pb.ToolResult(parts=[pb.Part()])))]),
        "chat.messages[0].parts[0].tool_result.parts[0]",
    ),
    (_asked(tools=[pb.Tool(name="f"), pb.Tool()]), "chat.tools[1].name"),
    (_asked(tools=[pb.Tool(name="f", parameters=_not_a_number())]), "chat.tools[0].parameters"),
    (_asked(tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_NAMED)), "chat.tool_choice.name"),
    (_asked(tool_choice=pb.ToolChoice(mode=9)), "chat.tool_choice.mode"),  # type: ignore[arg-type]
    (_asked(output_format=pb.OutputFormat()), "chat.output_format"),
    (
        _asked(output_format=pb.OutputFormat(schema=pb.SchemaOutput(schema=_not_a_number(math.inf)))),
        "chat.output_format.schema.schema",
    ),
    (_asked(extra=_not_a_number()), "chat.extra"),
    (_asked(extra=_struct({"x": 1, "messages": []})), "chat.extra.messages"),
    (_asked(n=0), "chat.n"),
    (_asked(n=129), "chat.n"),
    (_asked(top_logprobs=21, logprobs=True), "chat.top_logprobs"),
    (_asked(top_logprobs=-1, logprobs=True), "chat.top_logprobs"),
    (_asked(top_logprobs=2), "chat.top_logprobs"),
    (_asked(sampling=pb.Sampling(temperature=2.1)), "chat.sampling.temperature"),
    (_asked(sampling=pb.Sampling(temperature=math.nan)), "chat.sampling.temperature"),
    (_asked(sampling=pb.Sampling(top_p=-0.1)), "chat.sampling.top_p"),
    (_asked(sampling=pb.Sampling(min_p=1.5)), "chat.sampling.min_p"),
    (_asked(sampling=pb.Sampling(top_k=-2)), "chat.sampling.top_k"),
    (_asked(sampling=pb.Sampling(frequency_penalty=3)), "chat.sampling.frequency_penalty"),
    (_asked(sampling=pb.Sampling(presence_penalty=-3)), "chat.sampling.presence_penalty"),
    (_asked(sampling=pb.Sampling(repetition_penalty=math.inf)), "chat.sampling.repetition_penalty"),
    (_asked(sampling=pb.Sampling(logit_bias={"7": 101})), "chat.sampling.logit_bias.7"),
    (_asked(sampling=pb.Sampling(max_tokens=0)), "chat.sampling.max_tokens"),
]


@pytest.mark.parametrize(("asked", "field"), BAD, ids=[f"{i}-{field}" for i, (_, field) in enumerate(BAD)])
def test_a_bad_chat_is_refused_by_its_field(asked: pb.Chat, field: str) -> None:
    with pytest.raises(Failure) as raised:
        decode_chat(asked, stream=False)
    assert (raised.value.kind, raised.value.param) == (Kind.INVALID_REQUEST, field)
    assert f"'{field}'" in raised.value.message


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model", "model"),
        ("messages", "messages"),
        ("messages[3].role", "messages[3].role"),
        ("messages[0].content", "messages[0].parts"),
        ("messages[0].content[2]", "messages[0].parts[2]"),
        ("messages[0].content[2].image_url.url", "messages[0].parts[2].image.url"),
        ("messages[0].content[2].input_audio", "messages[0].parts[2].audio"),
        ("tools[1].function.name", "tools[1].name"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("temperature", "sampling.temperature"),
        ("top_logprobs", "top_logprobs"),
        ("logit_bias.5", "sampling.logit_bias.5"),
        ("max_tokens", "sampling.max_tokens"),
        ("max_completion_tokens", "sampling.max_tokens"),
        ("response_format", "output_format"),
        ("response_format.json_schema.schema", "output_format.schema.schema"),
        ("grammar", "output_format.grammar"),
        ("modelling", None),
        ("chat.model", None),
        ("", None),
    ],
)
def test_where_a_chat_has_what_others_call_so(theirs: str, ours: str | None) -> None:
    assert chat_path(theirs) == ours


@pytest.mark.parametrize(
    ("theirs", "ours"), [("input", "inputs"), ("input[3]", "inputs[3]"), ("inputs", "inputs"), ("model", "model")]
)
def test_where_a_request_for_vectors_has_what_others_call_so(theirs: str, ours: str) -> None:
    assert embed_path(theirs) == ours


BAD_EMBEDS: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"inputs": []}, "inputs"),
    ({"inputs": [{"text": "a"}, {"text": ""}]}, "inputs[1]"),
    ({"inputs": [{"tokens": {"ids": []}}]}, "inputs[0]"),
    ({"inputs": [{}]}, "inputs[0]"),
    ({"inputs": [{"text": "a"}] * 2049}, "inputs"),
    ({"dimensions": 0}, "dimensions"),
    ({"dimensions": 65_537}, "dimensions"),
]


@pytest.mark.parametrize(
    ("fields", "field"), BAD_EMBEDS, ids=[f"{i}-{field}" for i, (_, field) in enumerate(BAD_EMBEDS)]
)
def test_a_bad_request_for_vectors_is_refused_by_its_field(fields: dict[str, Any], field: str) -> None:
    asked = embeddings_pb2.CreateEmbeddingsRequest(**{"model": "m", "inputs": [{"text": "a"}], **fields})
    with pytest.raises(Failure) as raised:
        decode_embed(asked)
    assert (raised.value.kind, raised.value.param) == (Kind.INVALID_REQUEST, field)


# --- answers --------------------------------------------------------------------------------------------------------


def _bare_logprob(lp: TokenLogprob) -> TokenLogprob:
    return replace(lp, extra=UNSET, top=tuple(map(_bare_logprob, lp.top)))


def _told(event: Event) -> Event:
    """What the messages have a field for."""
    match event:
        case Started():
            return replace(event, upstream_id=UNSET, extra=UNSET)
        case Delta():
            lps = event.logprobs
            return replace(event, extra=UNSET, logprobs=UNSET if lps is UNSET else tuple(map(_bare_logprob, lps)))
        case Finished() | Usage():
            return replace(event, extra=UNSET)
    return event


def _round_trip(events: list[Event], model: str = "m") -> list[Event]:
    message = EventEncoder(model).encode(events)
    assert message is not None
    return gatewayapi.events([pb.CreateChatCompletionStreamResponse.FromString(message.SerializeToString())])


@given(streams())
def test_a_stream_says_all_of_its_events(events: list[Event]) -> None:
    said = _round_trip(events)
    assert said == [_told(event) for event in events]
    check(said)


@given(streams())
def test_a_whole_answer_says_what_its_events_said(events: list[Event]) -> None:
    told = [_told(event) for event in events]
    message = encode_answer(assemble(events), "m").completion
    said = gatewayapi.whole(pb.ChatCompletion.FromString(message.SerializeToString()))
    check(said)
    assert assemble(said) == assemble(told)


@given(usages, st.booleans())
def test_usage(usage: Usage, estimated: bool) -> None:
    usage = replace(usage, extra=UNSET, source="estimated" if estimated else "upstream")
    assert gatewayapi.usage(encode_usage(usage)) == usage


@given(objects)
def test_annotations_and_notices(data: dict[str, Any]) -> None:
    events: list[Event] = [Annotated(1, 2, data), Notice("loss", data)]
    assert _round_trip(events) == events


def test_a_notice_of_several_things() -> None:
    assert _round_trip([Notice("loss", {"fields": ("a", ("b",))})]) == [Notice("loss", {"fields": ["a", ["b"]]})]


def test_sound_is_bytes() -> None:
    events: list[Event] = [
        Started("a1", 1, "m"),
        Opened(0, 0, "audio"),
        Delta(0, 0, b"\x00\xff"),
        Delta(0, 0, b"\x01"),
        Closed(0, 0),
        Finished(0, "stop"),
    ]
    assert _round_trip(events) == events
    assert encode_answer(assemble(events), "m").completion.choices[0].parts[0].data == b"\x00\xff\x01"


def test_a_batch_without_events_is_no_message() -> None:
    assert EventEncoder("m").encode([]) is None


def test_the_name_is_the_one_that_was_asked_for() -> None:
    events: list[Event] = [Started("a1", 1, "theirs"), Finished(0, "stop")]
    assert _round_trip(events, "ours")[0] == Started("a1", 1, "ours")
    assert encode_answer(assemble(events), "ours").completion.model == "ours"


VECTOR = (0.5, -0.25, 3.0)


@pytest.mark.parametrize("values", [VECTOR, array("f", VECTOR).tobytes()], ids=["floats", "packed"])
def test_vectors(values: tuple[float, ...] | bytes) -> None:
    events: list[Event] = [
        Started("a1", 1, "theirs"),
        Result(Embeddings((Embedding(0, values),))),
        Usage(input_tokens=3),
    ]
    out = encode_embeddings(assemble(events), "ours")
    assert (out.model, [tuple(vector.values) for vector in out.embeddings]) == ("ours", [VECTOR])
    assert gatewayapi.usage(out.usage) == Usage(input_tokens=3)


def test_vectors_that_are_none() -> None:
    with pytest.raises(Failure) as raised:
        encode_embeddings(assemble([Started("a1", 1, "m"), Finished(0, "stop")]), "m")
    assert raised.value.kind is Kind.UPSTREAM_PROTOCOL


NO_CHAT: list[Callable[[Result], object]] = [
    lambda result: EventEncoder("m").encode([result]),
    lambda result: encode_answer(Answer(started=Started("a1", 1, "m"), result=result.value), "m"),
]


@pytest.mark.parametrize("encode", NO_CHAT)
def test_an_answer_that_is_none_of_a_chat(encode: Callable[[Result], object]) -> None:
    with pytest.raises(Failure) as raised:
        encode(Result(Embeddings(())))
    assert raised.value.kind is Kind.UPSTREAM_PROTOCOL

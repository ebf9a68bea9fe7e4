"""The gateway's own gRPC messages: requests to core values, events and answers to messages. Pure."""

from __future__ import annotations

import base64
import math
import re
import sys
from array import array
from collections.abc import Callable, Iterable
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct as PbStruct
from google.protobuf.struct_pb2 import Value as PbValue
from msgspec import UNSET, UnsetType

from llmg.core.assemble import Answer, AnswerPart
from llmg.core.assemble import Choice as AnswerChoice
from llmg.core.errors import Failure, Kind, invalid
from llmg.core.events import (
    Annotated,
    Batch,
    Closed,
    Delta,
    Embedding,
    Event,
    Finished,
    Notice,
    Opened,
    Result,
    Started,
    TokenLogprob,
)
from llmg.core.request import (
    MAX_DIMENSIONS,
    MAX_INPUTS,
    Audio,
    Chat,
    Embed,
    File,
    GrammarOutput,
    Image,
    JsonOutput,
    Message,
    Output,
    Part,
    Reasoning,
    Refusal,
    Role,
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
from llmg.gatewayapi.v1 import embeddings_pb2 as embeddings
from llmg.wire.openai.requests import check_extra

ROLES: Final[dict[int, Role]] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_DEVELOPER: "developer",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
KINDS: Final = {
    "text": pb.PART_KIND_TEXT,
    "reasoning": pb.PART_KIND_REASONING,
    "refusal": pb.PART_KIND_REFUSAL,
    "tool": pb.PART_KIND_TOOL,
    "audio": pb.PART_KIND_AUDIO,
    "image": pb.PART_KIND_IMAGE,
    "opaque": pb.PART_KIND_OPAQUE,
}
REASONS: Final = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_CONTENT_FILTER,
    "function_call": pb.FINISH_REASON_FUNCTION_CALL,
    "other": pb.FINISH_REASON_OTHER,
}
_MODES: Final = {
    pb.ToolChoice.MODE_UNSPECIFIED: "auto",
    pb.ToolChoice.MODE_NONE: "none",
    pb.ToolChoice.MODE_AUTO: "auto",
    pb.ToolChoice.MODE_REQUIRED: "required",
    pb.ToolChoice.MODE_NAMED: "named",
}

# What a number may be, as OpenAI's dialect has it: the least and the most.
_RANGES: Final[dict[str, tuple[float, float]]] = {"n": (1, 128), "top_logprobs": (0, 20)}
_SAMPLING_RANGES: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repetition_penalty": (0, sys.float_info.max),
    "max_tokens": (1, 2**31 - 1),
}
_SAMPLING: Final = tuple(name for name in Sampling.__struct_fields__ if name != "logit_bias")

# Where a Chat has what OpenAI's dialect, in whose words pipelines and upstreams speak of fields, has elsewhere.
_ELSEWHERE: Final = tuple(
    (re.compile(theirs + r"(?!\w)"), ours)
    for theirs, ours in (
        (r"(messages\[\d+\])\.content(\[\d+\])\.image_url", r"\1.parts\2.image"),
        (r"(messages\[\d+\])\.content(\[\d+\])\.input_audio", r"\1.parts\2.audio"),
        (r"(messages\[\d+\])\.content", r"\1.parts"),
        (r"(tools\[\d+\])\.function", r"\1"),
        (r"tool_choice\.function", "tool_choice"),
        (r"response_format\.json_schema", "output_format.schema"),
        (r"response_format", "output_format"),
        (r"grammar", "output_format.grammar"),
        (r"max_completion_tokens", "sampling.max_tokens"),
        *((field.name, f"sampling.{field.name}") for field in pb.Sampling.DESCRIPTOR.fields),
    )
)
_CHAT: Final = frozenset(field.name for field in pb.Chat.DESCRIPTOR.fields)
_NAME: Final = re.compile(r"\w+")


def chat_path(param: str) -> str | None:
    """The path below a Chat of what OpenAI's dialect calls `param`; None where that is none of its fields."""
    for theirs, ours in _ELSEWHERE:
        if found := theirs.match(param):
            return found.expand(ours) + param[found.end() :]
    head = _NAME.match(param)
    return param if head is not None and head[0] in _CHAT else None


def embed_path(param: str) -> str:
    """The same for a request for vectors."""
    return re.sub(r"^input(?!\w)", "inputs", param)


def decode_chat(given: pb.Chat, *, stream: bool) -> Chat:
    """A request. Raises Failure (invalid_request) naming the field by its path below `chat`."""
    if not given.model:
        raise _wrong("model", "it is required")
    if not given.messages:
        raise _wrong("messages", "at least one is needed")
    _check_ranges(given)
    if given.top_logprobs and not given.logprobs:
        raise _wrong("top_logprobs", "it needs 'logprobs' to be true")
    return Chat(
        model=given.model,
        messages=tuple([_message(m, f"chat.messages[{i}]") for i, m in enumerate(given.messages)]),
        tools=tuple([_tool(t, i) for i, t in enumerate(given.tools)]) if given.tools else UNSET,
        tool_choice=_tool_choice(given.tool_choice) if given.HasField("tool_choice") else UNSET,
        parallel_tool_calls=_set(given, "parallel_tool_calls"),
        output=_output(given.output_format) if given.HasField("output_format") else UNSET,
        sampling=_sampling(given.sampling) if given.HasField("sampling") else Sampling(),
        n=given.n if given.HasField("n") else 1,
        stop=tuple(given.stop) if given.stop else UNSET,
        seed=_set(given, "seed"),
        logprobs=_set(given, "logprobs"),
        top_logprobs=_set(given, "top_logprobs"),
        reasoning_effort=_set(given, "reasoning_effort"),
        user=_set(given, "user"),
        metadata=dict(given.metadata) if given.metadata else UNSET,
        stream=stream,
        extra=_extra(given.extra) if given.HasField("extra") else UNSET,
    )


def _wrong(path: str, why: str) -> Failure:
    return invalid(f"invalid 'chat.{path}': {why}", f"chat.{path}")


def _set(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else UNSET


def _check_ranges(given: pb.Chat) -> None:
    _check(given, _RANGES, "")
    if given.HasField("sampling"):
        _check(given.sampling, _SAMPLING_RANGES, "sampling.")
        for token, bias in given.sampling.logit_bias.items():
            if not -100 <= bias <= 100:
                raise _wrong(f"sampling.logit_bias.{token}", "expected -100 to 100")


def _check(message: Any, ranges: dict[str, tuple[float, float]], where: str) -> None:
    for name, (least, most) in ranges.items():
        if message.HasField(name) and not least <= getattr(message, name) <= most:
            expected = f"{least} to {most}" if most < 2**31 - 1 else f"at least {least}"
            raise _wrong(where + name, f"expected {expected}")


def _sampling(given: pb.Sampling) -> Sampling:
    return Sampling(
        **{name: _set(given, name) for name in _SAMPLING},
        logit_bias=dict(given.logit_bias) if given.logit_bias else UNSET,
    )


def _message(given: pb.Message, where: str) -> Message:
    role = ROLES.get(given.role)
    if role is None:
        raise invalid(f"invalid '{where}.role': it is required", f"{where}.role")
    parts = tuple([_part(part, f"{where}.parts[{i}]") for i, part in enumerate(given.parts)])
    if role == "tool" and not (parts and isinstance(parts[0], ToolResult)):
        raise invalid(f"invalid '{where}.parts': a message of role tool begins with a tool_result", f"{where}.parts")
    return Message(role=role, parts=parts, name=_set(given, "name"))


def _part(given: pb.Part, where: str) -> Part:
    kind = given.WhichOneof("kind")
    if kind is None:
        raise invalid(f"invalid '{where}': one kind of part must be set", where)
    return _PARTS[kind](getattr(given, kind), f"{where}.{kind}")


_PARTS: Final[dict[str, Callable[[Any, str], Part]]] = {
    "text": lambda p, _: Text(p.text),
    "image": lambda p, where: _image(p, where),
    "audio": lambda p, _: Audio(base64.b64encode(p.data).decode(), p.format),
    "file": lambda p, _: File(_set(p, "id"), _set(p, "data"), _set(p, "name")),
    "tool_call": lambda p, _: ToolCall(p.id, p.name, p.arguments),
    "tool_result": lambda p, where: ToolResult(
        p.call_id, tuple([_part(part, f"{where}.parts[{i}]") for i, part in enumerate(p.parts)])
    ),
    "reasoning": lambda p, _: Reasoning(p.text),
    "refusal": lambda p, _: Refusal(p.text),
}


def _image(given: pb.ImagePart, where: str) -> Image:
    if not given.url:
        raise invalid(f"invalid '{where}.url': it is required", f"{where}.url")
    return Image(given.url, _set(given, "detail"))


def _tool(given: pb.Tool, index: int) -> Tool:
    if not given.name:
        raise _wrong(f"tools[{index}].name", "it is required")
    return Tool(
        name=given.name,
        description=_set(given, "description"),
        parameters=_json(given.parameters, f"tools[{index}].parameters") if given.HasField("parameters") else UNSET,
        strict=_set(given, "strict"),
    )


def _tool_choice(given: pb.ToolChoice) -> ToolChoice:
    mode: Any = _MODES.get(given.mode)
    if mode is None:
        raise _wrong("tool_choice.mode", f"{given.mode} is not known")
    if mode == "named" and not given.name:
        raise _wrong("tool_choice.name", "it is required for MODE_NAMED")
    return ToolChoice(mode=mode, name=_set(given, "name"))


def _output(given: pb.OutputFormat) -> Output:
    match given.WhichOneof("kind"):
        case "text":
            return TextOutput()
        case "json":
            return JsonOutput()
        case "grammar":
            return GrammarOutput(given.grammar.grammar)
        case "schema":
            schema = given.schema
            return SchemaOutput(
                schema=_json(schema.schema, "output_format.schema.schema"),
                name=schema.name or "output",
                description=_set(schema, "description"),
                strict=_set(schema, "strict"),
            )
    raise _wrong("output_format", "one kind must be set")


def _extra(given: PbStruct) -> dict[str, Any]:
    check_extra(given.fields, "chat.extra")
    return _json(given, "extra")


def _json(given: PbStruct, path: str) -> dict[str, Any]:
    """A protobuf Struct as a dict; its numbers are doubles, so whole ones become integers again."""
    try:
        return {name: _value(value) for name, value in given.fields.items()}
    except ValueError:
        raise _wrong(path, "a number in it is not finite") from None


def _value(given: PbValue) -> Any:
    match given.WhichOneof("kind"):
        case "string_value":
            return given.string_value
        case "number_value":
            return _number(given.number_value)
        case "bool_value":
            return given.bool_value
        case "struct_value":
            return {name: _value(value) for name, value in given.struct_value.fields.items()}
        case "list_value":
            return [_value(value) for value in given.list_value.values]
    return None


def _number(value: float) -> int | float:
    if not math.isfinite(value):
        raise ValueError(value)  # JSON has none
    return int(value) if abs(value) < 2**53 and value.is_integer() else value


def decode_embed(given: embeddings.CreateEmbeddingsRequest) -> Embed:
    """A request. Raises Failure (invalid_request) naming the field."""
    if not given.model:
        raise invalid("invalid 'model': it is required", "model")
    if not given.inputs:
        raise invalid("invalid 'inputs': at least one is needed", "inputs")
    if len(given.inputs) > MAX_INPUTS:
        raise invalid(f"invalid 'inputs': at most {MAX_INPUTS} at once", "inputs")
    if given.HasField("dimensions") and not 1 <= given.dimensions <= MAX_DIMENSIONS:
        raise invalid(f"invalid 'dimensions': expected 1 to {MAX_DIMENSIONS}", "dimensions")
    return Embed(
        model=given.model,
        inputs=tuple([_input(item, index) for index, item in enumerate(given.inputs)]),
        dimensions=_set(given, "dimensions"),
        user=_set(given, "user"),
    )


def _input(given: embeddings.EmbeddingInput, index: int) -> str | tuple[int, ...]:
    value = given.text if given.WhichOneof("kind") == "text" else tuple(given.tokens.ids)
    if not value:
        raise invalid(f"invalid 'inputs[{index}]': it is empty", f"inputs[{index}]")
    return value


# --- the other way -------------------------------------------------------------------------------------------------


class EventEncoder:
    """One stream's events to messages. `model` is the name that was asked for. One per stream."""

    def __init__(self, model: str) -> None:
        self._model = model

    def encode(self, batch: Batch) -> pb.CreateChatCompletionStreamResponse | None:
        """The events of a batch in one message; None when none of them shows here."""
        out = pb.CreateChatCompletionStreamResponse()
        add = out.events.add
        for event in batch:
            if type(event) is Delta and event.logprobs is UNSET:
                delta = add().delta
                delta.choice, delta.part = event.choice, event.part
                if type(event.data) is str:
                    delta.text = event.data
                else:
                    delta.data = event.data  # type: ignore[assignment]
            else:
                _event(event, add, self._model)
        return out if out.events else None


def _event(event: Event, add: Callable[[], pb.ChatEvent], model: str) -> None:
    match event:
        case Delta():
            delta = add().delta
            delta.choice, delta.part = event.choice, event.part
            _data(delta, event.data)
            _logprobs(delta.logprobs, event.logprobs)
        case Opened():
            opened = add().opened
            opened.choice, opened.part, opened.kind = event.choice, event.part, KINDS[event.kind]
            _put(opened, id=event.id, name=event.name)
        case Closed():
            closed = add().closed
            closed.SetInParent()
            closed.choice, closed.part = event.choice, event.part
        case Finished():
            finished = add().finished
            finished.choice, finished.reason = event.choice, REASONS[event.reason]
            _put(finished, native_reason=event.native_reason, stop_sequence=event.stop_sequence)
        case Started():
            started = add().started
            started.id, started.created, started.model = event.id, event.created, model
            _put(started, system_fingerprint=event.fingerprint, service_tier=event.tier)
        case Usage():
            add().usage.CopyFrom(encode_usage(event))
        case Annotated():
            annotated = add().annotated
            annotated.choice, annotated.part = event.choice, event.part
            annotated.annotation.update(_listed(event.annotation))
        case Notice():
            notice = add().notice
            notice.kind = event.kind
            notice.data.update(_listed(event.data))
        case Result():
            raise _no_chat()


def _no_chat() -> Failure:
    return Failure(Kind.UPSTREAM_PROTOCOL, "the upstream's answer is none of a chat")


def _listed(value: Any) -> Any:
    """With lists for tuples, which a Struct does not take."""
    if isinstance(value, dict):
        return {name: _listed(inner) for name, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, list | tuple) else value


def _put(message: Any, **values: str | UnsetType) -> None:
    for name, value in values.items():
        if value is not UNSET:
            setattr(message, name, value)


def _data(message: Any, data: str | bytes) -> None:
    if isinstance(data, str):
        message.text = data
    else:
        message.data = data


def _logprobs(out: Any, given: Iterable[TokenLogprob] | UnsetType) -> None:
    for lp in () if given is UNSET else given:
        one = out.add(token=lp.token, logprob=lp.logprob)
        if lp.bytes is not None:
            one.bytes = bytes(lp.bytes)
        _logprobs(one.top, lp.top)


def encode_usage(usage: Usage) -> pb.Usage:
    """Token counts."""
    return pb.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        cache_written_tokens=usage.cache_written_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        accepted_prediction_tokens=usage.accepted_prediction_tokens,
        rejected_prediction_tokens=usage.rejected_prediction_tokens,
        estimated=usage.source == "estimated",
        final=usage.final,
    )


def encode_answer(answer: Answer, model: str) -> pb.CreateChatCompletionResponse:
    """A whole answer; `model` is the name that was asked for. Raises Failure when it is none of a chat."""
    if answer.result is not UNSET:
        raise _no_chat()
    out = pb.CreateChatCompletionResponse()
    whole, start = out.completion, answer.started
    whole.id, whole.created, whole.model = start.id, start.created, model
    _put(whole, system_fingerprint=start.fingerprint, service_tier=start.tier)
    for choice in answer.choices:
        _choice(whole.choices.add(), choice)
    if answer.usage is not UNSET:
        whole.usage.CopyFrom(encode_usage(answer.usage))
    return out


def _choice(out: pb.Choice, choice: AnswerChoice) -> None:
    out.index, out.finish_reason = choice.index, REASONS[choice.reason]
    _put(out, native_reason=choice.native_reason, stop_sequence=choice.stop_sequence)
    for part in choice.parts:
        _answer_part(out.parts.add(), part)


def _answer_part(out: pb.AnswerPart, part: AnswerPart) -> None:
    out.kind = KINDS[part.kind]
    _data(out, part.data)
    _put(out, id=part.id, name=part.name)
    _logprobs(out.logprobs, part.logprobs)


def encode_embeddings(answer: Answer, model: str) -> embeddings.CreateEmbeddingsResponse:
    """Vectors; `model` is the name that was asked for."""
    if answer.result is UNSET:
        raise Failure(Kind.UPSTREAM_PROTOCOL, "the upstream's answer holds no vectors")
    out = embeddings.CreateEmbeddingsResponse(model=model)
    for vector in answer.result.vectors:
        out.embeddings.add(index=vector.index, values=_values(vector))
    if answer.usage is not UNSET:
        out.usage.CopyFrom(encode_usage(answer.usage))
    return out


def _values(vector: Embedding) -> Iterable[float]:
    if not isinstance(vector.values, bytes):
        return vector.values
    values = array("f")
    values.frombytes(vector.values)
    return values

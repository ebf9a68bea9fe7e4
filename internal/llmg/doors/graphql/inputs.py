"""What this door is asked: the gateway's gRPC messages, in GraphQL's manner; and how core values are made of it.

Absent and null are the same: a field that is not given is left to the model.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final

import strawberry
from msgspec import UNSET
from strawberry.scalars import JSON, Base64

from llmg.core import request as core
from llmg.core.errors import Failure, invalid
from llmg.doors.graphql.scalars import Int64
from llmg.wire.openai.requests import check_extra


@strawberry.enum(description="Who speaks.")
class Role(Enum):
    """See `core.request.Role`."""

    SYSTEM = strawberry.enum_value("system", description="Instructions.")
    DEVELOPER = strawberry.enum_value("developer", description="Instructions, by their newer name.")
    USER = strawberry.enum_value("user", description="The user.")
    ASSISTANT = strawberry.enum_value("assistant", description="The model.")
    TOOL = strawberry.enum_value("tool", description="A tool that the model called.")


@strawberry.enum(description="May the model call a function?")
class ToolChoiceMode(Enum):
    """See `core.request.ToolChoice`."""

    NONE = strawberry.enum_value("none", description="It must not.")
    AUTO = strawberry.enum_value("auto", description="It may.")
    REQUIRED = strawberry.enum_value("required", description="It must.")
    NAMED = strawberry.enum_value("named", description="It must call the one of that name.")


@strawberry.input(description="Words.")
class TextPartInput:
    """See `core.request.Text`."""

    text: str = strawberry.field(description="The words.")


@strawberry.input(description="A picture.")
class ImagePartInput:
    """See `core.request.Image`."""

    url: str = strawberry.field(description="Where it is: an http(s) or a data URL.")
    detail: str | None = strawberry.field(description="How closely to look: low, high, auto.", default=strawberry.UNSET)


@strawberry.input(description="Sound.")
class AudioPartInput:
    """See `core.request.Audio`."""

    data: Base64 = strawberry.field(description="The sound.")
    format: str = strawberry.field(description="Its format: wav, mp3 ...")


@strawberry.input(description="A document: by id, or as data.")
class FilePartInput:
    """See `core.request.File`."""

    id: str | None = strawberry.field(description="The provider's id of it.", default=strawberry.UNSET)
    data: str | None = strawberry.field(description="A data URL.", default=strawberry.UNSET)
    name: str | None = strawberry.field(description="Its name.", default=strawberry.UNSET)


@strawberry.input(description="A call of a function.")
class ToolCallInput:
    """See `core.request.ToolCall`."""

    id: str = strawberry.field(description="The call's id, which its result names.")
    name: str = strawberry.field(description="The function's name.")
    arguments: str = strawberry.field(description="The arguments, JSON as the model wrote it.")


@strawberry.input(description="What a tool answered.")
class ToolResultInput:
    """See `core.request.ToolResult`."""

    call_id: str = strawberry.field(description="The id of the call.")
    parts: list[PartInput] = strawberry.field(description="The answer.")


@strawberry.input(description="The model's thoughts.")
class ReasoningPartInput:
    """See `core.request.Reasoning`."""

    text: str = strawberry.field(description="The thoughts.")


@strawberry.input(description="The model's words for not answering.")
class RefusalPartInput:
    """See `core.request.Refusal`."""

    text: str = strawberry.field(description="The words.")


@strawberry.input(one_of=True, description="A piece of a message: one kind.")
class PartInput:
    """See `core.request.Part`."""

    text: TextPartInput | None = strawberry.field(description="Words.", default=strawberry.UNSET)
    image: ImagePartInput | None = strawberry.field(description="A picture.", default=strawberry.UNSET)
    audio: AudioPartInput | None = strawberry.field(description="Sound.", default=strawberry.UNSET)
    file: FilePartInput | None = strawberry.field(description="A document.", default=strawberry.UNSET)
    tool_call: ToolCallInput | None = strawberry.field(
        description="A call that the model makes.", default=strawberry.UNSET
    )
    tool_result: ToolResultInput | None = strawberry.field(
        description="What a tool answered.", default=strawberry.UNSET
    )
    reasoning: ReasoningPartInput | None = strawberry.field(
        description="The model's thoughts.", default=strawberry.UNSET
    )
    refusal: RefusalPartInput | None = strawberry.field(
        description="The model's words for not answering.", default=strawberry.UNSET
    )


@strawberry.input(description="One turn of the conversation.")
class MessageInput:
    """See `core.request.Message`."""

    role: Role = strawberry.field(description="Who speaks.")
    parts: list[PartInput] = strawberry.field(description="What is said, in order.", default_factory=list)
    name: str | None = strawberry.field(description="The speaker's name.", default=strawberry.UNSET)


@strawberry.input(description="A function that the model may call.")
class ToolInput:
    """See `core.request.Tool`."""

    name: str = strawberry.field(description="The function's name.")
    description: str | None = strawberry.field(description="What it does, for the model.", default=strawberry.UNSET)
    parameters: JSON | None = strawberry.field(description="A JSON schema of its arguments.", default=strawberry.UNSET)
    strict: bool | None = strawberry.field(description="The arguments must fit the schema.", default=strawberry.UNSET)


@strawberry.input(description="Whether the model may, or must, call a function.")
class ToolChoiceInput:
    """See `core.request.ToolChoice`."""

    mode: ToolChoiceMode = strawberry.field(description="May it?", default=ToolChoiceMode.AUTO)
    name: str | None = strawberry.field(description="The function's name, for NAMED.", default=strawberry.UNSET)


@strawberry.input(description="JSON that fits a schema.")
class SchemaOutputInput:
    """See `core.request.SchemaOutput`."""

    schema: JSON = strawberry.field(description="The JSON schema.")
    name: str | None = strawberry.field(description="The schema's name.", default=strawberry.UNSET)
    description: str | None = strawberry.field(description="What it is for, for the model.", default=strawberry.UNSET)
    strict: bool | None = strawberry.field(description="The answer must fit exactly.", default=strawberry.UNSET)


@strawberry.input(description="Text that fits a grammar.")
class GrammarOutputInput:
    """See `core.request.GrammarOutput`."""

    grammar: str = strawberry.field(description="The grammar, in GBNF.")


@strawberry.input(one_of=True, description="What shape the answer must have: one of these.")
class OutputFormatInput:
    """See `core.request.Output`."""

    text: bool | None = strawberry.field(description="Free text; true.", default=strawberry.UNSET)
    json: bool | None = strawberry.field(description="Any JSON object; true.", default=strawberry.UNSET)
    schema: SchemaOutputInput | None = strawberry.field(
        description="JSON that fits a schema.", default=strawberry.UNSET
    )
    grammar: GrammarOutputInput | None = strawberry.field(
        description="Text that fits a grammar.", default=strawberry.UNSET
    )


@strawberry.input(description="How tokens are drawn.")
class SamplingInput:
    """See `core.request.Sampling`."""

    temperature: float | None = strawberry.field(
        description="0 to 2; 0 takes the likeliest token.", default=strawberry.UNSET
    )
    top_p: float | None = strawberry.field(
        description="The share of probability that tokens are drawn from, 0 to 1.", default=strawberry.UNSET
    )
    top_k: int | None = strawberry.field(
        description="How many of the likeliest tokens are drawn from.", default=strawberry.UNSET
    )
    min_p: float | None = strawberry.field(
        description="The least share of the likeliest token's probability, 0 to 1.", default=strawberry.UNSET
    )
    frequency_penalty: float | None = strawberry.field(
        description="-2 to 2: against tokens by how often they came.", default=strawberry.UNSET
    )
    presence_penalty: float | None = strawberry.field(
        description="-2 to 2: against tokens that came at all.", default=strawberry.UNSET
    )
    repetition_penalty: float | None = strawberry.field(
        description="1: none; more: against tokens that came.", default=strawberry.UNSET
    )
    logit_bias: JSON | None = strawberry.field(
        description="Added to a token's logit, -100 to 100: an object, by the token's id.", default=strawberry.UNSET
    )
    max_tokens: int | None = strawberry.field(
        description="The most tokens to make, thoughts included; at least 1.", default=strawberry.UNSET
    )


@strawberry.input(description="A conversation to go on with.")
class ChatInput:
    """See `core.request.Chat`."""

    model: str = strawberry.field(description="The model's name, or PROVIDER/MODEL.")
    messages: list[MessageInput] = strawberry.field(description="What was said so far; at least one message.")
    tools: list[ToolInput] | None = strawberry.field(
        description="Functions that the model may call.", default=strawberry.UNSET
    )
    tool_choice: ToolChoiceInput | None = strawberry.field(
        description="Whether it may, or must, call one.", default=strawberry.UNSET
    )
    parallel_tool_calls: bool | None = strawberry.field(
        description="Whether it may call several at once.", default=strawberry.UNSET
    )
    output_format: OutputFormatInput | None = strawberry.field(
        description="What shape the answer must have.", default=strawberry.UNSET
    )
    sampling: SamplingInput | None = strawberry.field(description="How tokens are drawn.", default=strawberry.UNSET)
    n: int | None = strawberry.field(
        description="How many answers to give, 1 to 128. Absent: 1.", default=strawberry.UNSET
    )
    stop: list[str] | None = strawberry.field(
        description="Texts that end the answer; they are not part of it.", default=strawberry.UNSET
    )
    seed: Int64 | None = strawberry.field(
        description="The same seed and request give the same answer, as far as the model can.",
        default=strawberry.UNSET,
    )
    logprobs: bool | None = strawberry.field(
        description="Give the log probability of each token.", default=strawberry.UNSET
    )
    top_logprobs: int | None = strawberry.field(
        description="How many rivals of each token to give, 0 to 20. Needs logprobs.", default=strawberry.UNSET
    )
    reasoning_effort: str | None = strawberry.field(
        description="How long the model may think: none, minimal, low, medium, high.", default=strawberry.UNSET
    )
    user: str | None = strawberry.field(
        description="Who the end user is, in the application's own terms.", default=strawberry.UNSET
    )
    metadata: JSON | None = strawberry.field(
        description="Kept with the request; not for the model. An object of strings.", default=strawberry.UNSET
    )
    extra: JSON | None = strawberry.field(
        description="Fields of OpenAI's dialect that have no name here, passed on to upstreams that speak it.",
        default=strawberry.UNSET,
    )


@strawberry.input(one_of=True, description="A text, or its tokens.")
class EmbeddingInput:
    """One thing to embed."""

    text: str | None = strawberry.field(description="The text.", default=strawberry.UNSET)
    tokens: list[int] | None = strawberry.field(description="The text's tokens.", default=strawberry.UNSET)


@strawberry.input(description="Texts to turn into vectors.")
class CreateEmbeddingsInput:
    """See `core.request.Embed`."""

    model: str = strawberry.field(description="The model's name, or PROVIDER/MODEL.")
    inputs: list[EmbeddingInput] = strawberry.field(description="At least one.")
    dimensions: int | None = strawberry.field(
        description="How many numbers a vector has; at least 1.", default=strawberry.UNSET
    )
    user: str | None = strawberry.field(
        description="Who the end user is, in the application's own terms.", default=strawberry.UNSET
    )


# --- to core values ------------------------------------------------------------------------------------------------

# What a number may be, as OpenAI's dialect has it: (its name in Python, its name here, the least, the most).
_CHAT_RANGES: Final = (("n", "n", 1, 128), ("top_logprobs", "topLogprobs", 0, 20))
_SAMPLING_RANGES: Final = (
    ("temperature", "temperature", 0, 2),
    ("top_p", "topP", 0, 1),
    ("top_k", "topK", -1, 2**31 - 1),
    ("min_p", "minP", 0, 1),
    ("frequency_penalty", "frequencyPenalty", -2, 2),
    ("presence_penalty", "presencePenalty", -2, 2),
    ("repetition_penalty", "repetitionPenalty", 0, sys.float_info.max),
    ("max_tokens", "maxTokens", 1, 2**31 - 1),
)
_SAMPLING: Final = tuple(name for name in core.Sampling.__struct_fields__ if name != "logit_bias")


def decode_chat(given: ChatInput, *, stream: bool) -> core.Chat:
    """A request. Raises Failure (invalid_request) naming the field by its path from `input`."""
    if not given.model:
        raise _wrong("model", "it is required")
    if not given.messages:
        raise _wrong("messages", "at least one is needed")
    _check_ranges(given, _CHAT_RANGES, "")
    if given.top_logprobs and not given.logprobs:
        raise _wrong("topLogprobs", "it needs 'logprobs' to be true")
    return core.Chat(
        model=given.model,
        messages=tuple([_message(m, f"messages[{i}]") for i, m in enumerate(given.messages)]),
        tools=tuple([_tool(t, f"tools[{i}]") for i, t in enumerate(given.tools)]) if given.tools else UNSET,
        tool_choice=_tool_choice(given.tool_choice) if given.tool_choice else UNSET,
        parallel_tool_calls=_set(given.parallel_tool_calls),
        output=_output(given.output_format) if given.output_format else UNSET,
        sampling=_sampling(given.sampling) if given.sampling else core.Sampling(),
        n=1 if given.n is None or given.n is strawberry.UNSET else given.n,
        stop=tuple(given.stop) if given.stop else UNSET,
        seed=_set(given.seed),
        logprobs=_set(given.logprobs),
        top_logprobs=_set(given.top_logprobs),
        reasoning_effort=_set(given.reasoning_effort),
        user=_set(given.user),
        metadata=_strings(given.metadata) if _is_set(given.metadata) else UNSET,
        stream=stream,
        extra=_extra(given.extra) if _is_set(given.extra) else UNSET,
    )


def _wrong(path: str, why: str) -> Failure:
    return invalid(f"invalid 'input.{path}': {why}", f"input.{path}")


def _is_set(value: Any) -> bool:
    return value is not None and value is not strawberry.UNSET


def _set(value: Any) -> Any:
    return value if _is_set(value) else UNSET


def _check_ranges(given: object, ranges: Iterable[tuple[str, str, float, float]], where: str) -> None:
    for name, shown, least, most in ranges:
        value = getattr(given, name)
        if _is_set(value) and not least <= value <= most:
            why = f"expected {least} to {most}" if most < 2**31 - 1 else f"expected at least {least}"
            raise _wrong(where + shown, why)


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, "expected an object")
    return value


def _extra(value: Any) -> dict[str, Any]:
    extra = _object(value, "extra")
    check_extra(extra, "input.extra")
    return extra


def _strings(value: Any) -> dict[str, str]:
    for name, text in _object(value, "metadata").items():
        if not isinstance(text, str):
            raise _wrong(f"metadata.{name}", "expected a string")
    strings: dict[str, str] = value
    return strings


def _sampling(given: SamplingInput) -> core.Sampling:
    _check_ranges(given, _SAMPLING_RANGES, "sampling.")
    return core.Sampling(
        **{name: _set(getattr(given, name)) for name in _SAMPLING},
        logit_bias=_biases(given.logit_bias) if given.logit_bias else UNSET,
    )


def _biases(value: Any) -> dict[str, float]:
    for token, bias in _object(value, "sampling.logitBias").items():
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise _wrong(f"sampling.logitBias.{token}", "expected -100 to 100")
    biases: dict[str, float] = value
    return biases


def _message(given: MessageInput, where: str) -> core.Message:
    role: Any = given.role.name.lower()
    parts = tuple([_part(part, f"{where}.parts[{i}]") for i, part in enumerate(given.parts)])
    if role == "tool" and not (parts and isinstance(parts[0], core.ToolResult)):
        raise _wrong(f"{where}.parts", "a message of role TOOL begins with a toolResult")
    return core.Message(role=role, parts=parts, name=_set(given.name))


def _part(given: PartInput, where: str) -> core.Part:
    for kind, decode in _PARTS.items():
        value = getattr(given, kind)
        if _is_set(value):
            return decode(value, where)
    raise _wrong(where, "one kind of part must be set")


_PARTS: Final[dict[str, Callable[[Any, str], core.Part]]] = {
    "text": lambda p, _: core.Text(p.text),
    "image": lambda p, where: _image(p, where),
    "audio": lambda p, _: core.Audio(base64.b64encode(p.data).decode(), p.format),
    "file": lambda p, _: core.File(_set(p.id), _set(p.data), _set(p.name)),
    "tool_call": lambda p, _: core.ToolCall(p.id, p.name, p.arguments),
    "tool_result": lambda p, where: core.ToolResult(
        p.call_id, tuple([_part(part, f"{where}.toolResult.parts[{i}]") for i, part in enumerate(p.parts)])
    ),
    "reasoning": lambda p, _: core.Reasoning(p.text),
    "refusal": lambda p, _: core.Refusal(p.text),
}


def _image(given: ImagePartInput, where: str) -> core.Image:
    if not given.url:
        raise _wrong(f"{where}.image.url", "it is required")
    return core.Image(given.url, _set(given.detail))


def _tool(given: ToolInput, where: str) -> core.Tool:
    if not given.name:
        raise _wrong(f"{where}.name", "it is required")
    return core.Tool(
        name=given.name,
        description=_set(given.description),
        parameters=_object(given.parameters, f"{where}.parameters") if _is_set(given.parameters) else UNSET,
        strict=_set(given.strict),
    )


def _tool_choice(given: ToolChoiceInput) -> core.ToolChoice:
    if given.mode is ToolChoiceMode.NAMED and not given.name:
        raise _wrong("toolChoice.name", "it is required for NAMED")
    mode: Any = given.mode.name.lower()
    return core.ToolChoice(mode=mode, name=_set(given.name))


def _output(given: OutputFormatInput) -> core.Output:
    for kind, output in (("text", core.TextOutput()), ("json", core.JsonOutput())):
        asked = getattr(given, kind)
        if asked is True:
            return output
        if asked is False:
            raise _wrong(f"outputFormat.{kind}", "it can be true alone")
    if given.grammar:
        return core.GrammarOutput(given.grammar.grammar)
    if given.schema:
        schema = given.schema
        return core.SchemaOutput(
            schema=_object(schema.schema, "outputFormat.schema.schema"),
            name=schema.name or "output",
            description=_set(schema.description),
            strict=_set(schema.strict),
        )
    raise _wrong("outputFormat", "one kind must be set")


@strawberry.input(one_of=True, description="The request whose route is asked for, as it would be made: one of these.")
class ExplainRouteInput:
    """See routing.proto."""

    chat: ChatInput | None = strawberry.field(description="A conversation to go on with.", default=strawberry.UNSET)
    embeddings: CreateEmbeddingsInput | None = strawberry.field(
        description="Texts to turn into vectors.", default=strawberry.UNSET
    )


def decode_embed(given: CreateEmbeddingsInput) -> core.Embed:
    """A request. Raises Failure (invalid_request) naming the field by its path from `input`."""
    if not given.model:
        raise _wrong("model", "it is required")
    if not given.inputs:
        raise _wrong("inputs", "at least one is needed")
    if len(given.inputs) > core.MAX_INPUTS:
        raise _wrong("inputs", f"at most {core.MAX_INPUTS} at once")
    dimensions = _set(given.dimensions)
    if dimensions is not UNSET and not 1 <= dimensions <= core.MAX_DIMENSIONS:
        raise _wrong("dimensions", f"expected 1 to {core.MAX_DIMENSIONS}")
    return core.Embed(
        model=given.model,
        inputs=tuple([_input(item, index) for index, item in enumerate(given.inputs)]),
        dimensions=dimensions,
        user=_set(given.user),
    )


def _input(given: EmbeddingInput, index: int) -> str | tuple[int, ...]:
    value = tuple(given.tokens) if given.tokens else given.text
    if not value:
        raise _wrong(f"inputs[{index}]", "it is empty")
    return value


def decode_explain(given: ExplainRouteInput) -> core.Request:
    """The request. Raises Failure (invalid_request) naming the field by its path from what is set of `input`."""
    if given.chat:
        return decode_chat(given.chat, stream=False)
    assert given.embeddings, "GraphQL sees to it that one is set"
    return decode_embed(given.embeddings)

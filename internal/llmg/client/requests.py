"""Requests from what people have: texts, dictionaries in OpenAI's shape, or the contract's own messages.

What is neither is an `InvalidRequestError` before anything is sent; nothing is dropped silently.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, Literal, TypeAlias, TypedDict

from llmg.client import types as t
from llmg.client.errors import invalid

MessageLike: TypeAlias = t.Message | Mapping[str, Any]
Messages: TypeAlias = str | Sequence[MessageLike]
EmbeddingInputs: TypeAlias = str | Sequence[str | Sequence[int]]
Json: TypeAlias = Mapping[str, Any]


class ChatFields(TypedDict, total=False):
    """What a chat may be asked beside its messages, by OpenAI's names. None is as good as absent.

    `tools`, `tool_choice` and `response_format` are in OpenAI's shape, or the contract's messages; `extra` are fields
    of OpenAI's dialect that have no name here, for upstreams that speak it.
    """

    tools: Sequence[t.Tool | Json] | None
    tool_choice: Literal["none", "auto", "required"] | t.ToolChoice | Json | None
    parallel_tool_calls: bool | None
    response_format: t.OutputFormat | Json | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[str, float] | None
    max_tokens: int | None
    max_completion_tokens: int | None  # the newer name of max_tokens
    n: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    logprobs: bool | None
    top_logprobs: int | None
    reasoning_effort: str | None
    user: str | None
    metadata: Mapping[str, str] | None
    extra: Json | None


def chat(model: str, messages: Messages, given: ChatFields) -> t.Chat:
    """A chat. A text is what the user says. Raises InvalidRequestError, and TypeError for a field that is none."""
    if unknown := given.keys() - ChatFields.__annotations__.keys():
        raise TypeError(f"a chat has no field {min(unknown)!r}")
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if (most := known.pop("max_completion_tokens", None)) is not None:
        known["max_tokens"] = most
    sampling = {name: known.pop(name) for name in _SAMPLING & known.keys()}
    own = {_NAMES.get(name, name): _CONVERT.get(name, _as_it_is)(value) for name, value in known.items()}
    if sampling:
        own["sampling"] = t.Sampling(**sampling)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return t.Chat(model=model, messages=[_message(m, f"messages[{i}]") for i, m in enumerate(messages)], **own)


def embeddings(model: str, inputs: EmbeddingInputs, dimensions: int | None, user: str | None) -> Any:
    """What to embed: a text, texts, or their tokens."""
    given = [inputs] if isinstance(inputs, str) else inputs
    return t.CreateEmbeddingsRequest(model=model, inputs=[_input(i) for i in given], dimensions=dimensions, user=user)


def _input(given: str | Sequence[int]) -> t.EmbeddingInput:
    if isinstance(given, str):
        return t.EmbeddingInput(text=given)
    return t.EmbeddingInput(tokens=t.Tokens(ids=list(given)))


# -- messages ----------------------------------------------------------------------------------------------------------

_ROLES: Final = {role.name.lower(): role for role in t.Role if role}


def _message(given: MessageLike, where: str) -> t.Message:
    if isinstance(given, t.Message):
        return given
    left = _Fields(given, where)
    role = _ROLES.get(left.take("role"))
    if role is None:
        raise invalid(f"invalid '{where}.role': expected one of {', '.join(_ROLES)}", f"{where}.role")
    parts = _content(left.take("content"), f"{where}.content")
    if role is t.Role.TOOL:
        call = left.take("tool_call_id", required=True)
        parts = [t.Part(tool_result=t.ToolResult(call_id=call, parts=parts))]
    if reasoning := left.take("reasoning_content"):
        parts.insert(0, t.Part(reasoning=t.ReasoningPart(text=reasoning)))
    if refusal := left.take("refusal"):
        parts.append(t.Part(refusal=t.RefusalPart(text=refusal)))
    parts += [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(left.take("tool_calls") or ())]
    name = left.take("name")
    left.end()
    return t.Message(role=role, parts=parts, name=name)


def _content(given: Any, where: str) -> list[t.Part]:
    if given is None:
        return []
    if isinstance(given, str):
        return [_text(given)]
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(given)]


def _part(given: t.Part | Json | str, where: str) -> t.Part:
    if isinstance(given, t.Part):
        return given
    if isinstance(given, str):
        return _text(given)
    left = _Fields(given, where)
    kind = left.take("type")
    made = _PARTS.get(kind)
    if made is None:
        raise invalid(f"invalid '{where}.type': expected one of {', '.join(_PARTS)}", f"{where}.type")
    part = made(left.take(kind, required=True), f"{where}.{kind}")
    left.end()
    return part


def _text(given: str, where: str = "") -> t.Part:
    return t.Part(text=t.TextPart(text=given))


def _image(given: Json | str, where: str) -> t.Part:
    left = _Fields({"url": given} if isinstance(given, str) else given, where)
    image = t.ImagePart(url=left.take("url", required=True), detail=left.take("detail"))
    left.end()
    return t.Part(image=image)


def _audio(given: Json, where: str) -> t.Part:
    left = _Fields(given, where)
    data, kind = left.take("data", required=True), left.take("format", required=True)
    left.end()
    try:
        raw = data if isinstance(data, bytes) else base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"invalid '{where}.data': it is not base64", f"{where}.data") from None
    return t.Part(audio=t.AudioPart(data=raw, format=kind))


def _file(given: Json, where: str) -> t.Part:
    left = _Fields(given, where)
    file = t.FilePart(id=left.take("file_id"), data=left.take("file_data"), name=left.take("filename"))
    left.end()
    return t.Part(file=file)


def _refusal(given: str, where: str) -> t.Part:
    return t.Part(refusal=t.RefusalPart(text=given))


_PARTS: Final[Mapping[str, Callable[[Any, str], t.Part]]] = {
    "text": _text,
    "image_url": _image,
    "input_audio": _audio,
    "file": _file,
    "refusal": _refusal,
}


def _tool_call(given: t.ToolCall | Json, where: str) -> t.Part:
    if isinstance(given, t.ToolCall):
        return t.Part(tool_call=given)
    left = _Fields(given, where)
    left.of_type("function")
    function = _Fields(left.take("function", required=True), f"{where}.function")
    call = t.ToolCall(
        id=left.take("id", required=True),
        name=function.take("name", required=True),
        arguments=function.take("arguments") or "",
    )
    left.end()
    function.end()
    return t.Part(tool_call=call)


# -- fields ------------------------------------------------------------------------------------------------------------


def _as_it_is(given: Any) -> Any:
    return given


def _tools(given: Sequence[t.Tool | Json]) -> list[t.Tool]:
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(given)]


def _tool(given: t.Tool | Json, where: str) -> t.Tool:
    if isinstance(given, t.Tool):
        return given
    left = _Fields(given, where)
    left.of_type("function")
    function = _Fields(left.take("function", required=True), f"{where}.function")
    left.end()
    parameters = function.take("parameters")
    tool = t.Tool(
        name=function.take("name", required=True),
        description=function.take("description"),
        parameters=None if parameters is None else struct(parameters, f"{where}.function.parameters"),
        strict=function.take("strict"),
    )
    function.end()
    return tool


_MODES: Final = {
    "none": t.ToolChoiceMode.NONE,
    "auto": t.ToolChoiceMode.AUTO,
    "required": t.ToolChoiceMode.REQUIRED,
}


def _tool_choice(given: str | t.ToolChoice | Json) -> t.ToolChoice:
    if isinstance(given, t.ToolChoice):
        return given
    if isinstance(given, str):
        if given not in _MODES:
            raise invalid(f"invalid 'tool_choice': expected one of {', '.join(_MODES)}", "tool_choice")
        return t.ToolChoice(mode=_MODES[given])
    left = _Fields(given, "tool_choice")
    left.of_type("function")
    function = _Fields(left.take("function", required=True), "tool_choice.function")
    name = function.take("name", required=True)
    left.end()
    function.end()
    return t.ToolChoice(mode=t.ToolChoiceMode.NAMED, name=name)


def _response_format(given: t.OutputFormat | Json) -> t.OutputFormat:
    if isinstance(given, t.OutputFormat):
        return given
    left = _Fields(given, "response_format")
    kind = left.take("type")
    schema = left.take("json_schema") if kind == "json_schema" else None
    left.end()
    if kind == "json_schema":
        return t.OutputFormat(schema=_schema(schema or {}))
    if kind == "json_object":
        return t.OutputFormat(json=t.JsonOutput())
    if kind == "text":
        return t.OutputFormat(text=t.TextOutput())
    words = "expected one of text, json_object, json_schema"
    raise invalid(f"invalid 'response_format.type': {words}", "response_format.type")


def _schema(given: Json) -> t.SchemaOutput:
    where = "response_format.json_schema"
    left = _Fields(given, where)
    out = t.SchemaOutput(
        name=left.take("name", required=True),
        schema=struct(left.take("schema", required=True), f"{where}.schema"),
        description=left.take("description"),
        strict=left.take("strict"),
    )
    left.end()
    return out


def struct(given: Json, where: str) -> t.Struct:
    """A JSON object. Raises InvalidRequestError for what JSON has not."""
    try:
        return t.Struct.from_dict(_listed(given))
    except (ValueError, AssertionError) as error:
        raise invalid(f"invalid '{where}': it is no JSON: {error}", where) from None


def _listed(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _listed(value) for name, value in given.items()}
    return [_listed(value) for value in given] if isinstance(given, list | tuple) else given


_SAMPLING: Final = {field.name for field in fields(t.Sampling)}
_NAMES: Final = {"response_format": "output_format"}
_CONVERT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "tools": _tools,
    "tool_choice": _tool_choice,
    "response_format": _response_format,
    "stop": lambda given: [given] if isinstance(given, str) else list(given),
    "metadata": dict,
    "extra": lambda given: struct(given, "extra"),
}


class _Fields:
    """A dictionary that is taken apart: each field is taken once, and at the end none may be left."""

    def __init__(self, given: Any, where: str) -> None:
        if not isinstance(given, Mapping):
            raise invalid(f"invalid '{where}': expected a dictionary, not {type(given).__name__}", where)
        self._left = dict(given)
        self._where = where

    def take(self, name: str, *, required: bool = False) -> Any:
        """The value; None where there is none."""
        value = self._left.pop(name, None)
        if required and value is None:
            raise invalid(f"invalid '{self._where}.{name}': it is required", f"{self._where}.{name}")
        return value

    def of_type(self, only: str) -> None:
        """Takes `type`, which must be this."""
        if self.take("type") != only:
            raise invalid(f"invalid '{self._where}.type': expected {only}", f"{self._where}.type")

    def end(self) -> None:
        """None of a value may be left."""
        left = [name for name, value in self._left.items() if value is not None]
        if left:
            raise invalid(f"invalid '{self._where}.{left[0]}': it is not known", f"{self._where}.{left[0]}")

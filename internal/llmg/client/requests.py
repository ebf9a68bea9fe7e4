"""Requests from what people have: texts, dictionaries in OpenAI's shape, or the contract's own messages.

What is neither is an `InvalidRequestError` before anything is sent; nothing is dropped silently.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, Literal, TypeAlias, TypedDict

from llmg.client import checks
from llmg.client import types as t
from llmg.client.checks import FLAG, NUMBER, TEXT, Expected, check, listed, wrong
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
    if "max_completion_tokens" in known:
        known.pop("max_tokens", None)
    own = {name: _field(name, value) for name, value in known.items()}
    sampling = {_NAMES.get(name, name): own.pop(name) for name in known if _owner(name) is t.Sampling}
    if sampling:
        own["sampling"] = t.Sampling(**sampling)
    checks.field(t.Chat, "model", model, "model")
    return t.Chat(model=model, messages=_messages(messages), **{_NAMES.get(name, name): own[name] for name in own})


def _field(name: str, given: Any) -> Any:
    """What the contract's field of that name takes."""
    made = _CONVERT[name](given) if name in _CONVERT else given
    checks.field(_owner(name), _NAMES.get(name, name), made, name, depth=1)
    return made


def _owner(name: str) -> type[t.Chat | t.Sampling]:
    return t.Sampling if _NAMES.get(name, name) in _SAMPLING else t.Chat


def embeddings(
    model: str, inputs: EmbeddingInputs, dimensions: int | None, user: str | None
) -> t.CreateEmbeddingsRequest:
    """What to embed: a text, texts, or their tokens. Raises InvalidRequestError."""
    given = [inputs] if isinstance(inputs, str) else listed(inputs, "a text or a list", "inputs")
    made = [_input(each, f"inputs[{i}]") for i, each in enumerate(given)]
    return t.CreateEmbeddingsRequest(model=model, inputs=made, dimensions=dimensions, user=user)


def _input(given: str | Sequence[int], where: str) -> t.EmbeddingInput:
    if isinstance(given, str):
        check(given, TEXT, where)
        return t.EmbeddingInput(text=given)
    tokens = listed(given, "a text or a list of tokens", where)
    checks.field(t.Tokens, "ids", tokens, where)
    return t.EmbeddingInput(tokens=t.Tokens(ids=list(tokens)))


# -- messages ----------------------------------------------------------------------------------------------------------

_ROLES: Final = {role.name.lower(): role for role in t.Role if role}


def _messages(given: Messages) -> list[t.Message]:
    if isinstance(given, str):
        check(given, TEXT, "messages")
        return [t.Message(role=t.Role.USER, parts=[t.Part(text=t.TextPart(text=given))])]
    return [_message(m, f"messages[{i}]") for i, m in enumerate(listed(given, "a text or a list", "messages"))]


def _message(given: MessageLike, where: str) -> t.Message:
    if isinstance(given, t.Message):
        return given
    left = _Fields(given, where)
    role = _ROLES.get(left.take("role", TEXT))
    if role is None:
        raise invalid(f"invalid '{where}.role': expected one of {', '.join(_ROLES)}", f"{where}.role")
    parts = _content(left.take("content"), f"{where}.content")
    if role is t.Role.TOOL:
        call = left.take("tool_call_id", TEXT, required=True)
        parts = [t.Part(tool_result=t.ToolResult(call_id=call, parts=parts))]
    if reasoning := left.take("reasoning_content", TEXT):
        parts.insert(0, t.Part(reasoning=t.ReasoningPart(text=reasoning)))
    if refusal := left.take("refusal", TEXT):
        parts.append(t.Part(refusal=t.RefusalPart(text=refusal)))
    calls = listed(left.take("tool_calls") or (), "a list", f"{where}.tool_calls")
    parts += [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    name = left.take("name", TEXT)
    left.end()
    return t.Message(role=role, parts=parts, name=name)


def _content(given: Any, where: str) -> list[t.Part]:
    if given is None:
        return []
    if isinstance(given, str):
        return [_text(given, where)]
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(listed(given, "a text or a list", where))]


def _part(given: t.Part | Json | str, where: str) -> t.Part:
    if isinstance(given, t.Part):
        return given
    if isinstance(given, str):
        return _text(given, where)
    left = _Fields(given, where)
    kind = left.take("type", TEXT)
    made = _PARTS.get(kind)
    if made is None:
        raise invalid(f"invalid '{where}.type': expected one of {', '.join(_PARTS)}", f"{where}.type")
    part = made(left.take(kind, required=True), f"{where}.{kind}")
    left.end()
    return part


def _text(given: str, where: str) -> t.Part:
    check(given, TEXT, where)
    return t.Part(text=t.TextPart(text=given))


def _image(given: Json | str, where: str) -> t.Part:
    left = _Fields({"url": given} if isinstance(given, str) else given, where)
    image = t.ImagePart(url=left.take("url", TEXT, required=True), detail=left.take("detail", TEXT))
    left.end()
    return t.Part(image=image)


_SOUND: Final = Expected("bytes or a text in base64", lambda given: isinstance(given, bytes | str))


def _audio(given: Json, where: str) -> t.Part:
    left = _Fields(given, where)
    data, kind = left.take("data", _SOUND, required=True), left.take("format", TEXT, required=True)
    left.end()
    try:
        raw = data if isinstance(data, bytes) else base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"invalid '{where}.data': it is not base64", f"{where}.data") from None
    return t.Part(audio=t.AudioPart(data=raw, format=kind))


def _file(given: Json, where: str) -> t.Part:
    left = _Fields(given, where)
    file = t.FilePart(
        id=left.take("file_id", TEXT), data=left.take("file_data", TEXT), name=left.take("filename", TEXT)
    )
    left.end()
    return t.Part(file=file)


def _refusal(given: str, where: str) -> t.Part:
    check(given, TEXT, where)
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
        id=left.take("id", TEXT, required=True),
        name=function.take("name", TEXT, required=True),
        arguments=function.take("arguments", TEXT) or "",
    )
    left.end()
    function.end()
    return t.Part(tool_call=call)


# -- fields ------------------------------------------------------------------------------------------------------------


def _tools(given: Sequence[t.Tool | Json]) -> list[t.Tool]:
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(listed(given, "a list", "tools"))]


def _tool(given: t.Tool | Json, where: str) -> t.Tool:
    if isinstance(given, t.Tool):
        return given
    left = _Fields(given, where)
    left.of_type("function")
    function = _Fields(left.take("function", required=True), f"{where}.function")
    left.end()
    parameters = function.take("parameters")
    tool = t.Tool(
        name=function.take("name", TEXT, required=True),
        description=function.take("description", TEXT),
        parameters=None if parameters is None else struct(parameters, f"{where}.function.parameters"),
        strict=function.take("strict", FLAG),
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
    name = function.take("name", TEXT, required=True)
    left.end()
    function.end()
    return t.ToolChoice(mode=t.ToolChoiceMode.NAMED, name=name)


def _response_format(given: t.OutputFormat | Json) -> t.OutputFormat:
    if isinstance(given, t.OutputFormat):
        return given
    left = _Fields(given, "response_format")
    kind = left.take("type", TEXT)
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
        name=left.take("name", TEXT, required=True),
        schema=struct(left.take("schema", required=True), f"{where}.schema"),
        description=left.take("description", TEXT),
        strict=left.take("strict", FLAG),
    )
    left.end()
    return out


def struct(given: Json, where: str) -> t.Struct:
    """A JSON object. Raises InvalidRequestError for what JSON has not."""
    if not isinstance(given, Mapping):
        raise wrong("a dictionary", given, where)
    try:
        return t.Struct.from_dict(_json(given, where))
    except RecursionError:
        raise invalid(f"invalid '{where}': it is nested too deeply", where) from None


def _json(given: Any, where: str) -> Any:
    """With the types that betterproto2 takes for JSON."""
    if isinstance(given, Mapping):
        for name in given:
            check(name, TEXT, where)
        return {name: _json(value, where) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return [_json(value, where) for value in given]
    if given is not None and not isinstance(given, bool):
        check(given, TEXT if isinstance(given, str) else _JSON, where)
    return given


_JSON: Final = Expected("JSON", NUMBER.fits)
_SAMPLING: Final = {field.name for field in fields(t.Sampling)}
_NAMES: Final = {"response_format": "output_format", "max_completion_tokens": "max_tokens"}
_CONVERT: Final[Mapping[str, Callable[[Any], Any]]] = {
    "tools": _tools,
    "tool_choice": _tool_choice,
    "response_format": _response_format,
    "stop": lambda given: [given] if isinstance(given, str) else listed(given, "a text or a list", "stop"),
    "extra": lambda given: struct(given, "extra"),
}
"""Fields that are given in another shape than the contract's. Of what type a field must be says the contract."""


class _Fields:
    """A dictionary that is taken apart: each field is taken once, and at the end none may be left."""

    def __init__(self, given: Any, where: str) -> None:
        if not isinstance(given, Mapping):
            raise wrong("a dictionary", given, where)
        self._left = dict(given)
        self._where = where

    def take(self, name: str, expected: Expected | None = None, *, required: bool = False) -> Any:
        """The value; None where there is none. What nothing is expected of, the caller checks."""
        value = self._left.pop(name, None)
        where = f"{self._where}.{name}"
        if required and value is None:
            raise invalid(f"invalid '{where}': it is required", where)
        if expected is not None and value is not None:
            check(value, expected, where)
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

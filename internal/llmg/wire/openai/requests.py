"""Chat requests: OpenAI's body to a `Chat`, and back.

To the dialect it came in by, a request goes out with the client's own bytes, but for the fields in which it now
differs from what was decoded (`encode_chat`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import replace

from llmg.core.errors import invalid
from llmg.core.request import (
    Audio,
    Chat,
    File,
    GrammarOutput,
    Image,
    JsonOutput,
    Message,
    Opaque,
    Origin,
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
from llmg.wire.openai import DIALECT
from llmg.wire.openai.fields import NULL, convert, graft, malformed, raw_fields, split

NonEmpty = Annotated[str, Meta(min_length=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class _Strict(Struct, forbid_unknown_fields=True):
    pass


class _Url(_Strict):
    url: NonEmpty
    detail: str | None = None


class _Sound(_Strict):
    data: str
    format: str


class _Document(_Strict):
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class _TextPart(_Strict, tag_field="type", tag="text"):
    text: str


class _ImagePart(_Strict, tag_field="type", tag="image_url"):
    image_url: _Url


class _AudioPart(_Strict, tag_field="type", tag="input_audio"):
    input_audio: _Sound


class _FilePart(_Strict, tag_field="type", tag="file"):
    file: _Document


class _RefusalPart(_Strict, tag_field="type", tag="refusal"):
    refusal: str


_AnyPart = _TextPart | _ImagePart | _AudioPart | _FilePart | _RefusalPart
_PARTS: dict[str, type[_Strict]] = {
    "text": _TextPart,
    "image_url": _ImagePart,
    "input_audio": _AudioPart,
    "file": _FilePart,
    "refusal": _RefusalPart,
}


class _Called(_Strict):
    name: str
    arguments: str = ""


class _Call(_Strict):
    id: str
    function: _Called
    type: Literal["function"] = "function"


class _Message(_Strict):
    role: Role
    content: str | list[_AnyPart] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class _Function(_Strict):
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(_Strict):
    function: _Function
    type: Literal["function"] = "function"


class _Named(_Strict):
    name: NonEmpty


class _NamedChoice(_Strict):
    function: _Named
    type: Literal["function"] = "function"


class _TextFormat(Struct, tag_field="type", tag="text"):
    pass


class _JsonFormat(Struct, tag_field="type", tag="json_object"):
    pass


class _Schema(Struct):
    name: NonEmpty
    schema: dict[str, Any] = {}
    description: str | None = None
    strict: bool | None = None


class _SchemaFormat(Struct, tag_field="type", tag="json_schema"):
    json_schema: _Schema


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Chat(Struct):
    model: NonEmpty
    messages: Raw
    tools: Raw = NULL
    tool_choice: Raw = NULL
    parallel_tool_calls: bool | None = None
    response_format: _TextFormat | _JsonFormat | _SchemaFormat | None = None
    grammar: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0)] | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_KNOWN = frozenset(_Chat.__struct_encode_fields__)
_chat = msgspec.json.Decoder(_Chat).decode
_messages = msgspec.json.Decoder(list[_Message]).decode
_tools = msgspec.json.Decoder(list[_Tool]).decode
_plain = msgspec.json.decode


def check_extra(extra: Mapping[str, Any], where: str) -> None:
    """Raises Failure (invalid_request) for what is no extra, but a field of a chat that we have a name for.

    It is named below `where`. (It would go past all that looks at the field: routes, ranges, allow lists.)
    """
    for name in extra:
        if name in _KNOWN:
            path = f"{where}.{name}"
            raise invalid(f"invalid '{path}': what the request's own fields say can't be given here", path)


class ChatRequest(Struct, frozen=True):
    """A decoded request, and what of it concerns the door alone: does the client want a stream's usage?"""

    chat: Chat
    include_usage: bool


def decode_chat(body: bytes) -> ChatRequest:
    """A body of `POST /v1/chat/completions`. Raises Failure (invalid_request) naming the field."""
    try:
        return _decode_chat(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(error, _Chat) from None


def _decode_chat(body: bytes) -> ChatRequest:
    fields = raw_fields(body)
    given = _chat(body)
    if given.top_logprobs and not given.logprobs:
        raise invalid("invalid 'top_logprobs': it needs 'logprobs' to be true", "top_logprobs")
    values = (  # in the order of Chat's fields
        given.model,
        _decode_messages(given.messages),
        UNSET if given.tools == NULL else _decode_tools(given.tools),
        UNSET if given.tool_choice == NULL else _decode_tool_choice(given.tool_choice),
        UNSET if given.parallel_tool_calls is None else given.parallel_tool_calls,
        _decode_output(given),
        _decode_sampling(given),
        given.n or 1,
        _decode_stop(given.stop),
        UNSET if given.seed is None else given.seed,
        UNSET if given.logprobs is None else given.logprobs,
        UNSET if given.top_logprobs is None else given.top_logprobs,
        UNSET if given.reasoning_effort is None else given.reasoning_effort,
        UNSET if given.user is None else given.user,
        UNSET if given.metadata is None else given.metadata,
        bool(given.stream),
        UNSET if fields.keys() <= _KNOWN else {k: _plain(v) for k, v in fields.items() if k not in _KNOWN},
    )
    options = given.stream_options
    return ChatRequest(Chat(*values, Origin(DIALECT, fields, values)), bool(options and options.include_usage))


def _biases(given: dict[str, float] | None) -> dict[str, float] | UnsetType:
    if given is None:
        return UNSET
    for token, bias in given.items():  # msgspec would not say which
        if not -100 <= bias <= 100:
            raise invalid(f"invalid 'logit_bias.{token}': expected -100 to 100", f"logit_bias.{token}")
    return given


def _given(value: Any) -> Any:
    return UNSET if value is None else value


def _decode_stop(stop: str | list[str] | None) -> tuple[str, ...] | UnsetType:
    if stop is None:
        return UNSET
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _decode_sampling(given: _Chat) -> Sampling:
    limit = given.max_completion_tokens if given.max_completion_tokens is not None else given.max_tokens
    return Sampling(
        temperature=_given(given.temperature),
        top_p=_given(given.top_p),
        top_k=_given(given.top_k),
        min_p=_given(given.min_p),
        frequency_penalty=_given(given.frequency_penalty),
        presence_penalty=_given(given.presence_penalty),
        repetition_penalty=_given(given.repetition_penalty),
        logit_bias=_biases(given.logit_bias),
        max_tokens=_given(limit),
    )


def _decode_output(given: _Chat) -> Output | UnsetType:
    match given.response_format:
        case _SchemaFormat(schema):
            return SchemaOutput(
                schema=schema.schema,
                name=schema.name,
                description=_given(schema.description),
                strict=_given(schema.strict),
            )
        case _JsonFormat():
            return JsonOutput()
        case _TextFormat():
            return TextOutput()
        case _:
            return UNSET if given.grammar is None else GrammarOutput(given.grammar)


def _decode_messages(raw: Raw) -> tuple[Message, ...]:
    try:
        messages = tuple([_decode_message(m) for m in _messages(raw)])
    except msgspec.ValidationError:
        # Either a field is unknown, and kept, or something is wrong, and named: the long way finds out which.
        messages = tuple(_decode_loose_messages(raw))
    if not messages:
        raise invalid("invalid 'messages': at least one is needed", "messages")
    for index, message in enumerate(messages):
        if message.role == "tool" and not (message.parts and isinstance(message.parts[0], ToolResult)):
            where = f"messages[{index}].tool_call_id"
            raise invalid(f"invalid '{where}': a message of role 'tool' needs it", where)
    return messages


def _decode_message(given: _Message) -> Message:
    content = given.content
    parts: list[Part] = []
    if given.reasoning_content:
        parts.append(Reasoning(given.reasoning_content))
    if isinstance(content, str):
        parts.append(Text(content))
    elif content is not None:
        parts.extend([_decode_part(part) for part in content])
    if given.refusal:
        parts.append(Refusal(given.refusal))
    if given.tool_calls:
        parts.extend(ToolCall(c.id, c.function.name, c.function.arguments) for c in given.tool_calls)
    if given.tool_call_id is not None:
        parts = [ToolResult(given.tool_call_id, tuple(parts))]
    return Message(role=given.role, parts=tuple(parts), name=_given(given.name))


def _decode_part(part: _AnyPart) -> Part:
    match part:
        case _TextPart(text):
            return Text(text)
        case _ImagePart(image):
            return Image(image.url, _given(image.detail))
        case _AudioPart(audio):
            return Audio(audio.data, audio.format)
        case _FilePart(file):
            return File(_given(file.file_id), _given(file.file_data), _given(file.filename))
        case _RefusalPart(refusal):
            return Refusal(refusal)


def _decode_loose_messages(raw: Raw) -> Iterable[Message]:
    for index, given in enumerate(convert(_plain(raw), list[Any], "messages")):
        where = f"messages[{index}]"
        known, extra = split(convert(given, dict[str, Any], where), _Message)
        content, calls = known.get("content"), known.get("tool_calls")
        loose = {**known, "tool_calls": None, "content": None if isinstance(content, list) else content}
        message = _decode_message(convert(loose, _Message, where))
        parts: list[Part] = []
        if isinstance(content, list):
            parts.extend(_decode_loose_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
        if calls:
            all_calls = convert(calls, list[Any], f"{where}.tool_calls")
            parts.extend(_decode_loose_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(all_calls))
        yield replace(message, parts=_with(message.parts, parts), extra=extra or UNSET)


def _with(parts: tuple[Part, ...], more: list[Part]) -> tuple[Part, ...]:
    if not more:
        return parts
    if parts and isinstance(parts[0], ToolResult):
        return (ToolResult(parts[0].call_id, (*parts[0].parts, *more)),)
    return (*parts, *more)


def _decode_loose_part(given: Any, where: str) -> Part:
    raw = convert(given, dict[str, Any], where)
    struct = _PARTS.get(convert(raw.get("type"), str, f"{where}.type"))
    if struct is None:
        return Opaque(DIALECT, raw)
    known, extra = split({k: v for k, v in raw.items() if k != "type"}, struct)
    inner = struct.__struct_fields__[0]
    if isinstance(known.get(inner), dict) and any(k not in _inner_fields(struct) for k in known[inner]):
        return Opaque(DIALECT, raw)
    part = _decode_part(convert({**known, "type": raw["type"]}, struct, where))  # type: ignore[arg-type]
    if not extra:
        return part
    return Opaque(DIALECT, raw) if isinstance(part, Refusal) else replace(part, extra=extra)


def _inner_fields(struct: type[_Strict]) -> tuple[str, ...]:
    inner = {_ImagePart: _Url, _AudioPart: _Sound, _FilePart: _Document}.get(struct)
    return inner.__struct_fields__ if inner else ()


def _decode_loose_call(given: Any, where: str) -> Part:
    raw = convert(given, dict[str, Any], where)
    if raw.get("type", "function") != "function":
        return Opaque(DIALECT, raw)
    known, extra = split(raw, _Call)
    given_function = convert(known.get("function", {}), dict[str, Any], f"{where}.function")
    function, more = split(given_function, _Called)
    if more:
        extra = {**extra, "function": more}
    call = convert({**known, "function": function}, _Call, where)
    return ToolCall(call.id, call.function.name, call.function.arguments, extra or UNSET)


def _decode_tools(raw: Raw) -> tuple[Tool | Opaque, ...]:
    try:
        return tuple([_decode_tool(tool) for tool in _tools(raw)])
    except msgspec.ValidationError:
        given = enumerate(convert(_plain(raw), list[Any], "tools"))
        return tuple(_decode_loose_tool(tool, f"tools[{index}]") for index, tool in given)


def _decode_tool(given: _Tool) -> Tool:
    f = given.function
    return Tool(
        name=f.name, description=_given(f.description), parameters=_given(f.parameters), strict=_given(f.strict)
    )


def _decode_loose_tool(given: Any, where: str) -> Tool | Opaque:
    raw = convert(given, dict[str, Any], where)
    function = raw.get("function")
    known = isinstance(function, dict) and not split(function, _Function)[1] and not split(raw, _Tool)[1]
    if convert(raw.get("type", "function"), str, f"{where}.type") != "function" or (
        isinstance(function, dict) and not known
    ):
        return Opaque(DIALECT, raw)
    return _decode_tool(convert(raw, _Tool, where))


def _decode_tool_choice(raw: Raw) -> ToolChoice | Opaque:
    given = _plain(raw)
    if given in ("none", "auto", "required"):
        return ToolChoice(mode=given)
    if isinstance(given, dict) and given.get("type") == "function":
        return ToolChoice(mode="named", name=convert(given, _NamedChoice, "tool_choice").function.name)
    if isinstance(given, dict) and isinstance(given.get("type"), str):
        return Opaque(DIALECT, given)
    raise invalid("invalid 'tool_choice': expected none, auto, required or a function", "tool_choice")


# --- the other way -------------------------------------------------------------------------------------------------


def encode_chat(chat: Chat) -> bytes:
    """The body of the upstream call. A stream always asks for its usage."""
    origin = chat.origin
    if origin is not UNSET and origin.dialect == DIALECT:
        body: dict[str, Any] = dict(origin.fields)
        changed = origin.changed(chat)
    else:
        body, changed = {}, [name for name in _ENCODE if getattr(chat, name) is not UNSET]
    for name in changed:
        for field, value in _ENCODE[name](chat, body).items():
            if value is UNSET:
                body.pop(field, None)
            else:
                body[field] = value
    if chat.stream:
        asked = body.get("stream_options")
        options = (_plain(asked) if isinstance(asked, Raw) else asked) or {}
        body["stream_options"] = {**options, "include_usage": True}
    return msgspec.json.encode(body)


def _encode_sampling(chat: Chat, body: dict[str, Any]) -> dict[str, Any]:
    fields = {name: getattr(chat.sampling, name) for name in Sampling.__struct_fields__}
    if "max_completion_tokens" in body:
        fields["max_completion_tokens"] = fields.pop("max_tokens")
    return fields


def _encode_output(chat: Chat, _: dict[str, Any]) -> dict[str, Any]:
    match chat.output:
        case SchemaOutput():
            schema = {
                "name": chat.output.name,
                "description": chat.output.description,
                "schema": chat.output.schema,
                "strict": chat.output.strict,
            }
            given = {name: value for name, value in schema.items() if value is not UNSET}
            return {"response_format": {"type": "json_schema", "json_schema": given}, "grammar": UNSET}
        case JsonOutput():
            return {"response_format": {"type": "json_object"}, "grammar": UNSET}
        case TextOutput():
            return {"response_format": {"type": "text"}, "grammar": UNSET}
        case GrammarOutput(grammar):
            return {"grammar": grammar, "response_format": UNSET}
        case _:
            return {"grammar": UNSET, "response_format": UNSET}


def _encode_messages(chat: Chat, _: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [encode_message(message) for message in chat.messages]}


def encode_message(message: Message) -> dict[str, Any]:
    """One message in the dialect's shape. Raises Failure (not_implemented) for another dialect's opaque part."""
    out: dict[str, Any] = {"role": message.role}
    parts = message.parts
    if parts and isinstance(parts[0], ToolResult):
        out["tool_call_id"] = parts[0].call_id
        parts = parts[0].parts
    called = [message.role == "assistant" and _is_call(part) for part in parts]
    calls = [_encode_call(part) for part, is_call in zip(parts, called, strict=True) if is_call]
    content = [p for p, is_call in zip(parts, called, strict=True) if not is_call and not isinstance(p, Reasoning)]
    thoughts = [part.text for part in parts if isinstance(part, Reasoning)]
    match content:
        case [Text(text, extra)] if extra is UNSET:
            out["content"] = text
        case [Refusal(text)]:
            out["content"], out["refusal"] = None, text
        case []:
            out["content"] = None if message.role == "assistant" else ""
        case _:
            out["content"] = [_encode_part(part) for part in content]
    if thoughts:
        out["reasoning_content"] = "".join(thoughts)
    if calls:
        out["tool_calls"] = calls
    if message.name is not UNSET:
        out["name"] = message.name
    return {**out, **message.extra} if message.extra is not UNSET else out


def _is_call(part: Part) -> bool:
    return isinstance(part, ToolCall) or (isinstance(part, Opaque) and "id" in part.raw and "type" in part.raw)


def _encode_call(part: Part) -> dict[str, Any]:
    if isinstance(part, Opaque):
        return part.raw
    assert isinstance(part, ToolCall)
    call = {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
    return graft(call, part.extra) if part.extra is not UNSET else call


def _encode_part(part: Part) -> dict[str, Any]:
    match part:
        case Text(text):
            out: dict[str, Any] = {"type": "text", "text": text}
        case Image(url, detail):
            out = {
                "type": "image_url",
                "image_url": {"url": url} if detail is UNSET else {"url": url, "detail": detail},
            }
        case Audio(data, format):
            out = {"type": "input_audio", "input_audio": {"data": data, "format": format}}
        case File(id, data, name):
            file = {"file_id": id, "file_data": data, "filename": name}
            out = {"type": "file", "file": {k: v for k, v in file.items() if v is not UNSET}}
        case Refusal(text):
            return {"type": "refusal", "refusal": text}
        case Opaque(dialect, raw) if dialect == DIALECT:
            return raw
        case _:
            raise invalid(
                f"a part of kind {type(part).__name__} can't be sent to an OpenAI-compatible model", "messages"
            )
    return {**out, **part.extra} if part.extra is not UNSET else out


def _encode_tools(chat: Chat, _: dict[str, Any]) -> dict[str, Any]:
    return {"tools": UNSET if chat.tools is UNSET else encode_tools(chat.tools)}


def encode_tools(tools: Iterable[Tool | Opaque]) -> list[dict[str, Any]]:
    """The tools in the dialect's shape."""
    return [tool.raw if isinstance(tool, Opaque) else encode_tool(tool) for tool in tools]


def encode_tool(tool: Tool) -> dict[str, Any]:
    """One function in the dialect's shape."""
    names = ("name", "description", "parameters", "strict")
    return {
        "type": "function",
        "function": {name: getattr(tool, name) for name in names if getattr(tool, name) is not UNSET},
    }


def encode_tool_choice(choice: ToolChoice | Opaque) -> Any:
    """May the model call tools: a word, or the function's name in the dialect's shape."""
    if isinstance(choice, Opaque):
        return choice.raw
    return {"type": "function", "function": {"name": choice.name}} if choice.mode == "named" else choice.mode


def _encode_tool_choice(chat: Chat, _: dict[str, Any]) -> dict[str, Any]:
    return {"tool_choice": UNSET if chat.tool_choice is UNSET else encode_tool_choice(chat.tool_choice)}


def _encode_n(chat: Chat, body: dict[str, Any]) -> dict[str, Any]:
    return {"n": UNSET if chat.n == 1 and "n" not in body else chat.n}


def _encode_stream(chat: Chat, body: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"stream": True if chat.stream else UNSET}
    return out if chat.stream else {**out, "stream_options": UNSET}


def _encode_extra(chat: Chat, _: dict[str, Any]) -> dict[str, Any]:
    return {} if chat.extra is UNSET else {k: v for k, v in chat.extra.items() if k not in _KNOWN}


def _same(name: str) -> Callable[[Chat, dict[str, Any]], dict[str, Any]]:
    return lambda chat, _: {name: getattr(chat, name)}


# Each of a Chat's fields: what it is in the dialect (UNSET: leave the field out).
_ENCODE: dict[str, Callable[[Chat, dict[str, Any]], dict[str, Any]]] = {
    "model": _same("model"),
    "messages": _encode_messages,
    "tools": _encode_tools,
    "tool_choice": _encode_tool_choice,
    "parallel_tool_calls": _same("parallel_tool_calls"),
    "output": _encode_output,
    "sampling": _encode_sampling,
    "n": _encode_n,
    "stop": _same("stop"),
    "seed": _same("seed"),
    "logprobs": _same("logprobs"),
    "top_logprobs": _same("top_logprobs"),
    "reasoning_effort": _same("reasoning_effort"),
    "user": _same("user"),
    "metadata": _same("metadata"),
    "stream": _encode_stream,
    "extra": _encode_extra,
}

"""The local backends' contract, from the gateway's side: requests to `PredictOptions`, replies to events.

The contract's numbers have no "absent", so each is always sent. Where the client says nothing the values are those
that LocalAI's core sends (`DEFAULTS`). What it has no place for is reported as a loss, never dropped silently.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET, UnsetType

from llmg.backendapi import backend_pb2 as pb
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, not_implemented
from llmg.core.events import Closed, Delta, Event, Finished, Notice, Opened, PartKind, Reason, Started, TokenLogprob
from llmg.core.request import (
    Audio,
    Chat,
    GrammarOutput,
    Image,
    JsonOutput,
    Message,
    Part,
    Reasoning,
    Refusal,
    Sampling,
    SchemaOutput,
    Text,
    ToolCall,
    ToolResult,
)
from llmg.core.usage import Usage
from llmg.wire.openai.requests import encode_tool_choice, encode_tools

FINISH_REASON: Final = "llmg-finish-reason"
CACHED_TOKENS: Final = "llmg-cached-tokens"
ERROR_KIND: Final = "llmg-error-kind"

# What is sent when the client leaves it open; those not named are 0, which every engine takes as "its own".
DEFAULTS: Final[Mapping[str, float]] = {"Temperature": 0.9, "TopP": 0.95, "TopK": 40, "TypicalP": 1.0}

# A Sampling's field: the contract's.
_SAMPLING: Final = {
    "temperature": "Temperature",
    "top_p": "TopP",
    "top_k": "TopK",
    "min_p": "MinP",
    "frequency_penalty": "FrequencyPenalty",
    "presence_penalty": "PresencePenalty",
    "repetition_penalty": "Penalty",
    "max_tokens": "Tokens",
}
_ROLES: Final = {"developer": "system", "function": "tool"}  # chat templates don't know the one nor the other
_ANY_OBJECT: Final = '{"type":"object"}'

_json = msgspec.json.Encoder().encode


def encode_chat(chat: Chat, identity: str, context: Context, seed: int) -> pb.PredictOptions:
    """The options of Predict and PredictStream; `seed` is used when the client gave none.

    Raises Failure (not_implemented) for a part that the contract can't carry.
    """
    options = pb.PredictOptions(
        UseTokenizerTemplate=True,
        Messages=[_message(message) for message in chat.messages],
        ModelIdentity=identity,
        CorrelationId=context.request_id,
        Seed=(seed if chat.seed is UNSET else chat.seed) & 0x7FFF_FFFF,
        Grammar=_grammar(chat),
        **_sampling(chat.sampling),
    )
    _media(chat.messages, options)
    if chat.stop is not UNSET:
        options.StopPrompts.extend(chat.stop)
    if chat.sampling.logit_bias is not UNSET:
        options.LogitBias = _json(chat.sampling.logit_bias).decode()
    if chat.logprobs is True:
        options.TopLogprobs = chat.top_logprobs or 0
        options.Logprobs = options.TopLogprobs or 1
    if chat.tools is not UNSET:
        options.Tools = _json(encode_tools(chat.tools)).decode()
    if chat.tool_choice is not UNSET:
        options.ToolChoice = _json(encode_tool_choice(chat.tool_choice)).decode()
    if chat.reasoning_effort is not UNSET:
        options.Metadata["reasoning_effort"] = chat.reasoning_effort
    return options


def losses(chat: Chat) -> tuple[str, ...]:
    """The fields of a request that the contract has no place for."""
    lost = [] if chat.extra is UNSET else sorted(chat.extra)
    lost += [name for name in ("parallel_tool_calls", "metadata") if getattr(chat, name) is not UNSET]
    return tuple(lost)


def _sampling(sampling: Sampling) -> dict[str, Any]:
    given = {field: getattr(sampling, name) for name, field in _SAMPLING.items()}
    return {**DEFAULTS, **{field: value for field, value in given.items() if value is not UNSET}}


def _grammar(chat: Chat) -> str:
    match chat.output:
        case SchemaOutput():
            return _json(chat.output.schema).decode()
        case JsonOutput():
            return _ANY_OBJECT
        case GrammarOutput(grammar):
            return grammar
        case _:
            return ""


def _message(message: Message) -> pb.Message:
    parts = message.parts
    out = pb.Message(role=_ROLES.get(message.role, message.role))
    if message.name is not UNSET:
        out.name = message.name
    if parts and isinstance(parts[0], ToolResult):
        out.tool_call_id = parts[0].call_id
        parts = parts[0].parts
    out.content = "".join(part.text for part in parts if isinstance(part, Text | Refusal))
    out.reasoning_content = "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls = [_call(part) for part in parts if isinstance(part, ToolCall)]
    if calls:
        out.tool_calls = _json(calls).decode()
    return out


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _media(messages: Iterable[Message], options: pb.PredictOptions) -> None:
    for number, message in enumerate(messages):
        for part in message.parts:
            match part:
                case Image(url):
                    head, comma, data = url.partition(",")
                    if not (head.startswith("data:") and comma and head.endswith(";base64")):
                        raise _unsendable("an image that is no base64 data: URL", number)
                    options.Images.append(data)
                case Audio(data):
                    options.Audios.append(data)
                case Text() | Refusal() | Reasoning() | ToolCall() | ToolResult():
                    pass
                case _:
                    raise _unsendable(f"a part of kind {_kind(part)}", number)


def _kind(part: Part) -> str:
    raw = getattr(part, "raw", None)
    return str(raw.get("type")) if isinstance(raw, dict) else type(part).__name__.lower()


def _unsendable(what: str, number: int) -> Failure:
    failure = not_implemented(f"{what} for a local model")
    failure.param = f"messages[{number}].content"
    return failure


class ReplyDecoder:
    """The replies of one call to events. One per call."""

    def __init__(self, chat: Chat, context: Context) -> None:
        limit = chat.sampling.max_tokens
        self._limit = limit if isinstance(limit, int) else 0
        self._model = chat.model
        self._lost = losses(chat)
        self._context = context
        self._begun = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._said: list[str] = []
        self._kind: PartKind | None = None  # of the text-like part now growing
        self._current = 0  # its number
        self._open: list[int] = []
        self._parts = 0
        self._calls: dict[int, int] = {}
        self._counts = (0, 0)  # tokens of the prompt, of the answer

    def feed(self, reply: pb.Reply) -> list[Event]:
        """One reply's events."""
        out: list[Event] = []
        self._begin(out)
        if reply.tokens or reply.prompt_tokens:
            self._counts = (reply.prompt_tokens or self._counts[0], max(reply.tokens, self._counts[1]))
        logprobs = decode_logprobs(reply.logprobs)
        if not reply.chat_deltas:
            text = self._utf8.decode(reply.message)
            if text or logprobs is not UNSET:
                self._text("text", text, logprobs, out)
        for delta in reply.chat_deltas:
            if delta.reasoning_content:
                self._text("reasoning", delta.reasoning_content, UNSET, out)
            if delta.content and not self._repeats(reply, delta.content):
                self._text("text", delta.content, logprobs, out)
                logprobs = UNSET
            for call in delta.tool_calls:
                self._call(call, out)
        return out

    def end(self, trailing: Mapping[str, str]) -> list[Event]:
        """The call is over; `trailing` is its metadata, where our own engines say why."""
        out: list[Event] = []
        self._begin(out)
        if rest := self._utf8.decode(b"", final=True):
            self._text("text", rest, UNSET, out)
        if not self._parts:
            self._text("text", "", UNSET, out)
        out.extend(Closed(0, part) for part in sorted(self._open))
        out.append(Finished(0, self._reason(trailing.get(FINISH_REASON))))
        asked, answered = self._counts
        cached = trailing.get(CACHED_TOKENS, "")
        counted = Usage(
            input_tokens=asked, output_tokens=answered, cached_tokens=int(cached) if cached.isdigit() else 0
        )
        return [*out, counted]

    def _begin(self, out: list[Event]) -> None:
        if not self._begun:
            self._begun = True
            out.append(Started(self._context.id, self._context.created, self._model))
            if self._lost:
                out.append(Notice("loss", {"fields": self._lost}))

    def _repeats(self, reply: pb.Reply, content: str) -> bool:
        # Some engines end a stream with one delta more, which holds all that was said before once again.
        return not reply.message and len(self._said) > 1 and content == "".join(self._said)

    def _text(
        self, kind: PartKind, text: str, logprobs: tuple[TokenLogprob, ...] | UnsetType, out: list[Event]
    ) -> None:
        if self._kind != kind:
            if self._kind is not None:
                self._open.remove(self._current)
                out.append(Closed(0, self._current))
            self._kind = kind
            self._current = self._opened(Opened(0, self._parts, kind), out)
        if kind == "text":
            self._said.append(text)
        if text or logprobs is not UNSET:
            out.append(Delta(0, self._current, text, logprobs))

    def _call(self, call: pb.ToolCallDelta, out: list[Event]) -> None:
        part = self._calls.get(call.index)
        if part is None:
            id = call.id or f"call_{self._context.id}_{call.index}"
            part = self._calls[call.index] = self._opened(Opened(0, self._parts, "tool", id, call.name), out)
        if call.arguments:
            out.append(Delta(0, part, call.arguments))

    def _opened(self, event: Opened, out: list[Event]) -> int:
        out.append(event)
        self._open.append(event.part)
        self._parts += 1
        return event.part

    def _reason(self, said: str | None) -> Reason:
        if said in ("stop", "length", "tool_calls"):
            return cast(Reason, said)
        if self._calls:
            return "tool_calls"
        return "length" if 0 < self._limit <= self._counts[1] else "stop"


def decode_logprobs(raw: bytes) -> tuple[TokenLogprob, ...] | UnsetType:
    """`Reply.logprobs`: JSON, `{"content": [{"token", "bytes", "logprob", "top_logprobs"}]}`."""
    if not raw:
        return UNSET
    try:
        given = msgspec.json.decode(raw, type=dict[str, Any]).get("content") or ()
        return tuple([_logprob(item) for item in given]) or UNSET
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            Kind.UPSTREAM_PROTOCOL, "the backend's log probabilities can't be read", detail=str(error)
        ) from None


def _logprob(given: dict[str, Any]) -> TokenLogprob:
    raw = given.get("bytes")
    tops = given.get("top_logprobs") or ()
    return TokenLogprob(
        given["token"],
        float(given["logprob"]),
        tuple(given["token"].encode()) if raw is None else tuple(raw),
        tuple([_logprob({**top, "top_logprobs": None}) for top in tops]),
    )

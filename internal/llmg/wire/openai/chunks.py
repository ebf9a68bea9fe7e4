"""Streamed chat answers: OpenAI's `chat.completion.chunk` to events, and events to chunks.

Decoding. Most chunks are like the one before but for their words, and take the shortest way (`alike`). The others go
through structs that refuse unknown fields. The first chunk that has one sends the rest of its stream a longer way,
which keeps them: one for what is unknown around the choices, where most upstreams that have more to say say it, and the
long one for what is unknown within. A choice's text, reasoning and refusal parts are closed when another of these
begins; tool calls, which some upstreams interleave, when the choice finishes.

Encoding. All of a chunk but its content is the same for the whole stream, so it is made once, as bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import (
    Annotated,
    Batch,
    Closed,
    Delta,
    Event,
    Finished,
    Notice,
    Opened,
    PartKind,
    Result,
    Started,
)
from llmg.core.extra import Extra, merge
from llmg.core.usage import Usage
from llmg.wire.openai import DIALECT
from llmg.wire.openai.alike import Alike
from llmg.wire.openai.answers import (
    NO_FUNCTION,
    Call,
    Logprobs,
    Strict,
    TokenCounts,
    call_extra,
    call_id,
    completion_id,
    decode_finish,
    decode_logprobs,
    decode_usage,
    encode_call,
    encode_logprob,
    encode_reason,
    encode_usage,
    loosen,
    split_usage,
    started,
    unreadable,
)
from llmg.wire.openai.errors import decode_error
from llmg.wire.openai.fields import graft, split


class _Delta(Strict):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class _Choice(Strict):
    delta: _Delta | None = None
    index: int = 0
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class _Chunk(Strict):
    choices: list[_Choice]
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    usage: TokenCounts | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class _OpenChunk(_Chunk, forbid_unknown_fields=False):
    """Within its choices as strict as the other."""


_STRICT, _OPEN = 0, 1  # the ways to read a chunk; the one after them is the long one
_KNOWN = frozenset(_Chunk.__struct_encode_fields__)
_strict = msgspec.json.Decoder(_Chunk).decode
_open = msgspec.json.Decoder(_OpenChunk).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_plain = msgspec.json.decode
_NO_DELTA = _Delta()


class _ChoiceState:
    __slots__ = ("blank", "calls", "current", "finished", "held", "ids", "kind", "open", "parts", "spoke")

    def __init__(self) -> None:
        self.parts = 0  # opened so far
        self.kind: PartKind | None = None  # of the text-like part now growing
        self.current = 0  # its number
        self.open: list[int] = []
        self.calls: dict[int, int] = {}  # the upstream's tool index -> part
        self.ids: dict[str, int] = {}  # a tool call's id -> its index
        self.blank = False  # there was content, if only the empty string
        self.spoke = False  # there was text, a refusal or a tool call
        self.held: Extra | UnsetType = UNSET  # for the next event that can carry it
        self.finished: Finished | None = None


class ChunkDecoder:
    """One stream's chunks to events. One per stream."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._choices: dict[int, _ChoiceState] = {}
        self._begun = False
        self._way = _STRICT
        self._usage: TokenCounts | None = None
        self._usage_extra: dict[str, Any] | None = None
        self._trailing: dict[str, Any] = {}  # what stood around no choice
        self._alike = Alike()
        self._saying: tuple[int, _ChoiceState] | None = None  # the choice whose text the last chunk went on with

    def feed(self, data: bytes, out: list[Event]) -> None:
        """One chunk. Raises Failure for an error in the stream or what is no chunk."""
        if self._saying is not None:
            words = self._alike.words(data)
            if words:
                index, state = self._saying
                out.append(Delta(index, state.current, words))
                return
            self._saying = None
        try:
            if self._way == _STRICT:
                chunk = _strict(data)
                self._chunk(chunk, out)
                self._learn(data, chunk)
            elif self._way == _OPEN:
                self._feed_open(data, out)
            else:
                self._feed_loose(data, out)
        except msgspec.ValidationError:
            self._way += 1
            self.feed(data, out)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise unreadable("stream", error) from None

    def _learn(self, data: bytes, chunk: _Chunk) -> None:
        words = _words_alone(chunk)
        if words:
            index = chunk.choices[0].index
            state = self._choices[index]
            if state.finished is None:
                self._saying = index, state
                self._alike.learn(data, words)

    def _feed_open(self, data: bytes, out: list[Event]) -> None:
        chunk = _open(data)
        envelope = {name: _plain(value) for name, value in _fields(data).items() if name not in _KNOWN}
        if envelope.get("error"):
            raise decode_error(200, data)
        self._chunk(chunk, out, envelope)

    def end(self, out: list[Event]) -> None:
        """The stream is over. Raises `upstream_truncated` when the answer is not."""
        if not self._choices:
            raise Failure(Kind.UPSTREAM_TRUNCATED, "the upstream's stream ended before its answer began")
        if any(state.finished is None for state in self._choices.values()):
            raise Failure(Kind.UPSTREAM_TRUNCATED, "the upstream's stream ended before its answer was finished")
        if self._usage is not None:
            out.append(decode_usage(self._usage, self._usage_extra, self._trailing))
            self._usage = None

    def _feed_loose(self, data: bytes, out: list[Event]) -> None:
        try:
            whole = _plain(data, type=dict[str, Any])
            if whole.get("error"):
                raise decode_error(200, data)
            known, envelope = split(whole, _Chunk)
            loosened = [loosen(raw, _Choice, "delta", _Delta) for raw in known.get("choices") or ()]
            usage, more = split_usage(known.get("usage"))
            choices = [choice for choice, _ in loosened]
            chunk = msgspec.convert({**known, "choices": choices, "usage": usage}, _Chunk)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError, TypeError) as error:
            raise unreadable("stream", error) from None
        self._chunk(chunk, out, envelope, [extra for _, extra in loosened], more)

    def _chunk(
        self,
        chunk: _Chunk,
        out: list[Event],
        envelope: dict[str, Any] | None = None,
        extras: list[Extra] | None = None,
        usage_extra: dict[str, Any] | None = None,
    ) -> None:
        if not self._begun:
            self._begun = True
            out.append(started(chunk, self._context, Extra(dialect=DIALECT, envelope=envelope) if envelope else UNSET))
            envelope = None
        for place, choice in enumerate(chunk.choices):
            extra: Extra | UnsetType = UNSET
            if extras or envelope:
                extra, envelope = _around(extras[place] if extras else _NO_EXTRA, envelope), None
            self._choice(choice, extra, out)
        if envelope:
            self._trailing.update(envelope)
        if chunk.usage is not None:
            self._usage, self._usage_extra = chunk.usage, usage_extra

    def _choice(self, choice: _Choice, extra: Extra | UnsetType, out: list[Event]) -> None:
        index = choice.index
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _ChoiceState()
        if state.finished is not None:  # some upstreams repeat the last chunk to carry their usage
            if extra is not UNSET:
                self._trailing.update(extra.envelope)
            return
        if state.held is not UNSET:
            extra, state.held = merge(state.held, extra), UNSET
        delta = choice.delta or _NO_DELTA
        logprobs = choice.logprobs
        content, thoughts = delta.content, delta.reasoning_content
        lps = UNSET if logprobs is None else decode_logprobs(logprobs.content)
        if content or (lps is not UNSET and not thoughts):
            part = state.current if state.kind == "text" else self._open(index, state, "text", out)
            out.append(Delta(index, part, content or "", lps, extra))
            extra = lps = UNSET
        elif content is not None:
            state.blank = True
        if thoughts:
            part = state.current if state.kind == "reasoning" else self._open(index, state, "reasoning", out)
            out.append(Delta(index, part, thoughts, lps, extra))
            extra = UNSET
        if delta.refusal or (logprobs is not None and logprobs.refusal):
            part = state.current if state.kind == "refusal" else self._open(index, state, "refusal", out)
            lps = UNSET if logprobs is None else decode_logprobs(logprobs.refusal)
            out.append(Delta(index, part, delta.refusal or "", lps, extra))
            extra = UNSET
        if delta.tool_calls:
            self._calls(index, state, delta.tool_calls, out)
        if choice.finish_reason:
            self._finish(index, state, choice.finish_reason, extra, out)
        elif extra is not UNSET and state.kind is not None:
            out.append(Delta(index, state.current, "", UNSET, extra))
        else:
            state.held = extra

    def _finish(self, index: int, state: _ChoiceState, word: str, extra: Extra | UnsetType, out: list[Event]) -> None:
        if state.blank and not state.spoke:
            self._open(index, state, "text", out)
        out.extend(Closed(index, part) for part in sorted(state.open))
        state.finished = decode_finish(index, word, extra)
        out.append(state.finished)

    def _open(self, index: int, state: _ChoiceState, kind: PartKind, out: list[Event]) -> int:
        if state.kind is not None:
            state.open.remove(state.current)
            out.append(Closed(index, state.current))
        state.spoke = state.spoke or kind != "reasoning"
        part = state.current = state.parts
        state.parts += 1
        state.kind = kind
        state.open.append(part)
        out.append(Opened(index, part, kind))
        return part

    def _calls(self, index: int, state: _ChoiceState, calls: list[Call], out: list[Event]) -> None:
        for place, call in enumerate(calls):
            number = call.index if call.index is not None else _unnumbered(state, call, place)
            function = call.function or NO_FUNCTION
            part = state.calls.get(number)
            # Some upstreams give all calls the index 0: a new id with a name is another call.
            if part is None or (call.id and function.name and call.id not in state.ids):
                part = state.calls[number] = state.parts
                state.parts += 1
                state.open.append(part)
                state.spoke = True
                id = call.id or call_id(self._context, index, part)
                state.ids[id] = number
                out.append(Opened(index, part, "tool", id, function.name or ""))
            extra = call_extra(call)
            if function.arguments or extra is not UNSET:
                out.append(Delta(index, part, function.arguments or "", UNSET, extra))


def _words_alone(chunk: _Chunk) -> str | None:
    """The content of a chunk that holds nothing else."""
    if len(chunk.choices) != 1 or chunk.usage is not None:
        return None
    choice = chunk.choices[0]
    delta = choice.delta
    if delta is None or choice.finish_reason is not None or choice.logprobs is not None:
        return None
    if delta.tool_calls is not None or delta.reasoning_content is not None or delta.refusal is not None:
        return None
    return delta.content


def _unnumbered(state: _ChoiceState, call: Call, place: int) -> int:
    # Without an index, a new id begins a call and its absence goes on with the last.
    if call.id:
        return state.ids.get(call.id, len(state.calls))
    return max(len(state.calls) - 1, place)


_NO_EXTRA = Extra(dialect=DIALECT)


def _around(extra: Extra, envelope: dict[str, Any] | None) -> Extra | UnsetType:
    if not (extra.choice or extra.item or envelope):
        return UNSET
    return Extra(dialect=DIALECT, envelope=envelope or {}, choice=extra.choice, item=extra.item)


# --- the other way -------------------------------------------------------------------------------------------------

_string = msgspec.json.Encoder().encode
_PLAIN = b'},"logprobs":null,"finish_reason":null}]'
_FIELDS: dict[PartKind, str] = {"text": "content", "reasoning": "reasoning_content", "refusal": "refusal"}


class ChunkEncoder:
    """One stream's events to server-sent chunks. `model` is the name that was asked for. One per stream.

    Audio, images and opaque parts have no place in this dialect's stream: they are left out.
    """

    def __init__(self, model: str, include_usage: bool) -> None:
        self._model = model
        self._include_usage = include_usage
        self._head = b""
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._first: dict[str, Any] = {}  # what the upstream's first chunk has around its choices
        # What stands before a text-like part's words (kept out of here: all others).
        self._prefixes: dict[tuple[int, int], bytes] = {}
        self._kinds: dict[tuple[int, int], PartKind] = {}
        self._calls: dict[tuple[int, int], int] = {}  # the part's number among its choice's calls
        self._roles: set[int] = set()

    def encode(self, batch: Batch) -> bytes:
        """The chunks of a batch of events; empty when none of them shows in this dialect."""
        out: list[bytes] = []
        for event in batch:
            if type(event) is Delta and event.logprobs is UNSET and event.extra is UNSET:
                prefix = self._prefixes.get((event.choice, event.part))
                if prefix is not None:
                    out += (prefix, _string(event.data), _PLAIN, self._tail)
                    continue
            self._other(event, out)
        return b"".join(out)

    def _other(self, event: Event, out: list[bytes]) -> None:
        match event:
            case Delta():
                self._delta(event, out)
            case Opened():
                self._opened(event, out)
            case Finished():
                self._role(event.choice, None, out)
                self._choice(out, event.choice, {}, finish_reason=encode_reason(event), extra=event.extra)
            case Started():
                self._head = self._make_head(event)
                if event.extra is not UNSET and event.extra.dialect == DIALECT:
                    self._first = event.extra.envelope
            case Usage() if event.final and self._include_usage:
                around = event.extra.envelope if event.extra is not UNSET and event.extra.dialect == DIALECT else {}
                out += (self._head, b'[],"usage":', _string(encode_usage(event)), _ending(b"}\n\n", around))
            case Usage() | Closed() | Annotated() | Notice() | Result():
                pass

    def _make_head(self, event: Started) -> bytes:
        envelope: dict[str, Any] = {
            "id": completion_id(event.id),
            "object": "chat.completion.chunk",
            "created": event.created,
            "model": self._model,
        }
        if event.tier is not UNSET:
            envelope["service_tier"] = event.tier
        if event.fingerprint is not UNSET:
            envelope["system_fingerprint"] = event.fingerprint
        return b"data: " + _string(envelope)[:-1] + b',"choices":'

    def _opened(self, event: Opened, out: list[bytes]) -> None:
        choice, key = event.choice, (event.choice, event.part)
        self._kinds[key] = event.kind
        if event.kind == "tool":
            self._role(choice, None, out)
            number = self._calls[key] = sum(c == choice for c, _ in self._calls)
            function = {"name": "" if event.name is UNSET else event.name, "arguments": ""}
            call = {"index": number, "id": event.id, "type": "function", "function": function}
            self._choice(out, choice, {"tool_calls": [call]})
        elif field := _FIELDS.get(event.kind):
            if event.kind == "text" and choice in self._roles:
                self._choice(out, choice, {"content": ""})
            self._role(choice, "" if event.kind == "text" else None, out)
            self._prefixes[key] = self._head + b'[{"index":%d,"delta":{"%b":' % (choice, field.encode())

    def _role(self, choice: int, content: str | None, out: list[bytes]) -> None:
        if choice not in self._roles:
            self._roles.add(choice)
            self._choice(out, choice, {"role": "assistant", "content": content, "refusal": None})

    def _delta(self, event: Delta, out: list[bytes]) -> None:
        key = event.choice, event.part
        kind = self._kinds[key]
        if kind == "tool":
            call = {"index": self._calls[key], "function": {"arguments": event.data}}
            delta: dict[str, Any] = {"tool_calls": [encode_call(call, event.extra)]}
            self._choice(out, event.choice, delta, extra=_beside(event.extra))
            return
        prefix, extra, logprobs = self._prefixes.get(key), event.extra, None
        if prefix and event.logprobs is UNSET and extra is not UNSET and not (extra.choice or extra.item):
            around = extra.envelope if extra.dialect == DIALECT else {}
            out += (prefix, _string(event.data), _PLAIN, _ending(self._tail, around))
            return
        if event.logprobs is not UNSET:
            given = [encode_logprob(lp) for lp in event.logprobs]
            logprobs = {"content": None, "refusal": given} if kind == "refusal" else {"content": given, "refusal": None}
        if field := _FIELDS.get(kind):
            self._choice(out, event.choice, {field: event.data}, logprobs=logprobs, extra=event.extra)

    def _choice(
        self,
        out: list[bytes],
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: Any = None,
        finish_reason: str | None = None,
        extra: Extra | UnsetType = UNSET,
    ) -> None:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        around, self._first = self._first, {}
        if extra is not UNSET and extra.dialect == DIALECT:
            delta.update(extra.item)
            choice = graft(choice, extra.choice)
            around = {**around, **extra.envelope}
        out += (self._head, _string([choice]), _ending(self._tail, around))


def _ending(tail: bytes, around: dict[str, Any]) -> bytes:
    """A chunk's end, with more fields beside its choices."""
    return tail[:-3] + b"," + _string(around)[1:-1] + tail[-3:] if around else tail


def _beside(extra: Extra | UnsetType) -> Extra | UnsetType:
    """What a tool call's extra holds that is not the call's own."""
    return extra if extra is UNSET else Extra(dialect=extra.dialect, envelope=extra.envelope, choice=extra.choice)

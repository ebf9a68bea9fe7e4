"""Whole chat answers: OpenAI's `chat.completion` to events, and an `Answer` to a `chat.completion`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from llmg.core.assemble import Answer, AnswerPart, Choice
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.events import Closed, Delta, Event, Extra, Finished, Opened, PartKind, Reason, Started, TokenLogprob
from llmg.core.usage import Usage
from llmg.wire.openai import DIALECT
from llmg.wire.openai.errors import decode_error
from llmg.wire.openai.fields import graft, split

REASONS = frozenset(get_args(Reason)) - {"other"}
KEPT: Final = "(kept)"  # no upstream has a field of this name: here the long way puts what is unknown


class Strict(Struct, forbid_unknown_fields=True):
    """Refuses what it does not know, so that the long way can keep it."""


class Logprob(Strict):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[Logprob] | None = None
    kept: dict[str, Any] | None = field(default=None, name=KEPT)


class Logprobs(Strict):
    content: list[Logprob] | None = None
    refusal: list[Logprob] | None = None


class _InputDetails(Strict):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None


class _OutputDetails(Strict):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class TokenCounts(Strict):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class Function(Strict):
    name: str | None = None
    arguments: str | None = None


class Call(Strict):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: Function | None = None
    kept: dict[str, Any] | None = field(default=None, name=KEPT)


class _Message(Strict):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class _Choice(Strict):
    message: _Message
    index: int | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class _Completion(Strict):
    choices: list[_Choice]
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    usage: TokenCounts | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


_strict = msgspec.json.Decoder(_Completion).decode


def decode_answer(body: bytes, context: Context) -> list[Event]:
    """The events of a whole answer. Raises Failure (upstream_protocol) when the body is none."""
    try:
        return _events(_strict(body), context, UNSET, ())
    except msgspec.ValidationError:
        return _decode_loose(body, context)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unreadable("answer", error) from None


def unreadable(what: str, error: Exception | str) -> Failure:
    """The upstream said something that this dialect does not have."""
    return Failure(Kind.UPSTREAM_PROTOCOL, f"the upstream's {what} can't be read", detail=str(error))


def _decode_loose(body: bytes, context: Context) -> list[Event]:
    try:
        given = msgspec.json.decode(body, type=dict[str, Any])
        if given.get("error"):
            raise decode_error(200, body)
        known, envelope = split(given, _Completion)
        if "choices" not in known:
            raise unreadable("answer", "it has no choices")
        loosened = [loosen(raw, _Choice, "message", _Message) for raw in known["choices"] or ()]
        usage, more = split_usage(known.get("usage"))
        choices = [choice for choice, _ in loosened]
        whole = msgspec.convert({**known, "choices": choices, "usage": usage}, _Completion)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError, TypeError) as error:
        raise unreadable("answer", error) from None
    return _events(whole, context, Extra(dialect=DIALECT, envelope=envelope), [extra for _, extra in loosened], more)


def loosen(
    raw: dict[str, Any], choice_type: type[Struct], name: str, item_type: type[Struct]
) -> tuple[dict[str, Any], Extra]:
    """A choice as the strict structs take it, and what they would have refused in it.

    `name` and `item_type` are those of its message or delta. What is unknown in a tool call or in a token's log
    probabilities stays there, as `KEPT`.
    """
    choice, at_choice = split(raw, choice_type)
    item, at_item = split(_thoughts(choice.get(name) or {}), item_type)
    calls = [_loosen_call(call) for call in item.get("tool_calls") or ()]
    choice = {**choice, name: {**item, "tool_calls": calls or None}}
    if isinstance(choice.get("logprobs"), dict):
        lists, more = split(choice["logprobs"], Logprobs)
        choice["logprobs"] = {name: _loosen_logprobs(lps) for name, lps in lists.items()}
        at_choice = {**at_choice, "logprobs": more} if more else at_choice
    return choice, Extra(dialect=DIALECT, choice=at_choice, item=at_item)


def _thoughts(item: dict[str, Any]) -> dict[str, Any]:
    """Another name that upstreams have for the model's thoughts is read as the usual one."""
    if isinstance(item.get("reasoning"), str) and not item.get("reasoning_content"):
        renamed = {name: value for name, value in item.items() if name != "reasoning"}
        return {**renamed, "reasoning_content": item["reasoning"]}
    return item


def _loosen_call(given: dict[str, Any]) -> dict[str, Any]:
    call, extra = split(given, Call)
    if call.get("type") not in (None, "function"):
        extra = {**extra, "type": call["type"]}
    if isinstance(call.get("function"), dict):
        function, more = split(call["function"], Function)
        call = {**call, "function": function}
        extra = {**extra, "function": more} if more else extra
    return {**call, KEPT: extra or None}


def _loosen_logprobs(given: Any) -> Any:
    return [_loosen_logprob(lp) for lp in given] if isinstance(given, list) else given


def _loosen_logprob(given: dict[str, Any]) -> dict[str, Any]:
    known, extra = split(given, Logprob)
    return {**known, "top_logprobs": _loosen_logprobs(known.get("top_logprobs")), KEPT: extra or None}


_DETAILS: dict[str, type[Struct]] = {
    "prompt_tokens_details": _InputDetails,
    "completion_tokens_details": _OutputDetails,
}


def split_usage(usage: dict[str, Any] | None) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(the token counts we know, what else was said)."""
    if usage is None:
        return None, {}
    counts, extra = split(usage, TokenCounts)
    for name, struct in _DETAILS.items():
        if isinstance(counts.get(name), dict):
            known, more = split(counts[name], struct)
            counts = {**counts, name: known}
            extra = {**extra, name: more} if more else extra
    return counts, extra


def _events(
    whole: _Completion,
    context: Context,
    envelope: Extra | UnsetType,
    extras: Iterable[Extra],
    usage_extra: dict[str, Any] | None = None,
) -> list[Event]:
    out: list[Event] = [started(whole, context, envelope)]
    kept = list(extras)
    indexes = [place if choice.index is None else choice.index for place, choice in enumerate(whole.choices)]
    if len(set(indexes)) < len(indexes):
        raise unreadable("answer", "several choices have the same index")
    for place, choice in enumerate(whole.choices):
        _choice_events(indexes[place], choice, kept[place] if kept else UNSET, context, out)
    if whole.usage is not None:
        out.append(decode_usage(whole.usage, usage_extra))
    return out


def started(whole: Any, context: Context, extra: Extra | UnsetType) -> Started:
    """The first event, from the envelope of a completion or of a stream's first chunk."""
    return Started(
        context.id,
        int(whole.created) if whole.created else context.created,
        whole.model or "",
        UNSET if whole.system_fingerprint is None else whole.system_fingerprint,
        UNSET if whole.service_tier is None else whole.service_tier,
        UNSET if whole.id is None else whole.id,
        UNSET if extra is UNSET or not extra.envelope else extra,
    )


def _choice_events(index: int, choice: _Choice, extra: Extra | UnsetType, context: Context, out: list[Event]) -> None:
    message, parts = choice.message, 0
    logprobs = choice.logprobs or _NO_LOGPROBS

    def part(kind: PartKind, data: str, lps: Any = UNSET, id: Any = UNSET, name: Any = UNSET, own: Any = UNSET) -> None:
        nonlocal parts
        out.append(Opened(index, parts, kind, id, name))
        if data or lps is not UNSET or own is not UNSET:
            out.append(Delta(index, parts, data, lps, own))
        out.append(Closed(index, parts))
        parts += 1

    if message.reasoning_content:
        part("reasoning", message.reasoning_content)
    blank = message.content is not None and not (message.tool_calls or message.refusal)
    if message.content or logprobs.content or blank:
        part("text", message.content or "", decode_logprobs(logprobs.content))
    if message.refusal or logprobs.refusal:
        part("refusal", message.refusal or "", decode_logprobs(logprobs.refusal))
    for call in message.tool_calls or ():
        function = call.function or NO_FUNCTION
        id = call.id or call_id(context, index, parts)
        part("tool", function.arguments or "", id=id, name=function.name or "", own=call_extra(call))
    out.append(decode_finish(index, choice.finish_reason or "stop", extra))


_NO_LOGPROBS = Logprobs()
NO_FUNCTION = Function()


def call_id(context: Context, choice: int, part: int) -> str:
    """An id for a tool call that the upstream gave none."""
    return f"call_{context.id}_{choice}_{part}"


def call_extra(call: Call) -> Extra | UnsetType:
    """What is unknown in a tool call."""
    return UNSET if call.kept is None else Extra(dialect=DIALECT, item=call.kept)


def decode_finish(choice: int, word: str, extra: Extra | UnsetType = UNSET) -> Finished:
    """A finish reason: one of ours, or `other` with the upstream's own word."""
    kept = UNSET if extra is UNSET or not (extra.choice or extra.item or extra.envelope) else extra
    if word in REASONS:
        return Finished(choice, cast(Reason, word), extra=kept)
    return Finished(choice, "other", word, extra=kept)


def decode_logprobs(given: list[Logprob] | None) -> tuple[TokenLogprob, ...] | UnsetType:
    """The dialect's token log probabilities as ours."""
    return tuple([_logprob(lp) for lp in given]) if given else UNSET


def _logprob(given: Logprob) -> TokenLogprob:
    return TokenLogprob(
        given.token,
        given.logprob,
        None if given.bytes is None else tuple(given.bytes),
        tuple([_logprob(top) for top in given.top_logprobs or ()]),
        UNSET if given.kept is None else given.kept,
    )


_NO_INPUT, _NO_OUTPUT = _InputDetails(), _OutputDetails()


def decode_usage(
    given: TokenCounts, extra: dict[str, Any] | None = None, envelope: dict[str, Any] | None = None
) -> Usage:
    """The dialect's token counts as ours; `extra` is what else was said in them, `envelope` around them."""
    ins = given.prompt_tokens_details or _NO_INPUT
    outs = given.completion_tokens_details or _NO_OUTPUT
    asked, answered = given.prompt_tokens or 0, given.completion_tokens or 0
    if given.total_tokens is not None and given.total_tokens != asked + answered:
        extra = {**(extra or {}), "total_tokens": given.total_tokens}
    kept = Extra(dialect=DIALECT, envelope=envelope or {}, item=extra or {}) if extra or envelope else UNSET
    return Usage(
        input_tokens=asked,
        output_tokens=answered,
        cached_tokens=ins.cached_tokens or 0,
        cache_written_tokens=ins.cache_write_tokens or 0,
        input_audio_tokens=ins.audio_tokens or 0,
        reasoning_tokens=outs.reasoning_tokens or 0,
        output_audio_tokens=outs.audio_tokens or 0,
        accepted_prediction_tokens=outs.accepted_prediction_tokens or 0,
        rejected_prediction_tokens=outs.rejected_prediction_tokens or 0,
        extra=kept,
    )


# --- the other way -------------------------------------------------------------------------------------------------


def encode_answer(answer: Answer, model: str) -> bytes:
    """A `chat.completion`; `model` is the name that was asked for."""
    start = answer.started
    body: dict[str, Any] = {
        "id": completion_id(start.id),
        "object": "chat.completion",
        "created": start.created,
        "model": model,
        "choices": [_encode_choice(choice) for choice in answer.choices],
    }
    if answer.usage is not UNSET:
        body["usage"] = encode_usage(answer.usage)
    if start.tier is not UNSET:
        body["service_tier"] = start.tier
    if start.fingerprint is not UNSET:
        body["system_fingerprint"] = start.fingerprint
    if answer.extra is not UNSET and answer.extra.dialect == DIALECT:
        body.update(answer.extra.envelope)
    return msgspec.json.encode(body)


def completion_id(id: str) -> str:
    """Our id in the dialect's form."""
    return "chatcmpl-" + id


def _encode_choice(choice: Choice) -> dict[str, Any]:
    texts = [p for p in choice.parts if p.kind == "text"]
    refusals = [p for p in choice.parts if p.kind == "refusal"]
    thoughts = [p for p in choice.parts if p.kind == "reasoning"]
    calls = [p for p in choice.parts if p.kind == "tool"]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": _text(texts) if texts else None,
        "refusal": _text(refusals) if refusals else None,
    }
    if thoughts:
        message["reasoning_content"] = _text(thoughts)
    if calls:
        message["tool_calls"] = [
            encode_call({"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.data}}, c.extra)
            for c in calls
        ]
    out: dict[str, Any] = {
        "index": choice.index,
        "message": message,
        "logprobs": _encode_all_logprobs(texts, refusals),
        "finish_reason": encode_reason(choice),
    }
    if choice.extra is not UNSET and choice.extra.dialect == DIALECT:
        message.update(choice.extra.item)
        out = graft(out, choice.extra.choice)
    return out


def encode_reason(ended: Choice | Finished) -> str:
    """Why a choice ended, in the dialect's words; in the upstream's own where there is none."""
    return ended.native_reason if ended.reason == "other" and ended.native_reason is not UNSET else ended.reason


def encode_call(call: dict[str, Any], extra: Extra | UnsetType) -> dict[str, Any]:
    """A tool call with what was unknown in it; one that is no function's loses the `function` we gave it."""
    if extra is UNSET or extra.dialect != DIALECT:
        return call
    if extra.item.get("type", "function") != "function":
        call = {name: value for name, value in call.items() if name != "function"}
    return graft(call, extra.item)


def _text(parts: Iterable[AnswerPart]) -> str:
    return "".join(part.data for part in parts if isinstance(part.data, str))


def _encode_all_logprobs(texts: list[AnswerPart], refusals: list[AnswerPart]) -> dict[str, Any] | None:
    content, refusal = _gathered(texts), _gathered(refusals)
    if content is None and refusal is None:
        return None
    return {"content": content, "refusal": refusal}


def _gathered(parts: list[AnswerPart]) -> list[dict[str, Any]] | None:
    given = [part.logprobs for part in parts if part.logprobs is not UNSET]
    return [encode_logprob(lp) for lps in given for lp in lps] if given else None


def encode_logprob(lp: TokenLogprob) -> dict[str, Any]:
    """One token's, with its rivals."""
    own = {"token": lp.token, "logprob": lp.logprob, "bytes": lp.bytes}
    tops = [{"token": top.token, "logprob": top.logprob, "bytes": top.bytes, **_more(top)} for top in lp.top]
    return {**own, "top_logprobs": tops, **_more(lp)}


def _more(lp: TokenLogprob) -> Mapping[str, Any]:
    return {} if lp.extra is UNSET else lp.extra


def encode_usage(usage: Usage) -> dict[str, Any]:
    """Token counts in the dialect's names."""
    counts = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_written_tokens,
            "audio_tokens": usage.input_audio_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.output_audio_tokens,
            "accepted_prediction_tokens": usage.accepted_prediction_tokens,
            "rejected_prediction_tokens": usage.rejected_prediction_tokens,
        },
    }
    return graft(counts, usage.extra.item) if usage.extra is not UNSET and usage.extra.dialect == DIALECT else counts

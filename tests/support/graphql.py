"""The GraphQL door's answers back to core values: what a client that asks for every field would do with them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from msgspec import UNSET

from llmg.core.events import Annotated, Closed, Delta, Event, Finished, Notice, Opened, Started, TokenLogprob
from llmg.core.usage import Usage

_LOGPROBS = "logprobs { token logprob bytes top { token logprob bytes } }"
USAGE = """inputTokens outputTokens cachedTokens cacheWrittenTokens reasoningTokens inputAudioTokens outputAudioTokens
  acceptedPredictionTokens rejectedPredictionTokens estimated final"""
STREAM = f"""subscription ($input: ChatInput!, $timeout: Float) {{
  chatCompletion(input: $input, timeout: $timeout) {{ events {{ __typename
  ... on Started {{ id created model systemFingerprint serviceTier }}
  ... on Opened {{ choice part kind toolId: id name }}
  ... on Delta {{ choice part text data {_LOGPROBS} }}
  ... on Annotated {{ choice part annotation }}
  ... on Closed {{ choice part }}
  ... on Finished {{ choice reason nativeReason stopSequence }}
  ... on Usage {{ {USAGE} }}
  ... on Notice {{ noticeKind: kind noticeData: data }}
}} }} }}"""
WHOLE = f"""mutation ($input: ChatInput!, $timeout: Float) {{
  createChatCompletion(input: $input, timeout: $timeout) {{
  id created model systemFingerprint serviceTier
  choices {{ index finishReason nativeReason stopSequence parts {{ kind text data toolId: id name {_LOGPROBS} }} }}
  usage {{ {USAGE} }}
}} }}"""


def input_of(value: Any) -> Any:
    """The JSON of chat.proto as GraphQL's input: enum values lose their prefix."""
    if isinstance(value, dict):
        return {name: input_of(one) for name, one in value.items()}
    if isinstance(value, list):
        return [input_of(one) for one in value]
    return value.removeprefix("ROLE_").removeprefix("MODE_") if isinstance(value, str) else value


def events(payloads: Iterable[dict[str, Any]]) -> list[Event]:
    """All events of a stream."""
    return [event(one) for payload in payloads for one in payload["events"]]


def _set(given: dict[str, Any], name: str) -> Any:
    return UNSET if given.get(name) is None else given[name]


def _said(given: dict[str, Any]) -> str | bytes:
    return base64.b64decode(given["data"]) if given["data"] is not None else given["text"] or ""


def _logprobs(given: list[dict[str, Any]]) -> Any:
    return tuple(_logprob(one) for one in given) or UNSET


def _logprob(given: dict[str, Any]) -> TokenLogprob:
    own = None if given["bytes"] is None else tuple(base64.b64decode(given["bytes"]))
    return TokenLogprob(given["token"], given["logprob"], own, tuple(_logprob(one) for one in given.get("top", ())))


def usage(given: dict[str, Any]) -> Usage:
    """Token counts."""
    return Usage(
        input_tokens=given["inputTokens"],
        output_tokens=given["outputTokens"],
        cached_tokens=given["cachedTokens"],
        cache_written_tokens=given["cacheWrittenTokens"],
        reasoning_tokens=given["reasoningTokens"],
        input_audio_tokens=given["inputAudioTokens"],
        output_audio_tokens=given["outputAudioTokens"],
        accepted_prediction_tokens=given["acceptedPredictionTokens"],
        rejected_prediction_tokens=given["rejectedPredictionTokens"],
        source="estimated" if given["estimated"] else "upstream",
        final=given["final"],
    )


def _started(given: dict[str, Any]) -> Started:
    return Started(
        given["id"], given["created"], given["model"], _set(given, "systemFingerprint"), _set(given, "serviceTier")
    )


def _opened(given: dict[str, Any], choice: int, part: int) -> Opened:
    return Opened(choice, part, given["kind"].lower(), _set(given, "toolId"), _set(given, "name"))


def event(given: dict[str, Any]) -> Event:
    """One event."""
    decoded: Event = _DECODE[given["__typename"]](given)
    return decoded


_DECODE: dict[str, Any] = {
    "Started": _started,
    "Opened": lambda g: _opened(g, g["choice"], g["part"]),
    "Delta": lambda g: Delta(g["choice"], g["part"], _said(g), _logprobs(g["logprobs"])),
    "Annotated": lambda g: Annotated(g["choice"], g["part"], g["annotation"]),
    "Closed": lambda g: Closed(g["choice"], g["part"]),
    "Finished": lambda g: Finished(g["choice"], g["reason"].lower(), _set(g, "nativeReason"), _set(g, "stopSequence")),
    "Usage": usage,
    "Notice": lambda g: Notice(g["noticeKind"], g["noticeData"]),
}


def whole(given: dict[str, Any]) -> list[Event]:
    """A whole answer, as the events that it was made of."""
    out: list[Event] = [_started(given)]
    for choice in given["choices"]:
        for number, part in enumerate(choice["parts"]):
            out.append(_opened(part, choice["index"], number))
            if said := _said(part):
                out.append(Delta(choice["index"], number, said, _logprobs(part["logprobs"])))
            out.append(Closed(choice["index"], number))
        out.append(
            Finished(
                choice["index"],
                choice["finishReason"].lower(),
                _set(choice, "nativeReason"),
                _set(choice, "stopSequence"),
            )
        )
    if given["usage"] is not None:
        out.append(usage(given["usage"]))
    return out

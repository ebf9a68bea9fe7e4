"""The gateway's own messages back to core values: what a client of ours would do with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import json_format
from msgspec import UNSET, UnsetType

from llmg.core.events import (
    Annotated,
    Closed,
    Delta,
    Event,
    Finished,
    Notice,
    Opened,
    PartKind,
    Reason,
    Started,
    TokenLogprob,
)
from llmg.core.usage import Usage
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.wire.gateway import KINDS, REASONS

PART_KINDS: dict[int, PartKind] = {number: kind for kind, number in KINDS.items()}  # type: ignore[misc]
FINISH_REASONS: dict[int, Reason] = {number: reason for reason, number in REASONS.items()}  # type: ignore[misc]


def events(messages: Iterable[pb.CreateChatCompletionStreamResponse]) -> list[Event]:
    """All events of a stream."""
    return [event(one) for message in messages for one in message.events]


def event(given: pb.ChatEvent) -> Event:
    """One event."""
    kind = given.WhichOneof("kind")
    assert kind is not None
    decoded: Event = DECODE[kind](getattr(given, kind))
    return decoded


def _set(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else UNSET


def _logprobs(given: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...] | UnsetType:
    return tuple(_logprob(lp) for lp in given) or UNSET


def _logprob(given: pb.TokenLogprob) -> TokenLogprob:
    own = tuple(given.bytes) if given.HasField("bytes") else None
    return TokenLogprob(given.token, given.logprob, own, tuple(_logprob(top) for top in given.top))


def usage(given: pb.Usage) -> Usage:
    """Token counts."""
    counts = {field.name: getattr(given, field.name) for field in given.DESCRIPTOR.fields if field.name != "estimated"}
    return Usage(**counts, source="estimated" if given.estimated else "upstream")


DECODE: dict[str, Any] = {
    "started": lambda g: Started(g.id, g.created, g.model, _set(g, "system_fingerprint"), _set(g, "service_tier")),
    "opened": lambda g: Opened(g.choice, g.part, PART_KINDS[g.kind], _set(g, "id"), _set(g, "name")),
    "delta": lambda g: Delta(g.choice, g.part, g.data or g.text, _logprobs(g.logprobs)),
    "annotated": lambda g: Annotated(g.choice, g.part, json_format.MessageToDict(g.annotation)),
    "closed": lambda g: Closed(g.choice, g.part),
    "finished": lambda g: Finished(
        g.choice, FINISH_REASONS[g.reason], _set(g, "native_reason"), _set(g, "stop_sequence")
    ),
    "usage": usage,
    "notice": lambda g: Notice(g.kind, json_format.MessageToDict(g.data)),
}


def whole(given: pb.ChatCompletion) -> list[Event]:
    """A whole answer, as the events that it was made of."""
    out: list[Event] = [
        Started(given.id, given.created, given.model, _set(given, "system_fingerprint"), _set(given, "service_tier"))
    ]
    for choice in given.choices:
        for number, part in enumerate(choice.parts):
            out.append(
                Opened(choice.index, number, PART_KINDS[part.kind], _set(part, "id"), _set(part, "name")),
            )
            if said := part.data or part.text:
                out.append(Delta(choice.index, number, said, _logprobs(part.logprobs)))
            out.append(Closed(choice.index, number))
        out.append(
            Finished(
                choice.index,
                FINISH_REASONS[choice.finish_reason],
                _set(choice, "native_reason"),
                _set(choice, "stop_sequence"),
            )
        )
    if given.HasField("usage"):
        out.append(usage(given.usage))
    return out

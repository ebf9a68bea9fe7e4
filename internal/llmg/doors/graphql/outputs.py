"""What this door answers with: the gateway's gRPC messages, in GraphQL's manner; and how to make it of core values."""

from __future__ import annotations

from array import array
from enum import Enum
from typing import Annotated as Typed
from typing import Final, TypeAlias

import strawberry
from msgspec import UNSET, UnsetType
from strawberry.scalars import JSON, Base64

from llmg.core import assemble, events
from llmg.core.errors import Failure, Kind
from llmg.core.usage import Usage as CoreUsage
from llmg.doors.graphql.scalars import Int64
from llmg.services.models import Model as ServedModel


@strawberry.enum(description="Why an answer ended.")
class FinishReason(Enum):
    """See `core.events.Reason`."""

    STOP = strawberry.enum_value("stop", description="The model had said all, or a stop text came.")
    LENGTH = strawberry.enum_value("length", description="maxTokens, or the context's end.")
    TOOL_CALLS = strawberry.enum_value("tool_calls", description="The model calls tools.")
    CONTENT_FILTER = strawberry.enum_value("content_filter", description="A filter.")
    FUNCTION_CALL = strawberry.enum_value("function_call", description="The model calls a function, in the old way.")
    OTHER = strawberry.enum_value("other", description="What nativeReason says.")


@strawberry.enum(description="What kind of part an answer's part is.")
class PartKind(Enum):
    """See `core.events.PartKind`."""

    TEXT = strawberry.enum_value("text", description="Words.")
    REASONING = strawberry.enum_value("reasoning", description="Thoughts.")
    REFUSAL = strawberry.enum_value("refusal", description="Words for not answering.")
    TOOL = strawberry.enum_value("tool", description="A call of a tool: its arguments.")
    AUDIO = strawberry.enum_value("audio", description="Sound.")
    IMAGE = strawberry.enum_value("image", description="A picture.")
    OPAQUE = strawberry.enum_value("opaque", description="Something of one dialect alone.")


KINDS: Final = {kind.name.lower(): kind for kind in PartKind}
REASONS: Final = {reason.name.lower(): reason for reason in FinishReason}


@strawberry.interface(description="Whatever has an id of its own.")
class Node:
    """Relay's."""

    id: strawberry.ID = strawberry.field(description="The id, by which `node` finds it.")


@strawberry.type(description="A model that may be asked for.")
class Model(Node):
    """A model; its id is its name."""

    created: Int64 = strawberry.field(description="When it was declared, Unix time in seconds.")
    owned_by: str = strawberry.field(description="The providers behind it.")
    operations: list[str] = strawberry.field(description="What it can do: chat, embed.")


@strawberry.type(description="A token and how likely it was.")
class TokenLogprob:
    """See `core.events.TokenLogprob`."""

    token: str = strawberry.field(description="The token.")
    logprob: float = strawberry.field(description="The natural logarithm of its probability.")
    bytes: Base64 | None = strawberry.field(
        description="The token's bytes, where it is part of a character.", default=None
    )
    top: list[TokenLogprob] = strawberry.field(description="Its rivals at that place.", default_factory=list)


@strawberry.type(description="What an answer cost, in tokens. The details are parts of the totals.")
class Usage:
    """See `core.usage.Usage`."""

    input_tokens: int = strawberry.field(description="Tokens of the prompt.")
    output_tokens: int = strawberry.field(description="Tokens of the answer.")
    cached_tokens: int = strawberry.field(description="Of the prompt's, those from a cache.")
    cache_written_tokens: int = strawberry.field(description="Of the prompt's, those written to a cache.")
    reasoning_tokens: int = strawberry.field(description="Of the answer's, those of thoughts.")
    input_audio_tokens: int = strawberry.field(description="Of the prompt's, those of sound.")
    output_audio_tokens: int = strawberry.field(description="Of the answer's, those of sound.")
    accepted_prediction_tokens: int = strawberry.field(description="Predicted tokens that came true.")
    rejected_prediction_tokens: int = strawberry.field(description="Predicted tokens that did not.")
    estimated: bool = strawberry.field(description="Counted by us, as the upstream did not say.")
    final: bool = strawberry.field(description="In a stream: no later count comes.")


@strawberry.type(description="A piece of an answer.")
class AnswerPart:
    """See `core.assemble.AnswerPart`."""

    kind: PartKind = strawberry.field(description="What kind of piece.")
    text: str | None = strawberry.field(description="Text, or a tool call's arguments.")
    data: Base64 | None = strawberry.field(description="Sound or picture.")
    id: str | None = strawberry.field(description="A tool call's id.")
    name: str | None = strawberry.field(description="A tool call's function.")
    logprobs: list[TokenLogprob] = strawberry.field(description="The tokens' log probabilities, where asked for.")


@strawberry.type(description="One of the answers.")
class Choice:
    """See `core.assemble.Choice`."""

    index: int = strawberry.field(description="Its number, from 0.")
    text: str = strawberry.field(description="The parts of kind TEXT, joined.")
    parts: list[AnswerPart] = strawberry.field(description="What was said, in order.")
    finish_reason: FinishReason = strawberry.field(description="Why it ended.")
    native_reason: str | None = strawberry.field(
        description="The upstream's own word for it, where it is none of ours."
    )
    stop_sequence: str | None = strawberry.field(
        description="Which of the request's stop texts ended it, where the upstream says.", default=None
    )


@strawberry.type(description="A whole answer.")
class ChatCompletion:
    """See `core.assemble.Answer`."""

    id: strawberry.ID = strawberry.field(description="The answer's id.")
    created: Int64 = strawberry.field(description="When it was begun, Unix time in seconds.")
    model: str = strawberry.field(description="The model's name, as it was asked for.")
    choices: list[Choice] = strawberry.field(description="The answers, by index.")
    usage: Usage | None = strawberry.field(description="What it cost, where that is known.")
    system_fingerprint: str | None = strawberry.field(description="The state of the upstream's system.")
    service_tier: str | None = strawberry.field(description="The tier that served it.")


@strawberry.type(description="A vector.")
class Embedding:
    """See `core.events.Embedding`."""

    index: int = strawberry.field(description="The number of its input, from 0.")
    values: list[float] = strawberry.field(description="The vector.")


@strawberry.type(description="Vectors for texts.")
class CreateEmbeddingsPayload:
    """The answer to createEmbeddings."""

    model: str = strawberry.field(description="The model's name, as it was asked for.")
    embeddings: list[Embedding] = strawberry.field(description="One for each input, in order.")
    usage: Usage | None = strawberry.field(description="What it cost, where that is known.")


@strawberry.type(description="The upstream took the request.")
class Started:
    """See `core.events`."""

    id: strawberry.ID = strawberry.field(description="The answer's id.")
    created: Int64 = strawberry.field(description="When, Unix time in seconds.")
    model: str = strawberry.field(description="The model's name, as it was asked for.")
    system_fingerprint: str | None = strawberry.field(description="The state of the upstream's system.")
    service_tier: str | None = strawberry.field(description="The tier that serves it.")


@strawberry.type(description="A part begins.")
class Opened:
    """See `core.events`."""

    choice: int = strawberry.field(description="The choice's number.")
    part: int = strawberry.field(description="The part's number within it.")
    kind: PartKind = strawberry.field(description="What kind of part.")
    id: str | None = strawberry.field(description="A tool call's id.")
    name: str | None = strawberry.field(description="A tool call's function.")


@strawberry.type(description="More of a part.")
class Delta:
    """See `core.events`."""

    choice: int = strawberry.field(description="The choice's number.")
    part: int = strawberry.field(description="The part's number within it.")
    text: str | None = strawberry.field(description="Text, or more of a tool call's arguments.")
    data: Base64 | None = strawberry.field(description="Sound or picture.", default=None)
    logprobs: list[TokenLogprob] = strawberry.field(
        description="The tokens' log probabilities, where asked for.", default_factory=list
    )


@strawberry.type(description="Something is said about a part.")
class Annotated:
    """See `core.events`."""

    choice: int = strawberry.field(description="The choice's number.")
    part: int = strawberry.field(description="The part's number within it.")
    annotation: JSON = strawberry.field(description="A citation, a signature, a transcript ...")


@strawberry.type(description="A part is complete.")
class Closed:
    """See `core.events`."""

    choice: int = strawberry.field(description="The choice's number.")
    part: int = strawberry.field(description="The part's number within it.")


@strawberry.type(description="A choice is complete.")
class Finished:
    """See `core.events`."""

    choice: int = strawberry.field(description="The choice's number.")
    reason: FinishReason = strawberry.field(description="Why it ended.")
    native_reason: str | None = strawberry.field(
        description="The upstream's own word for it, where it is none of ours."
    )
    stop_sequence: str | None = strawberry.field(
        description="Which of the request's stop texts ended it, where the upstream says.", default=None
    )


@strawberry.type(description="Something about the answer that is not of it.")
class Notice:
    """See `core.events`."""

    kind: str = strawberry.field(description="switched, loss, cache, route.")
    data: JSON = strawberry.field(description="What there is to say.")


AnyEvent: TypeAlias = Started | Opened | Delta | Annotated | Closed | Finished | Usage | Notice
ChatEvent = Typed[
    AnyEvent,
    strawberry.union(
        "ChatEvent",
        description="One event of an answer. An answer is started once; within it choices, and within these parts, "
        "which are opened, grow by deltas and are closed; a choice is finished when its parts are closed.",
    ),
]


@strawberry.type(description="The events of one read of the model's stream.")
class ChatCompletionPayload:
    """What the subscription gives."""

    events: list[ChatEvent] = strawberry.field(description="One or more events, in order.")
    text: str = strawberry.field(description="What these events add to the text of the first choice.")


# --- from core values ----------------------------------------------------------------------------------------------


def encode_model(model: ServedModel) -> Model:
    """A model."""
    return Model(
        id=strawberry.ID(model.id),
        created=Int64(model.created),
        owned_by=model.owner,
        operations=list(model.operations),
    )


class EventEncoder:
    """One stream's events to payloads. `model` is the name that was asked for. One per stream."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._texts: set[int] = set()  # the first choice's parts of kind text

    def encode(self, batch: events.Batch) -> ChatCompletionPayload | None:
        """The events of a batch; None when there are none."""
        if not batch:
            return None
        shown: list[AnyEvent] = []
        said: list[str] = []
        for event in batch:
            if type(event) is events.Delta:
                shown.append(_delta(event))
                if event.choice == 0 and event.part in self._texts and type(event.data) is str:
                    said.append(event.data)
            else:
                shown.append(self._event(event))
        return ChatCompletionPayload(events=shown, text="".join(said))

    def _event(self, event: events.Event) -> AnyEvent:
        match event:
            case events.Opened():
                if event.choice == 0 and event.kind == "text":
                    self._texts.add(event.part)
                return Opened(
                    choice=event.choice,
                    part=event.part,
                    kind=KINDS[event.kind],
                    id=_put(event.id),
                    name=_put(event.name),
                )
            case events.Closed():
                return Closed(choice=event.choice, part=event.part)
            case events.Finished():
                return Finished(
                    choice=event.choice,
                    reason=REASONS[event.reason],
                    native_reason=_put(event.native_reason),
                    stop_sequence=_put(event.stop_sequence),
                )
            case events.Started():
                return Started(
                    id=strawberry.ID(event.id),
                    created=Int64(event.created),
                    model=self._model,
                    system_fingerprint=_put(event.fingerprint),
                    service_tier=_put(event.tier),
                )
            case CoreUsage():
                return _usage(event)
            case events.Annotated():
                return Annotated(choice=event.choice, part=event.part, annotation=JSON(event.annotation))
            case events.Notice():
                return Notice(kind=event.kind, data=JSON(event.data))
        raise Failure(Kind.UPSTREAM_PROTOCOL, "the upstream's answer is none of a chat")


def _delta(event: events.Delta) -> Delta:
    text, data = _data(event.data)
    if event.logprobs is UNSET:
        return Delta(choice=event.choice, part=event.part, text=text, data=data)
    return Delta(choice=event.choice, part=event.part, text=text, data=data, logprobs=_logprobs(event.logprobs))


def _put(value: str | UnsetType) -> str | None:
    return None if value is UNSET else value


def _data(data: str | bytes) -> tuple[str | None, Base64 | None]:
    return (data, None) if isinstance(data, str) else (None, Base64(data))


def _logprobs(given: tuple[events.TokenLogprob, ...] | UnsetType) -> list[TokenLogprob]:
    if given is UNSET:
        return []
    return [
        TokenLogprob(
            token=lp.token,
            logprob=lp.logprob,
            bytes=None if lp.bytes is None else Base64(bytes(lp.bytes)),
            top=_logprobs(lp.top),
        )
        for lp in given
    ]


def _usage(usage: CoreUsage) -> Usage:
    return Usage(
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


def encode_answer(answer: assemble.Answer, model: str) -> ChatCompletion:
    """A whole answer; `model` is the name that was asked for."""
    start = answer.started
    return ChatCompletion(
        id=strawberry.ID(start.id),
        created=Int64(start.created),
        model=model,
        choices=[_choice(choice) for choice in answer.choices],
        usage=None if answer.usage is UNSET else _usage(answer.usage),
        system_fingerprint=_put(start.fingerprint),
        service_tier=_put(start.tier),
    )


def _choice(choice: assemble.Choice) -> Choice:
    return Choice(
        index=choice.index,
        text="".join([part.data for part in choice.parts if part.kind == "text" and isinstance(part.data, str)]),
        parts=[_part(part) for part in choice.parts],
        finish_reason=REASONS[choice.reason],
        native_reason=_put(choice.native_reason),
        stop_sequence=_put(choice.stop_sequence),
    )


def _part(part: assemble.AnswerPart) -> AnswerPart:
    text, data = _data(part.data)
    return AnswerPart(
        kind=KINDS[part.kind],
        text=text,
        data=data,
        id=_put(part.id),
        name=_put(part.name),
        logprobs=_logprobs(part.logprobs),
    )


def encode_embeddings(answer: assemble.Answer, model: str) -> CreateEmbeddingsPayload:
    """Vectors; `model` is the name that was asked for."""
    if answer.result is UNSET:
        raise Failure(Kind.UPSTREAM_PROTOCOL, "the upstream's answer holds no vectors")
    return CreateEmbeddingsPayload(
        model=model,
        embeddings=[Embedding(index=v.index, values=_values(v)) for v in answer.result.vectors],
        usage=None if answer.usage is UNSET else _usage(answer.usage),
    )


def _values(vector: events.Embedding) -> list[float]:
    if not isinstance(vector.values, bytes):
        return list(vector.values)
    values = array("f")
    values.frombytes(vector.values)
    return values.tolist()

"""Answers: the contract's messages with short ways to what is mostly wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from llmg.client import types as t
from llmg.client.way import Way


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers. `parts` are all of it, in order."""

    index: int
    parts: Sequence[t.AnswerPart]
    finish_reason: t.FinishReason
    native_reason: str | None

    @property
    def text(self) -> str:
        """What it says."""
        return self._all(t.PartKind.TEXT)

    @property
    def reasoning(self) -> str:
        """What the model thought, as far as it shows."""
        return self._all(t.PartKind.REASONING)

    @property
    def refusal(self) -> str:
        """The model's words for not answering."""
        return self._all(t.PartKind.REFUSAL)

    @property
    def tool_calls(self) -> list[t.ToolCall]:
        """The calls that it makes, in order."""
        return [_tool_call(part) for part in self.parts if part.kind == t.PartKind.TOOL]

    @property
    def message(self) -> t.Message:
        """As a turn of the conversation, to go on with. Sound and pictures are not part of it."""
        parts = [_MESSAGE_PARTS[part.kind](part) for part in self.parts if part.kind in _MESSAGE_PARTS]
        return t.Message(role=t.Role.ASSISTANT, parts=parts)

    def _all(self, kind: t.PartKind) -> str:
        return "".join(part.text for part in self.parts if part.kind == kind)


def _tool_call(part: t.AnswerPart) -> t.ToolCall:
    return t.ToolCall(id=part.id or "", name=part.name or "", arguments=part.text)


_MESSAGE_PARTS: Final = {
    t.PartKind.TEXT: lambda part: t.Part(text=t.TextPart(text=part.text)),
    t.PartKind.REASONING: lambda part: t.Part(reasoning=t.ReasoningPart(text=part.text)),
    t.PartKind.REFUSAL: lambda part: t.Part(refusal=t.RefusalPart(text=part.text)),
    t.PartKind.TOOL: lambda part: t.Part(tool_call=_tool_call(part)),
}


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer. `raw` is the gateway's own message; `text`, `tool_calls` and so on are the first choice's."""

    raw: t.ChatCompletion
    way: Way

    @property
    def id(self) -> str:
        """The answer's id."""
        return self.raw.id

    @property
    def created(self) -> int:
        """When it was begun, Unix time in seconds."""
        return self.raw.created

    @property
    def model(self) -> str:
        """The model's name, as it was asked for."""
        return self.raw.model

    @property
    def choices(self) -> list[Choice]:
        """All answers, by index."""
        return [Choice(c.index, c.parts, c.finish_reason, c.native_reason) for c in self.raw.choices]

    @property
    def usage(self) -> t.Usage | None:
        """What it cost, where that is known."""
        return self.raw.usage

    @property
    def text(self) -> str:
        """What it says."""
        return self._first.text

    @property
    def reasoning(self) -> str:
        """What the model thought, as far as it shows."""
        return self._first.reasoning

    @property
    def refusal(self) -> str:
        """The model's words for not answering."""
        return self._first.refusal

    @property
    def tool_calls(self) -> list[t.ToolCall]:
        """The calls that it makes, in order."""
        return self._first.tool_calls

    @property
    def message(self) -> t.Message:
        """As a turn of the conversation, to go on with."""
        return self._first.message

    @property
    def finish_reason(self) -> t.FinishReason:
        """Why it ended; UNSPECIFIED for a stream that has not."""
        return self._first.finish_reason

    @property
    def request_id(self) -> str | None:
        """What the gateway's log names the request."""
        return self.way.request_id

    @property
    def route(self) -> str | None:
        """The target that answered, PROVIDER/MODEL."""
        return self.way.route

    @property
    def _first(self) -> Choice:
        return self.choices[0] if self.raw.choices else Choice(0, (), t.FinishReason.UNSPECIFIED, None)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors, in the order of the inputs. `raw` is the gateway's own message."""

    raw: t.CreateEmbeddingsResponse
    way: Way

    @property
    def vectors(self) -> list[list[float]]:
        """One for each input."""
        return [embedding.values for embedding in sorted(self.raw.embeddings, key=lambda e: e.index)]

    @property
    def model(self) -> str:
        """The model's name, as it was asked for."""
        return self.raw.model

    @property
    def usage(self) -> t.Usage | None:
        """What it cost, where that is known."""
        return self.raw.usage


class Assembly:
    """A whole answer from a stream's events; what has come so far may be had at any time."""

    def __init__(self) -> None:
        self.usage: t.Usage | None = None
        self._started = t.Started()
        self._parts: dict[tuple[int, int], _Part] = {}
        self._finished: dict[int, t.Finished] = {}

    def feed(self, event: t.Event) -> None:
        """One event more."""
        match event:
            case t.Delta():
                self._parts[event.choice, event.part].add(event)
            case t.Opened():
                self._parts[event.choice, event.part] = _Part(event)
            case t.Finished():
                self._finished[event.choice] = event
            case t.Started():
                self._started = event
            case t.Usage():
                self.usage = event
            case _:
                pass  # nothing that a whole answer tells

    def kind(self, choice: int, part: int) -> t.PartKind:
        """Of a part that has been opened."""
        return self._parts[choice, part].opened.kind

    def completion(self) -> t.ChatCompletion:
        """The answer, as far as it has come."""
        started = self._started
        numbers = sorted({choice for choice, _ in self._parts} | self._finished.keys())
        return t.ChatCompletion(
            id=started.id,
            created=started.created,
            model=started.model,
            choices=[self._choice(number) for number in numbers],
            usage=self.usage,
            system_fingerprint=started.system_fingerprint,
            service_tier=started.service_tier,
        )

    def _choice(self, number: int) -> t.Choice:
        finished = self._finished.get(number) or t.Finished()
        parts = [part.whole() for (choice, _), part in sorted(self._parts.items()) if choice == number]
        return t.Choice(index=number, parts=parts, finish_reason=finished.reason, native_reason=finished.native_reason)


class _Part:
    def __init__(self, opened: t.Opened) -> None:
        self.opened = opened
        self._text: list[str] = []
        self._data: list[bytes] = []
        self._logprobs: list[t.TokenLogprob] = []

    def add(self, delta: t.Delta) -> None:
        self._text.append(delta.text)
        self._data.append(delta.data)
        self._logprobs += delta.logprobs

    def whole(self) -> t.AnswerPart:
        return t.AnswerPart(
            kind=self.opened.kind,
            text="".join(self._text),
            data=b"".join(self._data),
            id=self.opened.id,
            name=self.opened.name,
            logprobs=list(self._logprobs),
        )


def events(messages: Iterable[t.ChatEvent]) -> list[t.Event]:
    """What they hold; kinds that a newer gateway has and we do not know are left out."""
    return [event for message in messages if (event := _event(message)) is not None]


def _event(message: t.ChatEvent) -> t.Event | None:
    for name in _KINDS:
        event: t.Event | None = getattr(message, name)
        if event is not None:
            return event
    return None


_KINDS: Final = ("delta", "opened", "closed", "started", "finished", "usage", "annotated", "notice")

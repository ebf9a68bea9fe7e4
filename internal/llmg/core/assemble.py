"""The unary answer, assembled from the events: one assembler for every provider and every door.

How `extra` merges: field by field, the last value wins. Log probabilities are concatenated. The last `Usage` holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from llmg.core.errors import Failure, Kind
from llmg.core.events import (
    Annotated,
    Closed,
    Delta,
    Embeddings,
    Event,
    Finished,
    Notice,
    Opened,
    PartKind,
    Reason,
    Result,
    Started,
    TokenLogprob,
)
from llmg.core.extra import Extra, merge
from llmg.core.usage import Usage


class AnswerPart(Struct, frozen=True, kw_only=True):
    """A whole part. `data` is text, or bytes for audio and images; for a tool the arguments' JSON.

    A tool call's `extra` is its own; what was said beside other parts is the choice's.
    """

    kind: PartKind
    data: str | bytes
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    logprobs: tuple[TokenLogprob, ...] | UnsetType = UNSET
    annotations: tuple[dict[str, Any], ...] = ()
    extra: Extra | UnsetType = UNSET


class Choice(Struct, frozen=True, kw_only=True):
    """A whole choice."""

    index: int
    parts: tuple[AnswerPart, ...]
    reason: Reason
    native_reason: str | UnsetType = UNSET
    stop_sequence: str | UnsetType = UNSET
    extra: Extra | UnsetType = UNSET


class Answer(Struct, frozen=True, kw_only=True):
    """A whole answer: of a chat its `choices`, in order of their index; of another operation its `result`."""

    started: Started
    choices: tuple[Choice, ...] = ()
    result: Embeddings | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET
    notices: tuple[Notice, ...] = ()
    extra: Extra | UnsetType = UNSET


class _Part:
    __slots__ = ("annotations", "data", "extra", "logprobs", "opened")

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.data: list[str | bytes] = []
        self.logprobs: list[TokenLogprob] | None = None
        self.annotations: list[dict[str, Any]] = []
        self.extra: Extra | UnsetType = UNSET

    def whole(self) -> AnswerPart:
        opened = self.opened
        return AnswerPart(
            kind=opened.kind,
            data=_joined(opened.kind, self.data),
            id=opened.id,
            name=opened.name,
            logprobs=UNSET if self.logprobs is None else tuple(self.logprobs),
            annotations=tuple(self.annotations),
            extra=self.extra,
        )


class _Assembly:
    def __init__(self) -> None:
        self.started: Started | None = None
        self.parts: dict[int, list[_Part]] = {}
        self.finished: dict[int, Finished] = {}
        self.extras: dict[int, Extra | UnsetType] = {}
        self.envelope: Extra | UnsetType = UNSET
        self.usage: Usage | UnsetType = UNSET
        self.result: Embeddings | UnsetType = UNSET
        self.notices: list[Notice] = []

    def feed(self, event: Event) -> None:
        match event:
            case Delta(choice, part, data, logprobs, extra):
                whole = self.parts[choice][part]
                whole.data.append(data)
                if logprobs is not UNSET:
                    whole.logprobs = (whole.logprobs or []) + list(logprobs)
                if extra is not UNSET:
                    self._keep(choice, self._beside(whole, extra))
            case Opened():
                self.parts.setdefault(event.choice, []).append(_Part(event))
            case Finished():
                self.finished[event.choice] = event
                self._keep(event.choice, event.extra)
            case Started():
                self.started = event
                self.envelope = event.extra
            case Usage():
                self._keep(None, event.extra)
                self.usage = _inner(event)
            case Annotated(choice, part, annotation):
                self.parts[choice][part].annotations.append(annotation)
            case Result(value, extra):
                self.result = value
                self._keep(None, extra)
            case Notice():
                self.notices.append(event)
            case Closed():
                pass

    @staticmethod
    def _beside(part: _Part, extra: Extra) -> Extra:
        """Keeps what is the tool call's own, gives the rest."""
        if part.opened.kind != "tool" or not extra.item:
            return extra
        part.extra = merge(part.extra, Extra(dialect=extra.dialect, item=extra.item))
        return Extra(dialect=extra.dialect, envelope=extra.envelope, choice=extra.choice)

    def _keep(self, choice: int | None, extra: Extra | UnsetType) -> None:
        if extra is UNSET:
            return
        if choice is not None and (extra.choice or extra.item):
            own = Extra(dialect=extra.dialect, choice=extra.choice, item=extra.item)
            self.extras[choice] = merge(self.extras.get(choice, UNSET), own)
        if extra.envelope:
            self.envelope = merge(self.envelope, Extra(dialect=extra.dialect, envelope=extra.envelope))

    def whole(self) -> Answer:
        if self.started is None or not (self.finished or self.result is not UNSET):
            raise Failure(Kind.UPSTREAM_TRUNCATED, "the answer ended before it was finished")
        if missing := self.parts.keys() - self.finished.keys():
            raise Failure(Kind.UPSTREAM_TRUNCATED, f"the answer ended before choice {min(missing)} was finished")
        return Answer(
            started=self.started,
            choices=tuple(self._choice(index) for index in sorted(self.finished)),
            result=self.result,
            usage=self.usage,
            notices=tuple(self.notices),
            extra=self.envelope,
        )

    def _choice(self, index: int) -> Choice:
        finished = self.finished[index]
        return Choice(
            index=index,
            parts=tuple(part.whole() for part in self.parts.get(index, ())),
            reason=finished.reason,
            native_reason=finished.native_reason,
            stop_sequence=finished.stop_sequence,
            extra=self.extras.get(index, UNSET),
        )


def assemble(events: Iterable[Event]) -> Answer:
    """The whole answer. Raises `upstream_truncated` when the events stop short of one."""
    assembly = _Assembly()
    for event in events:
        assembly.feed(event)
    return assembly.whole()


def _inner(usage: Usage) -> Usage:
    """What was said around it is the answer's."""
    if usage.extra is UNSET or not usage.extra.envelope:
        return usage
    item = usage.extra.item
    return replace(usage, extra=Extra(dialect=usage.extra.dialect, item=item) if item else UNSET)


def _joined(kind: PartKind, data: list[str | bytes]) -> str | bytes:
    if len(data) == 1:
        return data[0]
    if kind in ("audio", "image"):
        return b"".join(d for d in data if isinstance(d, bytes))
    return "".join(d for d in data if isinstance(d, str))

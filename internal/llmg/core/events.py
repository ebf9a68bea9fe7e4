"""The answer to any request: a stream of events, keyed by (choice, part).

Theory of operation. An answer is `Started` once. Within it there are choices, and within a choice parts, numbered
from 0 in the order in which they open. A part is opened, grows by deltas, is closed. A choice is finished when all
its parts are closed. The grammar stands in `GRAMMAR` as a table; `check` holds a stream against it. A stream that ends
before each of its choices is finished is not a whole answer: whoever made it raises `upstream_truncated`.

One iteration of a provider's stream gives the `Batch` of events of one upstream read. A batch may be empty: the
upstream is alive and had nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, Literal, TypeAlias

from msgspec import UNSET, Struct, UnsetType

from llmg.core.errors import Failure, Kind
from llmg.core.extra import Extra as Extra
from llmg.core.usage import Usage

PartKind = Literal["text", "reasoning", "refusal", "tool", "audio", "image", "opaque"]
Reason = Literal["stop", "length", "tool_calls", "content_filter", "function_call", "other"]


class TokenLogprob(Struct, frozen=True):
    """One token and how likely it was; `top` are its rivals at that place (theirs is empty).

    `extra` is what else the upstream said of it (the token's number, say), by its own names.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top: tuple[TokenLogprob, ...] = ()
    extra: dict[str, Any] | UnsetType = UNSET


class Started(Struct, frozen=True, tag="started"):
    """The upstream took the request. `id` is ours, `upstream_id` theirs; `created` is Unix time in seconds."""

    id: str
    created: int
    model: str
    fingerprint: str | UnsetType = UNSET
    tier: str | UnsetType = UNSET
    upstream_id: str | UnsetType = UNSET
    extra: Extra | UnsetType = UNSET


class Opened(Struct, frozen=True, tag="opened"):
    """A part begins. A tool part has the call's `id` and the function's `name`."""

    choice: int
    part: int
    kind: PartKind
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class Delta(Struct, frozen=True, tag="delta"):
    """More of a part: text (for a tool, of its arguments' JSON) or bytes (audio, image)."""

    choice: int
    part: int
    data: str | bytes
    logprobs: tuple[TokenLogprob, ...] | UnsetType = UNSET
    extra: Extra | UnsetType = UNSET


class Annotated(Struct, frozen=True, tag="annotated"):
    """Something said about a part: a citation, a signature, a transcript, a partial object."""

    choice: int
    part: int
    annotation: dict[str, Any]


class Closed(Struct, frozen=True, tag="closed"):
    """A part is complete."""

    choice: int
    part: int


class Finished(Struct, frozen=True, tag="finished"):
    """A choice is complete. `native_reason` is the upstream's own word where it is none of ours."""

    choice: int
    reason: Reason
    native_reason: str | UnsetType = UNSET
    stop_sequence: str | UnsetType = UNSET
    extra: Extra | UnsetType = UNSET


class Notice(Struct, frozen=True, tag="notice"):
    """Something about the answer that is not of it: a switch of target, a loss, a cache hit."""

    kind: Literal["switched", "loss", "cache", "route"]
    data: dict[str, Any] = {}


class Embedding(Struct, frozen=True):
    """One vector. `values` are floats, or the same as packed little-endian float32."""

    index: int
    values: tuple[float, ...] | bytes


class Embeddings(Struct, frozen=True, tag="embeddings"):
    """The vectors of an `Embed` request, in the order of its inputs."""

    vectors: tuple[Embedding, ...]


class Result(Struct, frozen=True, tag="result"):
    """The value of an operation that is no chat."""

    value: Embeddings
    extra: Extra | UnsetType = UNSET


Event: TypeAlias = Started | Opened | Delta | Annotated | Closed | Finished | Usage | Notice | Result
Batch: TypeAlias = Sequence[Event]


class Whole(Sequence[Event]):
    """A whole answer in its dialect's own bytes, known to be complete. It is decoded when somebody looks at its events;
    a door of the same dialect need not. A wrapper that changes events hands on a plain list of them instead."""

    __slots__ = ("_decode", "_events", "dialect", "raw")

    def __init__(self, dialect: str, raw: bytes, decode: Callable[[], Sequence[Event]]) -> None:
        self.dialect = dialect
        self.raw = raw
        self._decode = decode
        self._events: Sequence[Event] | None = None

    @property
    def events(self) -> Sequence[Event]:
        """The events."""
        if self._events is None:
            self._events = self._decode()
        return self._events

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: Any) -> Any:
        return self.events[index]

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)


# What commits an answer: from here on the client has seen content, and no other target may take over.
# (Not Started, nor a part that opens with nothing in it; but a tool part opens with the function's name.)
CONTENT: frozenset[type] = frozenset({Delta, Annotated, Finished, Result})


def commits(batch: Batch) -> bool:
    """Does this batch hold content for the client?"""
    if type(batch) is Whole:
        return True
    return any(type(e) in CONTENT or (type(e) is Opened and e.kind == "tool") for e in batch)


class State(Enum):
    """Where a stream, a choice or a part stands."""

    NEW = "new"
    LIVE = "live"
    DONE = "done"


_NEW, _LIVE, _DONE = State.NEW, State.LIVE, State.DONE
_ANY = frozenset(State)

# event: (the stream must be, the choice must be, the part must be) -> (what each becomes; None: as it was)
GRAMMAR: dict[type, tuple[tuple[frozenset[State], ...], tuple[State | None, ...]]] = {
    Started: ((frozenset({_NEW}), _ANY, _ANY), (_LIVE, None, None)),
    Opened: ((frozenset({_LIVE}), frozenset({_NEW, _LIVE}), frozenset({_NEW})), (None, _LIVE, _LIVE)),
    Delta: ((frozenset({_LIVE}), frozenset({_LIVE}), frozenset({_LIVE})), (None, None, None)),
    Annotated: ((frozenset({_LIVE}), frozenset({_LIVE}), frozenset({_LIVE})), (None, None, None)),
    Closed: ((frozenset({_LIVE}), frozenset({_LIVE}), frozenset({_LIVE})), (None, None, _DONE)),
    Finished: ((frozenset({_LIVE}), frozenset({_NEW, _LIVE}), _ANY), (None, _DONE, None)),
    Result: ((frozenset({_LIVE}), _ANY, _ANY), (None, None, None)),
    Usage: ((_ANY, _ANY, _ANY), (None, None, None)),
    Notice: ((_ANY, _ANY, _ANY), (None, None, None)),
}


class Checker:
    """Holds a stream against the grammar, event by event. Raises `upstream_protocol` on the first break."""

    def __init__(self) -> None:
        self._stream = _NEW
        self._choices: dict[int, State] = {}
        self._parts: dict[tuple[int, int], State] = {}
        self._finals = 0
        self._results = 0

    def feed(self, event: Event) -> None:
        """One event more."""
        choice: int | None = getattr(event, "choice", None)
        part: int | None = getattr(event, "part", None)
        now = (
            self._stream,
            self._choices.get(choice, _NEW) if choice is not None else _NEW,
            self._parts.get((choice, part), _NEW) if choice is not None and part is not None else _NEW,
        )
        allowed, becomes = GRAMMAR[type(event)]
        for level, state, states in zip(("stream", "choice", "part"), now, allowed, strict=True):
            if state not in states:
                raise _broken(event, f"its {level} is {state.value}")
        self._special(event)
        if becomes[0] is not None:
            self._stream = becomes[0]
        if choice is not None and becomes[1] is not None:
            self._choices[choice] = becomes[1]
        if choice is not None and part is not None and becomes[2] is not None:
            self._parts[choice, part] = becomes[2]

    def _special(self, event: Event) -> None:
        if isinstance(event, Opened) and event.part != sum(c == event.choice for c, _ in self._parts):
            raise _broken(event, "parts are numbered in the order in which they open")
        if isinstance(event, Finished) and any(
            c == event.choice and state is _LIVE for (c, _), state in self._parts.items()
        ):
            raise _broken(event, "a part of it is still open")
        if isinstance(event, Usage) and event.final:
            self._finals += 1
            if self._finals > 1:
                raise _broken(event, "there was a final one already")
        if isinstance(event, Result):
            self._results += 1

    def end(self) -> None:
        """The stream is over: each choice must be finished, and there must have been an answer."""
        if self._stream is _NEW or not (self._choices or self._results):
            raise Failure(Kind.UPSTREAM_TRUNCATED, "the answer ended before it began")
        if any(state is not _DONE for state in self._choices.values()):
            raise Failure(Kind.UPSTREAM_TRUNCATED, "the answer ended before it was finished")


def check(events: Iterable[Event]) -> None:
    """Raise unless the whole stream obeys the grammar."""
    checker = Checker()
    for event in events:
        checker.feed(event)
    checker.end()


def _broken(event: Event, why: str) -> Failure:
    return Failure(Kind.UPSTREAM_PROTOCOL, f"{type(event).__name__} may not come here: {why}", detail=repr(event))

"""The ports: what the middle asks of the rim. Each adapter implements one; nothing here does anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from msgspec import Struct

from llmg.core.context import Context, Principal
from llmg.core.events import Batch
from llmg.core.request import Request

Answering = AbstractAsyncContextManager[AsyncIterator[Batch]]


class Provider(Protocol):
    """Answers requests: a model's adapter, or a wrapper around providers."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """The answer, as batches of events. Entered, iterated and exited in one task; leaving ends the upstream call.

        Raises Failure, on entering or while iterating, after the events that came before it.
        """
        ...


class Profile(Struct, frozen=True, kw_only=True):
    """What a target can do, as data. `chat`, `embed`: it has the operation; `n`: it gives several choices a call."""

    chat: bool = True
    embed: bool = True
    n: bool = True


class Asked(Protocol):
    """What a policy may know of a request. It does not change; each property is computed when first asked for."""

    @property
    def session(self) -> str | None:
        """The conversation it belongs to, by the client's own name for it."""
        ...

    @property
    def user(self) -> str | None:
        """Whom the client asks for."""
        ...

    @property
    def input_tokens(self) -> int:
        """Estimated, 1 or more."""
        ...

    @property
    def output_tokens(self) -> int | None:
        """The most that it allows; None: it does not say. Over all choices."""
        ...

    def blocks(self, size: int, /) -> Sequence[int]:
        """A hash for each whole block of `size` bytes of the prompt, each over all before it, too.

        Two prompts have the first n in common when they begin with the same n blocks. Good in this process only.
        """
        ...


class Policy(Protocol):
    """Chooses among a model's targets, and is told what became of them. Pure but for its own counters.

    One per model, asked once an attempt. For each target chosen and tried: `started`, then `first_event` if it comes
    to that, then `ended`, in this order. A target is its index in the model's list.
    """

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """One of `candidates`: targets not yet tried for this request, ascending; never empty. Changes none of them."""
        ...

    def started(self, index: int, /) -> None:
        """It is being asked."""
        ...

    def first_event(self, index: int, seconds: float, /) -> None:
        """Its first content came so long after the start. A unary answer's is the whole of it."""
        ...

    def ended(self, index: int, seconds: float, ok: bool | None, /) -> None:
        """It is over, so long after the start. `ok` None: neither well nor ill, as when the client left."""
        ...


class Spec(Struct, frozen=True, kw_only=True):
    """A local model to be run: which engine, which file, with what. Equal specs share one process.

    `external`: the command of an engine that is not ours; it gets `--addr HOST:PORT`. `model` is the name that the
    configuration gives, `file` where that was found (a path; empty when the engine resolves the name itself).
    `threads` 0: as many as cores; `context_size` tokens, 0: the model's own; `startup_timeout` seconds.
    """

    engine: str
    model: str
    file: str = ""
    external: tuple[str, ...] = ()
    context_size: int = 4096
    parallel: int = 4
    threads: int = 0
    embeddings: bool = False
    options: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    startup_timeout: float = 120.0


class Running(Struct, frozen=True, kw_only=True):
    """Where a local model answers: `host:port`, the bearer token it wants, the name it was loaded by (ModelIdentity).

    `generation` counts the spec's processes: it grows by one at each restart.
    """

    address: str
    token: str
    identity: str
    generation: int


class Launcher(Protocol):
    """Runs local models in processes of their own. Safe to call from many tasks at once."""

    async def ensure(self, spec: Spec, /) -> Running:
        """The model's process, started and loaded if it is not; one process however many ask.

        Raises Failure: backend_crashed (with the exit code and the last words of stderr in its message),
        upstream_timeout (not ready within `startup_timeout`), upstream_error (the engine could not load the model).
        """
        ...

    async def post_mortem(self, spec: Spec, generation: int, /) -> str | None:
        """Why that process is gone: exit code or signal and last words, in a sentence. None while it runs.

        A call that lost its connection asks this; it waits a moment for the process to be reaped.
        """
        ...


class Authenticator(Protocol):
    """Knows who asks by what they show."""

    def authenticate(self, key: str | None, /) -> Principal:
        """Whose key it is; None: none was shown. Raises Failure (unauthenticated)."""
        ...


class Clock(Protocol):
    """The time."""

    def monotonic(self) -> float:
        """Seconds, for durations."""
        ...

    def time(self) -> float:
        """Unix seconds, for dates."""
        ...


class Random(Protocol):
    """Chance. `random.Random` is one."""

    def random(self) -> float:
        """From 0 to 1, without 1, all alike."""
        ...


class Ids(Protocol):
    """New identifiers."""

    def new(self) -> str:
        """A string not seen before, of letters and digits, at least 96 random bits."""
        ...

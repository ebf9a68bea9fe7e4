"""The ports: what the middle asks of the rim. Each adapter implements one; nothing here does anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn, Protocol

from msgspec import Struct

from llmg.core.context import Context, Principal
from llmg.core.events import Batch
from llmg.core.levels import Level, Rates
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
    """What a target can do, as data. `chat`, `embed`: it has the operation; `n`: it gives several choices a call.

    `has`, `lacks`: the capabilities (tools, vision, json_schema, reasoning, audio) that it is known to have, and not to
    have. `context_window`: tokens of prompt and answer together; None: not known.
    """

    chat: bool = True
    embed: bool = True
    n: bool = True
    has: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    context_window: int | None = None


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

    def header(self, name: str, /) -> str | None:
        """A header (metadata) of the request by its name in lower case; None: there is none."""
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


class Ranked(Struct, frozen=True):
    """A target's place in a policy's order. `why`: in a few words, with what `score` is; None: there is no number."""

    index: int
    score: float | None
    why: str


class Policy(Protocol):
    """Chooses among a model's targets, and is told what became of them. Pure but for its own counters.

    One per model, asked once an attempt. For each target chosen and tried: `started`, then `first_event` if it comes
    to that, then `ended`, in this order. A target is its index in the model's list.
    """

    @property
    def kind(self) -> str:
        """What it is called in the configuration."""
        ...

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """One of `candidates`: targets not yet tried for this request, ascending; never empty. Changes none of them."""
        ...

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """All candidates, in the order in which they would be chosen now if one after the other failed.

        Changes nothing. Where chance chooses, by the odds, which are the scores.
        """
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


class Document(Struct, frozen=True):
    """The catalog as a store holds it. `tenants` has the shape of the configuration's section, as plain JSON data.

    `version` grows by one with each change; 0: there was none yet. Nobody changes a document in place.
    """

    version: int
    tenants: dict[str, Any]


class AuditEntry(Struct, frozen=True, kw_only=True):
    """Who asked what of the catalog's administration, when (Unix seconds), and what became of it. Holds no secret.

    `actor` is the name of the admin key, or the path of another key (`keys/my-app`, `tenants/.../keys/k1`);
    "anonymous": no valid key was shown; empty: somebody who did not ask the gateway. `before` and `after` are versions
    of the catalog: the same where nothing was changed. `outcome`: "ok", or the failure's kind. `changed`: the names of
    what is different now, in the level that is the resource or that has it (`limits.max_concurrent`).
    """

    time: float
    actor: str
    method: str
    resource: str
    before: int
    after: int
    outcome: str = "ok"
    request_id: str = ""
    door: str = ""
    changed: tuple[str, ...] = ()


class Conflict(Exception):
    """The catalog that was changed is not the one that the store holds any more: somebody was faster."""


class CatalogStore(Protocol):
    """Keeps the catalog and the log of its changes, for all processes. Safe to call from many tasks at once.

    Each method raises Failure where the store can't be reached (upstream_unavailable).
    """

    async def load(self) -> Document:
        """What it holds. Raises Failure (internal) with the place, where that is no catalog."""
        ...

    async def save(self, document: Document, entry: AuditEntry, /) -> None:
        """Holds this document from now on, and the entry that goes with it, if its own is one version older.

        Raises Conflict when it is not; Failure (method_not_allowed) where it can't be changed from here.
        """
        ...

    async def watch(self, seen: int, changed: Callable[[int], Awaitable[None]], /) -> NoReturn:
        """Runs until it is cancelled. Tells each version other than the last one told (the first time: `seen`),
        whoever made it, within a second of the change; a store that can't be reached is tried again and again."""
        ...

    async def append(self, entry: AuditEntry, /) -> None:
        """Logs what led to no change."""
        ...

    async def entries(self, size: int, token: str, /) -> tuple[Sequence[AuditEntry], str]:
        """At most `size` entries, the newest first, and the token by which to go on; empty: these were the last.

        Raises Failure (invalid_request) when `token` is not one that this gave.
        """
        ...


class Reservation(Protocol):
    """A request that was let in by the limits."""

    @property
    def rates(self) -> Rates:
        """What was left after it, of the levels' limits those with the least."""
        ...

    def settle(self, tokens: int, /) -> None:
        """It is over, and took so many tokens, prompt and answer. Exactly once; waits for nobody."""
        ...


class Limiter(Protocol):
    """Lets in as many requests as the levels' limits allow. Safe to call from many tasks at once."""

    async def reserve(self, levels: Sequence[Level], tokens: int, /) -> Reservation:
        """Room for one request at each of these levels, or at none. `tokens` are those that it may take, estimated.

        Raises Failure: rate_limited (`core.limits.LimitReached`), request_too_large (there will never be room),
        overloaded (nobody can say now).
        """
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

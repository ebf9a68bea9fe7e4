"""What goes along with a request: who asks, until when, and what was tried for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from llmg.core.errors import Failure
from llmg.core.levels import Level, Rates


class Principal(Struct, frozen=True, kw_only=True):
    """Who asks. Without keys configured there is one, anonymous.

    `levels` are those of the catalog that hold for it, the root first, its endpoint last. `scope` is what it may ask
    for: the models (`routing.router.Models`) of the catalog as it was when the request came, so that a change of the
    catalog changes no request that is under way.
    """

    tenant: str = ""
    team: str = ""
    groups: tuple[str, ...] = ()
    endpoint: str = ""
    key_id: str = ""
    roles: frozenset[str] = frozenset()
    levels: tuple[Level, ...] = ()
    scope: Any = None


ADMIN = "admin"
"""The role of those who may change the catalog."""

ANONYMOUS = Principal()


def no_header(name: str) -> str | None:
    """The headers of a request that has none."""
    return None


class Attempt(Struct, kw_only=True):
    """One try of one target. Times are monotonic seconds; `ended` and `failure` stay None while it runs well.

    `queued`: seconds since `started` in which it waited for a place at the target. `committed`: when its first content
    came (of a whole answer, all of it). `group` is the model among whose targets `policy` (its kind) chose this one.
    """

    provider: str
    model: str
    started: float
    ended: float | None = None
    queued: float = 0.0
    committed: float | None = None
    failure: Failure | None = None
    group: str = ""
    policy: str = ""

    @property
    def route(self) -> str:
        """The target's name as clients see it: `provider/model`."""
        return f"{self.provider}/{self.model}"


class Observer:
    """Told of each try for a request; does nothing. Who wants to know overrides what it needs.

    How the request itself began and ended is seen by a wrapper around the pipeline.
    """

    def attempt_started(self, context: Context, attempt: Attempt) -> None:
        """A target is being tried."""

    def attempt_ended(self, context: Context, attempt: Attempt) -> None:
        """It answered to the end, failed, or was left."""

    def committed(self, context: Context, attempt: Attempt) -> None:
        """Its first content is on the way to the client."""


SILENT = Observer()


class Context(Struct, kw_only=True):
    """One per request. `id` is the answer's id; `deadline` is monotonic seconds; the router appends to `trail`.

    `header` gives a header (metadata) of the request by its name in lower case. `rates`: what is left of the limits,
    once it has been counted. `audited`: it is a call of the administration, which keeps the log of it.
    """

    id: str
    request_id: str
    door: str
    created: int
    principal: Principal = ANONYMOUS
    deadline: float | None = None
    traceparent: str | None = None
    idempotency_key: str | None = None
    session: str | None = None
    header: Callable[[str], str | None] = no_header
    trail: list[Attempt] = []
    rates: Rates | None = None
    observer: Any = SILENT
    audited: bool = False

    @property
    def answering(self) -> Attempt:
        """The attempt that answers, or, while none does, the last one. There must be one."""
        last = self.trail[-1]
        if last.committed is None and len(self.trail) > 1:
            return next((one for one in self.trail if one.committed is not None), last)
        return last

    @property
    def route(self) -> str:
        """The target that answers, or the last one tried, fit for a header: printable ASCII, 512 characters at most;
        empty before any was."""
        if not self.trail:
            return ""
        name = self.answering.route
        if not (name.isascii() and name.isprintable()):  # clients make names up, too
            name = "".join([char if " " <= char <= "~" else "?" for char in name])
        return name[:512]

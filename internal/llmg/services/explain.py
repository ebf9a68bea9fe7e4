"""The way that a request would take: the same answer for every door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llmg.core.context import ADMIN, Context, Principal
from llmg.core.errors import Failure, Kind
from llmg.core.events import Batch
from llmg.core.explanation import Explanation
from llmg.core.request import Request
from llmg.ports import Answering, Clock, Limiter
from llmg.routing import explain as routing
from llmg.routing.limits.limited import Limited

LEVEL: Final = "level"
"""What a Failure calls the level that is asked for. It lies beside the request, at every door."""


class Explain:
    """The use case behind every door's explanation: of what the caller may ask for.

    It is held to the caller's limits as the request itself would be, but takes no tokens: so it can't be asked for
    without bound, and what it says of a request that would be held back is just that.
    """

    def __init__(
        self,
        models: Callable[[Principal], routing.Finding],
        level: Callable[[str], routing.Finding | None],
        limiter: Limiter,
        clock: Clock,
        details: Callable[[Principal], bool],
    ) -> None:
        """`models` gives those that somebody may ask for, `level` those of a level by its name (None: there is no such
        level); `details`: who is told in full, not in outline."""
        self._models = models
        self._level = level
        self._limited = Limited(_Nobody(), limiter)
        self._clock = clock
        self._details = details

    async def explain(self, request: Request, context: Context, level: str = "") -> Explanation:
        """Which targets would be asked now, and why not the others: for the clients of a level of the catalog, by its
        name; empty: for the caller. The limits are the caller's all the same.

        Raises Failure: permission_denied and not_found naming `level`, model_not_found, and what limits raise (see
        `ports.Limiter`).
        """
        principal = context.principal
        models = self._of_level(level, principal) if level else self._models(principal)
        async with self._limited.open(request, context):
            now = self._clock.monotonic()
            return routing.explain(models, request, context, now, details=self._details(principal))

    def _of_level(self, name: str, principal: Principal) -> routing.Finding:
        if ADMIN not in principal.roles:
            words = "a 'level' needs an admin's key (`admin.keys` of the configuration)"
            raise Failure(Kind.PERMISSION_DENIED, words, param=LEVEL)
        models = self._level(name)
        if models is None:
            raise Failure(Kind.NOT_FOUND, f"the level '{name[:200]}' does not exist", param=LEVEL)
        return models


class _Nobody:
    """A provider that says nothing."""

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        return self

    async def __aenter__(self) -> _Nobody:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> _Nobody:
        return self

    async def __anext__(self) -> Batch:
        raise StopAsyncIteration

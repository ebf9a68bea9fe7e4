"""The way that a request would take: the same answer for every door."""

from __future__ import annotations

from collections.abc import Callable

from llmg.core.context import Context, Principal
from llmg.core.events import Batch
from llmg.core.explanation import Explanation
from llmg.core.request import Request
from llmg.ports import Answering, Clock, Limiter
from llmg.routing import explain as routing
from llmg.routing.limits.limited import Limited


class Explain:
    """The use case behind every door's explanation: of what the caller may ask for.

    It is held to the caller's limits as the request itself would be, but takes no tokens: so it can't be asked for
    without bound, and what it says of a request that would be held back is just that.
    """

    def __init__(
        self,
        models: Callable[[Principal], routing.Finding],
        limiter: Limiter,
        clock: Clock,
        details: Callable[[Principal], bool],
    ) -> None:
        """`models` gives those that somebody may ask for; `details`: who is told in full, not in outline."""
        self._models = models
        self._limited = Limited(_Nobody(), limiter)
        self._clock = clock
        self._details = details

    async def explain(self, request: Request, context: Context) -> Explanation:
        """Which targets would be asked now, and why not the others.

        Raises Failure: model_not_found, and what limits raise (see `ports.Limiter`).
        """
        async with self._limited.open(request, context):
            principal = context.principal
            models, now = self._models(principal), self._clock.monotonic()
            return routing.explain(models, request, context, now, details=self._details(principal))


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

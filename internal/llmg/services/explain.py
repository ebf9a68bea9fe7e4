"""The way that a request would take: the same answer for every door."""

from __future__ import annotations

from collections.abc import Callable

from llmg.core.context import Context, Principal
from llmg.core.explanation import Explanation
from llmg.core.request import Request
from llmg.ports import Clock
from llmg.routing import explain as routing


class Explain:
    """The use case behind every door's explanation: of what the caller may ask for."""

    def __init__(self, models: Callable[[Principal], routing.Finding], clock: Clock) -> None:
        """`models` gives those that somebody may ask for."""
        self._models = models
        self._clock = clock

    def explain(self, request: Request, context: Context) -> Explanation:
        """Which targets would be asked now, and why not the others. Raises Failure (model_not_found)."""
        return routing.explain(self._models(context.principal), request, context, self._clock.monotonic())

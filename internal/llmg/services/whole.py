"""A whole answer: all its events, for those who don't want them one by one."""

from __future__ import annotations

from llmg.core.context import Context
from llmg.core.events import Batch
from llmg.core.request import Request
from llmg.ports import Provider


async def whole(pipeline: Provider, request: Request, context: Context) -> Batch:
    """Every event of the answer; of an answer that came in one batch, that batch. Raises Failure."""
    events: Batch = ()
    async with pipeline.open(request, context) as batches:
        async for batch in batches:
            events = [*events, *batch] if events else batch
    return events

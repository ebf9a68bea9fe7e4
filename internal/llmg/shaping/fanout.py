"""Several choices from a target that gives one at a time: as many calls side by side, merged into one answer.

Each call runs in a task of its own; the first failure ends them all. Prompt tokens are counted once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from msgspec import UNSET
from msgspec.structs import replace

from llmg.core.context import Context
from llmg.core.errors import Failure, internal
from llmg.core.events import Annotated, Batch, Closed, Delta, Event, Finished, Opened, Started
from llmg.core.request import Chat, Request
from llmg.core.usage import Usage
from llmg.ports import Answering, Provider

_AHEAD = 8  # batches a call may be ahead of the client
_OUT = (
    "output_tokens",
    "reasoning_tokens",
    "output_audio_tokens",
    "accepted_prediction_tokens",
    "rejected_prediction_tokens",
)
_KEYED = (Opened, Delta, Annotated, Closed, Finished)


class Fanout:
    """A provider that gives one choice, made to give `n`."""

    def __init__(self, inner: Provider) -> None:
        self._inner = inner

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        if not isinstance(request, Chat) or request.n == 1:
            return self._inner.open(request, context)
        return _Fanned(self._inner, request, context)


class _Fanned:
    def __init__(self, inner: Provider, request: Chat, context: Context) -> None:
        self._inner = inner
        self._request = request
        self._context = context
        self._ready: asyncio.Queue[tuple[int, Batch | Failure | None]] = asyncio.Queue(_AHEAD * request.n)
        self._tasks: list[asyncio.Task[None]] = []
        self._running = request.n
        self._started = False
        self._usages: dict[int, Usage] = {}

    async def __aenter__(self) -> _Fanned:
        self._tasks = [asyncio.create_task(self._run(choice)) for choice in range(self._request.n)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def __aiter__(self) -> _Fanned:
        return self

    async def __anext__(self) -> Batch:
        while self._running:
            choice, item = await self._ready.get()
            if isinstance(item, Failure):
                raise item
            if item is not None:
                return list(self._merged(choice, item))
            self._running -= 1
            if not self._running and self._usages:
                return [self._total()]
        raise StopAsyncIteration

    async def _run(self, choice: int) -> None:
        seed = self._request.seed
        # The same seed would give the same choice each time.
        one = replace(self._request, n=1, seed=UNSET if seed is UNSET else seed + choice)
        try:
            async with self._inner.open(one, self._context) as events:
                async for batch in events:
                    await self._ready.put((choice, batch))
        except Failure as failure:
            await self._ready.put((choice, failure))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not we were cancelled but the call, from within: nobody else would tell the client.
            await self._ready.put((choice, internal(error)))
        except Exception as error:  # noqa: BLE001 - a task's own exception would be lost: it becomes the request's
            await self._ready.put((choice, internal(error)))
        else:
            await self._ready.put((choice, None))

    def _merged(self, choice: int, batch: Batch) -> Iterator[Event]:
        for event in batch:
            if isinstance(event, _KEYED):
                yield replace(event, choice=choice) if choice else event
            elif isinstance(event, Started):
                if not self._started:
                    self._started = True
                    yield event
            elif isinstance(event, Usage):
                self._usages[choice] = event
            else:
                yield event

    def _total(self) -> Usage:
        first = next(iter(self._usages.values()))
        sums = {name: sum(getattr(u, name) for u in self._usages.values()) for name in _OUT}
        # What one call has beside its counts (its price, say) is not true of all of them.
        return replace(first, **sums, final=True, extra=UNSET)

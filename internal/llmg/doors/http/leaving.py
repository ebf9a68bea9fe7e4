"""Who notices that an HTTP client has left: its request's task is cancelled.

Starlette's and uvicorn's own means do not: a handler is never cancelled when its client leaves, and a `send` to nobody
returns as if nothing were. Our server offers an ASGI extension, a set of callbacks that are called when the connection
is lost. On another server a task watches `receive()`, started only when the answer is not there at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.types import Receive, Scope

GONE: Final = "llmg.gone"
_WATCH_AFTER: Final = 0.002  # seconds


class Leaving:
    """Watches for one request, whose body has been read; from `watch` to `done`."""

    __slots__ = ("_callbacks", "_done", "_receive", "_task", "_timer", "_watcher", "left")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._callbacks: set[Callable[[], None]] | None = (scope.get("extensions") or {}).get(GONE)
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._done = False
        self.left = False

    def watch(self) -> None:
        """From here on, the client's leaving cancels this task."""
        self._task = asyncio.current_task()
        if self._callbacks is not None:
            self._callbacks.add(self._gone)
        else:
            self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._start)

    def done(self) -> None:
        """The answer is out, or nobody waits for it."""
        self._done = True
        if self._callbacks is not None:
            self._callbacks.discard(self._gone)
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone()

    def _gone(self) -> None:
        if not self._done and self._task is not None:
            self.left = True
            self._task.cancel()

"""How a WebSocket's application learns that the server drains: an ASGI extension of ours, as `GONE` is one.

The server can't tell an idle socket from one in use; the application can. It closes those that are idle at once, and
the others as soon as nothing is under way on them. What is open at the end of the grace is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.types import Scope

DRAIN: Final = "llmg.drain"


class Drain:
    """One connection's: it begins once, and whoever asked to be told is told."""

    __slots__ = ("_callbacks", "begun")

    def __init__(self) -> None:
        self.begun = False
        self._callbacks: set[Callable[[], None]] = set()

    def begin(self) -> None:
        """The server goes."""
        self.begun = True
        for callback in list(self._callbacks):
            callback()

    def add(self, callback: Callable[[], None]) -> None:
        """Calls it when the server goes: now, if it does already."""
        self._callbacks.add(callback)
        if self.begun:
            callback()

    def discard(self, callback: Callable[[], None]) -> None:
        """It need not be called any more."""
        self._callbacks.discard(callback)


def drain_of(scope: Scope) -> Drain:
    """The connection's; on another server one that never begins."""
    drain: Drain = (scope.get("extensions") or {}).get(DRAIN) or Drain()
    return drain

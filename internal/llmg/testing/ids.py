"""Identifiers that count."""

from __future__ import annotations

from itertools import count


class CountingIds:
    """A `ports.Ids` that gives `id1`, `id2` and so on."""

    def __init__(self, prefix: str = "id") -> None:
        self._prefix = prefix
        self._numbers = count(1)

    def new(self) -> str:
        """See `ports.Ids`."""
        return f"{self._prefix}{next(self._numbers)}"

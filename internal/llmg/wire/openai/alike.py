"""The short way for a stream's chunks: they are alike but for their words.

Most chunks of a stream differ from the one before in a single JSON string, the content of the delta. Once a chunk has
been decoded in full, one with the same bytes before and after that string, and with a single valid JSON string between
them, can mean nothing else but that string: it alone is decoded.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_CONTENT: Final = re.compile(rb'"content": ?("(?:[^"\\]|\\.)*")')
_GIVES_UP: Final = 8  # chunks in a row that were not alike: this upstream's never are

_string = msgspec.json.Decoder(str).decode


class Alike:
    """What the chunks of one stream have in common. One per stream."""

    __slots__ = ("_after", "_before", "_least", "_misses")

    def __init__(self) -> None:
        self._before = b""
        self._after = b""
        self._least = 0
        self._misses = 0

    def words(self, data: bytes) -> str | None:
        """The content of a chunk that is like the one that was learned; None of any other."""
        if self._least and len(data) > self._least and data.startswith(self._before) and data.endswith(self._after):
            try:
                words = _string(data[len(self._before) : len(data) - len(self._after)])
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
            self._misses = 0
            return words
        return None

    def learn(self, data: bytes, words: str) -> None:
        """A chunk that said `words` and nothing more."""
        self._misses += 1
        if self._misses > _GIVES_UP:
            self._least = 0
            return
        found = _CONTENT.search(data)
        if found is not None and _string(found[1]) == words:
            self._before, self._after = data[: found.start(1)], data[found.end(1) :]
            self._least = len(self._before) + len(self._after) + 2

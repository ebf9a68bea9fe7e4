"""The end of what a process has written: bounded, by lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

_LINE_LIMIT = 8 * 1024  # bytes; a longer line is cut into several


class Tail:
    """The last lines of a stream of bytes, at most `limit` bytes of them. `secrets` are blotted out."""

    def __init__(self, limit: int = 64 * 1024, secrets: Sequence[str] = ()) -> None:
        self._limit = limit
        self._secrets = secrets
        self._lines: deque[str] = deque()
        self._size = 0
        self._open = b""  # the line that is not yet ended

    def feed(self, data: bytes) -> list[str]:
        """Takes what was read; gives the lines that it completes."""
        *whole, self._open = (self._open + data).replace(b"\r", b"\n").split(b"\n")
        pieces = [piece for line in whole for piece in _pieces(line)]
        *full, self._open = _pieces(self._open)
        return [self._keep(piece) for piece in (*pieces, *full) if piece.strip()]

    def close(self) -> list[str]:
        """The stream has ended: its last line, if that had no line end."""
        return self.feed(b"\n")

    def text(self, limit: int = 4096) -> str:
        """The last `limit` characters, for a log."""
        return "\n".join(self._lines)[-limit:]

    def last_words(self, limit: int = 500, lines: int = 3) -> str:
        """The last few lines as one, joined by ` | `. Of a traceback the error alone, not the indented lines above."""
        words: list[str] = []
        for line in reversed(self._lines):
            if words and (line[0].isspace() or len(words) == lines or len(line) + len(" | ".join(words)) + 3 > limit):
                break
            words.insert(0, line.strip())
        said = " | ".join(words)
        return said if len(said) <= limit else said[: limit - 1] + "…"

    def _keep(self, raw: bytes) -> str:
        line = raw.decode(errors="replace").rstrip()
        for secret in self._secrets:
            line = line.replace(secret, "***")
        self._lines.append(line)
        self._size += len(raw) + 1
        while self._size > self._limit and len(self._lines) > 1:
            self._size -= len(self._lines.popleft().encode()) + 1
        return line


def _pieces(line: bytes) -> Sequence[bytes]:
    """At least one; all but the last are as long as a line may be."""
    return [line[start : start + _LINE_LIMIT] for start in range(0, len(line), _LINE_LIMIT)] or [b""]

"""Server-sent events (HTML Living Standard, 9.2), both ways. Pure: bytes in, events out."""

from __future__ import annotations

from msgspec import Struct

from llmg.core.errors import Failure, Kind

DONE = b"data: [DONE]\n\n"
_BOM = b"\xef\xbb\xbf"


class ServerSentEvent(Struct, frozen=True):
    """One event: its data, lines joined by a newline, and its type (empty where none was given)."""

    data: bytes
    type: bytes = b""


class Decoder:
    """Cuts a stream of bytes into events, however the bytes were chunked. One per stream.

    An event longer than `limit` bytes raises `upstream_protocol`, so that a peer which never ends one can't fill
    the memory.
    """

    def __init__(self, limit: int = 16 << 20) -> None:
        self._limit = limit
        self._rest = b""
        self._begun = False
        self._after_cr = False

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete."""
        if not self._begun:
            data = self._begin(data)
        if self._after_cr or b"\r" in data:
            data = self._unify(data)
        held = len(self._rest)
        if held:
            data = self._rest + data
        end = data.rfind(b"\n\n", max(0, held - 1))
        if end < 0:
            self._hold(data)
            return []
        self._hold(data[end + 2 :])
        return _events(data[:end])

    def close(self) -> list[ServerSentEvent]:
        """The bytes are over. The standard discards an event without its blank line; upstreams that forget the
        last one are common, so it is given."""
        rest, self._rest = self._rest, b""
        event = _event(rest.strip(b"\n"))
        return [] if event is None else [event]

    def _begin(self, data: bytes) -> bytes:
        data, self._rest = self._rest + data, b""
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._rest = data
            return b""
        self._begun = True
        return data.removeprefix(_BOM)

    def _unify(self, data: bytes) -> bytes:
        # CR, LF and CRLF all end a line; a CRLF may be cut in two.
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = self._after_cr or data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _hold(self, rest: bytes) -> None:
        if len(rest) > self._limit:
            raise Failure(Kind.UPSTREAM_PROTOCOL, f"the upstream sent an event of over {self._limit} bytes")
        self._rest = rest


def _events(blocks: bytes) -> list[ServerSentEvent]:
    if blocks.startswith(b"data: "):
        data = blocks[6:].split(b"\n\ndata: ")
        if blocks.count(b"\n") == 2 * len(data) - 2:  # nothing but single lines of data, as nearly always
            return [ServerSentEvent(line) for line in data]
    return [event for block in blocks.split(b"\n\n") if (event := _event(block)) is not None]


def _event(block: bytes) -> ServerSentEvent | None:
    data: list[bytes] = []
    kind = b""
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
    return ServerSentEvent(b"\n".join(data), kind) if data else None


def encode(data: bytes, kind: bytes = b"") -> bytes:
    """One event. Each line of `data` becomes a line of the event."""
    head = b"event: " + kind + b"\n" if kind else b""
    return head + b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"


def comment(text: bytes) -> bytes:
    """A line that clients ignore: keeps the connection alive."""
    return b": " + text + b"\n\n"

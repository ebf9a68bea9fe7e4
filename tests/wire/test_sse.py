"""Server-sent events: whatever the chunking and the line ends, the same events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.errors import Failure, Kind
from llmg.wire.sse import DONE, Decoder, ServerSentEvent, comment, encode
from wire.generated import cuts


def _decode(pieces: list[bytes]) -> list[ServerSentEvent]:
    decoder = Decoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.close()


def _by_the_book(data: bytes) -> list[ServerSentEvent]:
    """The standard's algorithm, line by line (HTML Living Standard, 9.2.6), with an unfinished last event given."""
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    out: list[ServerSentEvent] = []
    lines: list[bytes] = []
    kind = b""
    for line in [*text.split(b"\n"), b""]:
        if not line:
            if lines:
                out.append(ServerSentEvent(b"\n".join(lines), kind))
            lines, kind = [], b""
            continue
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            lines.append(value)
        elif name == b"event":
            kind = value
    return out


_TOKENS = [b"data: ", b"data:", b"data", b"event: ", b"event:", b": hush", b"id: 1", b"retry: 3", b"x", b"{}", b" "]
_ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"]
bodies = st.builds(
    bytes.__add__,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
    st.lists(st.sampled_from([*_TOKENS, *_ENDS, b"\xc3\xa9", b"\xef", b":"]), max_size=20).map(b"".join),
)


@given(st.data(), bodies)
def test_any_chunking_gives_what_the_standard_says(data: st.DataObject, body: bytes) -> None:
    assert _decode(data.draw(cuts(body))) == _by_the_book(body)


@given(bodies)
def test_byte_by_byte(body: bytes) -> None:
    assert _decode([body[i : i + 1] for i in range(len(body))]) == _by_the_book(body)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_cut_anywhere_whatever_ends_the_lines(end: bytes) -> None:
    body = b"\xef\xbb\xbf" + end.join([b": hush", b"event: x", b"data: a", b"data: b", b"", b"data: c", b"", b""])
    expected = [ServerSentEvent(b"a\nb", b"x"), ServerSentEvent(b"c")]
    for first in range(len(body)):
        for second in range(first, len(body)):
            assert _decode([body[:first], body[first:second], body[second:]]) == expected


@given(
    st.data(),
    st.lists(st.tuples(st.binary(max_size=20), st.sampled_from([b"", b"error", b"x"])), max_size=5),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
)
def test_what_is_encoded_comes_back(data: st.DataObject, events: list[tuple[bytes, bytes]], end: bytes) -> None:
    given_events = [(text.replace(b"\r", b"."), kind) for text, kind in events]
    body = b"".join(comment(b"beat") + encode(text, kind) for text, kind in given_events).replace(b"\n", end)
    assert _decode(data.draw(cuts(body))) == [ServerSentEvent(text, kind) for text, kind in given_events]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"data: a\n\n", [(b"a", b"")]),
        (b"data:a\n\n", [(b"a", b"")]),
        (b"data:  a\n\n", [(b" a", b"")]),
        (b"data: a\ndata: b\n\n", [(b"a\nb", b"")]),
        (b"data\n\n", [(b"", b"")]),
        (b"event: error\ndata: {}\n\n", [(b"{}", b"error")]),
        (b"event: ping\n\n", []),
        (b": hush\n\ndata: a\n\n", [(b"a", b"")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"a", b"")]),
        (b"\n\n\n\ndata: a\n\n\n\n\n", [(b"a", b"")]),
        (b"data: a", [(b"a", b"")]),  # its end forgotten
        (DONE, [(b"[DONE]", b"")]),
        (b"", []),
    ],
)
def test_by_hand(body: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    assert _decode([body]) == [ServerSentEvent(data, kind) for data, kind in expected]


def test_an_event_without_end_is_refused() -> None:
    decoder = Decoder(limit=100)
    assert decoder.feed(b"data: " + b"a" * 94) == []
    with pytest.raises(Failure, match="over 100 bytes") as raised:
        decoder.feed(b"a")
    assert raised.value.kind is Kind.UPSTREAM_PROTOCOL


def test_many_events_larger_than_the_limit_together_are_fine() -> None:
    assert len(Decoder(limit=100).feed(b"data: a\n\n" * 1000)) == 1000

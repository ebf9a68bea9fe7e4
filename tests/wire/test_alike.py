"""The short way for alike chunks must give what the long way gives, whatever an upstream sends."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.errors import Failure
from llmg.core.events import Event
from llmg.testing.conformance import a_context
from llmg.wire.openai import chunks
from llmg.wire.openai.alike import Alike
from llmg.wire.openai.chunks import ChunkDecoder

BEFORE, AFTER = b'{"id":"a","choices":[{"index":0,"delta":{"content":', b'},"finish_reason":null}]}'
LAST = b'{"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'


class Never(Alike):
    """Knows no short way."""

    def words(self, data: bytes) -> None:
        """None."""


def decoded(sent: list[bytes]) -> list[Event] | str:
    decoder, out = ChunkDecoder(a_context("x")), []
    try:
        for data in sent:
            decoder.feed(data, out)
        decoder.end(out)
    except Failure as failure:
        return repr(failure)
    return out


def the_long_way(sent: list[bytes], monkeypatch: pytest.MonkeyPatch) -> list[Event] | str:
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "Alike", Never)
        return decoded(sent)


def chunk(content: str, **more: object) -> bytes:
    whole = {"id": "a", "choices": [{"index": 0, "delta": {"content": content, **more}, "finish_reason": None}]}
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def test_the_short_way_is_taken() -> None:
    alike = Alike()
    assert alike.words(chunk("a")) is None
    alike.learn(chunk("a"), "a")
    assert alike.words(chunk('b "quoted" \\ \n é 漢')) == 'b "quoted" \\ \n é 漢'
    assert alike.words(chunk("b", role="assistant")) is None


MIDDLES = [
    b'"a","refusal":"no"',
    b'"a"},"finish_reason":"stop"},{"index":1,"delta":{"content":"b"',
    b'"a","content":"b"',
    b'"a" ',
    b' "a"',
    b'"a\\',
    b'"',
    b'""',
    b"null",
    b"1",
    b'"\xff"',
    b'"\\ud800"',
    b'"\\u00e9"',
    b'"\n"',
    b"",
]


@pytest.mark.parametrize("middle", MIDDLES, ids=repr)
def test_what_only_looks_alike(middle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [BEFORE + b'"first"' + AFTER, BEFORE + middle + AFTER, BEFORE + b'"last"' + AFTER, LAST]
    assert decoded(sent) == the_long_way(sent, monkeypatch)


@given(
    st.lists(
        st.one_of(
            st.text(max_size=8).map(chunk),
            st.sampled_from(MIDDLES).map(lambda middle: BEFORE + middle + AFTER),
            st.text(max_size=3).map(lambda text: chunk(text, reasoning_content="hm")),
            st.text(max_size=3).map(lambda text: chunk(text, unknown=1)),
            st.just(chunk("").replace(b'"a"', b'"b"')),
            st.just(chunk("x").replace(b'"index":0', b'"index":1')),
        ),
        max_size=12,
    )
)
def test_both_ways_give_the_same(sent: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert decoded([*sent, LAST]) == the_long_way([*sent, LAST], patch)


def test_an_upstream_whose_chunks_are_never_alike_is_given_up_on() -> None:
    alike = Alike()
    for number in range(20):
        data = chunk(f"word {number}").replace(b'"a"', b'"%d"' % number)
        assert alike.words(data) is None
        alike.learn(data, f"word {number}")
    same = chunk("again")
    alike.learn(same, "again")
    assert alike.words(same) is None

"""Embeddings answers in OpenAI's dialect."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.assemble import assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import Embedding, Embeddings, Event, Finished, Result, Started, check
from llmg.core.request import Embed
from llmg.core.usage import Usage
from llmg.wire.openai.embeddings import decode_embeddings, encode_embeddings, floats, packed
from wire.generated import CONTEXT, plain, unknown

_singles = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4)


def _answer(values: Any, **more: Any) -> bytes:
    return json.dumps(
        {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": values}], **more}
    ).encode()


def _asked(*, as_base64: bool) -> Embed:
    return Embed(model="m", inputs=("hi",), packed=as_base64)


@given(_singles)
def test_packed_and_back(values: list[float]) -> None:
    assert base64.b64decode(packed(values)) == struct.pack(f"<{len(values)}f", *values)
    assert floats(base64.b64decode(packed(values))) == values
    assert floats(tuple(values)) == values


@given(_singles, st.booleans(), st.booleans())
def test_any_encoding_asked_from_any_given(values: list[float], given_packed: bool, asked_packed: bool) -> None:
    events = decode_embeddings(_answer(packed(values) if given_packed else values), CONTEXT)
    check(events)
    vector = json.loads(encode_embeddings(assemble(events), _asked(as_base64=asked_packed)))["data"][0]["embedding"]
    assert vector == (packed(values) if asked_packed else values)


@given(unknown, unknown)
def test_unknown_fields_come_back(envelope: dict[str, Any], usage: dict[str, Any]) -> None:
    body = json.loads(_answer([0.5], model="m", usage={"prompt_tokens": 3, "total_tokens": 3, **usage}, **envelope))
    answer = assemble(decode_embeddings(json.dumps(body).encode(), CONTEXT))
    assert json.loads(encode_embeddings(answer, _asked(as_base64=False))) == body


def test_events() -> None:
    body = _answer([1, 2], model="u", usage={"prompt_tokens": 3, "total_tokens": 3})
    assert decode_embeddings(body, CONTEXT) == [
        Started(CONTEXT.id, CONTEXT.created, "u"),
        Result(Embeddings((Embedding(0, (1.0, 2.0)),))),
        Usage(input_tokens=3),
    ]


@pytest.mark.parametrize("usage", [{}, {"usage": None}])
def test_no_usage(usage: dict[str, Any]) -> None:
    events = decode_embeddings(_answer([1], **usage), CONTEXT)
    assert [type(event) for event in events] == [Started, Result]
    assert json.loads(encode_embeddings(assemble(events), _asked(as_base64=False)))["usage"] == {
        "prompt_tokens": 0,
        "total_tokens": 0,
    }


def test_vectors_without_index_are_in_order() -> None:
    body = json.dumps({"data": [{"embedding": [1]}, {"embedding": [2]}]}).encode()
    assert decode_embeddings(body, CONTEXT)[1] == Result(Embeddings((Embedding(0, (1.0,)), Embedding(1, (2.0,)))))


UNREADABLE: dict[str, bytes] = {
    "HTML": b"<html>",
    "nothing": b"",
    "no data": b"{}",
    "null data": b'{"data":null}',
    "words": _answer(["a"]),
    "bad base64": _answer("a?"),
    "not ASCII": _answer("é"),
    "half a float": _answer(base64.b64encode(b"abc").decode()),
    "bad UTF-8": b'{"data":[],"x":"\xff"}',
    "deep": b'{"data":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "usage of words": _answer([1], usage={"prompt_tokens": "3"}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_answer_is_the_upstreams_fault(name: str) -> None:
    with pytest.raises(Failure, match="can't be read") as raised:
        decode_embeddings(UNREADABLE[name], CONTEXT)
    assert raised.value.kind is Kind.UPSTREAM_PROTOCOL


def test_an_error_in_a_good_answer_is_an_error() -> None:
    with pytest.raises(Failure) as raised:
        decode_embeddings(b' {"error":{"message":"m","code":429}}', CONTEXT)
    assert raised.value.kind is Kind.UPSTREAM_RATE_LIMITED


def test_a_chat_answer_holds_no_vectors() -> None:
    chat: list[Event] = [Started("a", 1, "m"), Finished(0, "stop")]
    with pytest.raises(Failure, match="no vectors"):
        encode_embeddings(assemble(chat), _asked(as_base64=False))


_NAMES = st.sampled_from(
    ["data", "embedding", "index", "usage", "prompt_tokens", "total_tokens", "model", "error", "x"]
)
_LIKELY: st.SearchStrategy[Any] = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(_NAMES, _LIKELY, max_size=5))
def test_any_body_is_an_answer_or_a_failure(body: dict[str, Any]) -> None:
    try:
        events = decode_embeddings(msgspec.json.encode(body), CONTEXT)
    except Failure:
        return
    check(events)

"""A whole answer passed on in the upstream's own bytes: only what is complete, and only id and model are exchanged."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from llmg.core.assemble import assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import Event, Whole, check, commits
from llmg.wire.openai.answers import decode_answer, encode_answer
from llmg.wire.openai.splice import read_answer, splice_answer
from wire.generated import CONTEXT, streams, unknown

COMPLETE: dict[str, Any] = {
    "id": "chatcmpl-theirs",
    "object": "chat.completion",
    "created": 5,
    "model": "theirs",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def _raw(body: bytes) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in msgspec.json.decode(body, type=dict[str, Raw]).items()}


@given(unknown, unknown, st.sampled_from(["", " ", "\n\t"]))
def test_only_id_and_model_are_exchanged(envelope: dict[str, Any], message: dict[str, Any], space: str) -> None:
    choice = {**COMPLETE["choices"][0], "message": {**COMPLETE["choices"][0]["message"], **message}}
    body = json.dumps({**COMPLETE, "choices": [choice], **envelope}, separators=(space + ",", ":" + space)).encode()
    whole = read_answer(body, CONTEXT)
    assert isinstance(whole, Whole)
    own = {"id": b'"chatcmpl-a1"', "model": b'"m"'}
    assert _raw(splice_answer(whole.raw, "a1", "m")) == {**_raw(body), **own}


@given(streams())
def test_what_is_spliced_says_what_is_decoded(events: list[Event]) -> None:
    body = encode_answer(assemble(events), "theirs")
    batch = read_answer(body, CONTEXT)
    assert list(batch) == decode_answer(body, CONTEXT)
    assert commits(batch)
    check(batch)
    if isinstance(batch, Whole):
        spliced = decode_answer(splice_answer(batch.raw, "a1", "theirs"), CONTEXT)
        assert assemble(spliced) == assemble(batch)


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in COMPLETE.items() if key != name}


def _choice(**fields: Any) -> dict[str, Any]:
    return {**COMPLETE, "choices": [{**COMPLETE["choices"][0], **fields}]}


INCOMPLETE: dict[str, dict[str, Any]] = {
    **{f"no {name}": _without(name) for name in COMPLETE if name != "choices"},
    "no finish reason": _choice(finish_reason=None),
    "a message without content": _choice(message={"role": "assistant", "refusal": "no"}),
    "a message without refusal": _choice(message={"role": "assistant", "content": "a"}),
    "created is a float": {**COMPLETE, "created": 5.5},
    "usage is null": {**COMPLETE, "usage": None},
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_what_is_incomplete_is_decoded(name: str) -> None:
    body = json.dumps(INCOMPLETE[name]).encode()
    batch = read_answer(body, CONTEXT)
    assert batch == decode_answer(body, CONTEXT)
    check(batch)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b"[]",
        json.dumps(COMPLETE).encode()[:-1],
        json.dumps(COMPLETE).encode().replace(b'"hi"', b'"\xff"'),
        json.dumps(COMPLETE).encode().replace(b'"usage"', b'"x":"\xff","usage"'),
        json.dumps(COMPLETE).encode().replace(b'"usage"', rb'"x":"\ud800","usage"'),
        json.dumps(COMPLETE).encode().replace(b'"usage"', b'"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"usage"'),
    ],
)
def test_what_is_no_answer_is_the_upstreams_fault(body: bytes) -> None:
    with pytest.raises(Failure, match="can't be read") as raised:
        read_answer(body, CONTEXT)
    assert raised.value.kind is Kind.UPSTREAM_PROTOCOL


def test_an_error_in_a_good_answer_is_an_error() -> None:
    with pytest.raises(Failure) as raised:
        read_answer(b'{"error":{"message":"m","code":429}}', CONTEXT)
    assert raised.value.kind is Kind.UPSTREAM_RATE_LIMITED
    with pytest.raises(Failure):
        read_answer(json.dumps({**COMPLETE, "error": {"message": "m"}}).encode(), CONTEXT)

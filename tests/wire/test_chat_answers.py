"""Chat answers in OpenAI's dialect, streamed and whole: bytes to events and back, with nothing unknown lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from llmg.core.assemble import Answer, assemble
from llmg.core.errors import Failure, Kind
from llmg.core.events import (
    Annotated,
    Batch,
    Checker,
    Closed,
    Delta,
    Event,
    Extra,
    Finished,
    Notice,
    Opened,
    Started,
    TokenLogprob,
    check,
)
from llmg.core.usage import Usage
from llmg.wire import sse
from llmg.wire.openai.answers import decode_answer, encode_answer
from llmg.wire.openai.chunks import ChunkDecoder, ChunkEncoder
from wire.generated import CONTEXT, cuts, plain, streams, unknown


def _decode(pieces: Iterable[bytes]) -> list[Event]:
    """A stream's bytes as the provider reads them."""
    reader, decoder, out = sse.Decoder(), ChunkDecoder(CONTEXT), list[Event]()
    for piece in pieces:
        for event in reader.feed(piece):
            if event.data != b"[DONE]":
                decoder.feed(event.data, out)
    decoder.end(out)
    return out


def _stream(*chunks: dict[str, Any]) -> list[Event]:
    return _decode([*[sse.encode(msgspec.json.encode(chunk)) for chunk in chunks], sse.DONE])


def _encode(batches: Iterable[Batch], include_usage: bool = True) -> bytes:
    encoder = ChunkEncoder("m", include_usage)
    return b"".join([encoder.encode(batch) for batch in batches]) + sse.DONE


def _chunks(body: bytes) -> list[dict[str, Any]]:
    reader = sse.Decoder()
    return [json.loads(event.data) for event in reader.feed(body) if event.data != b"[DONE]"]


def _told(answer: Answer) -> Answer:
    """Without the upstream's own id and model, and what of the envelope came first (all of it is in `extra`)."""
    started = replace(answer.started, model="m", upstream_id="u1", extra=UNSET)
    return replace(answer, started=started)


def _unary(answer: Answer) -> Answer:
    """The same as a unary body can say it: the parts in the message's order, each kind in one."""
    return replace(answer, choices=tuple([replace(choice, parts=_grouped(choice.parts)) for choice in answer.choices]))


def _grouped(parts: Iterable[Any]) -> tuple[Any, ...]:
    out: list[Any] = []
    for kind in ("reasoning", "text", "refusal"):
        same = [part for part in parts if part.kind == kind]
        if same:
            lps = tuple(lp for part in same if part.logprobs is not UNSET for lp in part.logprobs)
            out.append(replace(same[0], data="".join(part.data for part in same), logprobs=lps or UNSET))
    return (*out, *[part for part in parts if part.kind == "tool"])


# --- properties ----------------------------------------------------------------------------------------------------


@given(st.data(), streams())
def test_any_chunking_gives_the_same_events(data: st.DataObject, events: list[Event]) -> None:
    body = _encode([events])
    whole = _decode([body])
    assert _decode(data.draw(cuts(body))) == whole
    check(whole)


@given(streams())
def test_generated_streams_obey_the_grammar(events: list[Event]) -> None:
    check(events)


@given(st.data(), streams())
def test_any_batching_gives_the_same_bytes(data: st.DataObject, events: list[Event]) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=6)))
    batches = [events[a:b] for a, b in zip([0, *places], [*places, len(events)], strict=True)]
    assert _encode(batches) == _encode([events])


@given(streams())
def test_a_stream_comes_back(events: list[Event]) -> None:
    assert _told(assemble(_decode([_encode([events])]))) == _told(assemble(events))


@given(streams())
def test_the_unary_answer_is_what_the_stream_said(events: list[Event]) -> None:
    answer = assemble(events)
    decoded = decode_answer(encode_answer(answer, "m"), CONTEXT)
    check(decoded)
    back = assemble(decoded)
    assert _told(replace(back, started=replace(back.started, upstream_id="u1"))) == _told(_unary(answer))
    again = assemble(decode_answer(encode_answer(back, "m"), CONTEXT))
    assert again == back


@given(streams())
def test_usage_is_not_shown_to_who_did_not_ask(events: list[Event]) -> None:
    chunks = _chunks(_encode([events], include_usage=False))
    assert all("usage" not in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


_MESSAGE = {"role": "assistant", "content": "hi", "refusal": None}
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
_TOKEN = {"token": "hi", "logprob": -0.5, "bytes": [104, 105]}


@given(*[st.just({}) | unknown] * 10)
def test_unknown_fields_of_a_whole_answer_come_back(
    envelope: dict[str, Any],
    choice: dict[str, Any],
    message: dict[str, Any],
    call: dict[str, Any],
    function: dict[str, Any],
    usage: dict[str, Any],
    details: dict[str, Any],
    lps: dict[str, Any],
    token: dict[str, Any],
    top: dict[str, Any],
) -> None:
    body = {
        "id": "chatcmpl-a1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    **_MESSAGE,
                    "tool_calls": [{**_CALL, "function": {**_CALL["function"], **function}, **call}],  # type: ignore[dict-item]
                    **message,
                },
                "logprobs": {
                    "content": [{**_TOKEN, "top_logprobs": [{**_TOKEN, **top}], **token}],
                    "refusal": None,
                    **lps,
                },
                "finish_reason": "tool_calls",
                **choice,
            }
        ],
        "usage": {**_USAGE, "prompt_tokens_details": {**_USAGE["prompt_tokens_details"], **details}, **usage},  # type: ignore[dict-item]
        "service_tier": "default",
        "system_fingerprint": "fp",
        **envelope,
    }
    answer = assemble(decode_answer(msgspec.json.encode(body), CONTEXT))
    assert json.loads(encode_answer(answer, "m")) == body


@given(*[st.just({}) | unknown] * 5, st.lists(unknown, min_size=1, max_size=3))
def test_unknown_fields_of_a_stream_come_back(
    envelope: dict[str, Any],
    choice: dict[str, Any],
    delta: dict[str, Any],
    call: dict[str, Any],
    usage: dict[str, Any],
    words: list[dict[str, Any]],
) -> None:
    head = {"id": "chatcmpl-a1", "object": "chat.completion.chunk", "created": 5, "model": "m"}

    def chunk(
        delta: dict[str, Any], around: dict[str, Any], *, finish: str | None = None, **more: Any
    ) -> dict[str, Any]:
        one = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        return {**head, "choices": [one], "usage": None, **around}

    role = {"role": "assistant", "content": "", "refusal": None}
    calls = [{"index": 0, "function": {"arguments": "{}"}, **call}]
    opened = [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]
    sent = [
        chunk(role, envelope),
        *[chunk({"content": "a", **word}, envelope, **choice) for word in words],
        chunk({"tool_calls": opened}, {}),
        chunk({"tool_calls": calls}, {}),
        chunk(delta, envelope, finish="tool_calls", **choice),
        {**head, "choices": [], "usage": {**_USAGE, **usage}, **envelope},
    ]
    assert _chunks(_encode([_stream(*sent)])) == sent


# --- what upstreams do ---------------------------------------------------------------------------------------------


def _delta(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


_STOP = _delta(finish="stop")
_STARTED = Started(CONTEXT.id, CONTEXT.created, "")


def _call(index: int | None = None, **fields: Any) -> dict[str, Any]:
    named = {name: fields.pop(name) for name in ("name", "arguments") if name in fields}
    return {**({} if index is None else {"index": index}), **fields, "function": named}


def _text(*words: str, reason: Any = "stop") -> list[Event]:
    deltas: list[Event] = [Delta(0, 0, word) for word in words]
    return [_STARTED, Opened(0, 0, "text"), *deltas, Closed(0, 0), Finished(0, reason)]


def _tools(*calls: tuple[str, str, str]) -> list[Event]:
    """Calls as (id, name, arguments), assembled: see `test_tool_calls`."""
    opened: list[Event] = []
    for part, (id, name, arguments) in enumerate(calls):
        opened += [Opened(0, part, "tool", id, name), Delta(0, part, arguments)]
    closed: list[Event] = [Closed(0, part) for part in range(len(calls))]
    return [_STARTED, *opened, *closed, Finished(0, "tool_calls")]


ODDITIES: dict[str, tuple[list[dict[str, Any]], list[Event]]] = {
    "the usual": (
        [_delta(role="assistant", content=""), _delta(content="a"), _delta(content="b"), _STOP],
        _text("a", "b"),
    ),
    "content with the finish": ([_delta(content="a", finish="length")], _text("a", reason="length")),
    "finish reasons that are empty": (
        [_delta(content="a", finish=""), _delta(content="b", finish=""), _STOP],
        _text("a", "b"),
    ),
    "a finish reason of its own": (
        [_delta(content="a"), _delta(finish="eos")],
        [*_text("a")[:-1], Finished(0, "other", "eos")],
    ),
    "the last chunk again": ([_delta(content="a"), _STOP, _STOP, _delta(content="lost", finish="stop")], _text("a")),
    "no index": ([{"choices": [{"delta": {"content": "a"}}]}, _STOP], _text("a")),
    "no delta": ([_delta(content="a"), {"choices": [{"index": 0, "finish_reason": "stop"}]}], _text("a")),
    "a null delta": (
        [_delta(content="a"), {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}],
        _text("a"),
    ),
    "null choices": ([{"choices": None}, _delta(content="a"), {"choices": None}, _STOP], _text("a")),
    "no choices": ([{"id": None}, _delta(content="a"), {"object": "ping"}, _STOP], _text("a")),
    "role alone, then nothing": ([_delta(role="assistant"), _STOP], [_STARTED, Finished(0, "stop")]),
    "an empty text": ([_delta(role="assistant", content=""), _STOP], _text()),
    "nulls all over": (
        [
            _delta(role=None, content=None, refusal=None, reasoning_content=None, tool_calls=None),
            _delta(content="a"),
            _STOP,
        ],
        _text("a"),
    ),
    "usage in every chunk": (
        [
            {**_delta(content="a"), "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
            {**_STOP, "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
        ],
        [*_text("a"), Usage(input_tokens=3, output_tokens=2)],
    ),
    "usage alone at the end": (
        [_delta(content="a"), _STOP, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}],
        [*_text("a"), Usage(input_tokens=3, output_tokens=1)],
    ),
    "usage with nulls": (
        [{**_delta(content="a"), "usage": None}, {**_STOP, "usage": {"prompt_tokens": None, "total_tokens": 0}}],
        [*_text("a"), Usage()],
    ),
    "usage that adds up otherwise": (
        [_delta(content="a"), {**_STOP, "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 9}}],
        [*_text("a"), Usage(input_tokens=3, output_tokens=1, extra=Extra(dialect="openai", item={"total_tokens": 9}))],
    ),
    "a refusal": (
        [_delta(role="assistant", content="", refusal=None), _delta(refusal="no"), _STOP],
        [_STARTED, Opened(0, 0, "refusal"), Delta(0, 0, "no"), Closed(0, 0), Finished(0, "stop")],
    ),
    "thoughts, then words": (
        [
            _delta(reasoning_content="hm", content=None),
            _delta(reasoning_content="m", content=""),
            _delta(content="a"),
            _STOP,
        ],
        [
            _STARTED,
            Opened(0, 0, "reasoning"),
            Delta(0, 0, "hm"),
            Delta(0, 0, "m"),
            Closed(0, 0),
            Opened(0, 1, "text"),
            Delta(0, 1, "a"),
            Closed(0, 1),
            Finished(0, "stop"),
        ],
    ),
    "thoughts by another name": (
        [_delta(reasoning="hm", content=""), _delta(reasoning="m"), _delta(finish="stop", content="a")],
        [
            _STARTED,
            Opened(0, 0, "reasoning"),
            Delta(0, 0, "hm"),
            Delta(0, 0, "m"),
            Opened(0, 1, "text"),
            Delta(0, 1, "a"),
            Closed(0, 1),
            Finished(0, "stop"),
        ],
    ),
    "created is a float": (
        [{**_delta(content="a"), "created": 5.5}, _STOP],
        [Started(CONTEXT.id, 5, ""), *_text("a")[1:]],
    ),
    "two choices": (
        [_delta(1, content="b"), _delta(0, content="a"), _delta(1, "stop"), _delta(0, "stop")],
        [
            _STARTED,
            Opened(1, 0, "text"),
            Delta(1, 0, "b"),
            Opened(0, 0, "text"),
            Delta(0, 0, "a"),
            Closed(1, 0),
            Finished(1, "stop"),
            Closed(0, 0),
            Finished(0, "stop"),
        ],
    ),
    "empty log probabilities": (
        [
            {"choices": [{"index": 0, "delta": {"content": ""}, "logprobs": {"content": []}}]},
            {"choices": [{"index": 0, "delta": {"reasoning_content": "a"}, "logprobs": {"content": None}}]},
            _STOP,
        ],
        [
            _STARTED,
            Opened(0, 0, "reasoning"),
            Delta(0, 0, "a"),
            Closed(0, 0),
            Opened(0, 1, "text"),
            Closed(0, 1),
            Finished(0, "stop"),
        ],
    ),
    "log probabilities of thoughts": (
        [
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {"reasoning_content": "a"},
                        "logprobs": {"content": [{"token": "a", "logprob": -1}]},
                    }
                ]
            },
            _STOP,
        ],
        [
            _STARTED,
            Opened(0, 0, "reasoning"),
            Delta(0, 0, "a", (TokenLogprob("a", -1.0),)),
            Closed(0, 0),
            Finished(0, "stop"),
        ],
    ),
    "log probabilities with a token's number": (
        [
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {"content": "a"},
                        "logprobs": {
                            "content": [
                                {
                                    "id": 7,
                                    "token": "a",
                                    "logprob": -1,
                                    "top_logprobs": [{"id": 8, "token": "b", "logprob": -2}],
                                }
                            ]
                        },
                    }
                ]
            },
            _STOP,
        ],
        [
            _STARTED,
            Opened(0, 0, "text"),
            Delta(
                0, 0, "a", (TokenLogprob("a", -1.0, None, (TokenLogprob("b", -2.0, None, (), {"id": 8}),), {"id": 7}),)
            ),
            Closed(0, 0),
            Finished(0, "stop"),
        ],
    ),
    "what is unknown before the first word": (
        [_delta(role="assistant", x=1), _delta(content="a"), _STOP],
        [*_text()[:2], Delta(0, 0, "a", UNSET, Extra(dialect="openai", item={"x": 1})), *_text()[2:]],
    ),
}


@pytest.mark.parametrize("name", ODDITIES)
def test_what_upstreams_do(name: str) -> None:
    chunks, expected = ODDITIES[name]
    events = _stream(*chunks)
    check(events)
    # Where a part is closed is the decoder's affair, so long as the grammar holds.
    closed = {(e.choice, e.part) for e in expected if isinstance(e, Closed | Opened)}
    assert {(e.choice, e.part) for e in events if isinstance(e, Closed)} == closed
    assert [e for e in events if not isinstance(e, Closed)] == [e for e in expected if not isinstance(e, Closed)]


TOOL_CALLS: dict[str, tuple[list[list[dict[str, Any]]], list[Event]]] = {
    "the usual": (
        [[_call(0, id="c", name="f", arguments="")], [_call(0, arguments='{"a"')], [_call(0, arguments=":1}")]],
        _tools(("c", "f", '{"a":1}')),
    ),
    "two, interleaved": (
        [
            [_call(0, id="c", name="f")],
            [_call(1, id="d", name="g")],
            [_call(1, arguments="{}"), _call(0, arguments="[]")],
        ],
        _tools(("c", "f", "[]"), ("d", "g", "{}")),
    ),
    "whole, without index": (
        [[_call(id="c", name="f", arguments="{}"), _call(id="d", name="g", arguments="[]")]],
        _tools(("c", "f", "{}"), ("d", "g", "[]")),
    ),
    "in pieces, without index": (
        [
            [_call(id="c", name="f", arguments="{")],
            [_call(arguments="}")],
            [_call(id="d", name="g")],
            [_call(arguments="[]")],
        ],
        _tools(("c", "f", "{}"), ("d", "g", "[]")),
    ),
    "without index, the id in each piece": (
        [[_call(id="c", name="f", arguments="{")], [_call(id="c", arguments="}")]],
        _tools(("c", "f", "{}")),
    ),
    "all with index 0": (
        [
            [_call(0, id="c", name="f", arguments="{}")],
            [_call(0, id="d", name="g", arguments="[")],
            [_call(0, arguments="]")],
        ],
        _tools(("c", "f", "{}"), ("d", "g", "[]")),
    ),
    "the name in each piece": (
        [[_call(0, id="c", name="f", arguments="{")], [_call(0, id="c", name="f", arguments="}")]],
        _tools(("c", "f", "{}")),
    ),
    "neither index nor id": (
        [[_call(name="f", arguments="{"), _call(name="g", arguments="[")]],
        _tools(("call_a1_0_0", "f", "{"), ("call_a1_0_1", "g", "[")),
    ),
    "the id null": ([[_call(0, id=None, name="f", arguments="{}")]], _tools(("call_a1_0_0", "f", "{}"))),
}


@pytest.mark.parametrize("name", TOOL_CALLS)
def test_tool_calls(name: str) -> None:
    pieces, expected = TOOL_CALLS[name]
    events = _stream(*[_delta(tool_calls=calls) for calls in pieces], _delta(finish="tool_calls"))
    check(events)
    assert assemble(events) == assemble(expected)


def test_a_tool_call_keeps_what_is_unknown() -> None:
    signed = {"extra_content": {"google": {"thought_signature": "s"}}}
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, **signed}
    answer = assemble(_stream(_delta(tool_calls=[call]), _delta(finish="tool_calls")))
    assert json.loads(encode_answer(answer, "m"))["choices"][0]["message"]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, **signed}
    ]


def test_a_call_of_no_function_comes_back_whole() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}
    body = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    answer = assemble(decode_answer(json.dumps(body).encode(), CONTEXT))
    assert json.loads(encode_answer(answer, "m"))["choices"][0]["message"]["tool_calls"] == [call]


UNREADABLE: dict[str, bytes] = {
    "HTML": b"<html><body>Bad gateway</body></html>",
    "nothing": b"",
    "cut JSON": b'{"choices":[{"delta":{"content":"a"',
    "an array": b"[]",
    "a number": b"5",
    "bad UTF-8": b'{"choices":[{"delta":{"content":"\xff"}}]}',
    "half a surrogate pair": rb'{"choices":[{"delta":{"content":"\ud800"}}]}',
    "deep": b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and unknown": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "choices are words": b'{"choices":"hi"}',
    "choices are numbers": b'{"choices":[5]}',
    "content is a number": b'{"choices":[{"delta":{"content":5},"message":{"content":5}}]}',
    "usage is a list": b'{"choices":[],"usage":[]}',
    "created is huge": b'{"choices":[],"created":1e400}',
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_answer_is_the_upstreams_fault(name: str) -> None:
    for decode in (lambda body: ChunkDecoder(CONTEXT).feed(body, []), lambda body: decode_answer(body, CONTEXT)):
        with pytest.raises(Failure, match="can't be read") as raised:
            decode(UNREADABLE[name])
        assert raised.value.kind is Kind.UPSTREAM_PROTOCOL


ERRORS: list[tuple[Any, Kind]] = [
    ("something broke", Kind.UPSTREAM_ERROR),
    ({"message": "something broke", "code": None}, Kind.UPSTREAM_ERROR),
    ({"message": "m", "code": "rate_limit_exceeded"}, Kind.UPSTREAM_RATE_LIMITED),
    ({"message": "m", "code": 429}, Kind.UPSTREAM_RATE_LIMITED),
    ({"message": "m", "code": 503}, Kind.UPSTREAM_UNAVAILABLE),
    ({"message": "m", "code": True}, Kind.UPSTREAM_ERROR),
    ({"message": "m", "code": 7}, Kind.UPSTREAM_ERROR),
    ({"message": "m", "type": "overloaded_error"}, Kind.UPSTREAM_UNAVAILABLE),
    ({"message": "m", "code": "context_length_exceeded"}, Kind.CONTEXT_LENGTH_EXCEEDED),
    (["odd"], Kind.UPSTREAM_ERROR),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS)
def test_an_error_in_a_good_answer_is_an_error(error: Any, kind: Kind) -> None:
    body = json.dumps({"error": error}).encode()
    out: list[Event] = []
    decoder = ChunkDecoder(CONTEXT)
    decoder.feed(msgspec.json.encode(_delta(content="a")), out)
    with pytest.raises(Failure) as raised:
        decoder.feed(body, out)
    assert raised.value.kind is kind
    assert out == _text("a")[:3]
    with pytest.raises(Failure) as raised:
        decode_answer(body, CONTEXT)
    assert raised.value.kind is kind


@pytest.mark.parametrize("before", [[], [{**_delta(content="a"), "x": 1}], [_delta(content="a", x=1)]])
def test_an_error_beside_choices_is_an_error(before: list[dict[str, Any]]) -> None:
    """Whichever way the stream is read by then: strictly, or for what is unknown around or in its choices."""
    with pytest.raises(Failure) as raised:
        _stream(*before, {**_delta(content="b"), "error": {"message": "m", "code": 503}})
    assert raised.value.kind is Kind.UPSTREAM_UNAVAILABLE


def test_a_null_error_is_none() -> None:
    assert Finished(0, "stop") in _stream({**_delta(content="a"), "error": None}, _STOP)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [{"choices": []}],
        [{"choices": [], "usage": {"prompt_tokens": 1}}],
        [_delta(role="assistant")],
        [_delta(content="a")],
        [_delta(content="a", finish="")],
        [_delta(0, content="a", finish="stop"), _delta(1, content="b")],
    ],
)
def test_a_stream_cut_short(chunks: list[dict[str, Any]]) -> None:
    with pytest.raises(Failure) as raised:
        _stream(*chunks)
    assert raised.value.kind is Kind.UPSTREAM_TRUNCATED


def test_no_done_is_needed() -> None:
    bodies = [sse.encode(msgspec.json.encode(chunk)) for chunk in (_delta(content="a"), _STOP)]
    assert _decode(bodies) == _text("a")


WHOLES: dict[str, tuple[dict[str, Any], list[tuple[str, Any]]]] = {
    # a message, the parts it has
    "text": ({"content": "a"}, [("text", "a")]),
    "an empty text": ({"content": ""}, [("text", "")]),
    "nothing": ({"content": None}, []),
    "no message": ({}, []),
    "a refusal": ({"content": None, "refusal": "no"}, [("refusal", "no")]),
    "thoughts": ({"content": "a", "reasoning_content": "hm"}, [("reasoning", "hm"), ("text", "a")]),
    "thoughts by another name": ({"content": "a", "reasoning": "hm"}, [("reasoning", "hm"), ("text", "a")]),
    "a tool call": (
        {"content": "", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
        [("tool", "{}")],
    ),
    "a tool call without id": ({"tool_calls": [{"function": {"name": "f", "arguments": None}}]}, [("tool", "")]),
    "no tool call": ({"content": "a", "tool_calls": []}, [("text", "a")]),
}


@pytest.mark.parametrize("name", WHOLES)
def test_whole_messages(name: str) -> None:
    message, expected = WHOLES[name]
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    events = decode_answer(json.dumps(body).encode(), CONTEXT)
    check(events)
    assert [(part.kind, part.data) for part in assemble(events).choices[0].parts] == expected


def test_what_has_no_place_in_the_dialect_is_left_out() -> None:
    events: list[Event] = [
        Started("a1", 5, "u"),
        Opened(0, 0, "audio"),
        Delta(0, 0, b"\x00"),
        Annotated(0, 0, {"transcript": "a"}),
        Opened(0, 1, "text"),
        Delta(0, 1, "a", UNSET, Extra(dialect="other", envelope={"x": 1}, choice={"y": 1}, item={"z": 1})),
        Closed(0, 0),
        Closed(0, 1),
        Notice("route"),
        Usage(final=False),
        Finished(0, "stop", "end_turn"),
    ]
    check(events)
    deltas = [chunk["choices"][0] for chunk in _chunks(_encode([events]))]
    assert [choice["delta"] for choice in deltas] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "a"},
        {},
    ]
    assert [choice["finish_reason"] for choice in deltas] == [None, None, "stop"]
    message = json.loads(encode_answer(assemble(events), "m"))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "a", "refusal": None}


# --- whatever comes, events or a Failure ---------------------------------------------------------------------------

_WORDS = """
    choices delta message content index tool_calls function name arguments id usage logprobs token
    logprob top_logprobs finish_reason refusal reasoning role created error prompt_tokens
    prompt_tokens_details object (kept) x
"""
_NAMES = st.sampled_from(_WORDS.split())
_LIKELY: st.SearchStrategy[Any] = st.recursive(
    plain | st.integers(0, 2) | st.just(10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(_NAMES, _LIKELY, max_size=5), max_size=3), st.dictionaries(_NAMES, _LIKELY, max_size=5))
def test_any_body_is_an_answer_or_a_failure(choices: list[Any], envelope: dict[str, Any]) -> None:
    body = json.dumps({**envelope, "choices": choices}).encode()
    for feed in (ChunkDecoder(CONTEXT).feed, lambda body, out: out.extend(decode_answer(body, CONTEXT))):
        out: list[Event] = []
        try:
            feed(body, out)
        except Failure:
            continue
        checker = Checker()
        for event in out:
            checker.feed(event)


def test_choices_of_a_whole_answer_have_an_index_each() -> None:
    def body(*indexes: int | None) -> bytes:
        choices = [{"message": {"content": "a"}, **({} if i is None else {"index": i})} for i in indexes]
        return json.dumps({"choices": choices}).encode()

    assert [choice.index for choice in assemble(decode_answer(body(None, None), CONTEXT)).choices] == [0, 1]
    with pytest.raises(Failure, match="can't be read"):
        decode_answer(body(0, 0), CONTEXT)

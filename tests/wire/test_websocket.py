"""The frames of `llmg.v1`."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.core import events
from llmg.core.context import Attempt, Context
from llmg.core.errors import Failure, Kind, invalid
from llmg.core.extra import Extra
from llmg.core.request import Chat, Embed
from llmg.core.usage import Usage
from llmg.wire import websocket as wire

CHAT = Chat("asked", ())
_server_frame = msgspec.json.Decoder(wire.ServerFrame).decode


def encoded(*batch: events.Event, request: Chat | Embed = CHAT) -> Any:
    """The events of a frame, as plain JSON. The frame is held against the frames that there are."""
    text = wire.EventEncoder("a", request).encode(batch)
    assert text is not None
    assert isinstance(_server_frame(text), wire.Events)
    frame = json.loads(text)
    assert (frame["type"], frame["id"]) == ("events", "a")
    return frame["events"]


TOKEN = events.TokenLogprob("H", -0.5, (72,), (events.TokenLogprob("G", -1.5),))
EVENTS: dict[str, tuple[events.Event, Any]] = {
    "started": (
        events.Started("i", 7, "theirs", "fp", "flex", "their-id", Extra(dialect="openai")),
        {"id": "i", "created": 7, "model": "asked", "system_fingerprint": "fp", "service_tier": "flex"},
    ),
    "opened": (events.Opened(0, 1, "text"), {"choice": 0, "part": 1, "kind": "text"}),
    "a tool opened": (
        events.Opened(0, 1, "tool", "call_1", "look_up"),
        {"choice": 0, "part": 1, "kind": "tool", "id": "call_1", "name": "look_up"},
    ),
    "delta": (events.Delta(2, 3, 'say "hé"\n'), {"choice": 2, "part": 3, "text": 'say "hé"\n'}),
    "a delta of bytes": (events.Delta(0, 0, b"\xff\x00"), {"choice": 0, "part": 0, "data": "/wA="}),
    "a delta with log probabilities": (
        events.Delta(0, 0, "H", (TOKEN,)),
        {
            "choice": 0,
            "part": 0,
            "text": "H",
            "logprobs": [{"token": "H", "logprob": -0.5, "bytes": [72], "top": [{"token": "G", "logprob": -1.5}]}],
        },
    ),
    "annotated": (
        events.Annotated(0, 0, {"type": "url_citation", "url": "u"}),
        {"choice": 0, "part": 0, "annotation": {"type": "url_citation", "url": "u"}},
    ),
    "closed": (events.Closed(0, 1), {"choice": 0, "part": 1}),
    "finished": (
        events.Finished(0, "other", "eos", "END"),
        {"choice": 0, "reason": "other", "native_reason": "eos", "stop_sequence": "END"},
    ),
    "usage": (
        Usage(input_tokens=1, output_tokens=2, reasoning_tokens=1, source="estimated"),
        {
            "input_tokens": 1,
            "output_tokens": 2,
            "cached_tokens": 0,
            "cache_written_tokens": 0,
            "reasoning_tokens": 1,
            "input_audio_tokens": 0,
            "output_audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            "final": True,
            "estimated": True,
        },
    ),
    "notice": (events.Notice("switched", {"to": "b"}), {"kind": "switched", "data": {"to": "b"}}),
    "result": (
        events.Result(events.Embeddings((events.Embedding(0, (0.5,)),))),
        {"embeddings": [{"index": 0, "values": [0.5]}]},
    ),
}


@pytest.mark.parametrize(("event", "shown"), EVENTS.values(), ids=EVENTS)
def test_an_event(event: events.Event, shown: dict[str, Any]) -> None:
    assert encoded(event) == [{"type": type(event).__struct_config__.tag, **shown}]


def test_every_event_is_shown() -> None:
    assert {type(event) for event, _ in EVENTS.values()} == set(events.GRAMMAR)


def test_vectors_in_base64() -> None:
    request = Embed("e", ("x",), packed=True)
    both = events.Embeddings((events.Embedding(0, (0.5,)), events.Embedding(1, b"\0\0\0\x3f")))
    assert encoded(events.Result(both), request=request)[0]["embeddings"] == [
        {"index": 0, "packed": "AAAAPw=="},
        {"index": 1, "packed": "AAAAPw=="},
    ]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.text(st.characters(exclude_categories=["Cs"])))))
def test_deltas_the_short_way(given: list[tuple[int, int, str]]) -> None:
    encoder = wire.EventEncoder('"quoted"', CHAT)
    text = encoder.encode([events.Delta(*delta) for delta in given])
    if not given:
        assert text is None
    else:
        assert text is not None
        assert _server_frame(text) == wire.Events('"quoted"', [wire.Delta(*delta) for delta in given])


def test_done() -> None:
    context = Context(id="i", request_id="r", door="websocket", created=1, trail=[])
    assert json.loads(wire.encode_done("a", context)) == {"type": "done", "id": "a", "request_id": "r"}
    context.trail += [Attempt(provider="p", model=model, started=0.0) for model in "mn"]
    assert json.loads(wire.encode_done("a", context)) == {
        "type": "done",
        "id": "a",
        "request_id": "r",
        "route": "p/n",
        "attempts": 2,
    }


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_of_failure(kind: Kind) -> None:
    failure = Failure(kind, "so it is", detail="secret")
    frame = json.loads(wire.encode_error(failure, "a", "r"))
    param = {"param": "request"} if kind is Kind.INVALID_REQUEST else {}
    assert frame == {
        "type": "error",
        "id": "a",
        "error": {"code": kind.value, "message": "so it is", "request_id": "r", **param},
    }


def test_an_error_of_a_frame() -> None:
    assert json.loads(wire.encode_error(invalid("no", "id"))) == {
        "type": "error",
        "error": {"code": "invalid_request", "message": "no", "param": "id"},
    }


def test_what_clients_send() -> None:
    assert wire.decode_frame(b'{"type":"init"}') == wire.Init()
    assert wire.decode_frame(b'{"key":"k","type":"init"}') == wire.Init("k")
    assert wire.decode_frame(b'{"type":"cancel","id":"1"}') == wire.Cancel("1")
    assert wire.decode_frame(b'{"type":"ping"}') == wire.Ping()
    start = wire.decode_frame(b'{"type":"start","id":"1","timeout":1,"request":{"a": [1]}}')
    assert isinstance(start, wire.Start)
    assert (start.id, start.operation, start.timeout, bytes(start.request)) == (
        "1",
        "chat.completions",
        1.0,
        b'{"a": [1]}',
    )


@pytest.mark.parametrize(
    ("stream", "streamed"),
    [({}, True), ({"stream": None}, True), ({"stream": True}, True), ({"stream": False}, False)],
)
def test_a_chat_is_streamed_unless_it_says_otherwise(stream: dict[str, Any], streamed: bool) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **stream}).encode()
    chat = wire.decode_request(wire.Start("1", msgspec.Raw(body)))
    assert isinstance(chat, Chat)
    assert chat.stream is streamed


def test_a_refused_start_says_whose_it_is() -> None:
    with pytest.raises(wire.BadFrame) as caught:
        wire.decode_frame(b'{"type":"start","id":"7"}')
    assert (caught.value.id, caught.value.failure.param) == ("7", "request")
    with pytest.raises(wire.BadFrame) as caught:
        wire.decode_frame(b'{"type":"cancel","id":"7","more":1}')
    assert caught.value.id is None


def heard(data: bytes) -> wire.ClientFrame | wire.BadFrame | wire.NotJson:
    """What becomes of a frame; nothing else may."""
    try:
        return wire.decode_frame(data)
    except (wire.BadFrame, wire.NotJson) as refusal:
        return refusal


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
def test_no_bytes_break_it(data: bytes) -> None:
    try:
        json.loads(data)
        is_json = b"\x00" not in data and not data.startswith((b"\xef\xbb\xbf", b"\xff", b"\xfe"))
    except ValueError:
        is_json = False
    if isinstance(heard(data), wire.NotJson):
        assert not is_json or b"NaN" in data or b"Infinity" in data


plain = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["type", "id", "request", "operation", "key", "timeout"])
values = st.sampled_from(["init", "start", "cancel", "ping", "embeddings", "1"]) | plain


@given(st.dictionaries(names, values))
def test_no_frame_breaks_it(given: dict[str, Any]) -> None:
    frame = heard(json.dumps(given).encode())
    assert not isinstance(frame, wire.NotJson)
    if isinstance(frame, wire.BadFrame):
        assert frame.failure.kind is Kind.INVALID_REQUEST
        assert frame.id in (None, given.get("id"))
        return
    assert type(frame).__struct_config__.tag == given["type"]
    if isinstance(frame, wire.Start):
        with pytest.raises(Failure):  # no such request is whole
            wire.decode_request(frame)


def test_the_table_of_closes_is_whole() -> None:
    assert set(wire.CLOSES) == set(wire.Close)
    assert all(len(reason.encode()) <= 123 for reason in wire.CLOSES.values())

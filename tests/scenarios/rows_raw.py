"""What is no request: what a client of ours could not send, and what whoever sends it must learn, at whatever door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from msgspec import Raw, Struct

from llmg.core.errors import Kind
from llmg.gatewayapi.v1 import chat_pb2
from llmg.testing.scripted import Script, saying
from scenarios.asking import Asked, Door, Shape, Told, asked, vectors_asked
from scenarios.rows import choice, part
from scenarios.rows_vectors import ONE, TEXT, given, gives


class RawRow(Struct, frozen=True, kw_only=True):
    """What a client of ours could not send, and what whoever sends it must learn. `but`: by whom something else is
    told, and why is said in the row. What is None can't be sent in that shape."""

    openai: bytes | None = None
    gateway: bytes | None = None
    protobuf: bytes | None = None
    told: Told
    but: Mapping[Shape, Told] = {}
    script: Script = Script(steps=saying("ok"))
    good: Asked = asked()

    @property
    def asked(self) -> Asked:
        """As it is sent."""
        return Asked(openai=Raw(self.openai or b""), gateway=Raw(self.gateway or b""), protobuf=self.protobuf)

    def can_be_sent(self, door: Door) -> bool:
        """Is there anything to send to that door?"""
        sent: dict[Shape, bytes | None] = {
            "openai": self.openai,
            "websocket": self.openai,
            "gateway": self.gateway,
            "graphql": self.gateway,
            "grpc": self.protobuf,
        }
        return door.raw is not None and sent[door.raw] is not None

    def told_by(self, door: Door) -> Told:
        """What a client learns there."""
        assert door.raw is not None
        return self.but.get(door.raw, self.told)


def because(field: str | None) -> Told:
    """A refusal that names this field."""
    return Told(failure=Kind.INVALID_REQUEST, field=field)


OK = Told(choices=(choice(part("text", "ok")),))
PASSED_ON: dict[Shape, Told] = {"openai": OK, "websocket": OK}
AS_A_FIELD: dict[Shape, Told] = {"websocket": because("request"), "graphql": because("input")}  # of what is around it
SENT = asked()
SENT_BY_OPENAI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def wrong(
    field: str | None,
    openai: Mapping[str, Any],
    gateway: Mapping[str, Any],
    protobuf: Message | None = None,
    but: Mapping[Shape, Told] = {},
) -> RawRow:
    """JSON of the wrong shape, because of this field."""
    return RawRow(
        openai=msgspec.json.encode({**SENT_BY_OPENAI, **openai}),
        gateway=msgspec.json.encode({**SENT.typed, **gateway}),
        protobuf=None if protobuf is None else protobuf.SerializeToString(),
        told=because(field),
        but=but,
    )


def none_at_all(
    data: bytes,
    protobuf: bytes | None = None,
    *,
    kind: Kind = Kind.INVALID_REQUEST,
    but: Mapping[Shape, Told] = {},
) -> RawRow:
    """What is no request whatever it is sent to."""
    return RawRow(openai=data, gateway=data, protobuf=protobuf, told=Told(failure=kind), but=but)


def as_message(given: Mapping[str, Any]) -> chat_pb2.CreateChatCompletionRequest:
    """A request by gRPC."""
    return ParseDict({"chat": {**SENT.typed, **given}}, chat_pb2.CreateChatCompletionRequest())


def field(kind: type[Message], name: str, data: bytes) -> bytes:
    """A field of a message that holds bytes, whatever they are."""
    return varint(kind.DESCRIPTOR.fields_by_name[name].number << 3 | 2) + varint(len(data)) + data


def varint(number: int) -> bytes:
    """A number, as protobuf has it."""
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def nested(depth: int) -> bytes:
    """A request by gRPC, with a tool whose schema is nested so deeply."""
    inner = b""
    for _ in range(depth):  # google.protobuf.Struct: a map's entry, in it a value, in it the next
        inner = b"\x2a" + varint(len(inner)) + inner
        inner = b"\x0a\x01a\x12" + varint(len(inner)) + inner
        inner = b"\x0a" + varint(len(inner)) + inner
    tool = field(chat_pb2.Tool, "name", b"t") + field(chat_pb2.Tool, "parameters", inner)
    return as_message({}).SerializeToString() + field(
        chat_pb2.CreateChatCompletionRequest, "chat", field(chat_pb2.Chat, "tools", tool)
    )


MESSAGE: dict[str, Any] = SENT_BY_OPENAI["messages"][0]
PARTS: dict[str, Any] = SENT.typed["messages"][0]
GOOD = as_message({}).SerializeToString()
HUGE = b'{"model":"m","x":"' + b"x" * (33 << 20) + b'"}'
DEEP = b'{"model":"m","x":' + b"[" * 5000 + b"]" * 5000 + b"}"
RAW: dict[str, RawRow] = {
    # values of another type
    "a number for a name": wrong("model", {"model": 7}, {"model": 7}),
    "a list for a name": wrong("model", {"model": ["m"]}, {"model": ["m"]}),
    "null for a name": wrong("model", {"model": None}, {"model": None}),
    "a text for messages": wrong("messages", {"messages": "Hello"}, {"messages": "Hello"}),
    "a number for a message": wrong("messages", {"messages": [MESSAGE, 7]}, {"messages": [PARTS, 7]}),
    "a text for a number": wrong("temperature", {"temperature": "hot"}, {"sampling": {"temperature": "hot"}}),
    "a list for a number": wrong("temperature", {"temperature": [1]}, {"sampling": {"temperature": [1]}}),
    "a fraction for a count": wrong("n", {"n": 1.5}, {"n": 1.5}),
    "a number beyond all counts": wrong("n", {"n": 10**30}, {"n": 10**30}),
    "a number for yes or no": wrong("logprobs", {"logprobs": 1}, {"logprobs": 1}),
    "a number for a text to stop at": wrong("stop", {"stop": [7]}, {"stop": [7]}),
    "a text for a map": wrong("metadata", {"metadata": "a"}, {"metadata": "a"}),
    "a number in a map of texts": wrong(
        "metadata",
        {"metadata": {"a": 1}},
        {"metadata": {"a": 1}},
        but={"gateway": because("a"), "graphql": because("a")},  # which go on to the entry
    ),
    # values that there are not
    "a role that there is not": wrong(
        "role",
        {"messages": [{**MESSAGE, "role": "wizard"}]},
        {"messages": [{**PARTS, "role": "ROLE_WIZARD"}]},
        as_message({"messages": [{**PARTS, "role": 99}]}),
    ),
    "a choice of tools that there is not": wrong(  # which is an object with a mode where it is no text
        "mode",
        {"tool_choice": "perhaps"},
        {"toolChoice": {"mode": "MODE_PERHAPS"}},
        as_message({"toolChoice": {"mode": 99}}),
        but={"openai": because("tool_choice"), "websocket": because("tool_choice")},
    ),
    "a part of no kind": wrong(  # which is a field in OpenAI's dialect; GraphQL's library does not say where it was
        "parts",
        {"messages": [{"role": "user", "content": [{}]}]},
        {"messages": [{"role": "ROLE_USER", "parts": [{}]}]},
        as_message({"messages": [{"role": "ROLE_USER", "parts": [{}]}]}),
        but={"openai": because("type"), "websocket": because("type"), "graphql": because(None)},
    ),
    # fields that there are not: OpenAI's dialect hands on what it does not know, as upstreams may, and protobuf's
    # binary form skips it, as newer clients may know more; in protobuf's JSON and in GraphQL it is a mistake
    "a field that there is not": wrong("wizardry", {"wizardry": 1}, {"wizardry": 1}, but=PASSED_ON),
    "a field that there is not, in a message": wrong(
        "wizardry",
        {"messages": [{**MESSAGE, "wizardry": 1}]},
        {"messages": [{**PARTS, "wizardry": 1}]},
        but=PASSED_ON,
    ),
    "a field of no number that there is": RawRow(
        protobuf=GOOD + field(chat_pb2.CreateChatCompletionRequest, "chat", varint(999 << 3 | 2) + b"\x01x"), told=OK
    ),
    # no JSON object, no message
    "an array": none_at_all(b"[]", but=AS_A_FIELD),
    "a text": none_at_all(b'"Hello"', but=AS_A_FIELD),
    "a number": none_at_all(b"7", but=AS_A_FIELD),
    "no JSON": none_at_all(b"{nope", b"\xff\xff\xff"),
    "cut off": none_at_all(b'{"model":"m","messages":[', GOOD[:-3]),
    "a number that JSON has not": none_at_all(b'{"model":"m","n":NaN}'),
    "half of a surrogate pair": none_at_all(b'{"model":"m\\ud800"}'),
    "a number beyond all floats": RawRow(
        openai=b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e400}',
        gateway=b'{"model":"m","messages":[],"sampling":{"temperature":1e400}}',
        told=because("temperature"),
        but={"gateway": because(None), "graphql": because("variables")},  # in which the fields are yet to be read
    ),
    "bad UTF-8": none_at_all(b'{"model":"m\xff\xfe"}', GOOD.replace(b"Hello", b"H\xff\xfeo!")),
    "nested too deeply": none_at_all(DEEP, nested(5000)),
    "too large": none_at_all(
        HUGE, as_message({"user": "x" * (2 << 20)}).SerializeToString(), kind=Kind.REQUEST_TOO_LARGE
    ),
}


def wrong_vectors(
    field: str, openai: Mapping[str, Any], gateway: Mapping[str, Any], but: Mapping[Shape, Told] = {}
) -> RawRow:
    """JSON of the wrong shape in a request for vectors, because of this field."""
    good = vectors_asked(**TEXT)
    return RawRow(
        openai=msgspec.json.encode({"model": "m", **TEXT["openai"], **openai}),
        gateway=msgspec.json.encode({**good.typed, **gateway}),
        told=because(field),
        but=but,
        script=gives(*ONE),
        good=good,
    )


RAW_VECTORS: dict[str, RawRow] = {
    "a number for an input": wrong_vectors("input", {"input": 7}, {"inputs": 7}),
    "null for an input": wrong_vectors("input", {"input": None}, {"inputs": None}),
    "a text for a token": wrong_vectors("input", {"input": [[1, "a"]]}, {"inputs": [7]}),
    "a text for dimensions": wrong_vectors("dimensions", {"dimensions": "x"}, {"dimensions": "x"}),
    "a fraction for dimensions": wrong_vectors("dimensions", {"dimensions": 1.5}, {"dimensions": 1.5}),
    "a field that there is not": wrong_vectors(
        "wizardry", {"wizardry": 1}, {"wizardry": 1}, but={"openai": given(*ONE), "websocket": given(*ONE)}
    ),
}

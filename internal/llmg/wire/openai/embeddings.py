"""Embeddings: OpenAI's body to an `Embed`, its answer to events, and both the other way."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import astuple, replace

from llmg.core.assemble import Answer
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, invalid
from llmg.core.events import Embedding, Embeddings, Event, Extra, Result
from llmg.core.request import MAX_DIMENSIONS, MAX_INPUTS, Embed, Origin
from llmg.core.usage import Usage
from llmg.wire.openai import DIALECT
from llmg.wire.openai.answers import TokenCounts, decode_usage, split_usage, started, unreadable
from llmg.wire.openai.errors import decode_error
from llmg.wire.openai.fields import NULL, graft, malformed, raw_fields, split

_Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class _Embed(Struct):
    model: Annotated[str, Meta(min_length=1)]
    input: str | list[str | _Token | list[_Token]]
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


_KNOWN = frozenset(_Embed.__struct_encode_fields__)
_embed = msgspec.json.Decoder(_Embed).decode
_plain = msgspec.json.decode


def decode_embed(body: bytes) -> Embed:
    """A body of `POST /v1/embeddings`. Raises Failure (invalid_request) naming the field."""
    try:
        return _decode_embed(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(error) from None


def _decode_embed(body: bytes) -> Embed:
    fields = raw_fields(body)
    given = _embed(body)
    embed = Embed(
        model=given.model,
        inputs=_inputs(given.input),
        dimensions=UNSET if given.dimensions is None else given.dimensions,
        packed=given.encoding_format == "base64",
        user=UNSET if given.user is None else given.user,
        extra=UNSET if fields.keys() <= _KNOWN else {k: _plain(v) for k, v in fields.items() if k not in _KNOWN},
    )
    return replace(embed, origin=Origin(DIALECT, fields, astuple(embed)[:-1]))


def _inputs(given: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        given = [given]
    if not given:
        raise invalid("invalid 'input': it is empty", "input")
    if all(isinstance(item, int) for item in given):
        return (tuple(given),)
    if len(given) > MAX_INPUTS:
        raise invalid(f"invalid 'input': at most {MAX_INPUTS} at once", "input")
    if any(isinstance(item, int) for item in given):
        raise invalid("invalid 'input': tokens and texts can't be mixed", "input")
    if any(len(item) == 0 for item in given):
        raise invalid("invalid 'input': a text or a list of tokens in it is empty", "input")
    return tuple(item if isinstance(item, str) else tuple(item) for item in given)


def encode_embed(embed: Embed) -> bytes:
    """The body of the upstream call."""
    origin = embed.origin
    if origin is not UNSET and origin.dialect == DIALECT:
        body: dict[str, Any] = dict(origin.fields)
        changed = [name for name in origin.changed(embed) if name in _ENCODE]
    else:
        body, changed = {}, list(_ENCODE)
        if embed.extra is not UNSET:
            body.update(embed.extra)
    for name in changed:
        value = getattr(embed, name)
        body[_ENCODE[name]] = _encoding(value) if name == "packed" else value
    return msgspec.json.encode({name: value for name, value in body.items() if value is not UNSET})


def _encoding(packed: bool) -> str:
    return "base64" if packed else "float"


_ENCODE = {"model": "model", "inputs": "input", "dimensions": "dimensions", "packed": "encoding_format", "user": "user"}


class _Vector(Struct):
    embedding: list[float] | str
    index: int | None = None
    object: str | None = None


class _Answer(Struct):
    data: list[_Vector]
    model: str | None = None
    object: str | None = None
    usage: Raw = NULL
    id: str | None = None
    created: int | float | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


_answer = msgspec.json.Decoder(_Answer).decode
_envelope = msgspec.json.Decoder(dict[str, Raw]).decode


def decode_embeddings(body: bytes, context: Context) -> list[Event]:
    """The events of an answer. Raises Failure (upstream_protocol) when the body is none."""
    try:
        _, unknown = split(_envelope(body), _Answer)
        extra = {name: _plain(value) for name, value in unknown.items()}
        if extra.get("error"):
            raise decode_error(200, body)
        whole = _answer(body)
        vectors = tuple([_vector(place, vector) for place, vector in enumerate(whole.data)])
        counts, more = split_usage(_plain(whole.usage))
        usage = None if counts is None else decode_usage(msgspec.convert(counts, TokenCounts), more)
    except (msgspec.MsgspecError, ValueError, RecursionError, AttributeError) as error:
        raise unreadable("answer", error) from None
    out: list[Event] = [started(whole, context, Extra(dialect=DIALECT, envelope=extra)), Result(Embeddings(vectors))]
    return out if usage is None else [*out, usage]


def _vector(place: int, given: _Vector) -> Embedding:
    return Embedding(place if given.index is None else given.index, _values(given.embedding))


def _values(given: list[float] | str) -> tuple[float, ...] | bytes:
    if not isinstance(given, str):
        return tuple(given)
    values = base64.b64decode(given, validate=True)
    if len(values) % 4:
        raise ValueError("not a whole number of float32")
    return values


def encode_embeddings(answer: Answer, request: Embed) -> bytes:
    """An embeddings answer, in the encoding that the request asked for."""
    if answer.result is UNSET:
        raise Failure(Kind.UPSTREAM_PROTOCOL, "the upstream's answer holds no vectors")
    body: dict[str, Any] = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": v.index,
                "embedding": packed(v.values) if request.packed else floats(v.values),
            }
            for v in answer.result.vectors
        ],
        "model": request.model,
        "usage": _encode_usage(answer.usage),
    }
    if answer.extra is not UNSET and answer.extra.dialect == DIALECT:
        body.update(answer.extra.envelope)
    return msgspec.json.encode(body)


def _encode_usage(usage: Usage | UnsetType) -> dict[str, Any]:
    if usage is UNSET:
        return {"prompt_tokens": 0, "total_tokens": 0}
    counts = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    return graft(counts, usage.extra.item) if usage.extra is not UNSET and usage.extra.dialect == DIALECT else counts


def packed(values: Iterable[float] | bytes) -> str:
    """A vector as base64 of little-endian float32."""
    return base64.b64encode(values if isinstance(values, bytes) else _little(array("f", values)).tobytes()).decode()


def floats(values: Iterable[float] | bytes) -> list[float]:
    """A vector as numbers."""
    if not isinstance(values, bytes):
        return list(values)
    unpacked = array("f")
    unpacked.frombytes(values)
    return _little(unpacked).tolist()


def _little(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values

"""A whole answer from this dialect to this dialect: the upstream's own bytes, but for its id and the model's name.

Decoding to events, assembling and encoding again costs twice what all else in the gateway does for a unary answer, to
say the same. So an answer that has all that ours would have is passed on as it is, and decoded only for who asks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llmg.core.context import Context
from llmg.core.events import Batch, Whole
from llmg.wire.openai import DIALECT
from llmg.wire.openai.answers import completion_id, decode_answer, unreadable


class _Message(Struct):
    role: str
    content: str | None
    refusal: str | None


class _Choice(Struct):
    index: int
    message: _Message
    logprobs: dict[str, Any] | None
    finish_reason: str


class _Complete(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: dict[str, Any]
    error: Any = None


_complete = msgspec.json.Decoder(_Complete).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def read_answer(body: bytes, context: Context) -> Batch:
    """The events of a whole answer, undecoded when it is complete. Raises Failure (upstream_protocol)."""
    try:
        whole = _complete(body)
        body.decode()  # what is unknown was skipped, not read
    except msgspec.ValidationError:
        return decode_answer(body, context)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unreadable("answer", error) from None
    if not whole.choices or whole.error:
        return decode_answer(body, context)
    return Whole(DIALECT, body, partial(decode_answer, body, context))


def splice_answer(body: bytes, id: str, model: str) -> bytes:
    """The answer with our id, and the name by which the model was asked for."""
    fields: dict[str, Any] = _fields(body)
    fields["id"] = completion_id(id)
    fields["model"] = model
    return _encode(fields)

"""`POST /v1/routes/explain`: the body of a chat completion, or of embeddings, and where it would go.

For administrators the body may have a `level` beside its own fields.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from llmg.core.request import Request
from llmg.doors.rest.exchange import Exchange
from llmg.doors.rest.inference import Asking
from llmg.services.admission import Admission
from llmg.services.explain import LEVEL, Explain
from llmg.wire.openai.embeddings import decode_embed
from llmg.wire.openai.fields import malformed, raw_fields, refused
from llmg.wire.openai.requests import decode_chat


class ExplainRoute(Asking):
    """Which targets a request would be asked of, and why not of the others. Nobody is asked."""

    def __init__(self, explain: Explain, admission: Admission, max_body: int) -> None:
        """`max_body` in bytes."""
        super().__init__(admission)
        self._explain = explain
        self._max_body = max_body

    async def handle(self, exchange: Exchange) -> None:
        """See Endpoint."""
        principal = self.admit(exchange)
        exchange.check_encoding()
        request, level = _decode(await exchange.body(self._max_body))
        found = await self._explain.explain(request, self.context(exchange, principal), level)
        body = msgspec.json.encode({"object": "route", "model": found.model, "stages": found.stages})
        await exchange.answer(200, body, exchange.way())


class _Kind(Struct):
    messages: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    level: Raw | UnsetType = UNSET


_kind: Final = msgspec.json.Decoder(_Kind).decode
_text: Final = msgspec.json.Decoder(str | None).decode


def _decode(body: bytes) -> tuple[Request, str]:
    """The request, and the level that stands beside its own fields. Raises Failure (invalid_request)."""
    try:
        kind = _kind(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return decode_chat(body).chat, ""  # which says what is wrong with it
    if kind.level is UNSET:
        return _request(kind, body), ""
    fields = raw_fields(body)
    level = _level(fields.pop(LEVEL))
    return _request(kind, msgspec.json.encode(fields)), level


def _level(given: Raw) -> str:
    try:
        return _text(given) or ""
    except msgspec.ValidationError as error:
        raise refused(error, LEVEL) from None
    except msgspec.DecodeError as error:
        raise malformed(error) from None


def _request(kind: _Kind, body: bytes) -> Request:
    embeds = kind.input is not UNSET and kind.messages is UNSET
    return decode_embed(body) if embeds else decode_chat(body).chat

"""`POST /v1/routes/explain`: the body of a chat completion, or of embeddings, and where it would go."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from llmg.core.request import Request
from llmg.doors.rest.exchange import Exchange
from llmg.doors.rest.inference import Asking
from llmg.services.admission import Admission
from llmg.services.explain import Explain
from llmg.wire.openai.embeddings import decode_embed
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
        request = _decode(await exchange.body(self._max_body))
        found = await self._explain.explain(request, self.context(exchange, principal))
        body = msgspec.json.encode({"object": "route", "model": found.model, "stages": found.stages})
        await exchange.answer(200, body, exchange.way())


class _Kind(Struct):
    messages: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET


_kind: Final = msgspec.json.Decoder(_Kind).decode


def _decode(body: bytes) -> Request:
    """Raises Failure (invalid_request)."""
    try:
        kind = _kind(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return decode_chat(body).chat  # which says what is wrong with it
    embeds = kind.input is not UNSET and kind.messages is UNSET
    return decode_embed(body) if embeds else decode_chat(body).chat

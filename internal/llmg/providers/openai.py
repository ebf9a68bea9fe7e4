"""OpenAI, and whatever speaks its dialect at a base URL. Another such provider is a block of configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import nan
from typing import Any, Final
from urllib.parse import urljoin

from msgspec import Struct

from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, not_implemented
from llmg.core.events import Batch, Event
from llmg.core.request import Chat, Embed, Request
from llmg.ports import Answering
from llmg.providers.http import Exchange, Origin, Transport
from llmg.wire import sse
from llmg.wire.openai.chunks import ChunkDecoder
from llmg.wire.openai.embeddings import decode_embeddings, encode_embed
from llmg.wire.openai.errors import decode_error
from llmg.wire.openai.requests import encode_chat
from llmg.wire.openai.splice import read_answer

MAX_ANSWER: Final = 256 << 20
MAX_ERROR: Final = 1 << 20
_SERVER_ERROR: Final = 500
_NOT_IMPLEMENTED: Final = 501
_SECRET: Final = 8  # a header's value of so many characters is taken for a secret
_LONGEST_WAIT: Final = 86_400.0  # seconds: a Retry-After beyond this says nothing usable


class _Operation(Struct, frozen=True):
    path: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes, Context], Batch]


_OPERATIONS: dict[type, _Operation] = {
    Chat: _Operation("/chat/completions", encode_chat, read_answer),
    Embed: _Operation("/embeddings", encode_embed, decode_embeddings),
}


class OpenAI:
    """A provider. `headers` go out with each request; with `api_key` as bearer token. Times are seconds."""

    def __init__(
        self,
        transport: Transport,
        origin: Origin,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = 5.0,
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._connect_timeout = connect_timeout
        secrets = [api_key or "", *(headers or {}).values()]
        self._secrets = [secret for secret in secrets if len(secret) >= _SECRET]
        sent = _sent(api_key, headers or {})
        self._heads = {row.path: origin.head("POST", row.path, sent) for row in _OPERATIONS.values()}

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        operation = _OPERATIONS.get(type(request))
        if operation is None:
            raise not_implemented(f"{type(request).__name__} for an OpenAI-compatible provider")
        return _Call(self, operation, request, context)

    async def send(self, operation: _Operation, request: Request) -> Exchange:
        """The upstream call, up to the head of a good answer."""
        exchange = await self._transport.send(
            self._origin, self._heads[operation.path], operation.encode(request), self._connect_timeout
        )
        if exchange.status == 200:
            return exchange
        try:
            body = await exchange.read(MAX_ERROR) if exchange.status >= 400 else b""
        except Failure:
            body = b""  # cut off, or far too long: the status says what there is to say
        finally:
            exchange.close()
        raise self._refused(exchange, body)

    def _refused(self, exchange: Exchange, body: bytes) -> Failure:
        if exchange.status < 400:
            return Failure(Kind.UPSTREAM_PROTOCOL, f"the upstream answered with HTTP {exchange.status}")
        return self.cleaned(decode_error(exchange.status, body, retry_after(exchange.headers.get("retry-after"))))

    def cleaned(self, failure: Failure) -> Failure:
        """An upstream's refusal without what it said of our secrets, neither for the client nor for the log."""
        for secret in self._secrets:
            for name in ("message", "param", "code", "detail"):
                said = getattr(failure, name)
                if said is not None and secret in said:
                    setattr(failure, name, said.replace(secret, "***"))
        return failure


def _sent(api_key: str | None, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of each request: ours, but where `headers` has them, too."""
    sent = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "Accept-Encoding": "identity",
        "User-Agent": "llmg",
        **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
    }
    own = {name.lower() for name in headers}
    return {**{name: value for name, value in sent.items() if name.lower() not in own}, **headers}


class Reach:
    """The health check of an upstream: whether a GET of `url` is answered. If not, raises Failure.

    By whatever below 500: a server that wants another key or has no such path is there all the same. So is one that
    says 501. On a connection of its own, as those of the answers may all be in use.
    """

    def __init__(
        self,
        transport: Transport,
        url: str,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        root, path = urljoin(url, "/"), url[len(urljoin(url, "/")) - 1 :]
        self._transport = transport
        self._origin = Origin(root)
        self._head = self._origin.head("GET", path, _sent(api_key, headers or {}))

    async def __call__(self) -> None:
        exchange = await self._transport.send(self._origin, self._head)
        exchange.close(answered=True)  # what it says doesn't matter
        if exchange.status >= _SERVER_ERROR and exchange.status != _NOT_IMPLEMENTED:
            words = f"the upstream answered its health check with HTTP {exchange.status}"
            raise Failure(Kind.UPSTREAM_UNAVAILABLE, words)


class _Call:
    """One upstream call. Entered, iterated and exited in one task."""

    __slots__ = (
        "_context",
        "_decoder",
        "_done",
        "_exchange",
        "_failure",
        "_operation",
        "_provider",
        "_request",
        "_sse",
    )

    def __init__(self, provider: OpenAI, operation: _Operation, request: Request, context: Context) -> None:
        self._provider = provider
        self._operation = operation
        self._request = request
        self._context = context
        self._exchange: Exchange | None = None
        self._sse = sse.Decoder()
        self._decoder: ChunkDecoder | None = None
        self._done = False
        self._failure: Failure | None = None  # comes after the events that came before it

    async def __aenter__(self) -> _Call:
        exchange = self._exchange = await self._provider.send(self._operation, self._request)
        coding = exchange.headers.get("content-encoding", "identity")
        if coding != "identity":
            exchange.close()
            raise Failure(Kind.UPSTREAM_PROTOCOL, f"the upstream's answer is in {coding[:40]}, which nobody asked for")
        kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream" and self._request.stream:
            self._decoder = ChunkDecoder(self._context)
        elif kind != "application/json" and kind:
            exchange.close()
            raise Failure(Kind.UPSTREAM_PROTOCOL, f"the upstream answered with {kind[:80]}, not with an answer")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._exchange is not None:
            self._exchange.close(answered=self._done and self._failure is None)

    def __aiter__(self) -> _Call:
        return self

    async def __anext__(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        if self._done:
            raise StopAsyncIteration
        assert self._exchange is not None
        if self._decoder is None:
            body = await self._exchange.read(MAX_ANSWER)
            self._done = True
            return self._whole(body)
        return self._some(self._decoder, await self._exchange.read_some())

    def _whole(self, body: bytes) -> Batch:
        try:
            return self._operation.decode(body, self._context)
        except Failure as failure:
            raise self._provider.cleaned(failure) from None

    def _some(self, decoder: ChunkDecoder, data: bytes) -> list[Event]:
        out: list[Event] = []
        try:
            for event in self._sse.feed(data) if data else self._sse.close():
                if event.data == b"[DONE]":
                    self._done = True
                    break
                if event.type == b"error":
                    raise decode_error(200, event.data)
                decoder.feed(event.data, out)
            if self._done or not data:
                self._done = True
                decoder.end(out)
        except Failure as failure:
            self._failure = self._provider.cleaned(failure)
            if not out:
                raise
        return out


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header (RFC 9110, 10.2.3: seconds or a date); None where it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _until(value)
    return max(0.0, seconds) if seconds <= _LONGEST_WAIT else None


def _until(date: str) -> float:
    """Seconds to that date; not a number where it is none."""
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return nan
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()

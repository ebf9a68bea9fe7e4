"""One HTTP request, and the way out: what the doors that speak HTTP share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, ClassVar

import structlog
from starlette.types import Receive, Scope, Send

from llmg.core import way
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, internal
from llmg.doors.http.leaving import Leaving
from llmg.doors.http.refusing import Words, consequences, openai, request_id
from llmg.services.failures import log_failure

Headers = Sequence[tuple[bytes, bytes]]


class Exchange:
    """The request of one ASGI call, and its answer. Each door says in its own words what a failure is."""

    __slots__ = ("_leaving", "_receive", "_send", "_words", "context", "headers", "request_id", "scope", "started")

    log: ClassVar[Any] = structlog.get_logger("llmg.http")

    def __init__(self, scope: Scope, receive: Receive, send: Send, words: Words = openai) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id(self.headers)
        self.started = False
        self.context: Context | None = None  # of the pipeline, once the request is on its way
        self._leaving = Leaving(scope, receive)
        self._words = words

    def header(self, name: bytes) -> str | None:
        """One of the request's; its name in lower case."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def way(self) -> Headers:
        """The headers that tell the way of the request, as far as it is known."""
        return () if self.context is None else told(self.context)

    def check_encoding(self) -> None:
        """Of the body: it must have none. Raises Failure (unsupported_media_type)."""
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Failure(Kind.UNSUPPORTED_MEDIA_TYPE, "the body must not be compressed", param="content-encoding")

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises Failure (request_too_large, cancelled)."""
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            whole: bytes = message.get("body", b"")
            if len(whole) > limit:
                raise _too_large(limit)
            return whole
        chunks: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                self._leaving.left = True
                raise Failure(Kind.CANCELLED, "the client left before its request was complete")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return b"".join(chunks)
            message = await self._receive()

    def watch(self) -> None:
        """From here on, the client's leaving cancels this task."""
        self._leaving.watch()

    def done(self) -> None:
        """The answer is out, or nobody waits for it."""
        self._leaving.done()

    @property
    def left(self) -> bool:
        """Has the client gone?"""
        return self._leaving.left

    async def start(self, status: int, headers: Headers) -> None:
        """The status line and the headers."""
        self.started = True
        own = (b"x-request-id", self.request_id.encode())
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, own]})

    def write(self, data: bytes, *, more: bool = True) -> Awaitable[None]:
        """A piece of the body; the last one with `more=False`. Waits while the client does not read."""
        return self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, status: int, body: bytes, headers: Headers = (), kind: bytes = b"application/json") -> None:
        """A whole answer."""
        length = (b"content-length", b"%d" % len(body))
        await self.start(status, [(b"content-type", kind), length, *headers])
        await self.write(body, more=False)

    async def fail(self, failure: Failure, *more: tuple[bytes, bytes]) -> None:
        """A failure before the first byte of an answer, with `more` headers."""
        self.report(failure)
        status, kind, body = self._words(failure, self.headers, self.request_id, None)
        await self.answer(status, body, [*more, *self.way(), *consequences(failure)], kind)

    def report(self, failure: Failure) -> None:
        """To the log, what the client is not told."""
        log_failure(self.log, failure, self.request_id)


def told(context: Context) -> list[tuple[bytes, bytes]]:
    """Headers that tell the way of a request: see `core.way`."""
    return [(name.encode(), value.encode()) for name, value in way.headers(context)]


def header_of(headers: Mapping[bytes, bytes], name: str) -> str | None:
    """A request's header by its name in lower case, for `Context.header`."""
    value = headers.get(name.encode())
    return None if value is None else value.decode("latin-1")


def _too_large(limit: int) -> Failure:
    return Failure(Kind.REQUEST_TOO_LARGE, f"the body is larger than {limit} bytes")


async def attend(exchange: Exchange, answering: Awaitable[None]) -> None:
    """Sees an answer through: failures, clients that leave and servers that end are dealt with here."""
    try:
        await answering
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling() == 0:  # nobody cancelled us, but something that we wait for
            await _failed(exchange, internal(error))
            return
        if task.uncancel() > 0:
            raise
        await _failed(exchange, Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))
    except Failure as failure:
        await _failed(exchange, failure)
    except Exception as error:  # noqa: BLE001 - the rim: nothing may leave it as a stack trace
        await _failed(exchange, internal(error))
    finally:
        exchange.done()


async def _failed(exchange: Exchange, failure: Failure) -> None:
    if exchange.left:
        return
    if exchange.started:
        exchange.report(failure)
        raise failure  # the server closes the connection: the answer is not whole
    await exchange.fail(failure)

"""One HTTP request at this door: its body, and the way out."""

from __future__ import annotations

import asyncio
import os
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from math import ceil

import structlog
from starlette.types import Receive, Scope, Send

from llmg.core.context import Principal
from llmg.core.errors import Failure, Kind, internal
from llmg.doors.http.leaving import Leaving
from llmg.services.admission import Admission
from llmg.wire.openai.errors import STATUS, encode_error

log = structlog.get_logger("llmg.rest")

Headers = Sequence[tuple[bytes, bytes]]

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}\Z")
# Names, not secrets: one seed from the system instead of a system call each.
_random = partial(random.Random(os.urandom(32)).getrandbits, 96)


class Exchange:
    """The request of one ASGI call, and its answer."""

    __slots__ = ("_leaving", "_receive", "_send", "headers", "request_id", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.match(given) else f"req_{_random():024x}"
        self.started = False
        self._leaving = Leaving(scope, receive)

    def header(self, name: bytes) -> str | None:
        """One of the request's; its name in lower case."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

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
        status, _ = STATUS[failure.kind]
        headers = list(more)
        if failure.kind is Kind.UNAUTHENTICATED:
            headers.append((b"www-authenticate", b"Bearer"))
        if failure.retry_after is not None:
            headers.append((b"retry-after", b"%d" % ceil(failure.retry_after)))
        if failure.kind in (Kind.REQUEST_TOO_LARGE, Kind.CLIENT_TIMEOUT):
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        self.report(failure)
        await self.answer(status, encode_error(failure), headers)

    def report(self, failure: Failure) -> None:
        """To the log, what the client is not told."""
        if failure.logged or (failure.detail is None and failure.blame == "caller"):
            return
        level = log.error if failure.kind is Kind.INTERNAL else log.warning
        level(failure.message, kind=failure.kind.value, request_id=self.request_id, detail=failure.detail)


def _too_large(limit: int) -> Failure:
    return Failure(Kind.REQUEST_TOO_LARGE, f"the body is larger than {limit} bytes")


class Endpoint(ABC):
    """An ASGI application for one path: methods, failures and leaving clients are dealt with here."""

    methods: frozenset[str] = frozenset({"GET", "HEAD"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        exchange = Exchange(scope, receive, send)
        try:
            if scope["method"] in self.methods:
                await self.handle(exchange)
            else:
                await self._refuse_method(exchange)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling() == 0:  # nobody cancelled us, but something that we wait for
                await self._failed(exchange, internal(error))
                return
            if task.uncancel() > 0:
                raise
            await self._failed(exchange, Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"))
        except Failure as failure:
            await self._failed(exchange, failure)
        except Exception as error:  # noqa: BLE001 - the rim: nothing may leave it as a stack trace
            await self._failed(exchange, internal(error))
        finally:
            exchange.done()

    async def _refuse_method(self, exchange: Exchange) -> None:
        failure = Failure(
            Kind.METHOD_NOT_ALLOWED, f"{exchange.scope['method']} is not for {exchange.scope['path'][:200]}"
        )
        await exchange.fail(failure, (b"allow", ", ".join(sorted(self.methods)).encode()))

    async def _failed(self, exchange: Exchange, failure: Failure) -> None:
        if exchange.left:
            return
        if exchange.started:
            exchange.report(failure)
            raise failure  # the server closes the connection: the answer is not whole
        await exchange.fail(failure)

    @abstractmethod
    async def handle(self, exchange: Exchange) -> None:
        """Answers one request, or raises Failure."""


class Guarded(Endpoint):
    """An application that asks who is there."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def admit(self, exchange: Exchange) -> Principal:
        """Who it is. Raises Failure (unauthenticated)."""
        return self._admission.principal(exchange.header(b"authorization"), exchange.header(b"x-api-key"))

"""One HTTP request at this door: its endpoint, who asks, and failures in OpenAI's words."""

from __future__ import annotations

from abc import ABC, abstractmethod

import structlog
from starlette.types import Receive, Scope, Send

from llmg.core.context import Principal
from llmg.core.errors import Failure, Kind
from llmg.doors.http import exchange as http
from llmg.doors.http.refusing import Words, openai
from llmg.services.admission import Admission


class Exchange(http.Exchange):
    """The request of one ASGI call, and its answer."""

    __slots__ = ()

    log = structlog.get_logger("llmg.rest")


class Endpoint(ABC):
    """An ASGI application for one path: methods, failures and leaving clients are dealt with here."""

    methods: frozenset[str] = frozenset({"GET", "HEAD"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        exchange = Exchange(scope, receive, send, self.words(scope))
        allowed = scope["method"] in self.methods
        await http.attend(exchange, self.handle(exchange) if allowed else self._refuse_method(exchange))

    def words(self, scope: Scope) -> Words:
        """In which this request is refused."""
        return openai

    async def _refuse_method(self, exchange: Exchange) -> None:
        failure = Failure(
            Kind.METHOD_NOT_ALLOWED, f"{exchange.scope['method']} is not for {exchange.scope['path'][:200]}"
        )
        await exchange.fail(failure, (b"allow", ", ".join(sorted(self.methods)).encode()))

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

"""Who asks, and what resolvers may ask in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import strawberry
from graphql import DocumentNode

from llmg.core.assemble import Answer, assemble
from llmg.core.context import ANONYMOUS, Context, Principal
from llmg.core.errors import Failure, internal, invalid
from llmg.core.request import Request
from llmg.doors.graphql import errors
from llmg.ports import Provider
from llmg.services.admin import Admin
from llmg.services.admission import Admission
from llmg.services.explain import Explain
from llmg.services.models import Models
from llmg.services.whole import whole


class Gateway:
    """What resolvers ask: the pipeline and the use cases."""

    def __init__(
        self,
        pipeline: Provider,
        models: Models,
        admission: Admission,
        explain: Explain | None = None,
        admin: Admin | None = None,
    ) -> None:
        """`explain` None: routes are not explained here; `admin` None: the catalog is not administered here."""
        self.explain = explain
        self.admin = admin
        self.pipeline = pipeline
        self.models = models
        self.admission = admission

    async def whole(self, request: Request, context: Context) -> Answer:
        """The assembled answer."""
        return assemble(await whole(self.pipeline, request, context))


class Asking:
    """Who asks: one HTTP request, or one WebSocket connection, whose operations have request ids of their own."""

    __slots__ = ("called", "connection_params", "document", "gateway", "header", "last", "principal", "request_id")

    def __init__(self, gateway: Gateway, request_id: str | None, header: Callable[[str], str | None]) -> None:
        """`header` gives one of the request's, or of the handshake's."""
        self.gateway = gateway
        self.request_id = request_id
        self.header = header
        self.principal = ANONYMOUS
        self.last: Context | None = None  # of the last field that was asked of the pipeline
        self.called: set[str | int] = set()  # the operation's fields of the administration that were, by their keys
        self.document: DocumentNode | None = None  # the operation's, once it has errors
        self.connection_params: object = None  # strawberry sets it, with connection_init's payload

    def operation(self) -> Asking:
        """Who asks one operation, of which `last` is then."""
        return self

    def admit(self) -> Principal:
        """Who it is. Raises Failure (unauthenticated)."""
        return self.principal

    @contextmanager
    def answering(self, timeout: float | None = None) -> Iterator[Context]:
        """A context for one operation, with so many seconds; failures inside become GraphQL's errors."""
        admission = self.gateway.admission
        request_id = self.request_id or admission.request_id()
        context = self.last = admission.context(
            "graphql",
            request_id,
            traceparent=self.header("traceparent"),
            session=self.header("x-llmg-session"),
            remaining=timeout,
        )
        context.header = self.header
        try:
            context.principal = self.admit()
            if timeout is not None and timeout <= 0:
                raise invalid("invalid 'timeout': expected a number of seconds above 0", "timeout")
            yield context
        except Failure as failure:
            raise errors.error(failure, context.request_id) from None
        except Exception as mistake:  # noqa: BLE001 - the rim: nothing may leave it as a stack trace
            raise errors.error(internal(mistake), context.request_id) from None


Info = strawberry.Info[Asking, None]

"""WebSocket: `graphql-transport-ws`, and the older `graphql-ws`; many operations over one socket.

Strawberry speaks both. What is ours: who asks, and that an operation is left in the task that runs it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final

import msgspec
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL, GRAPHQL_WS_PROTOCOL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler
from strawberry.subscriptions.protocols.graphql_ws.handlers import BaseGraphQLWSHandler
from strawberry.types.execution import PreExecutionError

from llmg.doors.graphql.schema import Asking, Gateway, Schema

TRANSPORT_WS: Final = GRAPHQL_TRANSPORT_WS_PROTOCOL
LEGACY_WS: Final = GRAPHQL_WS_PROTOCOL
PROTOCOLS: Final = (TRANSPORT_WS, LEGACY_WS)

_WRONG_SHAPE: Final = (TypeError, AttributeError, ValueError)


class _TransportHandler(BaseGraphQLTransportWSHandler[Asking, None]):
    async def handle_message(self, message: Any) -> None:
        try:
            await super().handle_message(message)
        except _WRONG_SHAPE:
            await self.handle_invalid_message("Failed to parse message")


class _LegacyHandler(BaseGraphQLWSHandler[Asking, None]):
    async def handle_message(self, message: Any) -> None:
        try:
            await super().handle_message(message)
        except (KeyError, *_WRONG_SHAPE):
            await self.websocket.close(code=1002, reason="Failed to parse message")

    async def handle_async_results(
        self, operation_id: str, query: str, operation_name: str | None, variables: dict[str, object] | None
    ) -> None:
        """One operation's results; whatever ends it, its generator is closed here."""
        try:
            results: Any = await self.schema.subscribe(
                query=query, variable_values=variables, operation_name=operation_name, context_value=self.context
            )
            async with aclosing(results):
                async for result in results:
                    if isinstance(result, PreExecutionError):
                        payload: Any = (result.errors or [])[0].formatted
                        await self.send_message({"type": "error", "id": operation_id, "payload": payload})
                        return
                    await self.send_data_message(result, operation_id)
            await self.send_message({"type": "complete", "id": operation_id})
        finally:
            if self.tasks.get(operation_id) is asyncio.current_task():
                del self.tasks[operation_id]

    async def cleanup_operation(self, operation_id: str) -> None:
        """Ends an operation, and waits until it has let go of its upstream."""
        task = self.tasks.pop(operation_id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # it has been told to the client, or there is none any more


class Sockets(GraphQL[Asking, None]):
    """The WebSocket side of the door."""

    graphql_transport_ws_handler_class = _TransportHandler
    graphql_ws_handler_class = _LegacyHandler

    def __init__(
        self,
        gateway: Gateway,
        schema: Schema,
        *,
        protocols: Sequence[str],
        origins: Sequence[str],
        init_timeout: float,
        operations: int,
    ) -> None:
        """`init_timeout` seconds for connection_init; `operations` at once over one socket."""
        super().__init__(
            schema,
            graphql_ide=None,
            subscription_protocols=protocols,
            connection_init_wait_timeout=timedelta(seconds=init_timeout),
            max_subscriptions_per_connection=operations,
            allowed_origins=origins,
        )
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        await self.run(WebSocket(scope, receive=receive, send=send))

    async def get_context(self, request: Any, response: Any) -> Asking:
        """See Strawberry's: one for the connection."""
        return Asking(self._gateway, None, request.headers.get("traceparent"))

    def encode_json(self, data: object) -> str:
        """See Strawberry's."""
        return msgspec.json.encode(data).decode()

    def decode_json(self, data: str | bytes) -> object:
        """See Strawberry's."""
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise json.JSONDecodeError(str(error), "", 0) from None

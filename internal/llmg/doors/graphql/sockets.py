"""WebSocket: `graphql-transport-ws`, and the older `graphql-ws`; many operations over one socket.

Strawberry speaks both. What is ours: who asks, that an operation is left in the task that runs it, and the drain.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Final

import msgspec
from graphql import GraphQLError
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from strawberry.asgi import ASGIWebSocketAdapter, GraphQL
from strawberry.http.exceptions import NonJsonMessageReceived, WebSocketDisconnected
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL, GRAPHQL_WS_PROTOCOL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler
from strawberry.subscriptions.protocols.graphql_ws.handlers import BaseGraphQLWSHandler
from strawberry.types.execution import PreExecutionError
from strawberry.types.unset import UNSET

from llmg.core.context import Principal
from llmg.core.errors import Failure, Kind
from llmg.doors.graphql import errors
from llmg.doors.graphql.asking import Asking, Gateway
from llmg.doors.graphql.exchange import complaint, parse_payload, words
from llmg.doors.graphql.schema import Schema
from llmg.doors.http.draining import drain_of
from llmg.doors.http.exchange import header_of
from llmg.doors.http.handshake import Shown, shown_by
from llmg.doors.http.refusing import refuse
from llmg.services.admission import bearer
from llmg.wire.openai.fields import too_deep
from llmg.wire.websocket import Close, grammatical, named

TRANSPORT_WS: Final = GRAPHQL_TRANSPORT_WS_PROTOCOL
LEGACY_WS: Final = GRAPHQL_WS_PROTOCOL
PROTOCOLS: Final = (TRANSPORT_WS, LEGACY_WS)

_FORBIDDEN: Final = 4403  # as graphql-transport-ws has it
_KEYLESS: Final = (
    "an API key is needed: send it in connection_init's payload, as 'authorization' (Bearer KEY) or 'apiKey'"
)
_LONGEST_REASON: Final = 123  # bytes, in a close frame (RFC 6455, 5.5)
_BEGINNINGS: Final = ("subscribe", "start")
_TOO_DEEP: Final = "the message is nested too deeply"
_UNREADABLE: Final = "Failed to parse message"
_WRONG_SHAPE: Final = (TypeError, AttributeError, ValueError)
_GOING: Final = Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down")
_TOO_MANY: Final = Failure(Kind.RATE_LIMITED, "too many operations are under way over this connection")


class _Unknown(Exception):
    """Nobody is let in by that `connection_init`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Unread(dict[str, Any]):
    """A message that would begin an operation, were it not for a value in it that can't be read: `failure`."""

    def __init__(self, given: dict[str, Any], failure: Failure) -> None:
        super().__init__(given)
        self.failure = failure


class _TooDeep(Exception):
    """A message's JSON goes down further than is looked at."""


class _Leave:
    """Closes a connection when the server drains: as soon as none of its operations is under way."""

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket
        self._drain = drain_of(websocket.ws.scope)
        self._running: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Leave:
        self._drain.add(self._look)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._drain.discard(self._look)
        if self._closing is not None:
            await self._closing

    @property
    def begun(self) -> bool:
        """Does the server drain?"""
        return self._drain.begun

    def watch(self, task: asyncio.Task[Any]) -> None:
        """An operation, until its last message is out."""
        self._running.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._look()

    def _look(self) -> None:
        if self._drain.begun and not self._running:
            self.close(Close.GOING_AWAY, "Going away")

    def close(self, code: int, reason: str) -> None:
        """Closes the connection, from where nobody can wait for it."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        with suppress(RuntimeError, WebSocketDisconnect):  # somebody was faster
            await self._websocket.close(code=code, reason=reason)


class _Adapter(ASGIWebSocketAdapter):
    """Strawberry's, for which a connection that we have closed ourselves is as gone as one that the client left."""

    def iter_json(self, *, ignore_parsing_errors: bool = False) -> AsyncGenerator[object, None]:
        """Raises NonJsonMessageReceived: whoever sent what can't be read would wait for ever for its answer."""
        return super().iter_json()

    async def send_json(self, message: Mapping[str, object]) -> None:
        """Raises WebSocketDisconnected."""
        if self.ws.application_state is WebSocketState.DISCONNECTED:
            raise WebSocketDisconnected
        await super().send_json(message)

    async def close(self, code: int, reason: str) -> None:
        """With as much of the reason as there is room for: those that Strawberry gives may be of any length."""
        await super().close(code, reason.encode(errors="replace")[:_LONGEST_REASON].decode(errors="ignore"))


def _obstacle(leave: _Leave, message: Any, running: Collection[str], most: int | None) -> Failure | None:
    """Why no operation is begun by that message, beside those under way."""
    if leave.begun:
        return _GOING
    if most is not None and len(running) >= most and message["id"] not in running:
        return _TOO_MANY
    if isinstance(message, _Unread):
        return message.failure
    if isinstance(message["payload"], dict):
        try:
            parse_payload(message["payload"])
        except Failure as failure:
            return failure
    return None


def _refusal(context: Asking, failure: Failure) -> list[dict[str, Any]]:
    """The errors of an operation that is not begun, or cut."""
    found: list[dict[str, Any]] = errors.refusal(failure, context.gateway.admission.request_id())["errors"]
    return found


async def _told(tell: Callable[[str, Failure], Awaitable[None]], operations: Iterable[str]) -> None:
    """Tells each that the drain has cut it, if anybody is still there."""
    with suppress(RuntimeError, WebSocketDisconnected):
        for id in operations:
            await tell(id, _GOING)


class _TransportHandler(BaseGraphQLTransportWSHandler[Asking, None]):
    leave: _Leave

    async def handle(self) -> None:
        """One connection."""
        async with _Leave(self.websocket) as self.leave:
            try:
                await super().handle()
            except _TooDeep:
                await self.handle_invalid_message(_TOO_DEEP)

    @staticmethod
    def _get_pre_execution_close_reason(error: GraphQLError) -> str | None:
        """None: Strawberry would close the connection, with all of its operations, for one that can't be parsed."""
        return None

    async def handle_connection_init(self, message: Any) -> None:
        """Who asks; the reason of the close is all that this protocol can tell of a refusal."""
        try:
            await super().handle_connection_init(message)
        except _Unknown as unknown:
            await self.websocket.close(code=_FORBIDDEN, reason=unknown.failure.message)

    async def handle_subscribe(self, message: Any) -> None:
        """An operation; none is begun when the server drains, or beside too many others."""
        obstacle = _obstacle(self.leave, message, self.operations, self.max_subscriptions_per_connection)
        if obstacle is not None and self.connection_acknowledged:
            await self._refuse(message["id"], obstacle)
            return
        before = set(self.operations)
        await super().handle_subscribe(message)
        for id in self.operations.keys() - before:
            task = self.operations[id].task
            assert task is not None
            self.leave.watch(task)

    async def _refuse(self, id: str, failure: Failure) -> None:
        message: Any = {"type": "error", "id": id, "payload": _refusal(self.context, failure)}
        await self.send_message(message)

    async def shutdown(self) -> None:
        """The connection ends; operations that the drain has cut are told so."""
        try:
            if self.leave.begun:
                await _told(self._refuse, list(self.operations))
        finally:
            await super().shutdown()

    async def handle_task_exception(self, error: Exception) -> None:
        """Logs it; that the client has left is none."""
        if not isinstance(error, WebSocketDisconnected):
            await super().handle_task_exception(error)

    async def handle_message(self, message: Any) -> None:
        try:
            await super().handle_message(message)
        except _WRONG_SHAPE:
            await self.handle_invalid_message(_UNREADABLE)


class _LegacyHandler(BaseGraphQLWSHandler[Asking, None]):
    leave: _Leave

    async def handle(self) -> None:
        """One connection. Strawberry has no time limit for the greeting of this protocol."""
        loop, patience = asyncio.get_running_loop(), self.view.connection_init_wait_timeout.total_seconds()
        async with _Leave(self.websocket) as self.leave:
            timer = loop.call_later(patience, self._init_is_late)
            try:
                await super().handle()
            except _TooDeep:
                await self.websocket.close(code=Close.PROTOCOL_ERROR, reason=_TOO_DEEP)
            except NonJsonMessageReceived:
                await self.websocket.close(code=Close.PROTOCOL_ERROR, reason=_UNREADABLE)
            finally:
                timer.cancel()

    def _init_is_late(self) -> None:
        if not self.connection_acknowledged:
            self.leave.close(4408, "Connection initialisation timeout")

    async def handle_connection_init(self, message: Any) -> None:
        """Who asks; a refusal is a message, and the reason of the close."""
        try:
            await super().handle_connection_init(message)
        except _Unknown as unknown:
            payload = errors.refusal(unknown.failure, self.context.gateway.admission.request_id())["errors"][0]
            await self.send_message({"type": "connection_error", "payload": payload})
            await self.websocket.close(code=_FORBIDDEN, reason=unknown.failure.message)

    async def handle_start(self, message: Any) -> None:
        """An operation; none is begun when the server drains, or beside too many others."""
        obstacle = _obstacle(self.leave, message, self.tasks, self.max_subscriptions_per_connection)
        if obstacle is not None and self.connection_acknowledged:
            await self._refuse(message["id"], obstacle)
            return
        await super().handle_start(message)
        task = self.tasks.get(message["id"])
        if task is not None:
            self.leave.watch(task)

    async def _refuse(self, id: str, failure: Failure) -> None:
        message: Any = {"type": "error", "id": id, "payload": _refusal(self.context, failure)[0]}
        await self.send_message(message)

    async def cleanup(self) -> None:
        """The connection ends; operations that the drain has cut are told so."""
        try:
            if self.leave.begun:
                await _told(self._refuse, list(self.tasks))
        finally:
            await super().cleanup()

    async def handle_message(self, message: Any) -> None:
        try:
            await super().handle_message(message)
        except (KeyError, *_WRONG_SHAPE):
            await self.websocket.close(code=Close.PROTOCOL_ERROR, reason=_UNREADABLE)

    async def handle_async_results(
        self, operation_id: str, query: str, operation_name: str | None, variables: dict[str, object] | None
    ) -> None:
        """One operation's results; whatever ends it, its generator is closed here."""
        try:
            results: Any = await self.schema.stream(
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
        except WebSocketDisconnected:
            pass  # who asked has left; the results are closed
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


class _Connected(Asking):
    """Who asks over one connection. `shown`: the key, by the handshake; None: `connection_init` has to show it."""

    __slots__ = ("shown",)

    def __init__(self, gateway: Gateway, header: Callable[[str], str | None], shown: Shown | None) -> None:
        super().__init__(gateway, None, header)
        self.shown = shown

    def operation(self) -> Asking:
        """See Asking."""
        return _Connected(self.gateway, self.header, self.shown)

    def admit(self) -> Principal:
        """See Asking."""
        return (self.shown or Shown()).principal(self.gateway.admission)


class Sockets(GraphQL[Asking, None]):
    """The WebSocket side of the door."""

    websocket_adapter_class = _Adapter
    graphql_transport_ws_handler_class = _TransportHandler
    graphql_ws_handler_class = _LegacyHandler

    def __init__(
        self,
        gateway: Gateway,
        schema: Schema,
        *,
        protocols: Sequence[str],
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
            allowed_origins=("*",),  # there is a guard before us
        )
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        try:
            shown = shown_by(scope, self._gateway.admission)
        except Failure as failure:
            await refuse(failure, scope, receive, send, words)
            return
        websocket = WebSocket(scope, receive=receive, send=send)
        header = partial(header_of, dict(scope["headers"]))
        await self.run(websocket, context=_Connected(self._gateway, header, shown))

    async def on_ws_connect(self, context: Asking) -> Any:
        """See Strawberry's: who asks, if the payload of `connection_init` says so, or has to."""
        authorization, api_key = _shown(context.connection_params)
        try:
            assert isinstance(context, _Connected)
            if context.shown is None or authorization is not None or api_key is not None:
                shown = Shown(authorization, api_key)
                shown.principal(self._gateway.admission)
                context.shown = shown
        except Failure as failure:
            if not bearer(authorization, api_key):
                failure.message = _KEYLESS
            raise _Unknown(failure) from None
        return UNSET

    def encode_json(self, data: object) -> str:
        """See Strawberry's."""
        return msgspec.json.encode(data).decode()

    def decode_json(self, data: str | bytes) -> object:
        """See Strawberry's."""
        if too_deep(data.encode() if isinstance(data, str) else data):
            raise _TooDeep
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            with suppress(ValueError):
                given = grammatical(data)
                if named(given, _BEGINNINGS) is not None:
                    return _Unread(given, complaint(data, str(error).partition(" - at `")[0]))
            raise json.JSONDecodeError(str(error), "", 0) from None


def _shown(payload: object) -> tuple[str | None, str | None]:
    """The key that a `connection_init` shows: as `authorization`, or as `apiKey` (or the header's name for it)."""
    given = {name.lower(): value for name, value in payload.items()} if isinstance(payload, dict) else {}
    authorization, api_key = given.get("authorization"), given.get("apikey", given.get("x-api-key"))
    return None if authorization is None else str(authorization), None if api_key is None else str(api_key)

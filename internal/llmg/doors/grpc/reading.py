"""Reads the one message of a unary request by ourselves, so that a call is ours from its first byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from llmg.core.errors import Failure, Kind, invalid
from llmg.doors.grpc.services import Inference


class Reading:
    """A server's services are added here instead of there: their requests are then read as if they were streams, which
    looks the same to clients.

    grpc.aio asks nobody until the whole message of a unary request is there, for however long, and nobody knows of
    the call: it can neither be waited for nor be told why it ends. And whoever may not ask need not be read. A request
    that can't be read is given to the servicer as the Failure that it is.
    """

    def __init__(self, server: grpc.aio.Server, inference: Inference, timeout: float) -> None:
        """`timeout`: seconds for a message to arrive."""
        self._server = server
        self._inference = inference
        self._timeout = timeout

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler], /) -> None:
        """See grpc.aio.Server."""
        self._server.add_generic_rpc_handlers(tuple(_Handlers(handler, self._reading) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any], /) -> None:
        """See grpc.aio.Server. The same once more, no faster, and never changed: left out."""

    def _reading(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        answer = handler.unary_stream if handler.response_streaming else handler.unary_unary
        inference, why_cut = self._inference, self._why_cut
        begin, arrived, caller = inference.begin, inference.arrived, inference.caller
        timeout = self._timeout

        async def read_and_answer(_: object, context: Any) -> Any:
            task = begin(timeout)
            try:
                caller(context)
                message = await context.read()
            except Failure as failure:
                message = failure
            except asyncio.CancelledError:
                message = why_cut(task)
            else:
                arrived(task)
                if message is grpc.aio.EOF:
                    message = invalid("the request has no message")
            return await answer(message, context)

        make: Callable[..., grpc.RpcMethodHandler[Any, Any]] = grpc.stream_unary_rpc_method_handler
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
        return make(read_and_answer, handler.request_deserializer, handler.response_serializer)

    def _why_cut(self, task: asyncio.Task[Any]) -> Failure:
        """Why the message of a call that was cancelled did not arrive. Raises CancelledError: its client has gone."""
        if task in self._inference.cut:
            why = Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down")
        elif task in self._inference.late:
            why = Failure(Kind.CLIENT_TIMEOUT, f"the message did not arrive within {self._timeout:g} seconds")
        else:
            raise asyncio.CancelledError
        task.uncancel()
        return why


class _Handlers(grpc.GenericRpcHandler):
    """Those of one service, changed."""

    def __init__(
        self,
        inner: grpc.GenericRpcHandler,
        change: Callable[[grpc.RpcMethodHandler[Any, Any]], grpc.RpcMethodHandler[Any, Any]],
    ) -> None:
        self._inner = inner
        self._change = change
        self._changed: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.GenericRpcHandler."""
        known = self._changed.get(details.method)
        if known is None:
            handler = self._inner.service(details)
            if handler is None:
                return None
            known = self._changed[details.method] = self._change(handler)
        return known

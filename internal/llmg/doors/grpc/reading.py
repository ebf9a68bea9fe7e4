"""Reads the one message of a unary request by ourselves, so that a call is ours from its first byte."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from llmg.core.errors import Failure, Kind, invalid
from llmg.doors.grpc.services import Inference


class Reading(grpc.aio.ServerInterceptor):
    """Serves the methods under `prefix` as if their requests were streams, which looks the same to clients.

    grpc.aio asks nobody until the whole message of a unary request is there, for however long, and nobody knows of
    the call: it can neither be waited for nor be told why it ends. A request that can't be read is given to the
    servicer as the Failure that it is.
    """

    def __init__(self, inference: Inference, prefix: str, timeout: float) -> None:
        """`timeout`: seconds for a message to arrive."""
        self._inference = inference
        self._prefix = prefix
        self._timeout = timeout
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.aio.ServerInterceptor."""
        known = self._handlers.get(details.method)
        if known is not None:
            return known
        handler = await continuation(details)
        if handler is not None and details.method.startswith(self._prefix):
            handler = self._handlers[details.method] = self._reading(handler)
        return handler

    def _reading(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        answer = handler.unary_stream if handler.response_streaming else handler.unary_unary
        begin, arrived, why_cut = self._inference.begin, self._inference.arrived, self._why_cut
        timeout = self._timeout

        async def read_and_answer(_: object, context: Any) -> Any:
            task = begin(timeout)
            try:
                message = await context.read()
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

"""RPCs of this process: servicers' methods, called without a channel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from llmg.core.errors import Failure, Kind
from llmg.doors.gateway.upstream import Call, Metadata, Status, Stream, Unary, Write
from llmg.doors.http.exchange import header_of
from llmg.services.admission import Admission

Handler = Callable[[Any, Any], Awaitable[Any]]

_DETAILS = "grpc-status-details-bin"


class InProcess:
    """See Upstream."""

    def __init__(self, handlers: Mapping[str, Handler], admission: Admission) -> None:
        """Servicers' methods by RPC: `/package.Service/Method`. Streaming ones write, and do not yield."""
        self._handlers = handlers
        self._admission = admission

    def admit(self, metadata: Metadata, /) -> None:
        """See Upstream."""
        given = dict(metadata)
        self._admission.principal(_text(given.get("authorization")), _text(given.get("x-api-key")))

    def unary(self, rpc: MethodDescriptor, /) -> Unary:
        """See Upstream."""
        handler = self._handler(rpc)

        async def ask(request: Message, call: Call) -> Message:
            answer: Message = await _run(handler, request, _Serving(call, _only_one))
            return answer

        return ask

    def stream(self, rpc: MethodDescriptor, /) -> Stream:
        """See Upstream."""
        handler = self._handler(rpc)

        async def ask(request: Message, call: Call, write: Write) -> None:
            await _run(handler, request, _Serving(call, write))

        return ask

    def _handler(self, rpc: MethodDescriptor) -> Handler:
        try:
            return self._handlers[f"/{rpc.containing_service.full_name}/{rpc.name}"]
        except KeyError:
            raise ValueError(f"nobody answers {rpc.full_name} here") from None


def _only_one(message: Message) -> NoReturn:
    raise RuntimeError("an RPC of one response has written one")


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None


async def _run(handler: Handler, request: Message, serving: _Serving) -> Any:
    timeout = serving.time_remaining()
    if timeout is None:
        return await handler(request, serving)
    try:
        async with asyncio.timeout(timeout):
            return await handler(request, serving)
    except TimeoutError:
        raise Failure(Kind.DEADLINE_EXCEEDED, "the request's deadline has passed") from None


class _Serving:
    """What a servicer's method is given as its context: that of grpc.aio, as far as unary requests need it."""

    __slots__ = ("_call", "_deadline", "_loop", "write")

    def __init__(self, call: Call, write: Write) -> None:
        self._call = call
        self.write = write
        self._loop = asyncio.get_running_loop()
        self._deadline = None if call.timeout is None else self._loop.time() + call.timeout

    def invocation_metadata(self) -> Metadata:
        return self._call.metadata

    def header(self, name: str) -> str | None:
        """Of the metadata, or else of the HTTP request."""
        known = next((value for key, value in self._call.metadata if key == name), None)
        return _text(known) if known is not None else header_of(self._call.headers, name)

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        self._call.trailing = trailing_metadata

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        self._call.initial = initial_metadata

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        self._call.trailing = trailing_metadata
        found = dict(trailing_metadata).get(_DETAILS)
        raise Status(code.value[0], details, found if isinstance(found, bytes) else None, foreign=False)

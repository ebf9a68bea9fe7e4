"""Local models, behind the backends' gRPC contract: engines that we start, or backends that run already.

A backend that dies is told apart from a call that fails: the client hears of the exit code and the last words, never
of a lost connection alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from llmg.backendapi import backend_pb2 as pb
from llmg.backendapi.backend_pb2_grpc import BackendStub
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, invalid, not_implemented
from llmg.core.events import Batch, Embedding, Embeddings, Event, Result, Started
from llmg.core.request import Chat, Embed, Request
from llmg.core.usage import Usage
from llmg.ports import Answering, Launcher, Running, Spec
from llmg.wire.backend import ERROR_KIND, ReplyDecoder, encode_chat

MAX_MESSAGE: Final = 50 << 20  # bytes: the contract's
_HEALTHY: Final = b"OK"  # the contract's one good answer to Health
_LAST_WORDS: Final = 5.0  # seconds; a channel that is closed at once would cancel its calls, and so whoever awaits them
_ANY_CALL: Final = 7 * 86400.0  # seconds: longer than a call lasts
_AT_ONCE: Final = 8  # embeddings of one request that are under way at the same time
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),  # a backend is near: an http_proxy in the environment is not for it
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.initial_reconnect_backoff_ms", 100),
)


class Place(Protocol):
    """Where a backend is to be found."""

    async def find(self) -> Running:
        """Its address now; started first, where that is ours to do. Raises Failure."""
        ...

    async def post_mortem(self, running: Running) -> str | None:
        """Why it is gone, in a sentence, or None: it runs, as far as we know."""
        ...


class Launched:
    """A backend that we start."""

    def __init__(self, launcher: Launcher, spec: Spec) -> None:
        self._launcher = launcher
        self._spec = spec

    async def find(self) -> Running:
        """See Place."""
        return await self._launcher.ensure(self._spec)

    async def post_mortem(self, running: Running) -> str | None:
        """See Place."""
        return await self._launcher.post_mortem(self._spec, running.generation)


class Elsewhere:
    """A backend that runs already, on its own or somebody else's machine."""

    def __init__(self, address: str, token: str = "") -> None:
        self._running = Running(address=address, token=token, identity="", generation=0)

    async def find(self) -> Running:
        """See Place."""
        return self._running

    async def post_mortem(self, running: Running) -> str | None:
        """See Place."""
        return None


class Channels:
    """One channel to each backend, made when it is first needed."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, BackendStub] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def stub(self, address: str) -> BackendStub:
        """The calls of the backend at `host:port`."""
        stub = self._stubs.get(address)
        if stub is None:
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
            stub = self._stubs[address] = BackendStub(channel)
        return stub

    def forget(self, address: str) -> None:
        """That one is gone for good. Other calls to it are left a moment to find out for themselves."""
        self._drop(address, _LAST_WORDS)

    def retire(self, address: str) -> None:
        """Nothing more is to be asked there. Calls under way go on to their ends."""
        self._drop(address, _ANY_CALL)

    def _drop(self, address: str, grace: float) -> None:
        self._stubs.pop(address, None)
        channel = self._channels.pop(address, None)
        if channel is not None:
            task = asyncio.get_running_loop().create_task(channel.close(grace))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes all of them, and ends the calls under way."""
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        channels, self._channels = list(self._channels.values()), {}
        self._stubs.clear()
        for channel in channels:
            await channel.close()


class Backend:
    """A provider: one model of one backend."""

    def __init__(self, place: Place, channels: Channels) -> None:
        self._place = place
        self._channels = channels
        self._seeds = random.Random()

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`. One choice a call: `n` is made of several."""
        if isinstance(request, Chat):
            return _ChatCall(self, request, context)
        if isinstance(request, Embed):
            return _EmbedCall(self, request, context)
        raise not_implemented(f"{type(request).__name__} for a local model")

    async def find(self) -> tuple[Running, BackendStub]:
        """Where it is now, and its calls. Raises Failure."""
        running = await self._place.find()
        return running, self._channels.stub(running.address)

    def seed(self) -> int:
        """A random seed for who gave none."""
        return self._seeds.getrandbits(31)

    async def failed(self, error: grpc.aio.AioRpcError, running: Running) -> Failure:
        """What a broken call means. A dead backend's channel is closed."""
        if error.code() in _MAY_BE_DEAD:
            cause = await self._place.post_mortem(running)
            if cause is not None:
                self._channels.forget(running.address)
                return Failure(Kind.BACKEND_CRASHED, cause, detail=_said(error))
        return _failure(error)


class Reach:
    """The health check of a backend that runs elsewhere: the contract's own `Health`. Raises Failure.

    One that wants another token, or has no room, is there all the same.
    """

    def __init__(self, channels: Channels, address: str, token: str = "") -> None:
        self._channels = channels
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None

    async def __call__(self) -> None:
        try:
            reply = await self._channels.stub(self._address).Health(pb.HealthMessage(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() in _THERE:
                return
            raise _failure(error) from error
        if reply.message != _HEALTHY:
            raise Failure(Kind.UPSTREAM_UNAVAILABLE, "the backend says that it is not healthy")


class _NeverArrived(Failure):
    """The backend had died before the call reached it: the one that takes its place may well answer."""


class _Call:
    """What both kinds of calls share. Entered, iterated and exited in one task."""

    def __init__(self, backend: Backend, context: Context) -> None:
        self._backend = backend
        self._context = context
        self._over = False

    async def __aexit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self  # type: ignore[return-value]

    async def _failed(self, error: grpc.aio.AioRpcError, running: Running) -> Failure:
        """What a broken call means; _NeverArrived when the backend had died before the call reached it."""
        failure = await self._backend.failed(error, running)
        if failure.kind is Kind.BACKEND_CRASHED and _is_unconnected(error):
            return _NeverArrived(failure.kind, failure.message, detail=failure.detail)
        if failure.kind is Kind.DEADLINE_EXCEEDED and self._context.deadline is None:
            return Failure(Kind.UPSTREAM_TIMEOUT, "the backend gave up on this request", detail=failure.detail)
        return failure

    def _with(self, running: Running) -> dict[str, Any]:
        """The arguments that every call has."""
        out: dict[str, Any] = {}
        if running.token:
            out["metadata"] = (("authorization", f"Bearer {running.token}"),)
        if self._context.deadline is not None:
            out["timeout"] = max(0.0, self._context.deadline - time.monotonic())
        return out


class _ChatCall(_Call):
    def __init__(self, backend: Backend, chat: Chat, context: Context) -> None:
        super().__init__(backend, context)
        self._chat = chat
        self._decoder = ReplyDecoder(chat, context)
        self._running: Running
        self._call: Any = None

    async def __aenter__(self) -> _ChatCall:
        await self._start()
        return self

    async def _start(self) -> None:
        self._running, stub = await self._backend.find()
        options = encode_chat(self._chat, self._running.identity, self._context, self._backend.seed())
        rpc = stub.PredictStream if self._chat.stream else stub.Predict
        self._call = rpc(options, **self._with(self._running))

    async def __aexit__(self, *_: object) -> None:
        if self._call is not None:
            self._call.cancel()  # nothing happens if it is over; else the backend's slot is free again

    async def __anext__(self) -> Batch:
        if self._over:
            raise StopAsyncIteration
        try:
            return await self._checked()
        except _NeverArrived:
            await self._start()
            return await self._checked()

    async def _checked(self) -> list[Event]:
        try:
            return await self._next()
        except grpc.aio.AioRpcError as error:
            raise await self._failed(error, self._running) from error

    async def _next(self) -> list[Event]:
        if self._chat.stream:
            reply = await self._call.read()
            if reply is not grpc.aio.EOF:
                return self._decoder.feed(reply)
            events: list[Event] = []
        else:
            events = self._decoder.feed(await self._call)
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                code,
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            )
        self._over = True
        trailing = {key: value for key, value in await self._call.trailing_metadata() if isinstance(value, str)}
        return [*events, *self._decoder.end(trailing)]


class _EmbedCall(_Call):
    def __init__(self, backend: Backend, embed: Embed, context: Context) -> None:
        super().__init__(backend, context)
        self._embed = embed

    async def __aenter__(self) -> _EmbedCall:
        return self

    async def __anext__(self) -> Batch:
        if self._over:
            raise StopAsyncIteration
        self._over = True
        results = await self._all()
        dimensions = self._embed.dimensions
        if isinstance(dimensions, int) and any(len(result.embeddings) != dimensions for result in results):
            raise invalid(f"this model's vectors have {len(results[0].embeddings)} dimensions, no other", "dimensions")
        vectors = tuple([Embedding(i, tuple(result.embeddings)) for i, result in enumerate(results)])
        tokens = sum(result.prompt_tokens or result.tokens for result in results)
        return [
            Started(self._context.id, self._context.created, self._embed.model),
            Result(Embeddings(vectors)),
            Usage(input_tokens=tokens),
        ]

    async def _all(self) -> Sequence[pb.EmbeddingResult]:
        """The contract embeds one text a call: several go side by side, and the first failure ends them all."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(item: str | tuple[int, ...]) -> pb.EmbeddingResult:
            async with limit:
                return await self._one(item)

        tasks = [asyncio.create_task(one(item)) for item in self._embed.inputs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, item: str | tuple[int, ...]) -> pb.EmbeddingResult:
        try:
            return await self._ask(item)
        except _NeverArrived:
            return await self._ask(item)

    async def _ask(self, item: str | tuple[int, ...]) -> pb.EmbeddingResult:
        running, stub = await self._backend.find()
        options = pb.PredictOptions(ModelIdentity=running.identity, CorrelationId=self._context.request_id)
        if isinstance(item, str):
            options.Embeddings = item
        else:
            options.EmbeddingTokens.extend(item)
        try:
            return await stub.Embedding(options, **self._with(running))
        except grpc.aio.AioRpcError as error:
            raise await self._failed(error, running) from error


_MAY_BE_DEAD: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}
)

# Statuses that only somebody who is there and well can give.
_THERE: Final = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)

# What a status means. The words of those in `_SHOWN` are about the request, and go on to the client.
_KINDS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: Kind.INVALID_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: Kind.INVALID_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: Kind.NOT_IMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Kind.OVERLOADED,
    grpc.StatusCode.UNAVAILABLE: Kind.UPSTREAM_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Kind.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED: Kind.UPSTREAM_AUTH,
    grpc.StatusCode.PERMISSION_DENIED: Kind.UPSTREAM_AUTH,
}
_SHOWN: Final = frozenset({Kind.INVALID_REQUEST, Kind.CONTEXT_LENGTH_EXCEEDED, Kind.NOT_IMPLEMENTED})
_WORDS: Final = {
    Kind.OVERLOADED: "the backend has no room for this request",
    Kind.UPSTREAM_UNAVAILABLE: "the backend can't be reached",
    Kind.UPSTREAM_AUTH: "the backend refused the gateway's token",
    Kind.DEADLINE_EXCEEDED: "the request's deadline has passed",
    Kind.UPSTREAM_ERROR: "the backend failed to answer",
}


def _failure(error: grpc.aio.AioRpcError) -> Failure:
    kind = _KINDS.get(error.code(), Kind.UPSTREAM_ERROR)
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KIND and value == Kind.CONTEXT_LENGTH_EXCEEDED.value:
            kind = Kind.CONTEXT_LENGTH_EXCEEDED
    words = (error.details() or "")[:2000] if kind in _SHOWN else ""
    param = "messages" if kind is Kind.CONTEXT_LENGTH_EXCEEDED else None
    return Failure(
        kind, words or _WORDS.get(kind, "the backend refused this request"), param=param, detail=_said(error)
    )


def _said(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"


def _is_unconnected(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in (error.details() or "").lower()

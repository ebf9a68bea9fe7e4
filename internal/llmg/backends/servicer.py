"""The base of every engine's process: an engine is one subclass of `Servicer` and a `main` that calls `serve`.

    class Parrot(Servicer):
        async def load(self, options): ...                # raise with the reason when it can't be done
        async def unload(self): ...
        async def Predict(self, request, context): ...    # and whichever other RPCs the engine has

    def main() -> None:
        sys.exit(serve(Parrot))

What all engines have in common is here: the address, Health, the bearer token, the model identity, the size of
messages, errors as gRPC statuses, a graceful end at SIGTERM, and an end when the parent is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import logging
import os
import re
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import uvloop

from llmg.backendapi import backend_pb2 as pb
from llmg.backendapi import backend_pb2_grpc

log = logging.getLogger("llmg.backend")

DEFAULT_ADDRESS = "localhost:50051"
MAX_MESSAGE_BYTES = 50 * 1024 * 1024
PARENT_VARIABLE = "LLMG_BACKEND_PARENT"
GRACE_SECONDS = 3.0  # less than a launcher waits before it kills

EXIT_PARENT_GONE = 1
EXIT_ADDRESS_IN_USE = 98  # EADDRINUSE on Linux; 2 is argparse's

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # else two processes could share one address, and each get half of the calls
]


class StatusError(Exception):
    """Ends an RPC with this status. `trailing` is sent as trailing metadata; keys are `llmg-...`."""

    def __init__(self, code: grpc.StatusCode, message: str, trailing: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailing = tuple((trailing or {}).items())


class Servicer(backend_pb2_grpc.BackendServicer, ABC):
    """Answers Health, LoadModel and Free; other RPCs are UNIMPLEMENTED until an engine overrides them."""

    def __init__(self) -> None:
        self.identity = ""  # ModelOptions.Model of the model that is loaded, else empty
        self._changing = asyncio.Lock()

    @abstractmethod
    async def load(self, options: pb.ModelOptions) -> None:
        """Loads a model; none is loaded when this is called. Any exception is the reason of the refusal."""

    @abstractmethod
    async def unload(self) -> None:
        """Ends the calls under way and gives the model's memory back. Does nothing when none is loaded."""

    async def Health(
        self, request: pb.HealthMessage, context: grpc.aio.ServicerContext[pb.HealthMessage, pb.Reply]
    ) -> pb.Reply:
        return pb.Reply(message=b"OK")

    async def LoadModel(
        self, request: pb.ModelOptions, context: grpc.aio.ServicerContext[pb.ModelOptions, pb.Result]
    ) -> pb.Result:
        async with self._changing:
            try:
                await self._unload()
                await self.load(request)
            except Exception as error:
                log.exception("could not load %s", request.Model or request.ModelFile)
                return pb.Result(success=False, message=one_line(error))
            self.identity = request.Model
            return pb.Result(success=True, message="Model loaded successfully")

    async def Free(
        self, request: pb.HealthMessage, context: grpc.aio.ServicerContext[pb.HealthMessage, pb.Result]
    ) -> pb.Result:
        async with self._changing:
            try:
                await self._unload()
            except Exception as error:
                log.exception("could not unload %s", self.identity)
                return pb.Result(success=False, message=one_line(error))
            return pb.Result(success=True)

    async def _unload(self) -> None:
        self.identity = ""
        await self.unload()


def one_line(error: BaseException) -> str:
    """The cause in one line, for a status or a Result. `ValueError: no such file`; a StatusError speaks for itself."""
    if isinstance(error, StatusError):
        return error.message
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


# -- what is done around every call ---------------------------------------------------------------------------------

Context = grpc.aio.ServicerContext[Any, Any]
Check = Callable[[Any, Context], Awaitable[None]]


class Around(grpc.aio.ServerInterceptor):
    """Checks the token and the model identity before each RPC, and turns exceptions into statuses."""

    def __init__(self, servicer: Servicer, token: str) -> None:
        self._servicer = servicer
        self._expected = f"Bearer {token}".encode() if token else None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        return None if handler is None else _wrapped(handler, self._check)

    async def _check(self, request: Any, context: Context) -> None:
        if self._expected is not None:
            given = dict(context.invocation_metadata() or ()).get("authorization", "")
            if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected):
                raise StatusError(grpc.StatusCode.UNAUTHENTICATED, "the bearer token is missing or wrong")
        # A stream of requests has no such field: the bidirectional calls are not checked.
        wanted, loaded = getattr(request, "ModelIdentity", ""), self._servicer.identity
        if wanted and loaded and wanted != loaded:
            raise StatusError(
                grpc.StatusCode.NOT_FOUND, f"model identity mismatch: {wanted!r} was asked for, {loaded!r} is loaded"
            )


def _wrapped(handler: grpc.RpcMethodHandler[Any, Any], check: Check) -> grpc.RpcMethodHandler[Any, Any]:
    """The same handler, with the check before it and its exceptions as statuses."""
    make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
    if handler.response_streaming:
        many = handler.stream_stream if handler.request_streaming else handler.unary_stream
        behaviour: Any = _streaming(many, check)
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
    else:
        one = handler.stream_unary if handler.request_streaming else handler.unary_unary
        behaviour = _unary(one, check)
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _unary(behaviour: Any, check: Check) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        async with _statuses(context):
            await check(request, context)
            return await behaviour(request, context)

    return call


def _streaming(behaviour: Any, check: Check) -> Callable[[Any, Context], Awaitable[None]]:
    # Not a generator: grpc.aio leaves a generator suspended at its yield when the caller goes away while a message is
    # being sent, and then nobody closes it. Here the cancellation arrives in this coroutine, which closes it.
    async def call(request: Any, context: Context) -> None:
        async with _statuses(context):
            await check(request, context)
            async with contextlib.aclosing(behaviour(request, context)) as replies:
                async for reply in replies:
                    await context.write(reply)

    return call


@contextlib.asynccontextmanager
async def _statuses(context: Context) -> AsyncIterator[None]:
    """Ends the RPC with a status when an exception arrives here."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except StatusError as error:
        await context.abort(error.code, error.message, error.trailing)
    except Exception as error:
        log.exception("an RPC failed")
        await context.abort(grpc.StatusCode.INTERNAL, one_line(error))


# -- the server -----------------------------------------------------------------------------------------------------


class AddressInUse(OSError):
    """The address can't be listened on."""


class Running:
    """A server that listens at `address`. Use it as an async context manager, or call `stop`."""

    def __init__(self, server: grpc.aio.Server, servicer: Servicer, address: str) -> None:
        self.address = address
        self._server = server
        self._servicer = servicer

    async def stop(self, grace: float | None = None) -> None:
        """Refuses new calls at once, lets those under way finish for `grace` seconds, and unloads."""
        await self._server.stop(grace)
        await self._servicer.unload()

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def start(servicer: Servicer, address: str = "127.0.0.1:0", *, token: str = "") -> Running:
    """Serves from now on; port 0 takes a free one. Raises AddressInUse."""
    server = grpc.aio.server(interceptors=[Around(servicer, token)], options=_CHANNEL_OPTIONS)
    backend_pb2_grpc.add_BackendServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressInUse(f"cannot listen on {address}: the port is in use, or the host is not ours") from error
    await server.start()
    return Running(server, servicer, f"{address.rpartition(':')[0]}:{port}")


def serve(servicer: Callable[[], Servicer], argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT, and gives the exit code. For a `main`; `servicer` is made on the event loop.

    LOCALAI_GRPC_AUTH_TOKEN, LOCALAI_BACKEND_PARENT_WATCH and LOCALAI_BACKEND_PARENT_WATCH_INTERVAL are obeyed.
    """
    parser = argparse.ArgumentParser(description="An engine's process: serves the gRPC service backend.Backend.")
    parser.add_argument("--addr", default=DEFAULT_ADDRESS, help="host:port to listen on (default %(default)s)")
    address = parser.parse_args(argv).addr
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")  # to stderr
    watch_parent(os.environ)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_signalled(servicer, address, os.environ.get("LOCALAI_GRPC_AUTH_TOKEN", "")))


async def _until_signalled(servicer: Callable[[], Servicer], address: str, token: str) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        running = await start(servicer(), address, token=token)
    except AddressInUse as error:
        log.error("%s", error)
        return EXIT_ADDRESS_IN_USE
    log.info("serving on %s", running.address)
    await stopping.wait()
    log.info("stopping")
    await running.stop(GRACE_SECONDS)
    return 0


# -- the parent -----------------------------------------------------------------------------------------------------

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)")


def seconds(duration: str) -> float:
    """`1m30s`, `500ms` -> seconds. Raises ValueError."""
    if not duration or _DURATION.sub("", duration):
        raise ValueError(f"not a duration such as 2s or 500ms: {duration!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration))


def watch_parent(environ: Mapping[str, str]) -> None:
    """Ends this process when its parent has gone, however the parent went.

    It looks, rather than ask the kernel for a signal: PR_SET_PDEATHSIG fires when the *thread* that spawned us ends,
    and a gateway may spawn from a worker thread. A thread of its own looks, so that a busy event loop does not matter.
    """
    if environ.get("LOCALAI_BACKEND_PARENT_WATCH", "").strip().lower() in {"false", "0", "no", "off"}:
        return
    interval = seconds(environ.get("LOCALAI_BACKEND_PARENT_WATCH_INTERVAL") or "2s")
    # Whoever starts us directly may say who it is, as it may be gone before we look for the first time.
    parent = int(environ.get(PARENT_VARIABLE) or os.getppid())

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(interval)
        log.error("the parent process is gone, ending")
        os._exit(EXIT_PARENT_GONE)  # nobody is left to answer

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()

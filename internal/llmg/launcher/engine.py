"""One engine's process and the calls by which it becomes a model that answers: Health, LoadModel, and Free."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
import structlog

from llmg.backendapi import backend_pb2 as pb
from llmg.backendapi.backend_pb2_grpc import BackendStub
from llmg.core.errors import Failure, Kind
from llmg.launcher.process import Process
from llmg.ports import Running, Spec

log = structlog.get_logger("llmg.launcher")

T = TypeVar("T")

EXIT_ADDRESS_IN_USE: Final = 98  # how the engines of llmg.backends say that another has taken the port

_MAX_MESSAGE_BYTES = 50 * 1024 * 1024
_CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # or http_proxy in the environment would get the calls to our own child
    ("grpc.use_local_subchannel_pool", 1),  # no back-off inherited from an earlier process on the same port
    ("grpc.initial_reconnect_backoff_ms", 100),  # the least that grpc takes: it paces the polls until the port is open
    ("grpc.max_reconnect_backoff_ms", 100),
)

_FIRST_POLL = 0.02  # seconds
_LAST_POLL = 0.5
_HEALTH_SECONDS = 10.0
_FREE_SECONDS = 2.0
_STOP_SECONDS = 5.0
_GIVE_UP_SECONDS = 1.0  # for a process that never became of use
_NOTICE_SECONDS = 1.0  # between a broken connection and the news that the process has gone
_LEAST_SECRET = 8  # characters; shorter values of the environment are words like `true`


class Exited(Exception):
    """The process ended while it was being asked something."""


class Engine:
    """A process, the channel to it, and what is known of both. Make it with `spawn`."""

    def __init__(self, spec: Spec, process: Process, channel: grpc.aio.Channel, running: Running) -> None:
        self.spec = spec
        self.process = process
        self.running = running
        self.stage = "it did not answer Health"  # what it has not got past, for the message when the time is over
        self._channel = channel
        self._stub = BackendStub(channel)
        self._metadata = (("authorization", f"Bearer {running.token}"),)

    @classmethod
    async def spawn(cls, spec: Spec, generation: int, port: int, on_exit: Callable[[Process], None]) -> Engine:
        """Starts the process at that port. Raises Failure (backend_crashed) when there is no such program."""
        title = f"the {spec.engine} backend"
        address = f"127.0.0.1:{port}"
        token = secrets.token_hex(32)
        argv = [*command(spec), "--addr", address]
        env = {**os.environ, **dict(spec.env), "LOCALAI_GRPC_AUTH_TOKEN": token}
        if not spec.external:  # another's command may put a shell between us
            env["LLMG_BACKEND_PARENT"] = str(os.getpid())
        hidden = [token, *(value for _, value in spec.env if len(value) >= _LEAST_SECRET)]
        try:
            process = await Process.spawn(argv, env, title=title, on_exit=on_exit, secrets=hidden)
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            reason = getattr(error, "strerror", None) or str(error)
            raise Failure(
                Kind.BACKEND_CRASHED, f"{title} could not be started: {reason}", detail=f"{argv}: {error}"
            ) from error
        channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        running = Running(address=address, token=token, identity=spec.model, generation=generation)
        log.info("backend started", engine=spec.engine, model=spec.model, pid=process.pid, generation=generation)
        return cls(spec, process, channel, running)

    async def load(self) -> None:
        """Waits until it serves, and has it load the model. Takes as long as it takes.

        Raises Exited, or Failure (upstream_error) when the engine refuses the model.
        """
        await self._while_alive(self._until_healthy())
        self.stage = "it was still loading the model"
        result = await self._while_alive(self._load_model())
        if not result.success:
            raise self._refused(result.message)

    async def _until_healthy(self) -> None:
        pause = _FIRST_POLL
        while not await self._is_healthy():
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, _LAST_POLL)

    async def _is_healthy(self) -> bool:
        try:
            reply = await self._stub.Health(pb.HealthMessage(), timeout=_HEALTH_SECONDS, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self.stage = f"it did not answer Health ({error.code().name})"
            return False
        self.stage = f"Health answered {reply.message[:100]!r}"
        return reply.message == b"OK"

    async def _load_model(self) -> pb.Result:
        try:
            return await self._stub.LoadModel(options(self.spec), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            # A connection that breaks is mostly a process that ends: then its own end says more.
            if error.code() is grpc.StatusCode.UNAVAILABLE and await self.process.has_exited(_NOTICE_SECONDS):
                raise Exited from error
            raise self._refused(f"{error.code().name}: {error.details()}") from error

    def _refused(self, reason: str) -> Failure:
        if self.spec.file:
            reason = reason.replace(self.spec.file, self.spec.model)  # where it lies is not for clients
        return Failure(
            Kind.UPSTREAM_ERROR,
            f"the engine could not load the model: {reason or 'it gave no reason'}",
            detail=self.process.output(),
        )

    async def _while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of `work`, which is given up when the process exits. Raises Exited."""
        working = asyncio.ensure_future(work)
        exiting = asyncio.ensure_future(self.process.exited.wait())
        try:
            await asyncio.wait({working, exiting}, return_when=asyncio.FIRST_COMPLETED)
            if self.process.exited.is_set():
                raise Exited
            return await working
        finally:
            working.cancel()
            exiting.cancel()
            await asyncio.gather(working, exiting, return_exceptions=True)

    async def stop(self) -> None:
        """Has the model unloaded, then ends the process; bounded. When cancelled, the process is killed."""
        try:
            await self._free()
        except asyncio.CancelledError:
            self.process.kill()
            raise
        finally:
            await self._end(_STOP_SECONDS)

    def kill(self, _: object = None) -> None:
        """Ends the process now, if it has not ended. Fit for a callback."""
        self.process.kill()

    async def give_up(self) -> None:
        """Ends a process that never became of use."""
        await self._end(_GIVE_UP_SECONDS)

    async def _end(self, grace: float) -> None:
        try:
            await self.process.stop(grace)
        finally:
            await self._channel.close()

    async def bury(self) -> None:
        """Hears the last words of a process that has ended, and gives back what was held for it."""
        await self.process.close()
        await self._channel.close()

    async def _free(self) -> None:
        if self.process.returncode is not None:
            return
        try:
            result = await self._stub.Free(pb.HealthMessage(), timeout=_FREE_SECONDS, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            log.warning(
                "the model could not be unloaded",
                pid=self.process.pid,
                reason=f"{error.code().name}: {error.details()}",
            )
            return
        if not result.success:
            log.warning("the model could not be unloaded", pid=self.process.pid, reason=result.message)


def command(spec: Spec) -> Sequence[str]:
    """What starts the engine, without its address."""
    return spec.external or (sys.executable, "-m", f"llmg.backends.{spec.engine}")


def options(spec: Spec) -> pb.ModelOptions:
    """What LoadModel is asked."""
    return pb.ModelOptions(
        Model=spec.model,
        ModelFile=spec.file,
        ModelPath=os.path.dirname(spec.file),
        ContextSize=spec.context_size,
        Threads=spec.threads or max(cores() - 1, 1),  # they spin, and stall each other where one has to wait
        Embeddings=spec.embeddings,
        MMap=True,
        Options=[f"parallel:{spec.parallel}", *spec.options],
    )


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""The gRPC server: our services, reflection and health, on grpc.aio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as reflecting
from msgspec import Struct

from llmg.core.errors import Failure, Kind
from llmg.doors.grpc.errors import abort
from llmg.doors.grpc.reading import Reading
from llmg.doors.grpc.served import DESCRIPTORS, add_all
from llmg.doors.grpc.services import Inference
from llmg.services.admin import Admin
from llmg.services.models import Models

SERVICES: Final = tuple(service.full_name for service in DESCRIPTORS)
# Seconds for the last words of calls that are over; and calls that never end by themselves (who watches our health,
# or keeps reflection open) are not waited for any longer.
LINGER: Final = 1.0
_QUIET: Final = 0.02  # seconds without a call, after which there is none that gRPC has and we have not


class Limits(Struct, frozen=True, kw_only=True):
    """What clients may take. Times in seconds; `calls` and `connection_age` 0: any.

    `message` bytes of a request, which must arrive within `message_timeout`; `calls` at once of those who may ask,
    `streams` of any kind over one connection; `keepalive`: the silence after which a client is asked for a sign of
    life, which must come within `keepalive_timeout`; `ping_interval`: how often clients may ask us; `connection_age`:
    how long a connection may last.
    """

    message: int = 32 << 20
    message_timeout: float = 60.0
    calls: int = 0
    streams: int = 1000
    keepalive: float = 60.0
    keepalive_timeout: float = 20.0
    ping_interval: float = 10.0
    connection_age: float = 0.0

    def options(self) -> tuple[tuple[str, int], ...]:
        """As gRPC's own."""
        options = [
            ("grpc.max_receive_message_length", self.message),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", self.streams),
            ("grpc.keepalive_time_ms", _ms(self.keepalive)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout)),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.ping_interval)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        if self.connection_age:
            options.append(("grpc.max_connection_age_ms", _ms(self.connection_age)))
        return tuple(options)


def _ms(seconds: float) -> int:
    return min(round(seconds * 1000), 2**31 - 1)


@contextmanager
def polite_threads() -> Iterator[None]:
    """Threads that are started inside don't interrupt ours when they wake up: they run when it waits.

    gRPC wakes one of its own for each step of each call. That each took the processor from the event loop, to hand it
    a byte, was a third of what an event of a paced stream cost. Only Linux can be told, and only where it lets us.
    """
    changed = False
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            changed = True
    try:
        yield
    finally:
        if changed:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class _Entrance(grpc.GenericRpcHandler):
    """Is asked first about each call, and leaves it to the services, until it is shut: then it refuses each."""

    def __init__(self, refuse: Callable[[Any, Any], Awaitable[None]]) -> None:
        self.calls = 0
        """So many have come."""
        self.shut = False
        self._refusing: Any = grpc.stream_stream_rpc_method_handler(refuse)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.GenericRpcHandler."""
        self.calls += 1
        return self._refusing if self.shut else None

    async def quiet(self, most: float) -> None:
        """Waits until nobody comes any more, for so many seconds at the most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most):
                before = -1
                while self.calls != before:
                    before = self.calls
                    await asyncio.sleep(_QUIET)


class GrpcServer:
    """All of it, from `start` to `drain`. Made on the event loop that serves it."""

    def __init__(
        self,
        inference: Inference,
        models: Models,
        *,
        limits: Limits,
        reflection: bool,
        admin: Admin | None = None,
        credentials: grpc.ServerCredentials | None = None,
        reuse_port: bool = False,
    ) -> None:
        """`admin` None: the catalog is not administered here. `credentials`: for TLS. `reuse_port`: other processes
        listen at the same port."""
        self._inference = inference
        inference.most = limits.calls
        self._credentials = credentials
        with polite_threads():
            self._server = grpc.aio.server(
                options=(*limits.options(), ("grpc.so_reuseport", int(reuse_port))),
            )
        self._stopping = asyncio.Event()
        self._entrance = _Entrance(self._refuse)
        self._server.add_generic_rpc_handlers((self._entrance,))
        self._health = health.aio.HealthServicer()
        add_all(Reading(self._server, inference, limits.message_timeout), inference, models, admin)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflecting.SERVICE_NAME)
            reflecting.enable_server_reflection(names, self._server)

    async def start(self, address: str) -> int:
        """Serves at `host:port`; gives the port. Raises RuntimeError when it can't listen there."""
        if self._credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, self._credentials)
        with polite_threads():
            await self._server.start()
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def drain(self, grace: float) -> int:
        """Takes no more calls, and lets those in flight finish for `grace` seconds. How many did not.

        Calls may have come that gRPC has not told us of: to stop would cancel them. So those are answered that come at
        first, and those are refused that come then; it stops when it is quiet. Both have a second at the most. Who is
        refused hears of it when its connection has been told not to be called by any more: else it would call again.
        """
        end = asyncio.get_running_loop().time() + grace
        await self._health.enter_graceful_shutdown()
        await self._entrance.quiet(min(LINGER, grace))
        self._entrance.shut = True
        await self._entrance.quiet(min(LINGER, grace))
        left = max(0.0, end - asyncio.get_running_loop().time())
        stopping = asyncio.create_task(self._server.stop(left + LINGER))
        await asyncio.sleep(_QUIET)  # connections are told by gRPC's own threads
        self._stopping.set()
        cut_off = await self._inference.finish(left)
        await self._server.stop(LINGER)
        await stopping
        return cut_off

    async def _refuse(self, _: object, call: Any) -> None:
        await self._stopping.wait()
        trailing = (("x-request-id", self._inference.admission.request_id()),)
        await abort(call, Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down"), None, trailing)

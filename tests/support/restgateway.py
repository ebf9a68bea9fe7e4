"""The REST gateway over real sockets: in front of our own services or of exotic ones, in process or on a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import grpc
from starlette.types import ASGIApp

from llmg.boot.container import Draining
from llmg.boot.serve import listen
from llmg.doors.gateway.app import make_gateway
from llmg.doors.gateway.inprocess import InProcess
from llmg.doors.gateway.remote import Remote, describe, options
from llmg.doors.grpc.served import DESCRIPTORS, handlers
from llmg.doors.grpc.services import Inference
from llmg.doors.http.server import HttpServer
from llmg.ports import Provider
from llmg.wire.transcoding.bindings import bindings
from support import exotic
from support.doors import admission, grpc_door, some_models
from support.gateway import Gateway
from support.http import PATIENCE

IN_PROCESS, REMOTE = "in process", "remote"
MAX_BODY = 1 << 20


class Served(Gateway):
    """Where it listens, and the server."""

    def __init__(self, server: HttpServer, draining: Draining, address: tuple[str, int]) -> None:
        super().__init__(address)
        self._server = server
        self._draining = draining

    async def drain(self, grace: float) -> int:
        """As `llmg serve` does when it is told to stop."""
        self._draining.on = True
        return await self._server.drain(grace)


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[Served]:
    """An application on our HTTP server."""
    draining = Draining()
    server = HttpServer(
        app,
        max_headers=1 << 16,
        header_timeout=10.0,
        body_timeout=10.0,
        keep_alive=10.0,
        backlog=16,
        access_log=False,
        draining=draining,
    )
    listener = listen(("127.0.0.1", 0), 16)
    await server.start(listener)
    try:
        yield Served(server, draining, listener.getsockname())
    finally:
        await server.drain(0)


@asynccontextmanager
async def remote_app(address: str, *, heartbeat: float = 10.0) -> AsyncIterator[ASGIApp]:
    """The door in front of the server there."""
    async with grpc.aio.insecure_channel(address, options(300.0)) as channel:
        pool, services = await describe(channel, PATIENCE)
        yield make_gateway(
            upstream=Remote(channel), bindings=bindings(services), pool=pool, max_body=MAX_BODY, heartbeat=heartbeat
        )


@asynccontextmanager
async def our_gateway(
    where: str, pipeline: Provider, *, keys: Mapping[str, str] = {}, heartbeat: float = 10.0
) -> AsyncIterator[Served]:
    """Our own services before this pipeline."""
    if where == IN_PROCESS:
        let_in = admission(keys)
        inference = Inference(pipeline, let_in, door="gateway")
        upstream = InProcess(handlers(inference, some_models()), let_in)
        app = make_gateway(upstream=upstream, bindings=bindings(DESCRIPTORS), max_body=MAX_BODY, heartbeat=heartbeat)
        async with serving(app) as gateway:
            yield gateway
    else:
        async with (
            grpc_door(pipeline, keys=keys) as door,
            remote_app(door.address, heartbeat=heartbeat) as app,
            serving(app) as gateway,
        ):
            yield gateway


def exotic_app(answers: exotic.Answers, *, heartbeat: float = 10.0) -> ASGIApp:
    """The exotic service, in process."""
    return make_gateway(
        upstream=InProcess(answers.handlers(), admission()),
        bindings=exotic.table(),
        pool=exotic.pool(),
        max_body=MAX_BODY,
        heartbeat=heartbeat,
    )


@asynccontextmanager
async def exotic_gateway(where: str, answers: exotic.Answers, *, heartbeat: float = 10.0) -> AsyncIterator[Served]:
    """The exotic service."""
    if where == IN_PROCESS:
        async with serving(exotic_app(answers, heartbeat=heartbeat)) as gateway:
            yield gateway
    else:
        async with (
            exotic.server(answers) as address,
            remote_app(address, heartbeat=heartbeat) as app,
            serving(app) as gateway,
        ):
            yield gateway


def streamed(body: bytes, kind: str) -> Iterable[tuple[str, bytes]]:
    """A stream's pieces as (what it is, its JSON): `message`, `error`, `heartbeat`."""
    if kind.startswith("text/event-stream"):
        for block in filter(None, body.split(b"\n\n")):
            if block.startswith(b":"):
                yield "heartbeat", b""
            elif block.startswith(b"event: error\ndata: "):
                yield "error", block.removeprefix(b"event: error\ndata: ")
            else:
                assert block.startswith(b"data: "), block
                yield "message", block.removeprefix(b"data: ")
    else:
        for line in body.removesuffix(b"\n").split(b"\n"):
            if not line:
                yield "heartbeat", b""
            elif line.startswith(b'{"error":'):
                yield "error", line
            else:
                yield "message", line.removeprefix(b'{"result":').removesuffix(b"}")

"""One gateway process: every door on one event loop, from the first accept to the last answer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import structlog
from dependency_injector import providers

from llmg.boot import collector, hangup, tls
from llmg.boot.administration import following, take_over
from llmg.boot.container import Container, Front
from llmg.boot.exposure import host_and_port
from llmg.boot.launching import LazyLauncher
from llmg.boot.reload import Reloader, Source
from llmg.boot.settings import Settings
from llmg.boot.version import version
from llmg.doors.http.server import HttpServer
from llmg.ports import Document, Launcher

log = structlog.get_logger("llmg.serve")

STOPS: Final = (signal.SIGTERM, signal.SIGINT)
READY: Final = b"r"
"""What a worker tells its supervisor when it serves."""


def listen(address: tuple[str, int], backlog: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.create_server(address, family=family, backlog=backlog)
    listener.setblocking(False)
    listener.set_inheritable(True)
    return listener


def reserve(address: tuple[str, int]) -> socket.socket:
    """A socket that is bound, and never listens: who holds it knows the port, and that nobody else listened there.

    gRPC takes no socket from us, only an address; it can listen there itself, in several processes. Raises OSError.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)  # fails where somebody listens, even one who would share the port
    except OSError:
        held.close()
        raise
    return held


def at(listener: socket.socket, settings: Settings) -> str:
    """Where it listens, as a URL."""
    scheme = "http" if settings.http.tls is None else "https"
    return f"{scheme}://{host_and_port(listener.getsockname())}"


Listeners = Mapping[str, socket.socket]
"""The listening sockets of HTTP, by whose they are: `http`, `graphql`."""


def addresses(settings: Settings, listeners: Listeners) -> dict[str, str]:
    """Where each listens, for the log: `address`, `graphql_address`."""
    return {"address" if name == "http" else f"{name}_address": at(it, settings) for name, it in listeners.items()}


def _http_server(settings: Settings, front: Front, draining: Callable[[], bool]) -> HttpServer:
    http = settings.http
    return HttpServer(
        front.app,
        words=front.words,
        max_headers=http.max_headers,
        header_timeout=http.header_timeout,
        body_timeout=http.body_timeout,
        write_timeout=http.write_timeout,
        max_message=settings.websocket.max_message,
        keep_alive=http.keep_alive,
        backlog=http.backlog,
        access_log=http.access_log,
        draining=draining,
        tls=None if http.tls is None else tls.context(http.tls, ["http/1.1"]),
    )


async def serve(
    settings: Settings,
    listeners: Listeners,
    launcher: Launcher | None,
    stop: asyncio.Event,
    source: Source | None = None,
    ready: Callable[[], None] = lambda: None,
    held: Document | None = None,
) -> None:
    """Serves until `stop` is set, then drains. The launcher is the caller's to close. `source`: where the settings come
    from, to be watched. `ready` is called as soon as it serves. `held`: what the catalog holds, if the settings have
    its tenants already. Raises Failure where it can't begin to."""
    container = Container(settings=settings, launcher=providers.Object(launcher), held=providers.Object(held))
    draining = container.draining()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(container.needs().close)
        if not await _start(container, stack, stop, known=held is not None):
            return
        fronts = {"http": container.http, "graphql": container.graphql}
        servers = {name: _http_server(settings, fronts[name](), draining) for name in listeners}
        this = version()  # asked here, as it may take a moment, and then known
        where: dict[str, Any] = {**addresses(settings, listeners), "pid": os.getpid()}
        doors: list[Any] = list(servers.values())
        if settings.grpc.enabled:
            grpc = container.grpc()
            host, port = settings.grpc.bind
            where["grpc_address"] = host_and_port((host, await grpc.start(host_and_port((host, port)))))
            doors.append(grpc)
        for name, server in servers.items():
            await server.start(listeners[name])
        ready()
        if not settings.providers:
            log.warning("no providers are configured: there is no model to ask for")
        if source is not None:
            reloader = Reloader(source, container.current(), reloaded=container.following().reconsider)
            await stack.enter_async_context(watching(reloader))
        log.info("ready", **where, models=sorted(settings.models), version=this["version"], commit=this["commit"])
        await stop.wait()
        draining.on = True
        log.info("draining", grace=settings.server.grace)
        drains = [door.drain(settings.server.grace) for door in doors]
        log.info("stopped", cut_off=sum(await asyncio.gather(*drains)))


async def _start(container: Container, stack: AsyncExitStack, stop: asyncio.Event, *, known: bool) -> bool:
    """What runs beside the requests, until the stack is left. `known`: the catalog is. False: it was stopped before
    that."""
    redis = container.redis()
    if redis is not None:
        await redis.start()
        stack.push_async_callback(redis.aclose)
        limiter: Any = container.limiter()  # the one that is shared
        await limiter.start()
        stack.push_async_callback(limiter.aclose)
    if not known and not await take_over(container.following(), stop):  # else no key of the catalog is known
        return False
    await stack.enter_async_context(following(container.following()))
    stack.push_async_callback(container.admin().aclose)
    container.current()  # tells the prober what to check
    prober = container.prober()
    prober.start()
    stack.push_async_callback(prober.aclose)
    return True


@asynccontextmanager
async def watching(reloader: Reloader) -> AsyncIterator[None]:
    """Keeps what is in force as its files say; SIGHUP has them read at once."""
    task = asyncio.create_task(reloader.run(), name="reload")
    try:
        with hangup.heard(reloader.ask):
            yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def stop_on_signals(again: Callable[[signal.Signals], None] | None = None) -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets. Each one after it calls `again`; without that it ends the process as it is.

    By the system's own default: that works even where the event loop stands still.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told(number: signal.Signals) -> None:
        if again is None:
            for each in STOPS:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        elif stop.is_set():
            again(number)
        stop.set()

    for number in STOPS:
        loop.add_signal_handler(number, told, number)
    return stop


async def run_alone(settings: Settings, listeners: Listeners, source: Source, held: Document | None = None) -> None:
    """The whole gateway in this process, with its engines below it. `held`: see `serve`. Raises Failure where it can't
    begin."""
    stop = stop_on_signals()
    async with AsyncExitStack() as stack:
        launcher = LazyLauncher()
        stack.push_async_callback(launcher.aclose)
        await serve(settings, listeners, launcher, stop, source, collector.calm, held)

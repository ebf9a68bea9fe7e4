"""One gateway process: every door on one event loop, from the first accept to the last answer."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import structlog
from dependency_injector import providers
from starlette.types import ASGIApp

from llmg.boot import tls
from llmg.boot.container import Container
from llmg.boot.settings import BackendProvider, Settings
from llmg.boot.system import SystemClock
from llmg.boot.version import version
from llmg.doors.http.server import HttpServer
from llmg.ports import Launcher

log = structlog.get_logger("llmg.serve")

STOPS: Final = (signal.SIGTERM, signal.SIGINT)


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


def host_and_port(address: tuple[str, int]) -> str:
    """Of a socket's address: `host:port`, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def needs_launcher(settings: Settings) -> bool:
    """Is there an engine that we are to start?"""
    return any(isinstance(p, BackendProvider) and p.engine is not None for p in settings.providers.values())


Listeners = Mapping[str, socket.socket]
"""The listening sockets of HTTP, by whose they are: `http`, `graphql`."""


def wanted(settings: Settings) -> dict[str, tuple[str, int]]:
    """Where HTTP listens, as `Listeners` names it."""
    alone = settings.graphql.bind if settings.graphql.enabled else None
    http = (settings.rest, settings.websocket, settings.gateway)
    out = {}
    if any(door.enabled for door in http) or (settings.graphql.enabled and alone is None):
        out["http"] = settings.http.bind
    if alone is not None:
        out["graphql"] = alone
    return out


def addresses(settings: Settings, listeners: Listeners) -> dict[str, str]:
    """Where each listens, for the log: `address`, `graphql_address`."""
    return {"address" if name == "http" else f"{name}_address": at(it, settings) for name, it in listeners.items()}


def _http_server(settings: Settings, app: ASGIApp, draining: Callable[[], bool]) -> HttpServer:
    http = settings.http
    return HttpServer(
        app,
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


async def serve(settings: Settings, listeners: Listeners, launcher: Launcher | None, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then drains. The launcher is the caller's to close."""
    container = Container(settings=settings, launcher=providers.Object(launcher))
    draining = container.draining()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(container.needs().close)
        apps = {"http": container.http, "graphql": container.graphql}
        servers = {name: _http_server(settings, apps[name](), draining) for name in listeners}
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
        _calm_collector()
        if not settings.providers:
            log.warning("no providers are configured: there is no model to ask for")
        log.info("ready", **where, models=sorted(settings.models), version=this["version"], commit=this["commit"])
        await stop.wait()
        draining.on = True
        log.info("draining", grace=settings.server.grace)
        drains = [door.drain(settings.server.grace) for door in doors]
        log.info("stopped", cut_off=sum(await asyncio.gather(*drains)))


def _calm_collector() -> None:
    # What was made at start-up lives as long as we do, and what a request makes dies by its reference counts: by the
    # default thresholds the cyclic collector took a fifth of the time to find nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


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


async def run_alone(settings: Settings, listeners: Listeners) -> None:
    """The whole gateway in this process, with its engines below it."""
    stop = stop_on_signals()
    async with AsyncExitStack() as stack:
        launcher: Launcher | None = None
        if needs_launcher(settings):
            from llmg.launcher.local import LocalLauncher  # brings grpc along

            local = LocalLauncher(SystemClock())
            stack.push_async_callback(local.aclose)
            launcher = local
        await serve(settings, listeners, launcher, stop)

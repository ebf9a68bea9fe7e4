"""One gateway process: every door on one event loop, from the first accept to the last answer."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from contextlib import AsyncExitStack
from typing import Final

import structlog
from dependency_injector import providers

from llmg.boot.container import Container
from llmg.boot.settings import BackendProvider, Settings
from llmg.boot.system import SystemClock
from llmg.doors.rest.server import HttpServer
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


def at(listener: socket.socket) -> str:
    """Where it listens, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def needs_launcher(settings: Settings) -> bool:
    """Is there an engine that we are to start?"""
    return any(isinstance(p, BackendProvider) and p.engine is not None for p in settings.providers.values())


async def serve(settings: Settings, listener: socket.socket, launcher: Launcher | None, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then drains. The launcher is the caller's to close."""
    container = Container(settings=settings, launcher=providers.Object(launcher))
    http = settings.http
    draining = container.draining()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(container.transport().close)
        stack.push_async_callback(_close_channels, container)
        server = HttpServer(
            container.rest(),
            max_headers=http.max_headers,
            header_timeout=http.header_timeout,
            body_timeout=http.body_timeout,
            keep_alive=http.keep_alive,
            backlog=http.backlog,
            access_log=http.access_log,
            draining=draining,
        )
        await server.start(listener)
        _calm_collector()
        log.info("ready", address=at(listener), models=sorted(settings.models))
        await stop.wait()
        draining.on = True
        log.info("draining", grace=settings.server.grace)
        lost = await server.drain(settings.server.grace)
        log.info("stopped", cut_off=lost)


async def _close_channels(container: Container) -> None:
    channels = container.needs().channels
    if channels is not None:
        await channels.close()


def _calm_collector() -> None:
    # What was made at start-up lives as long as we do, and what a request makes dies by its reference counts: by the
    # default thresholds the cyclic collector took a fifth of the time to find nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets; a second one ends the process as it is."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told() -> None:
        stop.set()
        for number in STOPS:
            loop.remove_signal_handler(number)

    for number in STOPS:
        loop.add_signal_handler(number, told)
    return stop


async def run_alone(settings: Settings, listener: socket.socket) -> None:
    """The whole gateway in this process, with its engines below it."""
    stop = stop_on_signals()
    async with AsyncExitStack() as stack:
        launcher: Launcher | None = None
        if needs_launcher(settings):
            from llmg.launcher.local import LocalLauncher  # brings grpc along

            local = LocalLauncher(SystemClock())
            stack.push_async_callback(local.aclose)
            launcher = local
        await serve(settings, listener, launcher, stop)

"""`python -m llmg.boot.worker SOCKET [NAME=FD ...]`: one of the supervisor's workers.

The FDs are the listening sockets, SOCKET where the supervisor's launcher is asked. The settings come on standard input,
as the supervisor wrote them, with where they came from; that is a socket, by which READY goes back.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import sys
from contextlib import AsyncExitStack, suppress

import structlog
import uvloop

from llmg.boot import collector, logs
from llmg.boot.reload import Source
from llmg.boot.serve import READY, Listeners, serve, stop_on_signals
from llmg.boot.settings import Settings
from llmg.core.errors import Failure
from llmg.launcher.remote import RemoteLauncher

log = structlog.get_logger("llmg.worker")


async def work(settings: Settings, source: Source, listeners: Listeners, path: str) -> None:
    """Serves until told to stop, or until the supervisor is gone."""
    stop = stop_on_signals(lambda _: None)  # some tell all processes of a service, and then the supervisor does, too
    loop = asyncio.get_running_loop()

    def supervisor_gone() -> None:  # nothing more comes on our input but its end
        loop.remove_reader(sys.stdin.fileno())
        stop.set()

    loop.add_reader(sys.stdin.fileno(), supervisor_gone)
    async with AsyncExitStack() as stack:
        launcher = RemoteLauncher(path)
        stack.push_async_callback(launcher.aclose)
        await serve(settings, listeners, launcher, stop, source, _ready)


def _ready() -> None:
    collector.calm()
    with suppress(OSError):  # it is gone
        os.write(sys.stdin.fileno(), READY)


def main() -> None:
    """The entry point."""
    path = sys.argv[1]
    fds = {name: int(fd) for name, _, fd in (word.partition("=") for word in sys.argv[2:])}
    settings, source = pickle.loads(_read(int.from_bytes(_read(8), "big")))
    logs.configure(settings.log.level, settings.log.format)
    listeners = {name: socket.socket(fileno=fd) for name, fd in fds.items()}
    try:
        uvloop.run(work(settings, source, listeners, path))
    except Failure as failure:
        log.error("it could not begin to serve", reason=failure.message, detail=failure.detail)
        sys.exit(1)


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        some = os.read(0, size - len(data))
        if not some:
            sys.exit(1)  # the supervisor is gone already
        data += some
    return data


if __name__ == "__main__":
    main()

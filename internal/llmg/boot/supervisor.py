"""Several gateway processes behind one port.

The supervisor owns what there must be one of: the listening socket, which every worker inherits (closing one of several
SO_REUSEPORT sockets resets its queue), and the engines' processes, which workers reach through its launcher. Workers
are started as new processes, never forked: a fork with gRPC in it hangs. Each gets its settings on its standard input,
whose end tells it later that the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from llmg.boot.serve import at, needs_launcher, stop_on_signals
from llmg.boot.settings import Settings
from llmg.boot.system import SystemClock

log = structlog.get_logger("llmg.supervisor")

_BACKOFF: Final = (0.5, 30.0)  # seconds before a worker that ended by itself is started again: at first, at most
_STEADY: Final = 60.0  # seconds after which a worker that ends is treated as if it were its first time
_TO_CLOSE: Final = 5.0  # seconds on top of the grace


async def supervise(settings: Settings, listener: socket.socket) -> None:
    """Runs `settings.server.workers` processes until told to stop, and starts again those that end by themselves."""
    stop = stop_on_signals()
    async with AsyncExitStack() as stack:
        path = ""
        if needs_launcher(settings):
            path = await _serve_launcher(stack)
        slots = [_Slot(number, settings, listener, path) for number in range(settings.server.workers)]
        tasks = [asyncio.create_task(slot.keep()) for slot in slots]
        log.info("supervising", address=at(listener), workers=len(slots))
        await stop.wait()
        listener.close()  # the workers' own copies go as they drain
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(slot.end(settings.server.grace + _TO_CLOSE) for slot in slots))


async def _serve_launcher(stack: AsyncExitStack) -> str:
    from llmg.launcher.local import LocalLauncher  # brings grpc along
    from llmg.launcher.remote import LauncherServer

    launcher = LocalLauncher(SystemClock())
    stack.push_async_callback(launcher.aclose)
    server = LauncherServer(launcher)
    path = await server.start()
    stack.push_async_callback(server.aclose)
    return str(path)


class _Slot:
    """One worker, and whoever takes its place."""

    def __init__(self, number: int, settings: Settings, listener: socket.socket, path: str) -> None:
        self._number = number
        self._settings = pickle.dumps(settings)
        self._listener = listener
        self._path = path
        self._process: Process | None = None

    async def keep(self) -> None:
        """Starts it, and starts it again whenever it ends."""
        loop = asyncio.get_running_loop()
        wait = _BACKOFF[0]
        while True:
            began = loop.time()
            process = await self._start()
            code = await process.wait()
            if loop.time() - began > _STEADY:
                wait = _BACKOFF[0]
            log.error("a worker ended by itself", worker=self._number, code=code, again_in=wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, _BACKOFF[1])

    async def _start(self) -> Process:
        fd = self._listener.fileno()
        words = [sys.executable, "-m", "llmg.boot.worker", str(fd), self._path]
        # Shielded: a process that was started just as we are told to stop must not get lost.
        process = self._process = await asyncio.shield(
            asyncio.create_task(asyncio.create_subprocess_exec(*words, stdin=PIPE, pass_fds=(fd,)))
        )
        assert process.stdin is not None
        process.stdin.write(len(self._settings).to_bytes(8, "big") + self._settings)
        with suppress(ConnectionError):  # it has ended already; `wait` will tell
            await process.stdin.drain()
        return process

    async def end(self, within: float) -> None:
        """Tells it to drain, and ends it if it has not after that many seconds."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), within)
        except TimeoutError:
            log.error("a worker did not stop in time", worker=self._number)
            process.kill()
            await process.wait()

"""Several gateway processes behind one port.

The supervisor owns what there must be one of: the listening socket, which every worker inherits (closing one of several
SO_REUSEPORT sockets resets its queue), and the engines' processes, which workers reach through its launcher. Workers
are started as new processes, never forked: a fork with gRPC in it hangs, and uvloop's own subprocesses begin with one.
Each gets its settings on its standard input, whose end tells it later that the supervisor is gone. It is a socket: by
it each says when it serves. Where all of them end before they do, nobody would answer the clients, whose connections
the system accepts all the same: then the supervisor ends, too.

Signals are the supervisor's: workers are in sessions of their own, where a terminal's Ctrl-C does not reach them. The
first tells the workers to drain, the second ends them and the supervisor as they are.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from llmg.boot import hangup
from llmg.boot.current import check
from llmg.boot.exposure import check_closed
from llmg.boot.launching import LazyLauncher
from llmg.boot.reload import Reloader, Source
from llmg.boot.serve import READY, Listeners, addresses, stop_on_signals, watching
from llmg.boot.settings import Settings
from llmg.launcher.remote import LauncherServer

log = structlog.get_logger("llmg.supervisor")

_BACKOFF: Final = (0.5, 30.0)  # seconds before a worker that ended by itself is started again: at first, at most
_STEADY: Final = 60.0  # seconds after which a worker that ends is treated as if it were its first time
_TO_CLOSE: Final = 5.0  # seconds on top of the grace


class NobodyServes(Exception):
    """No worker serves, and each that was started last ended before it did."""


async def supervise(settings: Settings, listeners: Listeners, source: Source) -> None:
    """Runs `settings.server.workers` processes until told to stop, and starts again those that end by themselves.

    Raises NobodyServes.
    """
    orders = _Orders(settings, source)
    slots: list[_Slot] = []
    hopeless = False

    def end_at_once(number: signal.Signals) -> None:
        for slot in slots:
            slot.kill()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def look() -> None:
        nonlocal hopeless
        if not stop.is_set() and all(slot.failing for slot in slots):
            hopeless = True
            stop.set()

    stop = stop_on_signals(end_at_once)
    async with AsyncExitStack() as stack:
        path = await _serve_launcher(stack)
        slots += [_Slot(number, orders, listeners, path, look) for number in range(settings.server.workers)]
        tasks = [asyncio.create_task(slot.keep()) for slot in slots]
        where = addresses(settings, listeners)
        if settings.grpc.enabled:
            where["grpc_address"] = settings.grpc.server_addr
        await stack.enter_async_context(watching(orders.reloader))
        log.info("supervising", **where, workers=len(slots))
        await stop.wait()
        log.info("draining", grace=settings.server.grace)
        for listener in listeners.values():
            listener.close()  # the workers' own copies go as they drain
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(slot.end(settings.server.grace + _TO_CLOSE) for slot in slots))
        log.info("stopped")
    if hopeless:
        raise NobodyServes("no worker could be started: the log says why")


async def _serve_launcher(stack: AsyncExitStack) -> str:
    launcher = LazyLauncher()
    stack.push_async_callback(launcher.aclose)
    server = LauncherServer(launcher)
    path = await server.start()
    stack.push_async_callback(server.aclose)
    return str(path)


class _Orders:
    """What workers are told that are started now. Those that run watch the files themselves."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings = settings
        self.turn = asyncio.Lock()
        self.reloader = Reloader(source, self)

    async def put(self, settings: Settings, version: str) -> None:
        """See reload.InForce."""
        check_closed(self.settings, settings)
        await asyncio.to_thread(check, settings)
        self.settings = settings

    def __bytes__(self) -> bytes:
        return pickle.dumps((self.settings, self.reloader.source))


class _Slot:
    """One worker, and whoever takes its place."""

    def __init__(
        self, number: int, orders: _Orders, listeners: Listeners, path: str, failed: Callable[[], None]
    ) -> None:
        """`failed` is called when one has ended before it served."""
        self._number = number
        self._orders = orders
        self._listeners = listeners
        self._path = path
        self._failed = failed
        self._worker: _Worker | None = None
        self._ended_early = False

    @property
    def failing(self) -> bool:
        """Does none serve here, and did the one before end before it did?"""
        return self._ended_early and not (self._worker is not None and self._worker.serves)

    async def keep(self) -> None:
        """Starts it, and starts it again whenever it ends."""
        loop = asyncio.get_running_loop()
        wait = _BACKOFF[0]
        while True:
            began = loop.time()
            try:
                worker = self._worker = _Worker(self._listeners, self._path, bytes(self._orders))
            except OSError as error:
                log.error("a worker could not be started", worker=self._number, reason=str(error), again_in=wait)
            else:
                log.info("worker started", worker=self._number, pid=worker.pid)
                code = await asyncio.shield(worker.ended)
                self._ended_early = not worker.served
                if loop.time() - began > _STEADY:
                    wait = _BACKOFF[0]
                log.error("a worker ended by itself", worker=self._number, pid=worker.pid, code=code, again_in=wait)
                if not worker.served:
                    self._failed()
            await asyncio.sleep(wait)
            wait = min(wait * 2, _BACKOFF[1])

    async def end(self, within: float) -> None:
        """Tells it to drain, and ends it if it has not after that many seconds."""
        worker = self._worker
        if worker is None or worker.ended.done():
            return
        worker.tell(signal.SIGTERM)
        await asyncio.wait({worker.ended}, timeout=within)
        if not worker.ended.done():
            log.error("a worker did not stop in time", worker=self._number, pid=worker.pid)
            worker.tell(signal.SIGKILL)
            await worker.ended

    def kill(self) -> None:
        """Ends it as it is."""
        if self._worker is not None:
            self._worker.tell(signal.SIGKILL)


class _Worker:
    """A process, from its start to its end; `ended` gives its exit code then. `served`: has it begun to serve?

    Raises OSError.
    """

    def __init__(self, listeners: Listeners, path: str, settings: bytes) -> None:
        fds = {name: listener.fileno() for name, listener in listeners.items()}
        words = [sys.executable, "-m", "llmg.boot.worker", path, *(f"{name}={fd}" for name, fd in fds.items())]
        link, theirs = socket.socketpair()
        try:
            with theirs, hangup.held_at_birth():
                self._child = subprocess.Popen(
                    words, stdin=theirs.fileno(), pass_fds=tuple(fds.values()), start_new_session=True
                )
        except BaseException:
            link.close()
            raise
        self.pid = self._child.pid
        self.served = False
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        said = len(settings).to_bytes(8, "big") + settings
        threading.Thread(
            target=_attend,
            args=(self._child, link, said, loop, self._serves, self.ended.set_result),
            name=f"worker {self.pid}",
            daemon=True,
        ).start()

    @property
    def serves(self) -> bool:
        """Does it, at this moment?"""
        return self.served and not self.ended.done()

    def _serves(self) -> None:
        self.served = True

    def tell(self, number: signal.Signals) -> None:
        """Sends it a signal, if it has not ended."""
        with suppress(ProcessLookupError):
            self._child.send_signal(number)


def _attend(
    child: subprocess.Popen[bytes],
    link: socket.socket,
    settings: bytes,
    loop: asyncio.AbstractEventLoop,
    serves: Callable[[], None],
    ended: Callable[[int], None],
) -> None:
    """What would block: hands the settings over, and waits until it serves, and for the end."""
    with suppress(RuntimeError), link:  # the event loop has ended before the worker, and nobody is left to tell
        with suppress(OSError):  # it has ended already
            link.sendall(settings)
            if link.recv(len(READY)) == READY:
                loop.call_soon_threadsafe(serves)
        code = child.wait()
        loop.call_soon_threadsafe(ended, code)

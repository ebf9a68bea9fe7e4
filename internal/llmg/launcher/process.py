"""A child process that is watched: what it writes is kept and logged, its end is noticed at once.

Not by the event loop's own subprocesses. uvloop forks, runs Python's and pthread's fork handlers in the child, and
blocks the loop until the child has called exec: in a process full of gRPC's threads that is not safe, and what hangs
there hangs the gateway. subprocess.Popen uses vfork and runs nothing in between. asyncio's, in 3.11, tells of an exit
by `wait` only when the pipes are closed, which a grandchild may keep open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import structlog

from llmg.launcher.tail import Tail

log = structlog.get_logger("llmg.launcher")

Stream = Literal["stdout", "stderr"]

_DRAIN_SECONDS: Final = 0.5  # for the pipes to end after the process did
_REAP_SECONDS: Final = 5.0  # for the kernel to end what was killed
_NOT_THEIR_OWN_END: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT})


class Process:
    """One child, the leader of its own process group. Make it with `spawn`.

    `title`: what messages call it. `on_exit` is called with it once, on the event loop, as soon as the exit is known.
    """

    def __init__(
        self, child: subprocess.Popen[bytes], title: str, on_exit: Callable[[Process], None], secrets: Sequence[str]
    ) -> None:
        self.title = title
        self.pid = child.pid
        self.returncode: int | None = None
        self.exited = asyncio.Event()
        self._child = child
        self._on_exit = on_exit
        self._stopping = False
        self._pipes: dict[Stream, _Pipe] = {
            "stdout": _Pipe("stdout", Tail(secrets=secrets), self.pid),
            "stderr": _Pipe("stderr", Tail(secrets=secrets), self.pid),
        }
        self._log = log.bind(backend=title, pid=self.pid)
        # For a gateway that ends without `stop`. One that is killed can't do even this: the child watches for that.
        self._at_exit = weakref.finalize(self, _kill_orphans, self.pid, os.getpid())
        threading.Thread(
            target=_wait, args=(child, asyncio.get_running_loop(), self._exit), name=f"wait {self.pid}", daemon=True
        ).start()

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        title: str,
        on_exit: Callable[[Process], None],
        secrets: Sequence[str] = (),
    ) -> Process:
        """Starts it. Raises OSError when there is no such program. When cancelled, no process stays behind."""
        process = cls(_popen(argv, env), title, on_exit, secrets)
        listening = asyncio.ensure_future(process._listen())
        try:
            await asyncio.shield(listening)
        except BaseException:
            process.kill()
            await asyncio.wait({listening})  # half connected, a pipe would be closed twice, or never
            process._close_pipes()
            raise
        return process

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for name, pipe in self._pipes.items():
            await loop.connect_read_pipe(pipe.itself, getattr(self._child, name))

    def _exit(self, returncode: int) -> None:
        self.returncode = returncode
        _signal_group(self.pid, signal.SIGKILL)  # what it has started itself ends with it
        self._at_exit.detach()
        self.exited.set()
        self._on_exit(self)

    def kill(self) -> None:
        """Ends it and all its group, now. Does nothing when it has ended."""
        if self.returncode is None:
            _signal_group(self.pid, signal.SIGKILL)

    async def stop(self, grace: float) -> None:
        """Asks it to end, makes it end after `grace` seconds, and reaps it. When cancelled, ends it at once."""
        self._stopping = self.returncode is None
        try:
            if self.returncode is None:
                with contextlib.suppress(ProcessLookupError):  # it is ending by itself
                    os.kill(self.pid, signal.SIGTERM)
            if not await self.has_exited(grace):
                self._log.warning("the backend did not stop when asked, killing it", seconds=grace)
        finally:
            self.kill()
        if not await self.has_exited(_REAP_SECONDS):
            self._log.error("the backend was killed and is still there", seconds=_REAP_SECONDS)
        await self.close()

    async def has_exited(self, seconds: float) -> bool:
        """Whether it has ended, or does within that time."""
        return await _happen([self.exited], seconds)

    async def close(self) -> None:
        """Waits for the last words of a process that has ended, and gives back its pipes."""
        if not await _happen([pipe.ended for pipe in self._pipes.values()], _DRAIN_SECONDS):
            self._log.info("the backend's pipes are held open by another process")
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()

    def epitaph(self, when: str = "") -> str:
        """How it ended, in a sentence: `the X backend exited with code 1: <last words>`. `when`: ` while starting`."""
        if self._stopping:
            return f"{self.title} was stopped"
        code = self.returncode
        if code is None:
            return f"{self.title} is ending"
        end = f"exited with code {code}" if code >= 0 else f"was killed by signal {-code}{_signal_name(-code)}"
        words = self.last_words() if -code not in _NOT_THEIR_OWN_END else ""
        return f"{self.title} {end}{when}" + (f": {words}" if words else "")

    def last_words(self) -> str:
        """The last lines of stderr, or of stdout if there are none."""
        return self._pipes["stderr"].tail.last_words() or self._pipes["stdout"].tail.last_words()

    def output(self) -> str:
        """The end of all that it wrote, for a log."""
        return "\n".join(text for pipe in self._pipes.values() if (text := pipe.tail.text()))


class _Pipe(asyncio.Protocol):
    """What comes out of one stream of the child."""

    def __init__(self, name: Stream, tail: Tail, pid: int) -> None:
        self.tail = tail
        self.ended = asyncio.Event()
        self._log = log.bind(pid=pid, stream=name)
        self._transport: asyncio.BaseTransport | None = None

    def itself(self) -> _Pipe:
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._say(self.tail.feed(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._say(self.tail.close())
        self.ended.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._log.debug("backend output", line=line)


def _popen(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )


def _wait(child: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, noticed: Callable[[int], None]) -> None:
    returncode = child.wait()
    with contextlib.suppress(RuntimeError):  # the event loop has ended before the child, and nobody is left to tell
        loop.call_soon_threadsafe(noticed, returncode)


async def _happen(events: Sequence[asyncio.Event], seconds: float) -> bool:
    """Whether all of them happen within that time."""
    try:
        async with asyncio.timeout(seconds):
            for event in events:
                await event.wait()
    except TimeoutError:
        return False
    return True


def _signal_group(pid: int, number: int) -> None:
    # macOS says EPERM of a group of which nothing is left but zombies
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _kill_orphans(pid: int, owner: int) -> None:
    if os.getpid() == owner:  # a fork of the owner has its own exit, but not its children
        _signal_group(pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal
        return ""

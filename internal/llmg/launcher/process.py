"""A child process that is watched: what it writes is kept and logged, its end is noticed at once.

By asyncio's protocol of subprocesses, not its streams: the exit is reported when it happens, even while a grandchild
holds the pipes open, and what the child writes is drained without a task of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import structlog

from llmg.launcher.tail import Tail

log = structlog.get_logger("llmg.launcher")

_STREAMS: Final = {1: "stdout", 2: "stderr"}
_DRAIN_SECONDS: Final = 0.5  # for the pipes to end after the process did
_REAP_SECONDS: Final = 5.0  # for the kernel to end what was killed
_NOT_THEIR_OWN_END: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT})


class Process(asyncio.SubprocessProtocol):
    """One child, the leader of its own process group. Make it with `spawn`.

    `title`: what messages call it. `on_exit` is called with it once, on the event loop, as soon as the exit is known.
    """

    def __init__(self, title: str, on_exit: Callable[[Process], None], secrets: Sequence[str]) -> None:
        self.title = title
        self.pid = 0
        self.returncode: int | None = None
        self.exited = asyncio.Event()
        self._on_exit = on_exit
        self._drained = asyncio.Event()
        self._stopping = False
        self._transport: asyncio.SubprocessTransport | None = None
        self._tails = {fd: Tail(secrets=secrets) for fd in _STREAMS}
        self._log = log.bind(backend=title)
        self._at_exit: weakref.finalize[Any, Any] | None = None

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
        process = cls(title, on_exit, secrets)
        spawning = asyncio.ensure_future(
            asyncio.get_running_loop().subprocess_exec(
                lambda: process,
                *argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                start_new_session=True,
            )
        )
        try:
            await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await asyncio.wait({spawning})
            process.kill()
            raise
        return process

    # -- the event loop calls these --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.SubprocessProtocol."""
        # uvloop's transport is no subclass of asyncio's
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid()
        # For a gateway that ends without `stop`. One that is killed can't do even this: the child watches for that.
        self._at_exit = weakref.finalize(self, _kill_orphans, self.pid, os.getpid())
        self._log = self._log.bind(pid=self.pid)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """See asyncio.SubprocessProtocol."""
        self._say(fd, self._tails[fd].feed(data))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """See asyncio.SubprocessProtocol."""
        self._say(fd, self._tails[fd].close())

    def process_exited(self) -> None:
        """See asyncio.SubprocessProtocol."""
        assert self._transport is not None
        self.returncode = self._transport.get_returncode()
        _signal_group(self.pid, signal.SIGKILL)  # what it has started itself ends with it
        if self._at_exit is not None:
            self._at_exit.detach()
        self.exited.set()
        self._on_exit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.SubprocessProtocol."""
        self._drained.set()

    def _say(self, fd: int, lines: Sequence[str]) -> None:
        for line in lines:
            self._log.debug("backend output", stream=_STREAMS[fd], line=line)

    # -- we call these --

    def kill(self) -> None:
        """Ends it and all its group, now. Does nothing when it has ended."""
        if self._transport is not None and self.returncode is None:
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
        return await _happens(self.exited, seconds)

    async def close(self) -> None:
        """Waits for the last words of a process that has ended, and gives back its pipes."""
        if not await _happens(self._drained, _DRAIN_SECONDS):
            self._log.info("the backend's pipes are held open by another process")
        if self._transport is not None:
            self._transport.close()

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
        return self._tails[2].last_words() or self._tails[1].last_words()

    def output(self) -> str:
        """The end of all that it wrote, for a log."""
        return "\n".join(text for text in (self._tails[1].text(), self._tails[2].text()) if text)


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
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

"""SIGHUP, which has the configuration read at once: it must not end a process that can't do so yet.

Until somebody hears it, the system holds it back (it is blocked), and then it is as if it came just now. New threads
and processes begin with what their maker holds back.

Where there is a terminal it is not ours: there it tells that the terminal is gone, and ends the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIG_BLOCK, SIG_IGN, SIG_SETMASK, SIG_UNBLOCK, SIGHUP, pthread_sigmask, signal


def _ours() -> bool:
    return sys.stdin is None or not sys.stdin.isatty()


def hold() -> None:
    """It waits from now on, until `heard`. For a process's first thread, before there are others."""
    if _ours():
        pthread_sigmask(SIG_BLOCK, {SIGHUP})


@contextmanager
def held_at_birth() -> Iterator[None]:
    """Processes that are started within hold it from their first moment."""
    before = pthread_sigmask(SIG_BLOCK, {SIGHUP})
    try:
        yield
    finally:
        pthread_sigmask(SIG_SETMASK, before)


@contextmanager
def heard(by: Callable[[], None]) -> Iterator[None]:
    """Each one calls `by`, in the running event loop, and so does one that waits. Afterwards none does anything any
    more, in whatever thread it comes: the process is about to end, in good order."""
    if not _ours():
        yield
        return
    import asyncio  # late, as it takes its time, and `hold` may have none

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(SIGHUP, by)
    pthread_sigmask(SIG_UNBLOCK, {SIGHUP})
    try:
        yield
    finally:
        loop.remove_signal_handler(SIGHUP)
        signal(SIGHUP, SIG_IGN)  # threads that were started meanwhile don't hold it back

"""SIGHUP before a process can read its configuration again: it waits, and is heard then."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from boot.conftest import Serve
from llmg.boot import hangup
from support.gateway import ECHO
from support.http import PATIENCE

BLOCKED = "import signal; print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"


def blocked() -> bool:
    """Is it held back in this thread?"""
    return signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.fixture(autouse=True)
def none_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that nobody heard would end the tests."""
    monkeypatch.setattr(sys, "stdin", None)
    before, handler = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGHUP)
    yield
    if signal.SIGHUP in signal.sigpending():
        signal.sigwait({signal.SIGHUP})
    signal.signal(signal.SIGHUP, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_one_that_waits_is_heard_and_so_are_later_ones() -> None:
    came: asyncio.Queue[None] = asyncio.Queue()
    hangup.hold()
    signal.raise_signal(signal.SIGHUP)
    async with asyncio.timeout(PATIENCE):
        with hangup.heard(lambda: came.put_nowait(None)):
            await came.get()
            signal.raise_signal(signal.SIGHUP)
            await came.get()
            await asyncio.to_thread(blocked)  # a thread that is there from now on
    os.kill(os.getpid(), signal.SIGHUP)
    assert came.empty()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # else this process had ended


class Terminal:
    """A standard input."""

    def isatty(self) -> bool:
        return True


async def test_a_terminals_ends_the_process_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    hangup.hold()
    assert not blocked()
    with hangup.heard(lambda: None):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_processes_hold_it_from_their_first_moment() -> None:
    with hangup.held_at_birth():
        done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, blocked()) == ("True\n", False)


async def test_a_gateway_that_reads_its_configuration_yet(serve: Serve, tmp_path: Path) -> None:
    """From a pipe, so that it has to wait for it."""
    pipe, later = tmp_path / "pipe.yaml", tmp_path / "later.yaml"
    os.mkfifo(pipe)
    later.write_text(json.dumps({**ECHO, "labels": {"a": "b"}}))
    gateway = await serve(ECHO, "-c", str(pipe), ready=0)
    async with asyncio.timeout(PATIENCE):
        file = await asyncio.to_thread(open, pipe, "w", encoding="utf-8")
    with file:
        gateway.tell(signal.SIGHUP)
        later.replace(pipe)
        file.write(json.dumps(ECHO))
    await gateway.ready(1)
    await gateway.said("configuration reloaded")
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0


async def test_workers_that_have_only_begun(serve: Serve) -> None:
    gateway = await serve(ECHO, "--workers", "2", ready=0)
    for entry in await gateway.said("worker started", 2):
        os.kill(entry["pid"], signal.SIGHUP)
    await gateway.ready(2)
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert gateway.complaints == []

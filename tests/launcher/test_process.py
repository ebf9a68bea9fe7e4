"""A watched child process, on both event loops."""

import asyncio
import os
import signal
import sys

import pytest

from launcher.conftest import Ear, ended, exists
from llmg.launcher.process import Process


class Child:
    """A Python child, and what is noticed of it."""

    def __init__(self) -> None:
        self.exits: list[Process] = []
        self.exited = asyncio.Event()

    def on_exit(self, process: Process) -> None:
        self.exits.append(process)
        self.exited.set()

    async def spawn(self, code: str, secrets: tuple[str, ...] = ()) -> Process:
        return await Process.spawn(
            [sys.executable, "-c", code], os.environ, title="the child", on_exit=self.on_exit, secrets=secrets
        )


async def wait_for_exit(process: Process) -> None:
    assert await process.has_exited(30)
    await process.close()


def tells(ear: Ear, event: str) -> str:
    """A statement of Python by which the child is heard."""
    return (
        f"import os, socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
        f".sendto(b'{event} %d' % os.getpid(), ('127.0.0.1', {ear.port}))"
    )


async def test_an_exit_is_noticed_with_its_code_and_last_words() -> None:
    child = Child()
    process = await child.spawn("import sys; print('out'); sys.exit('it broke')")
    await wait_for_exit(process)
    assert child.exits == [process]
    assert process.returncode == 1
    assert process.epitaph() == "the child exited with code 1: it broke"
    assert process.epitaph(" while starting") == "the child exited with code 1 while starting: it broke"
    assert not exists(process.pid)


async def test_stdout_speaks_when_stderr_is_silent() -> None:
    process = await Child().spawn("print('to stdout'); raise SystemExit(2)")
    await wait_for_exit(process)
    assert process.epitaph() == "the child exited with code 2: to stdout"


@pytest.mark.parametrize(
    ("number", "epitaph"),
    [
        (signal.SIGKILL, "the child was killed by signal 9 (SIGKILL)"),
        (signal.SIGABRT, "the child was killed by signal 6 (SIGABRT): dying"),
        (signal.SIGRTMIN + 1, f"the child was killed by signal {signal.SIGRTMIN + 1}: dying"),
    ],
)
async def test_a_signal_is_named(number: int, epitaph: str) -> None:
    process = await Child().spawn(
        f"import os, sys; print('dying', file=sys.stderr, flush=True); os.kill(os.getpid(), {int(number)})"
    )
    await wait_for_exit(process)
    assert process.epitaph() == epitaph


async def test_no_such_program() -> None:
    child = Child()
    with pytest.raises(FileNotFoundError):
        await Process.spawn(["/no/such/program"], {}, title="the child", on_exit=child.on_exit)
    assert child.exits == []


async def test_output_is_drained_and_bounded() -> None:
    process = await Child().spawn("import sys; [print('x' * 99, file=sys.stderr) for _ in range(50_000)]; print('end')")
    await wait_for_exit(process)
    assert process.returncode == 0
    assert len(process.output()) < 10_000


async def test_secrets_do_not_come_out() -> None:
    process = await Child().spawn("raise SystemExit('token=abcdefgh')", secrets=("abcdefgh",))
    await wait_for_exit(process)
    assert process.epitaph() == "the child exited with code 1: token=***"


async def test_a_grandchild_neither_hides_the_exit_nor_outlives_it() -> None:
    # It holds the pipes open: an exit that were noticed by their end would not be noticed for a minute.
    process = await Child().spawn(
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print('grandchild', child.pid, file=sys.stderr, flush=True)\n"
        "sys.exit(3)"
    )
    await wait_for_exit(process)
    assert process.returncode == 3
    await ended(int(process.last_words().split()[1]))


async def test_stop_asks_first(ear: Ear) -> None:
    process = await Child().spawn(
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"
        f"{tells(ear, 'ready')}; signal.sigwait([signal.SIGTERM]); print('bye')"
    )
    await ear.hear("ready")
    await process.stop(30)
    assert process.returncode == 0
    assert "bye" in process.output()
    assert process.epitaph() == "the child was stopped"
    await process.stop(30)


def deaf(ear: Ear) -> str:
    return f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {tells(ear, 'ready')}; signal.pause()"


async def test_stop_makes_it_end(ear: Ear) -> None:
    process = await Child().spawn(deaf(ear))
    await ear.hear("ready")
    await process.stop(0.05)
    assert process.returncode == -signal.SIGKILL
    assert not exists(process.pid)


async def test_a_stop_that_is_cancelled_kills_at_once(ear: Ear) -> None:
    process = await Child().spawn(deaf(ear))
    await ear.hear("ready")
    stopping = asyncio.create_task(process.stop(3600))
    await asyncio.wait({stopping}, timeout=0.05)
    assert not stopping.done()
    stopping.cancel()
    await wait_for_exit(process)
    assert process.returncode == -signal.SIGKILL
    assert stopping.cancelled()


async def test_a_spawn_that_is_cancelled_leaves_nothing() -> None:
    child = Child()
    spawning = asyncio.create_task(child.spawn("import signal; signal.pause()"))
    await asyncio.sleep(0)  # its first step starts the process
    spawning.cancel()
    async with asyncio.timeout(30):
        await child.exited.wait()
    await asyncio.wait({spawning})
    assert spawning.cancelled()
    assert child.exits[0].returncode == -signal.SIGKILL
    await child.exits[0].close()

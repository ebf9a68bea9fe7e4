"""Other people's programs, run to their end or talked to.

By threads, not by the event loop: uvloop forks to start a process, which gRPC in this one takes badly.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

from msgspec import Struct

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / ".temp" / "judges"  # where `hack/setup judges` put them
KEY = "the-judges-own-key"  # of the gateways under test
PATIENCE = 60.0  # seconds: a start of Node takes one, on a machine that has nothing else to do


class Ended(Struct, frozen=True):
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str


async def run(*command: str | Path, directory: Path | None = None, patience: float = PATIENCE) -> Ended:
    """A program, to its end, in a directory. Raises TimeoutExpired."""
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=directory, stdin=DEVNULL, capture_output=True, text=True, timeout=patience
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Script:
    """One of our scripts for Node."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        assert popen.stdin is not None
        assert popen.stdout is not None
        self._stdin, self._stdout = popen.stdin, popen.stdout

    async def result(self) -> Any:
        """The next line that it prints, which is JSON; what went wrong is on its stderr, which is ours."""
        async with asyncio.timeout(PATIENCE):
            line = await asyncio.to_thread(self._stdout.readline)
        assert line, "it ended without a result"
        return json.loads(line)

    def tell(self, line: str) -> None:
        """A line on its stdin."""
        self._stdin.write(line + "\n")
        self._stdin.flush()


@asynccontextmanager
async def node(script: str, *args: str) -> AsyncIterator[Script]:
    """A script of `clients`, running. At the end its stdin is closed: then it must end, in good order."""
    with subprocess.Popen(["node", HERE / "clients" / script, *args], stdin=PIPE, stdout=PIPE, text=True) as popen:
        try:
            yield Script(popen)
            assert popen.stdin is not None
            popen.stdin.close()
            assert await asyncio.to_thread(popen.wait, PATIENCE) == 0
        finally:
            popen.kill()

"""The process that owns the engines, for tests that need it to be another than their own. A program, not a module.

It writes the path of its socket to stdout and serves the launcher there, until SIGTERM.
"""

import asyncio
import signal
import sys
import time

import uvloop

from llmg.launcher.local import LocalLauncher
from llmg.launcher.remote import LauncherServer


class SystemClock:
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


async def main() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    launcher = LocalLauncher(SystemClock())
    server = LauncherServer(launcher)
    sys.stdout.write(await server.start() + "\n")
    sys.stdout.flush()
    await stopping.wait()
    await server.aclose()
    await launcher.aclose()


if __name__ == "__main__":
    uvloop.run(main())

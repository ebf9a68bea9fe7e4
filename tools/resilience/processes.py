"""The processes of a run: upstreams that can be killed, stopped and told to fail, and the gateway before them."""

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

READY_WITHIN = 60.0  # seconds
UPSTREAM = Path(__file__).with_name("upstream.py")


class Upstream:
    """One upstream at a port that stays the same when it is started anew."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = _free_port()
        self._process: Process

    async def start(self) -> None:
        """Returns when it listens."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(UPSTREAM), str(self.port), stdout=PIPE, stderr=DEVNULL
        )
        await _until_said(self._process.stdout, "ready")

    async def kill(self) -> None:
        """As when its machine dies, but that its connections are closed."""
        self._process.kill()
        await self._process.wait()

    def freeze(self) -> None:
        """It takes connections, and does nothing more."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._process.send_signal(signal.SIGCONT)

    async def fault(self, name: str) -> None:
        """See upstream.py."""
        async with (
            aiohttp.ClientSession() as session,
            session.put(f"http://127.0.0.1:{self.port}/fault/{name}") as response,
        ):
            response.raise_for_status()

    async def stop(self) -> None:
        """However it is."""
        if self._process.returncode is None:
            await self.kill()


class Gateway:
    """`llmg serve` before those upstreams, as the model `m`."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        folder: Path,
        model: Mapping[str, object] = {},
        resilience: Mapping[str, object] = {},
    ) -> None:
        """`model` and `resilience` (of the upstreams): more of their settings."""
        self._file = folder / "gateway.yaml"
        self._file.write_text(json.dumps(_config(upstreams, model, resilience)))  # JSON is YAML
        self._log: list[str] = []
        self._logged = asyncio.Condition()
        self._reading: asyncio.Task[None]
        self._process: Process
        self.url = ""

    async def start(self) -> None:
        """Returns when it is ready."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llmg.boot", "serve", "-c", str(self._file)),
            cwd=self._file.parent,
            env={**os.environ, "LLMG_LOG__FORMAT": "json"},
            stderr=PIPE,
        )
        ready = json.loads(await _until_said(self._process.stderr, '"event": "ready"'))
        self.url = ready["address"] + "/v1/chat/completions"
        self._reading = asyncio.create_task(self._read_on())

    async def until_logged(self, *words: str) -> None:
        """Returns when a line of its log has all of them."""
        async with asyncio.timeout(READY_WITHIN), self._logged:
            await self._logged.wait_for(lambda: any(all(one in line for one in words) for line in self._log))

    async def _read_on(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            async with self._logged:
                self._log.append(line.decode())
                self._logged.notify_all()

    async def stop(self) -> None:
        """In good order."""
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
            await self._reading


def _config(
    upstreams: Sequence[Upstream], model: Mapping[str, object], resilience: Mapping[str, object]
) -> dict[str, object]:
    """Time limits and waits as short as a small run needs them."""
    limits = {
        "kind": "openai",
        "timeouts": {"connect": "1s", "first_event": "1s", "idle": "1s"},
        "resilience": {"breaker": {"open_for": "500ms"}, **resilience},
    }
    return {
        "http": {"server_addr": "127.0.0.1:0"},
        "grpc": {"enabled": False},
        "server": {"grace": "2s"},
        "providers": {one.name: {**limits, "base_url": f"http://127.0.0.1:{one.port}/v1"} for one in upstreams},
        "models": {"m": {"targets": [{"provider": one.name, "model": "theirs"} for one in upstreams], **model}},
    }


async def _until_said(pipe: asyncio.StreamReader | None, words: str) -> str:
    assert pipe is not None
    async with asyncio.timeout(READY_WITHIN):
        while line := (await pipe.readline()).decode():
            if words in line:
                return line
    raise SystemExit(f"a process ended without saying {words!r}")


@asynccontextmanager
async def running(
    model: Mapping[str, object] = {}, resilience: Mapping[str, object] = {}
) -> AsyncIterator[tuple[Gateway, Sequence[Upstream]]]:
    """The gateway before three upstreams."""
    upstreams = [Upstream(f"up{number}") for number in (1, 2, 3)]
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(upstreams, Path(folder), model, resilience)
        await asyncio.gather(*(one.start() for one in upstreams))
        try:
            await gateway.start()
            try:
                yield gateway, upstreams
            finally:
                await gateway.stop()
        finally:
            await asyncio.gather(*(one.stop() for one in upstreams))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

"""A gateway for tests: `llmg serve` in a process of its own, or the same within the test's event loop."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from llmg.boot.serve import listen, serve
from llmg.boot.settings import Settings
from support.http import PATIENCE, Connection, Response, connect

STARTED_WITHIN = 60.0  # seconds, for a process


class Gateway:
    """Where it listens, and short ways to ask it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK wants to know."""
        return "http://{}:{}/v1".format(*self.address)

    def connect(self, *, receive_buffer: int | None = None) -> AbstractAsyncContextManager[Connection]:
        """A connection to it."""
        return connect(self.address, receive_buffer=receive_buffer)

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response:
        """One request on a connection of its own."""
        async with self.connect() as connection:
            return await connection.ask(method, path, body, headers)

    async def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Response:
        """One request with a body in JSON."""
        return await self.ask("POST", path, json.dumps(body).encode(), headers)

    async def chat(self, model: str = "m", text: str = "Hello", **fields: Any) -> Response:
        """One request to chat."""
        return await self.post("/v1/chat/completions", chat(model, text, **fields))


def chat(model: str = "m", text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """A chat request of one message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def to_upstream(base_url: str, **fields: Any) -> dict[str, Any]:
    """A configuration with one OpenAI-compatible provider, as model `m`: asked once, whatever it answers."""
    provider = {"kind": "openai", "base_url": base_url, **fields}
    model = {"targets": [{"provider": "up", "model": "their-model"}], "retries": {"max": 0}}
    return {"providers": {"up": provider}, "models": {"m": model}}


ECHO: Mapping[str, Any] = {
    "providers": {"echo": {"kind": "echo"}},
    "models": {"m": {"targets": [{"provider": "echo", "model": "m"}]}},
}


@asynccontextmanager
async def in_process(config: Mapping[str, Any]) -> AsyncIterator[Gateway]:
    """A gateway on this event loop, without the start of a process; engines are not started here."""
    settings = Settings(**{"server": {"grace": "200ms"}, "grpc": {"enabled": False}, **config})
    listener = listen(("127.0.0.1", 0), 128)
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(settings, {"http": listener}, None, stop))
    try:
        yield Gateway(listener.getsockname())
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE):
            await serving


class Process(Gateway):
    """`llmg serve`, and what it said in its log."""

    def __init__(self, popen: subprocess.Popen[str], log: Log) -> None:
        self.popen = popen
        self._log = log
        ready = log.find("ready", STARTED_WITHIN)
        host, _, port = ready["address"].removeprefix("http://").rpartition(":")
        super().__init__((host, int(port)))
        self.grpc_address: str = ready.get("grpc_address", "")

    @property
    def said(self) -> str:
        """All of its log up to now."""
        return "\n".join(self._log.lines)

    def find(self, event: str) -> dict[str, Any]:
        """The next entry of that name in its log, as soon as it is there."""
        return self._log.find(event, PATIENCE)


class Log:
    """Reads a process's stderr, on a thread, so that the process never has to wait for us."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._popen = popen
        self._unread: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, name="log")
        self._thread.start()

    def _read(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            self.lines.append(line.rstrip("\n"))
            self._unread.put(line)
        self._unread.put(None)

    def line(self, words: str, patience: float) -> str:
        """The next line with these words in it, as soon as it is there."""
        while True:
            line = self._unread.get(timeout=patience)
            assert line is not None, f"it ended without saying {words!r}:\n" + "\n".join(self.lines)
            if words in line:
                return line

    def find(self, event: str, patience: float) -> dict[str, Any]:
        """The next entry of that name, in a log in JSON."""
        entry: dict[str, Any] = json.loads(self.line(f'"event": "{event}"', patience))
        return entry

    def close(self) -> None:
        """When the process has ended."""
        self._thread.join()
        assert self._popen.stderr is not None
        self._popen.stderr.close()


@contextmanager
def process(directory: Path, config: Mapping[str, Any] | None = None) -> Iterator[Process]:
    """`llmg serve` at a free port, in `directory`: with this configuration, or with none at all.

    It is told to stop at the end, and must do so in good order.
    """
    command = [sys.executable, "-m", "llmg.boot", "serve"]
    if config is not None:
        file = directory / "gateway.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML
        command += ["-c", str(file)]
    own = {
        "LLMG_HTTP__SERVER_ADDR": "127.0.0.1:0",
        "LLMG_GRPC__SERVER_ADDR": "127.0.0.1:0",
        "LLMG_LOG__FORMAT": "json",
    }
    popen = subprocess.Popen(
        command, cwd=directory, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    log = Log(popen)
    try:
        yield Process(popen, log)
    finally:
        popen.terminate()
        try:
            code = popen.wait(PATIENCE)
        finally:
            popen.kill()
            popen.wait()
            log.close()
    assert code == 0, "\n".join(log.lines)

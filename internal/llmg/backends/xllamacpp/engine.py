"""A loaded model. llama.cpp's calls block and report by a callback; here they are asynchronous and can be cancelled.

A call runs on a thread, one for each slot. llama.cpp calls back after each batch of the prompt and after each token,
and ends the call when the callback answers True: a call that nobody waits for holds its slot for two batches at most.
Calls beyond the slots wait here and not in llama.cpp, where they could not be cancelled.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import grpc
import xllamacpp

from llmg.backends.servicer import StatusError
from llmg.backends.xllamacpp.answers import Chunk, status
from llmg.backends.xllamacpp.params import Params

Handle = Callable[[dict[str, Any], Callable[[Chunk], bool]], None]

HTTP_SECONDS = 60.0  # llama.cpp answers between two batches


class Engine:
    """One llama.cpp server. Made by `open`; `close` ends its calls and gives the memory back."""

    def __init__(self, server: Any, params: Params) -> None:
        self._server = server
        self._key = params.api_keys[0]
        self._address = urlsplit(server.listening_address).netloc
        self._slots = asyncio.Semaphore(params.n_parallel)
        self._threads = ThreadPoolExecutor(params.n_parallel, thread_name_prefix="llama")
        self._calls: set[_Call] = set()
        self._closed = False

    @classmethod
    async def open(cls, params: Params) -> Engine:
        """Loads the model. Raises ValueError when llama.cpp can't: it says why on stderr.

        xllamacpp keeps the interpreter's lock while it loads, so that nothing else in this process runs meanwhile.
        """
        try:
            server = await asyncio.to_thread(xllamacpp.Server, params)
        except RuntimeError as error:
            raise ValueError(f"llama.cpp could not load {params.model.path}: {error}") from None
        return cls(server, params)

    async def stream(self, chat: bool, body: dict[str, Any]) -> AsyncGenerator[list[Chunk], None]:
        """What llama.cpp answers, as batches of what came since the last look; closing it cancels the call."""
        await self._slots.acquire()
        call = _Call(asyncio.get_running_loop())
        try:
            self._check_open()
            # No name for the method: a frame that an exception keeps alive would keep the model in memory.
            running = self._threads.submit(
                call.run, self._server.handle_chat_completions if chat else self._server.handle_completions, body
            )
        except BaseException:
            self._slots.release()
            raise
        self._calls.add(call)
        # The slot is given back when the thread has returned, however the call ends; nobody has to wait for it.
        running.add_done_callback(lambda _: call.on_loop(self._ended, call))
        try:
            while chunks := await call.next():
                yield chunks
            self._check_open()
            call.check()
        finally:
            call.cancelled = True

    async def vector(self, text: str | list[int]) -> dict[str, Any]:
        """The vector of a text or of token ids, in OpenAI's shape. It can't be cancelled: it is one batch."""
        async with self._slots:
            self._check_open()
            answer = await asyncio.wrap_future(self._threads.submit(self._server.handle_embeddings, {"input": text}))
        if "error" in answer:
            raise status(answer["error"])
        return dict(answer)

    async def http(self, method: str, path: str, body: Any = None) -> Any:
        """What has no call in xllamacpp: asked of llama.cpp's own HTTP port. Gives the decoded JSON."""
        return await asyncio.to_thread(self._http, method, path, body)

    async def close(self) -> None:
        """Cancels all calls, waits for their threads, and frees the model."""
        self._closed = True
        for call in self._calls:
            call.cancelled = True
        await asyncio.to_thread(self._threads.shutdown)
        self._server = None

    def _ended(self, call: _Call) -> None:
        self._calls.discard(call)
        self._slots.release()

    def _check_open(self) -> None:
        if self._closed:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, "the model was unloaded")

    def _http(self, method: str, path: str, body: Any) -> Any:
        connection = http.client.HTTPConnection(self._address, timeout=HTTP_SECONDS)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
        except OSError as error:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, f"llama.cpp does not answer: {error}") from None
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise status(answer["error"])
        return answer


class _Call:
    """One call: chunks come in on the engine's thread and go out on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.cancelled = False
        self._loop = loop
        self._chunks: deque[Chunk] = deque()
        self._news = asyncio.Event()
        self._told = False  # the loop has been told and has not looked yet: no need to tell it again
        self._over = False
        self._error: Exception | None = None

    def run(self, handle: Handle, body: dict[str, Any]) -> None:
        """On the engine's thread, to the end of the call."""
        try:
            if not self.cancelled:
                handle(body, self._receive)
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error.with_traceback(None)
        finally:
            self._over = True
            self._tell()

    def check(self) -> None:
        """Raises what the engine raised. xllamacpp raises what templates and parsers object to in a request."""
        if isinstance(self._error, ValueError | RuntimeError):
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, str(self._error))
        if self._error is not None:
            raise self._error

    async def next(self) -> list[Chunk]:
        """What has come, at least one chunk; empty at the end."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._told = False
            over = self._over
            chunks = [self._chunks.popleft() for _ in range(len(self._chunks))]
            if chunks or over:
                if over:
                    self._news.set()
                return chunks

    def on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        """From any thread. A loop that has been closed needs nothing any more."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _receive(self, chunk: Chunk) -> bool:
        if "prompt_progress" not in chunk:  # that is reported only so that we can answer
            self._chunks.append(chunk)
            self._tell()
        return self.cancelled

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self.on_loop(self._news.set)

"""An upstream that speaks OpenAI's dialect over real sockets, and does to its client what the script says.

Each call plays the next act of the script; the last act is played by all that come later. An act is a coroutine
function over the `Call`; those below are ready to use. Nothing here waits for a time: tests wait for its events.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from support.http import PATIENCE

KEY = "sk-very-secret-0123456789"

Act = Callable[["Call"], Awaitable[None]]

ANSWER: Mapping[str, Any] = {
    "id": "chatcmpl-theirs",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "their-model",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


class Call:
    """One request that came, and the way to answer it."""

    def __init__(self, connection: _Connection, method: str, path: str, headers: Mapping[str, str], raw: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers  # names in lower case
        self.raw = raw
        self.connection = connection
        self.gone = asyncio.Event()  # the client hung up before the answer was complete
        self.paused = asyncio.Event()  # the client does not read what was written
        self.answered = asyncio.Event()  # the act is over
        self.written = 0  # bytes

    @property
    def body(self) -> Any:
        """The request's JSON."""
        return json.loads(self.raw)

    async def write(self, data: bytes) -> None:
        """Some bytes of the answer; waits while the client does not read."""
        if self.gone.is_set() or self.connection.transport.is_closing():
            raise ConnectionResetError
        self.connection.transport.write(data)
        self.written += len(data)
        await self.connection.writable.wait()

    async def head(self, status: int = 200, **headers: str) -> None:
        """A status line and headers; a `_` in a name is a `-`."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await self.write(f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode())

    async def answer(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        """A whole answer."""
        await self.head(status, content_type=kind, content_length=str(len(body)), **headers)
        await self.write(body)

    async def json(self, status: int, body: Any, **headers: str) -> None:
        """A whole answer in JSON."""
        await self.answer(status, json.dumps(body).encode(), **headers)

    async def open_stream(self) -> None:
        """The head of a stream."""
        await self.head(200, content_type="text/event-stream", transfer_encoding="chunked")

    async def piece(self, data: bytes) -> None:
        """A piece of a body in chunks."""
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, data: Any) -> None:
        """A server-sent event."""
        await self.piece(b"data: %b\n\n" % (data if isinstance(data, bytes) else json.dumps(data).encode()))

    async def close_stream(self) -> None:
        """The stream's good end."""
        await self.event(b"[DONE]")
        await self.write(b"0\r\n\r\n")

    def hang_up(self) -> None:
        """Closes the connection."""
        self.connection.transport.close()

    async def until_gone(self) -> None:
        """Waits for the client to hang up."""
        async with asyncio.timeout(PATIENCE):
            await self.gone.wait()


class Upstream:
    """The server. `calls` are those that came, `connections` how many there were."""

    def __init__(self, *acts: Act) -> None:
        self._acts = acts
        self.calls: list[Call] = []
        self.connections = 0
        self.address = ("", 0)
        self.open: set[_Connection] = set()
        self.faults: list[BaseException] = []
        self._came = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        """What a provider's configuration names."""
        return "http://{}:{}/v1".format(*self.address)

    @property
    def last(self) -> Call:
        """The call that came last."""
        return self.calls[-1]

    async def call(self, number: int = 0) -> Call:
        """The call of that number (from 0), as soon as it has come."""
        async with asyncio.timeout(PATIENCE), self._came:
            await self._came.wait_for(lambda: len(self.calls) > number)
        return self.calls[number]

    def begin(self, call: Call) -> None:
        """A request is complete: its act begins."""
        act = self._acts[min(len(self.calls), len(self._acts) - 1)]
        self.calls.append(call)
        task = asyncio.get_running_loop().create_task(self._play(act, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, act: Act, call: Call) -> None:
        async with self._came:
            self._came.notify_all()
        try:
            await act(call)
        except ConnectionResetError:
            call.gone.set()
        except Exception as error:  # noqa: BLE001 - raised where the test ends
            self.faults.append(error)
            call.hang_up()
        finally:
            call.answered.set()

    async def close(self) -> None:
        """Hangs up on everybody, and raises what went wrong in an act."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.open):
            connection.transport.abort()
        if self.faults:
            raise self.faults[0]


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = b""
        self._call: Call | None = None
        self.transport: asyncio.Transport
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._upstream.connections += 1
        self._upstream.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.open.discard(self)
        if self._call is not None and not self._call.answered.is_set():
            self._call.gone.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()
        if self._call is not None:
            self._call.paused.set()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) >= length:
            method, path, _ = first.split(" ")
            self._received = rest[length:]
            self._call = Call(self, method, path, headers, rest[:length])
            self._upstream.begin(self._call)


@asynccontextmanager
async def upstream(*acts: Act) -> AsyncIterator[Upstream]:
    """A running upstream at a free port."""
    made = Upstream(*acts)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(made), "127.0.0.1", 0)
    made.address = server.sockets[0].getsockname()
    try:
        yield made
    finally:
        server.close()
        await made.close()


# -- what to answer -------------------------------------------------------------------------------------------------


def chunk(delta: Mapping[str, Any], finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """A `chat.completion.chunk` of one choice."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return envelope(choices=[choice], **fields)


def envelope(**fields: Any) -> dict[str, Any]:
    """What all chunks of a stream have."""
    head = {"id": "chatcmpl-theirs", "object": "chat.completion.chunk", "created": 1_760_000_000}
    return {**head, "model": "their-model", **fields}


USAGE = envelope(choices=[], usage=ANSWER["usage"])


async def words(call: Call, *said: str) -> None:
    """The beginning of a stream: its head, the role, the words."""
    await call.open_stream()
    await call.event(chunk({"role": "assistant", "content": ""}))
    for word in said:
        await call.event(chunk({"content": word}))


async def good(call: Call) -> None:
    """A good answer, streamed where that was asked for: "Hello there"."""
    if not call.body.get("stream"):
        await call.json(200, ANSWER)
        return
    await words(call, "Hello", " there")
    await call.event(chunk({}, "stop"))
    if call.body.get("stream_options", {}).get("include_usage"):
        await call.event(USAGE)
    await call.close_stream()


def saying(text: str) -> Act:
    """A good answer that says this."""

    async def act(call: Call) -> None:
        if not call.body.get("stream"):
            choice = {**ANSWER["choices"][0], "message": {"role": "assistant", "content": text, "refusal": None}}
            await call.json(200, {**ANSWER, "choices": [choice]})
            return
        await words(call, text)
        await call.event(chunk({}, "stop"))
        await call.event(USAGE)
        await call.close_stream()

    return act


def streaming(*events: Any) -> Act:
    """A stream of just these events (JSON values, or raw bytes)."""

    async def act(call: Call) -> None:
        await call.open_stream()
        for event in events:
            await call.event(event)
        await call.close_stream()

    return act


def answering(status: int, body: Any, **headers: str) -> Act:
    """An answer in JSON."""

    async def act(call: Call) -> None:
        await call.json(status, body, **headers)

    return act


def html(status: int) -> Act:
    """A proxy's page."""

    async def act(call: Call) -> None:
        await call.answer(status, b"<html><body>Bad luck</body></html>", "text/html; charset=utf-8")

    return act


async def rate_limited(call: Call) -> None:
    """429, come back in 7 seconds."""
    error = {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
    await call.json(429, {"error": error}, retry_after="7")


async def unauthorized(call: Call) -> None:
    """401, with the key in its message."""
    said = f"Incorrect API key provided: {call.headers.get('authorization', '').removeprefix('Bearer ')}"
    await call.json(401, {"error": {"message": said, "type": "invalid_request_error", "code": "invalid_api_key"}})


async def bad_request(call: Call) -> None:
    """400, naming the field, with the key in its message."""
    said = f"'temperature' is too hot for {call.headers.get('authorization', 'nobody')}"
    error = {"message": said, "type": "invalid_request_error", "param": "temperature", "code": "too_hot"}
    await call.json(400, {"error": error})


async def error_with_200(call: Call) -> None:
    """An error whose status says that all is well."""
    await call.json(200, {"error": {"message": "the machine is on fire", "type": "server_error", "code": None}})


async def stall(call: Call) -> None:
    """Never answers."""
    await call.until_gone()


async def stall_after_head(call: Call) -> None:
    """A good status, and nothing more."""
    if call.body.get("stream"):
        await call.open_stream()
    else:
        await call.head(200, content_type="application/json", content_length="1000")
    await call.until_gone()


async def stall_midway(call: Call) -> None:
    """The half of an answer, and nothing more."""
    await _half(call)
    await call.until_gone()


async def cut_midway(call: Call) -> None:
    """The half of an answer, then the connection is closed."""
    await _half(call)
    call.hang_up()


async def _half(call: Call) -> None:
    if call.body.get("stream"):
        await words(call, "Hello")
    else:
        await call.head(200, content_type="application/json", content_length="1000")
        await call.write(b'{"id": "chatcmpl-theirs", "choi')


async def unfinished(call: Call) -> None:
    """A stream that ends in good order, but in the middle of its sentence."""
    await words(call, "Hello")
    await call.write(b"0\r\n\r\n")


async def hang_up(call: Call) -> None:
    """Closes without a byte, as a kept-alive connection's server does that had given it up."""
    call.hang_up()


async def hang_up_in_head(call: Call) -> None:
    """Closes in the middle of the status line."""
    await call.write(b"HTTP/1.1 20")
    call.hang_up()


def failing_midway(*tail: bytes) -> Act:
    """Half a stream, then these raw bytes in it."""

    async def act(call: Call) -> None:
        await words(call, "Hello")
        for data in tail:
            await call.piece(data)
        with suppress(TimeoutError):
            await call.until_gone()

    return act


ERROR = {"error": {"message": f"overloaded, {KEY}", "type": "server_error", "code": None, "param": None}}
error_data = failing_midway(b"data: %b\n\n" % json.dumps(ERROR).encode())
error_event = failing_midway(b"event: error\ndata: %b\n\n" % json.dumps(ERROR["error"]).encode())


async def endless(call: Call) -> None:
    """A stream that goes on for as long as somebody reads it."""
    await words(call)
    event = chunk({"content": "la" * 8192})
    while not call.gone.is_set():
        await call.event(event)

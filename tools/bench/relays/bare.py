"""What the bare relays share: the mock upstream's stream, read by read, and the least of an HTTP server."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import msgspec
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(slots=True)
class Read:
    """What one read of the upstream's stream said: words, and whether the answer began or ended with it."""

    words: list[str]
    first: bool = False
    last: bool = False


class Upstream:
    """The mock upstream, on one aiohttp session, which lives as long as the server does."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def _post(self, text: str, user: str | None, *, stream: bool) -> Any:
        body = {"model": "mock", "messages": [{"role": "user", "content": text}], "stream": stream, "user": user}
        headers = {"content-type": "application/json"}
        return self._session.post(self._url, data=msgspec.json.encode(body), headers=headers)

    async def whole(self, text: str, user: str | None) -> dict[str, Any]:
        """The answer to a unary request."""
        async with self._post(text, user, stream=False) as answer:
            whole: dict[str, Any] = msgspec.json.decode(await answer.read())
            return whole

    async def reads(self, text: str, user: str | None) -> AsyncIterator[Read]:
        """A stream."""
        rest = b""
        first = True
        async with self._post(text, user, stream=True) as answer:
            async for piece in answer.content.iter_any():
                *events, rest = (rest + piece).split(b"\n\n")
                read = Read([], first)
                for event in events:
                    if event == b"data: [DONE]":
                        continue
                    choice = msgspec.json.decode(event[6:])["choices"][0]
                    if choice["finish_reason"]:
                        read.last = True
                    else:
                        read.words.append(choice["delta"]["content"])
                if read.words or read.last:
                    first = False
                    yield read


class Application:
    """An ASGI application whose upstream lives as long as it does."""

    def __init__(self, upstream: Upstream, serve: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._upstream = upstream
        self._serve = serve

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._serve(scope, receive, send)
            return
        await receive()
        async with self._upstream:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def whole_body(receive: Receive) -> bytes:
    """The request's body, joined from its messages."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def serve(application: Application, port: int) -> None:
    """Serves until the process is told to stop."""
    uvicorn.run(
        application,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        access_log=False,
        proxy_headers=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )

"""The least that a gateway on this stack can cost: a bare ASGI pass-through.

    passthrough.py PORT UPSTREAM_PORT

uvicorn, uvloop, httptools and one aiohttp session; no framework, no routing, no decoding. It sends a POST's body on
to the same path upstream and gives the answer back as it comes: the start, then each read as one body message.
"""

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

KEPT = ("content-type", "content-length")


class PassThrough:
    """The ASGI application; its session lives as long as the server does."""

    def __init__(self, upstream_port: int) -> None:
        self.origin = f"http://127.0.0.1:{upstream_port}"
        self.session: aiohttp.ClientSession

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        else:
            await self.forward(scope["path"], receive, send)

    async def live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as self.session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def forward(self, path: str, receive: Receive, send: Send) -> None:
        body = await whole_body(receive)
        headers = {"content-type": "application/json", "authorization": "Bearer sk-bench"}
        async with self.session.post(self.origin + path, data=body, headers=headers) as answer:
            kept = [(name.encode(), answer.headers[name].encode()) for name in KEPT if name in answer.headers]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def whole_body(receive: Receive) -> bytes:
    """The request's body, joined from its messages."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


if __name__ == "__main__":
    uvicorn.run(
        PassThrough(int(sys.argv[2])),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        proxy_headers=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )

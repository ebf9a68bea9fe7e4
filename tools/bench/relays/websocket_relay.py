"""The least that a WebSocket door can cost: uvicorn with websockets' protocol, a frame for each read of the upstream.

websocket_relay.py PORT UPSTREAM_PORT
"""

import sys
from typing import Any

import msgspec
from bare import Application, Message, Receive, Send, Upstream, serve

encode = msgspec.json.Encoder().encode


class Socket:
    """One connection: the frames of `llmg.v1`, one request after the other."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
        while (message := await receive())["type"] == "websocket.receive":
            await self._answer(msgspec.json.decode(message["text"]), send)

    async def _answer(self, asked: dict[str, Any], send: Send) -> None:
        number, request = asked["id"], asked["request"]
        async for read in self._upstream.reads(request["messages"][0]["content"], request.get("user")):
            events: list[dict[str, Any]] = []
            if read.first:
                events.append({"type": "started", "id": "1", "model": "mock"})
                events.append({"type": "opened", "choice": 0, "part": 0, "kind": "text"})
            events += [{"type": "delta", "choice": 0, "part": 0, "text": word} for word in read.words]
            if read.last:
                events.append({"type": "closed", "choice": 0, "part": 0})
                events.append({"type": "finished", "choice": 0, "reason": "stop"})
            await self._frame({"type": "events", "id": number, "events": events}, send)
        await self._frame({"type": "done", "id": number}, send)

    async def _frame(self, frame: dict[str, Any], send: Send) -> None:
        await send({"type": "websocket.send", "text": encode(frame).decode()})


if __name__ == "__main__":
    upstream = Upstream(int(sys.argv[2]))
    serve(Application(upstream, Socket(upstream)), int(sys.argv[1]))

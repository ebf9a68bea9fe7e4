"""The least that a REST gateway can cost: a plain ASGI application, an SSE event for each read of the upstream.

gateway_relay.py PORT UPSTREAM_PORT
"""

import sys
from typing import Any

import msgspec
from bare import Application, Message, Receive, Send, Upstream, serve, whole_body

encode = msgspec.json.Encoder().encode


class Gateway:
    """Chat completions whole, and under `:stream` as they are made; in the JSON of the protobuf messages."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        asked = msgspec.json.decode(await whole_body(receive))
        text, user = asked["messages"][0]["parts"][0]["text"]["text"], asked.get("user")
        if scope["path"].endswith(":stream"):
            await self._stream(text, user, send)
        else:
            await self._whole(text, user, send)

    async def _whole(self, text: str, user: str | None, send: Send) -> None:
        whole = await self._upstream.whole(text, user)
        said = whole["choices"][0]["message"]["content"]
        choice = {"index": 0, "parts": [{"kind": "PART_KIND_TEXT", "text": said}], "finishReason": "FINISH_REASON_STOP"}
        usage = {"inputTokens": "12", "outputTokens": "20"}
        completion = {"id": whole["id"], "created": str(whole["created"]), "model": "mock", "usage": usage}
        body = encode({**completion, "choices": [choice]})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, text: str, user: str | None, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        async for read in self._upstream.reads(text, user):
            events: list[dict[str, Any]] = []
            if read.first:
                events += [{"started": {"id": "1", "model": "mock"}}, {"opened": {"kind": "PART_KIND_TEXT"}}]
            events += [{"delta": {"choice": 0, "part": 0, "text": word}} for word in read.words]
            if read.last:
                events += [{"closed": {}}, {"finished": {"reason": "FINISH_REASON_STOP"}}]
            body = b"data: %b\n\n" % encode({"events": events})
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    upstream = Upstream(int(sys.argv[2]))
    serve(Application(upstream, Gateway(upstream)), int(sys.argv[1]))

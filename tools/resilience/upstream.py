"""An upstream in a process of its own, that speaks OpenAI's dialect and fails when it is told to.

`upstream.py PORT` answers chats in a few words, each after a moment. `PUT /fault/NAME` sets what it does from then on:
`none`; `early`, an error in each stream of status 200 before the first word; `late`, after the first; whole answers
are then an error with status 200. `moody`: each tenth answer begins half a second later. `GET /v1/models` is there
for health checks.
"""

import asyncio
import json
import sys

from aiohttp import web

WORDS = ("All", " is", " well", " in", " here", ".")
PAUSE = 0.01  # seconds before each word
MOOD = 0.5  # seconds
MOODY_EACH = 10
FAULTS = ("none", "early", "late", "moody")
ERROR = {"error": {"message": "out of order", "type": "server_error", "param": None, "code": None}}
HEAD = {"id": "chatcmpl-1", "created": 1_760_000_000, "model": "theirs"}
USAGE = {"prompt_tokens": 5, "completion_tokens": len(WORDS), "total_tokens": 5 + len(WORDS)}


class Upstream:
    """What it does now."""

    def __init__(self) -> None:
        self.fault = "none"
        self.asked = 0

    async def set(self, request: web.Request) -> web.Response:
        """PUT /fault/NAME."""
        name = request.match_info["name"]
        if name not in FAULTS:
            raise web.HTTPBadRequest(text=f"known: {', '.join(FAULTS)}")
        self.fault = name
        return web.Response(status=204)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        asked = await request.json()
        self.asked += 1
        if self.fault == "moody" and self.asked % MOODY_EACH == 0:
            await asyncio.sleep(MOOD)
        return await (self.stream(request) if asked.get("stream") else self.whole())

    async def models(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        return web.json_response({"object": "list", "data": []})

    async def whole(self) -> web.Response:
        """A whole answer."""
        await asyncio.sleep(PAUSE * len(WORDS))
        if self.fault in ("early", "late"):
            return web.json_response(ERROR)
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Word by word."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await self.say(response, {"role": "assistant", "content": ""})
        for place, word in enumerate(WORDS):
            await asyncio.sleep(PAUSE)
            if self.fault == "early" or (self.fault == "late" and place):
                await response.write(b"data: " + json.dumps(ERROR).encode() + b"\n\n")
                return response
            await self.say(response, {"content": word})
        await self.say(response, {}, "stop")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def say(self, response: web.StreamResponse, delta: dict[str, str], reason: str | None = None) -> None:
        """One event."""
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        event = {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def main() -> None:
    """Serves until it is stopped; says `ready` when it listens."""
    upstream = Upstream()
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/chat/completions", upstream.chat),
            web.get("/v1/models", upstream.models),
            web.put("/fault/{name}", upstream.set),
        ],
    )
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=lambda _: print("ready", flush=True))


if __name__ == "__main__":
    main()

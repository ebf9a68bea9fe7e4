"""The load on a door, in the door's own protocol.

    clients.py DOOR LOAD PORT STREAMS SECONDS

STREAMS tasks ask again and again for SECONDS; then what is under way is cut off. It prints how much was answered:

    done=N events=N err=N

An event is one that carries text: the mock upstream's words all begin with "tok" (in JSON after a quotation mark), so
that it is enough to count these in the bytes that come, and a client costs little beside the server. A stream that ends
with another number of them than upstream sent is an error; the first one is told on stderr.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol, Self

import aiohttp
import grpc
import msgspec
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from llmg.gatewayapi.v1 import chat_pb2 as pb

WORDS = 64  # of a stream
PROMPT = "Tell me a short story about a fox. " * 8
MOST_CHANNELS = 16  # gRPC's streams share connections, as its clients' do
REFUSED = (OSError, RuntimeError, grpc.aio.AioRpcError, aiohttp.ClientError, WebSocketException)

encode = msgspec.json.Encoder().encode


class Client(Protocol):
    """One connection to a door. `word` is how a word of the upstream begins, as the door's protocol has it."""

    word: bytes

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def unary(self) -> bytes:
        """A whole answer."""
        ...

    def stream(self, user: str) -> AsyncIterator[bytes]:
        """An answer in pieces. `user` is "paced" for one at a model's pace."""
        ...


class GrpcClient:
    """grpc.aio; the answers are left as the bytes they are."""

    word = b"tok"
    _service = "/llmg.gatewayapi.v1.ChatService/"

    def __init__(self, port: int) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._unary: Any = self._channel.unary_unary(self._service + "CreateChatCompletion")
        self._stream: Any = self._channel.unary_stream(self._service + "CreateChatCompletionStream")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def unary(self) -> bytes:
        request: bytes = pb.CreateChatCompletionRequest(chat=self._chat("bench")).SerializeToString()
        answer: bytes = await self._unary(request)
        return answer

    async def stream(self, user: str) -> AsyncIterator[bytes]:
        request: bytes = pb.CreateChatCompletionStreamRequest(chat=self._chat(user)).SerializeToString()
        async for message in self._stream(request):
            yield message

    @staticmethod
    def _chat(user: str) -> pb.Chat:
        parts = [pb.Part(text=pb.TextPart(text=PROMPT))]
        return pb.Chat(model="mock", messages=[pb.Message(role=pb.ROLE_USER, parts=parts)], user=user)


class HttpClient(ABC):
    """Asks with a POST of JSON; the answer is whole or server-sent events."""

    word = b'"tok'
    path = ""
    stream_path = ""

    def __init__(self, port: int) -> None:
        self._origin = f"http://127.0.0.1:{port}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    @abstractmethod
    def request(self, user: str) -> dict[str, Any]:
        """The body."""

    def _post(self, path: str, user: str, accept: str) -> Any:
        headers = {"content-type": "application/json", "accept": accept}
        return self._session.post(self._origin + path, data=encode(self.request(user)), headers=headers)

    async def unary(self) -> bytes:
        async with self._post(self.path, "bench", "application/json") as answer:
            answer.raise_for_status()
            whole: bytes = await answer.read()
            return whole

    async def stream(self, user: str) -> AsyncIterator[bytes]:
        async with self._post(self.stream_path, user, "text/event-stream") as answer:
            answer.raise_for_status()
            async for piece in answer.content.iter_any():
                yield piece


class GatewayClient(HttpClient):
    """The gRPC messages as JSON."""

    path = "/api/v1/chat/completions"
    stream_path = "/api/v1/chat/completions:stream"

    def request(self, user: str) -> dict[str, Any]:
        message = {"role": "ROLE_USER", "parts": [{"text": {"text": PROMPT}}]}
        return {"model": "mock", "messages": [message], "user": user}


class GraphqlClient(HttpClient):
    """A subscription over graphql-sse."""

    stream_path = "/graphql"
    _query = (
        "subscription($input: ChatInput!) { chatCompletion(input: $input) "
        "{ events { __typename ... on Delta { choice part text } } } }"
    )

    def request(self, user: str) -> dict[str, Any]:
        message = {"role": "USER", "parts": [{"text": {"text": PROMPT}}]}
        return {"query": self._query, "variables": {"input": {"model": "mock", "messages": [message], "user": user}}}


class WebsocketClient:
    """One request after the other over one socket of `llmg.v1`."""

    word = b'"tok'

    def __init__(self, port: int) -> None:
        self._url = f"ws://127.0.0.1:{port}/v1/ws"
        self._socket: ClientConnection

    async def __aenter__(self) -> Self:
        self._socket = await connect(
            self._url,
            subprotocols=[Subprotocol("llmg.v1")],
            compression=None,
            max_queue=None,  # else what nobody reads at the end would keep it from closing
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._socket.close()

    async def unary(self) -> bytes:
        raise RuntimeError("this door has no whole answers")

    async def stream(self, user: str) -> AsyncIterator[bytes]:
        request = {"model": "mock", "messages": [{"role": "user", "content": PROMPT}], "stream": True, "user": user}
        await self._socket.send(encode({"type": "start", "id": "1", "request": request}).decode())
        while True:
            frame = await self._socket.recv(decode=False)
            yield frame
            if b'"type":"events"' not in frame:
                return


CLIENTS: dict[str, Callable[[int], Client]] = {
    "grpc": GrpcClient,
    "websocket": WebsocketClient,
    "graphql": GraphqlClient,
    "gateway": GatewayClient,
}


class Load:
    """What was answered so far."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.done = 0
        self.events = 0
        self.errors = 0

    async def put(self, client: Client) -> None:
        """Asks until it is cancelled, or refused."""
        while True:
            try:
                await self._ask(client)
            except REFUSED as error:
                self._wrong(repr(error)[:500])
                return

    async def _ask(self, client: Client) -> None:
        if self._kind == "unary":
            if b"quick brown fox" not in await client.unary():
                self._wrong("an answer without the upstream's words")
            self.done += 1
            return
        before = words = 0
        last = tail = b""
        async for last in client.stream("paced" if self._kind == "paced" else "bench"):
            words += (tail + last).count(client.word)
            self.events += words - before
            before, tail = words, last[1 - len(client.word) :]
        if words != WORDS:
            self._wrong(f"a stream of {words} events, that ends with {last[-300:]!r}")
        self.done += 1

    def _wrong(self, why: str) -> None:
        if not self.errors:
            print(why, file=sys.stderr)
        self.errors += 1


async def main(door: str, kind: str, port: int, streams: int, seconds: float) -> None:
    load = Load(kind)
    async with AsyncExitStack() as stack:
        connections = min(streams, MOST_CHANNELS) if door == "grpc" else streams
        clients = [await stack.enter_async_context(CLIENTS[door](port)) for _ in range(connections)]
        tasks = [asyncio.create_task(load.put(clients[number % connections])) for number in range(streams)]
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [error for error in ended if isinstance(error, Exception)]
    if broken:
        raise broken[0]
    print(f"done={load.done} events={load.events} err={load.errors}")


if __name__ == "__main__":
    try:
        uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
    except REFUSED as error:
        sys.exit(repr(error))

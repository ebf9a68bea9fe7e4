"""The least that a gRPC door can cost: grpc.aio, the same service, a message for each read of the upstream.

grpc_relay.py PORT UPSTREAM_PORT
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from bare import Upstream

from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceServicer, add_ChatServiceServicer_to_server


class Chat(ChatServiceServicer):
    """The service, without anything that a gateway does."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def CreateChatCompletion(
        self, request: pb.CreateChatCompletionRequest, context: Any
    ) -> pb.CreateChatCompletionResponse:
        whole = await self._upstream.whole(request.chat.messages[0].parts[0].text.text, request.chat.user)
        out = pb.CreateChatCompletionResponse()
        completion, said = out.completion, whole["choices"][0]["message"]["content"]
        completion.id, completion.created, completion.model = whole["id"], whole["created"], whole["model"]
        choice = completion.choices.add(finish_reason=pb.FINISH_REASON_STOP)
        choice.parts.add(kind=pb.PART_KIND_TEXT, text=said)
        completion.usage.input_tokens = whole["usage"]["prompt_tokens"]
        completion.usage.output_tokens = whole["usage"]["completion_tokens"]
        return out

    async def CreateChatCompletionStream(
        self, request: pb.CreateChatCompletionStreamRequest, context: Any
    ) -> AsyncIterator[pb.CreateChatCompletionStreamResponse]:
        chat = request.chat
        async for read in self._upstream.reads(chat.messages[0].parts[0].text.text, chat.user):
            out = pb.CreateChatCompletionStreamResponse()
            add = out.events.add
            if read.first:
                add().started.id = "1"
                add().opened.kind = pb.PART_KIND_TEXT
            for word in read.words:
                add().delta.text = word
            if read.last:
                add().closed.SetInParent()
                add().finished.reason = pb.FINISH_REASON_STOP
            yield out


async def serve(port: int, upstream_port: int) -> None:
    server = grpc.aio.server()
    async with Upstream(upstream_port) as upstream:
        add_ChatServiceServicer_to_server(Chat(upstream), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))

"""A unary call to grpc.aio that asks nobody: what the machine takes for a call, whatever a door does.

grpc_still.py PORT UPSTREAM_PORT
"""

import sys
from typing import Any

import grpc
import uvloop

from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceServicer, add_ChatServiceServicer_to_server


class Chat(ChatServiceServicer):
    """Gives the same answer to all."""

    async def CreateChatCompletion(
        self, request: pb.CreateChatCompletionRequest, context: Any
    ) -> pb.CreateChatCompletionResponse:
        return pb.CreateChatCompletionResponse(completion=pb.ChatCompletion(id="1", model=request.chat.model))


async def serve(port: int) -> None:
    server = grpc.aio.server()
    add_ChatServiceServicer_to_server(Chat(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))

"""The gRPC server: our services, reflection and health, on grpc.aio."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as reflecting

from llmg.doors.grpc.services import Chat, Embeddings, Inference, ModelList
from llmg.gatewayapi.v1 import chat_pb2, embeddings_pb2, models_pb2
from llmg.gatewayapi.v1.chat_pb2_grpc import add_ChatServiceServicer_to_server
from llmg.gatewayapi.v1.embeddings_pb2_grpc import add_EmbeddingServiceServicer_to_server
from llmg.gatewayapi.v1.models_pb2_grpc import add_ModelServiceServicer_to_server
from llmg.services.models import Models

SERVICES: Final = tuple(
    service.full_name
    for file in (chat_pb2, embeddings_pb2, models_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
# Seconds for the last words of calls that are over; and calls that never end by themselves (who watches our health,
# or keeps reflection open) are not waited for any longer.
LINGER: Final = 1.0


class GrpcServer:
    """All of it, from `start` to `drain`. Made on the event loop that serves it."""

    def __init__(
        self, inference: Inference, models: Models, *, max_message: int, reflection: bool, reuse_port: bool = False
    ) -> None:
        """`max_message` in bytes, for a request. `reuse_port`: other processes listen at the same port."""
        self._inference = inference
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_message),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(reuse_port)),
            )
        )
        self._health = health.aio.HealthServicer()
        add_ChatServiceServicer_to_server(Chat(inference), self._server)
        add_EmbeddingServiceServicer_to_server(Embeddings(inference), self._server)
        add_ModelServiceServicer_to_server(ModelList(inference, models), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflecting.SERVICE_NAME)
            reflecting.enable_server_reflection(names, self._server)

    async def start(self, address: str) -> int:
        """Serves at `host:port`; gives the port. Raises RuntimeError when it can't listen there."""
        port = self._server.add_insecure_port(address)
        await self._server.start()
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def drain(self, grace: float) -> int:
        """Takes no more calls, and lets those in flight finish for `grace` seconds. How many did not."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(grace + LINGER))
        cut_off = await self._inference.finish(grace)
        await self._server.stop(LINGER)
        await stopping
        return cut_off

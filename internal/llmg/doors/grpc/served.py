"""All services of ours: what they are called, and who answers for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import grpc

from llmg.doors.grpc.admin import Administration
from llmg.doors.grpc.services import Call, Chat, Embeddings, Inference, ModelList, Routing, decoder
from llmg.gatewayapi.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    embeddings_pb2,
    embeddings_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from llmg.services.admin import Admin
from llmg.services.models import Models

# Each file of ours has one service.
DESCRIPTORS: Final = tuple(
    service
    for file in (chat_pb2, embeddings_pb2, models_pb2, routing_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
# Of each, how a server learns of who answers.
_ADD: Final[tuple[Callable[..., None], ...]] = (
    chat_pb2_grpc.add_ChatServiceServicer_to_server,
    embeddings_pb2_grpc.add_EmbeddingServiceServicer_to_server,
    models_pb2_grpc.add_ModelServiceServicer_to_server,
    routing_pb2_grpc.add_RoutingServiceServicer_to_server,
    admin_pb2_grpc.add_AdminServiceServicer_to_server,
)


def _servicers(inference: Inference, models: Models, admin: Admin | None) -> tuple[Any, ...]:
    return (
        Chat(inference),
        Embeddings(inference),
        ModelList(inference, models),
        Routing(inference),
        Administration(inference, admin),
    )


class Server(Protocol):
    """What services are added to: grpc.aio's server, or who changes them on their way there."""

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler], /) -> None:
        """See grpc.aio.Server."""
        ...

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any], /) -> None:
        """See grpc.aio.Server."""
        ...


def add_all(server: Server, inference: Inference, models: Models, admin: Admin | None) -> None:
    """All of them, to a server. `admin` None: the catalog is not administered here."""
    for add, servicer in zip(_ADD, _servicers(inference, models, admin), strict=True):
        add(servicer, server, decoder)


def handlers(
    inference: Inference, models: Models, admin: Admin | None = None
) -> dict[str, Callable[[Any, Call], Awaitable[Any]]]:
    """The methods of all services by their names on a channel (`/package.Service/Method`), to be called in process."""
    return {
        f"/{service.full_name}/{method.name}": getattr(servicer, method.name)
        for service, servicer in zip(DESCRIPTORS, _servicers(inference, models, admin), strict=True)
        for method in service.methods
    }

"""The document of the gateway's own services."""

from __future__ import annotations

from typing import Any

from llmg.gatewayapi.v1 import admin_pb2, chat_pb2, embeddings_pb2, models_pb2, routing_pb2
from llmg.wire.openapi.comments import comments
from llmg.wire.openapi.document import openapi
from llmg.wire.transcoding.bindings import bindings

_DESCRIPTION = """\
The gateway's gRPC services, by HTTP and JSON, as the JSON mapping of protobuf has them: a field that is at its default
is left out of an answer, and 64-bit integers are strings.

Where the gateway has keys, a request shows one: `Authorization: Bearer KEY`, or `x-api-key: KEY`.
"""


def own() -> dict[str, Any]:
    """All of them, with what their protos say."""
    services = [
        service
        for file in (chat_pb2, embeddings_pb2, models_pb2, routing_pb2, admin_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    ]
    said = comments("llmg.gatewayapi.v1")
    return openapi(bindings(services), title="llmg", version="v1", description=_DESCRIPTION, comments=said)

"""Every method of the gateway's gRPC services, with an example of a call, for all who call them by reflection.

The messages are those of the provider `echo` behind the model `m`, in protobuf's JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf import descriptor_pool
from msgspec import Struct

from llmg.doors.grpc.server import SERVICES

Messages = Sequence[Mapping[str, Any]]

METHODS: Final = tuple(
    f"{service}/{method.name}"
    for service in SERVICES
    for method in descriptor_pool.Default().FindServiceByName(service).methods
)


class Example(Struct, frozen=True):
    """A request, and what of the answer must be what."""

    request: Mapping[str, Any]
    seen: Callable[[Messages], Any]
    expected: Any


def chat(text: str = "Hello there, 世界", model: str = "m") -> Mapping[str, Any]:
    """A request to chat."""
    return {"chat": {"model": model, "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}]}}


def _completed(messages: Messages) -> Any:
    [message] = messages
    [choice] = message["completion"]["choices"]
    return choice["parts"][0]["text"], choice["finishReason"]


def streamed(messages: Messages) -> str:
    """The text of a stream."""
    events = [event for message in messages for event in message["events"]]
    return "".join(event["delta"]["text"] for event in events if "delta" in event)


def _lengths(messages: Messages) -> Any:
    return [len(one["values"]) for one in messages[0]["embeddings"]]


def _asked_first(messages: Messages) -> Any:
    first = messages[0]["stages"][0]["targets"][0]
    return first["provider"], first["model"], first["place"]


EXAMPLES: Final[Mapping[str, Example]] = {
    "llmg.gatewayapi.v1.ChatService/CreateChatCompletion": Example(
        chat(), _completed, ("Hello there, 世界", "FINISH_REASON_STOP")
    ),
    "llmg.gatewayapi.v1.ChatService/CreateChatCompletionStream": Example(chat(), streamed, "Hello there, 世界"),
    "llmg.gatewayapi.v1.EmbeddingService/CreateEmbeddings": Example(
        {"model": "m", "inputs": [{"text": "Hello"}, {"tokens": {"ids": [1, 2]}}], "dimensions": 4}, _lengths, [4, 4]
    ),
    "llmg.gatewayapi.v1.ModelService/ListModels": Example(
        {"pageSize": 10}, lambda messages: [model["id"] for model in messages[0]["models"]], ["m"]
    ),
    "llmg.gatewayapi.v1.ModelService/GetModel": Example(
        {"id": "m"}, lambda messages: messages[0]["model"]["operations"], ["chat", "embed"]
    ),
    "llmg.gatewayapi.v1.RoutingService/ExplainRoute": Example(chat(), _asked_first, ("echo", "m", 1)),
}

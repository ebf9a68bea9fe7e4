"""Every method of the gateway's gRPC services, with an example of a call, for all who call them by reflection.

The messages are those of the provider `echo` behind the model `m`, in protobuf's JSON. Who calls is an administrator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
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
    """A request, and what of the answer must be what. `before`: calls that have to be made first."""

    request: Mapping[str, Any]
    seen: Callable[[Messages], Any]
    expected: Any
    before: Sequence[tuple[str, Mapping[str, Any]]] = ()


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


_ADMIN: Final = "llmg.gatewayapi.v1.AdminService/"
_LABELS: Final = {"labels": {"plan": "gold"}}


def _created(*names: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(f"{_ADMIN}CreateLevel", {"level": {"name": name}}) for name in names]


def _of_the_catalog(tenant: str) -> Mapping[str, Example]:
    """Each method of the admin API, in a tenant of that name."""
    own = f"tenants/{tenant}"
    team, group = f"{own}/teams/t", f"{own}/teams/t/groups/g"
    web = f"{group}/endpoints/web"
    levels = _created(own, team, group, web)
    issued = [*levels, (f"{_ADMIN}IssueKey", {"parent": web, "keyId": "k1"})]
    key = {"name": f"{web}/keys/k1"}
    examples = {
        "ListLevels": Example({"parent": own}, lambda m: [level["name"] for level in m[0]["levels"]], [team], levels),
        "GetLevel": Example({"name": web}, lambda m: m[0]["level"]["name"], web, levels),
        "CreateLevel": Example({"level": {"name": own, **_LABELS}}, lambda m: m[0]["level"]["name"], own),
        "UpdateLevel": Example(
            {"level": {"name": own, **_LABELS}}, lambda m: m[0]["level"]["labels"], _LABELS["labels"], levels
        ),
        "DeleteLevel": Example({"name": own, "force": True}, list, [{}], levels),
        "ListKeys": Example({"parent": web}, lambda m: [key["name"] for key in m[0]["keys"]], [key["name"]], issued),
        "IssueKey": Example({"parent": web, "keyId": "k1"}, lambda m: m[0]["key"]["name"], key["name"], levels),
        "RotateKey": Example({**key, "keyId": "k2"}, lambda m: m[0]["key"]["name"], f"{web}/keys/k2", issued),
        "RevokeKey": Example(key, lambda m: m[0]["key"]["revoked"], True, issued),
        "DeleteKey": Example(key, list, [{}], issued),
        "ListAuditEntries": Example({"pageSize": 1}, lambda m: len(m[0]["entries"]), 1, levels),
    }
    return {_ADMIN + name: example for name, example in examples.items()}


_tenants: Final = count()


def example(method: str) -> Example:
    """An example of the method, which can be called once: what it makes has a name of its own."""
    return _of_the_catalog(f"t{next(_tenants)}")[method] if method.startswith(_ADMIN) else EXAMPLES[method]


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
    **_of_the_catalog("example"),
}

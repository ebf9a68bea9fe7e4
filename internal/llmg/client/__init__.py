"""llmg's Python client: chats, streams and embeddings through a gateway, by gRPC. It needs nothing of the gateway."""

from llmg.client import types
from llmg.client.answers import Choice, Completion, Embeddings
from llmg.client.client import ChatStream, Client
from llmg.client.errors import (
    AuthenticationError,
    CallCancelledError,
    DeadlineError,
    InvalidRequestError,
    LlmgError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    UnavailableError,
    UnimplementedError,
)

__all__ = [
    "AuthenticationError",
    "CallCancelledError",
    "ChatStream",
    "Choice",
    "Client",
    "Completion",
    "DeadlineError",
    "Embeddings",
    "InvalidRequestError",
    "LlmgError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServerError",
    "UnavailableError",
    "UnimplementedError",
    "types",
]

"""The protocol described as AsyncAPI 3.0: made of the frames and the table of closes as they stand in the code."""

from __future__ import annotations

import inspect
from typing import Any, Final, get_args

import msgspec
from msgspec import Struct

from llmg.wire import websocket as wire

_SCHEMA: Final = "#/components/schemas/{name}"
_DESCRIPTION: Final = (
    "Many requests over one socket. A client greets (`init`), starts requests under ids of its own, may cancel them, "
    "may ping. The server tells of each request its events, a frame for each read of the upstream's stream, and then, "
    "once, that it is `done` or why not (`error`). In words: websocket.md."
)
_REQUEST: Final = (
    "The body that OpenAI's API takes for the operation: of `POST /v1/chat/completions` or `POST /v1/embeddings`. "
    'A chat is streamed unless it says `"stream": false`.'
)

# A frame of each type, as it may be seen on the wire.
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "init": {"type": "init", "key": "sk-..."},
    "start": {
        "type": "start",
        "id": "1",
        "request": {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]},
    },
    "explain": {
        "type": "explain",
        "id": "1",
        "request": {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]},
    },
    "cancel": {"type": "cancel", "id": "1"},
    "ping": {"type": "ping"},
    "ready": {"type": "ready", "max_message": 33_554_432, "max_requests": 100},
    "events": {
        "type": "events",
        "id": "1",
        "events": [
            {"type": "started", "id": "5f0c", "created": 1_760_000_000, "model": "smollm2"},
            {"type": "opened", "choice": 0, "part": 0, "kind": "text"},
            {"type": "delta", "choice": 0, "part": 0, "text": "Hello"},
            {"type": "delta", "choice": 0, "part": 0, "text": " there"},
            {"type": "closed", "choice": 0, "part": 0},
            {"type": "finished", "choice": 0, "reason": "stop"},
        ],
    },
    "error": {
        "type": "error",
        "id": "1",
        "error": {
            "code": "upstream_rate_limited",
            "message": "the upstream is limiting its rate",
            "retry_after": 20.0,
            "request_id": "req_5f0c",
        },
        "route": "local/smollm2",
        "policy": "weighted",
        "attempts": 1,
        "queue_ms": 0.0,
        "upstream_ms": 21.5,
    },
    "done": {
        "type": "done",
        "id": "1",
        "request_id": "req_5f0c",
        "route": "local/smollm2",
        "policy": "weighted",
        "attempts": 1,
        "queue_ms": 0.0,
        "upstream_ms": 340.5,
        "rate_limits": {"requests": {"limit": 600, "remaining": 599, "reset": 0.1}},
    },
    "explanation": {
        "type": "explanation",
        "id": "1",
        "request_id": "req_5f0c",
        "model": "smollm2",
        "stages": [
            {
                "model": "smollm2",
                "policy": "weighted",
                "targets": [
                    {
                        "provider": "local",
                        "model": "smollm2",
                        "verdict": "candidate",
                        "place": 1,
                        "score": 1.0,
                        "reason": "share 1.000, credit 1: the highest is next",
                        "weight": 1.0,
                    }
                ],
            }
        ],
    },
    "pong": {"type": "pong"},
}


def document() -> dict[str, Any]:
    """All of it, as plain values."""
    client, server = _frames(wire.ClientFrame), _frames(wire.ServerFrame)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "llmg over WebSocket",
            "version": wire.SUBPROTOCOL,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "localhost:8080", "protocol": "ws"}},
        "channels": {
            "socket": {
                "address": "/v1/ws",
                "description": f"JSON in text frames; the subprotocol is `{wire.SUBPROTOCOL}`.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in (*client, *server)},
                "bindings": {"ws": {"method": "GET", "headers": _HEADERS}},
            }
        },
        "operations": {
            "hear": _operation("receive", "What clients send.", client),
            "tell": _operation("send", "What the server sends.", server),
        },
        "components": {
            "messages": {name: _message(name, kind) for name, kind in {**client, **server}.items()},
            "schemas": _schemas([*client.values(), *server.values()]),
        },
        "x-close-codes": [{"code": int(code), "meaning": wire.CLOSES[code]} for code in wire.Close],
    }


_HEADERS: Final = {
    "type": "object",
    "properties": {
        "Authorization": {"type": "string", "description": "`Bearer KEY`; or show the key in `init`."},
        "X-API-Key": {"type": "string", "description": "The same, by another name."},
        "Sec-WebSocket-Protocol": {"type": "string", "const": wire.SUBPROTOCOL},
    },
}


def _frames(union: Any) -> dict[str, type[Struct]]:
    return {str(kind.__struct_config__.tag): kind for kind in get_args(union)}


def _operation(action: str, summary: str, frames: dict[str, type[Struct]]) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": "#/channels/socket"},
        "messages": [{"$ref": f"#/channels/socket/messages/{name}"} for name in frames],
    }


def _message(name: str, kind: type[Struct]) -> dict[str, Any]:
    return {
        "summary": inspect.getdoc(kind),
        "payload": {"$ref": _SCHEMA.format(name=kind.__name__)},
        "examples": [{"payload": EXAMPLES[name]}],
    }


def _schemas(kinds: list[type[Struct]]) -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_SCHEMA)
    for schema in schemas.values():
        del schema["title"]  # the name once more
        schema["description"] = inspect.cleandoc(schema["description"])
    for name in ("Start", "Explain"):
        schemas[name]["properties"]["request"] = {"type": "object", "description": _REQUEST}
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schemas))  # with lists for tuples
    return plain

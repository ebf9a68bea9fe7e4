"""Errors in OpenAI's shape, both ways: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

import msgspec

from llmg.core.errors import Failure, Kind

_BAD, _AUTH, _DENIED, _MISSING, _LIMIT, _QUOTA, _SERVER = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "insufficient_quota",
    "server_error",
)

# The one table from our kinds to this dialect: (HTTP status, error type).
STATUS: dict[Kind, tuple[int, str]] = {
    Kind.INVALID_REQUEST: (400, _BAD),
    Kind.UNAUTHENTICATED: (401, _AUTH),
    Kind.PERMISSION_DENIED: (403, _DENIED),
    Kind.NOT_FOUND: (404, _BAD),
    Kind.MODEL_NOT_FOUND: (404, _BAD),
    Kind.CONFLICT: (409, _BAD),
    Kind.METHOD_NOT_ALLOWED: (405, _BAD),
    Kind.REQUEST_TOO_LARGE: (413, _BAD),
    Kind.UNSUPPORTED_MEDIA_TYPE: (415, _BAD),
    Kind.CONTEXT_LENGTH_EXCEEDED: (400, _BAD),
    Kind.CONTENT_FILTERED: (400, _BAD),
    Kind.RATE_LIMITED: (429, _LIMIT),
    Kind.QUOTA_EXCEEDED: (429, _QUOTA),
    Kind.CANCELLED: (499, _BAD),
    Kind.CLIENT_TIMEOUT: (408, _BAD),
    Kind.NOT_IMPLEMENTED: (501, _SERVER),
    Kind.DEADLINE_EXCEEDED: (504, _SERVER),
    Kind.OVERLOADED: (503, _SERVER),
    Kind.SHUTTING_DOWN: (503, _SERVER),
    Kind.UPSTREAM_UNAVAILABLE: (503, _SERVER),
    Kind.UPSTREAM_TIMEOUT: (504, _SERVER),
    Kind.UPSTREAM_RATE_LIMITED: (429, _LIMIT),
    Kind.UPSTREAM_AUTH: (502, _SERVER),
    Kind.UPSTREAM_MODEL_NOT_FOUND: (404, _BAD),
    Kind.UPSTREAM_TRUNCATED: (502, _SERVER),
    Kind.UPSTREAM_PROTOCOL: (502, _SERVER),
    Kind.UPSTREAM_ERROR: (502, _SERVER),
    Kind.BACKEND_CRASHED: (502, _SERVER),
    Kind.INTERNAL: (500, _SERVER),
}


def encode_error(failure: Failure) -> bytes:
    """The error's body."""
    error = {
        "message": failure.message,
        "type": STATUS[failure.kind][1],
        "param": failure.param,
        "code": failure.code or failure.kind.value,
    }
    return msgspec.json.encode({"error": error})


# The other way: an upstream's status. What the caller got wrong passes on with the upstream's words; a wrong key
# is ours, and its words (which may hold the key) stay in the log.
_KINDS: dict[int, Kind] = {
    400: Kind.INVALID_REQUEST,
    401: Kind.UPSTREAM_AUTH,
    402: Kind.UPSTREAM_AUTH,
    403: Kind.UPSTREAM_AUTH,
    404: Kind.UPSTREAM_MODEL_NOT_FOUND,
    405: Kind.UPSTREAM_PROTOCOL,
    408: Kind.UPSTREAM_TIMEOUT,
    409: Kind.UPSTREAM_ERROR,
    413: Kind.REQUEST_TOO_LARGE,
    415: Kind.UPSTREAM_PROTOCOL,
    422: Kind.INVALID_REQUEST,
    429: Kind.UPSTREAM_RATE_LIMITED,
    501: Kind.NOT_IMPLEMENTED,
    503: Kind.UPSTREAM_UNAVAILABLE,
    504: Kind.UPSTREAM_TIMEOUT,
    529: Kind.UPSTREAM_UNAVAILABLE,
}
_CODES: dict[str, Kind] = {
    "context_length_exceeded": Kind.CONTEXT_LENGTH_EXCEEDED,
    "exceed_context_size_error": Kind.CONTEXT_LENGTH_EXCEEDED,
    "content_filter": Kind.CONTENT_FILTERED,
    "content_policy_violation": Kind.CONTENT_FILTERED,
    "insufficient_quota": Kind.UPSTREAM_RATE_LIMITED,
    "rate_limit_exceeded": Kind.UPSTREAM_RATE_LIMITED,
    "rate_limit_error": Kind.UPSTREAM_RATE_LIMITED,
    "invalid_api_key": Kind.UPSTREAM_AUTH,
    "authentication_error": Kind.UPSTREAM_AUTH,
    "invalid_request_error": Kind.INVALID_REQUEST,
    "model_not_found": Kind.UPSTREAM_MODEL_NOT_FOUND,
    "overloaded_error": Kind.UPSTREAM_UNAVAILABLE,
}
_WORDS: dict[Kind, str] = {
    Kind.UPSTREAM_AUTH: "the upstream refused the gateway's credentials",
    Kind.UPSTREAM_RATE_LIMITED: "the upstream is limiting its rate",
    Kind.UPSTREAM_UNAVAILABLE: "the upstream is not available",
    Kind.UPSTREAM_TIMEOUT: "the upstream timed out",
}
_PASSES_ON = frozenset(
    {
        Kind.INVALID_REQUEST,
        Kind.UPSTREAM_MODEL_NOT_FOUND,
        Kind.REQUEST_TOO_LARGE,
        Kind.CONTEXT_LENGTH_EXCEEDED,
        Kind.CONTENT_FILTERED,
        Kind.NOT_IMPLEMENTED,
    }
)


def decode_error(status: int, body: bytes, retry_after: float | None = None) -> Failure:
    """An upstream's refusal. `status` is its HTTP status, or 200 for an error inside a stream."""
    error = _error(body)
    message, code = str(error.get("message") or ""), error.get("code")
    inner = code if status == 200 and type(code) is int and 400 <= code < 600 else status
    kind = _kind(inner, error)
    said = f"HTTP {inner}: {body[:2000].decode(errors='replace')}"
    if kind in _PASSES_ON and message:
        words = message[:2000]
    else:
        words = _WORDS.get(kind, f"the upstream answered with an error (HTTP {inner})" if inner != 200 else _IN_STREAM)
    param = error.get("param")
    return Failure(
        kind,
        words,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) and kind in _PASSES_ON else None,
        retry_after=retry_after,
        detail=said,
    )


_IN_STREAM = "the upstream reported an error in its answer"


def _error(body: bytes) -> dict[str, Any]:
    try:
        whole = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    inner = whole.get("error", whole)
    return inner if isinstance(inner, dict) else {"message": inner}


def _kind(status: int, error: dict[str, Any]) -> Kind:
    for word in (error.get("code"), error.get("type")):
        if isinstance(word, str) and word in _CODES and (kind := _CODES[word]):
            if word == "invalid_request_error" and status in (401, 403, 404, 413, 429):
                continue  # it says less than the status does
            return kind
    return _KINDS.get(status, Kind.UPSTREAM_ERROR)

"""Everything that can go wrong, as one family, whoever is asked and by whichever protocol.

A `Failure` is raised after the events that came before it, never yielded. Each door renders kinds by one table
of its own, and each foreign error is translated once, where it enters. `message` and `param` are safe to show to
the client; `detail` is for logs alone.
"""

from __future__ import annotations

import traceback
from enum import StrEnum
from typing import Literal

Blame = Literal["caller", "upstream", "us"]


class Kind(StrEnum):
    """What went wrong. The value is the machine-readable code that clients see."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    CONFLICT = "conflict"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    CONTENT_FILTERED = "content_filtered"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    CANCELLED = "cancelled"
    CLIENT_TIMEOUT = "client_timeout"
    NOT_IMPLEMENTED = "not_implemented"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting_down"
    UPSTREAM_UNAVAILABLE = "upstream_unavailable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_AUTH = "upstream_auth"
    UPSTREAM_MODEL_NOT_FOUND = "upstream_model_not_found"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    UPSTREAM_ERROR = "upstream_error"
    BACKEND_CRASHED = "backend_crashed"
    INTERNAL = "internal"


_CALLER: Blame = "caller"
_UPSTREAM: Blame = "upstream"
_US: Blame = "us"

BLAME: dict[Kind, Blame] = {
    Kind.INVALID_REQUEST: _CALLER,
    Kind.UNAUTHENTICATED: _CALLER,
    Kind.PERMISSION_DENIED: _CALLER,
    Kind.NOT_FOUND: _CALLER,
    Kind.MODEL_NOT_FOUND: _CALLER,
    Kind.CONFLICT: _CALLER,
    Kind.METHOD_NOT_ALLOWED: _CALLER,
    Kind.REQUEST_TOO_LARGE: _CALLER,
    Kind.UNSUPPORTED_MEDIA_TYPE: _CALLER,
    Kind.CONTEXT_LENGTH_EXCEEDED: _CALLER,
    Kind.CONTENT_FILTERED: _CALLER,
    Kind.RATE_LIMITED: _CALLER,
    Kind.QUOTA_EXCEEDED: _CALLER,
    Kind.CANCELLED: _CALLER,
    Kind.CLIENT_TIMEOUT: _CALLER,
    Kind.NOT_IMPLEMENTED: _US,
    Kind.DEADLINE_EXCEEDED: _CALLER,
    Kind.OVERLOADED: _US,
    Kind.SHUTTING_DOWN: _US,
    Kind.UPSTREAM_UNAVAILABLE: _UPSTREAM,
    Kind.UPSTREAM_TIMEOUT: _UPSTREAM,
    Kind.UPSTREAM_RATE_LIMITED: _UPSTREAM,
    Kind.UPSTREAM_AUTH: _US,
    Kind.UPSTREAM_MODEL_NOT_FOUND: _UPSTREAM,
    Kind.UPSTREAM_TRUNCATED: _UPSTREAM,
    Kind.UPSTREAM_PROTOCOL: _UPSTREAM,
    Kind.UPSTREAM_ERROR: _UPSTREAM,
    Kind.BACKEND_CRASHED: _UPSTREAM,
    Kind.INTERNAL: _US,
}

# Another target may well answer what this one could not: the router moves on for these, before commit.
# What the caller got wrong is wrong everywhere.
FAILS_OVER: frozenset[Kind] = frozenset(
    {
        Kind.OVERLOADED,
        Kind.NOT_IMPLEMENTED,
        Kind.UPSTREAM_UNAVAILABLE,
        Kind.UPSTREAM_TIMEOUT,
        Kind.UPSTREAM_RATE_LIMITED,
        Kind.UPSTREAM_AUTH,
        Kind.UPSTREAM_MODEL_NOT_FOUND,
        Kind.UPSTREAM_TRUNCATED,
        Kind.UPSTREAM_PROTOCOL,
        Kind.UPSTREAM_ERROR,
        Kind.BACKEND_CRASHED,
    }
)


class Failure(Exception):
    """A request that could not be answered, or not to its end.

    `message`: one sentence for the client. `param`: the request's field, as a path (`messages[0].role`).
    `code`: the upstream's own error code, when it said one. `retry_after`: seconds. `detail`: for logs, never shown.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        detail: str | None = None,
        blame: Blame | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.detail = detail
        self.blame: Blame = blame or BLAME[kind]
        self.logged = False  # somebody who knew more of it has written it down

    def __repr__(self) -> str:
        return f"Failure({self.kind.value}: {self.message})"


def invalid(message: str, param: str | None = None) -> Failure:
    """The caller's mistake, naming the field."""
    return Failure(Kind.INVALID_REQUEST, message, param=param)


def conflict(message: str, param: str | None = None) -> Failure:
    """Something is not as the request has it, naming the field that says so: another request may have changed it."""
    return Failure(Kind.CONFLICT, message, param=param)


def not_implemented(what: str) -> Failure:
    """What is not there says so."""
    return Failure(Kind.NOT_IMPLEMENTED, f"{what} is not implemented")


def internal(error: BaseException) -> Failure:
    """Our own mistake: the client learns no more than that, the log all."""
    return Failure(
        Kind.INTERNAL, "the gateway failed to answer this request", detail="".join(traceback.format_exception(error))
    )

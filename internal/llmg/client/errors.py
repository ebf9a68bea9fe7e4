"""What can go wrong with a call.

    LlmgError
    ├── InvalidRequestError     the request is at fault; `param` names the field where one is
    ├── AuthenticationError     no API key, or a wrong one
    ├── PermissionDeniedError   not with this API key
    ├── NotFoundError           no such model, or whatever was named
    ├── RateLimitError          too much at once, or in all; `retry_after` may say how long to wait
    ├── DeadlineError           the call's time was up
    ├── CallCancelledError      somebody else than the caller ended the call
    ├── UnimplementedError      the gateway, or the model, can't do that
    ├── UnavailableError        nobody answers just now: the gateway, or the models behind it
    └── ServerError             the gateway's own mistake, or an upstream's

Errors come from `google.rpc` details where the gateway gave some, else from the bare status.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, TypeVar

import betterproto2
from grpclib.const import Status

from llmg.client._pb.google import rpc
from llmg.client.way import Way, way

UNAVAILABLE: Final = "unavailable"
DOMAIN: Final = "llmg"
GARBLED: Final = (ValueError, EOFError, IndexError, TypeError, KeyError, struct.error)
"""What betterproto2 raises for bytes that are no such message."""

NOWHERE: Final = Way()

M = TypeVar("M", bound=betterproto2.Message)


class LlmgError(Exception):
    """A call that was not answered, or not to its end.

    `kind`: the gateway's word for it (`rate_limited`, `model_not_found` ...), or `unavailable` when no gateway answers.
    `status`: gRPC's. `param`: the request's field, as a path (`chat.messages[0].role`). `code`: the upstream's own
    error code. `retry_after`: seconds. `way`: the way that it went, with `route`, the target that was asked,
    PROVIDER/MODEL, and `request_id`. What is not known is None.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        status: Status,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        way: Way = NOWHERE,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.way = way
        self.request_id = way.request_id
        self.route = way.route

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind}: {self.message})"


class InvalidRequestError(LlmgError):
    """The request is at fault; it will fail again as it is."""


class AuthenticationError(LlmgError):
    """No API key, or a wrong one."""


class PermissionDeniedError(LlmgError):
    """Not with this API key."""


class NotFoundError(LlmgError):
    """There is no such model, or whatever was named."""


class RateLimitError(LlmgError):
    """Too much at once, or in all."""


class DeadlineError(LlmgError):
    """The call's time was up."""


class CallCancelledError(LlmgError):
    """Somebody else than the caller ended the call; what the caller cancels is an `asyncio.CancelledError`."""


class UnimplementedError(LlmgError):
    """The gateway, or the model, can't do that."""


class UnavailableError(LlmgError):
    """Nobody answers just now; another try may well succeed."""


class ServerError(LlmgError):
    """The gateway's own mistake, or an upstream's."""


# Each status but OK: the error, and its kind where the gateway gave no details (a proxy answered, or gRPC itself).
_STATUSES: Final[Mapping[Status, tuple[type[LlmgError], str]]] = {
    Status.CANCELLED: (CallCancelledError, "cancelled"),
    Status.UNKNOWN: (ServerError, "internal"),
    Status.INVALID_ARGUMENT: (InvalidRequestError, "invalid_request"),
    Status.DEADLINE_EXCEEDED: (DeadlineError, "deadline_exceeded"),
    Status.NOT_FOUND: (NotFoundError, "not_found"),
    Status.ALREADY_EXISTS: (InvalidRequestError, "conflict"),
    Status.PERMISSION_DENIED: (PermissionDeniedError, "permission_denied"),
    Status.RESOURCE_EXHAUSTED: (RateLimitError, "rate_limited"),
    Status.FAILED_PRECONDITION: (InvalidRequestError, "invalid_request"),
    Status.ABORTED: (InvalidRequestError, "conflict"),
    Status.OUT_OF_RANGE: (InvalidRequestError, "invalid_request"),
    Status.UNIMPLEMENTED: (UnimplementedError, "not_implemented"),
    Status.INTERNAL: (ServerError, "internal"),
    Status.UNAVAILABLE: (UnavailableError, UNAVAILABLE),
    Status.DATA_LOSS: (ServerError, "internal"),
    Status.UNAUTHENTICATED: (AuthenticationError, "unauthenticated"),
}
# gRPC has one status for what was too much of the caller and what is too much now.
_TOO_LARGE: Final = "request_too_large"
_GRPC_TOO_LARGE: Final = "larger than max"


def unavailable(message: str) -> UnavailableError:
    """No gateway answers, or no longer."""
    return UnavailableError(message, kind=UNAVAILABLE, status=Status.UNAVAILABLE)


def invalid(message: str, param: str | None = None) -> InvalidRequestError:
    """What need not be sent to be refused."""
    return InvalidRequestError(message, kind="invalid_request", status=Status.INVALID_ARGUMENT, param=param)


def from_status(status: Status, message: str | None, details: bytes | None, trailers: Mapping[str, str]) -> LlmgError:
    """The error that a call ended with. `details`: a serialized google.rpc.Status."""
    made, kind = _STATUSES[status]
    if status is Status.RESOURCE_EXHAUSTED and _GRPC_TOO_LARGE in (message or ""):
        kind = _TOO_LARGE
    found = _Details(details)
    if found.info is not None:
        kind = found.info.reason.lower()
    return (InvalidRequestError if kind == _TOO_LARGE else made)(
        message or kind.replace("_", " "),
        kind=kind,
        status=status,
        param=found.param,
        code=found.info.metadata.get("code") if found.info else None,
        retry_after=found.retry_after,
        way=way(trailers),
    )


class _Details:
    """What can be read of a google.rpc.Status."""

    def __init__(self, raw: bytes | None) -> None:
        self.info: rpc.ErrorInfo | None = None
        self.param: str | None = None
        self.retry_after: float | None = None
        status = parse(rpc.Status, raw or b"")
        for detail in status.details if status else ():
            self._read(detail.type_url.rpartition("/")[2], detail.value)

    def _read(self, name: str, value: bytes) -> None:
        if name == "google.rpc.ErrorInfo":
            info = parse(rpc.ErrorInfo, value)
            if info and info.domain == DOMAIN:
                self.info = info
        elif name == "google.rpc.BadRequest":
            bad = parse(rpc.BadRequest, value)
            if bad and bad.field_violations:
                self.param = bad.field_violations[0].field
        elif name == "google.rpc.RetryInfo":
            retry = parse(rpc.RetryInfo, value)
            if retry and retry.retry_delay is not None:
                self.retry_after = retry.retry_delay.total_seconds()


def parse(kind: type[M], raw: bytes) -> M | None:
    """A message of that kind; None where the bytes are none."""
    try:
        return kind.parse(raw)
    except GARBLED:
        return None

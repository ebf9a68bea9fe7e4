"""Failures as google.rpc statuses with details."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from llmg.core.errors import Failure, Kind

DOMAIN = "llmg"
# What a client accepts of metadata is 8 KiB by default, and the message is in it three times, in part percent-encoded.
_LONGEST_MESSAGE = 900  # bytes
_LONGEST_NAME = 200  # bytes
_LONGEST_WAIT = 10**9  # seconds
_Code = grpc.StatusCode

# The one table from our kinds to gRPC's codes.
CODES: dict[Kind, grpc.StatusCode] = {
    Kind.INVALID_REQUEST: _Code.INVALID_ARGUMENT,
    Kind.UNAUTHENTICATED: _Code.UNAUTHENTICATED,
    Kind.PERMISSION_DENIED: _Code.PERMISSION_DENIED,
    Kind.NOT_FOUND: _Code.NOT_FOUND,
    Kind.MODEL_NOT_FOUND: _Code.NOT_FOUND,
    Kind.CONFLICT: _Code.ABORTED,
    Kind.METHOD_NOT_ALLOWED: _Code.UNIMPLEMENTED,
    Kind.REQUEST_TOO_LARGE: _Code.RESOURCE_EXHAUSTED,
    Kind.UNSUPPORTED_MEDIA_TYPE: _Code.INVALID_ARGUMENT,
    Kind.CONTEXT_LENGTH_EXCEEDED: _Code.INVALID_ARGUMENT,
    Kind.CONTENT_FILTERED: _Code.FAILED_PRECONDITION,
    Kind.RATE_LIMITED: _Code.RESOURCE_EXHAUSTED,
    Kind.QUOTA_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
    Kind.CANCELLED: _Code.CANCELLED,
    Kind.CLIENT_TIMEOUT: _Code.DEADLINE_EXCEEDED,
    Kind.NOT_IMPLEMENTED: _Code.UNIMPLEMENTED,
    Kind.DEADLINE_EXCEEDED: _Code.DEADLINE_EXCEEDED,
    Kind.OVERLOADED: _Code.UNAVAILABLE,
    Kind.SHUTTING_DOWN: _Code.UNAVAILABLE,
    Kind.UPSTREAM_UNAVAILABLE: _Code.UNAVAILABLE,
    Kind.UPSTREAM_TIMEOUT: _Code.UNAVAILABLE,
    Kind.UPSTREAM_RATE_LIMITED: _Code.RESOURCE_EXHAUSTED,
    Kind.UPSTREAM_AUTH: _Code.UNAVAILABLE,
    Kind.UPSTREAM_MODEL_NOT_FOUND: _Code.NOT_FOUND,
    Kind.UPSTREAM_TRUNCATED: _Code.UNAVAILABLE,
    Kind.UPSTREAM_PROTOCOL: _Code.INTERNAL,
    Kind.UPSTREAM_ERROR: _Code.INTERNAL,
    Kind.BACKEND_CRASHED: _Code.UNAVAILABLE,
    Kind.INTERNAL: _Code.INTERNAL,
}

Metadata = tuple[tuple[str, str | bytes], ...]


def details(failure: Failure, field: str | None) -> bytes:
    """`grpc-status-details-bin`: a google.rpc.Status with ErrorInfo, and BadRequest and RetryInfo where they apply.

    `field` is the request's, where one is at fault.
    """
    message = clipped(failure.message, _LONGEST_MESSAGE)
    status = Status(code=CODES[failure.kind].value[0], message=message)
    info = ErrorInfo(reason=failure.kind.name, domain=DOMAIN)
    if failure.code:
        info.metadata["code"] = clipped(failure.code, _LONGEST_NAME)
    status.details.add().Pack(info)
    if field:
        violation = BadRequest.FieldViolation(field=clipped(field, _LONGEST_NAME), description=message)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if failure.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(min(failure.retry_after, _LONGEST_WAIT) * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    serialized: bytes = status.SerializeToString()
    return serialized


def clipped(text: str, most: int) -> str:
    """The text, cut to so many bytes of UTF-8."""
    return text.encode(errors="replace")[:most].decode(errors="ignore")


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], failure: Failure, field: str | None, trailing: Metadata
) -> NoReturn:
    """Ends the call with the failure's status, details and trailing metadata. Raises CancelledError if it has ended."""
    message = clipped(failure.message, _LONGEST_MESSAGE)
    told = (*trailing, ("grpc-status-details-bin", details(failure, field)))
    try:
        await context.abort(CODES[failure.kind], message, told)
    except grpc.aio.InternalError:  # whom it should be told has gone
        raise asyncio.CancelledError from None
    raise AssertionError("abort raises")

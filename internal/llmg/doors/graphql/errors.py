"""Failures in GraphQL's shape: `message`, and `extensions` with code, param, retryAfter, requestId, upstreamCode."""

from __future__ import annotations

import re
from typing import Any, Final

import structlog
from graphql import GraphQLError, GraphQLSyntaxError
from strawberry.exceptions import MissingQueryError, StrawberryInputCoercionError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.utils.str_converters import to_camel_case

from llmg.core import way as core_way
from llmg.core.context import Context
from llmg.core.errors import Failure, Kind, internal
from llmg.services.failures import log_failure
from llmg.wire.gateway import chat_path, embed_path

log = structlog.get_logger("llmg.graphql")

# The one table from our kinds to GraphQL: (extensions.code, the HTTP status of a request refused for it). A request
# that is executed is answered 200 whatever becomes of it, as GraphQL over HTTP has it.
CODES: Final[dict[Kind, tuple[str, int]]] = {
    Kind.INVALID_REQUEST: ("INVALID_REQUEST", 400),
    Kind.UNAUTHENTICATED: ("UNAUTHENTICATED", 401),
    Kind.PERMISSION_DENIED: ("PERMISSION_DENIED", 403),
    Kind.NOT_FOUND: ("NOT_FOUND", 404),
    Kind.MODEL_NOT_FOUND: ("MODEL_NOT_FOUND", 404),
    Kind.CONFLICT: ("CONFLICT", 409),
    Kind.METHOD_NOT_ALLOWED: ("METHOD_NOT_ALLOWED", 405),
    Kind.REQUEST_TOO_LARGE: ("REQUEST_TOO_LARGE", 413),
    Kind.UNSUPPORTED_MEDIA_TYPE: ("UNSUPPORTED_MEDIA_TYPE", 415),
    Kind.CONTEXT_LENGTH_EXCEEDED: ("CONTEXT_LENGTH_EXCEEDED", 400),
    Kind.CONTENT_FILTERED: ("CONTENT_FILTERED", 400),
    Kind.RATE_LIMITED: ("RATE_LIMITED", 429),
    Kind.QUOTA_EXCEEDED: ("QUOTA_EXCEEDED", 429),
    Kind.CANCELLED: ("CANCELLED", 499),
    Kind.CLIENT_TIMEOUT: ("CLIENT_TIMEOUT", 408),
    Kind.NOT_IMPLEMENTED: ("NOT_IMPLEMENTED", 501),
    Kind.DEADLINE_EXCEEDED: ("DEADLINE_EXCEEDED", 504),
    Kind.OVERLOADED: ("OVERLOADED", 503),
    Kind.SHUTTING_DOWN: ("SHUTTING_DOWN", 503),
    Kind.UPSTREAM_UNAVAILABLE: ("UPSTREAM_UNAVAILABLE", 503),
    Kind.UPSTREAM_TIMEOUT: ("UPSTREAM_TIMEOUT", 504),
    Kind.UPSTREAM_RATE_LIMITED: ("UPSTREAM_RATE_LIMITED", 429),
    Kind.UPSTREAM_AUTH: ("UPSTREAM_AUTH", 502),
    Kind.UPSTREAM_MODEL_NOT_FOUND: ("UPSTREAM_MODEL_NOT_FOUND", 404),
    Kind.UPSTREAM_TRUNCATED: ("UPSTREAM_TRUNCATED", 502),
    Kind.UPSTREAM_PROTOCOL: ("UPSTREAM_PROTOCOL", 502),
    Kind.UPSTREAM_ERROR: ("UPSTREAM_ERROR", 502),
    Kind.BACKEND_CRASHED: ("BACKEND_CRASHED", 502),
    Kind.INTERNAL: ("INTERNAL", 500),
}

# GraphQL's own two, by the names that its clients know.
PARSE_FAILED: Final = "GRAPHQL_PARSE_FAILED"
VALIDATION_FAILED: Final = "GRAPHQL_VALIDATION_FAILED"

_OF_VECTORS: Final = re.compile(r"(inputs|dimensions)\b")
_REQUESTS: Final = (GraphQLError, CannotGetOperationTypeError, InvalidOperationTypeError, MissingQueryError)
_VARIABLE: Final = re.compile(r"Variable '\$(\w+)' has invalid value(?: at ((?:\.\w+|\[\d+\])+))?: ")
_FIELD: Final = re.compile(r"Expected value of type '\w+' (?:to include required|not to include unknown) field '(\w+)'")


def extensions(failure: Failure, request_id: str) -> dict[str, Any]:
    """What a client's code goes by."""
    out: dict[str, Any] = {"code": CODES[failure.kind][0], "requestId": request_id}
    if failure.param:
        out["param"] = _place(failure.param)
    if failure.retry_after is not None:
        out["retryAfter"] = failure.retry_after
    if failure.code:
        out["upstreamCode"] = failure.code
    return out


def _place(param: str) -> str:
    """The path here of what a pipeline calls so, in OpenAI's words; what this door itself named stays as it is."""
    if param.startswith("input."):
        return param
    path = embed_path(param)
    found = path if _OF_VECTORS.match(path) else chat_path(path)
    return param if found is None else f"input.{to_camel_case(found)}"


def within(failure: Failure, field: str) -> None:
    """Has a failure name its field below this one of `input`, in place."""
    if failure.param:
        place = _place(failure.param)
        failure.param = f"input.{field}.{place.removeprefix('input.')}"


def way(context: Context) -> dict[str, Any]:
    """What an answer's `extensions` tell of the way of its request (see `core.way`); empty: it has gone none."""
    facts = {to_camel_case(name): value for name, value in core_way.facts(context).items()}
    return {"requestId": context.request_id, **facts} if facts else {}


def error(failure: Failure, request_id: str) -> GraphQLError:
    """A failure as GraphQL's error; what the client is not told goes to the log."""
    report(failure, request_id)
    return GraphQLError(failure.message, original_error=failure, extensions=extensions(failure, request_id))


def report(failure: Failure, request_id: str) -> None:
    """To the log, what the client is not told."""
    log_failure(log, failure, request_id)


def refusal(failure: Failure, request_id: str) -> dict[str, Any]:
    """The answer to a request that is not executed."""
    report(failure, request_id)
    return {"errors": [told(failure, request_id)]}


def told(failure: Failure, request_id: str) -> dict[str, Any]:
    """A failure as it stands in an answer."""
    return {"message": failure.message, "extensions": extensions(failure, request_id)}


def settle(given: GraphQLError, request_id: str) -> None:
    """Gives an error its code, in place: those that resolvers raise have one; the rest is GraphQL's, or a mistake."""
    if given.extensions and "code" in given.extensions:
        return
    cause = given.original_error
    if isinstance(cause, Failure):
        report(cause, request_id)
        given.message, given.extensions = cause.message, extensions(cause, request_id)
    elif isinstance(given, GraphQLSyntaxError):
        given.extensions = {"code": PARSE_FAILED, "requestId": request_id}
    elif cause is None or isinstance(cause, _REQUESTS):
        given.extensions = _own(given, request_id)
    else:
        failure = internal(cause)
        report(failure, request_id)
        given.message, given.extensions = failure.message, extensions(failure, request_id)


def _own(given: GraphQLError, request_id: str) -> dict[str, Any]:
    """Of an error that GraphQL's executor found: a value that does not fit, or a document."""
    found = _VARIABLE.match(given.message)
    if found is None and not isinstance(given, StrawberryInputCoercionError):
        return {"code": VALIDATION_FAILED, "requestId": request_id}
    out = {"code": CODES[Kind.INVALID_REQUEST][0], "requestId": request_id}
    if found is not None:
        field = _FIELD.match(given.message, found.end())
        out["param"] = found[1] + (found[2] or "") + (f".{field[1]}" if field else "")
    return out

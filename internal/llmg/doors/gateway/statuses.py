"""gRPC's statuses, with google.rpc's details, as failures that JSON:API can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as Details
from msgspec import Struct

from llmg.core.errors import Failure, Kind
from llmg.doors.gateway.upstream import Status
from llmg.wire import jsonapi
from llmg.wire.jsonapi import Problem, Refused, Source

_OURS: Final = "llmg"


class _Meaning(Struct, frozen=True):
    """What a code of gRPC's says where there is no more: its own name, our kind, HTTP's status (google/rpc/code.proto).

    `words` stand for those of a server that is not ours, where it speaks of its own faults.
    """

    code: str
    kind: Kind
    status: int
    words: str = ""


_FAILED: Final = "the server failed to answer this request"
_MEANINGS: Final[dict[int, _Meaning]] = {
    1: _Meaning("cancelled", Kind.CANCELLED, 499),
    2: _Meaning("unknown", Kind.UPSTREAM_ERROR, 500, _FAILED),
    3: _Meaning("invalid_argument", Kind.INVALID_REQUEST, 400),
    4: _Meaning("deadline_exceeded", Kind.DEADLINE_EXCEEDED, 504),
    5: _Meaning("not_found", Kind.NOT_FOUND, 404),
    6: _Meaning("already_exists", Kind.CONFLICT, 409),
    7: _Meaning("permission_denied", Kind.PERMISSION_DENIED, 403),
    8: _Meaning("resource_exhausted", Kind.RATE_LIMITED, 429),
    9: _Meaning("failed_precondition", Kind.INVALID_REQUEST, 400),
    10: _Meaning("aborted", Kind.CONFLICT, 409),
    11: _Meaning("out_of_range", Kind.INVALID_REQUEST, 400),
    12: _Meaning("unimplemented", Kind.NOT_IMPLEMENTED, 501),
    13: _Meaning("internal", Kind.UPSTREAM_ERROR, 500, _FAILED),
    14: _Meaning("unavailable", Kind.UPSTREAM_UNAVAILABLE, 503, "the server is not available"),
    15: _Meaning("data_loss", Kind.UPSTREAM_ERROR, 500, _FAILED),
    16: _Meaning("unauthenticated", Kind.UNAUTHENTICATED, 401),
}


def failure(status: Status, source: Callable[[str], Source]) -> Failure:
    """What a status says. `source` tells where in the HTTP request a field of the message is."""
    info, bad, retry = _details(status.details)
    wait = None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9
    kind = Kind.__members__.get(info.reason) if info is not None and info.domain == _OURS else None
    meaning = _MEANINGS.get(status.code, _MEANINGS[2])
    words, private = status.message, None
    if kind is None and status.foreign and meaning.words:
        words, private = meaning.words, f"{meaning.code}: {status.message}"
    one = Problem(
        status=meaning.status if kind is None else jsonapi.status(kind),
        code=kind.value if kind is not None else info.reason.lower() if info is not None else meaning.code,
        detail=words or meaning.words or meaning.code.replace("_", " "),
        meta=_meta(info, known=kind is not None),
    )
    made = Refused(kind or meaning.kind, _each(one, bad, source), wait)
    made.detail = private
    made.logged = kind is not None and not status.foreign  # who raised it has written it down
    return made


def _details(raw: bytes | None) -> tuple[Any, Any, Any]:
    """(ErrorInfo, BadRequest, RetryInfo), each None where there is none that can be read."""
    found: list[Any] = []
    try:
        details = Details.FromString(raw or b"").details
        for kind in (ErrorInfo, BadRequest, RetryInfo):
            message = kind()
            found.append(message if any(detail.Unpack(message) for detail in details) else None)
    except DecodeError:
        return None, None, None
    return found[0], found[1], found[2]


def _meta(info: Any, *, known: bool) -> dict[str, Any]:
    if info is None:
        return {}
    given = dict(info.metadata)
    if known:
        return {"upstream_code": given["code"]} if "code" in given else {}
    return {"domain": info.domain, **given}


def _each(one: Problem, bad: Any, source: Callable[[str], Source]) -> Sequence[Problem]:
    """One problem for each field that is at fault."""
    if bad is None or not bad.field_violations:
        return [one]
    return [
        Problem(
            status=one.status,
            code=one.code,
            detail=violation.description or one.detail,
            source=source(violation.field),
            meta=one.meta,
        )
        for violation in bad.field_violations
    ]

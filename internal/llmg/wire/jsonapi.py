"""Errors as JSON:API has them: `{"errors": [{"id", "status", "code", "title", "detail", "source", "meta"}]}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from google.protobuf import descriptor_pool
from msgspec import Struct

from llmg.core.errors import Failure, Kind
from llmg.jsonapi.v1.errors_pb2 import Error, ErrorsResponse
from llmg.wire.openai.errors import STATUS
from llmg.wire.transcoding.codec import Codec

CONTENT_TYPE: Final = b"application/vnd.api+json"


class Source(Struct, frozen=True, kw_only=True):
    """What in an HTTP request is at fault: a place in its body (RFC 6901), a parameter, or a header. One is set."""

    pointer: str | None = None
    parameter: str | None = None
    header: str | None = None


class Problem(Struct, frozen=True, kw_only=True):
    """One error. `status` is HTTP's, `code` for programs, `detail` for people, `meta` what JSON can hold."""

    status: int
    code: str
    detail: str
    source: Source | None = None
    meta: dict[str, Any] = {}


class Refused(Failure):
    """A failure with more to say in HTTP than its kind does: where the fault is, several faults, another status."""

    def __init__(self, kind: Kind, problems: Sequence[Problem], retry_after: float | None = None) -> None:
        """One problem at the least."""
        super().__init__(kind, problems[0].detail, retry_after=retry_after)
        self.problems = tuple(problems)


def status(kind: Kind) -> int:
    """HTTP's."""
    return STATUS[kind][0]


def refused(kind: Kind, detail: str, source: Source) -> Refused:
    """A request with one fault."""
    return Refused(kind, [Problem(status=status(kind), code=kind.value, detail=detail, source=source)])


def problems(failure: Failure) -> tuple[Problem, ...]:
    """What there is to say of a failure; one problem at the least. They are of one status: the first one's."""
    if isinstance(failure, Refused):
        return failure.problems
    meta = {"upstream_code": failure.code} if failure.code else {}
    return (Problem(status=status(failure.kind), code=failure.kind.value, detail=failure.message, meta=meta),)


_DESCRIPTOR: Any = ErrorsResponse.DESCRIPTOR
_write: Final = Codec(descriptor_pool.Default()).writer(_DESCRIPTOR)


def document(failure: Failure, request_id: str) -> dict[str, Any]:
    """The whole document, decoded."""
    made: dict[str, Any] = _write(
        ErrorsResponse(errors=[_error(one, failure.retry_after, request_id) for one in problems(failure)])
    )
    return made


def encode(failure: Failure, request_id: str) -> bytes:
    """The whole document."""
    return msgspec.json.encode(document(failure, request_id))


def _error(problem: Problem, retry_after: float | None, request_id: str) -> Error:
    error = Error(
        id=request_id,
        status=str(problem.status),
        code=problem.code,
        title=problem.code.replace("_", " ").capitalize(),
        detail=problem.detail,
    )
    if problem.source is not None:
        for name in problem.source.__struct_fields__:
            if (value := getattr(problem.source, name)) is not None:
                setattr(error.source, name, value)
    meta = {**problem.meta} if retry_after is None else {**problem.meta, "retry_after": retry_after}
    if meta:
        error.meta.update(meta)
    return error

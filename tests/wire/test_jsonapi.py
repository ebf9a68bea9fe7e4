"""Errors as JSON:API has them: each kind has a status, and every part that is known is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmg.core.errors import Failure, Kind
from llmg.wire import jsonapi
from llmg.wire.jsonapi import Problem, Refused, Source
from llmg.wire.openai.errors import STATUS


def told(failure: Failure) -> list[Any]:
    """The errors of the document."""
    document = json.loads(jsonapi.encode(failure, "req_1"))
    assert document == jsonapi.document(failure, "req_1")
    assert set(document) == {"errors"}
    errors: list[Any] = document["errors"]
    return errors


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_is_told(kind: Kind) -> None:
    (error,) = told(Failure(kind, "it went wrong", detail="secret"))
    assert error == {
        "id": "req_1",
        "status": str(STATUS[kind][0]),
        "code": kind.value,
        "title": kind.value.replace("_", " ").capitalize(),
        "detail": "it went wrong",
    }


@pytest.mark.parametrize("source", [{"pointer": "/a/0"}, {"pointer": ""}, {"parameter": "a.b"}, {"header": "accept"}])
def test_the_source(source: dict[str, str]) -> None:
    failure = jsonapi.refused(Kind.INVALID_REQUEST, "no", Source(**source))
    (error,) = told(failure)
    assert error["source"] == source
    assert (failure.kind, failure.message) == (Kind.INVALID_REQUEST, "no")


def test_what_else_is_known() -> None:
    (error,) = told(Failure(Kind.UPSTREAM_RATE_LIMITED, "slow", code="rpm", retry_after=1.5))
    assert error["meta"] == {"retry_after": 1.5, "upstream_code": "rpm"}


def test_several_problems() -> None:
    faults = [Problem(status=409, code="aborted", detail=words, meta={"n": [1]}) for words in ("a", "b")]
    failure = Refused(Kind.INVALID_REQUEST, faults, retry_after=2.0)
    assert [error["detail"] for error in told(failure)] == ["a", "b"]
    assert [error["status"] for error in told(failure)] == ["409", "409"]
    assert told(failure)[0]["meta"] == {"n": [1], "retry_after": 2}
    assert jsonapi.problems(failure) == tuple(faults)

"""Errors in OpenAI's shape: each kind has a status, each upstream's refusal a kind, and no secret is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.core.errors import BLAME, Failure, Kind
from llmg.wire.openai.errors import STATUS, decode_error, encode_error

SECRET = "sk-abcdef123456"


def test_each_kind_has_a_status() -> None:
    assert set(STATUS) == set(Kind)
    assert all(400 <= status < 600 for status, _ in STATUS.values())


@pytest.mark.parametrize("kind", [k for k in Kind if BLAME[k] == "caller" and k is not Kind.DEADLINE_EXCEEDED])
def test_the_callers_fault_is_a_4xx(kind: Kind) -> None:
    assert 400 <= STATUS[kind][0] < 500


def test_encoded_in_the_dialects_shape() -> None:
    assert json.loads(encode_error(Failure(Kind.RATE_LIMITED, "slow down", param="model", detail=SECRET))) == {
        "error": {"message": "slow down", "type": "rate_limit_error", "param": "model", "code": "rate_limited"}
    }
    assert json.loads(encode_error(Failure(Kind.UPSTREAM_ERROR, "m", code="own")))["error"]["code"] == "own"


def _body(**error: Any) -> bytes:
    return json.dumps({"error": error}).encode()


# (status, body) -> (kind, what the client is shown: the upstream's own words where they are its fault)
DECODED: list[tuple[int, bytes, Kind, str]] = [
    (400, _body(message="bad n", type="invalid_request_error", param="n"), Kind.INVALID_REQUEST, "bad n"),
    (422, _body(message="bad n"), Kind.INVALID_REQUEST, "bad n"),
    (400, b'{"detail":"bad"}', Kind.INVALID_REQUEST, "(HTTP 400)"),
    (400, _body(message="too long", code="context_length_exceeded"), Kind.CONTEXT_LENGTH_EXCEEDED, "too long"),
    (400, _body(message="too long", type="exceed_context_size_error"), Kind.CONTEXT_LENGTH_EXCEEDED, "too long"),
    (400, _body(message="no", code="content_policy_violation"), Kind.CONTENT_FILTERED, "no"),
    (401, _body(message=f"wrong key {SECRET}", code="invalid_api_key"), Kind.UPSTREAM_AUTH, "credentials"),
    (401, _body(message=SECRET, type="invalid_request_error"), Kind.UPSTREAM_AUTH, "credentials"),
    (400, _body(message=SECRET, code="invalid_api_key"), Kind.UPSTREAM_AUTH, "credentials"),
    (402, _body(message=SECRET), Kind.UPSTREAM_AUTH, "credentials"),
    (403, _body(message=SECRET), Kind.UPSTREAM_AUTH, "credentials"),
    (404, _body(message="no such model", type="invalid_request_error"), Kind.UPSTREAM_MODEL_NOT_FOUND, "no such model"),
    (404, b"<html>not found</html>", Kind.UPSTREAM_MODEL_NOT_FOUND, "(HTTP 404)"),
    (405, b"", Kind.UPSTREAM_PROTOCOL, "(HTTP 405)"),
    (408, b"", Kind.UPSTREAM_TIMEOUT, "timed out"),
    (413, _body(message="too large"), Kind.REQUEST_TOO_LARGE, "too large"),
    (429, _body(message=SECRET, type="invalid_request_error"), Kind.UPSTREAM_RATE_LIMITED, "limiting its rate"),
    (429, _body(message="pay", code="insufficient_quota"), Kind.UPSTREAM_RATE_LIMITED, "limiting its rate"),
    (500, _body(message=f"stack trace {SECRET}"), Kind.UPSTREAM_ERROR, "(HTTP 500)"),
    (500, b"\xff\xfe", Kind.UPSTREAM_ERROR, "(HTTP 500)"),
    (500, b"[" * 3000, Kind.UPSTREAM_ERROR, "(HTTP 500)"),
    (501, _body(message="no embeddings here"), Kind.NOT_IMPLEMENTED, "no embeddings here"),
    (502, b"<html>", Kind.UPSTREAM_ERROR, "(HTTP 502)"),
    (503, b"", Kind.UPSTREAM_UNAVAILABLE, "not available"),
    (504, b"", Kind.UPSTREAM_TIMEOUT, "timed out"),
    (529, b"", Kind.UPSTREAM_UNAVAILABLE, "not available"),
    (418, b"", Kind.UPSTREAM_ERROR, "(HTTP 418)"),
    (200, _body(message="oops"), Kind.UPSTREAM_ERROR, "reported an error"),
    (200, _body(message="slow", code=429), Kind.UPSTREAM_RATE_LIMITED, "limiting its rate"),
    (200, _body(message="odd", code=7), Kind.UPSTREAM_ERROR, "reported an error"),
    (200, b'{"error":"oops"}', Kind.UPSTREAM_ERROR, "reported an error"),
    (400, b'{"object":"error","message":"bad","code":400}', Kind.INVALID_REQUEST, "bad"),
]


@pytest.mark.parametrize(("status", "body", "kind", "shown"), DECODED)
def test_decoded(status: int, body: bytes, kind: Kind, shown: str) -> None:
    failure = decode_error(status, body, retry_after=2.0)
    assert failure.kind is kind
    assert shown in failure.message
    assert failure.retry_after == 2.0
    assert SECRET not in encode_error(failure).decode()
    assert failure.detail is not None
    assert failure.detail.startswith("HTTP ")


def test_param_and_code_pass_on_where_the_words_do() -> None:
    theirs = decode_error(400, _body(message="m", param="n", code="too_big"))
    assert (theirs.param, theirs.code) == ("n", "too_big")
    ours = decode_error(500, _body(message="m", code="boom"))
    assert ours.code is None


def test_a_long_story_is_cut() -> None:
    failure = decode_error(400, _body(message="x" * 100_000))
    assert len(failure.message) == 2000
    assert len(failure.detail or "") < 2100


@given(
    st.integers(200, 599),
    st.binary(max_size=40) | st.text(max_size=10).map(lambda t: json.dumps({"error": t}).encode()),
)
def test_any_refusal_is_a_failure(status: int, body: bytes) -> None:
    failure = decode_error(status, body)
    assert failure.kind in STATUS
    assert json.loads(encode_error(failure))["error"]["message"]

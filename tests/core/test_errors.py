"""The family of failures."""

from __future__ import annotations

import pytest

from llmg.core.errors import BLAME, FAILS_OVER, Failure, Kind, internal, invalid, not_implemented


def test_each_kind_has_somebody_to_blame() -> None:
    assert set(BLAME) == set(Kind)


def test_what_the_caller_got_wrong_is_wrong_everywhere() -> None:
    assert not {kind for kind in FAILS_OVER if BLAME[kind] == "caller"}
    assert {kind for kind in Kind if BLAME[kind] == "upstream"} <= FAILS_OVER


@pytest.mark.parametrize("kind", Kind)
def test_a_failure_says_what_and_whose(kind: Kind) -> None:
    failure = Failure(kind, "words", param="p", code="c", retry_after=1.5, detail="secret")
    assert (failure.kind, failure.blame, str(failure)) == (kind, BLAME[kind], "words")
    assert (failure.message, failure.param, failure.code, failure.retry_after) == ("words", "p", "c", 1.5)
    assert "secret" not in repr(failure)


def test_blame_may_be_given() -> None:
    assert Failure(Kind.INTERNAL, "words", blame="upstream").blame == "upstream"


def test_shorthands() -> None:
    assert (invalid("m", "p").kind, invalid("m", "p").param) == (Kind.INVALID_REQUEST, "p")
    assert (not_implemented("it").kind, str(not_implemented("it"))) == (Kind.NOT_IMPLEMENTED, "it is not implemented")


def test_our_own_mistake_is_for_the_log_alone() -> None:
    try:
        raise ValueError("the key is k")
    except ValueError as error:
        failure = internal(error)
    assert failure.kind is Kind.INTERNAL
    assert "the key is k" not in failure.message
    assert failure.detail is not None
    assert "ValueError: the key is k" in failure.detail

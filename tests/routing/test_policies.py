"""The weighted policy: exact shares, well spread, and a golden of its sequence."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmg.routing.policies import Weighted


def _picks(weights: list[float], count: int) -> list[int]:
    policy = Weighted(weights)
    return [policy.choose(range(len(weights))) for _ in range(count)]


@pytest.mark.parametrize(
    ("weights", "sequence"),
    [
        ([5, 3, 1], "010201010"),
        ([5, 1, 1], "0010200"),
        ([1, 1, 1], "012012"),
        ([1, 0], "0000"),
        ([0.5, 0.25], "010"),
        ([2], "00"),
    ],
)
def test_golden(weights: list[float], sequence: str) -> None:
    assert "".join(map(str, _picks(weights, len(sequence)))) == sequence


def test_shares_are_exact() -> None:
    assert Counter(_picks([5, 3, 1], 90_000)) == {0: 50_000, 1: 30_000, 2: 10_000}


def test_a_heavy_target_is_spread() -> None:
    runs = [(target, len(list(run))) for target, run in groupby(_picks([5, 3, 1], 9_000))]
    assert max(length for target, length in runs if target == 0) <= 2
    assert {length for target, length in runs if target != 0} == {1}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5))
def test_shares_are_exact_over_any_cycle(weights: list[int], cycles: int) -> None:
    picks = Counter(_picks([float(weight) for weight in weights], sum(weights) * cycles))
    assert [picks[i] for i in range(len(weights))] == [weight * cycles for weight in weights]


@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=50))
def test_always_one_of_the_candidates(turns: list[set[int]]) -> None:
    policy = Weighted([5, 3, 1, 0])
    for candidates in turns:
        assert policy.choose(sorted(candidates)) in candidates

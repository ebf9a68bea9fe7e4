"""The simulation of policies: that it counts right, and that the policies do what they are made for."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

TOOL = Path(__file__).resolve().parents[2] / "tools" / "routing"


@pytest.fixture(scope="module")
def compare() -> Any:
    sys.path.insert(0, str(TOOL))
    try:
        return importlib.import_module("compare")
    finally:
        sys.path.remove(str(TOOL))


def _run(compare: Any, situation: str, policy: str, requests: int = 10_000, seed: int = 1) -> Any:
    place = next(s for s in compare.SITUATIONS if s.name == situation)
    visits = place.traffic(random.Random(seed), requests)
    return compare.simulate(place.engines, visits, compare.POLICIES[policy], place.gateways)


def _p99(compare: Any, situation: str, policy: str, seed: int = 1) -> float:
    return float(compare.percentile(_run(compare, situation, policy, seed=seed).firsts, 0.99))


def test_one_request_after_the_other(compare: Any) -> None:
    engine = compare.Engine(prefill=1280.0, decode=10.0, slots=1, cache=3)
    visits = [
        compare.Visit(at=at, session=None, prompt=prompt, output_tokens=10)
        for at, prompt in [(0.0, (1, 2)), (0.5, (1, 2, 3)), (10.0, (8, 9)), (20.0, (1, 2, 3))]
    ]
    done = compare.simulate([engine], visits, compare.POLICIES["round_robin"])
    # a block is read in 0.1 s, an answer written in 1 s; the second waits for the first; (1, 2) stays, 3 is pushed out
    assert done.firsts == pytest.approx([0.2, 0.8, 0.2, 0.2])
    assert done.lasts == pytest.approx([1.2, 1.8, 1.2, 1.2])
    assert (done.hits, done.blocks, done.picks) == (3, 10, [4])
    assert done.cost == pytest.approx((10 * 128 * 1.0 + 40 * 4.0) / 1e6)


def test_the_same_seed_gives_the_same(compare: Any) -> None:
    one, two = (_run(compare, "mixed", "p2c", 1_000) for _ in range(2))
    assert one == two
    assert one != _run(compare, "mixed", "p2c", 1_000, seed=2)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("policy", "situation"), [("p2c", "mixed"), ("p2c", "mixed, 4 gateways"), ("prefix", "conversations")]
)
def test_better_than_least_busy_where_it_is_made_for(compare: Any, policy: str, situation: str, seed: int) -> None:
    assert _p99(compare, situation, policy, seed) < 0.9 * _p99(compare, situation, "least_busy", seed)


def test_more_cache_hits_with_prefix(compare: Any) -> None:
    rates = {p: _run(compare, "conversations", p).hit_rate for p in ("round_robin", "least_busy", "sticky", "prefix")}
    assert rates["prefix"] > rates["sticky"] > rates["least_busy"] + 0.15
    assert rates["prefix"] > rates["round_robin"] + 0.25


def test_the_command_prints_a_table_of_all_policies(compare: Any) -> None:
    command = [sys.executable, str(TOOL / "compare.py"), "--requests", "200", "--only", "alike"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["policy", *compare.POLICIES]

"""The policies: a golden of each, what holds for all of them, and what each promises."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmg.ports import Policy
from llmg.routing.policies import (
    P2C,
    LeastBusy,
    LowestCost,
    LowestLatency,
    Prefix,
    Priority,
    RoundRobin,
    Sticky,
    Weighted,
    WeightedRandom,
)
from llmg.routing.policies.ewma import Latencies
from llmg.routing.policies.lowest_cost import Price
from llmg.routing.policies.prefix import PrefixIndex
from llmg.testing.clocks import FakeClock

GOLDEN = Path(__file__).parent / "golden"


class Asking:
    """An `Asked` by hand."""

    def __init__(
        self,
        session: str | None = None,
        user: str | None = None,
        input_tokens: int = 1,
        output_tokens: int | None = None,
        prompt: Sequence[int] = (),
    ) -> None:
        self.session = session
        self.user = user
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self._prompt = prompt

    def header(self, name: str, /) -> str | None:
        return None

    def blocks(self, size: int, /) -> Sequence[int]:
        return self._prompt


class Dice:
    """A `Random` that throws what it is told."""

    def __init__(self, throws: Sequence[float]) -> None:
        self._throws = iter(throws)

    def random(self) -> float:
        return next(self._throws)


ANY = Asking()
MAKERS: dict[str, Callable[..., Policy]] = {
    "weighted": lambda clock, dice, weights: Weighted(weights),
    "round_robin": lambda clock, dice: RoundRobin(),
    "random": lambda clock, dice, weights: WeightedRandom(weights, dice),
    "least_busy": lambda clock, dice, weights: LeastBusy(weights),
    "p2c": lambda clock, dice, weights, **options: P2C(weights, clock, dice, **options),
    "lowest_latency": lambda clock, dice, count, **options: LowestLatency(count, clock, dice, **options),
    "lowest_cost": lambda clock, dice, prices, weights: LowestCost(
        [Price(input=into, output=out) for into, out in prices], weights
    ),
    "priority": lambda clock, dice, tiers, weights: Priority(
        tiers, lambda place: RoundRobin() if place == 0 else LeastBusy(weights)
    ),
    "sticky": lambda clock, dice, names, weights, by, **options: Sticky(
        names, weights, lambda asked: asked.user if by == "user" else asked.session, **options
    ),
    "prefix": lambda clock, dice, weights, **options: Prefix(weights, clock, **options),
}


def _some(clock: FakeClock, dice: random.Random, count: int) -> dict[str, Policy]:
    """One of each, for `count` targets."""
    weights = [1.0 + index % 3 for index in range(count)]
    return {
        "weighted": Weighted(weights),
        "round_robin": RoundRobin(),
        "random": WeightedRandom(weights, dice),
        "least_busy": LeastBusy(weights),
        "p2c": P2C(weights, clock, dice),
        "lowest_latency": LowestLatency(count, clock, dice, explore=0.2),
        "lowest_cost": LowestCost([Price(input=index % 2, output=1.0) for index in range(count)], weights),
        "priority": Priority([index % 3 for index in range(count)], lambda _: LeastBusy(weights)),
        "sticky": Sticky([f"t{index}" for index in range(count)], weights, lambda asked: asked.session),
        "prefix": Prefix(weights, clock, capacity=64, expiry=5.0),
    }


# Goldens


def _cases() -> Iterator[Any]:
    for file in sorted(GOLDEN.glob("*.json")):
        for case in json.loads(file.read_text()):
            yield pytest.param(file.stem, case, id=f"{file.stem}: {case['says']}")


@pytest.mark.parametrize(("kind", "case"), list(_cases()))
def test_golden(kind: str, case: dict[str, Any]) -> None:
    """Each step asks (`choose`, expecting `gives`), tells (`started`, `first_event`, `ended`), or lets time pass."""
    clock = FakeClock()
    policy = MAKERS[kind](clock, Dice(case.get("dice", [])), **case["policy"])
    for step in case["steps"]:
        if "choose" in step:
            given = policy.choose(step["choose"], Asking(**step.get("asked", {})))
            assert given == step["gives"], step
        elif "picks" in step:
            assert [policy.choose(step["from"], ANY) for _ in step["picks"]] == step["picks"]
        elif "later" in step:
            clock.advance(step["later"])
        else:
            ((name, arguments),) = step.items()
            getattr(policy, name)(*arguments)


def test_there_is_a_golden_for_each_policy() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(MAKERS)


# What holds for all


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 8), turns=st.integers(1, 60))
@pytest.mark.parametrize("kind", MAKERS)
def test_always_one_of_the_candidates_whatever_it_was_told(kind: str, seed: int, count: int, turns: int) -> None:
    dice, clock = random.Random(seed), FakeClock()
    policy = _some(clock, dice, count)[kind]
    running: list[int] = []
    for _ in range(turns):
        candidates = sorted(dice.sample(range(count), dice.randint(1, count)))
        before = list(candidates)
        asking = Asking(
            session=dice.choice([None, "a", "b", "\ud800"]),
            input_tokens=dice.randint(1, 1000),
            output_tokens=dice.choice([None, 0, 100]),
            prompt=range(dice.randint(0, 12)),
        )
        chosen = policy.choose(candidates, asking)
        assert chosen in candidates
        assert candidates == before
        policy.started(chosen)
        running.append(chosen)
        clock.advance(dice.choice([0.0, 0.1, 7.0]))
        if dice.random() < 0.6:
            over = running.pop(dice.randrange(len(running)))
            ok = dice.choice([True, False, None])
            if ok:
                policy.first_event(over, dice.random())
            policy.ended(over, dice.random(), ok)


# Ranks


def _turns(seed: int, count: int, turns: int) -> Iterator[tuple[dict[str, Policy], list[int], Asking]]:
    """Two of each policy that have gone through the same, and what they are asked next: again and again."""
    dice, clock = random.Random(seed), FakeClock()
    one, other = (_some(clock, random.Random(seed), count) for _ in range(2))
    for each, own in ((one, random.Random(seed)), (other, random.Random(seed))):
        each["lowest_latency"] = LowestLatency(count, clock, own, explore=0.0)
    running: dict[str, list[int]] = {kind: [] for kind in one}
    for _ in range(turns):
        candidates = sorted(dice.sample(range(count), dice.randint(1, count)))
        asking = Asking(dice.choice([None, "a", "b"]), None, dice.randint(1, 99), 9, range(dice.randint(0, 12)))
        yield one, candidates, asking
        for kind, policy in one.items():
            chosen = policy.choose(candidates, asking)
            assert other[kind].choose(candidates, asking) == chosen, f"{kind}: ranking has changed something"
            running[kind].append(chosen)
            over = running[kind].pop(0) if len(running[kind]) > 5 else None
            for each in (one[kind], other[kind]):
                each.started(chosen)
                each.first_event(chosen, 0.1 * chosen)
                if over is not None:
                    each.ended(over, 1.0, over % 3 != 0)
        clock.advance(dice.choice([0.0, 0.1, 7.0]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 8))
def test_ranks_are_the_order_of_choice_and_change_nothing(seed: int, count: int) -> None:
    by_chance = {"random", "p2c"}
    for policies, candidates, asking in _turns(seed, count, 30):
        for kind, policy in policies.items():
            ranked = [one.index for one in policy.rank(candidates, asking)]
            assert sorted(ranked) == candidates
            if kind in by_chance:
                continue
            trial, order, left = copy.deepcopy(policy), [], list(candidates)
            while left and (not order or kind != "prefix"):  # what is sent to a target is remembered of it
                order.append(trial.choose(left, asking))
                left.remove(order[-1])
            assert ranked[: len(order)] == order, kind


@pytest.mark.parametrize("kind", ["random", "p2c"])
@pytest.mark.parametrize("candidates", [[0, 1, 2, 3], [1, 3], [2]])
def test_the_score_of_chance_is_the_odds(kind: str, candidates: list[int]) -> None:
    policy = _some(FakeClock(), random.Random(5), 4)[kind]
    for index, busy in enumerate([3, 0, 0, 1]):
        for _ in range(busy):
            policy.started(index)
    ranked = policy.rank(candidates, ANY)
    picks = Counter(policy.choose(candidates, ANY) for _ in range(20_000))
    odds = {one.index: one.score for one in ranked}
    assert {index: picks[index] / 20_000 for index in candidates} == pytest.approx(odds, abs=0.015)
    assert [one.score for one in ranked] == sorted(odds.values(), key=lambda score: -(score or 0))


def test_each_policy_says_its_name_and_why() -> None:
    said = {
        kind: policy.rank(range(3), Asking("s", "u"))[0].why
        for kind, policy in _some(FakeClock(), random.Random(1), 3).items()
    }
    assert {kind: policy.kind for kind, policy in _some(FakeClock(), random.Random(1), 3).items()} == {
        k: k for k in said
    }
    assert said == {
        "weighted": "share 0.500, credit 3: the highest is next",
        "round_robin": "its turn",
        "random": "share 0.500",
        "least_busy": "0 in flight / weight 3",
        "p2c": "odds 0.667: no latency known yet x 1 / weight 3",
        "lowest_latency": "not tried yet",
        "lowest_cost": "cost 0.00051 USD, 0 in flight / weight 3",
        "priority": "tier 0, least_busy: 0 in flight / weight 1",
        "sticky": "next on the ring, 0 in flight of at most 1",
        "prefix": "has seen 0 of 0 blocks, 0 in flight / weight 3",
    }


def _flight(policy: Policy, steps: int, dice: random.Random, asking: Callable[[], Asking], count: int) -> int:
    """The most that a target had in flight over what `bound` allows, over many arrivals and departures."""
    running: Counter[int] = Counter()
    worst = -(10**9)
    for _ in range(steps):
        chosen = policy.choose(range(count), asking())
        total = running.total() + 1
        policy.started(chosen)
        running[chosen] += 1
        worst = max(worst, running[chosen] - -(-5 * total // (4 * count)))
        while running.total() > 30 or (running.total() and dice.random() < 0.3):
            over = dice.choice(list(running.elements()))
            running[over] -= 1
            policy.ended(over, 1.0, True)
    return worst


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 7))
def test_the_bound_on_loads_holds_for_sticky(seed: int, count: int) -> None:
    dice = random.Random(seed)
    policy = Sticky([f"t{n}" for n in range(count)], [1.0] * count, lambda asked: asked.session, load_factor=1.25)
    assert _flight(policy, 200, dice, lambda: Asking(session="one"), count) <= 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 7), slack=st.integers(0, 3))
def test_the_bound_on_loads_holds_for_prefix(seed: int, count: int, slack: int) -> None:
    dice = random.Random(seed)
    policy = Prefix([1.0] * count, FakeClock(), load_factor=1.25, slack=slack)
    assert _flight(policy, 200, dice, lambda: Asking(prompt=(1, 2, 3)), count) <= slack


# Weighted and random


def test_shares_are_exact() -> None:
    policy = Weighted([5, 3, 1])
    picks = Counter(policy.choose(range(3), ANY) for _ in range(90_000))
    assert picks == {0: 50_000, 1: 30_000, 2: 10_000}


def test_a_heavy_target_is_spread() -> None:
    policy = Weighted([5, 3, 1])
    runs = [(target, len(list(run))) for target, run in groupby(policy.choose(range(3), ANY) for _ in range(9_000))]
    assert max(length for target, length in runs if target == 0) <= 2
    assert {length for target, length in runs if target != 0} == {1}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5))
def test_shares_are_exact_over_any_cycle(weights: list[int], cycles: int) -> None:
    policy = Weighted(weights)
    picks = Counter(policy.choose(range(len(weights)), ANY) for _ in range(sum(weights) * cycles))
    assert [picks[i] for i in range(len(weights))] == [weight * cycles for weight in weights]


@pytest.mark.parametrize(("candidates", "shares"), [([0, 1, 2], [5 / 9, 3 / 9, 1 / 9]), ([0, 2], [5 / 6, 0, 1 / 6])])
def test_chance_has_the_shares_of_the_weights(candidates: list[int], shares: list[float]) -> None:
    policy = WeightedRandom([5, 3, 1], random.Random(7))
    picks = Counter(policy.choose(candidates, ANY) for _ in range(30_000))
    assert [picks[i] / 30_000 for i in range(3)] == pytest.approx(shares, abs=0.01)


def test_a_throw_at_the_very_end_is_still_a_candidate() -> None:
    assert WeightedRandom([0.1] * 3, Dice([1.0])).choose(range(3), ANY) == 2


# Latencies


def test_an_average_follows_time_not_numbers() -> None:
    clock = FakeClock()
    seen = Latencies(2, clock, 10.0, peak=False)
    seen.observe(0, 1.0)
    for _ in range(1000):
        seen.observe(0, 3.0)
    assert seen.estimate(0, clock.monotonic()) == 1.0
    clock.advance(10)
    seen.observe(0, 3.0)
    assert seen.estimate(0, clock.monotonic()) == pytest.approx(3 - 2 / 2.718281828)


def test_a_peak_is_believed_at_once_and_forgotten_slowly() -> None:
    clock = FakeClock()
    seen = Latencies(2, clock, 10.0, peak=True)
    seen.observe(0, 1.0)
    clock.advance(0.001)
    seen.observe(0, 9.0)
    assert seen.estimate(0, clock.monotonic()) == 9.0
    clock.advance(100)
    assert seen.estimate(0, clock.monotonic()) == pytest.approx(1.0, abs=0.01)  # the mean of all


def test_a_quick_failure_looks_slow() -> None:
    clock = FakeClock()
    seen = Latencies(2, clock, 10.0, peak=True)
    seen.observe(0, 0.5)
    seen.fail(1, 0.001)
    assert seen.estimate(1, clock.monotonic()) == 5.0


@pytest.mark.parametrize("kind", ["p2c", "lowest_latency"])
def test_a_target_that_was_slow_once_is_tried_again(kind: str) -> None:
    clock, dice = FakeClock(), random.Random(3)
    policy = _some(clock, dice, 4)[kind]
    picks: list[int] = []
    for turn in range(400):
        chosen = policy.choose(range(4), ANY)
        policy.started(chosen)
        seconds = 20.0 if turn < 40 and chosen == 2 else 0.1
        policy.first_event(chosen, seconds)
        policy.ended(chosen, seconds, True)
        clock.advance(0.5)
        picks.append(chosen)
    assert 2 in picks[40:]
    if kind == "p2c":  # a random one of those that are equal again
        assert picks[200:].count(2) > 20


@pytest.mark.parametrize("ok", [False, None])
def test_only_a_failure_counts_against_a_target(ok: bool | None) -> None:
    clock = FakeClock()
    policy = P2C([1.0, 1.0], clock, Dice([0.0, 0.0] * 3))
    policy.started(1)
    policy.first_event(1, 0.5)
    policy.ended(1, 1.0, True)
    policy.started(0)
    policy.ended(0, 0.01, ok)
    assert policy.choose([0, 1], ANY) == (1 if ok is False else 0)


# Sticky


def _owners(names: list[str], keys: list[str]) -> list[str]:
    policy = Sticky(names, [1.0] * len(names), lambda asked: asked.session)
    return [names[policy.choose(range(len(names)), Asking(session=key))] for key in keys]


KEYS = [f"session-{n}" for n in range(4_000)]


def test_a_target_more_takes_its_share_and_moves_no_other_key() -> None:
    names = [f"p/m{n}" for n in range(9)]
    before, after = _owners(names, KEYS), _owners([*names, "p/new"], KEYS)
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"p/new"}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 10, abs=0.04)


def test_the_order_of_targets_does_not_matter() -> None:
    names = [f"p/m{n}" for n in range(5)]
    assert _owners(names, KEYS) == _owners(names[::-1], KEYS)


def test_keys_follow_weights() -> None:
    policy = Sticky(["a", "b"], [3.0, 1.0], lambda asked: asked.session)
    picks = Counter(policy.choose([0, 1], Asking(session=key)) for key in KEYS)
    assert picks[0] / len(KEYS) == pytest.approx(0.75, abs=0.08)


def test_huge_weights_make_no_huge_ring() -> None:
    policy = Sticky(["a", "b"], [1e9, 1.0], lambda asked: asked.session)
    assert len(policy._hashes) <= 65_537
    assert policy.choose([0, 1], Asking(session="x")) == 0


def test_a_failed_target_leaves_its_keys_to_others_and_gets_them_back() -> None:
    policy = Sticky(["a", "b", "c"], [1.0] * 3, lambda asked: asked.session)
    home = policy.choose(range(3), Asking(session="x"))
    others = [index for index in range(3) if index != home]
    assert policy.choose(others, Asking(session="x")) in others
    assert policy.choose(range(3), Asking(session="x")) == home


# Prefix


def test_what_is_remembered_is_bounded() -> None:
    index = PrefixIndex(FakeClock(), 100, 60.0)
    for start in range(0, 10_000, 7):
        index.add(range(start, start + 7), 1)
        assert len(index) <= 100
    index.add(range(20_000, 21_000), 1)  # one prompt that is larger than all
    assert len(index) <= 100
    assert index.find([20_000], 1) in ([1], [])


def test_what_is_used_stays_and_the_rest_expires() -> None:
    clock = FakeClock()
    index = PrefixIndex(clock, 1000, 10.0)
    index.add([1, 2], 0b01)
    index.add([7], 0b10)
    for _ in range(5):
        clock.advance(9)
        assert index.find([1, 2], 0b11) == [0b01]
        index.add([1, 2], 0b01)
    assert index.find([7], 0b11) == []
    clock.advance(20)
    assert index.find([1, 2], 0b11) == []
    assert len(index) == 0


def test_the_longest_prefix_comes_first() -> None:
    index = PrefixIndex(FakeClock(), 1000, 10.0)
    index.add([1, 2, 3], 0b001)
    index.add([1, 2], 0b010)
    index.add([1], 0b100)
    assert index.find([1, 2, 3, 4], 0b111) == [0b001, 0b011, 0b111]
    assert index.find([1, 2, 3, 4], 0b110) == [0b010, 0b110]
    assert index.find([5, 2], 0b111) == []


def test_prompts_that_nobody_has_seen_never_pile_up() -> None:
    policy = Prefix([1.0] * 4, FakeClock())
    for prompt in range(40):
        chosen = policy.choose(range(4), Asking(prompt=[1000 + prompt]))
        policy.started(chosen)
    assert [policy._busy[index] for index in range(4)] == [10] * 4


# Tiers


def test_each_tier_is_told_of_its_own_targets_only() -> None:
    made: dict[int, LeastBusy] = {}

    def make(place: int) -> Policy:
        made[place] = LeastBusy([1.0] * 3)
        return made[place]

    policy = Priority([4, 0, 4], make)
    policy.started(0)
    policy.started(1)
    assert [made[0]._busy, made[1]._busy] == [[0, 1, 0], [1, 0, 0]]
    assert policy.choose([0, 2], ANY) == 2
    policy.first_event(0, 1.0)
    policy.ended(0, 1.0, None)
    assert made[1]._busy == [0, 0, 0]

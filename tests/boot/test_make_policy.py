"""From a model's settings to its policy."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llmg.boot.policies import KEYS, MAKERS, make_policy
from llmg.boot.settings import FlatModel
from llmg.core.request import Chat
from llmg.ports import Policy
from llmg.routing import policies
from llmg.routing.policies.view import View
from llmg.testing.clocks import FakeClock
from llmg.testing.conformance import a_context

PRICE = {"input": 1, "output": 2}


def _make(policy: Any) -> Policy:
    targets = [{"provider": "p", "model": "m", "price": PRICE}] * 2
    model = FlatModel.model_validate({"policy": policy, "targets": targets})
    return make_policy(model, FakeClock(), random.Random(1))


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("weighted", policies.Weighted),
        ("round_robin", policies.RoundRobin),
        ("random", policies.WeightedRandom),
        ("least_busy", policies.LeastBusy),
        ("lowest_cost", policies.LowestCost),
        ("p2c", policies.P2C),
        ("lowest_latency", policies.LowestLatency),
        ("sticky", policies.Sticky),
        ("prefix", policies.Prefix),
        ("priority", policies.Priority),
    ],
)
def test_each_policy_by_name_and_as_a_mapping(kind: str, made: type) -> None:
    assert kind in MAKERS or kind == "priority"
    for config in (kind, {"kind": kind}):
        policy = _make(config)
        assert type(policy) is made
        chat = Chat(model="m", messages=())
        assert policy.choose([0, 1], View(chat, a_context())) in (0, 1)


def test_every_maker_has_a_kind_of_settings() -> None:
    for kind in MAKERS:
        model = FlatModel.model_validate({"policy": kind, "targets": [{"provider": "p", "model": "m", "price": PRICE}]})
        assert model.policy.kind == kind


def test_weighted_is_the_default() -> None:
    model = FlatModel.model_validate({"targets": [{"provider": "p", "model": "m"}]})
    assert isinstance(make_policy(model, FakeClock(), random.Random(1)), policies.Weighted)


def test_tiers_have_their_own_policies_and_the_last_holds_on() -> None:
    targets = [{"provider": "p", "model": f"m{n}", "priority": tier} for n, tier in enumerate([7, 0, 3])]
    config = {"kind": "priority", "tiers": ["round_robin", {"kind": "p2c", "decay": "3s"}]}
    model = FlatModel.model_validate({"policy": config, "targets": targets})
    policy = make_policy(model, FakeClock(), random.Random(1))
    assert isinstance(policy, policies.Priority)
    assert [type(inner) for inner in policy._of] == [policies.P2C, policies.RoundRobin, policies.P2C]
    assert policy._of[0] is not policy._of[2]
    chat = Chat(model="m", messages=())
    assert policy.choose([0, 1, 2], View(chat, a_context())) == 1
    assert policy.choose([0, 2], View(chat, a_context())) == 2


@pytest.mark.parametrize("by", KEYS)
def test_sticky_goes_by_what_it_is_told(by: str) -> None:
    policy = _make({"kind": "sticky", "by": by, **({"header": "X-Conversation"} if by == "header" else {})})
    picks: dict[str, set[int]] = {"same": set(), "other": set()}
    for n in range(40):
        for name in picks:
            key = "fixed" if name == "same" else f"k{n}"
            context = a_context()
            context.session = key if by == "session" else f"x{n}"
            context.header = {"x-conversation": key if by == "header" else f"x{n}"}.get
            chat = Chat(model="m", messages=(), user=key if by == "user" else f"x{n}")
            picks[name].add(policy.choose([0, 1], View(chat, context)))
    assert (len(picks["same"]), len(picks["other"])) == (1, 2)


def test_only_the_tiers_that_go_by_price_need_one() -> None:
    targets = [{"provider": "p", "model": "a", "price": PRICE}, {"provider": "p", "model": "b", "priority": 1}]
    config = {"kind": "priority", "tiers": ["lowest_cost", "weighted"]}
    policy = make_policy(
        FlatModel.model_validate({"policy": config, "targets": targets}), FakeClock(), random.Random(1)
    )
    assert policy.choose([0, 1], View(Chat(model="m", messages=()), a_context())) == 0

"""A dry run of the router: the order that it would keep to, why, and why not the others."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmg.core.context import Context
from llmg.core.errors import Failure, Kind
from llmg.core.explanation import Candidate, Explanation
from llmg.core.prices import Price
from llmg.core.request import Chat, Embed, Message, Text, Tool
from llmg.ports import Policy, Profile
from llmg.routing.breaker import Limits
from llmg.routing.explain import explain
from llmg.routing.health import Health
from llmg.routing.models import Group, Target
from llmg.routing.policies import LeastBusy, Priority, RoundRobin, Weighted
from llmg.routing.queue import Limits as Places
from llmg.routing.queue import Queue
from llmg.routing.router import Router
from llmg.testing.clocks import FakeClock
from llmg.testing.conformance import a_context, collect
from llmg.testing.models import Models
from llmg.testing.scripted import Script, Scripted, saying

NOW = FakeClock().monotonic()
DOWN = Failure(Kind.UPSTREAM_UNAVAILABLE, "words")
CHAT = Chat(model="m", messages=(Message(role="user", parts=(Text("hi"),)),))


def _target(name: str = "a", **fields: Any) -> Target:
    return Target(provider="p", model=name, inner=Scripted(saying("hi")), **fields)


def _group(*targets: Target, policy: Policy | None = None, name: str = "m", **fields: Any) -> Group:
    return Group(name=name, targets=targets, policy=policy or RoundRobin(), **fields)


def _explain(*groups: Group, request: Chat | Embed = CHAT, now: float = NOW) -> Explanation:
    return explain(Models({group.name: group for group in groups}, {}), request, a_context(), now)


def _told(targets: Sequence[Candidate]) -> list[tuple[str, int | None, str]]:
    return [(one.model, one.place, one.reason) for one in targets]


def _one(group: Group, request: Chat | Embed = CHAT, now: float = NOW) -> list[tuple[str, int | None, str]]:
    (stage,) = _explain(group, request=request, now=now).stages
    return _told(stage.targets)


def test_the_order_and_why() -> None:
    policy = Weighted([1.0, 3.0])
    found = _explain(_group(_target("a"), _target("b", weight=3.0), policy=policy))
    assert found.model == "m"
    (stage,) = found.stages
    assert (stage.model, stage.policy) == ("m", "weighted")
    assert _told(stage.targets) == [
        ("b", 1, "share 0.750, credit 3: the highest is next"),
        ("a", 2, "share 0.250, credit 1: the highest is next"),
    ]
    assert [(one.verdict, one.score, one.weight) for one in stage.targets] == [
        ("candidate", 3.0, 3.0),
        ("candidate", 1.0, 1.0),
    ]


def test_what_is_known_of_a_target() -> None:
    profile = Profile(has=frozenset({"vision", "tools"}), context_window=8192)
    target = _target(profile=profile, price=Price(input=1, output=2), region="eu", labels=(("gpu", "l4"),), weight=2.0)
    (stage,) = _explain(_group(target, policy=Priority([7], lambda _: RoundRobin()))).stages
    assert stage.targets == (
        Candidate(
            provider="p",
            model="a",
            verdict="candidate",
            place=1,
            reason="tier 7, round_robin: its turn",
            weight=2.0,
            tier=7,
            price=Price(input=1, output=2),
            context_window=8192,
            capabilities=("tools", "vision"),
            region="eu",
            labels={"gpu": "l4"},
        ),
    )


def test_who_can_not_do_it_comes_last_with_what_is_missing() -> None:
    chat = Chat(model="m", messages=CHAT.messages, tools=(Tool(name="f"),))
    lacking = _target("a", profile=Profile(lacks=frozenset({"tools"})))
    small = _target("b", profile=Profile(context_window=3))
    assert _one(_group(lacking, small, _target("c")), chat) == [
        ("c", 1, "its turn"),
        ("a", None, "can't do tools"),
        ("b", None, "its context window of 3 tokens is too small for about 4"),
    ]
    assert _one(_group(_target("a", profile=Profile(embed=False))), Embed(model="m", inputs=("x",))) == [
        ("a", None, "can't do embeddings")
    ]


def _opened(at: float) -> Health:
    health = Health(Limits(consecutive=1, open_for=5.0))
    health.ended(health.begin(), at, DOWN)
    return health


def _cooling(at: float, seconds: float) -> Health:
    health = Health()
    health.ended(health.begin(), at, Failure(Kind.UPSTREAM_RATE_LIMITED, "words", retry_after=seconds))
    return health


def _down() -> Health:
    health = Health()
    health.checked(passed=False, down=True)
    return health


def test_who_is_not_fit_is_rejected_with_how_long_yet() -> None:
    group = _group(
        _target("a", health=_opened(NOW - 2)),
        _target("b", health=_cooling(NOW - 1, 30.0)),
        _target("c", health=_down()),
        _target("d"),
    )
    assert _one(group) == [
        ("d", 1, "its turn"),
        ("a", None, "circuit open for 3.0 s more"),
        ("b", None, "asked to be left alone for 29.0 s more"),
        ("c", None, "its health checks fail"),
    ]
    assert _one(group, now=NOW + 3) == [  # which lets a probe through
        ("a", 1, "its turn; circuit open, about to be tried out"),
        ("d", 2, "1 turns away"),
        ("b", None, "asked to be left alone for 26.0 s more"),
        ("c", None, "its health checks fail"),
    ]


def test_the_last_resort_says_that_it_is_one() -> None:
    group = _group(_target("a", health=_opened(NOW - 1)), _target("b", health=_opened(NOW - 2)))
    assert _one(group) == [
        ("b", 1, "its turn; circuit open for 3.0 s more"),
        ("a", None, "circuit open for 4.0 s more"),
    ]


def test_in_outline_it_is_not_told_how_targets_do() -> None:
    """Nor what they cost; but which, in which order, and what they can't do."""
    profile = Profile(lacks=frozenset({"tools"}))
    group = _group(
        _target("a", health=_opened(NOW - 2), price=Price(input=1, output=2)),
        _target("b", region="eu", labels=(("gpu", "l4"),)),
        _target("c", health=_opened(NOW - 9)),
        _target("d", profile=profile),
        policy=LeastBusy([1.0] * 4),
    )
    chat = Chat(model="m", messages=CHAT.messages, tools=(Tool(name="f"),))
    (full,) = explain(Models({"m": group}, {}), chat, a_context(), NOW).stages
    (outline,) = explain(Models({"m": group}, {}), chat, a_context(), NOW, details=False).stages
    assert [(one.model, one.place) for one in outline.targets] == [(one.model, one.place) for one in full.targets]
    assert _told(outline.targets) == [
        ("b", 1, "in the policy's order"),
        ("c", 2, "in the policy's order; busy or in trouble at the moment"),
        ("a", None, "busy or in trouble at the moment"),
        ("d", None, "can't do tools"),
    ]
    assert all((one.score, one.price, one.region, one.labels) == (None, None, "", {}) for one in outline.targets)
    assert [one.score for one in full.targets[:2]] == [1.0, 1.0]


async def test_a_target_without_a_free_place_gives_way() -> None:
    health = Health()
    queue = Queue(Places(max_in_flight=1), health.crowded)
    await queue.enter(a_context())
    health.begin()
    group = _group(_target("a", health=health), _target("b"))
    assert _one(group) == [("b", 1, "its turn"), ("a", None, "no free place: 1 in flight, 0 waiting")]


def test_fallbacks_follow_in_one_order() -> None:
    group = _group(_target("a"), _target("b", health=_cooling(NOW, 9.0)), fallbacks=("second", "third"))
    second = _group(_target("c"), name="second", policy=LeastBusy([1.0]))
    third = _group(_target("d", profile=Profile(chat=False)), _target("e"), name="third")
    found = _explain(group, second, third)
    assert [(stage.model, stage.policy) for stage in found.stages] == [
        ("m", "round_robin"),
        ("second", "least_busy"),
        ("third", "round_robin"),
    ]
    assert [(one.model, one.place) for stage in found.stages for one in stage.targets] == [
        ("a", 1),
        ("b", None),
        ("c", 2),
        ("e", 3),
        ("d", None),
    ]


@pytest.mark.parametrize("asked", [True, False])
def test_fallbacks_of_a_model_that_can_not_do_it(asked: bool) -> None:
    on = frozenset({Kind.CONTEXT_LENGTH_EXCEEDED}) if asked else frozenset[Kind]()
    small = _group(_target("a", profile=Profile(context_window=1)), fallbacks=("second",), fallback_on=on)
    found = _explain(small, _group(_target("b"), name="second"))
    assert [stage.model for stage in found.stages] == (["m", "second"] if asked else ["m"])


def test_a_model_that_nobody_declared() -> None:
    with pytest.raises(Failure) as caught:
        _explain(_group(_target(), name="other"))
    assert caught.value.kind is Kind.MODEL_NOT_FOUND


def test_nobody_is_asked_and_nothing_is_counted() -> None:
    targets = [_target(name) for name in "abc"]
    group = _group(*targets, policy=Weighted([1.0, 1.0, 1.0]))
    before = [copy.deepcopy(vars(group.policy)), [one.health.status(NOW) for one in targets]]
    assert _explain(group) == _explain(group)
    assert [vars(group.policy), [one.health.status(NOW) for one in targets]] == before
    assert all(isinstance(one.inner, Scripted) and one.inner.calls == [] for one in targets)


@settings(max_examples=30, deadline=None)
@given(
    works=st.lists(st.booleans(), min_size=1, max_size=6),
    others=st.lists(st.booleans(), max_size=3),
    turns=st.integers(0, 5),
)
def test_the_router_keeps_to_it(works: list[bool], others: list[bool], turns: int) -> None:
    """Those that fail are asked first in the order that was told, then the first that answers."""

    def made(name: str, well: list[bool], **fields: Any) -> Group:
        scripts = [Script(steps=saying("hi"), at_enter=None if ok else DOWN) for ok in well]
        targets = [Target(provider="p", model=f"{name}{n}", inner=Scripted(one)) for n, one in enumerate(scripts)]
        return _group(*targets, name=name, policy=Weighted([1.0 + n for n in range(len(well))]), **fields)

    models = Models({"m": made("m", works, fallbacks=("n",) if others else ()), "n": made("n", others)}, {})
    for _ in range(turns):
        models.find("m").policy.choose(range(len(works)), None)  # type: ignore[arg-type]
    told = explain(models, CHAT, a_context(), NOW)
    order = [one.model for stage in told.stages for one in stage.targets]
    context: Context = a_context(trail=[])
    well = {f"{name}{n}": ok for name, group in (("m", works), ("n", others)) for n, ok in enumerate(group)}
    try:
        asyncio.run(collect(Router(models, FakeClock()), CHAT, context))
    except Failure:
        assert not any(well.values())
    asked = [attempt.model for attempt in context.trail]
    assert asked == order[: len(asked)]
    assert well[asked[-1]] or len(asked) == len(order)
    assert {attempt.policy for attempt in context.trail} == {"weighted"}
    assert [attempt.group for attempt in context.trail] == [name[0] for name in asked]
    assert (context.answering.committed is not None) == well[asked[-1]]

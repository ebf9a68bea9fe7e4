"""Models that refer to others: what becomes of their targets, what is refused and where, what reaches the router."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from llmg.boot.settings import Entry, FlatModel, GroupTarget, Settings, SettingsError, Target, json_schema, load
from llmg.boot.settings.groups import Unsound, by_provider, flatten
from llmg.boot.settings.policies import PlainPolicy, PriorityPolicy
from llmg.core.errors import Failure, Kind
from llmg.core.request import Chat, Image, Message, Request, Text
from llmg.ports import Profile
from llmg.routing import policies, router
from llmg.routing.policies.lowest_cost import Price
from llmg.testing.clocks import FakeClock
from llmg.testing.conformance import a_context, collect
from support.scopes import root_models

PROVIDERS = ("p", "q")
PRICE = {"input": 1, "output": 2}
Raw = Mapping[str, Any]
_entries: TypeAdapter[dict[str, Entry]] = TypeAdapter(dict[str, Entry])


def _flat(models: Raw, above: Mapping[str, FlatModel] = {}) -> dict[str, FlatModel]:
    def meaning(name: str) -> FlatModel | None:
        return above[name] if name in above else by_provider(name, PROVIDERS)

    return flatten(_entries.validate_python(models), meaning, PROVIDERS, above)


def _mistakes(models: Raw, above: Mapping[str, FlatModel] = {}) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(Unsound) as raised:
        _flat(models, above)
    assert all(cause in str(raised.value) for cause in [str(one.cause) for one in raised.value.mistakes])
    return {one.keys: str(one.cause) for one in raised.value.mistakes}


def _to(model: str, **fields: Any) -> dict[str, Any]:
    return {"provider": "p", "model": model, **fields}


def _of(*targets: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"targets": list(targets), **fields}


def _group(name: str, **fields: Any) -> dict[str, Any]:
    return {"group": name, **fields}


def _weights(model: FlatModel) -> list[tuple[str, float]]:
    return [(target.model, target.weight) for target in model.targets]


def _tiers(model: FlatModel) -> list[tuple[int, str, float]]:
    return [(target.priority, target.model, target.weight) for target in model.targets]


# What becomes of targets


def test_a_model_without_references_stays_as_it_is() -> None:
    raw = {"m": _of(_to("a", weight=3, priority=2), _to("b", priority=5), policy="priority", fallbacks=["q/x"])}
    written = _entries.validate_python(raw)["m"]
    (model,) = _flat(raw).values()
    assert isinstance(model, FlatModel)
    assert model.model_dump() == written.model_dump()  # type: ignore[union-attr]
    assert model.model_fields_set == {"targets", "policy", "fallbacks"}


def test_an_alias_is_the_model_itself() -> None:
    models = _flat({"quick": "fast", "fast": "small", "small": _of(_to("a"), policy="p2c")})
    assert models["quick"] is models["fast"] is models["small"]


def test_an_alias_of_a_providers_model() -> None:
    models = _flat({"mini": "q/gpt/mini"})
    assert models["mini"].targets == (Target(provider="q", model="gpt/mini"),)


def test_a_group_has_its_weight_together() -> None:
    models = _flat(
        {
            "all": _of(_to("x", weight=3), _group("two", weight=2), _group("q/y")),
            "two": _of(_to("a"), _to("b", weight=3)),
        }
    )
    assert _weights(models["all"]) == [("x", 3), ("a", 0.5), ("b", 1.5), ("y", 1)]
    assert _weights(models["two"]) == [("a", 1), ("b", 3)]


def test_groups_of_groups() -> None:
    models = _flat(
        {
            "top": _of(_group("mid", weight=8), _to("x")),
            "mid": _of(_group("low"), _to("m", weight=3)),
            "low": _of(_to("a"), _to("b")),
        }
    )
    assert _weights(models["top"]) == [("a", 1), ("b", 1), ("m", 6), ("x", 1)]


def test_one_group_may_come_by_several_ways() -> None:
    models = _flat(
        {
            "top": _of(_group("left"), _group("right")),
            "left": _of(_group("low")),
            "right": _of(_group("low"), _to("r")),
            "low": _of(_to("a")),
        }
    )
    assert _weights(models["top"]) == [("a", 1), ("a", 0.5), ("r", 0.5)]


def test_an_alias_in_a_group() -> None:
    models = _flat({"top": _of(_group("fast", weight=4)), "fast": "low", "low": _of(_to("a"), _to("b"))})
    assert _weights(models["top"]) == [("a", 2), ("b", 2)]


@given(st.recursive(st.floats(0.01, 100), lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=20))
def test_weights_multiply_however_deep(tree: Any) -> None:
    models: dict[str, Any] = {}

    def write(node: Any, at: str) -> dict[str, Any]:
        """A leaf has its weight, a branch 1."""
        if isinstance(node, float):
            return _to(at, weight=node)
        models[at] = _of(*[write(child, f"{at}.{n}") for n, child in enumerate(node)])
        return _group(at)

    def shares(node: Any, at: str, share: float) -> dict[str, float]:
        if isinstance(node, float):
            return {at: share}
        total = sum(child if isinstance(child, float) else 1.0 for child in node)
        found: dict[str, float] = {}
        for n, child in enumerate(node):
            found |= shares(child, f"{at}.{n}", share * (child if isinstance(child, float) else 1.0) / total)
        return found

    models["top"] = _of(write(tree, "r"))
    flat = _flat(models)["top"]
    total = sum(target.weight for target in flat.targets)
    assert {t.model: t.weight / total for t in flat.targets} == pytest.approx(shares(tree, "r", 1.0))


# Tiers

TIERED = _of(_to("a"), _to("b", weight=3), _to("c", priority=7), policy="priority")


def test_a_group_lies_in_its_tier() -> None:
    models = _flat(
        {
            "top": _of(_to("x"), _group("two", priority=4, weight=2), policy="priority"),
            "two": _of(_to("a"), _to("b")),
        }
    )
    assert _tiers(models["top"]) == [(0, "x", 1), (1, "a", 1), (1, "b", 1)]


def test_tiers_of_a_group_lie_within_its_tier() -> None:
    """The first of them beside the tier's own; each has the group's weight, as they are never asked together."""
    config = {"kind": "priority", "tiers": ["round_robin", "p2c"]}
    models = _flat(
        {
            "top": _of(
                _to("first"),
                _to("last", priority=9),
                _group("tiered", priority=3, weight=8),
                _to("x", priority=3),
                policy=config,
            ),
            "tiered": TIERED,
        }
    )
    assert _tiers(models["top"]) == [
        (0, "first", 1),
        (3, "last", 1),
        (1, "a", 2),
        (1, "b", 6),
        (2, "c", 8),
        (1, "x", 1),
    ]
    policy = models["top"].policy
    assert isinstance(policy, PriorityPolicy)
    assert [policy.within(place).kind for place in range(4)] == ["round_robin", "p2c", "p2c", "p2c"]


def test_the_policy_of_a_tier_holds_for_the_tiers_within() -> None:
    models = _flat(
        {
            "top": _of(
                _group("tiered"),
                _to("x", priority=1),
                policy={"kind": "priority", "tiers": ["least_busy", "random"]},
            ),
            "tiered": {**TIERED, "policy": {"kind": "priority", "tiers": ["p2c", "prefix"]}},
        }
    )
    policy = models["top"].policy
    assert isinstance(policy, PriorityPolicy)
    assert [policy.within(place).kind for place in range(3)] == ["least_busy", "least_busy", "random"]
    assert [tier for tier, _, _ in _tiers(models["top"])] == [0, 0, 1, 2]


def test_a_policy_stays_as_it_is_where_there_are_no_tiers_within() -> None:
    models = _flat({"top": _of(_group("one", priority=5), policy="priority"), "one": _of(_to("a"))})
    assert models["top"].policy == PriorityPolicy(kind="priority")


def test_one_tier_is_none() -> None:
    models = _flat({"top": _of(_group("one")), "one": _of(_to("a", priority=5), policy="priority")})
    assert _tiers(models["top"]) == [(0, "a", 1)]
    assert models["top"].policy == PlainPolicy(kind="weighted")


def test_tiers_need_the_policy_priority() -> None:
    assert _mistakes({"top": _of(_to("x"), _group("tiered"), policy="p2c"), "tiered": TIERED}) == {
        ("top", "targets", 1, "group"): "expected the policy `priority` here, as 'tiered' has it"
    }


def test_it_is_said_once() -> None:
    models = {"all": _of(_group("top")), "top": _of(_group("tiered")), "tiered": TIERED}
    assert list(_mistakes(models)) == [("top", "targets", 0, "group")]


# Prices


def test_prices_come_along() -> None:
    models = _flat({"top": _of(_group("low"), policy="lowest_cost"), "low": _of(_to("a", price=PRICE))})
    assert models["top"].targets[0].price == models["low"].targets[0].price


def test_lowest_cost_needs_the_prices_of_groups_too() -> None:
    models = {"top": _of(_group("low"), policy="lowest_cost"), "low": _of(_to("a", price=PRICE), _to("b"))}
    assert _mistakes(models) == {
        (
            "top",
            "targets",
            0,
            "group",
        ): "expected a `price` for each target of 'low', as the policy `lowest_cost` chooses from them"
    }


def test_but_only_in_its_tiers() -> None:
    config = {"kind": "priority", "tiers": ["lowest_cost", "weighted"]}
    low = _of(_to("b"))
    assert _flat({"top": _of(_to("a", price=PRICE), _group("low", priority=1), policy=config), "low": low})
    top = _of(_group("low"), _to("a", price=PRICE, priority=1), policy=config)
    assert list(_mistakes({"top": top, "low": low})) == [("top", "targets", 0, "group")]


# What models say of their targets


def test_what_a_model_says_holds_for_targets_that_say_nothing() -> None:
    own = {"context_window": 5, "capabilities": ["tools"], "embeddings": False}
    said = {"context_window": 9, "capabilities": {"vision": True}, "embeddings": True}
    models = _flat({"m": _of(_to("a", **own), _to("b"), **said), "top": _of(_group("m"), context_window=1)})
    for name in ("m", "top"):
        first, second = models[name].targets
        assert (first.context_window, first.embeddings) == (5, False)
        assert first.capabilities == {
            "tools": True,
            "vision": False,
            "json_schema": False,
            "reasoning": False,
            "audio": False,
        }
        assert (second.context_window, second.capabilities, second.embeddings) == (9, {"vision": True}, True)


def test_the_nearest_fact_counts() -> None:
    models = _flat(
        {"m": _of(_to("a")), "mid": _of(_group("m"), context_window=7), "top": _of(_group("mid"), context_window=1)}
    )
    assert [models[name].targets[0].context_window for name in ("m", "mid", "top")] == [None, 7, 7]


def test_the_farthest_limit_counts() -> None:
    models = _flat(
        {
            "m": _of(_to("a", timeouts={"idle": 1}), timeouts={"idle": 2, "total": 2, "connect": 2}),
            "top": _of(_group("m"), timeouts={"total": 3}),
        }
    )
    timeouts = [models[name].targets[0].timeouts.model_dump(exclude_none=True) for name in ("m", "top")]
    assert timeouts == [{"idle": 1, "total": 2, "connect": 2}, {"idle": 1, "total": 3, "connect": 2}]


def test_the_farthest_resilience_counts() -> None:
    models = _flat(
        {
            "m": _of(
                _to("a", resilience={"max_queue": 1, "breaker": {"probes": 2}}),
                resilience={"max_queue": 2, "max_in_flight": 3, "breaker": {"probes": 4, "consecutive": 5}},
            ),
            "top": _of(_group("m"), resilience={"max_queue": 6, "breaker": {"consecutive": 7}}),
        }
    )
    found = [models[name].targets[0].resilience.model_dump(exclude_none=True) for name in ("m", "top")]
    assert found == [
        {"max_queue": 1, "max_in_flight": 3, "breaker": {"probes": 2, "consecutive": 5}},
        {"max_queue": 6, "max_in_flight": 3, "breaker": {"probes": 2, "consecutive": 7}},
    ]


# Names


def test_names_from_above() -> None:
    above = _flat({"base": _of(_to("a")), "fast": _of(_to("b"))})
    models = _flat({"x": "fast", "y": _of(_group("base"), fallbacks=["fast"])}, above)
    assert models["x"] is above["fast"]
    assert _weights(models["y"]) == [("a", 1)]
    assert set(models) == {"x", "y"}


def test_a_name_of_this_level_hides_that_from_above() -> None:
    above = _flat({"base": _of(_to("old"))})
    assert _weights(_flat({"base": _of(_to("new")), "x": "base"}, above)["x"]) == [("new", 1)]


@pytest.mark.parametrize("entry", ["fast", _of(_group("fast"), policy="p2c")])
def test_its_own_name_means_that_of_the_level_above(entry: Any) -> None:
    above = _flat({"fast": _of(_to("a"), _to("b"))})
    assert [target.model for target in _flat({"fast": entry}, above)["fast"].targets] == ["a", "b"]


def test_a_providers_model_may_be_given_more_under_its_own_name() -> None:
    models = _flat({"p/a": _of(_group("p/a", weight=9), _to("b"))})
    assert _weights(models["p/a"]) == [("a", 9), ("b", 1)]


def test_a_declared_name_wins_over_a_providers_model() -> None:
    assert _weights(_flat({"p/a": _of(_to("b")), "x": "p/a"})["x"]) == [("b", 1)]


@pytest.mark.parametrize(
    ("models", "keys", "around"),
    [
        ({"a": "a"}, ("a",), "a -> a"),
        ({"a": _of(_group("a"))}, ("a", "targets", 0, "group"), "a -> a"),
        ({"a": "b", "b": "a"}, ("b",), "a -> b -> a"),
        (
            {"smart": _of(_to("x"), _group("fast")), "fast": "smart"},
            ("fast",),
            "smart -> fast -> smart",
        ),
        (
            {"z": "a", "a": _of(_group("b")), "b": _of(_group("c")), "c": _of(_group("q/x"), _group("a"))},
            ("c", "targets", 1, "group"),
            "a -> b -> c -> a",
        ),
        ({"a": _of(_to("x"), fallbacks=["b"]), "b": "a"}, ("b",), "a -> b -> a"),
        ({"a": _of(_to("x"), fallbacks=["a"])}, ("a", "fallbacks", 0), "a -> a"),
    ],
)
def test_cycles(models: Raw, keys: tuple[str | int, ...], around: str) -> None:
    assert _mistakes(models) == {keys: f"expected no cycle, but this one closes {around}"}


def test_cycles_within_a_level_whatever_is_above() -> None:
    above = _flat({"a": _of(_to("x")), "b": _of(_to("y"))})
    assert list(_mistakes({"a": "b", "b": "a"}, above)) == [("b",)]


def test_a_fallback_may_have_the_models_own_targets_among_others() -> None:
    models = _flat({"fast": _of(_to("a"), fallbacks=["all"]), "all": _of(_group("fast"), _to("b"))})
    assert models["fast"].fallbacks == ("all",)
    assert models["all"].fallbacks == ()


@pytest.mark.parametrize(
    ("models", "keys"),
    [
        ({"a": "b"}, ("a",)),
        ({"a": "o/b"}, ("a",)),
        ({"a": "p/"}, ("a",)),
        ({"a": "p"}, ("a",)),
        ({"a": _of(_to("x"), _group("b"))}, ("a", "targets", 1, "group")),
        ({"a": _of(_to("x"), fallbacks=["p/x", "b"])}, ("a", "fallbacks", 1)),
        ({"a": _of({"provider": "o", "model": "x"})}, ("a", "targets", 0, "provider")),
    ],
)
def test_names_that_mean_nothing(models: Raw, keys: tuple[str | int, ...]) -> None:
    what = "provider" if "provider" in keys else "model"
    assert _mistakes(models) == {keys: f"expected the name of a declared {what}"}


def test_all_that_is_wrong_is_said() -> None:
    models = {"a": "b", "b": "a", "c": "d", "e": _of(_group("f"), _to("x"), fallbacks=["g"])}
    assert set(_mistakes(models)) == {("b",), ("c",), ("e", "targets", 0, "group"), ("e", "fallbacks", 0)}


# In a file

HEAD = "providers: {p: {kind: echo}}\nmodels:\n"


def _problem(tmp_path: Path, models: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(HEAD + models)
    with pytest.raises(SettingsError) as raised:
        load(path, env={}, cwd=tmp_path)
    (problem,) = raised.value.problems
    return str(problem).replace(str(path), "c.yaml")


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            "  smart: {targets: [{group: fast}]}\n  fast: smart",
            "models.fast: expected no cycle, but this one closes smart -> fast -> smart (c.yaml:4:3)",
        ),
        (
            "  smart:\n    targets:\n      - {group: fsat}\n  fast: p/x",
            "models.smart.targets[0].group: expected the name of a declared model, got 'fsat'; did you mean `fast`? "
            "(c.yaml:5:10)",
        ),
        ("  fast: [p/x]", "models.fast: expected a mapping, or the name of another model (c.yaml:3:3)"),
        ("  fast: p x", "models.fast: expected a name of 1 to 256 printable characters without spaces (c.yaml:3:3)"),
        (
            "  fast: {targets: [{group: p/x, provider: p}]}",
            "models.fast.targets[0]: expected either `group` or `provider`, not both (c.yaml:3:20)",
        ),
        (
            "  fast: {targets: [{group: p/x, wieght: 2}]}",
            "models.fast.targets[0].wieght: unknown key; did you mean `weight`? (c.yaml:3:33)",
        ),
        (
            "  fast: {targets: [{provider: p, model: x, capabilities: [vison]}]}",
            "models.fast.targets[0].capabilities[0]: expected one of tools, vision, json_schema, reasoning, audio, "
            "got 'vison'; did you mean `vision`? (c.yaml:3:59)",
        ),
        (
            "  fast: {targets: [{provider: p, model: x}], capabilities: {video: true}}",
            "models.fast.capabilities.video: expected one of tools, vision, json_schema, reasoning, audio, got 'video' "
            "(c.yaml:3:61)",
        ),
        (
            "  fast: {targets: [{provider: p, model: x, context_window: 0}]}",
            "models.fast.targets[0].context_window: expected 1 or more, got 0 (c.yaml:3:44)",
        ),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, models: str, said: str) -> None:
    assert _problem(tmp_path, models) == said


X = "{provider: p, model: x}"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            HEAD + "  bad: none\n  also: bad\n  most: {targets: [{group: bad}], fallbacks: [bad, also]}",
            "models.bad",
        ),
        (
            HEAD + f"  bad: {{targets: [{{provider: p}}]}}\n  also: bad\n  most: {{targets: [{X}], fallbacks: [bad]}}",
            "models.bad.targets[0].model",
        ),
        (
            HEAD + f"  a: {{targets: [{X}]}}\n  bad: {{policy: lowest_cost, targets: [{{group: a}}]}}\n"
            "  also: {policy: lowest_cost, targets: [{group: bad}]}\n"
            "  most: {policy: lowest_cost, targets: [{group: also}]}",
            "models.bad.targets[0].group",
        ),
        (
            HEAD + f"  m: {{targets: [{X}]}}\n"
            "tenants: {t: {models: {bad: none, good: m}, teams: {u: {allow: [good, bad], models: {a: bad, b: good, "
            "c: {targets: [{group: bad}], fallbacks: [good]}}, groups: {g: {models: {z: a}}}}}}}",
            "tenants.t.models.bad",
        ),
        (f"provider: {{p: {{kind: echo}}}}\nmodels: {{m: {{targets: [{X}, {X}]}}, n: p/x}}", "provider"),
        (
            f"providers: {{p: {{kind: echo}}}}\nmodles: {{m: {{targets: [{X}]}}}}\n"
            "tenants: {t: {models: {a: m}, allow: [m]}}",
            "modles",
        ),
    ],
)
def test_the_cause_is_told_alone(tmp_path: Path, text: str, path: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load(file, env={}, cwd=tmp_path)
    assert [problem.path for problem in raised.value.problems] == [path]


def test_of_many_names_some_are_told(tmp_path: Path) -> None:
    said = _problem(tmp_path, "".join(f"  m{n}: p/x\n" for n in range(100)) + "  bad: zzz")
    assert "known: m0, m1, " in said
    assert ", m29 and 71 more (c.yaml:103:3)" in said


def test_providers_that_are_wrong_are_told_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("providers: {p: {kind: ecco}}\nmodels: {fast: {targets: [{group: p/x}]}}")
    with pytest.raises(SettingsError) as raised:
        load(path, env={}, cwd=tmp_path)
    assert [problem.path for problem in raised.value.problems] == ["providers.p.kind"]


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        ("p/x", True),
        (_of(_group("x", weight=2), _to("y", capabilities=["tools"])), True),
        (_of(_to("y", capabilities={"tools": False})), True),
        ("", False),
        (3, False),
        (_of({"provider": "p"}), False),
        (_of(_group("x", model="y")), False),
        (_of(_to("y", capabilities=["sight"])), False),
        (_of(_to("y", capabilities={"sight": True})), False),
    ],
)
def test_editors_know_as_much(entry: Any, fits: bool) -> None:
    assert jsonschema.Draft202012Validator(json_schema()).is_valid({"models": {"m": entry}}) is fits


def test_models_of_a_file_are_flat(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(HEAD + "  fast: p/x\n  smart: {targets: [{group: fast}]}")
    models = load(path, env={}, cwd=tmp_path).models
    assert models["smart"].targets == (Target(provider="p", model="x"),)


def test_targets_may_be_made_in_code() -> None:
    entry = {"policy": "priority", "targets": (Target(provider="p", model="x"), GroupTarget(group="fast", priority=1))}
    config: dict[str, Any] = {"providers": {"p": {"kind": "echo"}}, "models": {"fast": "p/y", "smart": entry}}
    assert _tiers(Settings(**config).models["smart"]) == [(0, "x", 1), (1, "y", 1)]


# What reaches the router


def _made(**models: Any) -> Any:
    config: dict[str, Any] = {"providers": {"p": {"kind": "echo"}}, "models": models}
    return root_models(config)


def test_what_is_known_of_a_target() -> None:
    told = {"price": PRICE, "context_window": 9, "region": "eu", "labels": {"gpu": "h100", "tier": "a"}}
    made = _made(m=_of(_to("a", capabilities={"tools": True, "audio": False}, embeddings=False, **told), _to("b")))
    first, second = made.find("m").targets
    assert (first.price, first.region, first.labels) == (
        Price(input=1, output=2),
        "eu",
        (("gpu", "h100"), ("tier", "a")),
    )
    assert (first.profile.has, first.profile.lacks) == (frozenset({"tools"}), frozenset({"audio"}))
    assert (first.profile.context_window, first.profile.embed, first.profile.chat) == (9, False, True)
    assert (second.price, second.region, second.labels) == (None, "", ())
    assert second.profile == Profile()


def test_an_alias_shares_what_is_kept_of_the_model() -> None:
    made = _made(low=_of(_to("a"), fallbacks=["p/z"]), fast="low", top=_of(_group("low")))
    low, fast, top = made.find("low"), made.find("fast"), made.find("top")
    assert (fast.name, low.name) == ("fast", "low")
    assert fast.policy is low.policy
    assert fast.retries is low.retries
    assert fast.targets is low.targets
    assert fast.fallbacks == low.fallbacks == ("p/z",)
    assert top.policy is not low.policy
    assert top.targets[0].health is low.targets[0].health
    assert [group.name for group in made.declared()] == ["low", "fast", "top"]


def test_a_groups_policy_gets_the_flat_weights() -> None:
    made = _made(top=_of(_to("x"), _group("low", weight=2)), low=_of(_to("a"), _to("b")))
    policy = made.find("top").policy
    assert isinstance(policy, policies.Weighted)
    assert [target.weight for target in made.find("top").targets] == [1, 1, 1]


PICTURE = (Message(role="user", parts=(Text("?"), Image("https://a.example/b.png"))),)


async def _asked(request: Request, **models: Any) -> list[str]:
    context = a_context()
    await collect(router.Router(_made(**models), FakeClock()), request, context)
    return [attempt.route for attempt in context.trail]


async def test_a_request_goes_where_it_can_be_answered() -> None:
    top = _of(_group("blind", weight=1000), _group("p/seeing"))
    models = {"top": top, "blind": _of(_to("a"), capabilities=["tools"])}
    assert await _asked(Chat(model="top", messages=PICTURE), **models) == ["p/seeing"]
    with pytest.raises(Failure) as raised:
        await _asked(Chat(model="blind", messages=PICTURE), **models)
    assert (raised.value.kind, raised.value.param) == (Kind.INVALID_REQUEST, "messages")

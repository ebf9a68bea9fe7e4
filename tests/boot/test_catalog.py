"""From settings to the catalog: what each level says arrives where clients belong to it, and what is wrong is told."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmg.boot import build
from llmg.boot.current import Current
from llmg.boot.settings import Settings, SettingsError, load, with_tenants
from llmg.boot.settings.catalog import Upstream
from llmg.boot.settings.levels import mistakes
from llmg.boot.settings.problems import dotted
from llmg.boot.settings.providers import BackendProvider, OpenAIProvider
from llmg.core.context import ADMIN, Principal
from llmg.core.errors import Failure, Kind
from llmg.core.levels import Limits
from llmg.providers.http import Transport
from llmg.routing.models import Group, Target
from llmg.services.admission import Authenticator, digest
from llmg.testing.clocks import FakeClock
from support.gateway import Gateway, chat, in_process
from support.upstream import answering, good, upstream

KEY = "sk-" + "a" * 32
OTHER = "sk-" + "b" * 32


def of_echo(model: str = "m", **fields: Any) -> dict[str, Any]:
    return {"targets": [{"provider": "echo", "model": model}], **fields}


BASE: Mapping[str, Any] = {
    "providers": {"echo": {"kind": "echo"}, "up": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}},
    "models": {"m": of_echo(), "n": of_echo("n"), "big": {"targets": [{"provider": "up", "model": "theirs"}]}},
}


def endpoint(*keys: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {"keys": list(keys) or [{"id": "k1", "key": KEY}], **fields}


def tree(
    web: Mapping[str, Any] | None = None,
    *,
    group: Mapping[str, Any] = {},
    team: Mapping[str, Any] = {},
    tenant: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """One endpoint: tenant `acme`, team `search`, group `prod`, in it group `eu`, in it `web`."""
    inner = {"groups": {"eu": {"endpoints": {"web": web or endpoint()}}}, **group}
    return {"acme": {"teams": {"search": {"groups": {"prod": inner}, **team}}, **tenant}}


def current(tenants: Mapping[str, Any], **config: Any) -> Current:
    settings = with_tenants(Settings(**{**BASE, **config}), tenants, "test")
    return Current(build.Needs(settings, Transport()), FakeClock())


def who(now: Current, key: str = KEY) -> Principal:
    return Authenticator(lambda: now.catalog, FakeClock()).authenticate(key)


def target(group: Group) -> Target:
    (only,) = group.targets
    return only


def test_who_it_is() -> None:
    principal = who(current(tree()))
    assert (principal.tenant, principal.team, principal.groups) == ("acme", "search", ("prod", "eu"))
    assert (principal.endpoint, principal.key_id, principal.roles) == ("web", "k1", frozenset())
    assert [level.name for level in principal.levels] == [
        "",
        "tenants/acme",
        "tenants/acme/teams/search",
        "tenants/acme/teams/search/groups/prod",
        "tenants/acme/teams/search/groups/prod/groups/eu",
        "tenants/acme/teams/search/groups/prod/groups/eu/endpoints/web",
    ]


def test_labels_are_inherited_and_limits_hold_at_each_level() -> None:
    tenants = tree(
        endpoint(labels={"env": "test"}, limits={"max_concurrent": 1}),
        team={"labels": {"team": "search"}, "limits": {"tokens_per_minute": 100}},
    )
    levels = who(current(tenants, labels={"env": "prod"}, limits={"requests_per_minute": 5})).levels
    assert [dict(level.labels) for level in levels] == [
        {"env": "prod"},
        {"env": "prod"},
        {"env": "prod", "team": "search"},
        {"env": "prod", "team": "search"},
        {"env": "prod", "team": "search"},
        {"env": "test", "team": "search"},
    ]
    assert [level.limits for level in levels if level.limits != Limits()] == [
        Limits(requests=5),
        Limits(tokens=100),
        Limits(concurrent=1),
    ]


def test_the_keys_of_the_root_and_of_administrators() -> None:
    admin = "sk-" + "c" * 32
    now = current(tree(), keys={"app": OTHER}, admin={"keys": {"ops": admin}})
    assert (who(now, OTHER).key_id, who(now, OTHER).roles, who(now, OTHER).endpoint) == ("app", frozenset(), "")
    assert (who(now, admin).key_id, who(now, admin).roles) == ("ops", frozenset({ADMIN}))
    for key in (OTHER, admin):
        assert [level.name for level in who(now, key).levels] == [""]
        assert who(now, key).scope.find("m").name == "m"


@pytest.mark.parametrize(
    ("config", "everybody"),
    [
        ({}, True),
        ({"keys": {"app": OTHER}}, False),
        ({"admin": {"keys": {"ops": OTHER}}}, False),
        ({"catalog": {"file": "catalog.yaml"}}, False),
    ],
)
def test_who_needs_no_key(config: Mapping[str, Any], everybody: bool) -> None:
    now = current({}, **config)
    if everybody:
        assert Authenticator(lambda: now.catalog, FakeClock()).authenticate(None).scope is now.scope
    else:
        with pytest.raises(Failure, match="an API key is needed"):
            Authenticator(lambda: now.catalog, FakeClock()).authenticate(None)


def test_tenants_without_a_key_let_nobody_in() -> None:
    with pytest.raises(Failure) as caught:
        Authenticator(lambda: current({"acme": {}}).catalog, FakeClock()).authenticate(None)
    assert caught.value.kind is Kind.UNAUTHENTICATED


def test_a_key_is_good_from_its_hash_until_it_expires_or_is_revoked() -> None:
    new, old, gone = KEY + "1", KEY + "2", KEY + "3"
    keys: list[dict[str, Any]] = [
        {"id": "new", "sha256": hashlib.sha256(new.encode()).hexdigest().upper()},
        {"id": "old", "key": old, "expires": "2025-10-09T10:53:20+02:00"},  # FakeClock's time
        {"id": "gone", "key": gone, "revoked": True},
    ]
    clock = FakeClock()
    catalog = current(tree(endpoint(*keys))).catalog
    find = Authenticator(lambda: catalog, clock).authenticate
    assert find(new).key_id == "new"
    with pytest.raises(Failure, match="has expired"):
        find(old)
    clock = FakeClock(time=clock.time() - 1)
    assert Authenticator(lambda: catalog, clock).authenticate(old).key_id == "old"
    with pytest.raises(Failure, match="has been revoked"):
        find(gone)


def test_models_of_the_nearest_level_through_all_that_are_above() -> None:
    tenants = tree(group={"models": {"m": of_echo("prod's")}}, tenant={"models": {"mine": "n", "m": of_echo("acme's")}})
    scope = who(current(tenants)).scope
    assert target(scope.find("m")).model == "prod's"
    assert target(scope.find("n")).model == "n"
    assert (scope.find("mine").name, target(scope.find("mine")).model) == ("mine", "n")
    assert target(scope.find("echo/any")).model == "any"
    assert sorted(group.name for group in scope.declared()) == ["big", "m", "mine", "n"]


def test_a_definition_means_what_it_meant_where_it_stands() -> None:
    tenants = tree(
        endpoint(models={"n": of_echo("web's"), "m": {"targets": [{"group": "m"}, {"group": "n"}]}}),
        tenant={"models": {"both": {"targets": [{"group": "m"}, {"group": "n"}]}, "m": of_echo("acme's")}},
    )
    scope = who(current(tenants)).scope
    assert [each.model for each in scope.find("both").targets] == ["acme's", "n"]
    assert [each.model for each in scope.find("m").targets] == ["acme's", "web's"]


def test_fallbacks_mean_what_they_meant_where_they_stand() -> None:
    models = {**BASE["models"], "safe": of_echo("safe", fallbacks=["m", "echo/last"]), "m": of_echo(fallbacks=["n"])}
    tenants = tree(
        endpoint(models={"n": of_echo("web's"), "own": of_echo("own", fallbacks=["n", "safe"])}),
        tenant={"allow": ["safe", "echo/*"]},
    )
    scope = who(current(tenants, models=models)).scope
    safe = scope.find("safe")
    assert safe.fallbacks == ("m", "n", "echo/last")
    assert safe.find is not None
    assert [target(safe.find(name)).model for name in safe.fallbacks] == ["m", "n", "last"]
    own = scope.find("own")
    assert own.find is not None
    assert own.fallbacks == ("n", "safe", "m", "echo/last")
    assert target(own.find("n")).model == "web's"


def test_a_list_may_name_what_is_barred_above_already() -> None:
    scope = who(current(tree(team={"allow": ["m", "n"]}, tenant={"allow": ["m"]}))).scope
    assert [group.name for group in scope.declared()] == ["m"]


async def test_a_fallback_may_be_what_could_not_be_asked_for() -> None:
    """It is a part of the model that was allowed."""
    async with upstream(answering(500, {"error": {"message": "no"}})) as broken:
        models = {"a": {"targets": [{"provider": "up", "model": "x"}], "fallbacks": ["m"]}, "m": of_echo()}
        providers = {"up": {"kind": "openai", "base_url": broken.base_url}, "echo": {"kind": "echo"}}
        tenants = tree(tenant={"allow": ["a"], "models": {"mine": "a"}})
        async with in_process({"providers": providers, "models": models, "tenants": tenants}) as gateway:
            for model in ("a", "mine"):
                answer = await gateway.post("/v1/chat/completions", chat(model), {"x-api-key": KEY})
                assert (answer.status, answer.headers["x-llmg-route"]) == (200, "echo/m")
            assert (await gateway.post("/v1/chat/completions", chat("m"), {"x-api-key": KEY})).status == 404


async def test_what_may_be_asked_for_at_each_level_by_its_name() -> None:
    """The very scopes of those who belong there, and where a level says nothing of models, of the level above."""
    now = current(tree(team={"models": {"mine": "n"}}))
    principal = who(now)
    names = [level.name for level in principal.levels]
    assert [*now.catalog.scopes] == names
    assert [now.catalog.scopes[name] for name in names] == [now.scope] * 2 + [principal.scope] * 4
    await now.apply_tenants({"other": {}}, "2")
    assert [*now.catalog.scopes] == ["", "tenants/other"]


async def test_an_administrator_sees_each_level_of_the_catalog_that_is_in_force(tmp_path: Path) -> None:
    store = {"file": str(tmp_path / "catalog.yaml")}
    async with in_process({**BASE, "admin": {"keys": {"ops": OTHER}}, "catalog": store}) as gateway:
        asked = {**chat("mine"), "level": "tenants/acme"}
        header = {"Authorization": f"Bearer {OTHER}", "Content-Type": "application/json"}
        answer = await gateway.post("/v1/routes/explain", asked, header)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "not_found", "level")
        made = await gateway.post("/api/v1/tenants/acme", {"models": {"mine": "n"}}, header)
        assert made.status == 200, made.json()
        answer = await gateway.post("/v1/routes/explain", asked, header)
        assert [one["model"] for one in answer.json()["stages"][0]["targets"]] == ["n"]


def test_lists_of_what_is_allowed_add_up() -> None:
    tenants = tree(team={"allow": ["m", "echo/*", "big"]}, tenant={"allow": ["m", "n", "echo/a*"]})
    scope = who(current(tenants)).scope
    assert [group.name for group in scope.declared()] == ["m"]
    assert target(scope.find("echo/abc")).model == "abc"
    for name in ("n", "big", "echo/b", "up/theirs"):
        with pytest.raises(Failure) as caught:
            scope.find(name)
        assert caught.value.kind is Kind.MODEL_NOT_FOUND


async def test_a_clients_list_of_models_is_its_own() -> None:
    tenants = tree(endpoint(allow=["m"], models={"mine": "n"}))
    config = {**BASE, "keys": {"app": OTHER}, "tenants": tenants}
    async with in_process(config) as gateway:
        assert await _list(gateway, KEY) == ["m", "mine"]
        assert await _list(gateway, OTHER) == ["big", "m", "n"]
        header = {"Authorization": f"Bearer {KEY}"}
        assert (await gateway.ask("GET", "/v1/models/big", headers=header)).status == 404
        refused = await gateway.post("/v1/chat/completions", chat("big"), header)
        assert (refused.status, refused.error["code"]) == (404, "model_not_found")
        answer = await gateway.post("/v1/chat/completions", chat("mine"), header)
        assert (answer.status, answer.json()["model"]) == (200, "mine")


async def _list(gateway: Gateway, key: str) -> list[str]:
    answer = await gateway.ask("GET", "/v1/models", headers={"x-api-key": key})
    return [model["id"] for model in answer.json()["data"]]


async def test_another_address_key_and_headers_for_a_provider() -> None:
    async with upstream(good) as shared, upstream(good) as own:
        provider = {
            "kind": "openai",
            "base_url": shared.base_url,
            "api_key": "root",
            "headers": {"X-A": "1", "X-B": "1"},
        }
        tenants = tree(
            endpoint(upstreams={"up": {"api_key": ""}}),
            team={"upstreams": {"up": {"headers": {"x-b": "2", "X-C": "2"}}}},
            tenant={"upstreams": {"up": {"base_url": own.base_url, "api_key": "acme"}}},
        )
        tenants["acme"]["teams"]["other"] = {
            "groups": {"g": {"endpoints": {"e": endpoint({"id": "k", "key": KEY + "2"})}}}
        }
        config = {**BASE, "providers": {"up": provider, "echo": {"kind": "echo"}}, "keys": {"app": OTHER}}
        async with in_process({**config, "tenants": tenants}) as gateway:
            for key in (KEY, KEY + "2", OTHER):
                for model in ("big", "up/theirs"):
                    answer = await gateway.post("/v1/chat/completions", chat(model), {"x-api-key": key})
                    assert answer.status == 200
        assert [call.headers.get("authorization") for call in shared.calls] == ["Bearer root"] * 2
        assert [call.headers.get("authorization") for call in own.calls] == [None, None, "Bearer acme", "Bearer acme"]
        names = ("x-a", "x-b", "x-c")
        assert [call.headers.get(name) for call in own.calls[:1] for name in names] == [None, "2", "2"]
        assert [call.headers.get(name) for call in own.calls[2:3] for name in names] == [None, None, None]
        assert [call.headers.get(name) for call in shared.calls[:1] for name in names] == ["1", "1", None]


SECRET = OpenAIProvider.model_validate(
    {
        "kind": "openai",
        "base_url": "https://api.example/v1",
        "api_key": "root",
        "organization": "org",
        "headers": {"X-A": "1", "X-B": "1"},
    }
)


@pytest.mark.parametrize(
    ("own", "key", "headers"),
    [
        ({"base_url": "https://API.example:443/v2"}, "root", {"X-A": "1", "X-B": "1", "OpenAI-Organization": "org"}),
        ({"headers": {"x-a": "2"}}, "root", {"x-a": "2", "X-B": "1", "OpenAI-Organization": "org"}),
        ({"base_url": None, "api_key": ""}, None, {"X-A": "1", "X-B": "1", "OpenAI-Organization": "org"}),
        ({"base_url": "https://eu.example/v1", "api_key": "eu"}, "eu", {}),
        ({"base_url": "http://api.example/v1", "api_key": ""}, None, {}),
        ({"base_url": "https://api.example:8443/v1", "headers": {"X-B": "2"}}, None, {"X-B": "2"}),
    ],
)
def test_another_server_gets_no_secret_from_above(
    own: dict[str, Any], key: str | None, headers: dict[str, str]
) -> None:
    said = Upstream.model_validate(own)
    made = said.over(SECRET)
    assert isinstance(made, OpenAIProvider)
    assert made.credentials() == (key, headers)
    assert made.base_url == (own.get("base_url") or SECRET.base_url)
    assert not said.leaves_open(SECRET)


def test_another_backend_gets_no_token_from_above() -> None:
    provider = BackendProvider.model_validate({"kind": "backend", "address": "one:1", "token": "root"})
    for own, token in (({"address": "two:1", "token": "two"}, "two"), ({"address": "ONE:1"}, "root")):
        made = Upstream.model_validate(own).over(provider)
        assert isinstance(made, BackendProvider)
        assert made.token is not None
        assert made.token.get_secret_value() == token
    assert Upstream(address="two:1").leaves_open(provider)
    assert not Upstream(address="two:1", token=None).leaves_open(provider)


@pytest.mark.parametrize(
    ("provider", "levels", "place"),
    [
        ({"api_key": "root"}, {"tenant": {"base_url": "http://b/v1"}}, "tenants.acme"),
        ({"headers": {"x-key": "root"}}, {"tenant": {"base_url": "http://b/v1"}}, "tenants.acme"),
        ({"api_key": "root"}, {"tenant": {"base_url": "http://b/v1", "headers": {}}}, "tenants.acme"),
        ({"api_key": "root"}, {"tenant": {"base_url": "http://b/v1", "headers": {"x-key": "b"}}}, None),
        ({"api_key": "root"}, {"tenant": {"base_url": "http://b/v1", "api_key": ""}}, None),
        ({"api_key": "root"}, {"tenant": {"base_url": "http://a/v2"}}, None),
        ({}, {"tenant": {"base_url": "http://b/v1"}}, None),
        (
            {},
            {"tenant": {"api_key": "acme"}, "team": {"base_url": "http://b/v1"}},
            "tenants.acme.teams.search",
        ),
        (
            {"api_key": "root"},
            {"tenant": {"base_url": "http://b/v1", "api_key": ""}, "team": {"base_url": "http://c/v1"}},
            None,
        ),
        (
            {"api_key": "root"},
            {"tenant": {"base_url": "http://b/v1", "api_key": "b"}, "team": {"base_url": "http://a/v1"}},
            "tenants.acme.teams.search",
        ),
    ],
)
def test_an_address_at_another_server_says_what_it_is_known_by(
    provider: dict[str, Any], levels: dict[str, Any], place: str | None
) -> None:
    tenants = tree(**{name: {"upstreams": {"up": own}} for name, own in levels.items()})
    providers = {**BASE["providers"], "up": {"kind": "openai", "base_url": "http://a/v1", **provider}}
    found = mistakes(Settings(**{**BASE, "providers": providers, "tenants": tenants}))
    assert [dotted(one.keys) for one in found] == ([] if place is None else [f"{place}.upstreams.up.base_url"])


def test_what_is_known_of_a_target_belongs_to_its_provider_as_it_is() -> None:
    override = {"upstreams": {"up": {"api_key": "acme"}}}
    tenants = tree(tenant=override) | {"other": tree(endpoint({"id": "k", "key": OTHER}), tenant=override)["acme"]}
    now = current(tenants, keys={"app": KEY + "3"})
    own, same, root = (who(now, key).scope.find("big") for key in (KEY, OTHER, KEY + "3"))
    assert target(own).health is target(same).health
    assert own.policy is same.policy
    assert target(own).health is not target(root).health
    assert own.policy is not root.policy
    free = who(now, KEY).scope.find("m")
    assert target(free).health is target(who(now, KEY + "3").scope.find("m")).health
    assert free.policy is who(now, KEY + "3").scope.find("m").policy


def test_levels_that_say_nothing_share_their_scope() -> None:
    now = current(tree())
    assert who(now).scope is now.scope


WRONG: list[tuple[dict[str, Any], str, str]] = [
    (tree(tenant={"allow": ["nix"]}), "tenants.acme.allow[0]", "expected the name of a model from the levels above"),
    (
        tree(tenant={"allow": ["m"]}, team={"models": {"x": "n"}}),
        "tenants.acme.teams.search.models.x",
        "expected the name of a declared model, got 'n'",
    ),
    (
        tree(tenant={"allow": ["m"]}, team={"models": {"x": of_echo("n")}}),
        "tenants.acme.teams.search.models.x.targets[0]",
        "expected a model that the levels above allow, got 'echo/n'",
    ),
    (
        tree(tenant={"models": {"x": {"targets": [{"provider": "ecko", "model": "m"}]}}}),
        "tenants.acme.models.x.targets[0].provider",
        "expected the name of a declared provider, got 'ecko'; did you mean `echo`?",
    ),
    (
        tree(tenant={"models": {"x": "y", "y": "x"}}),
        "tenants.acme.models.y",
        "expected no cycle, but this one closes x -> y -> x",
    ),
    (tree(tenant={"models": {"x": "x"}}), "tenants.acme.models.x", "expected no cycle"),
    (tree(tenant={"upstreams": {"upp": {}}}), "tenants.acme.upstreams.upp", "did you mean `up`?"),
    (
        tree(tenant={"upstreams": {"up": {"address": "a:1"}}}),
        "tenants.acme.upstreams.up.address",
        "that of 'up' may be base_url, api_key, headers",
    ),
    (
        tree(tenant={"upstreams": {"echo": {"api_key": "x"}}}),
        "tenants.acme.upstreams.echo.api_key",
        "expected a setting that such a provider has",
    ),
    (
        tree(endpoint({"id": "k", "key": KEY}, {"id": "k", "key": OTHER})),
        "tenants.acme.teams.search.groups.prod.groups.eu.endpoints.web.keys[1].id",
        "expected an id that nobody else has",
    ),
    (
        tree(endpoint({"id": "k", "key": KEY}, {"id": "l", "sha256": digest(KEY).hex()})),
        "tenants.acme.teams.search.groups.prod.groups.eu.endpoints.web.keys[1]",
        "expected a key that nobody else has",
    ),
    (tree(endpoint({"id": "k"})), "web.keys[0]", "expected either `sha256` or `key`"),
    (tree(endpoint({"id": "k", "key": KEY, "sha256": "0" * 64})), "web.keys[0]", "expected either `sha256` or `key`"),
    (tree(endpoint({"id": "k", "sha256": "0" * 63})), "web.keys[0].sha256", "in 64 hexadecimal digits"),
    (
        tree(endpoint({"id": "k", "key": KEY, "expires": "2026-01-01T00:00:00"})),
        "web.keys[0].expires",
        "expected a date and time with its zone",
    ),
    (tree(team={"endpoints": {}}), "tenants.acme.teams.search.endpoints", "unknown key"),
    ({"a/b": {}}, 'tenants["a/b"]', "expected a name of letters"),
]


@pytest.mark.parametrize(("tenants", "path", "words"), WRONG)
def test_what_is_wrong_is_told_with_its_place(tenants: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        with_tenants(Settings(**BASE), tenants, "catalog 7")
    (problem,) = caught.value.problems
    assert problem.path.endswith(path)
    assert words in str(problem)
    assert problem.origin == "catalog 7"
    assert KEY not in str(problem)


def test_an_alias_is_of_one_endpoint() -> None:
    twice = {name: endpoint({"id": "k", "key": KEY + name}, alias="web") for name in ("a", "b")}
    tenants = {"acme": {"teams": {"t": {"groups": {"g": {"endpoints": twice}}}}}}
    with pytest.raises(SettingsError, match="expected an alias that nobody else has, but it is that of tenants"):
        with_tenants(Settings(**BASE), tenants, "test")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_the_line_is_told(tmp_path: Path, suffix: str) -> None:
    config = {**BASE, "tenants": tree(tenant={"allow": ["nix"]})}
    file = tmp_path / f"config.{suffix}"
    file.write_text(yaml.safe_dump(config) if suffix == "yaml" else json.dumps(config, indent=1))
    with pytest.raises(SettingsError) as caught:
        load(file, env={})
    (problem,) = caught.value.problems
    (line,) = [number for number, text in enumerate(file.read_text().splitlines(), 1) if "nix" in text]
    assert problem.origin.startswith(f"{file}:{line}:")


def test_a_key_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**BASE, "tenants": tree(endpoint({"id": "k", "key": "${WEB_KEY}"}))}))
    settings = load(file, env={"WEB_KEY": KEY, "LLMG_TENANTS__ACME__LIMITS__MAX_CONCURRENT": "7"})
    now = Current(build.Needs(settings, Transport()), FakeClock())
    assert who(now).key_id == "k"
    assert who(now).levels[1].limits == Limits(concurrent=7)


def test_not_here_and_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**BASE, "catalog": {"redis": True}, "tenants": tree()}))
    with pytest.raises(SettingsError) as caught:
        load(file, env={})
    assert [(problem.path, problem.message) for problem in caught.value.problems] == [
        ("tenants", "expected no `tenants` here together with `catalog`"),
        ("catalog", "expected `redis`, as the catalog is kept there"),
    ]


def test_limits_of_several_workers_are_counted_in_one_place() -> None:
    settings = Settings(**{**BASE, "server": {"workers": 2}})
    with pytest.raises(SettingsError, match="expected `redis`, as there are limits and several workers"):
        with_tenants(settings, tree(tenant={"limits": {"max_concurrent": 1}}), "test")


def many(endpoints: int) -> dict[str, Any]:
    """A catalog with so many endpoints, in groups of ten, each with two keys."""
    groups: dict[str, Any] = {}
    for number in range(endpoints):
        keys = [
            {"id": "k1", "sha256": f"{2 * number:064x}", "expires": "2027-01-01T00:00:00Z"},
            {"id": "k2", "sha256": f"{2 * number + 1:064x}"},
        ]
        group = groups.setdefault(f"g{number // 10}", {"endpoints": {}, "labels": {"group": str(number // 10)}})
        group["endpoints"][f"e{number}"] = {"alias": f"a{number}", "keys": keys}
    return {"acme": {"teams": {"t": {"groups": groups}}}}


def test_a_look_up_takes_no_longer_among_many() -> None:
    def cost(now: Current) -> float:
        """Of a thousand look-ups, at best."""
        digests = [bytes.fromhex(f"{number:064x}") for number in range(20)] * 50
        find, times = now.catalog.find, []
        for _ in range(20):
            begun = time.process_time()
            for one in digests:
                find(one, 0.0)
            times.append(time.process_time() - begun)
        return min(times)

    assert cost(current(many(10_000))) < 3 * cost(current(many(10)))


def test_many_endpoints_share_what_is_the_same() -> None:
    now = current(many(1000))
    assert len(now.catalog) == 2000
    principals = [now.catalog.find(bytes.fromhex(f"{number:064x}"), 0.0) for number in range(2000)]
    assert {id(principal.scope) for principal in principals} == {id(now.scope)}
    assert len({id(principal.levels) for principal in principals}) == 1000
    assert now.catalog.by_alias["a7"].name == "tenants/acme/teams/t/groups/g0/endpoints/e7"

"""Names that levels define, inherit and bar; scopes; keys."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from llmg.core.context import Principal
from llmg.core.errors import Failure, Kind
from llmg.routing.catalog import Allow, Catalog, Endpoint, Key, Names, Scope
from llmg.routing.models import Group
from llmg.routing.policies.base import First

NOW = 1_760_000_000.0


@pytest.mark.parametrize(
    ("patterns", "name", "matches"),
    [
        (["a"], "a", True),
        (["a"], "ab", False),
        (["a*"], "ab", True),
        (["*"], "openai/any/thing", True),
        (["openai/*"], "openai/gpt-5", True),
        (["openai/*"], "openai2/gpt-5", False),
        (["*-mini"], "openai/gpt-5-mini", True),
        (["*-mini"], "openai/gpt-5-minimal", False),
        (["a", "b*"], "bc", True),
        (["a*b*c"], "abc", True),
        (["a*b*c"], "a-b-b-c", True),
        (["a*b*c"], "acb", False),
        (["a*bc*bc"], "abcbc", True),
        (["a*bc*bc"], "abc", False),
        (["**a**"], "xax", True),
        (["*a*a*a*a*b"], "a" * 100_000, False),  # at once
        (["a.c"], "abc", False),
        (["a?"], "ab", False),
        (["[a]*"], "ab", False),
        ([], "a", False),
    ],
)
def test_what_a_list_allows(patterns: list[str], name: str, matches: bool) -> None:
    assert Allow(patterns)(name) is matches


def level(above: Names[str] | None, allow: list[str] | None = None, **own: str) -> Names[str]:
    return Names("", own, above, None if allow is None else Allow(allow))


def meaning(names: Names[str], name: str) -> str | None:
    home = names.find(name)
    return None if home is None else home.own[name]


def test_the_nearest_level_gives_a_name_its_meaning() -> None:
    root = level(None, fast="root's", slow="root's")
    tenant = level(root, fast="tenant's")
    endpoint = level(level(tenant))
    assert [meaning(names, "fast") for names in (root, tenant, endpoint)] == ["root's", "tenant's", "tenant's"]
    assert meaning(endpoint, "slow") == "root's"
    assert meaning(endpoint, "other") is None


def test_what_a_level_bars_is_barred_below() -> None:
    root = level(None, fast="root's", slow="root's")
    tenant = level(root, ["fast"], big="tenant's")
    team = level(tenant, ["*"])
    assert meaning(tenant, "slow") is None
    assert meaning(team, "slow") is None
    assert [*team] == ["big", "fast"]


def test_a_level_sees_what_it_defines_itself_whatever_it_allows() -> None:
    root = level(None, fast="root's")
    tenant = level(root, [], fast="tenant's")
    assert meaning(tenant, "fast") == "tenant's"
    assert meaning(level(tenant, []), "fast") is None


def test_what_definitions_refer_to() -> None:
    root = level(None, fast="root's", slow="root's")
    tenant = level(root, [], fast="tenant's", other="tenant's")
    assert tenant.refer("fast", by="other") is tenant
    assert tenant.refer("fast", by="fast") is root  # a name within its own definition is that of the level above
    assert tenant.refer("slow", by="fast") is root  # what a level allows is for those who ask, not for itself
    assert level(tenant).refer("slow", by="x") is None
    assert root.refer("fast", by="fast") is None


def test_names_of_providers_pass_every_list_on_the_way() -> None:
    root = level(None)
    tenant = level(root, ["openai/*", "fast"])
    team = level(tenant, ["*/gpt-5"])
    assert [team.allows(name) for name in ("openai/gpt-5", "openai/gpt-4", "other/gpt-5")] == [True, False, False]
    assert root.allows("other/gpt-5")
    assert team.above is tenant


def scope(names: Names[str], direct: Mapping[str, Group] = {}) -> tuple[Scope[str], list[str]]:
    """And what was made in it, in this order."""
    made: list[str] = []

    def make(home: Names[str], name: str) -> Group:
        made.append(home.own[name])
        return group(name)

    return Scope(names, make, direct.get), made


def group(name: str) -> Group:
    return Group(name=name, targets=(), policy=First())


def test_models_are_made_when_they_are_first_asked_for_and_once() -> None:
    found, made = scope(level(None, a="A", b="B"))
    assert made == []
    assert found.find("a") is found.find("a")
    assert made == ["A"]
    assert [each.name for each in found.declared()] == ["a", "b"]
    assert made == ["A", "B"]


def test_what_is_not_allowed_is_as_what_does_not_exist() -> None:
    root = level(None, a="A")
    found, _ = scope(level(root, ["p/x"]), {"p/x": group("p/x"), "p/y": group("p/y")})
    assert found.find("p/x").name == "p/x"
    words = set()
    for name in ("a", "nothing", "p/y", "q/x"):
        with pytest.raises(Failure) as caught:
            found.find(name)
        assert (caught.value.kind, caught.value.param) == (Kind.MODEL_NOT_FOUND, "model")
        words.add(caught.value.message.replace(name, "NAME"))
    assert words == {"the model 'NAME' does not exist"}


def test_whose_key_it_is() -> None:
    who = Principal(endpoint="web", key_id="k1")
    catalog = Catalog(keys={b"1": Key(who), b"2": Key(who, expires=NOW), b"3": Key(who, revoked=True)})
    assert catalog.find(b"1", NOW) is who
    assert catalog.find(b"2", NOW - 0.1) is who
    for digest, words in ((b"2", "expired"), (b"3", "revoked"), (b"4", "not valid")):
        with pytest.raises(Failure, match=words) as caught:
            catalog.find(digest, NOW)
        assert caught.value.kind is Kind.UNAUTHENTICATED
    assert len(catalog) == 3


def test_endpoints_have_names_and_aliases() -> None:
    web = Endpoint(name="tenants/a/.../endpoints/web", alias="web")
    other = Endpoint(name="tenants/a/.../endpoints/other")
    catalog = Catalog(endpoints={each.name: each for each in (web, other)})
    assert catalog.by_alias == {"web": web}
    assert catalog.endpoints[other.name] is other

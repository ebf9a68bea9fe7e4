"""The predecessor's catalog: from a real Redis with its keys, and from its file."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from llmg.stores.predecessor import PREFIX, Imported, from_file, from_keys, from_redis
from llmg.stores.redis import Redis
from support.redis import redis_server


def endpoint(id: str = "web", **fields: Any) -> dict[str, Any]:
    """An endpoint as it stood in Redis."""
    owners = {"tenant": {"id": "acme"}, "team": {"id": "search"}, "group": {"id": "prod"}}
    return {**owners, "id": id, "alias": "", "apiKey": "", **fields}


def upstream(**fields: Any) -> dict[str, Any]:
    """An upstream as it stood in Redis, with everything that its language writes."""
    compatible = {"chat": {"usage": False, "stream": False}, "models": False, "embeddings": False, "images": False}
    empty = {"weight": None, "base_url": "", "api_key": "", "extra_headers": None, "compatible": compatible}
    return {"openai": {**empty, **fields}, "group": None}


def key(text: str) -> dict[str, str]:
    """As it is kept here."""
    digest = sha256(text.encode()).hexdigest()
    return {"id": f"k{digest[:12]}", "sha256": digest}


def imported(values: dict[str, Any]) -> Imported:
    """From keys without Redis."""
    return from_keys({name: json.dumps(value) for name, value in values.items()}, "openai")


def web(found: Imported) -> Any:
    """The endpoint of `endpoint()`."""
    return found.tenants["acme"]["teams"]["search"]["groups"]["prod"]["endpoints"]["web"]


async def test_its_keys_in_redis_become_tenants() -> None:
    values = {
        "api_key:sk-one": endpoint(alias="web-prod", apiKey="sk-one"),
        "api_key:sk-two": endpoint(alias="web-prod", apiKey="sk-two"),
        "alias:web-prod": endpoint(alias="web-prod", apiKey="sk-one"),
        "upstream:endpoint:web": upstream(base_url="http://web/v1", api_key="up-web", extra_headers={"X-A": ["1"]}),
        "upstream:group:prod": upstream(base_url="http://prod/v1", api_key="up-prod"),
        "upstream:team:search": upstream(base_url="http://search/v1"),
        "upstream:tenant:acme": upstream(base_url="http://acme/v1"),
    }
    async with redis_server() as server:
        redis = Redis(server.url)
        await redis.client.set("something:else", "x")
        for name, value in values.items():
            await redis.client.set(f"{PREFIX}{name}", json.dumps(value))
        found = await from_redis(redis.client, "openai")
        await redis.aclose()
    override = {"base_url": "http://web/v1", "api_key": "up-web", "headers": {"X-A": "1"}}
    group = {
        "upstreams": {"openai": {"base_url": "http://prod/v1", "api_key": "up-prod"}},
        "endpoints": {
            "web": {
                "alias": "web-prod",
                "keys": [key("sk-one"), key("sk-two")],
                "upstreams": {"openai": override},
            }
        },
    }
    team = {"upstreams": {"openai": {"base_url": "http://search/v1", "api_key": ""}}, "groups": {"prod": group}}
    tenant = {"upstreams": {"openai": {"base_url": "http://acme/v1", "api_key": ""}}, "teams": {"search": team}}
    assert found == Imported({"acme": tenant}, ())


async def test_thousands_of_keys_are_read() -> None:
    async with redis_server() as server:
        redis = Redis(server.url)
        values = {f"{PREFIX}api_key:sk-{n}": json.dumps(endpoint(f"e{n}")) for n in range(2500)}
        await redis.client.mset(values)
        found = await from_redis(redis.client, "openai")
        await redis.aclose()
    assert len(found.tenants["acme"]["teams"]["search"]["groups"]["prod"]["endpoints"]) == 2500


def test_no_key_is_in_what_comes_of_it() -> None:
    found = imported({"api_key:sk-secret": endpoint(apiKey="sk-secret"), "alias:a": endpoint(apiKey="sk-secret")})
    assert "sk-secret" not in str(found)
    assert web(found)["keys"] == [key("sk-secret")]


def test_an_upstream_held_as_a_whole_and_does_still() -> None:
    found = imported(
        {
            "api_key:k": endpoint(),
            "upstream:tenant:acme": upstream(base_url="http://acme/v1", api_key="up", extra_headers={"X-A": ["1"]}),
            "upstream:endpoint:web": upstream(base_url="http://web/v1"),
        }
    )
    assert web(found)["upstreams"] == {"openai": {"base_url": "http://web/v1", "api_key": ""}}
    where = "tenants/acme/teams/search/groups/prod/endpoints/web"
    assert found.notes == (f"{where}: the headers of the levels above are sent, too",)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"weight": 3}, "the upstream's weight is left out"),
        ({"compatible": {"chat": {"usage": True}}}, "what the upstream is compatible with is left out"),
        ({"base_url": ""}, "the upstream has no address"),
        ({"base_url": "http://user:secret@a/v1"}, "the upstream's address is left out: it is no plain http(s) URL"),
    ],
)
def test_what_an_upstream_can_no_longer_say_is_told(values: dict[str, Any], note: str) -> None:
    found = imported(
        {"api_key:k": endpoint(), "upstream:endpoint:web": upstream(**{"base_url": "http://a/v1", **values})}
    )
    [said] = found.notes
    assert note in said
    assert "secret" not in said


def test_of_several_upstreams_the_first_is_taken() -> None:
    several = {"group": [upstream(base_url=f"http://{host}/v1", api_key=f"sk-{host}") for host in ("one", "two")]}
    found = imported({"api_key:k": endpoint(), "upstream:endpoint:web": several})
    assert web(found)["upstreams"]["openai"] == {"base_url": "http://one/v1", "api_key": "sk-one"}
    [said] = found.notes
    assert said.endswith("left out: two")


def test_an_address_without_a_key_gets_none() -> None:
    """Not the provider's, which is for the provider's own address."""
    found = imported({"api_key:k": endpoint(), "upstream:endpoint:web": upstream(base_url="http://theirs/v1")})
    assert web(found)["upstreams"]["openai"] == {"base_url": "http://theirs/v1", "api_key": ""}


def test_several_values_of_a_header_become_one() -> None:
    headers = {"X-A": ["1", "2"]}
    found = imported(
        {"api_key:k": endpoint(), "upstream:group:prod": upstream(base_url="http://a/v1", extra_headers=headers)}
    )
    group = found.tenants["acme"]["teams"]["search"]["groups"]["prod"]
    assert group["upstreams"]["openai"]["headers"] == {"X-A": "1, 2"}


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"upstream:team:none": upstream()}, "the upstream of team 'none' is left out: no endpoint belongs to that"),
        ({"upstream:planet:mars": upstream()}, "the upstream of planet 'mars' is left out"),
        ({"other:x": {}}, "is not known, and left out"),
        ({"api_key:sk-secret": [1]}, "is no JSON object, and left out"),
        ({"api_key:k": endpoint()}, "there was no upstream, so it was refused"),
        ({"api_key:k": endpoint(upstream=upstream())}, "it was never used"),
        ({"api_key:k": endpoint(tenant={"id": ""})}, "what had no id is named 'default'"),
    ],
)
def test_what_is_left_out_or_different_is_told(values: dict[str, Any], note: str) -> None:
    notes = imported(values).notes
    assert any(note in said for said in notes)
    assert "secret" not in str(notes)


def test_ids_that_are_no_names_become_some() -> None:
    found = imported(
        {"api_key:k": endpoint(tenant={"id": "ACME Inc./EU"}), "api_key:l": endpoint(tenant="ACME Inc. EU")}
    )
    assert len(found.tenants) == 2
    assert all(name.startswith("xACME-Inc.-EU-") for name in found.tenants)
    assert any(said.startswith("the id 'ACME Inc./EU' became ") for said in found.notes)


def test_an_alias_is_of_one_endpoint() -> None:
    found = imported({"api_key:k": endpoint(alias="a"), "api_key:l": endpoint("app", alias="a")})
    group = found.tenants["acme"]["teams"]["search"]["groups"]["prod"]["endpoints"]
    assert [group["web"].get("alias"), group["app"].get("alias")] == ["a", None]
    assert any("its alias 'a' is that of" in said for said in found.notes)


FILE = """
http: {server_addr: ":8080"}
configs:
  upstream: {openai: {base_url: http://all/v1}}
  tenants:
    - id: acme
      upstream: {openai: {base_url: http://acme/v1, api_key: up}}
      teams:
        - id: search
          groups:
            - id: prod
              upstream: {group: [{openai: {base_url: http://prod/v1}}]}
              groups:
                - id: sub
                  endpoints:
                    - {id: app, alias: app-prod, api_key: sk-app}
              endpoints:
                - {id: web, api_key: sk-web}
"""


def test_its_file_becomes_tenants() -> None:
    found = from_file(FILE.encode(), "openai")
    prod = {
        "upstreams": {"openai": {"base_url": "http://prod/v1", "api_key": ""}},
        "groups": {"sub": {"endpoints": {"app": {"alias": "app-prod", "keys": [key("sk-app")]}}}},
        "endpoints": {"web": {"keys": [key("sk-web")]}},
    }
    tenant = {
        "upstreams": {"openai": {"base_url": "http://acme/v1", "api_key": "up"}},
        "teams": {"search": {"groups": {"prod": prod}}},
    }
    assert found.tenants == {"acme": tenant}
    assert found.notes == (
        "the upstream of all tenants is left out: it was never used",
        "tenants/acme/teams/search/groups/prod/groups/sub: the upstream of the group around it holds here, too; there, "
        "it did not",
    )


@pytest.mark.parametrize("text", ["", "tenants: {}", "[1]", "tenants: ["])
def test_a_file_that_is_none_of_its_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a list of `tenants`|neither YAML nor JSON"):
        from_file(text.encode(), "openai")

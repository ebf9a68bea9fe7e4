"""The use cases of the admin API, on a real store in a file."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from llmg.boot.settings.problems import dotted
from llmg.core import levels as core
from llmg.core.context import ADMIN, Context, Principal
from llmg.core.errors import Failure, Kind, invalid
from llmg.ports import AuditEntry, CatalogStore, Conflict, Document
from llmg.services.admin import Admin, Changes, Following, UpstreamChange
from llmg.services.admin.audit import OUTSIDERS
from llmg.services.admin.names import level_path, name_of
from llmg.services.admin.service import new_secret
from llmg.services.admin.tree import changed
from llmg.stores.catalog_file import FileCatalog
from llmg.stores.catalog_fixed import FixedCatalog
from llmg.testing.clocks import FakeClock
from llmg.testing.ids import CountingIds
from support.http import PATIENCE

WEB = "tenants/acme/teams/search/groups/prod/endpoints/web"
NOW = datetime.fromtimestamp(1_760_000_000, UTC)


def asked_by(*roles: str, key: str = "ops") -> Context:
    """A request of somebody with these roles."""
    principal = Principal(key_id=key, roles=frozenset(roles))
    return Context(id="i", request_id="req_1", door="grpc", created=0, principal=principal)


OPS = asked_by(ADMIN)


async def validate(tenants: dict[str, Any]) -> None:
    """A validator that knows one mistake."""
    for tenant, level in tenants.items():
        if "bad" in (level.get("models") or {}):
            raise invalid("there is no model 'x'", dotted(("tenants", tenant, "models", "bad")))


class World:
    """A catalog, and this process's own."""

    def __init__(self, store: CatalogStore) -> None:
        self.store = store
        self.clock = FakeClock()
        self.applied: list[tuple[dict[str, Any], int]] = []
        self.following = Following(store, self.apply)
        self.admin = Admin(store, validate=validate, following=self.following, clock=self.clock, ids=CountingIds())

    async def apply(self, tenants: dict[str, Any], version: int) -> None:
        self.applied.append((tenants, version))

    async def make_web(self) -> None:
        """An endpoint, with all above it."""
        path = level_path(WEB)
        for depth in range(1, len(path) + 1):
            await self.admin.create_level(OPS, name_of(path[:depth]), Changes())

    async def log(self) -> list[tuple[str, str, int, int, str]]:
        """Of the audit log."""
        page = await self.admin.audit(OPS)
        return [(e.method, e.resource, e.before, e.after, e.outcome) for e in page.items]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the catalog is."""
    return tmp_path / "catalog.yaml"


@pytest.fixture
def world(path: Path) -> World:
    """An empty one."""
    return World(FileCatalog(path))


async def refused(doing: Awaitable[object]) -> Failure:
    """What it failed with."""
    with pytest.raises(Failure) as failed:
        await doing
    return failed.value


# --- levels ----------------------------------------------------------------------------------------------------------


async def test_a_level_is_made_read_changed_and_removed(world: World) -> None:
    made = await world.admin.create_level(OPS, "tenants/acme", Changes(allow=("a", "b/*"), labels={"tier": "gold"}))
    assert (made.name, made.allow, made.labels) == ("tenants/acme", ("a", "b/*"), {"tier": "gold"})
    assert await world.admin.get_level(OPS, "tenants/acme") == made
    changes = Changes(models={"fast": "a"}, labels=None, limits={"requests_per_minute": 5})
    updated = await world.admin.update_level(OPS, "tenants/acme", changes, made.etag)
    assert (updated.allow, updated.models, updated.labels) == (("a", "b/*"), {"fast": "a"}, {})
    assert updated.limits == {"requests_per_minute": 5}
    assert updated.etag != made.etag
    await world.admin.delete_level(OPS, "tenants/acme", updated.etag)
    assert (await refused(world.admin.get_level(OPS, "tenants/acme"))).kind is Kind.NOT_FOUND
    assert await world.store.load() == Document(3, {})


async def test_what_was_changed_holds_here_at_once(world: World) -> None:
    await world.admin.create_level(OPS, "tenants/acme", Changes())
    assert world.applied == [({"acme": {}}, 1)]


async def test_a_change_that_this_process_cannot_take_over_is_made_all_the_same(world: World) -> None:
    async def fail(tenants: dict[str, Any], version: int) -> None:
        raise Failure(Kind.INTERNAL, "no")

    following = Following(world.store, fail)
    admin = Admin(world.store, validate=validate, following=following, clock=world.clock, ids=CountingIds())
    await admin.create_level(OPS, "tenants/acme", Changes())
    assert (await world.store.load()).tenants == {"acme": {}}


async def test_levels_are_listed_by_name_in_pages(world: World) -> None:
    for name in ("c", "a", "b"):
        await world.admin.create_level(OPS, f"tenants/{name}", Changes())
    first = await world.admin.list_levels(OPS, "", size=2)
    assert [level.name for level in first.items] == ["tenants/a", "tenants/b"]
    rest = await world.admin.list_levels(OPS, "", size=2, token=first.next)
    assert ([level.name for level in rest.items], rest.next) == (["tenants/c"], "")


async def test_groups_and_endpoints_are_below_a_group(world: World) -> None:
    await world.make_web()
    group = "tenants/acme/teams/search/groups/prod"
    await world.admin.create_level(OPS, f"{group}/groups/sub", Changes())
    await world.admin.create_level(OPS, f"{group}/groups/sub/endpoints/app", Changes(alias="app"))
    found = await world.admin.list_levels(OPS, group)
    assert [level.name for level in found.items] == [WEB, f"{group}/groups/sub"]
    assert (await world.admin.get_level(OPS, f"{group}/groups/sub/endpoints/app")).alias == "app"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "acme",
        "tenants",
        "tenants/",
        "tenants/acme/",
        "teams/search",
        "tenants/a/groups/b",
        "tenants/a/teams/b/endpoints/c",
        "tenants/a b",
        "tenants/-a",
        "tenants/" + "a" * 129,
        f"{WEB}/keys/k1",
        "tenants/acme/teams/t" + "/groups/g" * 40,
    ],
)
async def test_what_names_no_level_is_refused(world: World, name: str) -> None:
    for doing in (
        world.admin.create_level(OPS, name, Changes()),
        world.admin.update_level(OPS, name, Changes()),
        world.admin.delete_level(OPS, name),
    ):
        failure = await refused(doing)
        assert (failure.kind, failure.param) == (Kind.INVALID_REQUEST, "name")
    failure = await refused(world.admin.get_level(OPS, name))
    alias = name and "/" not in name
    assert (failure.kind, failure.param) == (Kind.NOT_FOUND if alias else Kind.INVALID_REQUEST, "name")


async def test_an_endpoint_is_found_by_its_alias(world: World) -> None:
    await world.make_web()
    await world.admin.update_level(OPS, WEB, Changes(alias="web-prod"))
    await world.admin.create_level(OPS, "tenants/web-prod", Changes())  # is called so, and is not meant
    assert (await world.admin.get_level(OPS, "web-prod")).name == WEB
    assert (await refused(world.admin.get_level(asked_by(), "web-prod"))).kind is Kind.PERMISSION_DENIED
    await world.admin.update_level(OPS, WEB, Changes(alias=None))
    failure = await refused(world.admin.get_level(OPS, "web-prod"))
    assert (failure.kind, failure.message) == (Kind.NOT_FOUND, "there is no 'web-prod'")


async def test_a_level_needs_the_one_above_and_a_place(world: World) -> None:
    failure = await refused(world.admin.create_level(OPS, "tenants/acme/teams/search", Changes()))
    assert (failure.kind, failure.message) == (Kind.NOT_FOUND, "there is no 'tenants/acme'")
    await world.admin.create_level(OPS, "tenants/acme", Changes())
    failure = await refused(world.admin.create_level(OPS, "tenants/acme", Changes()))
    assert (failure.kind, failure.message) == (Kind.CONFLICT, "there is a 'tenants/acme' already")


async def test_only_what_was_read_is_changed_when_an_etag_says_so(world: World) -> None:
    read = await world.admin.create_level(OPS, "tenants/acme", Changes())
    await world.admin.update_level(OPS, "tenants/acme", Changes(labels={"a": "b"}))
    for doing in (
        world.admin.update_level(OPS, "tenants/acme", Changes(labels={}), read.etag),
        world.admin.delete_level(OPS, "tenants/acme", read.etag),
    ):
        failure = await refused(doing)
        assert (failure.kind, failure.param) == (Kind.CONFLICT, "etag")
    await world.admin.create_level(OPS, "tenants/acme/teams/t", Changes())  # is no change of the level itself
    again = await world.admin.get_level(OPS, "tenants/acme")
    await world.admin.update_level(OPS, "tenants/acme", Changes(labels=None), again.etag)


async def test_what_has_levels_below_goes_by_force_only(world: World) -> None:
    await world.make_web()
    failure = await refused(world.admin.delete_level(OPS, "tenants/acme"))
    assert (failure.kind, failure.param) == (Kind.CONFLICT, "force")
    await world.admin.delete_level(OPS, "tenants/acme", force=True)
    assert (await world.store.load()).tenants == {}


async def test_what_does_not_hold_as_a_whole_is_not_saved(world: World) -> None:
    await world.admin.create_level(OPS, "tenants/acme", Changes())
    failure = await refused(world.admin.update_level(OPS, "tenants/acme", Changes(models={"bad": "x"})))
    assert (failure.kind, failure.param) == (Kind.INVALID_REQUEST, "models.bad")
    assert await world.store.load() == Document(1, {"acme": {}})
    assert world.applied == [({"acme": {}}, 1)]


async def test_a_mistake_is_told_by_its_place_in_the_level(world: World) -> None:
    failure = await refused(world.admin.create_level(OPS, "tenants/acme.com", Changes(models={"bad": "x"})))
    assert failure.param == "models.bad"


async def test_an_alias_that_another_has_is_told_with_both(world: World) -> None:
    await world.make_web()
    await world.admin.update_level(OPS, WEB, Changes(alias="web"))
    await world.admin.update_level(OPS, WEB, Changes(alias="web", labels={"still": "its own"}))
    for name in ("app", "zzz"):
        other = WEB.replace("/web", f"/{name}")
        failure = await refused(world.admin.create_level(OPS, other, Changes(alias="web")))
        assert (failure.kind, failure.param) == (Kind.CONFLICT, "alias")
        assert f"'{other}'" in failure.message
        assert f"'{WEB}'" in failure.message


async def test_variables_are_not_taken(world: World) -> None:
    changes = Changes(upstreams={"up": UpstreamChange(api_key="${HOME}")})
    failure = await refused(world.admin.create_level(OPS, "tenants/acme", changes))
    assert failure.kind is Kind.INVALID_REQUEST


# --- secrets of upstreams --------------------------------------------------------------------------------------------


async def test_secrets_are_kept_and_never_shown(world: World) -> None:
    override = UpstreamChange(base_url="http://one/v1", api_key="sk-1", headers={"x-team": "t-1", "x-org": "o-1"})
    made = await world.admin.create_level(OPS, "tenants/acme", Changes(upstreams={"up": override}))
    assert not {"sk-1", "t-1", "o-1"} & set(str(made).replace("'", " ").split())
    assert (made.upstreams["up"].has_api_key, made.upstreams["up"].headers) == (True, ("x-org", "x-team"))
    moved = UpstreamChange(base_url="http://one/v2", remove_headers=("X-Org",))
    await world.admin.update_level(OPS, "tenants/acme", Changes(upstreams={"up": moved, "other": UpstreamChange()}))
    held = (await world.store.load()).tenants["acme"]["upstreams"]
    assert held == {"up": {"base_url": "http://one/v2", "api_key": "sk-1", "headers": {"x-team": "t-1"}}, "other": {}}
    without = UpstreamChange(api_key="", headers={"X-Team": "t-2"})
    await world.admin.update_level(OPS, "tenants/acme", Changes(upstreams={"up": without}))
    held = (await world.store.load()).tenants["acme"]["upstreams"]
    assert held == {"up": {"api_key": "", "headers": {"X-Team": "t-2"}}}
    assert not (await world.admin.get_level(OPS, "tenants/acme")).upstreams["up"].has_api_key


ONE = UpstreamChange(base_url="http://one/v1", api_key="sk-1", headers={"x-team": "t-1"})


@pytest.mark.parametrize(
    ("moved", "param"),
    [
        (UpstreamChange(base_url="http://two/v1"), "upstreams.up.api_key"),
        (UpstreamChange(base_url="https://one/v1"), "upstreams.up.api_key"),
        (UpstreamChange(base_url="http://one:8080/v1"), "upstreams.up.api_key"),
        (UpstreamChange(base_url="http://two/v1", headers={"x-team": "mine"}), "upstreams.up.api_key"),
        (UpstreamChange(base_url="http://two/v1", api_key="sk-2"), "upstreams.up.headers"),
        (UpstreamChange(base_url="http://two/v1", api_key="", headers={"x-other": "1"}), "upstreams.up.headers"),
    ],
)
async def test_stored_secrets_are_not_sent_to_an_address_that_is_set_later(
    world: World, moved: UpstreamChange, param: str
) -> None:
    await world.admin.create_level(OPS, "tenants/acme", Changes(upstreams={"up": ONE}))
    failure = await refused(world.admin.update_level(OPS, "tenants/acme", Changes(upstreams={"up": moved})))
    assert (failure.kind, failure.param) == (Kind.INVALID_REQUEST, param)
    assert "sk-" not in failure.message
    assert (await world.store.load()).version == 1


@pytest.mark.parametrize(
    "moved",
    [
        UpstreamChange(base_url="http://ONE:80/other"),
        UpstreamChange(),  # to the provider's own address, which is in the configuration
        UpstreamChange(base_url="http://two/v1", api_key="", remove_headers=("X-Team",)),
        UpstreamChange(base_url="http://two/v1", api_key="sk-1", headers={"X-TEAM": "t-1"}),
    ],
)
async def test_an_address_is_changed_with_the_secrets_for_it(world: World, moved: UpstreamChange) -> None:
    await world.admin.create_level(OPS, "tenants/acme", Changes(upstreams={"up": ONE}))
    changed = await world.admin.update_level(OPS, "tenants/acme", Changes(upstreams={"up": moved}))
    assert changed.upstreams["up"].base_url == moved.base_url


async def test_what_levels_below_have_for_an_address_stays_with_it(world: World) -> None:
    await world.make_web()
    team = "tenants/acme/teams/search"
    await world.admin.update_level(OPS, WEB, Changes(upstreams={"up": UpstreamChange(api_key="sk-web")}))
    elsewhere = Changes(upstreams={"up": UpstreamChange(base_url="http://two/v1", api_key="")})
    for level in ("tenants/acme", team):
        failure = await refused(world.admin.update_level(OPS, level, elsewhere))
        assert (failure.kind, failure.param) == (Kind.INVALID_REQUEST, "upstreams.up")
        assert f"'{WEB}'" in failure.message
    await world.admin.update_level(OPS, WEB, Changes(upstreams={"up": ONE}))  # has an address of its own now
    await world.admin.update_level(OPS, team, elsewhere)
    keyed = Changes(upstreams={"up": UpstreamChange(headers={})})  # by which it would get the team's
    assert (await refused(world.admin.update_level(OPS, WEB, keyed))).param == "upstreams.up.api_key"


async def test_nor_are_they_sent_elsewhere_when_the_address_between_is_taken_away(world: World) -> None:
    await world.make_web()
    team = "tenants/acme/teams/search"
    await world.admin.update_level(OPS, team, Changes(upstreams={"up": ONE}))
    await world.admin.update_level(OPS, WEB, Changes(upstreams={"up": UpstreamChange(api_key="sk-web")}))
    theirs = UpstreamChange(base_url="http://two/v1", api_key="")
    await world.admin.update_level(OPS, "tenants/acme", Changes(upstreams={"up": theirs}))
    for change in (Changes(upstreams=None), Changes(upstreams={})):
        failure = await refused(world.admin.update_level(OPS, team, change))
        assert f"'{WEB}'" in failure.message


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest",
        "http://[fe80::1]/v1",
        "http://[fe80::1%25eth0]/v1",
        "http://[::ffff:169.254.169.254]/v1",
        "http://[fd00:ec2::254]/v1",
        "http://2852039166/v1",
        "http://0xa9.0xfe.43518/v1",
        "http://Metadata.Google.Internal./v1",
        "http://metadata/v1",
        "http://100.100.100.200/v1",
        "http://192.0.0.192/v1",
        "http://[64:ff9b::a9fe:a9fe]/v1",
    ],
)
async def test_link_local_addresses_are_not_taken(world: World, address: str) -> None:
    changes = Changes(upstreams={"up": UpstreamChange(base_url=address, api_key="")})
    failure = await refused(world.admin.create_level(OPS, "tenants/acme", changes))
    assert (failure.kind, failure.param) == (Kind.INVALID_REQUEST, "upstreams.up.base_url")
    backend = Changes(upstreams={"up": UpstreamChange(address="169.254.169.254:80")})
    assert (await refused(world.admin.create_level(OPS, "tenants/acme", backend))).param == "upstreams.up.address"


@pytest.mark.parametrize("name", ["Host", "transfer-encoding"])
async def test_headers_that_would_lead_a_request_elsewhere_are_not_taken(world: World, name: str) -> None:
    changes = Changes(upstreams={"up": UpstreamChange(headers={name: "elsewhere.example"})})
    failure = await refused(world.admin.create_level(OPS, "tenants/acme", changes))
    assert (failure.kind, failure.param) == (Kind.INVALID_REQUEST, f"upstreams.up.headers.{name}")


async def test_other_addresses_are_taken_as_they_are(world: World) -> None:
    for number, host in enumerate(("10.0.0.1", "localhost:8000", "[::1]:8000", "gpu.internal", "169.254.example")):
        changes = Changes(upstreams={"up": UpstreamChange(base_url=f"http://{host}/v1")})
        await world.admin.create_level(OPS, f"tenants/t{number}", changes)


plain = st.dictionaries(st.sampled_from("abc"), st.text("xyz", min_size=1, max_size=3), max_size=3)
overrides = st.dictionaries(
    st.sampled_from(["up", "down"]),
    st.builds(UpstreamChange, base_url=st.none() | st.just("http://a/v1"), api_key=st.none() | st.just("k")),
)
some_changes = st.builds(
    Changes,
    allow=st.just(UNSET) | st.none() | st.lists(st.sampled_from("abc")).map(tuple),
    models=st.just(UNSET) | st.none() | plain,
    upstreams=st.just(UNSET) | st.none() | overrides,
    labels=st.just(UNSET) | st.none() | plain,
    alias=st.just(UNSET) | st.none() | st.just("a"),
)


@given(some_changes, some_changes)
def test_a_change_is_the_same_twice_and_changes_nothing_in_place(before: Changes, change: Changes) -> None:
    node = changed({"teams": {"t": {}}}, before)
    copy = json.loads(json.dumps(node))
    once = changed(node, change)
    assert node == copy
    assert changed(once, change) == once
    for name in ("allow", "models", "upstreams", "labels", "alias"):
        if getattr(change, name) is UNSET:
            assert once.get(name) == node.get(name)
        elif getattr(change, name) is None:
            assert name not in once
    assert once["teams"] == {"t": {}}


# --- keys ------------------------------------------------------------------------------------------------------------


async def held_keys(world: World) -> list[dict[str, Any]]:
    """As the store has them."""
    tenants = (await world.store.load()).tenants
    found: list[dict[str, Any]] = tenants["acme"]["teams"]["search"]["groups"]["prod"]["endpoints"]["web"]["keys"]
    return found


async def test_a_key_is_shown_once_and_kept_as_its_digest(world: World, path: Path) -> None:
    await world.make_web()
    issued = await world.admin.issue_key(OPS, WEB)
    digest = sha256(issued.secret.encode()).hexdigest()
    assert await held_keys(world) == [{"id": "kid1", "sha256": digest}]
    [shown] = await world.admin.list_keys(OPS, WEB)
    assert shown == issued.key
    assert (shown.name, shown.digest, shown.expires) == (f"{WEB}/keys/kid1", digest[:8], None)
    for file in path.parent.iterdir():
        assert issued.secret not in file.read_text()


def test_keys_are_256_random_bits() -> None:
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(key) for key in made} == {5 + 43}
    assert all(key.startswith("llmg_") for key in made)


async def test_a_key_may_have_an_id_and_an_end(world: World) -> None:
    await world.make_web()
    end = NOW + timedelta(days=1)
    issued = await world.admin.issue_key(OPS, WEB, "web-1", end)
    assert (issued.key.name, issued.key.expires) == (f"{WEB}/keys/web-1", end)
    assert (await held_keys(world))[0]["expires"] == "2025-10-10T08:53:20Z"
    again = await refused(world.admin.issue_key(OPS, WEB, "web-1"))
    assert (again.kind, again.param) == (Kind.CONFLICT, "key_id")
    assert (await refused(world.admin.issue_key(OPS, WEB, "web 1"))).param == "key_id"
    assert (await refused(world.admin.issue_key(OPS, WEB, "web-2", NOW))).param == "expire_time"


async def test_only_endpoints_have_keys(world: World) -> None:
    await world.make_web()
    for doing in (
        world.admin.issue_key(OPS, "tenants/acme"),
        world.admin.list_keys(OPS, "tenants/acme"),
    ):
        assert (await refused(doing)).param == "parent"
    for name in (f"{WEB}/keys/", f"{WEB}/k1", "tenants/acme/keys/k1"):
        assert (await refused(world.admin.revoke_key(OPS, name))).kind is Kind.INVALID_REQUEST
    missing = await refused(world.admin.revoke_key(OPS, f"{WEB}/keys/none"))
    assert (missing.kind, missing.message) == (Kind.NOT_FOUND, f"there is no '{WEB}/keys/none'")


async def test_a_rotated_key_is_good_for_a_while_still(world: World) -> None:
    await world.make_web()
    old = await world.admin.issue_key(OPS, WEB, "old")
    new = await world.admin.rotate_key(OPS, old.key.name, grace=60.0, id="new")
    assert new.secret != old.secret
    keys = await world.admin.list_keys(OPS, WEB)
    assert [(key.name.rpartition("/")[2], key.expires) for key in keys] == [
        ("old", NOW + timedelta(seconds=60)),
        ("new", None),
    ]


async def test_rotation_makes_no_key_live_longer(world: World) -> None:
    await world.make_web()
    await world.admin.issue_key(OPS, WEB, "old", NOW + timedelta(seconds=10))
    await world.admin.rotate_key(OPS, f"{WEB}/keys/old", grace=60.0)
    assert (await world.admin.list_keys(OPS, WEB))[0].expires == NOW + timedelta(seconds=10)
    world.clock.advance(11)
    failure = await refused(world.admin.rotate_key(OPS, f"{WEB}/keys/old"))
    assert (failure.kind, failure.param) == (Kind.CONFLICT, "name")
    for grace in (-1.0, float("nan"), 1e12):
        assert (await refused(world.admin.rotate_key(OPS, f"{WEB}/keys/old", grace))).param == "grace"


async def test_a_revoked_key_is_listed_as_such_and_not_rotated(world: World) -> None:
    await world.make_web()
    await world.admin.issue_key(OPS, WEB, "k")
    assert (await world.admin.revoke_key(OPS, f"{WEB}/keys/k")).revoked
    assert [key.revoked for key in await world.admin.list_keys(OPS, WEB)] == [True]
    assert (await refused(world.admin.rotate_key(OPS, f"{WEB}/keys/k"))).param == "name"


async def test_a_deleted_key_is_gone(world: World) -> None:
    await world.make_web()
    for id in ("a", "b"):
        await world.admin.issue_key(OPS, WEB, id)
    await world.admin.delete_key(OPS, f"{WEB}/keys/a")
    assert [key.name for key in await world.admin.list_keys(OPS, WEB)] == [f"{WEB}/keys/b"]
    assert (await refused(world.admin.delete_key(OPS, f"{WEB}/keys/a"))).kind is Kind.NOT_FOUND


# --- who may, and what is logged -------------------------------------------------------------------------------------


async def test_only_admins_may(world: World) -> None:
    await world.make_web()
    await world.admin.issue_key(OPS, WEB, "k")
    before = await world.log()
    nobody = asked_by("reader")
    for doing in (
        world.admin.get_level(nobody, WEB),
        world.admin.list_levels(nobody, ""),
        world.admin.create_level(nobody, "tenants/other", Changes()),
        world.admin.update_level(nobody, WEB, Changes(alias="x")),
        world.admin.delete_level(nobody, WEB),
        world.admin.list_keys(nobody, WEB),
        world.admin.issue_key(nobody, WEB),
        world.admin.rotate_key(nobody, f"{WEB}/keys/k"),
        world.admin.revoke_key(nobody, f"{WEB}/keys/k"),
        world.admin.delete_key(nobody, f"{WEB}/keys/k"),
        world.admin.audit(nobody),
    ):
        assert (await refused(doing)).kind is Kind.PERMISSION_DENIED
    log = await world.log()
    assert log[11:] == before
    assert {entry[2:] for entry in log[:11]} == {(5, 5, "permission_denied")}


async def test_each_change_is_logged_once_and_so_is_what_was_refused(world: World) -> None:
    await world.admin.create_level(OPS, "tenants/acme", Changes())
    await refused(world.admin.create_level(OPS, "tenants/acme", Changes()))
    await world.admin.update_level(OPS, "tenants/acme", Changes(labels={"a": "b"}))
    await refused(world.admin.delete_level(OPS, "tenants/none"))
    assert await world.log() == [
        ("DeleteLevel", "tenants/none", 2, 2, "not_found"),
        ("UpdateLevel", "tenants/acme", 1, 2, "ok"),
        ("CreateLevel", "tenants/acme", 1, 1, "conflict"),
        ("CreateLevel", "tenants/acme", 0, 1, "ok"),
    ]
    [entry] = (await world.admin.audit(OPS, 1)).items
    assert (entry.actor, entry.request_id, entry.time) == ("ops", "req_1", world.clock.time())


def audited(logs: Sequence[Any]) -> list[dict[str, Any]]:
    """Of what was logged, what is in the audit log."""
    return [entry for entry in logs if entry["event"] == "audit"]


async def test_each_call_leaves_one_line_whatever_becomes_of_it(world: World) -> None:
    with structlog.testing.capture_logs() as logs:
        await world.make_web()
        issued = await world.admin.issue_key(OPS, WEB, "k1")
        rotated = await world.admin.rotate_key(OPS, issued.key.name, id="k2")
        await world.admin.list_keys(OPS, WEB)
        await world.admin.list_levels(OPS, "")
        await world.admin.get_level(OPS, WEB)
        await world.admin.audit(OPS)
        await refused(world.admin.get_level(OPS, "tenants/none"))
        await refused(world.admin.update_level(OPS, "no level", Changes()))
        await refused(world.admin.list_keys(asked_by(key=""), WEB))
    lines = audited(logs)[4:]
    assert [(line["method"], line["resource"], line["outcome"], line["actor"]) for line in lines] == [
        ("IssueKey", f"{WEB}/keys/k1", "ok", "ops"),
        ("RotateKey", f"{WEB}/keys/k1", "ok", "ops"),
        ("ListKeys", WEB, "ok", "ops"),
        ("ListLevels", "", "ok", "ops"),
        ("GetLevel", WEB, "ok", "ops"),
        ("ListAuditEntries", "", "ok", "ops"),
        ("GetLevel", "tenants/none", "not_found", "ops"),
        ("UpdateLevel", "no level", "invalid_request", "ops"),
        ("ListKeys", WEB, "permission_denied", "anonymous"),
    ]
    assert {(line["door"], line["request_id"]) for line in lines} == {("grpc", "req_1")}
    assert not any(key.secret in str(logs) for key in (issued, rotated))
    kept = [(method, outcome) for method, _, _, _, outcome in await world.log()]
    assert kept[:4] == [
        ("ListKeys", "permission_denied"),
        ("UpdateLevel", "invalid_request"),
        ("RotateKey", "ok"),
        ("IssueKey", "ok"),
    ]


async def test_an_entry_names_what_is_different_and_no_values(world: World) -> None:
    await world.make_web()
    one = Changes(
        allow=("a",),
        models={"fast": "a", "gpt-4.1": "a"},
        limits={"requests_per_minute": 60, "max_concurrent": 2},
        upstreams={"up": ONE, "other": UpstreamChange()},
    )
    two = Changes(
        allow=None,
        models={"fast": "b", "gpt-4.1": "a"},
        limits={"requests_per_minute": 61, "max_concurrent": 2},
        labels={"tier": "gold"},
        upstreams={"up": UpstreamChange(base_url="http://one/v1", api_key="sk-2", headers={"x-team": "t-2"})},
        alias="web",
    )
    await world.admin.update_level(OPS, WEB, one)
    await world.admin.update_level(OPS, WEB, two)
    issued = await world.admin.issue_key(OPS, WEB, "k1")
    await world.admin.rotate_key(OPS, issued.key.name, id="k2")
    await world.admin.delete_level(OPS, "tenants/acme", force=True)
    entries = [entry.changed for entry in (await world.admin.audit(OPS, 5)).items]
    assert entries[::-1] == [
        (
            *("allow", "models.fast", 'models["gpt-4.1"]', "upstreams.up.base_url", "upstreams.up.api_key"),
            *("upstreams.up.headers.x-team", "upstreams.other", "limits.requests_per_minute", "limits.max_concurrent"),
        ),
        (
            *("allow", "models.fast", "upstreams.up.api_key", "upstreams.up.headers.x-team", "upstreams.other"),
            *("limits.requests_per_minute", "labels.tier", "alias"),
        ),
        ("keys.k1",),
        ("keys.k1.expires", "keys.k2"),
        (),
    ]


async def test_very_many_differences_are_counted(world: World) -> None:
    await world.admin.create_level(OPS, "tenants/acme", Changes(labels={f"l{n}": "x" for n in range(150)}))
    [entry] = (await world.admin.audit(OPS)).items
    assert (len(entry.changed), entry.changed[-1]) == (101, "and 50 more")


async def test_whose_key_it_was_is_told_by_its_path(world: World) -> None:
    level = core.Level(name=WEB)
    web = Principal(key_id="ops", endpoint="web", levels=(core.Level(name=""), level))
    app = Principal(key_id="ops", levels=(core.Level(name=""),))
    for principal in (web, app, Principal()):
        await refused(world.admin.audit(Context(id="i", request_id="r", door="d", created=0, principal=principal)))
    actors = [entry.actor for entry in (await world.admin.audit(OPS)).items]
    assert actors == ["anonymous", "keys/ops", f"{WEB}/keys/ops"]


async def test_whoever_is_no_administrator_cannot_fill_the_store(world: World) -> None:
    nobody = asked_by()
    with structlog.testing.capture_logs() as logs:
        for _ in range(OUTSIDERS + 5):
            await refused(world.admin.revoke_key(nobody, "x" * 100_000))
    assert len(audited(logs)) == OUTSIDERS + 5
    assert max(len(line["resource"]) for line in audited(logs)) < 10_000
    assert len(await world.log()) == OUTSIDERS
    world.clock.advance(2 * 60.0 / OUTSIDERS)
    for _ in range(5):
        await refused(world.admin.revoke_key(nobody, "x"))
    await world.admin.create_level(OPS, "tenants/acme", Changes())  # that of administrators is always kept
    assert len(await world.log()) == OUTSIDERS + 2 + 1


async def test_a_call_that_was_made_is_logged_once_and_one_failure_may_be_of_many(world: World) -> None:
    failure = invalid("unreadable")
    with structlog.testing.capture_logs() as logs:
        made = asked_by(ADMIN)
        await refused(world.admin.get_level(made, "tenants/none"))
        await world.admin.refused(made, "GetLevel", "tenants/none", failure)
        for _ in range(2):
            await world.admin.refused(asked_by(ADMIN), "GetLevel", "", failure)
    assert [line["outcome"] for line in audited(logs)] == ["not_found", "invalid_request", "invalid_request"]


async def left(world: World, begun: asyncio.Event) -> None:
    """Somebody asks for a change, and leaves when that event is set."""
    asking = asyncio.create_task(world.admin.create_level(asked_by(ADMIN), "tenants/acme", Changes()))
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_change_whose_client_leaves_is_made_and_logged_as_made(world: World) -> None:
    saving, saved = asyncio.Event(), asyncio.Event()

    class Slow(Contested):
        async def save(self, document: Document, entry: AuditEntry) -> None:
            saving.set()
            await saved.wait()
            await super().save(document, entry)

    slow = World(Slow(world.store, 0, world.store.load))
    with structlog.testing.capture_logs() as logs:
        await left(slow, saving)
        assert audited(logs) == []
        saved.set()
        await slow.admin.aclose(PATIENCE)
    assert [line["outcome"] for line in audited(logs)] == ["ok"]
    assert slow.applied == [({"acme": {}}, 1)]
    assert [entry[4] for entry in await world.log()] == ["ok"]


async def test_a_change_that_takes_too_long_at_the_end_is_given_up(world: World) -> None:
    saving = asyncio.Event()

    class Stuck(Contested):
        async def save(self, document: Document, entry: AuditEntry) -> None:
            saving.set()
            await asyncio.Event().wait()

    stuck = World(Stuck(world.store, 0, world.store.load))
    with structlog.testing.capture_logs() as logs:
        await left(stuck, saving)
        await stuck.admin.aclose(0.01)
    assert [line["outcome"] for line in audited(logs)] == ["cancelled"]
    await stuck.admin.aclose()  # nothing is left


async def test_a_change_that_is_saved_is_logged_as_made_though_the_process_ends(world: World) -> None:
    taking = asyncio.Event()

    async def apply(tenants: dict[str, Any], version: int) -> None:
        taking.set()
        await asyncio.Event().wait()

    world.admin._following = Following(world.store, apply)
    with structlog.testing.capture_logs() as logs:
        await left(world, taking)
        await world.admin.aclose(0.01)
    assert [(line["outcome"], line["before"], line["after"]) for line in audited(logs)] == [("ok", 0, 1)]
    assert (await world.store.load()).version == 1


async def test_a_log_that_cannot_be_written_changes_no_answer(world: World) -> None:
    async def away(entry: AuditEntry) -> None:
        raise Failure(Kind.UPSTREAM_UNAVAILABLE, "away")

    store = Contested(world.store, 0, world.store.load)
    store.append = away  # type: ignore[attr-defined]
    with structlog.testing.capture_logs() as logs:
        assert (await refused(World(store).admin.audit(asked_by()))).kind is Kind.PERMISSION_DENIED
    assert [entry["event"] for entry in logs] == ["audit", "the audit log can't be written"]


async def test_reads_show_what_is_in_force(world: World, path: Path) -> None:
    async def apply(tenants: dict[str, Any], version: int) -> None:
        await validate(tenants)

    following = Following(world.store, apply)
    admin = Admin(world.store, validate=validate, following=following, clock=world.clock, ids=CountingIds())
    await admin.create_level(OPS, "tenants/acme", Changes(labels={"a": "b"}))
    good = path.read_bytes()
    for bad in (b"tenants: {acme: {models: {bad: x}}}", b"", b"tenants: ["):
        path.write_bytes(bad)
        assert (await admin.get_level(OPS, "tenants/acme")).labels == {"a": "b"}
    failure = await refused(admin.update_level(OPS, "tenants/acme", Changes(labels={})))
    assert (failure.kind, "neither YAML nor JSON" in failure.message) == (Kind.CONFLICT, True)
    path.unlink()
    assert [level.name for level in (await admin.list_levels(OPS, "")).items] == ["tenants/acme"]
    failure = await refused(admin.create_level(OPS, "tenants/other", Changes()))
    assert (failure.kind, "is gone" in failure.message) == (Kind.CONFLICT, True)
    log = [(entry.method, entry.outcome) for entry in (await admin.audit(OPS)).items]
    assert log[:2] == [("CreateLevel", "conflict"), ("UpdateLevel", "conflict")]
    path.write_bytes(good)
    await admin.create_level(OPS, "tenants/other", Changes())


async def test_nothing_in_force_is_no_empty_catalog(path: Path) -> None:
    path.write_text("tenants: [")
    failure = await refused(World(FileCatalog(path)).admin.list_levels(OPS, ""))
    assert "neither YAML nor JSON" in failure.message


async def test_that_of_the_configuration_file_can_be_read_only() -> None:
    world = World(FixedCatalog(lambda: {"acme": {"labels": {"a": "b"}}}))
    assert (await world.admin.get_level(OPS, "tenants/acme")).labels == {"a": "b"}
    failure = await refused(world.admin.delete_level(OPS, "tenants/acme"))
    assert failure.kind is Kind.METHOD_NOT_ALLOWED
    assert "edit it there" in failure.message


# --- many at once ----------------------------------------------------------------------------------------------------


class Contested:
    """A store before which somebody else is faster a few times."""

    def __init__(self, inner: CatalogStore, times: int, rival: Callable[[], Awaitable[object]]) -> None:
        self._inner = inner
        self._times = times
        self._rival = rival

    async def save(self, document: Document, entry: AuditEntry) -> None:
        if self._times:
            self._times -= 1
            await self._rival()
        await self._inner.save(document, entry)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_a_change_is_made_again_on_what_others_saved(world: World, path: Path) -> None:
    rival = World(FileCatalog(path))
    names = iter("abc")

    async def faster() -> None:
        await rival.admin.create_level(OPS, f"tenants/{next(names)}", Changes())

    slow = World(Contested(world.store, 3, faster))
    await slow.admin.create_level(OPS, "tenants/mine", Changes())
    assert set((await world.store.load()).tenants) == {"a", "b", "c", "mine"}
    assert next((e[1], e[3]) for e in await world.log()) == ("tenants/mine", 4)


async def test_what_others_have_made_meanwhile_is_no_longer_made(world: World, path: Path) -> None:
    rival = World(FileCatalog(path))

    async def faster() -> None:
        await rival.admin.create_level(OPS, "tenants/acme", Changes(labels={"of": "rival"}))

    slow = World(Contested(world.store, 1, faster))
    failure = await refused(slow.admin.create_level(OPS, "tenants/acme", Changes()))
    assert failure.kind is Kind.CONFLICT
    assert (await world.admin.get_level(OPS, "tenants/acme")).labels == {"of": "rival"}


async def test_who_is_never_fast_enough_is_told_to_come_again(world: World) -> None:
    async def conflict() -> None:
        raise Conflict

    slow = World(Contested(world.store, 10**9, conflict))
    failure = await refused(slow.admin.create_level(OPS, "tenants/acme", Changes()))
    assert (failure.kind, failure.retry_after) == (Kind.OVERLOADED, 1.0)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=20))
async def test_no_change_of_many_is_lost(tmp_path_factory: pytest.TempPathFactory, who: list[int]) -> None:
    path = tmp_path_factory.mktemp("many") / "catalog.json"
    worlds = [World(FileCatalog(path)) for _ in range(4)]
    await worlds[0].make_web()
    issued = await asyncio.gather(
        *(worlds[number].admin.issue_key(OPS, WEB, f"k{place}") for place, number in enumerate(who))
    )
    keys = await worlds[0].admin.list_keys(OPS, WEB)
    assert {key.name for key in keys} == {one.key.name for one in issued}
    log = await worlds[0].log()
    assert [entry[3] for entry in log] == list(range(len(who) + 4, 0, -1))
    assert {entry[4] for entry in log} == {"ok"}


# --- following -------------------------------------------------------------------------------------------------------


async def test_what_another_process_changes_is_taken_over(world: World, path: Path) -> None:
    other = World(FileCatalog(path, interval=0.01))
    await other.following.refresh()
    seen = asyncio.Event()

    async def apply(tenants: dict[str, Any], version: int) -> None:
        if tenants:
            seen.set()

    following = Following(other.store, apply)
    running = asyncio.create_task(following.run())
    await world.admin.create_level(OPS, "tenants/acme", Changes())
    async with asyncio.timeout(1.0):
        await seen.wait()
    assert following.version == 1
    running.cancel()


async def test_a_store_that_is_away_just_then_is_asked_again(world: World) -> None:
    await world.admin.create_level(OPS, "tenants/acme", Changes())
    away = 3

    async def load() -> Document:
        nonlocal away
        away -= 1
        if away:
            raise Failure(Kind.UPSTREAM_UNAVAILABLE, "away")
        return await world.store.load()

    seen = asyncio.Event()

    async def apply(tenants: dict[str, Any], version: int) -> None:
        seen.set()

    store = Contested(world.store, 0, load)
    store.load = load  # type: ignore[attr-defined]
    running = asyncio.create_task(Following(store, apply, again=0.001).run())
    async with asyncio.timeout(PATIENCE):
        await seen.wait()
    running.cancel()


async def test_after_one_that_cannot_be_taken_over_the_next_one_is(world: World, path: Path) -> None:
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def apply(tenants: dict[str, Any], version: int) -> None:
        seen.put_nowait(version)
        if version == 1:
            raise ZeroDivisionError

    running = asyncio.create_task(Following(FileCatalog(path, interval=0.01), apply).run())
    async with asyncio.timeout(PATIENCE):
        for version, name in ((0, ""), (1, "tenants/a"), (2, "tenants/b")):
            if name:
                await world.admin.create_level(OPS, name, Changes())
            assert await seen.get() == version
    running.cancel()


async def test_what_was_refused_is_taken_over_when_it_fits(world: World, path: Path) -> None:
    fits = False
    asked: asyncio.Queue[int] = asyncio.Queue()

    async def apply(tenants: dict[str, Any], version: int) -> None:
        asked.put_nowait(version)
        if not fits:
            raise Failure(Kind.INVALID_REQUEST, "it does not fit")

    following = Following(FileCatalog(path, interval=0.01), apply)
    running = asyncio.create_task(following.run())
    async with asyncio.timeout(PATIENCE):
        assert await asked.get() == 0
        await world.admin.create_level(OPS, "tenants/acme", Changes())
        assert await asked.get() == 1
        fits = True
        following.reconsider()
        assert await asked.get() == 1
        while following.version != 1:
            await asyncio.sleep(0)
        following.reconsider()  # there is nothing more to take over
        await world.admin.create_level(OPS, "tenants/other", Changes())
        assert await asked.get() == 2
    running.cancel()


async def test_a_watch_that_fails_is_begun_again(world: World) -> None:
    """Else a key that is revoked elsewhere would be good here for ever."""
    begun: asyncio.Queue[int] = asyncio.Queue()

    async def watch(seen: int, changed: Callable[[int], Awaitable[None]]) -> NoReturn:
        begun.put_nowait(seen)
        raise ZeroDivisionError

    store = Contested(world.store, 0, world.store.load)
    store.watch = watch  # type: ignore[attr-defined]
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(Following(store, world.apply, again=0.001).run())
        async with asyncio.timeout(PATIENCE):
            assert [await begun.get() for _ in range(3)] == [-1, -1, -1]
        running.cancel()
    assert {entry["log_level"] for entry in logs} == {"error"}


async def test_what_cannot_be_taken_over_leaves_all_as_it_was(world: World) -> None:
    await world.admin.create_level(OPS, "tenants/acme", Changes())
    tried = asyncio.Event()

    async def apply(tenants: dict[str, Any], version: int) -> None:
        tried.set()
        raise Failure(Kind.INTERNAL, "no")

    following = Following(world.store, apply)
    await refused(following.refresh())
    assert (following.version, tried.is_set()) == (-1, True)


def test_the_service_knows_no_transport_and_no_store() -> None:
    code = (
        "import sys, llmg.services.admin; print([m for m in ('grpc', 'redis', 'yaml', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

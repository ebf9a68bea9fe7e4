"""The admin API by gRPC, by the gateway's REST, and by GraphQL, over one catalog in a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
import structlog.testing
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from starlette.types import ASGIApp
from strawberry.schema.config import StrawberryConfig
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from llmg.boot.container import Draining
from llmg.boot.serve import listen
from llmg.boot.settings.problems import dotted
from llmg.core.context import ADMIN, SILENT, Principal
from llmg.core.errors import Failure, Kind, invalid
from llmg.doors.gateway.app import make_gateway
from llmg.doors.gateway.inprocess import InProcess
from llmg.doors.graphql.admin import AdminMutation, AdminQuery
from llmg.doors.graphql.app import make_graphql
from llmg.doors.graphql.asking import Asking
from llmg.doors.graphql.asking import Gateway as GraphQLGateway
from llmg.doors.graphql.scalars import SCALARS
from llmg.doors.graphql.schema import Schema, make_schema
from llmg.doors.grpc.admin import Administration, refusals
from llmg.doors.grpc.reading import Reading
from llmg.doors.grpc.served import DESCRIPTORS, handlers
from llmg.doors.grpc.services import Inference, decoder
from llmg.doors.http.server import HttpServer
from llmg.gatewayapi.v1 import admin_pb2 as pb
from llmg.gatewayapi.v1.admin_pb2_grpc import AdminServiceStub, add_AdminServiceServicer_to_server
from llmg.ports import AuditEntry
from llmg.services.admin import Admin, Following
from llmg.services.admission import Admission
from llmg.stores.catalog_file import FileCatalog
from llmg.testing.clocks import FakeClock
from llmg.testing.ids import CountingIds
from llmg.testing.scripted import Scripted
from llmg.wire.transcoding.bindings import bindings
from support.doors import refusal, some_models
from support.gateway import Gateway
from support.http import PATIENCE, Response

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["AdminService"]
WEB = "tenants/acme/teams/search/groups/prod/endpoints/web"
ABOVE = ("tenants/acme", "tenants/acme/teams/search", "tenants/acme/teams/search/groups/prod", WEB)
OPS = "ops-key-0123456789"
NOBODY = "other-key-0123456789"


class Known:
    """Knows an administrator, and somebody who is none."""

    def authenticate(self, key: str | None, /) -> Principal:
        """See Authenticator."""
        if key == OPS:
            return Principal(key_id="ops", roles=frozenset({ADMIN}))
        if key == NOBODY:
            return Principal(key_id="nobody")
        raise Failure(Kind.UNAUTHENTICATED, "the API key is not valid")


class World:
    """The use cases, and what the doors need besides."""

    def __init__(self, path: Path) -> None:
        self.store = FileCatalog(path)
        self.applied: list[int] = []
        self.clock = FakeClock()
        following = Following(self.store, self._apply)
        self.admin = Admin(
            self.store, validate=self._validate, following=following, clock=self.clock, ids=CountingIds()
        )
        self.admission = Admission(Known(), self.clock, CountingIds(), SILENT)

    def inference(self, door: str) -> Inference:
        """Of a door."""
        return Inference(Scripted([]), self.admission, door)

    async def kept(self) -> Sequence[AuditEntry]:
        """The log, as the store has it."""
        return (await self.store.entries(1000, ""))[0]

    async def _apply(self, tenants: dict[str, Any], version: int) -> None:
        self.applied.append(version)

    async def _validate(self, tenants: dict[str, Any]) -> None:
        acme = tenants.get("acme", {})
        for name in ("bad", "bad.one"):
            if name in (acme.get("models") or {}):
                raise invalid("there is no model 'x'", dotted(("tenants", "acme", "models", name)))
        if "bad" in (acme.get("allow") or ()):
            raise invalid("there is no model 'bad'", "tenants.acme.allow[0]")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty catalog."""
    return World(tmp_path / "catalog.yaml")


# --- gRPC ------------------------------------------------------------------------------------------------------------


class Client:
    """A stub whose calls show a key."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self._channel: Any = channel
        self._stub: Any = AdminServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {key}"),)

    async def __call__(self, method: str, request: Any) -> Any:
        return await getattr(self._stub, method)(request, metadata=self._metadata)

    async def raw(self, method: str, message: bytes) -> Any:
        """A call with any bytes."""
        return await self._channel.unary_unary(f"/{DESCRIPTOR.full_name}/{method}")(message, metadata=self._metadata)

    async def make_web(self) -> None:
        """An endpoint, with all above it."""
        for name in ABOVE:
            await self("CreateLevel", pb.CreateLevelRequest(level=pb.Level(name=name)))


@asynccontextmanager
async def by_grpc(world: World, key: str = OPS) -> AsyncIterator[Client]:
    """A real server, and a client."""
    server = grpc.aio.server()
    inference = world.inference("grpc")
    reading: Any = Reading(server, inference, PATIENCE)
    add_AdminServiceServicer_to_server(Administration(inference, world.admin), reading, decoder)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(channel, key)
    finally:
        await server.stop(0)


async def test_a_level_by_grpc(world: World) -> None:
    level = pb.Level(
        name="tenants/acme",
        allow=pb.AllowList(models=["a", "openai/*"]),
        upstreams={"up": pb.UpstreamOverride(base_url="http://a/v1", api_key="sk-secret", headers={"x-a": "h-secret"})},
        limits=pb.LevelLimits(requests_per_minute=60),
        labels={"env": "prod"},
    )
    level.models.update({"fast": "a", "smart": {"targets": [{"provider": "up", "model": "m", "weight": 2.5}]}})
    async with by_grpc(world) as call:
        made = (await call("CreateLevel", pb.CreateLevelRequest(level=level))).level
        got = (await call("GetLevel", pb.GetLevelRequest(name="tenants/acme"))).level
    assert got == made
    assert "secret" not in str(got)
    override = got.upstreams["up"]
    assert (override.has_api_key, list(override.header_names), override.base_url) == (True, ["x-a"], "http://a/v1")
    assert (list(got.allow.models), got.limits.requests_per_minute, dict(got.labels)) == (
        ["a", "openai/*"],
        60,
        {"env": "prod"},
    )
    assert not got.limits.HasField("tokens_per_minute")
    assert (await world.store.load()).tenants["acme"] == {
        "allow": ["a", "openai/*"],
        "models": {"fast": "a", "smart": {"targets": [{"provider": "up", "model": "m", "weight": 2.5}]}},
        "upstreams": {"up": {"base_url": "http://a/v1", "api_key": "sk-secret", "headers": {"x-a": "h-secret"}}},
        "limits": {"requests_per_minute": 60},
        "labels": {"env": "prod"},
    }


async def test_numbers_of_a_model_stay_whole(world: World) -> None:
    level = pb.Level(name="tenants/acme")
    level.models.update({"m": {"targets": [{"weight": 3, "tools": True, "context_window": None}]}})
    async with by_grpc(world) as call:
        await call("CreateLevel", pb.CreateLevelRequest(level=level))
    [target] = (await world.store.load()).tenants["acme"]["models"]["m"]["targets"]
    assert [(name, type(value)) for name, value in sorted(target.items())] == [
        ("context_window", type(None)),
        ("tools", bool),
        ("weight", int),
    ]


async def test_a_change_by_grpc_is_of_what_is_given_or_named(world: World) -> None:
    async with by_grpc(world) as call:
        level = pb.Level(name="tenants/acme", labels={"a": "b"}, allow=pb.AllowList())
        await call("CreateLevel", pb.CreateLevelRequest(level=level))
        change = pb.Level(name="tenants/acme", limits=pb.LevelLimits(max_concurrent=2))
        changed = (await call("UpdateLevel", pb.UpdateLevelRequest(level=change))).level
        assert dict(changed.labels) == {"a": "b"}
        assert changed.HasField("allow")  # and nothing may be asked for
        assert list(changed.allow.models) == []
        mask = FieldMask(paths=["labels", "allow"])
        changed = (await call("UpdateLevel", pb.UpdateLevelRequest(level=change, update_mask=mask))).level
        assert (dict(changed.labels), changed.HasField("allow"), changed.limits.max_concurrent) == ({}, False, 2)


async def test_keys_by_grpc(world: World) -> None:
    async with by_grpc(world) as call:
        await call.make_web()
        end = datetime.fromtimestamp(world.clock.time() + 3600, UTC)
        first = await call("IssueKey", pb.IssueKeyRequest(parent=WEB, key_id="k1", expire_time=end))
        assert first.secret.startswith("llmg_")
        assert first.key.expire_time.ToDatetime(UTC) == end
        rotate = pb.RotateKeyRequest(name=f"{WEB}/keys/k1", grace=Duration(seconds=60), key_id="k2")
        second = await call("RotateKey", rotate)
        assert second.key.name == f"{WEB}/keys/k2"
        revoked = (await call("RevokeKey", pb.RevokeKeyRequest(name=second.key.name))).key
        assert revoked.revoked
        found = (await call("ListKeys", pb.ListKeysRequest(parent=WEB))).keys
        assert [(key.name.rpartition("/")[2], key.revoked) for key in found] == [("k1", False), ("k2", True)]
        assert found[0].expire_time.seconds == int(world.clock.time()) + 60
        await call("DeleteKey", pb.DeleteKeyRequest(name=second.key.name))
        assert [key.name for key in (await call("ListKeys", pb.ListKeysRequest(parent=WEB))).keys] == [f"{WEB}/keys/k1"]


async def test_levels_and_the_log_in_pages_by_grpc(world: World) -> None:
    async with by_grpc(world) as call:
        for name in ("c", "a", "b"):
            await call("CreateLevel", pb.CreateLevelRequest(level=pb.Level(name=f"tenants/{name}")))
        first = await call("ListLevels", pb.ListLevelsRequest(page_size=2))
        rest = await call("ListLevels", pb.ListLevelsRequest(page_token=first.next_page_token))
        assert [level.name for level in (*first.levels, *rest.levels)] == ["tenants/a", "tenants/b", "tenants/c"]
        newest = await call("ListAuditEntries", pb.ListAuditEntriesRequest(page_size=1))
        older = await call("ListAuditEntries", pb.ListAuditEntriesRequest(page_token=newest.next_page_token))
    [entry] = newest.entries
    assert (entry.actor, entry.method, entry.resource, entry.outcome) == ("ops", "CreateLevel", "tenants/b", "ok")
    assert (entry.version_before, entry.version_after, entry.time.seconds) == (2, 3, int(world.clock.time()))
    assert [e.version_after for e in older.entries] == [2, 1]


@pytest.mark.parametrize(
    ("method", "request_", "kind", "field"),
    [
        ("GetLevel", pb.GetLevelRequest(name="acme"), Kind.NOT_FOUND, "name"),
        ("GetLevel", pb.GetLevelRequest(name="teams/acme"), Kind.INVALID_REQUEST, "name"),
        ("CreateLevel", pb.CreateLevelRequest(level=pb.Level(name=WEB)), Kind.CONFLICT, "level.name"),
        ("GetLevel", pb.GetLevelRequest(name="tenants/none"), Kind.NOT_FOUND, "name"),
        ("CreateLevel", pb.CreateLevelRequest(), Kind.INVALID_REQUEST, "level.name"),
        (
            "UpdateLevel",
            pb.UpdateLevelRequest(level=pb.Level(name=WEB), update_mask=FieldMask(paths=["keys"])),
            Kind.INVALID_REQUEST,
            "update_mask",
        ),
        ("UpdateLevel", pb.UpdateLevelRequest(level=pb.Level(name=WEB, etag="x")), Kind.CONFLICT, "level.etag"),
        ("DeleteLevel", pb.DeleteLevelRequest(name="tenants/acme"), Kind.CONFLICT, "force"),
        ("IssueKey", pb.IssueKeyRequest(parent="tenants/acme"), Kind.INVALID_REQUEST, "parent"),
        (
            "IssueKey",
            pb.IssueKeyRequest(parent=WEB, expire_time={"seconds": -(10**12)}),
            Kind.INVALID_REQUEST,
            "expire_time",
        ),
        ("RotateKey", pb.RotateKeyRequest(name=f"{WEB}/keys/k"), Kind.NOT_FOUND, "name"),
        ("ListLevels", pb.ListLevelsRequest(page_size=-1), Kind.INVALID_REQUEST, "page_size"),
        ("ListAuditEntries", pb.ListAuditEntriesRequest(page_token="x"), Kind.INVALID_REQUEST, "page_token"),
    ],
)
async def test_what_grpc_refuses_names_the_field(
    world: World, method: str, request_: Any, kind: Kind, field: str
) -> None:
    async with by_grpc(world) as call:
        await call.make_web()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(method, request_)
    told = refusal(failed.value)
    assert (told.kind, told.field) == (kind, field)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"models": {"bad": "x"}}, "level.models.bad"),
        ({"models": {"bad.one": "x"}}, 'level.models["bad.one"]'),
        ({"allow": pb.AllowList(models=["bad"])}, "level.allow.models[0]"),
    ],
)
async def test_a_mistake_in_a_setting_is_told_in_the_message_s_terms(
    world: World, settings: dict[str, Any], field: str
) -> None:
    level = pb.Level(name="tenants/acme", **settings)
    async with by_grpc(world) as call:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call("CreateLevel", pb.CreateLevelRequest(level=level))
    assert refusal(failed.value).field == field


def lines(logs: Sequence[Any]) -> list[tuple[str, str, str, str, str, str]]:
    """The audit log: method, of what, what became of it, who, by which door, which request."""
    names = ("method", "resource", "outcome", "actor", "door", "request_id")
    found = [entry for entry in logs if entry["event"] == "audit"]
    return [tuple(entry[name] for name in names) for entry in found]


def request_of(method: str) -> tuple[Any, str]:
    """One of a method, and of what it is."""
    request = getattr(pb, f"{method}Request")()
    target = f"{WEB}/keys/k" if method in ("RotateKey", "RevokeKey", "DeleteKey") else WEB
    if "level" in request.DESCRIPTOR.fields_by_name:
        request.level.name = target
        return request, target
    for name in ("name", "parent"):
        if name in request.DESCRIPTOR.fields_by_name:
            setattr(request, name, target)
            return request, target
    return request, ""


@pytest.mark.parametrize(
    ("key", "kind", "actor"),
    [(NOBODY, Kind.PERMISSION_DENIED, "keys/nobody"), ("no-such-key", Kind.UNAUTHENTICATED, "anonymous")],
)
async def test_who_may_not_by_grpc(world: World, key: str, kind: Kind, actor: str) -> None:
    async with by_grpc(world, key) as call:
        for method in DESCRIPTOR.methods:
            request, target = request_of(method.name)
            with structlog.testing.capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(method.name, request)
            assert refusal(failed.value).kind is kind
            id = dict(failed.value.trailing_metadata() or ())["x-request-id"]
            known = target if key == NOBODY else ""  # of who has no key, no message is read
            assert lines(logs) == [(method.name, known, kind.value, actor, "grpc", id)]
            assert key not in str(logs)
    assert (await world.store.load()).version == 0
    kept = [(entry.method, entry.outcome, entry.actor, entry.door) for entry in await world.kept()]
    assert kept == [(method.name, kind.value, actor, "grpc") for method in reversed(DESCRIPTOR.methods)]


async def test_each_call_by_grpc_is_logged_once(world: World) -> None:
    async with by_grpc(world) as call:
        await call.make_web()
        await call("IssueKey", pb.IssueKeyRequest(parent=WEB, key_id="k"))
        for method in DESCRIPTOR.methods:
            with structlog.testing.capture_logs() as logs:
                try:
                    await call(method.name, request_of(method.name)[0])
                    outcome = "ok"
                except grpc.aio.AioRpcError as error:
                    outcome = refusal(error).kind.value
            [line] = lines(logs)
            assert (line[0], line[2:5]) == (method.name, (outcome, "ops", "grpc"))


async def test_what_cannot_be_read_by_grpc_is_logged(world: World) -> None:
    async with by_grpc(world) as call:
        with structlog.testing.capture_logs() as logs:
            with pytest.raises(grpc.aio.AioRpcError):
                await call.raw("UpdateLevel", b"\xff")
            update = pb.UpdateLevelRequest(level=pb.Level(name=WEB), update_mask=FieldMask(paths=["keys"]))
            with pytest.raises(grpc.aio.AioRpcError):
                await call("UpdateLevel", update)
    assert [line[:5] for line in lines(logs)] == [
        ("UpdateLevel", "", "invalid_request", "ops", "grpc"),
        ("UpdateLevel", WEB, "invalid_request", "ops", "grpc"),
    ]


async def test_an_entry_by_grpc_says_by_which_door_and_what_is_different(world: World) -> None:
    level = pb.Level(name="tenants/acme", limits=pb.LevelLimits(requests_per_minute=60))
    level.upstreams["up"].api_key = "sk-secret"
    async with by_grpc(world) as call:
        await call("CreateLevel", pb.CreateLevelRequest(level=level))
        [entry] = (await call("ListAuditEntries", pb.ListAuditEntriesRequest())).entries
    assert (entry.door, list(entry.changed)) == ("grpc", ["upstreams.up.api_key", "limits.requests_per_minute"])


# --- the gateway -----------------------------------------------------------------------------------------------------


class Rest(Gateway):
    """A client of the gateway that shows a key, and sends and takes JSON."""

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's body. Asserts that all went well."""
        response = await self.send(method, path, body)
        assert response.status == 200, response.body
        return json.loads(response.body)

    async def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, key: str = OPS
    ) -> Response:
        """The answer. A body that is bytes is sent as it is."""
        shown = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-request-id": "mine"}
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return await self.ask(method, path, data, {**shown, **(headers or {})})


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[Rest]:
    """A real server, and a client."""
    server = HttpServer(
        app,
        max_headers=1 << 16,
        header_timeout=10.0,
        body_timeout=10.0,
        keep_alive=10.0,
        backlog=16,
        access_log=False,
        draining=Draining(),
    )
    listener = listen(("127.0.0.1", 0), 16)
    await server.start(listener)
    try:
        yield Rest(listener.getsockname())
    finally:
        await server.drain(0)


def by_rest(world: World) -> AbstractAsyncContextManager[Rest]:
    """The gateway before the service alone."""
    inference = world.inference("gateway")
    upstream = InProcess(handlers(inference, some_models(()), world.admin), world.admission)
    refused = refusals(inference, world.admin)
    return serving(make_gateway(upstream=upstream, bindings=bindings(DESCRIPTORS), max_body=4096, refused=refused))


async def test_the_admin_api_as_rest(world: World) -> None:
    async with by_rest(world) as rest:
        for name in ABOVE:
            await rest.call("POST", f"/api/v1/{name}", {})
        await rest.call("PATCH", f"/api/v1/{WEB}", {"alias": "web-prod"})
        assert (await rest.call("GET", "/api/v1/aliases/web-prod"))["name"] == WEB
        settings = {"models": {"fast": "a"}, "limits": {"requestsPerMinute": "60"}, "allow": {"models": ["a"]}}
        level = await rest.call("PATCH", "/api/v1/tenants/acme", settings)
        assert (level["models"], level["allow"], level["limits"]["requestsPerMinute"]) == (
            {"fast": "a"},
            {"models": ["a"]},
            "60",
        )
        assert await rest.call("GET", "/api/v1/tenants/acme") == level
        level = await rest.call("PATCH", "/api/v1/tenants/acme?updateMask=models,allow", {})
        assert ("models" in level, "allow" in level, "limits" in level) == (False, False, True)
        listed = await rest.call("GET", "/api/v1/tenants")
        assert [one["name"] for one in listed["levels"]] == ["tenants/acme"]
        below = await rest.call("GET", "/api/v1/tenants/acme/teams/search/groups/prod:levels")
        assert [one["name"] for one in below["levels"]] == [WEB]
        issued = await rest.call("POST", f"/api/v1/{WEB}:issueKey", {"keyId": "k1"})
        assert (issued["key"]["name"], issued["secret"][:5]) == (f"{WEB}/keys/k1", "llmg_")
        rotated = await rest.call("POST", f"/api/v1/{WEB}/keys/k1:rotateKey", {"grace": "60s", "keyId": "k2"})
        revoked = await rest.call("POST", f"/api/v1/{rotated['key']['name']}:revokeKey", {})
        assert revoked["revoked"] is True
        keys = (await rest.call("GET", f"/api/v1/{WEB}:keys"))["keys"]
        assert [key["name"].rpartition("/")[2] for key in keys] == ["k1", "k2"]
        await rest.call("POST", f"/api/v1/{WEB}/keys/k2:deleteKey", {})
        refused = await rest.send("DELETE", "/api/v1/tenants/acme")
        assert (refused.status, json.loads(refused.body)["errors"][0]["source"]) == (409, {"parameter": "force"})
        await rest.call("DELETE", "/api/v1/tenants/acme?force=true")
        entries = (await rest.call("GET", "/api/v1/auditEntries?pageSize=2"))["entries"]
        assert [(entry["method"], entry["outcome"]) for entry in entries] == [
            ("DeleteLevel", "ok"),
            ("DeleteLevel", "conflict"),
        ]


@pytest.mark.parametrize(
    ("method", "path", "given", "rpc", "target", "outcome", "actor"),
    [
        ("GET", WEB, {"key": "none"}, "GetLevel", WEB, "unauthenticated", "anonymous"),
        ("PATCH", WEB, {"key": "none", "body": {}}, "UpdateLevel", WEB, "unauthenticated", "anonymous"),
        ("GET", "tenants", {"key": NOBODY}, "ListLevels", "", "permission_denied", "keys/nobody"),
        ("POST", f"{WEB}:issueKey", {"key": NOBODY, "body": {}}, "IssueKey", WEB, "permission_denied", "keys/nobody"),
        ("PATCH", WEB, {"body": b"{"}, "UpdateLevel", WEB, "invalid_request", "ops"),
        ("PATCH", WEB, {"body": {"limit": 1}}, "UpdateLevel", WEB, "invalid_request", "ops"),
        ("PATCH", WEB, {"key": NOBODY, "body": b"{"}, "UpdateLevel", WEB, "invalid_request", "keys/nobody"),
        ("DELETE", f"{WEB}?forced=true", {}, "DeleteLevel", WEB, "invalid_request", "ops"),
        ("GET", "tenants?pageSize=x", {}, "ListLevels", "", "invalid_request", "ops"),
        (
            *("PATCH", WEB, {"body": {}, "headers": {"content-type": "text/plain"}}),
            *("UpdateLevel", WEB, "unsupported_media_type", "ops"),
        ),
        ("PATCH", WEB, {"body": b" " * 5000}, "UpdateLevel", WEB, "request_too_large", "ops"),
        (
            *("GET", WEB, {"headers": {"grpc-metadata-grpc-x": "1"}}),
            *("GetLevel", WEB, "invalid_request", "ops"),
        ),
        ("GET", WEB, {"headers": {"x-llmg-timeout": "no"}}, "GetLevel", WEB, "invalid_request", "ops"),
        ("GET", WEB, {}, "GetLevel", WEB, "not_found", "ops"),
        ("POST", "tenants/acme", {"body": {}}, "CreateLevel", "tenants/acme", "ok", "ops"),
    ],
)
async def test_each_call_by_rest_is_logged_once(
    world: World, method: str, path: str, given: dict[str, Any], rpc: str, target: str, outcome: str, actor: str
) -> None:
    async with by_rest(world) as rest:
        with structlog.testing.capture_logs() as logs:
            response = await rest.send(method, f"/api/v1/{path}", **given)
    if outcome != "ok":
        assert json.loads(response.body)["errors"][0]["code"] == outcome
    assert lines(logs) == [(rpc, target, outcome, actor, "gateway", "mine")]
    kept = [(entry.method, entry.outcome, entry.actor, entry.door) for entry in await world.kept()]
    is_kept = actor != "ops" or method != "GET"
    assert kept == ([(rpc, outcome, actor, "gateway")] if is_kept else [])


async def test_what_the_gateway_refuses_of_other_services_is_not_in_the_log(world: World) -> None:
    async with by_rest(world) as rest:
        with structlog.testing.capture_logs() as logs:
            assert (await rest.send("POST", "/api/v1/chat/completions", b"{")).status == 400
            assert (await rest.send("GET", "/api/v1/models", key="none")).status == 401
            assert (await rest.send("PUT", f"/api/v1/{WEB}", {})).status == 405
    assert lines(logs) == []


# --- GraphQL ---------------------------------------------------------------------------------------------------------


async def by_graphql(world: World, query: str, key: str = OPS, **variables: Any) -> Any:
    """The result of an operation. Raises no errors: they are in the result."""
    schema = Schema(AdminQuery, AdminMutation, config=StrawberryConfig(scalar_map=SCALARS))
    gateway = GraphQLGateway(Scripted([]), some_models(), world.admission, admin=world.admin)
    asking = Asking(gateway, "req_1", lambda _: None)
    asking.principal = world.admission.principal(None, key)
    return await schema.execute(query, variable_values=variables, context_value=asking)


LEVEL = """{ name etag allow models labels { name value } alias limits { requestsPerMinute maxConcurrent }
  overrides { provider baseUrl hasApiKey hasToken headers } }"""


async def test_the_admin_api_by_graphql(world: World) -> None:
    make = "mutation ($name: String!, $settings: LevelInput!) { createLevel(name: $name, settings: $settings) " + LEVEL
    make += " }"
    settings: dict[str, Any] = {
        "allow": ["a"],
        "models": {"fast": "a"},
        "overrides": [{"provider": "up", "apiKey": "sk-secret", "headers": [{"name": "x-a", "value": "h-secret"}]}],
        "limits": {"requestsPerMinute": 5_000_000_000},
        "labels": [{"name": "env", "value": "prod"}],
    }
    result = await by_graphql(world, make, name="tenants/acme", settings=settings)
    assert result.errors is None
    level = result.data["createLevel"]
    assert "secret" not in str(result.data)
    assert (level["allow"], level["models"], level["alias"]) == (["a"], {"fast": "a"}, None)
    assert level["overrides"][0]["headers"] == ["x-a"]
    assert level["limits"] == {"requestsPerMinute": 5_000_000_000, "maxConcurrent": None}
    for name in ABOVE[1:]:
        assert (await by_graphql(world, make, name=name, settings={})).errors is None
    change = 'mutation ($etag: String!) { updateLevel(name: "tenants/acme", settings: {allow: null}, etag: $etag) '
    result = await by_graphql(world, f"{change}{LEVEL} }}", etag=level["etag"])
    assert (result.data["updateLevel"]["allow"], result.data["updateLevel"]["models"]) == (None, {"fast": "a"})
    keys = """mutation ($web: String!, $k1: String!) {
      issueKey(endpoint: $web, keyId: "k1", expireTime: "2999-01-01T00:00:00Z") { secret key { name expireTime } }
      rotateKey(name: $k1, grace: 60, keyId: "k2") { secret key { name } }
      revokeKey(name: $k1) { revoked }
      deleteKey(name: $k1) }"""
    result = await by_graphql(world, keys, web=WEB, k1=f"{WEB}/keys/k1")
    assert result.errors is None
    assert result.data["issueKey"]["key"]["expireTime"] == "2999-01-01T00:00:00+00:00"
    assert result.data["revokeKey"] == {"revoked": True}
    read = """query ($web: String!) { level(name: $web) { name }
      levels(first: 1) { levels { name } next }
      endpointKeys(endpoint: $web) { name digest revoked }
      auditEntries(first: 1) { entries { actor method versionAfter outcome time } next } }"""
    result = await by_graphql(world, read, web=WEB)
    assert result.errors is None
    assert result.data["levels"] == {"levels": [{"name": "tenants/acme"}], "next": None}
    assert [key["name"] for key in result.data["endpointKeys"]] == [f"{WEB}/keys/k2"]
    [entry] = result.data["auditEntries"]["entries"]
    assert (entry["actor"], entry["method"], entry["outcome"]) == ("ops", "DeleteKey", "ok")
    gone = await by_graphql(world, 'mutation { deleteLevel(name: "tenants/acme", force: true) }')
    assert gone.data == {"deleteLevel": "tenants/acme"}


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ('{ level(name: "acme") { name } }', "NOT_FOUND", "name"),
        ('{ level(name: "teams/acme") { name } }', "INVALID_REQUEST", "name"),
        ('{ endpointKeys(endpoint: "tenants/a") { name } }', "INVALID_REQUEST", "endpoint"),
        ("{ levels(first: -1) { next } }", "INVALID_REQUEST", "first"),
        ('{ auditEntries(after: "x") { next } }', "INVALID_REQUEST", "after"),
        (
            'mutation { createLevel(name: "tenants/acme", settings: {models: {bad: "x"}}) { name } }',
            "INVALID_REQUEST",
            "settings.models.bad",
        ),
        (
            'mutation { createLevel(name: "tenants/acme", settings: {allow: ["bad"]}) { name } }',
            "INVALID_REQUEST",
            "settings.allow[0]",
        ),
        (
            'mutation { createLevel(name: "tenants/acme", settings: {models: 1}) { name } }',
            "INVALID_REQUEST",
            "settings.models",
        ),
        ('mutation { issueKey(endpoint: "WEB", keyId: "a b") { secret } }', "INVALID_REQUEST", "keyId"),
        (
            'mutation { issueKey(endpoint: "WEB", expireTime: "2999-01-01T00:00:00") { secret } }',
            "INVALID_REQUEST",
            "expireTime",
        ),
        ('mutation { revokeKey(name: "WEB/keys/k") { name } }', "NOT_FOUND", "name"),
    ],
)
async def test_what_graphql_refuses_names_the_argument(world: World, query: str, code: str, param: str) -> None:
    result = await by_graphql(world, query.replace("WEB", WEB))
    [error] = result.errors
    assert (error.extensions["code"], error.extensions["param"]) == (code, param)


def graphql(world: World) -> AbstractAsyncContextManager[Rest]:
    """The whole door."""
    return serving(
        make_graphql(
            pipeline=Scripted([]), models=some_models(()), admission=world.admission, admin=world.admin, max_body=5000
        )
    )


REVOKE = 'mutation { revokeKey(name: "WEB/keys/k") { name } }'


@pytest.mark.parametrize(
    ("query", "given", "logged"),
    [
        (REVOKE, {"key": "none"}, []),
        ("{ models { id } }", {}, []),
        (REVOKE, {"key": NOBODY}, [("RevokeKey", f"{WEB}/keys/k", "permission_denied", "keys/nobody")]),
        (REVOKE, {}, [("RevokeKey", f"{WEB}/keys/k", "not_found", "ops")]),
        (REVOKE.replace("name }", "nome }"), {}, [("RevokeKey", "", "invalid_request", "ops")]),
        (REVOKE.replace('"WEB/keys/k"', "1"), {}, [("RevokeKey", "", "invalid_request", "ops")]),
        (REVOKE.replace("}", ""), {}, []),
        (REVOKE + " " * 5000, {}, []),
        (REVOKE, {"variables": 1}, []),
        ('{ model(id: "deleteLevel my levels, say at what level { levels }") { nome } }', {}, []),
        ("{ models { levels: nome } } # { levels { next } }", {}, []),
        ("query A { levels { nome } } query B { models { id } }", {}, []),
        (
            'mutation { ...Two ...Two } fragment Two on Mutation { ... { deleteKey(name: "a") } '
            '... @include(if: true) { a: deleteKey(name: "b") issueKey(endpoint: "c", name: 1) { secret } } }',
            {"key": NOBODY},
            [
                ("DeleteKey", "", "invalid_request", "keys/nobody"),
                ("IssueKey", "", "invalid_request", "keys/nobody"),
            ],
        ),
        (
            'query ($no: Int! = 1, $yes: Boolean = true) { levels(first: $no) { next } endpointKeys(endpoint: "x") '
            "@skip(if: $yes) { name } }",
            {"variables": {"no": -1}},
            [("ListLevels", "", "invalid_request", "ops")],
        ),
        (
            'mutation ($level: LevelInput!) { createLevel(name: "tenants/a", settings: $level) { name } }',
            {"variables": {"level": {"limits": {"maxConcurrent": "many"}}}},
            [("CreateLevel", "", "invalid_request", "ops")],
        ),
        (
            'query ($name: String = "a") { a: level(name: $name) { name } levels { next } }',
            {"variables": {"name": None}},
            [("ListLevels", "", "ok", "ops"), ("GetLevel", "", "invalid_request", "ops")],
        ),
        (
            'mutation { a: createLevel(name: "tenants/a", settings: {models: 1}) { name } }',
            {},
            [("CreateLevel", "tenants/a", "invalid_request", "ops")],
        ),
        (
            'mutation { a: createLevel(name: "tenants/a", settings: {}) { name } '
            'b: createLevel(name: "tenants/b", settings: {}) { name } }',
            {},
            [("CreateLevel", "tenants/a", "ok", "ops"), ("CreateLevel", "tenants/b", "ok", "ops")],
        ),
        (
            'mutation { a: deleteLevel(name: "tenants/a") b: deleteLevel(name: "tenants/b") }',
            {},
            [("DeleteLevel", "tenants/a", "not_found", "ops")],  # the second is not come to
        ),
    ],
)
async def test_each_call_by_graphql_is_logged_once(
    world: World, query: str, given: dict[str, Any], logged: list[tuple[str, ...]]
) -> None:
    body = {"query": query.replace("WEB", WEB), "variables": given.get("variables")}
    async with graphql(world) as door:
        with structlog.testing.capture_logs() as logs:
            await door.send("POST", "/graphql", body, key=given.get("key", OPS))
    assert lines(logs) == [(*line, "graphql", "mine") for line in logged]
    kept = [entry for entry in logged if entry[3] != "ops" or entry[0] not in ("GetLevel", "ListLevels")]
    assert [(entry.method, entry.outcome) for entry in await world.kept()][::-1] == [(e[0], e[2]) for e in kept]


async def test_a_read_by_a_link_in_graphql_is_logged_though_it_is_refused(world: World) -> None:
    async with graphql(world) as door:
        with structlog.testing.capture_logs() as logs:
            await door.send("GET", "/graphql?query=%7Blevels%7Bnext%7D%7D", key=NOBODY)
            await door.send("GET", "/graphql?query=mutation%7BdeleteKey(name:%22x%22)%7D")
    assert [line[:3] for line in lines(logs)] == [
        ("ListLevels", "", "permission_denied"),
        ("DeleteKey", "", "invalid_request"),
    ]


@pytest.mark.parametrize(("protocol", "subscribe"), [("graphql-transport-ws", "subscribe"), ("graphql-ws", "start")])
async def test_each_call_by_graphql_over_websocket_is_logged_once(world: World, protocol: str, subscribe: str) -> None:
    queries = (REVOKE, REVOKE.replace("name }", "nome }"), "{ levels { next } }")
    async with graphql(world) as door, asyncio.timeout(PATIENCE):
        address = "ws://{}:{}/graphql".format(*door.address)
        shown = {"authorization": f"Bearer {NOBODY}"}
        with structlog.testing.capture_logs() as logs:
            async with connect(address, subprotocols=[Subprotocol(protocol)], additional_headers=shown) as socket:
                await socket.send('{"type": "connection_init"}')
                await socket.recv()
                for number, query in enumerate(queries):
                    payload = {"query": query.replace("WEB", WEB)}
                    await socket.send(json.dumps({"type": subscribe, "id": str(number), "payload": payload}))
                    while json.loads(await socket.recv())["type"] not in ("error", "next", "data"):
                        pass
    assert [line[:5] for line in lines(logs)] == [
        ("RevokeKey", f"{WEB}/keys/k", "permission_denied", "keys/nobody", "graphql"),
        ("RevokeKey", "", "invalid_request", "keys/nobody", "graphql"),
        ("ListLevels", "", "permission_denied", "keys/nobody", "graphql"),
    ]


async def test_a_key_that_is_good_no_more_by_graphql_is_logged(world: World) -> None:
    class Revoked(Asking):
        def operation(self) -> Asking:
            return self

        def admit(self) -> Principal:
            raise Failure(Kind.UNAUTHENTICATED, "no")

    gateway = GraphQLGateway(Scripted([]), some_models(), world.admission, admin=world.admin)
    asking = Revoked(gateway, "mine", lambda _: None)
    with structlog.testing.capture_logs() as logs:
        [result] = [one async for one in await make_schema().stream("{ levels { next } }", context_value=asking)]
    assert result.errors[0].extensions["code"] == "UNAUTHENTICATED"
    assert lines(logs) == [("ListLevels", "", "unauthenticated", "anonymous", "graphql", "mine")]


async def test_a_field_that_is_asked_for_very_often_and_not_executed_is_logged_once(world: World) -> None:
    many = " ".join(f'f{number}: deleteLevel(name: "{WEB}")' for number in range(200))
    async with graphql(world) as door:
        with structlog.testing.capture_logs() as logs:
            await door.send("GET", f"/graphql?query={quote('mutation {' + many + '}')}")
    assert [line[:3] for line in lines(logs)] == [("DeleteLevel", "", "invalid_request")]


async def test_a_document_that_is_far_too_long_is_refused_without_being_read(world: World) -> None:
    query = "{ levels { next } } # " + "deleteLevel " * 500_000
    schema = make_schema()
    gateway = GraphQLGateway(Scripted([]), some_models(), world.admission, admin=world.admin)
    asking = Asking(gateway, "mine", lambda _: None)
    with structlog.testing.capture_logs() as logs:
        [result] = [one async for one in await schema.stream(query, context_value=asking)]
    [error] = result.errors
    assert "more than 102400 code points" in error.message
    assert len(error.source.body) < 103_000
    assert lines(logs) == []


async def test_who_is_slow_to_say_what_he_wants_without_a_key_is_not_waited_for(world: World) -> None:
    async with graphql(world) as door:
        head = b"POST /graphql HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
        reader, writer = await asyncio.open_connection(*door.address)
        writer.write(head)
        async with asyncio.timeout(PATIENCE):
            assert b" 401 " in await reader.readline()
        writer.close()


async def test_an_entry_by_graphql_says_by_which_door_and_what_is_different(world: World) -> None:
    await by_graphql(world, 'mutation { createLevel(name: "tenants/a", settings: {allow: ["a"]}) { name } }')
    result = await by_graphql(world, "{ auditEntries { entries { door changed } } }")
    assert result.data == {"auditEntries": {"entries": [{"door": "graphql", "changed": ["allow"]}]}}


async def test_who_may_not_by_graphql(world: World) -> None:
    [error] = (await by_graphql(world, "{ levels { next } }", key=NOBODY)).errors
    assert error.extensions["code"] == "PERMISSION_DENIED"

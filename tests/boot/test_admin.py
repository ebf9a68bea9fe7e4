"""The catalog's store and admin API as the settings have them, `llmg catalog`, and `llmg admin`."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from llmg.boot.administration import check_catalog, following, make_admin, make_store, take_over, translated
from llmg.boot.cli import app
from llmg.boot.settings import Settings, with_tenants
from llmg.boot.system import RandomIds, SystemClock
from llmg.core.context import ADMIN, SILENT, Context, Principal
from llmg.core.errors import Failure, Kind
from llmg.doors.grpc.admin import Administration
from llmg.doors.grpc.services import Inference, decoder
from llmg.gatewayapi.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from llmg.ports import CatalogStore
from llmg.routing.catalog import Catalog, Key
from llmg.services.admin import Admin, Changes, Following, UpstreamChange
from llmg.services.admission import Admission, Authenticator, digest
from llmg.stores.catalog_file import FileCatalog
from llmg.stores.catalog_text import parse
from llmg.stores.predecessor import PREFIX
from llmg.stores.redis import Redis
from llmg.testing.scripted import Scripted
from support.http import PATIENCE
from support.redis import redis_server

OPS = Context(
    id="i", request_id="r", door="grpc", created=0, principal=Principal(key_id="ops", roles=frozenset({ADMIN}))
)
PROVIDERS = {"openai": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}}


def some_settings(**sections: Any) -> Settings:
    """With one provider, and one model."""
    model = {"targets": [{"provider": "openai", "model": "m"}]}
    return Settings(**{"providers": PROVIDERS, "models": {"m": model}, **sections})


class InForce:
    """What a process goes by."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.versions: list[str] = []
        self.put = asyncio.Event()

    async def apply(self, tenants: Mapping[str, Any], version: str) -> None:
        """As Reloader.apply_tenants."""
        self.settings = with_tenants(self.settings, tenants, f"catalog {version}")
        self.versions.append(version)
        self.put.set()


def administered(process: InForce, store: CatalogStore | None = None) -> tuple[Admin, Following]:
    """The admin API of a process, and what keeps it at what the store holds."""
    return make_admin(
        store=store or make_store(lambda: process.settings),
        settings=lambda: process.settings,
        apply=process.apply,
        clock=SystemClock(),
        ids=RandomIds(),
    )


async def test_a_change_is_in_force_here_and_in_the_next_process(tmp_path: Path) -> None:
    settings = some_settings(catalog={"file": tmp_path / "catalog.yaml"})
    processes = [InForce(settings), InForce(settings)]
    made = [administered(process) for process in processes]
    for _, follow in made:
        assert await take_over(follow, asyncio.Event())
    async with following(made[0][1]), following(made[1][1]):
        processes[1].put.clear()
        await made[0][0].create_level(OPS, "tenants/acme", Changes(models={"fast": "m"}))
        assert list(processes[0].settings.tenants) == ["acme"]
        async with asyncio.timeout(PATIENCE):
            await processes[1].put.wait()
        assert list(processes[1].settings.tenants) == ["acme"]
    assert [process.versions for process in processes] == [["0", "1"], ["0", "1"]]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        (Changes(models={"fast": "none"}), "models.fast"),
        (Changes(upstreams={"none": UpstreamChange(base_url="http://a/v1")}), "upstreams.none"),
        (Changes(limits={"requests_per_minute": 0}), "limits.requests_per_minute"),
        (Changes(alias="a"), "alias"),
    ],
)
async def test_what_the_configuration_would_refuse_is_refused(tmp_path: Path, changes: Changes, param: str) -> None:
    settings = some_settings(catalog={"file": tmp_path / "catalog.yaml"})
    store = make_store(lambda: settings)
    admin, _ = administered(InForce(settings), store)
    with pytest.raises(Failure, match=r"the catalog would not hold: tenants\.acme") as failed:
        await admin.create_level(OPS, "tenants/acme", changes)
    assert (failed.value.kind, failed.value.param) == (Kind.INVALID_REQUEST, param)
    assert (await store.load()).version == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tenants: {acme: {models: {fast: none}}}", "tenants.acme.models.fast"),
        (
            "tenants: {acme: {upstreams: {openai: {base_url: 'http://a:1/v1'}}}}",
            "tenants.acme.upstreams.openai.base_url",
        ),
        ("tenants: [", "neither YAML nor JSON"),
        ("", "it is empty"),
        (None, "is gone"),
    ],
)
async def test_a_bad_edit_is_logged_as_such_and_what_was_before_is_read(
    tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "catalog.yaml"
    providers = {"openai": {**PROVIDERS["openai"], "api_key": "sk-root"}}
    process = InForce(some_settings(catalog={"file": file}, providers=providers))
    admin, _ = administered(process)
    await admin.create_level(OPS, "tenants/acme", Changes(models={"fast": "m"}))
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    assert (await admin.get_level(OPS, "tenants/acme")).models == {"fast": "m"}
    assert process.versions == ["1"]
    with pytest.raises(Failure, match=re.escape(said)) as failed:
        await admin.create_level(OPS, "tenants/other", Changes())
    assert failed.value.kind in (Kind.CONFLICT, Kind.INVALID_REQUEST)
    log = [(entry.method, entry.outcome) for entry in (await admin.audit(OPS)).items]
    edited = [] if text is None else [("Edit", "invalid_request")]
    assert log == [("CreateLevel", failed.value.kind.value), *edited, ("CreateLevel", "ok")]


async def test_an_address_set_by_the_admin_api_gets_no_key_from_the_configuration(tmp_path: Path) -> None:
    providers = {"openai": {**PROVIDERS["openai"], "api_key": "sk-root"}}
    settings = some_settings(catalog={"file": tmp_path / "catalog.yaml"}, providers=providers)
    admin, _ = administered(InForce(settings))
    await admin.create_level(OPS, "tenants/acme", Changes())
    there = UpstreamChange(base_url="http://elsewhere.example/v1")
    with pytest.raises(Failure, match="another server does not get the key") as failed:
        await admin.update_level(OPS, "tenants/acme", Changes(upstreams={"openai": there}))
    assert (failed.value.kind, failed.value.param) == (Kind.INVALID_REQUEST, "upstreams.openai.base_url")
    keyless = UpstreamChange(base_url="http://elsewhere.example/v1", api_key="")
    await admin.update_level(OPS, "tenants/acme", Changes(upstreams={"openai": keyless}))


async def test_a_catalog_that_cannot_be_used_is_none_to_start_with(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text("tenants: {acme: {models: {fast: none}}}")
    settings = some_settings(catalog={"file": file})
    process = InForce(settings)
    _, follow = administered(process)
    with capture_logs() as logs, pytest.raises(Failure, match="fast"):
        await take_over(follow, asyncio.Event(), patience=0.3)
    (told,) = logs
    assert "models.fast" in told["reason"]
    assert process.versions == []


async def test_told_to_stop_it_waits_for_no_catalog(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text("")
    stop = asyncio.Event()
    _, follow = administered(InForce(some_settings(catalog={"file": file})))
    waiting = asyncio.create_task(take_over(follow, stop, patience=3600))
    stop.set()
    async with asyncio.timeout(PATIENCE):
        assert not await waiting


async def test_the_configuration_s_own_tenants_are_shown_without_secrets() -> None:
    key = {"id": "k", "key": "web-key-0123456789", "expires": "2999-01-01T00:00:00Z"}
    web = {"alias": "web", "keys": [key], "limits": {"max_concurrent": 2}}
    acme = {
        "models": {"fast": "m", "own": {"targets": [{"provider": "openai", "model": "x"}]}},
        "upstreams": {"openai": {"api_key": "sk-secret-secret", "headers": {"x-a": "h-secret"}}},
        "teams": {"t": {"groups": {"g": {"endpoints": {"web": web}}}}},
    }
    settings = some_settings(tenants={"acme": acme})
    process = InForce(settings)
    store = make_store(lambda: settings)
    admin, follow = administered(process, store)
    async with following(follow):
        level = await admin.get_level(OPS, "tenants/acme")
        [shown] = await admin.list_keys(OPS, "tenants/acme/teams/t/groups/g/endpoints/web")
    held = str(await store.load())
    assert "secret" not in held
    assert key["key"] not in held
    assert level.models["fast"] == "m"
    assert (level.upstreams["openai"].has_api_key, level.upstreams["openai"].headers) == (True, ("x-a",))
    assert shown.digest == sha256(key["key"].encode()).hexdigest()[:8]
    assert process.versions == []
    with pytest.raises(Failure, match="edit it there"):
        await admin.delete_level(OPS, "tenants/acme", force=True)


def test_what_is_wrong_is_one_failure_with_a_few_of_the_problems() -> None:
    tenants = {f"t{number}": {"models": {"fast": "none"}} for number in range(8)}
    with pytest.raises(Failure, match=r"and 3 more") as failed, translated():
        check_catalog(some_settings(), tenants)
    assert failed.value.param is not None


# --- the command line ------------------------------------------------------------------------------------------------


def llmg(*words: str) -> tuple[int, str, str]:
    """The exit code, and what was said where."""
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_a_new_key_and_what_stands_for_it() -> None:
    code, said, _ = llmg("catalog", "new-key")
    found = re.fullmatch(r"key:    (\S+)\nsha256: ([0-9a-f]{64})\n", said)
    assert code == 0
    assert found is not None
    assert sha256(found[1].encode()).hexdigest() == found[2]


def test_the_predecessor_s_redis_is_printed_as_a_catalog_that_holds() -> None:
    endpoint = {
        "tenant": {"id": "acme"},
        "team": {"id": "search"},
        "group": {"id": "prod"},
        "id": "web",
        "alias": "web-prod",
        "apiKey": "sk-web",
    }
    upstream = {"openai": {"weight": 2, "base_url": "http://web/v1", "api_key": "up"}}

    async def run() -> tuple[int, str, str]:
        async with redis_server() as server:
            redis = Redis(server.url)
            await redis.client.set(f"{PREFIX}api_key:sk-web", json.dumps(endpoint))
            await redis.client.set(f"{PREFIX}upstream:tenant:acme", json.dumps(upstream))
            await redis.aclose()
            return await asyncio.to_thread(llmg, "catalog", "import", "--redis", server.url)

    code, said, told = asyncio.run(run())
    assert (code, told) == (
        0,
        "note: tenants/acme: the upstream's weight is left out: targets of a model have weights\n",
    )
    tenants = parse(said.encode())
    check_catalog(some_settings(), tenants)
    assert tenants["acme"]["upstreams"] == {"openai": {"base_url": "http://web/v1", "api_key": "up"}}
    assert "sk-web" not in said


FILE = "tenants: [{id: acme, teams: [{id: t, groups: [{id: g, endpoints: [{id: web, api_key: sk-web}]}]}]}]"


def test_the_predecessor_s_file_is_saved_where_the_configuration_says(tmp_path: Path) -> None:
    catalog, config, theirs = tmp_path / "catalog.yaml", tmp_path / "config.yaml", tmp_path / "theirs.yaml"
    config.write_text(json.dumps({"providers": PROVIDERS, "catalog": {"file": str(catalog)}}))
    theirs.write_text(FILE)
    command = ("catalog", "import", "--file", str(theirs), "--save", "-c", str(config))
    code, said, _ = llmg(*command)
    assert (code, said) == (0, "saved: version 1, tenants: 1\n")
    held = asyncio.run(FileCatalog(catalog).load())
    assert list(held.tenants["acme"]["teams"]["t"]["groups"]["g"]["endpoints"]) == ["web"]
    code, _, told = llmg(*command)
    assert (code, told.splitlines()[-1]) == (
        1,
        "there are tenants in the catalog already: say --replace to lose them",
    )
    code, said, _ = llmg(*command, "--replace")
    assert (code, said) == (0, "saved: version 2, tenants: 1\n")
    entries, _ = asyncio.run(FileCatalog(catalog).entries(10, ""))
    assert [(e.actor, e.method, e.after) for e in entries] == [
        ("llmg catalog import", "Import", 2),
        ("llmg catalog import", "Import", 1),
    ]


async def test_the_api_of_a_running_gateway(tmp_path: Path) -> None:
    settings = some_settings(catalog={"file": tmp_path / "catalog.yaml"}, admin={"keys": {"ops": "ops-key-0123456789"}})
    admin, _ = administered(InForce(settings))
    known = {digest("ops-key-0123456789"): Key(OPS.principal)}
    admission = Admission(Authenticator(lambda: Catalog(keys=known), SystemClock()), SystemClock(), RandomIds(), SILENT)
    server = grpc.aio.server()
    servicer = Administration(Inference(Scripted([]), admission), admin)
    add_AdminServiceServicer_to_server(servicer, server, decoder)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    at = ("admin", "--address", f"127.0.0.1:{port}")

    async def run(*words: str, key: str = "ops-key-0123456789") -> Any:
        with capture_logs():  # the gateway's own, which would be in what the command says
            code, said, told = await asyncio.to_thread(llmg, *at, "--key", key, *words)
        return json.loads(said) if code == 0 else (code, told)

    web = "tenants/acme/teams/t/groups/g/endpoints/web"
    try:
        await run("create", "tenants/acme", '{"labels": {"env": "prod"}, "limits": {"maxConcurrent": 2}}')
        for name in ("tenants/acme/teams/t", "tenants/acme/teams/t/groups/g", web):
            assert (await run("create", name))["level"]["name"] == name
        changed = (await run("set", "tenants/acme", '{"models": {"fast": "m"}}', "--clear", "limits"))["level"]
        assert (changed["models"], changed["labels"], "limits" in changed) == ({"fast": "m"}, {"env": "prod"}, False)
        assert (await run("show", "tenants/acme"))["level"] == changed
        assert [level["name"] for level in (await run("levels"))["levels"]] == ["tenants/acme"]
        issued = await run("issue-key", web, "--id", "k1", "--expires", "2999-01-01T00:00:00Z")
        assert issued["key"]["expireTime"] == "2999-01-01T00:00:00Z"
        assert (await run("rotate-key", f"{web}/keys/k1", "--id", "k2", "--grace", "60"))["secret"] != issued["secret"]
        assert (await run("revoke-key", f"{web}/keys/k2"))["key"]["revoked"]
        await run("delete-key", f"{web}/keys/k1")
        assert [key["name"] for key in (await run("keys", web))["keys"]] == [f"{web}/keys/k2"]
        assert await run("set", "tenants/acme", "--etag", "x") == (
            1,
            "the level has changed since it was read with this 'etag' (ABORTED)\n",
        )
        assert await run("levels", key="x") == (1, "the API key is not valid (UNAUTHENTICATED)\n")
        missing = "the gateway needs an administrator's key: name it with --key, or in LLMG_ADMIN_KEY\n"
        assert await run("levels", key="") == (1, missing)
        refused = (await run("log", "--size", "2"))["entries"]
        line = ("anonymous", "ListLevels", "unauthenticated", "grpc")
        assert [(e["actor"], e["method"], e["outcome"], e["door"]) for e in refused] == [line, line]
        await run("set", web, '{"alias": "web-prod"}')
        assert (await run("show", "web-prod"))["level"]["name"] == web
        assert (await run("create", "tenants/b", '{"nonsense": 1}'))[0] == 2
        assert (await run("create", "tenants/b", "[]"))[0] == 2
        assert (await run("create", "tenants/b", "{"))[0] == 2
        await run("delete", "tenants/acme", "--force")
        entry = (await run("log", "--size", "1"))["entries"]
        assert [(e["actor"], e["method"], e["resource"]) for e in entry] == [("ops", "DeleteLevel", "tenants/acme")]
    finally:
        await server.stop(0)
    hint = "start one with `llmg serve`, or name another with --address"
    assert await run("levels") == (1, f"no gateway answers at 127.0.0.1:{port}: {hint}\n")


def hang_up(listener: socket.socket) -> None:
    """On everybody, until it is shut down."""
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def test_what_is_no_gateway_is_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = Thread(target=hang_up, args=(listener,))
        answering.start()
        name = "{}:{}".format(*listener.getsockname())
        code, _, told = llmg("admin", "--address", name, "--key", "k", "levels")
        listener.shutdown(socket.SHUT_RDWR)
        answering.join(PATIENCE)
    assert code == 1
    assert told.startswith(f"no gateway answers at {name}: ")
    assert told.endswith("it may want --ca, or be no gRPC\n")


def test_a_gateway_s_name_that_is_none() -> None:
    code, _, told = llmg("admin", "--address", "no-such-host.invalid:1", "--key", "k", "levels")
    assert (code, told.startswith("no gateway answers at no-such-host.invalid:1: its name can't be resolved")) == (
        1,
        True,
    )


# --- catalogs out of their store and into it -------------------------------------------------------------------------


OWN: dict[str, Any] = {
    "acme": {
        "upstreams": {"openai": {"api_key": "sk-of-acme", "headers": {"x-team": "acme"}}},
        "teams": {"t": {"groups": {"g": {"endpoints": {"web": {"keys": [{"id": "k1", "sha256": "0" * 64}]}}}}}},
    }
}


def configured(directory: Path, name: str, **sections: Any) -> str:
    """Where a configuration with these is."""
    file = directory / name
    file.write_text(json.dumps({"providers": PROVIDERS, **sections}))
    return str(file)


async def test_a_catalog_is_exported_and_put_back_when_redis_has_lost_it(tmp_path: Path) -> None:
    async def run(*words: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(llmg, "catalog", *words)

    in_file = configured(tmp_path, "file.yaml", catalog={"file": str(tmp_path / "catalog.yaml")})
    own, backup = tmp_path / "own.yaml", tmp_path / "backup.yaml"
    own.write_text(json.dumps({"tenants": OWN}))
    async with redis_server() as server:
        in_redis = configured(tmp_path, "redis.yaml", catalog={"redis": True}, redis={"url": server.url})
        assert await run("import", "--file", str(own), "--save", "-c", in_redis) == (
            0,
            "saved: version 1, tenants: 1\n",
            "",
        )
        code, said, told = await run("export", "-c", in_redis)
        assert (code, parse(said.encode()), told) == (0, OWN, "")
        backup.write_text("old")
        backup.chmod(0o644)
        saved = (0, "exported: tenants: 1\n", "")
        assert await run("export", "-c", in_redis, "--output", str(backup)) == saved
        assert (backup.stat().st_mode & 0o777, parse(backup.read_bytes())) == (0o600, OWN)
        assert await run("export", "-c", in_redis, "--output", str(tmp_path / "backup.json")) == saved
        assert json.loads((tmp_path / "backup.json").read_text()) == {"tenants": OWN}
        await server.restart()  # empty
        nothing = (1, "", "there are no tenants in the catalog\n")
        assert await run("export", "-c", in_redis, "--output", str(backup)) == nothing
        assert parse(backup.read_bytes()) == OWN
        assert (await run("import", "--file", str(backup), "--save", "-c", in_redis))[0] == 0
        assert parse((await run("export", "-c", in_redis))[1].encode()) == OWN
        await server.kill()
        assert (await run("export", "-c", in_redis))[::2] == (1, "the catalog's Redis can't be reached\n")
    assert (await run("import", "--file", str(backup), "--save", "-c", in_file))[0] == 0
    assert parse((await run("export", "-c", in_file))[1].encode()) == OWN
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    code, _, told = llmg("catalog", "export", "-c", configured(tmp_path, "config.yaml"))
    assert (code, told) == (2, "the catalog is in the configuration itself: there is no other one to export\n")
    config = configured(tmp_path, "file.yaml", catalog={"file": str(tmp_path / "catalog.yaml")})
    assert llmg("catalog", "export", "-c", config) == (1, "", "there are no tenants in the catalog\n")
    (tmp_path / "catalog.yaml").write_text("tenants: {acme: {}}")
    assert llmg("catalog", "export", "-c", config)[0] == 0
    assert not (tmp_path / "catalog.yaml.audit.jsonl").exists()  # it is of those who serve
    code, _, told = llmg("catalog", "export", "-c", config, "--output", str(tmp_path / "none" / "backup.yaml"))
    assert (code, told.endswith("can't be written: No such file or directory\n")) == (1, True)
    code, _, told = llmg("catalog", "export", "-c", config, "--output", "/dev/null")
    assert (code, told) == (2, "/dev/null: expected a file\n")
    (tmp_path / "catalog.yaml").write_text("tenants: []")
    bad = (1, "", f"{tmp_path / 'catalog.yaml'}: expected a mapping below `tenants`\n")
    assert llmg("catalog", "export", "-c", config) == bad


def test_a_catalog_of_our_own_is_checked_like_a_change(tmp_path: Path) -> None:
    config = configured(tmp_path, "file.yaml", catalog={"file": str(tmp_path / "catalog.yaml")})
    own = tmp_path / "own.yaml"
    own.write_text("tenants: {acme: {models: {fast: none}, upstreams: {openai: {api_key: '${KEY}'}}}}")
    code, _, told = llmg("catalog", "import", "--file", str(own), "--save", "-c", config)
    note, problem = told.splitlines()
    assert code == 1
    assert note == "note: '${' stays as it is: variables are replaced in the configuration file only"
    assert problem.startswith("the catalog would not hold: tenants.acme.models.fast")
    assert not (tmp_path / "catalog.yaml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected either --redis or --file"),
        (("--redis", "http://:secret@a"), "--redis: expected a URL such as redis://127.0.0.1:6379/0"),
        (("--redis", "redis://127.0.0.1:1/0"), "--redis: it can't be read"),
        (("--file", "none.yaml"), "none.yaml: can't be read: No such file or directory"),
    ],
)
def test_what_cannot_be_imported_says_why(words: tuple[str, ...], said: str) -> None:
    code, _, told = llmg("catalog", "import", *words)
    assert code in (1, 2)
    assert said in told
    assert "secret" not in told


def test_what_would_not_hold_is_not_saved(tmp_path: Path) -> None:
    catalog, config, theirs = tmp_path / "catalog.yaml", tmp_path / "config.yaml", tmp_path / "theirs.yaml"
    config.write_text(json.dumps({"providers": PROVIDERS, "catalog": {"file": str(catalog)}}))
    theirs.write_text("tenants: [{id: acme, upstream: {openai: {base_url: 'http://a/v1'}}}]")
    command = ("catalog", "import", "--file", str(theirs), "--save", "-c", str(config), "--provider", "azure")
    code, _, told = llmg(*command)
    assert code == 1
    assert "tenants.acme.upstreams.azure" in told
    assert not catalog.exists()

"""The configuration changes while requests run: what is good holds at once, what is bad is told, nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random as Dice
from typing import Any

import grpc
import pytest
import structlog.testing

from boot.conftest import Engines, Gate, Serve, Served, say
from llmg.boot import build
from llmg.boot.checks import Checks
from llmg.boot.current import Current
from llmg.boot.exposure import Exposed
from llmg.boot.live import Upstream
from llmg.boot.reload import Reloader, Source, read
from llmg.boot.resilience import make_prober
from llmg.boot.scopes import Scopes
from llmg.boot.settings import Settings, SettingsError
from llmg.core.context import Context
from llmg.core.errors import Failure
from llmg.core.request import Chat, Message, Text
from llmg.gatewayapi.v1 import chat_pb2 as pb
from llmg.gatewayapi.v1.chat_pb2_grpc import ChatServiceStub
from llmg.providers.http import Transport
from llmg.routing.catalog import Catalog, Names, Scope
from llmg.routing.health import Health
from llmg.routing.models import Target
from llmg.routing.router import Router
from llmg.services.admission import digest
from llmg.services.whole import whole
from llmg.testing.clocks import FakeClock
from support.gateway import ECHO, chat
from support.http import PATIENCE, Connection
from support.upstream import Call, good, upstream

BAD = "the new configuration can't be used, the old one holds"
KEY = "sk-" + "a" * 32


def echo(*names: str, **more: Any) -> dict[str, Any]:
    """A configuration with models of these names."""
    model = {"targets": [{"provider": "echo", "model": "m"}]}
    return {"providers": {"echo": {"kind": "echo"}}, "models": dict.fromkeys(names, model), **more}


def write(file: Path, config: Mapping[str, Any] | str) -> None:
    """At once, as editors and deployments do."""
    new = file.with_suffix(".new")
    new.write_text(config if isinstance(config, str) else json.dumps(config))
    os.replace(new, file)


class Kept:
    """Remembers what is put in force."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.turn = asyncio.Lock()
        self.versions: list[str] = []
        self._news = asyncio.Condition()

    async def put(self, settings: Settings, version: str) -> None:
        async with self._news:
            self.settings = settings
            self.versions.append(version)
            self._news.notify_all()

    async def until(self, count: int) -> None:
        """Waits until so many were."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: len(self.versions) >= count)

    @property
    def models(self) -> list[str]:
        return sorted(self.settings.models)


@asynccontextmanager
async def watched(file: Path, **options: Any) -> AsyncIterator[tuple[Reloader, Kept]]:
    """The file, which is there, under a reloader that runs."""
    source = read(file)
    kept = Kept(source.read)
    reloader = Reloader(source, kept, **{"every": 0.01, **options})
    task = asyncio.create_task(reloader.run())
    try:
        yield reloader, kept
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    write(file, echo("a"))
    return file


async def test_what_changes_is_put_in_force(file: Path) -> None:
    async with watched(file) as (_, kept):
        write(file, echo("a", "b"))
        await kept.until(1)
        assert kept.models == ["a", "b"]
        write(file, echo("b"))
        await kept.until(2)
        assert kept.models == ["b"]
    assert len(set(kept.versions)) == 2


async def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes does it: the file is a link through a link to a folder, which is exchanged."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "config.yaml", echo(name))
    (tmp_path / "data").symlink_to("one")
    file = tmp_path / "config.yaml"
    file.symlink_to("data/config.yaml")
    async with watched(file) as (_, kept):
        assert kept.models == ["one"]
        (tmp_path / "new").symlink_to("two")
        os.replace(tmp_path / "new", tmp_path / "data")
        await kept.until(1)
        assert kept.models == ["two"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("models: [", "is not YAML"),
        (
            "models: {b: {targets: [{provider: nobody, model: m}]}}",
            "models.b.targets[0].provider: expected the name",
        ),
        ("provider: {}", "unknown key; did you mean `providers`?"),
    ],
)
async def test_what_is_bad_is_told_and_the_old_holds(file: Path, bad: str, reason: str) -> None:
    source = read(file)
    kept = Kept(source.read)
    reloader = Reloader(source, kept)
    write(file, bad)
    with structlog.testing.capture_logs() as logs:
        assert not await reloader.reload()
    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == (BAD, "error")
    assert reason in entry["reason"]
    assert str(file) in entry["reason"]
    assert (kept.models, kept.versions) == (["a"], [])
    write(file, echo("b"))
    assert await reloader.reload()
    assert kept.models == ["b"]


async def test_that_a_bad_file_was_put_back_is_told_once(file: Path) -> None:
    source = read(file)
    reloader = Reloader(source, Kept(source.read))
    with structlog.testing.capture_logs() as logs:
        for config in ("models: [", echo("a"), echo("a")):
            write(file, config)
            await reloader.reload()
    assert [entry["event"] for entry in logs] == [BAD, "the configuration is as it was, and in force"]


async def test_a_file_that_is_gone_is_bad(file: Path) -> None:
    source = read(file)
    reloader = Reloader(source, Kept(source.read))
    file.unlink()
    with structlog.testing.capture_logs() as logs:
        assert not await reloader.reload()
    assert "can't be read: No such file or directory" in logs[0]["reason"]


async def test_a_file_that_is_being_written_is_left_time(file: Path) -> None:
    """What is there first would be a configuration, too."""
    halves = iter([json.dumps(echo("a", "b"))[:40], json.dumps(echo("a", "b"))])

    async def sleep(seconds: float) -> None:
        if seconds < 0.5:  # between two looks at a file that has changed
            for half in halves:
                file.write_text(half)
                break
        await asyncio.sleep(0)

    file.unlink()
    write(file, echo("a"))
    async with watched(file, sleep=sleep, every=1.0) as (_, kept):
        with structlog.testing.capture_logs() as logs:
            file.write_text("")
            await kept.until(1)
        assert (kept.models, len(kept.versions)) == (["a", "b"], 1)
    assert [entry["event"] for entry in logs] == ["configuration reloaded"]


async def test_it_can_be_asked_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, echo("a", keys={"app": "${APP_KEY}"}))
    monkeypatch.setenv("APP_KEY", "one-" + KEY)
    async with watched(file, every=3600.0) as (reloader, kept):
        monkeypatch.setenv("APP_KEY", "two-" + KEY)
        reloader.ask()
        await kept.until(1)
        assert kept.settings.keys["app"].get_secret_value() == "two-" + KEY


async def test_the_environment_stays_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMG_PROVIDERS__ECHO__KIND", "echo")
    monkeypatch.setenv("LLMG_LIMITS__MAX_CONCURRENT", "3")
    source = read(file)
    kept = Kept(source.read)
    write(file, echo("b", limits={"max_concurrent": 9}))
    assert await Reloader(source, kept).reload()
    assert kept.settings.limits.max_concurrent == 3


async def test_what_needs_a_restart_is_told_and_the_rest_holds(file: Path) -> None:
    source = read(file)
    kept = Kept(source.read)
    reloader = Reloader(source, kept)
    write(file, echo("b", http={"server_addr": "127.0.0.1:9"}, server={"grace": "1s", "workers": 2}))
    with structlog.testing.capture_logs() as logs:
        assert await reloader.reload()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("configuration reloaded", "info"),
        ("some of the new configuration needs a restart", "warning"),
    ]
    assert logs[0]["changed"] == ["models"]
    assert logs[1]["settings"] == ["http.server_addr", "server.workers", "server.grace"]
    assert kept.models == ["b"]
    assert (kept.settings.http.server_addr, kept.settings.server.workers) == ("127.0.0.1:8080", 1)
    write(file, echo("b"))
    with structlog.testing.capture_logs() as logs:
        assert await reloader.reload()
    assert logs == []


# -- what is in force -----------------------------------------------------------------------------------------------


def up(base_url: str = "http://127.0.0.1:9/v1", **fields: Any) -> dict[str, Any]:
    provider = {"kind": "openai", "base_url": base_url, **fields}
    return {"providers": {"up": provider}, "models": {"m": {"targets": [{"provider": "up", "model": "x"}]}}}


def in_force(config: Mapping[str, Any]) -> Current:
    return Current(build.Needs(Settings(**config), Transport()), FakeClock())


def target(now: Current, name: str = "m") -> Target:
    (only,) = now.find(name).targets
    return only


async def test_what_is_unchanged_keeps_what_is_known_of_it() -> None:
    config = up()
    config["models"]["other"] = {"targets": [{"provider": "up", "model": "y"}]}
    now = in_force(config)
    health, policy, direct = target(now).health, now.find("m").policy, target(now, "up/any").health
    config["models"]["other"]["policy"] = "random"
    await now.put(Settings(**config), "2")
    assert now.catalog.version == "2"
    assert (target(now).health, now.find("m").policy) == (health, policy)
    assert target(now, "up/any").health is direct
    config["models"]["m"]["policy"] = "random"
    await now.put(Settings(**config), "3")
    assert target(now).health is health
    assert now.find("m").policy is not policy
    await now.put(Settings(**up(resilience={"max_in_flight": 1})), "4")
    assert target(now).health is not health


def with_upstream(config: Mapping[str, Any]) -> tuple[Current, Upstream]:
    """What is in force, and its only provider."""
    needs = build.Needs(Settings(**config), Transport())
    now = Current(needs, FakeClock())
    (upstream,) = needs.live.upstreams()
    return now, upstream


def naming(*models: str, **of_all: Any) -> dict[str, Any]:
    """Models of one provider, by its names for them."""
    targets: Any = {name: {"targets": [{"provider": "up", "model": name, **of_all}]} for name in models}
    return {**up(), "models": targets}


async def test_what_no_model_names_any_more_is_forgotten_but_for_a_while() -> None:
    """Clients may name it all the same, as PROVIDER/MODEL, and requests that are under way count there."""
    now, upstream = with_upstream(naming("x", "y"))
    known = {name: target(now, name).health for name in ("x", "y")}
    await now.put(Settings(**naming("x")), "2")
    assert [model for model, _ in upstream.states] == ["x"]
    assert target(now, "up/y").health is known["y"]
    await now.put(Settings(**naming("x", "y")), "3")
    assert target(now, "y").health is known["y"]
    await now.put(Settings(**naming("x")), "4")
    for number in range(300):
        target(now, f"up/{number}")
    await now.put(Settings(**naming("x", "y")), "5")
    assert target(now, "y").health is not known["y"]
    assert target(now, "x").health is known["x"]


async def test_what_is_known_apart_for_a_target_goes_with_that() -> None:
    now, upstream = with_upstream(naming("x", resilience={"max_in_flight": 1}))
    first = target(now, "x").health
    for places in range(2, 300):
        await now.put(Settings(**naming("x", resilience={"max_in_flight": places})), str(places))
        target(now, "x")
        assert [resilience.max_in_flight for _, resilience in upstream.states] == [places]
    await now.put(Settings(**naming("x", resilience={"max_in_flight": 1})), "300")
    assert target(now, "x").health is not first


async def test_what_was_not_asked_for_yet_under_its_new_definition_keeps_what_is_known_of_it() -> None:
    """Models of tenants are made when they are asked for."""

    def config(policy: str) -> dict[str, Any]:
        mine = {"policy": policy, "targets": [{"provider": "up", "model": "y"}]}
        endpoint = {"keys": [{"id": "k", "key": KEY}], "models": {"mine": mine}}
        return {**up(), "tenants": {"a": {"teams": {"t": {"groups": {"g": {"endpoints": {"e": endpoint}}}}}}}}

    def health(now: Current) -> Health:
        scope = now.catalog.find(digest(KEY), 0.0).scope
        assert scope is not None
        known: Health = scope.find("mine").targets[0].health
        return known

    now = in_force(config("weighted"))
    before = health(now)
    for policy in ("random", "round_robin", "p2c"):
        await now.put(Settings(**config(policy)), policy)
    for number in range(300):
        target(now, f"up/{number}")
    assert health(now) is before


async def test_a_request_from_before_brings_back_nothing_that_is_kept() -> None:
    endpoint = {"keys": [{"id": "k", "key": KEY}], "models": {"mine": naming("y")["models"]["y"]}}
    tenants = {"a": {"teams": {"t": {"groups": {"g": {"endpoints": {"e": endpoint}}}}}}}
    now, upstream = with_upstream({**up(), "tenants": tenants})
    scope = now.catalog.find(digest(KEY), 0.0).scope
    assert scope is not None
    await now.put(Settings(**{**up(), "keys": {"app": KEY}}), "2")
    assert scope.find("mine").targets[0].model == "y"
    assert [model for model, _ in upstream.states] == ["x"]


async def test_no_connection_is_kept_to_a_backend_that_is_elsewhere_now() -> None:
    def config(**addresses: str) -> Settings:
        backends: Any = {name: {"kind": "backend", "address": address} for name, address in addresses.items()}
        models: Any = {name: {"targets": [{"provider": name, "model": "m"}]} for name in addresses}
        return Settings(providers=backends, models=models)

    needs = build.Needs(config(a="127.0.0.1:9", b="127.0.0.1:10", c="127.0.0.1:10"), Transport())
    now = Current(needs, FakeClock())
    channels = needs.live.channels
    stubs = [channels.stub(f"127.0.0.1:{port}") for port in (9, 10)]
    await now.put(config(a="127.0.0.1:11", b="127.0.0.1:10"), "2")
    assert channels.stub("127.0.0.1:10") is stubs[1]
    assert channels.stub("127.0.0.1:9") is not stubs[0]
    await needs.close()


async def test_what_was_gone_for_a_while_is_new() -> None:
    now = in_force(up())
    health = target(now).health
    await now.put(Settings(**echo("m")), "2")
    await now.put(Settings(**up()), "3")
    assert target(now).health is not health


async def test_a_configuration_that_can_not_be_made_changes_nothing(tmp_path: Path) -> None:
    now = in_force(up())
    known = now.find("m")
    local: dict[str, Any] = {
        "providers": {"local": {"kind": "backend", "engine": "xllamacpp"}},
        "models": {"m": {"targets": [{"provider": "local", "model": "absent"}]}},
        "models_dir": tmp_path,
    }
    with pytest.raises(Failure, match="'absent' does not exist"):
        await now.put(Settings(**local), "2")
    assert now.find("m") is known
    assert (now.catalog.version, [*now.settings.models]) == ("", ["m"])


async def test_without_keys_it_can_not_be_put_where_others_can_reach_it() -> None:
    bound: dict[str, Any] = {"http": {"server_addr": "0.0.0.0:8080"}, "grpc": {"enabled": False}}
    now = in_force(up())
    with pytest.raises(Exposed, match=r"http\.server_addr is 0\.0\.0\.0:8080"):
        await now.put(Settings(**{**up(), **bound}), "2")
    assert now.catalog.version == ""
    await now.put(Settings(**{**up(), **bound, "server": {"insecure": True}}), "3")
    assert now.catalog.version == "3"


async def test_no_change_lets_everybody_in_where_a_key_was_needed() -> None:
    for config in ({"keys": {"app": KEY}}, {"admin": {"keys": {"ops": KEY}}}, {"tenants": {"acme": {}}}):
        now = in_force({**up(), **config})
        with pytest.raises(Exposed, match="would let everybody in without a key: that needs a restart"):
            await now.put(Settings(**up()), "2")
        assert now.catalog.anonymous is None
        await now.put(Settings(**up(), keys={"other": KEY}), "3")
    now = in_force(up())
    await now.put(Settings(**echo("m")), "2")
    assert now.catalog.anonymous is not None


async def test_a_catalog_from_elsewhere(file: Path) -> None:
    write(file, echo("a", catalog={"file": "tenants.yaml"}))
    source = read(file)
    now = Current(build.Needs(source.read, Transport()), FakeClock())
    reloader = Reloader(source, now)
    await now.apply_tenants({"acme": {"allow": ["a"]}}, "7")
    assert (now.catalog.version, [*now.settings.tenants]) == ("7", ["acme"])
    with pytest.raises(SettingsError, match=r"tenants.acme.allow\[0\].*\(catalog 8\)"):
        await now.apply_tenants({"acme": {"allow": ["nix"]}}, "8")
    assert (now.catalog.version, now.settings.tenants["acme"].allow) == ("7", ("a",))
    write(file, echo("a", "b", catalog={"file": "tenants.yaml"}))
    assert await reloader.reload()
    assert ([*now.settings.models], [*now.settings.tenants]) == (["a", "b"], ["acme"])
    await now.apply_tenants({"acme": {"models": {"mine": "a"}}}, "9")
    write(file, echo("b", catalog={"file": "tenants.yaml"}))
    with structlog.testing.capture_logs() as logs:
        assert not await reloader.reload()
    assert "tenants.acme.models.mine: expected the name of a declared model, got 'a'" in logs[0]["reason"]
    assert [*now.settings.models] == ["a", "b"]


async def test_what_did_not_fit_the_catalog_from_elsewhere_is_read_again_when_that_changes(file: Path) -> None:
    write(file, echo("a", catalog={"file": "tenants.yaml"}))
    source = read(file)
    now = Current(build.Needs(source.read, Transport()), FakeClock())
    await now.apply_tenants({"acme": {"models": {"mine": "a"}}}, "1")
    reloaded = asyncio.Event()
    reloader = Reloader(source, now, reloaded=reloaded.set, every=0.01)
    task = asyncio.create_task(reloader.run())
    async with asyncio.timeout(PATIENCE):
        with structlog.testing.capture_logs() as logs:
            write(file, echo("b", catalog={"file": "tenants.yaml"}))
            while not logs:
                await asyncio.sleep(0.01)
            assert logs[0]["event"] == BAD
            assert not reloaded.is_set()
            await now.apply_tenants({"acme": {}}, "2")
            await reloaded.wait()
    assert [*now.settings.models] == ["b"]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [BAD]
    task.cancel()
    await asyncio.wait({task})


async def test_what_is_no_longer_in_force_goes_with_its_last_request() -> None:
    """Without the help of the cyclic collector, from which all this is kept."""

    def there() -> Counter[str]:
        kinds = (Catalog, Scope, Scopes, Settings, Target, Names)
        return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))

    config = up()
    config["models"]["m"]["fallbacks"] = ["n", "up/any"]
    config["models"]["n"] = {"targets": [{"provider": "up", "model": "y"}]}
    endpoint = {"keys": [{"id": "k", "key": KEY}], "models": {"own": "m"}}
    config["tenants"] = {"a": {"teams": {"t": {"groups": {"g": {"endpoints": {"e": endpoint}}}}}}}
    now = in_force(config)
    gc.collect()
    gc.disable()
    try:
        counts = []
        for number in range(4):
            scope = now.catalog.find(digest(KEY), 0.0).scope
            own = scope.find("own")
            assert [each.targets[0].model for each in map(own.find, own.fallbacks)] == ["y", "any"]
            del scope, own
            counts.append(there())
            await now.put(Settings(**config, labels={"number": str(number)}), str(number))
    finally:
        gc.enable()
    assert counts[1:] == counts[:1] * 3


async def test_a_request_keeps_what_it_was_let_in_with() -> None:
    gate = Gate()

    async def held(call: Call) -> None:
        await gate.passed()
        await good(call)

    async with upstream(held) as server:
        now = in_force({**up(server.base_url), "keys": {"app": KEY}})
        clock = FakeClock()
        asked = Chat(model="m", messages=(Message(role="user", parts=(Text("Hello"),)),))
        context = Context(id="1", request_id="1", door="test", created=0, trail=[])
        asking = asyncio.create_task(whole(Router(now, clock), asked, context))
        await server.call()
        await now.put(Settings(**echo("other", keys={"app": KEY})), "2")
        gate.open()
        assert await asking
        with pytest.raises(Failure, match="does not exist"):
            now.find("m")


async def test_what_is_asked_for_after_a_reload_is_not_kept_for_the_sake_of_a_request_from_before() -> None:
    """Its body comes slowly, say, so that its model is known late."""

    def config(key: str) -> Settings:
        own = up(server.base_url, api_key=key, resilience={"health_check": {"interval": "10ms"}})
        endpoint = {
            "keys": [{"id": "k", "key": KEY}],
            "models": {"mine": {"targets": [{"provider": "up", "model": "y"}]}},
        }
        own["tenants"] = {"a": {"teams": {"t": {"groups": {"g": {"endpoints": {"e": endpoint}}}}}}}
        return Settings(**{**own, "models": {}})

    async def act(call: Call) -> None:
        await (good(call) if call.method == "POST" else call.json(200, {}))

    async with upstream(act) as server:
        needs = build.Needs(config("old"), Transport())
        prober = make_prober(Dice(3))
        needs.live.changed = Checks(needs.live, needs.transport, prober).changed
        now = Current(needs, FakeClock())
        prober.start()
        before = now.catalog.find(digest(KEY), 0.0).scope
        assert before is not None
        await now.put(config("new"), "2")
        late = before.find("mine")
        assert [*needs.live.upstreams()] == []
        after = now.catalog.find(digest(KEY), 0.0).scope
        assert after is not None
        assert after.find("mine").targets[0].health is not late.targets[0].health
        context = Context(id="1", request_id="1", door="test", created=0, trail=[])
        asked = Chat(model="mine", messages=(Message(role="user", parts=(Text("Hello"),)),))
        assert await whole(Router(before, FakeClock()), asked, context)
        await server.call(3)
        sent = Counter((call.method, call.headers["authorization"]) for call in server.calls)
        assert sent["POST", "Bearer old"] == 1
        assert ("GET", "Bearer old") not in sent
        assert sent["GET", "Bearer new"] >= 2
        await prober.aclose()
        await needs.close()


async def test_connections_to_where_nobody_is_asked_any_more_are_closed() -> None:
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):  # each a request
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()
        over.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        base = "http://{}:{}/v1".format(*server.sockets[0].getsockname())
        needs = build.Needs(Settings(**up(base)), Transport())
        now = Current(needs, FakeClock())
        (known,) = needs.live.upstreams()
        assert known.origin is not None
        exchange = await needs.transport.send(known.origin, known.origin.head("GET", "/models", {}))
        assert await exchange.read(100) == b"{}"
        exchange.close()
        await now.put(Settings(**{**up(base), "limits": {"max_concurrent": 1}}), "2")
        assert len(known.origin.idle) == 1
        busy = await needs.transport.send(known.origin, known.origin.head("GET", "/models", {}))
        await now.put(Settings(**echo("m")), "3")
        assert not over.is_set()  # the answer may still be read
        assert await busy.read(100) == b"{}"
        busy.close()
        async with asyncio.timeout(PATIENCE):
            await over.wait()
        assert known.origin.idle == []


# -- a gateway under load -------------------------------------------------------------------------------------------


class Load:
    """Clients that ask without a pause, each the next as soon as it has its answer."""

    def __init__(self) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []

    def rest(self, gateway: Served, model: str = "m") -> None:
        """One more, by REST: half of them ask for streams."""
        self._tasks.append(asyncio.create_task(self._rest(gateway, model, stream=len(self._tasks) % 2 == 0)))

    def grpc(self, gateway: Served) -> None:
        """One more, by gRPC."""
        self._tasks.append(asyncio.create_task(self._grpc(gateway)))

    async def end(self) -> None:
        """Waits for their last answers."""
        self._stop = True
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._tasks)

    async def _rest(self, gateway: Served, model: str, *, stream: bool) -> None:
        async with gateway.connect() as client:
            while not self._stop:
                answer = await client.post("/v1/chat/completions", chat(model, stream=stream))
                self._count(answer.status == 200 and (not stream or b"[DONE]" in answer.body), str(answer))

    async def _grpc(self, gateway: Served) -> None:
        said = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=pb.TextPart(text="Hello"))])
        asked = pb.CreateChatCompletionRequest(chat=pb.Chat(model="m", messages=[said]))
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            stub: Any = ChatServiceStub(channel)
            while not self._stop:
                try:
                    answer = await stub.CreateChatCompletion(asked, timeout=PATIENCE)
                except grpc.aio.AioRpcError as error:
                    self._count(False, str(error))
                else:
                    self._count(bool(answer.completion.choices), str(answer))

    def _count(self, well: bool, said: str) -> None:
        self.answers += 1
        if not well:
            self.failures.append(said)


async def names(client: Connection) -> list[str]:
    answer = await client.ask("GET", "/v1/models")
    assert answer.status == 200, answer
    return [model["id"] for model in answer.json()["data"]]


async def until(client: Connection, name: str) -> None:
    """Asks for the list of models until the name is in it."""
    async with asyncio.timeout(PATIENCE):
        while name not in await names(client):
            await asyncio.sleep(0.01)


async def test_reloads_under_load_lose_no_request(serve: Serve, tmp_path: Path) -> None:
    """Twenty times: other names, another provider behind `m`, other limits; every fifth is bad."""
    async with upstream(good) as first, upstream(good) as second:
        servers = (first, second)

        def config(number: int) -> dict[str, Any]:
            made = up(servers[number % 2].base_url)
            made["models"][f"v{number}"] = made["models"]["m"]
            return {**made, "limits": {"max_concurrent": 1000 + number}}

        gateway = await serve(config(0))
        file, load = tmp_path / "0.yaml", Load()
        for _ in range(4):
            load.rest(gateway)
        for _ in range(2):
            load.grpc(gateway)
        async with gateway.connect() as client:
            for number in range(1, 21):
                if number % 5 == 0:
                    write(file, {**config(number), "models": {"m": {"targets": []}}})
                else:
                    write(file, config(number))
                if number % 4:  # else it is found by itself
                    gateway.tell(signal.SIGHUP)
                if number % 5 == 0:
                    await gateway.said(BAD, number // 5)
                    assert f"v{number - 1}" in await names(client)
                else:
                    await until(client, f"v{number}")
                    assert f"v{number - 1}" not in await names(client)
        asked = [len(server.calls) for server in servers]
        await load.end()
        assert load.failures == []
        assert load.answers > 100
        assert min(asked) > 10
        assert first.connections + second.connections < 100
    reasons = [entry["reason"] for entry in await gateway.said(BAD, 4)]
    assert all("models.m.targets: expected 1 or more entries" in reason for reason in reasons)
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert [line for line in gateway.complaints if BAD not in line] == []


async def test_every_worker_hears_of_it(serve: Serve, tmp_path: Path) -> None:
    gateway = await serve(echo("m"), "--workers", "2", ready=2)
    write(tmp_path / "0.yaml", echo("m", "new"))
    await gateway.said("configuration reloaded", 3)  # the supervisor is the third
    for _ in range(8):
        assert "new" in [model["id"] for model in (await gateway.ask("GET", "/v1/models")).json()["data"]]
    pids = [entry["pid"] for entry in await gateway.said("worker started", 2)]
    os.kill(pids[0], signal.SIGKILL)
    (entry,) = (await gateway.said("ready", 3))[2:]
    assert entry["models"] == ["m", "new"]
    gateway.tell(signal.SIGHUP)
    write(tmp_path / "0.yaml", echo("m", "newer"))
    gateway.tell(signal.SIGHUP)
    await gateway.said("configuration reloaded", 6)
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_first_local_model_may_come_by_a_reload(
    serve: Serve, engines: Engines, tmp_path: Path, workers: int
) -> None:
    gateway = await serve(ECHO, "--workers", str(workers), ready=workers)
    write(tmp_path / "0.yaml", engines.config())
    await gateway.said("configuration reloaded", workers + (workers > 1))
    async with gateway.connect() as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", chat("polly")))
        await say(await engines.prediction(), b"Polly")
        answer = await asking
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "Polly")
    write(tmp_path / "0.yaml", ECHO)
    await gateway.said("configuration reloaded", 2 * (workers + (workers > 1)))
    assert (await gateway.chat("polly")).status == 404
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()
    assert len(engines.started()) == 1
    assert gateway.complaints == []


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_file_that_was_emptied_takes_no_key_away(serve: Serve, tmp_path: Path, workers: int) -> None:
    """As by who saves a file in two steps, and has a full disk."""
    config = {**ECHO, "keys": {"app": KEY}}
    gateway = await serve(config, "--workers", str(workers), ready=workers)
    processes = workers + (workers > 1)
    (tmp_path / "0.yaml").write_text("")
    for entry in await gateway.said(BAD, processes):
        assert "would let everybody in without a key: that needs a restart" in entry["reason"]
    for _ in range(4):
        assert (await gateway.ask("GET", "/v1/models")).status == 401
    (tmp_path / "0.yaml").write_text(json.dumps(config))
    await gateway.said("the configuration is as it was, and in force", processes)
    assert (await gateway.ask("GET", "/v1/models", headers={"x-api-key": KEY})).status == 200
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0


async def test_a_page_may_ask_when_keys_are_needed(serve: Serve, tmp_path: Path) -> None:
    """The guard against web pages is for those who need no key, and goes as soon as one is needed."""
    gateway = await serve(ECHO)
    page = {"Origin": "https://evil.example"}
    assert (await gateway.ask("GET", "/v1/models", headers=page)).status == 403
    write(tmp_path / "0.yaml", {**ECHO, "keys": {"app": KEY}})
    gateway.tell(signal.SIGHUP)
    await gateway.said("configuration reloaded")
    assert (await gateway.ask("GET", "/v1/models", headers=page)).status == 401
    assert (await gateway.ask("GET", "/v1/models", headers={**page, "x-api-key": KEY})).status == 200


async def test_a_source_knows_how_the_files_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files are looked at where none is named, also while they aren't there yet."""
    monkeypatch.delenv("LLMG_CONFIG", raising=False)
    source = read(None, tmp_path)
    assert isinstance(source, Source)
    assert source.look == (None, None)
    kept = Kept(source.read)
    reloader = Reloader(source, kept, every=0.01)
    task = asyncio.create_task(reloader.run())
    (tmp_path / "config").mkdir()
    write(tmp_path / "config" / "config.local.yaml", echo("mine"))
    await kept.until(1)
    assert "mine" in kept.models
    task.cancel()
    await asyncio.wait({task})

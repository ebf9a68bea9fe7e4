"""Without keys only this machine is served, if nobody says otherwise."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from boot.conftest import Serve
from llmg.boot.exposure import Exposed, check_exposure, on_loopback, sees_details, warn
from llmg.boot.settings import Settings
from llmg.core.context import ADMIN, ANONYMOUS, Principal
from support.gateway import ECHO

KEY = "sk-" + "a" * 32
EVERYWHERE = "0.0.0.0:0"
OPEN = "everybody who can reach it may ask, without a key"
IN_THE_CLEAR = "keys come in the clear, as there is no TLS: others may read them on their way"
TENANT: Mapping[str, Any] = {"acme": {"teams": {}}}


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("192.0.2.7", False),
        ("2001:db8::1", False),
    ],
)
def test_what_leads_to_this_machine_alone(host: str, here: bool) -> None:
    assert on_loopback(host) is here


def test_a_name_leads_where_its_addresses_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"here": ["127.0.0.1", "::1"], "both": ["127.0.0.1", "192.0.2.7"]}

    def getaddrinfo(host: str, port: object) -> list[tuple[Any, ...]]:
        if host not in found:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert [on_loopback(host) for host in ("here", "both", "nowhere")] == [True, False, False]


@pytest.mark.parametrize(
    ("config", "who", "sees"),
    [
        ({}, ANONYMOUS, True),
        ({"keys": {"app": KEY}}, Principal(key_id="app"), False),
        ({"tenants": TENANT}, Principal(tenant="acme"), False),
        ({"keys": {"app": KEY}}, Principal(key_id="ops", roles=frozenset({ADMIN})), True),
        ({"keys": {"app": KEY}, "server": {"explain": "everybody"}}, Principal(key_id="app"), True),
    ],
)
def test_who_is_told_how_targets_do(config: dict[str, Any], who: Principal, sees: bool) -> None:
    assert sees_details(Settings(**config), who) is sees


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({"http": {"server_addr": "0.0.0.0:8080"}}, "http.server_addr is 0.0.0.0:8080"),
        ({"http": {"server_addr": "[::]:8080"}}, "http.server_addr is [::]:8080"),
        ({"grpc": {"server_addr": "192.0.2.7:8081"}}, "grpc.server_addr is 192.0.2.7:8081"),
        ({"graphql": {"server_addr": "0.0.0.0:8082"}}, "graphql.server_addr is 0.0.0.0:8082"),
    ],
)
def test_elsewhere_keys_are_needed(config: dict[str, Any], setting: str) -> None:
    with pytest.raises(Exposed) as caught:
        check_exposure(Settings(**config))
    assert str(caught.value).startswith(setting)
    assert "--insecure" in str(caught.value)
    for keys in (
        {"keys": {"app": KEY}},
        {"admin": {"keys": {"ops": KEY}}},
        {"tenants": TENANT},
        {"catalog": {"file": "catalog.yaml"}},
        {"server": {"insecure": True}},
    ):
        check_exposure(Settings(**{**config, **keys}))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"grpc": {"enabled": False, "server_addr": "0.0.0.0:8081"}},
        {"graphql": {"enabled": False, "server_addr": "0.0.0.0:8082"}},
        {"http": {"server_addr": "0.0.0.0:8080"}}
        | {name: {"enabled": False} for name in ("rest", "websocket", "gateway", "graphql")},
    ],
)
def test_what_is_not_served_is_reached_by_nobody(config: dict[str, Any]) -> None:
    check_exposure(Settings(**config))


def test_it_does_not_start(tmp_path: Path) -> None:
    for words in (["serve"], ["serve", "--workers", "2"], ["serve", "--door", "rest"]):
        done = _llmg(tmp_path, *words, LLMG_HTTP__SERVER_ADDR=EVERYWHERE)
        assert done.returncode == 2
        assert done.stderr.startswith("http.server_addr is 0.0.0.0:0, where others can reach it, and there are no keys")
        assert "`keys` or `tenants`" in done.stderr
        assert "--insecure" in done.stderr
        assert done.stderr.count("\n") == 1


def _llmg(directory: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    file = directory / "config.yaml"
    file.write_text(json.dumps(ECHO))
    return subprocess.run(
        [sys.executable, "-m", "llmg.boot", *words, "-c", str(file)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "env", "config"),
    [
        (["--insecure"], {}, {}),
        ([], {"LLMG_SERVER__INSECURE": "true"}, {}),
        ([], {}, {"keys": {"app": KEY}}),
        (["--insecure", "--workers", "2"], {}, {}),
    ],
)
async def test_what_lets_it_start(
    serve: Serve, words: list[str], env: Mapping[str, str], config: dict[str, Any]
) -> None:
    workers = 2 if "--workers" in words else 1
    gateway = await serve({**ECHO, **config}, *words, ready=workers, LLMG_HTTP__SERVER_ADDR=EVERYWHERE, **env)
    gateway.address = ("127.0.0.1", gateway.address[1])
    headers = {"x-api-key": KEY} if config else {}
    assert (await gateway.ask("GET", "/v1/models", headers=headers)).status == 200
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.over()
    (warning,) = [entry for entry in gateway.entries if entry["level"] == "warning"]
    assert warning["event"] == (IN_THE_CLEAR if config else OPEN)
    assert warning["addresses"] == {"http": EVERYWHERE}


def warnings(config: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    with structlog.testing.capture_logs() as logs:
        warn(Settings(**config))
    return [(entry["event"], [*entry["addresses"]]) for entry in logs]


def test_what_is_warned_of() -> None:
    keys = {"keys": {"app": KEY}}
    both = {"http": {"server_addr": "0.0.0.0:80"}, "grpc": {"server_addr": "[::]:81"}}
    tls = {"cert": "cert.pem", "key": "key.pem"}
    assert warnings({}) == warnings(keys) == []
    assert warnings(both) == [(OPEN, ["http", "grpc"])]
    assert warnings({**both, **keys}) == [(IN_THE_CLEAR, ["http", "grpc"])]
    assert warnings({**both, **keys, "http": {**both["http"], "tls": tls}}) == [(IN_THE_CLEAR, ["grpc"])]
    assert warnings({**keys, "http": {**both["http"], "tls": tls}}) == []


async def test_a_reload_can_not_expose_it(serve: Serve, tmp_path: Path) -> None:
    gateway = await serve({**ECHO, "keys": {"app": KEY}}, LLMG_HTTP__SERVER_ADDR=EVERYWHERE)
    gateway.address = ("127.0.0.1", gateway.address[1])
    (tmp_path / "0.yaml").write_text(json.dumps(ECHO))
    gateway.tell(signal.SIGHUP)
    (entry,) = await gateway.said("the new configuration can't be used, the old one holds")
    assert "would let everybody in without a key" in entry["reason"]
    assert (await gateway.ask("GET", "/v1/models")).status == 401

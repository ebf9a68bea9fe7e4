"""The command line, as its users run it: a process, its output, its exit code."""

from __future__ import annotations

import asyncio
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

from boot.conftest import ROOT, Serve, Served
from boot.test_tls import Certificates
from support.gateway import ECHO, to_upstream
from support.http import PATIENCE
from support.redis import redis_server
from support.upstream import (
    KEY,
    Call,
    bad_request,
    error_data,
    error_event,
    good,
    stall_midway,
    unauthorized,
    upstream,
    words,
)

ADMIN = "sk-" + "b" * 32


def llmg(*words: str, directory: Path, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "llmg.boot", *words],
        cwd=directory,
        env={**os.environ, **env},
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def write(directory: Path, config: Mapping[str, Any]) -> str:
    file = directory / "config.yaml"
    file.write_text(json.dumps(config))
    return str(file)


# -- config and models ----------------------------------------------------------------------------------------------


def test_a_good_configuration(tmp_path: Path) -> None:
    file = write(tmp_path, ECHO)
    done = llmg("config", "check", "-c", file, directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    numbers = "models: 1, providers: 1, tenants: 0, endpoints: 0, keys: 0"
    assert done.stdout == f"ok: {file}; {numbers}; everybody may ask, without a key\n"


def with_catalog(directory: Path, text: str) -> str:
    """A configuration whose catalog is that text, in a folder of its own."""
    (directory / "tenants").mkdir()
    (directory / "tenants" / "catalog.yaml").write_text(text)
    return write(directory, {**ECHO, "catalog": {"file": "tenants/catalog.yaml"}, "admin": {"keys": {"ops": ADMIN}}})


def test_a_good_catalog(tmp_path: Path) -> None:
    key = {"id": "k", "sha256": "0" * 64}
    groups = {"g": {"endpoints": {"one": {"keys": [key, {"id": "l", "sha256": "1" * 64}]}, "two": {}}}}
    file = with_catalog(tmp_path, json.dumps({"tenants": {"acme": {"teams": {"t": {"groups": groups}}}, "b": {}}}))
    done = llmg("config", "check", "-c", file, directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"ok: {file}; models: 1, providers: 1, tenants: 2, endpoints: 2, keys: 3\n"
    assert [each.name for each in (tmp_path / "tenants").iterdir()] == ["catalog.yaml"]  # no log of changes


@pytest.mark.parametrize("words", [("serve",), ("serve", "--workers", "2"), ("config", "check")])
@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("tenants: {acme: {lmits: {}}}", 2, "tenants.acme.lmits: unknown key; did you mean `limits`? ("),
        (
            "tenants: {acme: {models: {mine: none}}}",
            2,
            "tenants.acme.models.mine: expected the name of a declared model",
        ),
        ("", 1, "it is empty"),
        ("tenants: [", 1, "it is neither YAML nor JSON"),
    ],
)
def test_a_catalog_that_can_not_be_used(
    tmp_path: Path, words: tuple[str, ...], text: str, code: int, said: str
) -> None:
    done = llmg(*words, "-c", with_catalog(tmp_path, text), directory=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert str(tmp_path / "tenants" / "catalog.yaml") in done.stderr
    assert len(done.stderr.splitlines()) == code  # above it, that the configuration has a problem


def test_a_catalog_with_limits_for_several_workers(tmp_path: Path) -> None:
    file = with_catalog(tmp_path, "tenants: {acme: {limits: {max_concurrent: 1}}}")
    done = llmg("serve", "-c", file, "--workers", "2", directory=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "server.workers: expected `redis`, as there are limits and several workers" in done.stderr
    assert str(tmp_path / "tenants" / "catalog.yaml") in done.stderr


def in_redis(directory: Path, url: str) -> str:
    catalog = {"redis": {"url": url}, "catalog": {"redis": True}, "admin": {"keys": {"ops": ADMIN}}}
    return write(directory, {**ECHO, **catalog})


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_catalog_whose_redis_is_away(tmp_path: Path, workers: str) -> None:
    file = in_redis(tmp_path, "redis://127.0.0.1:1/0")
    done = llmg("serve", "--workers", workers, "-c", file, directory=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the catalog in Redis: the catalog's Redis can't be reached (ConnectionError: ")
    assert len(done.stderr.splitlines()) == 1
    done = llmg("config", "check", "-c", file, directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "; not checked: the catalog in Redis: the catalog's Redis can't be reached" in done.stdout


def test_a_redis_that_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = in_redis(tmp_path, f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        done = llmg("config", "check", "-c", file, directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "; not checked: the catalog in Redis, as it did not answer within 1.5 seconds" in done.stdout


async def test_a_catalog_in_redis(tmp_path: Path) -> None:
    async with redis_server() as redis:
        file = in_redis(tmp_path, redis.url)
        for tenants, code in (('{"acme":{}}', 0), ('{"acme":{"lmits":{}}}', 2)):
            await redis.command(f"HSET {{llmg:catalog}} version 1 tenants '{tenants}'")
            for words in (("config", "check"), ("serve",)) if code else (("config", "check"),):
                done = await asyncio.to_thread(llmg, *words, "-c", file, directory=tmp_path)
                assert done.returncode == code
                assert ("tenants: 1, " in done.stdout) is (code == 0)
                assert ("did you mean `limits`? (the catalog in Redis)" in done.stderr) is (code == 2)


def test_no_configuration(tmp_path: Path) -> None:
    done = llmg("config", "check", directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok: the default, as there is no file")


@pytest.mark.parametrize("command", [("config", "check"), ("serve",), ("models",)])
def test_a_wrong_key_is_named_with_the_nearest_right_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    file = write(tmp_path, {**ECHO, "http": {"server_adr": "127.0.0.1:0"}})
    done = llmg(*command, "-c", file, directory=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "http.server_adr: unknown key; did you mean `server_addr`?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    done = llmg("serve", "-c", "nowhere.yaml", directory=tmp_path)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr
    assert "No such file" in done.stderr


def test_the_schema_is_the_committed_one(tmp_path: Path) -> None:
    done = llmg("config", "schema", directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "config" / "config.schema.json").read_text(encoding="utf-8")


def test_the_models(tmp_path: Path) -> None:
    targets = [{"provider": "echo", "model": "a", "weight": 3}, {"provider": "echo", "model": "b"}]
    file = write(tmp_path, {"providers": {"echo": {"kind": "echo"}}, "models": {"fast": {"targets": targets}}})
    done = llmg("models", "-c", file, directory=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("fast", "weighted", "echo/a (75%)", "echo/b (25%)"):
        assert part in done.stdout


def test_the_models_with_their_policies(tmp_path: Path) -> None:
    tiered = [{"provider": "echo", "model": "b", "priority": 1}, {"provider": "echo", "model": "a"}]
    policies: dict[str, Any] = {
        "one": {"policy": "p2c", "targets": [{"provider": "echo", "model": "a", "weight": 2.5}]},
        "two": {
            "policy": {"kind": "priority", "tiers": [{"kind": "sticky", "by": "user"}, "random"]},
            "targets": tiered,
        },
    }
    file = write(tmp_path, {"providers": {"echo": {"kind": "echo"}}, "models": policies})
    done = llmg("models", "-c", file, directory=tmp_path, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("p2c", "echo/a (weight 2.5)", "priority (sticky (by: user), random)", "0: echo/a", "1: echo/b (100%)"):
        assert part in done.stdout
    assert done.stdout.index("0: echo/a") < done.stdout.index("1: echo/b")


# -- serve ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use(tmp_path: Path, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = write(tmp_path, {**ECHO, "http": {"server_addr": address}})
        done = llmg("serve", "--workers", workers, "-c", file, directory=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"can't listen on {address} (http.server_addr): Address already in use\n"


def test_several_workers_with_limits_need_a_place_to_count(tmp_path: Path) -> None:
    file = write(tmp_path, {**ECHO, "limits": {"max_concurrent": 1}})
    done = llmg("serve", "-c", file, "--workers", "2", directory=tmp_path)
    assert done.returncode == 2
    assert "server.workers: expected `redis`, as there are limits and several workers" in done.stderr


def test_a_host_that_does_not_exist(tmp_path: Path) -> None:
    nowhere = {**ECHO, "http": {"server_addr": "nowhere.invalid:8080"}}
    done = llmg("serve", "-c", write(tmp_path, nowhere), directory=tmp_path)
    assert done.returncode == 2  # whoever can reach it, when it is known where that is
    assert "there are no keys, so everybody could ask" in done.stderr
    done = llmg("serve", "-c", write(tmp_path, {**nowhere, "keys": {"app": ADMIN}}), directory=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("can't listen on nowhere.invalid:8080 (http.server_addr): ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_model_file_that_is_not_there(tmp_path: Path, command: str) -> None:
    model = {"targets": [{"provider": "local", "model": "/models/absent.gguf"}]}
    file = write(
        tmp_path, {"providers": {"local": {"kind": "backend", "engine": "xllamacpp"}}, "models": {"mine": model}}
    )
    words = ("serve",) if command == "serve" else ("config", "check")
    done = llmg(*words, "-c", file, directory=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "/models/absent.gguf" in done.stderr
    assert "Traceback" not in done.stderr


async def test_the_log_is_json_and_holds_no_secret(serve: Serve) -> None:
    secret = "header-secret-9876543210"
    async with upstream(unauthorized, bad_request, error_data, error_event, good) as up:
        config = to_upstream(up.base_url, api_key=KEY, headers={"x-team": secret})
        gateway = await serve(
            {**config, "log": {"level": "debug", "format": "auto"}, "http": {"access_log": True}},
            "--workers",
            "2",
            ready=2,
        )
        assert (await gateway.chat()).status == 502
        assert (await gateway.chat()).status == 400
        for _ in range(2):
            broken = await gateway.chat(stream=True)
            assert json.loads(broken.events[-1])["error"]
        assert (await gateway.chat()).status == 200
        assert up.last.headers["authorization"] == f"Bearer {KEY}"
        assert up.last.headers["x-team"] == secret
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()
    assert not [line for line in gateway.lines if not line.startswith("{")]
    everything = "".join(gateway.lines)
    assert "POST /v1/chat/completions" in everything
    for hidden in (KEY, secret):
        assert hidden not in everything


# -- chat -----------------------------------------------------------------------------------------------------------


WAYS: dict[str, tuple[str, ...]] = {"http": (), "grpc": ("--grpc",)}
BOTH = pytest.mark.parametrize("way", WAYS)


def where(gateway: Served, way: str) -> str:
    """Where it listens for this way."""
    return gateway.grpc_address if way == "grpc" else "http://{}:{}".format(*gateway.address)


async def chat(gateway: Served, way: str, *words: str, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """`llmg chat`, on a thread: what it talks to may be on this one."""
    words = ("chat", *WAYS[way], "--url", where(gateway, way), *words)
    return await asyncio.to_thread(llmg, *words, directory=ROOT, given=given, **env)


async def to(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(llmg, "chat", *words, "--url", url, "Hello", directory=ROOT)


@BOTH
async def test_chat_answers_one_question(serve: Serve, way: str) -> None:
    gateway = await serve(ECHO)
    done = await chat(gateway, way, "Hello there, friend")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello there, friend\n", "")
    own = {f"LLMG_{way.upper()}__SERVER_ADDR": where(gateway, way).removeprefix("http://")}
    done = await asyncio.to_thread(llmg, "chat", *WAYS[way], "Hello", directory=ROOT, **own)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")


@BOTH
async def test_chat_keeps_a_conversation_that_is_piped_in(serve: Serve, way: str) -> None:
    async with upstream(good) as up:
        gateway = await serve(to_upstream(up.base_url))
        done = await chat(
            gateway, way, "-m", "m", "-s", "Be kind.", "--temperature", "0", "--max-tokens", "9", given="One\n\nTwo\n"
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "Hello there\nHello there\n", "")
        first, second = (call.body for call in up.calls)
        assert [m["role"] for m in first["messages"]] == ["system", "user"]
        assert [(m["role"], m["content"]) for m in second["messages"]] == [
            ("system", "Be kind."),
            ("user", "One"),
            ("assistant", "Hello there"),
            ("user", "Two"),
        ]
        assert (second["temperature"], second["stream"]) == (0, True)
        assert 9 in (second.get("max_tokens"), second.get("max_completion_tokens"))


@BOTH
async def test_chat_goes_on_after_a_failure(serve: Serve, way: str) -> None:
    async with upstream(error_data, good) as up:
        gateway = await serve(to_upstream(up.base_url))
        done = await chat(gateway, way, given="One\nTwo\n")
        assert done.returncode == 0
        assert done.stdout.endswith("Hello there\n")
        assert done.stderr.strip()
        assert [m["content"] for m in up.last.body["messages"]] == ["Two"]  # what failed was not said


@BOTH
async def test_chat_with_a_model_that_does_not_exist(serve: Serve, way: str) -> None:
    gateway = await serve(ECHO)
    done = await chat(gateway, way, "-m", "nope", "Hello")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the model 'nope' does not exist\n")


@BOTH
async def test_chat_with_a_gateway_that_has_no_models(serve: Serve, way: str) -> None:
    gateway = await serve({"providers": ECHO["providers"]})
    done = await chat(gateway, way, "Hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{where(gateway, way)} names no model\n"


@pytest.mark.parametrize("words", [("Hello",), ("-m", "m", "Hello"), ()])
@BOTH
def test_chat_without_a_gateway(tmp_path: Path, words: tuple[str, ...], way: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # but nobody listens
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        own = {f"LLMG_{way.upper()}__SERVER_ADDR": address}
        done = llmg("chat", *WAYS[way], *words, directory=tmp_path, given="Hello\n", **own)
    assert (done.returncode, done.stdout) == (1, "")
    hint = "start one with `llmg serve`, or name another with --url"
    name = address if way == "grpc" else f"http://{address}"
    assert done.stderr == f"no gateway answers at {name}: {hint}\n"


@pytest.mark.parametrize(
    ("way", "url"),
    [
        ("http", "ftp://127.0.0.1"),
        ("http", "http://127.0.0.1:x"),
        ("http", "http://me:you@127.0.0.1"),
        ("http", ""),
        ("grpc", "ftp://127.0.0.1:8081"),
        ("grpc", "127.0.0.1"),
        ("grpc", "127.0.0.1:8081/v1"),
        ("grpc", ""),
    ],
)
def test_chat_with_an_address_that_is_none(tmp_path: Path, way: str, url: str) -> None:
    done = llmg("chat", *WAYS[way], "--url", url, "Hello", directory=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--url: expected ")
    assert "Traceback" not in done.stderr


async def test_chat_takes_an_address_without_its_scheme(serve: Serve) -> None:
    gateway = await serve(ECHO)
    done = await asyncio.to_thread(llmg, "chat", "--url", "{}:{}".format(*gateway.address), "Hello", directory=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")


GUARDED = {**ECHO, "keys": {"mine": "sk-1234567890abcdef"}}


@BOTH
async def test_chat_with_an_api_key(serve: Serve, way: str) -> None:
    gateway = await serve(GUARDED)
    for done in (
        await chat(gateway, way, "--api-key", "sk-1234567890abcdef", "Hello"),
        await chat(gateway, way, "-m", "m", "Hello", LLMG_API_KEY="sk-1234567890abcdef"),
    ):
        assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
    done = await chat(gateway, way, "--api-key", "sk-another-one-12345", "Hello")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the API key is not valid\n")
    done = await chat(gateway, way, "-m", "m", "Hello", LLMG_API_KEY="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the gateway needs an API key: name it with --api-key, or in LLMG_API_KEY\n"


@BOTH
def test_chat_with_a_key_that_is_none(tmp_path: Path, way: str) -> None:
    done = llmg("chat", *WAYS[way], "--api-key", "two\nlines", "Hello", directory=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "--api-key: expected printable ASCII characters without spaces\n"


async def test_chat_with_a_server_that_is_no_gateway(serve: Serve) -> None:
    gateway = await serve({**ECHO, "rest": {"enabled": False}})
    done = await chat(gateway, "http", "Hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert "GET /v1/models" in done.stderr


@BOTH
async def test_chat_says_what_the_gateway_says_when_it_stops(serve: Serve, way: str) -> None:
    async with upstream(stall_midway) as up:
        gateway = await serve({**to_upstream(up.base_url), "server": {"grace": "300ms"}})
        asked = asyncio.create_task(chat(gateway, way, "Hello"))
        await up.call(0)
        gateway.tell(signal.SIGTERM)
        done = await asked
    assert (done.returncode, done.stderr) == (1, "the gateway is shutting down\n")


async def test_chat_says_what_the_gateway_says_in_the_middle_of_an_answer() -> None:
    async def gateway(call: Call) -> None:
        if call.method == "GET":
            await call.json(200, {"data": [{"id": "m"}]})
            return
        await words(call, "Hel")
        await call.event({"error": {"message": "the gateway is shutting down", "code": "shutting_down"}})
        await call.close_stream()

    async with upstream(gateway) as up:
        done = await to(up.base_url)
    assert (done.returncode, done.stdout, done.stderr) == (1, "Hel\n", "the gateway is shutting down\n")


@BOTH
async def test_chat_says_what_the_gateway_says_of_its_upstream(serve: Serve, way: str) -> None:
    async with upstream(unauthorized) as up:
        gateway = await serve(to_upstream(up.base_url))
        done = await chat(gateway, way, "Hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the upstream refused the gateway's credentials\n"


# -- chat: connections that can not be made -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@BOTH
async def test_chat_with_a_certificate(serve: Serve, certificates: Certificates, way: str) -> None:
    gateway = await serve(certificates.config())
    address = gateway.grpc_address if way == "grpc" else "{}:{}".format(*gateway.address)
    for url in (f"https://{address}", address):
        done = await to(url, *WAYS[way], "--ca", str(certificates.ca))
        assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
    done = await to(f"https://{address}", *WAYS[way])
    assert (done.returncode, done.stdout) == (1, "")
    name = address if way == "grpc" else f"https://{address}"
    assert done.stderr.startswith(f"no gateway answers at {name}: its certificate is not trusted (")
    assert "issuer certificate" in done.stderr
    assert "--ca" in done.stderr
    done = await to(f"http://{address}", *WAYS[way])
    assert (done.returncode, done.stdout) == (1, "")
    assert "it may want https://" in done.stderr
    assert "llmg serve" not in done.stderr


@BOTH
async def test_chat_where_another_protocol_is_spoken(serve: Serve, certificates: Certificates, way: str) -> None:
    gateway = await serve(ECHO)
    http, grpc = "{}:{}".format(*gateway.address), gateway.grpc_address
    own, other = (grpc, http) if way == "grpc" else (http, grpc)
    done = await to(f"http://{other}", *WAYS[way])
    assert (done.returncode, done.stdout) == (1, "")
    assert other in done.stderr
    assert {"http": "its answer is no HTTP; it may want --grpc", "grpc": "it may want https://, or no --grpc"}[
        way
    ] in done.stderr
    done = await to(f"https://{own}", *WAYS[way], "--ca", str(certificates.ca))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no TLS connection can be made (wrong version number); it may want http://" in done.stderr


@BOTH
async def test_chat_with_a_host_that_does_not_exist(way: str) -> None:
    done = await to("http://nowhere.invalid:8080", *WAYS[way])
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere.invalid:8080: its name can't be resolved (" in done.stderr


@pytest.mark.parametrize(
    ("url", "text", "words"),
    [
        ("https://127.0.0.1:1", None, "ca.pem can't be read: No such file or directory"),
        ("https://127.0.0.1:1", "nothing of use", "ca.pem holds no certificates in PEM"),
        ("http://127.0.0.1:1", None, "there is no certificate to check at http://127.0.0.1:1"),
    ],
)
@BOTH
def test_chat_with_issuers_that_are_of_no_use(tmp_path: Path, way: str, url: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    done = llmg("chat", *WAYS[way], "--url", url, "--ca", "ca.pem", "Hello", directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"--ca: {words}\n")


# -- what the commands do without -----------------------------------------------------------------------------------

IMPORTS = {"PYTHONPROFILEIMPORTTIME": "1"}  # each import is a line on stderr


def imported(lines: list[str]) -> set[str]:
    """The packages of which something was imported, by the profile."""
    names = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("words", [("version",), ("config", "check"), ("config", "schema"), ("models",)])
def test_small_commands_import_no_client_and_no_server(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = llmg(*words, directory=tmp_path, **IMPORTS)
    assert done.returncode == 0
    names = imported(done.stderr.splitlines())
    assert {"llmg", "typer"} <= names
    assert not names & {"aiohttp", "grpc", "uvicorn", "starlette", "uvloop", "xllamacpp", "dependency_injector"}


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_serving_upstreams_imports_nothing_of_local_models(serve: Serve, workers: str) -> None:
    async with upstream(good) as up:
        config = to_upstream(up.base_url)
        config["providers"] |= ECHO["providers"]
        config |= {name: {"enabled": False} for name in ("grpc", "gateway", "graphql")}
        gateway = await serve(config, "--workers", workers, ready=int(workers), **IMPORTS)
        assert (await gateway.chat()).status == 200
        assert (await gateway.chat("echo/any", stream=True)).status == 200
        assert (await gateway.ask("GET", "/v1/models")).status == 200
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    await gateway.gone()
    names = imported(gateway.lines)
    assert {"llmg", "uvicorn"} <= names
    assert not names & {"grpc", "google", "strawberry", "xllamacpp", "sqlalchemy", "opentelemetry"}

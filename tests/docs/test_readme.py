"""The examples of the README, run as they stand there, but for the address."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.gateway import Process, process

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.M | re.S)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def block(language: str, holding: str) -> str:
    found = [text for kind, text in BLOCKS if kind == language and holding in text]
    assert len(found) == 1, f"the README has {len(found)} blocks of {language} with {holding!r}"
    return found[0]


def run(gateway: Process, words: list[str], script: str) -> str:
    host, port = gateway.address
    text = script.replace("127.0.0.1:8080", f"{host}:{port}").replace("127.0.0.1:8081", gateway.grpc_address)
    env = {**os.environ, "LLMG_HTTP__SERVER_ADDR": f"{host}:{port}"}  # where `llmg chat` looks for it
    done = subprocess.run(
        [*words, text], cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(gateway: Process) -> None:
    answer = json.loads(run(gateway, ["bash", "-euc"], block("shell", "curl -s http")))
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0


def test_the_openai_sdk(gateway: Process) -> None:
    said, vectors = run(gateway, [sys.executable, "-c"], block("python", "OpenAI(")).rsplit("\n", 2)[:2]
    assert said.strip()
    assert re.fullmatch(r"2 vectors of \d+ dimensions", vectors)


def test_grpc(gateway: Process) -> None:
    said = run(gateway, ["bash", "-euc"], block("shell", "buf curl"))
    assert '"delta"' in said
    assert '"usage"' in said


def test_the_client(gateway: Process) -> None:
    said, way = run(gateway, [sys.executable, "-c"], block("python", "llmg.client")).rsplit("\n", 2)[:2]
    assert said.strip()
    assert way == "by local/smollm2-135m-instruct"


def test_the_websocket(gateway: Process) -> None:
    said, last = run(gateway, [sys.executable, "-c"], block("python", "/v1/ws")).rsplit("\n", 2)[:2]
    assert said.strip()
    assert json.loads(last)["type"] == "done"


def test_the_rest_gateway(gateway: Process) -> None:
    lines = run(gateway, ["bash", "-euc"], block("shell", "completions:stream")).splitlines()
    events = [event for line in lines for event in json.loads(line)["result"]["events"]]
    assert any("delta" in event for event in events)
    assert "usage" in events[-1]


def test_graphql(gateway: Process) -> None:
    said = run(gateway, ["bash", "-euc"], block("shell", "8080/graphql"))
    assert '"text"' in said
    assert "event: complete" in said


def test_the_command_line(gateway: Process) -> None:
    assert run(gateway, ["bash", "-euc"], block("shell", "llmg chat")).strip()


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    from llmg.boot.settings import load

    config = block("yaml", "providers:")
    path = tmp_path / "config.yaml"
    path.write_text(config, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    command = [sys.executable, "-m", "llmg.boot", "config", "check", "-c", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(load(path, env={}).models) == set(yaml.safe_load(config)["models"])
    path.write_text(config + block("yaml", "tenants:"), encoding="utf-8")
    settings = load(path, env={"OPENAI_API_KEY": "sk-x", "WEB_KEY": "k" * 20})
    assert settings.tenants["acme"].limits.max_concurrent == 20
    path.write_text(block("yaml", "my-app:"), encoding="utf-8")
    settings = load(path, env={"MY_APP_KEY": "k" * 20})
    assert set(settings.keys) == {"my-app"}
    assert settings.grpc.tls is not None


def test_what_it_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target

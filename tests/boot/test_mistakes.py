"""What those are told who wrote something wrong into their configuration: one message, its place, and how it ends."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from boot.test_cli import llmg
from llmg.boot.cli import app

ADMIN = "admin: {keys: {ops: aaaaaaaaaaaaaaaa}}\n"
P = "providers:\n  p: {kind: echo}\n"
M = P + "models:\n  m: {targets: [{provider: p, model: x}]}\n"
TARGETS = "targets: [{provider: p, model: x}]"
UP = "providers: {p: {kind: openai, base_url: 'http://a', %s}}\n"
LOCAL = "providers: {p: {kind: backend, engine: %s}}\nmodels: {m: {targets: [{provider: p, model: x.gguf}]}}\n"
BY_YAML = [
    ("http:\n   access_log: true\n  backlog: 5\n", "3:3", "", "indent it as the keys beside it"),
    ("http:\n\tbacklog: 5\n", "2:1", "", "indent by spaces, not by tabs"),
    ("http:\n  backlog\n  access_log: true\n", "3:13", "", "is it indented as it should be?"),
    ("models_dir: here: there\n", "1:17", "", "A text with `: ` in it needs quotes"),
    ("log: {level: @debug}\n", "1:14", "", "put the text in quotes"),
    (M + "keys: {app: 'aaaaaaaaaaaaaaaaaaaa}\n", "5:13", "", "close the quotes"),
    ("http: {backlog: 5\nlog: {}\n", "2:4", "", "a flow mapping that begins in line 1"),
    ('{"providers": {"p": {"kind": "echo"}}\n', "2:1", "", "a flow mapping that begins in line 1"),
    ("http: {}\nlog: {}\nhttp: {}\n", "3:1", "http", "the key stands twice (first in line 1)"),
    ("http:{backlog: 5}\n", "1:1", "http", "there is no space after its colon; write `http: ...`"),
]
BY_SHAPE = [
    ("provders: {p: {kind: echo}}\n" + "models: {m: p/x, n: m}\n", "1:1", "provders", "did you mean `providers`?"),
    (M + "tls: {cert: a.pem}\n", "5:1", "tls", "unknown key; known: http, grpc"),
    (M + "limits: {rpm: 5}\n", "5:10", "limits.rpm", "known: requests_per_minute, tokens_per_minute, max_concurrent"),
    (P + "models:\n  m:\n    targets:\n      provider: p\n", "5:5", "models.m.targets", "expected a list"),
    (P + "models:\n  - name: m\n", "3:1", "models", "each entry with a name before it: `name: ...`"),
    (
        P + "models: {m: {targets: [p/x]}}\n",
        "3:24",
        "models.m.targets[0]",
        "expected a mapping; known: provider, model",
    ),
    (P + f"models: {{m: {{{TARGETS}, fallbacks: n}}}}\n", "3:50", "models.m.fallbacks", "put it in brackets"),
    (
        P + f"models: {{m: {{{TARGETS}, capabilities: tools}}}}\n",
        "3:50",
        "models.m.capabilities",
        "expected a list such as [tools, vision], or a mapping",
    ),
    (M + "keys: [aaaaaaaaaaaaaaaaaaaa]\n", "5:1", "keys", "each entry with a name before it: `name: ...`"),
    (M + "keys: {app: }\n", "5:8", "keys.app", "is empty; `null` takes back what a lower file said"),
    (P + "models: {m: }\n", "3:10", "models.m", "is empty; `null` takes back what a lower file said"),
    (M + "log: debug\n", "5:1", "log", "expected a mapping; known: level, format"),
    (M + "redis: 'redis://h'\n", "5:1", "redis", "expected a mapping; known: url, timeout"),
    (M + "catalog: c.yaml\n", "5:1", "catalog", "expected a mapping; known: file, redis"),
    ("providers: {p: echo}\n", "1:13", "providers.p", "expected a mapping; with its `kind`: backend, openai, echo"),
    (
        M + "tenants: {acme: {endpoints: {}}}\n",
        "5:18",
        "tenants.acme.endpoints",
        "unknown key; known: allow, models, upstreams, limits, labels, teams",
    ),
    (M + "tenants: [{name: acme}]\n", "5:1", "tenants", "each entry with a name before it: `name: ...`"),
]
BY_VALUE = [
    (M + "server: {workers: two}\n", "5:10", "server.workers", "expected a whole number, got 'two'"),
    (M + "server: {workers: true}\n", "5:10", "server.workers", "expected a number, got true"),
    (
        P + "models: {m: {targets: [{provider: p, model: 4}]}}\n",
        "3:38",
        "models.m.targets[0].model",
        "put it in quotes",
    ),
    (M + "http: {server_addr: 8080}\n", "5:8", "http.server_addr", "expected text; put it in quotes"),
    (M + "http: {server_addr: 'h:80800'}\n", "5:8", "http.server_addr", "a port from 0 to 65535, got 'h:80800'"),
    (M + "http: {max_body: 32mb}\n", "5:8", "http.max_body", "expected a size such as 64KiB, 50MiB"),
    (M + "http: {header_timeout: 10sec}\n", "5:8", "http.header_timeout", "expected a duration such as 500ms"),
    (
        M + "http: {header_timeout: 10000}\n",
        "5:8",
        "http.header_timeout",
        "more than 0, up to 10m, got 10000; a number",
    ),
    (M + "http: {tls: {cert: a.pem}}\n", "5:8", "http.tls.key", "is required, but missing"),
    (M + "limits: {requests_per_minute: 0}\n", "5:10", "limits.requests_per_minute", "expected 1 or more, got 0"),
    (M + "limits: {max_concurrent: -5}\n", "5:10", "limits.max_concurrent", "expected 1 or more, got -5"),
    (M + "keys: {app: secret}\n", "5:8", "keys.app", "expected a key of 16 to 256 printable"),
    (M + "keys: {app: 1234567890123456}\n", "5:8", "keys.app", "expected text; put it in quotes"),
    (M + "redis: {url: 'reds://h:6379'}\n", "5:9", "redis.url", "expected a URL such as redis://127.0.0.1:6379/0"),
    (M + "redis: {url: 'localhost:6379'}\n", "5:9", "redis.url", "expected a URL such as redis://127.0.0.1:6379/0"),
    (UP % "base-url: x", "1:53", "providers.p.base-url", "did you mean `base_url`?"),
    (UP % "api_key: '${NOPE}'", "1:53", "providers.p.api_key", "the environment variable NOPE is not set"),
    (UP % "api_key: '${NOPE'", "1:53", "providers.p.api_key", "expected ${NAME} or ${NAME:-default}"),
    (
        "providers: {p: {base_url: 'http://a'}}\n",
        "1:13",
        "providers.p.kind",
        "is required, but missing; known: backend",
    ),
    ("providers: {p: {kind: OpenAI, base_url: 'http://a'}}\n", "1:17", "providers.p.kind", "did you mean `openai`?"),
    ("providers: {p: {kind: openai, base_url: a/v1}}\n", "1:31", "providers.p.base_url", "an http or https URL"),
    ("providers: {p: {kind: backend, engine: vllm}}\n", "1:32", "providers.p.engine", "expected a known engine"),
]
BY_NAME = [
    (
        P + "models: {m: {targets: [{provider: q, model: x}]}}\n",
        "3:25",
        "models.m.targets[0].provider",
        "expected the name of a declared provider, got 'q'; known: p",
    ),
    (P + "models: {a: b, b: a}\n", "3:16", "models.b", "expected no cycle, but this one closes a -> b -> a"),
    (
        P + f"models: {{m: {{{TARGETS}, fallbacks: [n]}}}}\n",
        "3:62",
        "models.m.fallbacks[0]",
        "a declared model, got 'n'",
    ),
    (P + f"models: {{m: {{policy: fastest, {TARGETS}}}}}\n", "3:14", "models.m.policy", "expected one of weighted, "),
    (
        P + f"models: {{m: {{policy: lowest_cost, {TARGETS}}}}}\n",
        "3:10",
        "models.m",
        "expected a `price` for each target",
    ),
    (
        M + "tenants: {t: {upstreams: {openai: {api_key: x}}}}\n",
        "5:27",
        "tenants.t.upstreams.openai",
        "expected the name of a declared provider, got 'openai'; known: p",
    ),
    (M + "catalog: {redis: true}\n", "5:1", "catalog", "expected `redis`, as the catalog is kept there"),
    (M + "catalog: {file: c.yaml}\ntenants: {t: {}}\n", "6:1", "tenants", "together with `catalog`"),
    (
        M + "limits: {max_concurrent: 5}\nserver: {workers: 2}\n",
        "6:10",
        "server.workers",
        "expected `redis`, as there are limits and several workers",
    ),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration is written; relative names are from its folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "c.yaml"


def check() -> tuple[int, str]:
    """`llmg config check`: its exit code, and what it says."""
    done = CliRunner().invoke(app, ["config", "check", "-c", "c.yaml"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(("text", "place", "path", "said"), [*BY_YAML, *BY_SHAPE, *BY_VALUE, *BY_NAME])
def test_a_mistake_in_the_file(file: Path, text: str, place: str, path: str, said: str) -> None:
    file.write_text(text)
    code, output = check()
    assert code == 2
    title, line = output.splitlines()  # one cause, one line
    assert title == "the configuration has a problem:"
    assert line.startswith(f"  {path}: " if path else "  is not YAML: ")
    assert said in line
    assert line.endswith(f" (c.yaml:{place})")


HERE = "http: {server_addr: '127.0.0.1:0', %s}\ngrpc: {enabled: false}\n"
OFF = "".join(f"{door}: {{enabled: false}}\n" for door in ("rest", "websocket", "gateway", "graphql", "grpc"))
BY_MACHINE = [
    (M + HERE % "tls: {cert: a.pem, key: a.key}", 1, "http.tls: a.pem can't be read: No such file", " (c.yaml:5:36)\n"),
    (
        M + "redis: {url: 'rediss://127.0.0.1:1', ca: ca.pem}\n",
        1,
        "redis.ca: ca.pem can't be read: No such file",
        " (c.yaml:5:38)\n",
    ),
    (M + ADMIN + "catalog: {file: none/c.yaml}\n", 1, "catalog.file: there is no folder /", "/none (c.yaml:6:11)\n"),
    (M + ADMIN + "catalog: {file: .}\n", 1, "catalog.file: . is a folder", " (c.yaml:6:11)\n"),
    (LOCAL % "xllamacpp", 1, "models.m: the model 'x.gguf' does not exist: looked for x.gguf, ", " (c.yaml:2:10)\n"),
    (
        LOCAL % "vllm, external: [/none/serve]",
        1,
        "models.m: the engine 'vllm' can't be started: there is no program /none/serve",
        " (c.yaml:2:10)\n",
    ),
    (M + "http: {server_addr: '0.0.0.0:0'}\n", 2, "http.server_addr is 0.0.0.0:0, where others can", " (c.yaml:5:8)\n"),
    (M + OFF, 2, "the configuration has a problem:\n  there is nothing to serve: every protocol is off", "grpc)\n"),
]


@pytest.mark.parametrize(("text", "code", "begins", "ends"), BY_MACHINE)
def test_what_keeps_it_from_starting_is_told_by_the_check_and_at_the_start(
    file: Path, text: str, code: int, begins: str, ends: str
) -> None:
    file.write_text(text)
    done, output = check()
    assert done == code
    assert output.startswith(begins)
    assert output.endswith(ends)
    served = llmg("serve", "-c", "c.yaml", directory=file.parent)
    assert (served.returncode, served.stdout, served.stderr) == (code, "", output)


def test_a_setting_that_a_variable_has_wrong_is_told_by_its_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(M)
    monkeypatch.setenv("LLMG_GRPC__SERVER_ADDR", "[::]:0")
    code, output = check()
    assert code == 2
    assert output.startswith("grpc.server_addr is [::]:0, where others can reach it")
    assert output.endswith(" (environment variable LLMG_GRPC__SERVER_ADDR)\n")


def test_the_check_opens_no_socket(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file.write_text(M + f"http: {{server_addr: '127.0.0.1:{taken.getsockname()[1]}'}}\n")
        assert check()[0] == 0


def test_a_name_that_is_taken_back_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(M + "keys: {a: aaaaaaaaaaaaaaaa, B: }\n")
    (tmp_path / "config" / "config.local.yaml").write_text("keys: {a: null}\n")
    monkeypatch.setenv("LLMG_KEYS__B", "b" * 16)
    done = CliRunner().invoke(app, ["config", "check"])
    assert done.output.endswith("keys: 1\n")
    assert done.exit_code == 0

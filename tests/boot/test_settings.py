"""The configuration: layers and their order, references, what is said about mistakes, the schema, the example."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pydantic
import pytest
import yaml

from llmg.boot.settings import (
    BackendProvider,
    EchoProvider,
    OpenAIProvider,
    Problem,
    Settings,
    SettingsError,
    Target,
    TimeoutOverrides,
    Timeouts,
    files,
    json_schema,
    load,
    reference_text,
    schema_text,
)
from llmg.boot.settings.hedging import Hedge
from llmg.boot.settings.limits import Redis
from llmg.boot.settings.providers import HealthCheck, Resilience
from llmg.boot.settings.yamlfile import parse

CONFIG = Path(__file__).parents[2] / "config"
SECRET = "sk-4711-do-not-print"
EMBEDDED_TARGET = Target(provider="local", model="smollm2-135m-instruct")

Env = dict[str, str]


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    return tmp_path


def write(cwd: Path, text: str, name: str = "config/config.yaml") -> Path:
    (cwd / name).write_text(text, encoding="utf-8")
    return Path(name)


def read(cwd: Path, text: str, env: Env | None = None) -> Settings:
    write(cwd, text)
    return load(env=env or {}, cwd=cwd)


def problems(cwd: Path, text: str, env: Env | None = None) -> list[Problem]:
    with pytest.raises(SettingsError) as caught:
        read(cwd, text, env)
    return caught.value.problems


def problem(cwd: Path, text: str, env: Env | None = None) -> Problem:
    found = problems(cwd, text, env)
    assert len(found) == 1, found
    return found[0]


# Layers


def test_without_any_file_the_embedded_default_serves_smollm2_on_loopback(cwd: Path) -> None:
    settings = load(env={}, cwd=cwd)
    assert settings.http.bind == ("127.0.0.1", 8080)
    assert settings.grpc.bind == ("127.0.0.1", 8081)
    assert settings.providers == {"local": BackendProvider(kind="backend", engine="xllamacpp")}
    assert settings.models["smollm2"].targets == (EMBEDDED_TARGET,)


def test_the_default_file_replaces_the_embedded_default(cwd: Path) -> None:
    settings = read(cwd, "providers: {demo: {kind: echo}}")
    assert settings.providers == {"demo": EchoProvider(kind="echo")}
    assert settings.models == {}


def test_the_local_file_lies_over_the_default_file(cwd: Path) -> None:
    write(cwd, "http: {backlog: 7}\nserver: {workers: 3}", "config/config.local.yaml")
    settings = read(cwd, "http: {backlog: 5, access_log: true}")
    assert (settings.http.backlog, settings.http.access_log, settings.server.workers) == (7, True, 3)


def test_the_local_file_lies_over_the_embedded_default_too(cwd: Path) -> None:
    write(cwd, "providers: {local: {threads: 2}}", "config/config.local.yaml")
    settings = load(env={}, cwd=cwd)
    assert settings.providers["local"] == BackendProvider(kind="backend", engine="xllamacpp", threads=2)
    assert list(settings.models) == ["smollm2"]


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_a_named_file_is_the_only_one(cwd: Path, by: str) -> None:
    write(cwd, "http: {backlog: 5}")
    write(cwd, "server: {workers: 3}", "config/config.local.yaml")
    named = write(cwd, "log: {level: debug}", "other.yaml")
    path, env = (named, {}) if by == "argument" else (None, {"LLMG_CONFIG": "other.yaml"})
    settings = load(path, env=env, cwd=cwd)
    assert (settings.log.level, settings.http.backlog, settings.server.workers) == ("debug", 2048, 1)
    assert settings.models == {}
    assert files(path, env=env, cwd=cwd) == [Path("other.yaml")]


def test_the_argument_wins_over_the_variable(cwd: Path) -> None:
    named = write(cwd, "log: {level: debug}", "a.yaml")
    assert load(named, env={"LLMG_CONFIG": "missing.yaml"}, cwd=cwd).log.level == "debug"


def test_the_environment_wins_over_every_file(cwd: Path) -> None:
    named = write(cwd, "http: {backlog: 1}", "a.yaml")
    write(cwd, "http: {backlog: 2}", "config/config.local.yaml")
    env = {"LLMG_HTTP__BACKLOG": "3"}
    assert load(named, env=env, cwd=cwd).http.backlog == 3
    assert load(env=env, cwd=cwd).http.backlog == 3
    assert read(cwd, "http: {backlog: 4}", env).http.backlog == 3


def test_mappings_merge_and_all_else_replaces(cwd: Path) -> None:
    write(cwd, "models: {a: {targets: [{provider: demo, model: z}]}}", "config/config.local.yaml")
    text = """
        providers: {demo: {kind: echo}}
        models:
          a: {embeddings: true, targets: [{provider: demo, model: x, weight: 2}, {provider: demo, model: y}]}
          b: {targets: [{provider: demo, model: w}]}
    """
    models = read(cwd, text).models
    assert models["a"].targets == (Target(provider="demo", model="z", embeddings=True),)
    assert set(models) == {"a", "b"}


def test_null_takes_back_what_was_said_below(cwd: Path) -> None:
    write(cwd, "http: {backlog: null}\nmodels:\nproviders: {b: null}", "config/config.local.yaml")
    text = (
        "http: {backlog: 5, access_log: on}\nproviders: {a: {kind: echo}, b: {kind: echo}}\nmodels: {m: {targets: []}}"
    )
    settings = read(cwd, text)
    assert (settings.http.backlog, settings.http.access_log) == (2048, True)
    assert list(settings.providers) == ["a"]
    assert settings.models == {}


def test_null_says_nothing_where_nothing_was_said_below(cwd: Path) -> None:
    text = """
        http: {backlog: null}
        providers: {a: {kind: openai, base_url: http://a/v1, headers: null, timeouts: {total: null, idle: 7}}}
        models: {m: {policy: null, retries: {max: null}, targets: [{provider: a, model: m}]}}
    """
    settings = read(cwd, text)
    provider = settings.providers["a"]
    assert isinstance(provider, OpenAIProvider)
    assert (provider.headers, provider.timeouts) == ({}, Timeouts(idle=7))
    assert (settings.http.backlog, settings.models["m"].policy.kind, settings.models["m"].retries.max) == (
        2048,
        "weighted",
        1,
    )


def test_files_are_named_lowest_first(cwd: Path) -> None:
    assert files(env={}, cwd=cwd) == []
    write(cwd, "", "config/config.local.yaml")
    write(cwd, "")
    assert files(env={}, cwd=cwd) == [Path("config/config.yaml"), Path("config/config.local.yaml")]


def test_process_environment_and_working_directory_are_the_defaults(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("LLMG_LOG__LEVEL", "error")
    write(cwd, "http: {backlog: 5}")
    settings = load()
    assert (settings.http.backlog, settings.log.level) == (5, "error")


def test_settings_themselves_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMG_LOG__LEVEL", "error")
    assert Settings().log.level == "info"


def test_settings_do_not_change() -> None:
    settings = Settings()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.http = settings.http
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.http.backlog = 5


# Environment variables

PROVIDERS = 'providers: {My-AI: {kind: openai, base_url: "http://a"}, b: {kind: backend, engine: xllamacpp}}\n'


def openai(settings: Settings, name: str) -> OpenAIProvider:
    provider = settings.providers[name]
    assert isinstance(provider, OpenAIProvider)
    return provider


def test_a_variable_reaches_into_a_provider_whose_name_it_cannot_hold(cwd: Path) -> None:
    env = {"LLMG_PROVIDERS__MY_AI__API_KEY": SECRET, "LLMG_PROVIDERS__MY_AI__TIMEOUTS__IDLE": "1m"}
    provider = openai(read(cwd, PROVIDERS, env), "My-AI")
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == SECRET
    assert provider.timeouts == Timeouts(idle=60)


def test_a_model_of_any_name_is_reached(cwd: Path) -> None:
    text = PROVIDERS + "models: {gpt-4.1: {targets: [{provider: b, model: x}]}}"
    assert read(cwd, text, {"LLMG_MODELS__GPT_4_1__EMBEDDINGS": "true"}).models["gpt-4.1"].embeddings is True


def test_variables_declare_new_names_in_lower_case(cwd: Path) -> None:
    env = {"LLMG_PROVIDERS__OPENAI__KIND": "openai", "LLMG_PROVIDERS__OPENAI__BASE_URL": "http://b/v1/"}
    assert openai(read(cwd, PROVIDERS, env), "openai").base_url == "http://b/v1"


def test_lists_and_objects_are_json_and_the_longer_name_wins(cwd: Path) -> None:
    env = {
        "LLMG_MODELS__M__TARGETS": '[{"provider": "b", "model": "x", "weight": 2}]',
        "LLMG_HTTP": '{"backlog": 5, "max_body": "1KiB"}',
        "LLMG_HTTP__BACKLOG": "6",
    }
    settings = read(cwd, PROVIDERS + "http: {access_log: true}", env)
    assert settings.models["m"].targets == (Target(provider="b", model="x", weight=2),)
    assert (settings.http.backlog, settings.http.max_body, settings.http.access_log) == (6, 1024, True)


def test_names_in_an_engines_environment_keep_their_case(cwd: Path) -> None:
    provider = read(cwd, PROVIDERS, {"LLMG_PROVIDERS__B__ENV__OMP_Num": "4"}).providers["b"]
    assert isinstance(provider, BackendProvider)
    assert {key: value.get_secret_value() for key, value in provider.env.items()} == {"OMP_Num": "4"}


def test_text_is_taken_as_it_is(cwd: Path) -> None:
    provider = openai(read(cwd, PROVIDERS, {"LLMG_PROVIDERS__MY_AI__API_KEY": "${A}12"}), "My-AI")
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == "${A}12"


def test_single_values_at_the_top(cwd: Path) -> None:
    assert read(cwd, "", {"LLMG_MODELS_DIR": "/srv/models"}).models_dir == Path("/srv/models")


@pytest.mark.parametrize(
    "env",
    [
        {"LLMG_HTTP__BACKLOG": ""},
        {"LLMG_LOG": "debug"},
        {"LLMG_WORKER_FD": "7"},
        {"HTTP__BACKLOG": "5"},
        {"LLMGX__Y": "5"},
        {"LLMG_HTTP_BACKLOG": ""},
    ],
)
def test_variables_that_say_nothing(cwd: Path, env: Env) -> None:
    assert read(cwd, "", env) == Settings()


KNOWN = (
    "http, grpc, rest, websocket, gateway, graphql, keys, limits, redis, labels, tenants, admin, catalog, log, server, "
    "providers, models"
)
BAD_VARIABLES = [
    ("LLMG_HTTP__SERVER_ADR", "x", "http.server_adr", "did you mean `LLMG_HTTP__SERVER_ADDR`?"),
    ("LLMG_HTPP__SERVER_ADDR", "x", "htpp", "did you mean `LLMG_HTTP__SERVER_ADDR`?"),
    ("LLMG_HTPP__SERVER_ADR", "x", "htpp", "did you mean `LLMG_HTTP__SERVER_ADDR`?"),
    ("LLMG_PROVIDERS__MY_AI__APIKEY", "x", "providers.My-AI.apikey", "did you mean `LLMG_PROVIDERS__MY_AI__API_KEY`?"),
    ("LLMG_HTTP_SERVER_ADDR", "x", "", "did you mean `LLMG_HTTP__SERVER_ADDR`?"),
    (
        "LLMG_ZZZ__Q",
        "x",
        "zzz",
        f"known: {KNOWN}, models_dir",
    ),
    (
        "LLMG___X",
        "x",
        '[""]',
        f"known: {KNOWN}, models_dir",
    ),
    ("LLMG_HTTP", "127.0.0.1", "http", ""),
    ("LLMG_HTTP", "[1]", "http", ""),
    ("LLMG_TENANTS__X", "3", "tenants.x", ""),
    ("LLMG_MODELS__M__TARGETS", "{}", "models.m.targets", ""),
    ("LLMG_MODELS__M__TARGETS__0__WEIGHT", "1", "models.m.targets", "set LLMG_MODELS__M__TARGETS"),
    ("LLMG_LOG__LEVEL__ROOT", "info", "log.level", "set LLMG_LOG__LEVEL"),
    ("LLMG_LOG__LEVEL", "verbose", "log.level", ""),
    ("LLMG_HTTP__BACKLOG", "many", "http.backlog", ""),
    ("LLMG_PROVIDERS__N__KIND", "opnai", "providers.n.kind", "did you mean `openai`?"),
    ("LLMG_PROVIDERS__N__KIND", "openai", "providers.n.base_url", ""),
]


@pytest.mark.parametrize(("name", "value", "path", "hint"), BAD_VARIABLES)
def test_bad_variables(cwd: Path, name: str, value: str, path: str, hint: str) -> None:
    found = problem(cwd, PROVIDERS, {name: value})
    assert (found.path, found.hint, found.origin) == (path, hint, f"environment variable {name}")


# ${VARIABLE}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "value"),
        ("x/${A}/${A}/y", "x/value/value/y"),
        ("${B:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${A:-other}", "value"),
        ("${B:-}x", "x"),
        ("$${A}", "${A}"),
        ("$A $ {A} }", "$A $ {A} }"),
        ("${NESTED}", "${A}"),
    ],
)
def test_references_are_filled_in(cwd: Path, text: str, expected: str) -> None:
    env = {"A": "value", "EMPTY": "", "NESTED": "${A}"}
    assert read(cwd, f"models_dir: {json.dumps(text)}", env).models_dir == Path(expected)


def test_references_are_filled_in_everywhere_and_read_as_what_is_expected(cwd: Path) -> None:
    text = """
        server: {workers: "${N}", grace: "${G:-5s}"}
        providers: {b: {kind: backend, engine: xllamacpp, options: ["a:${N}"]}}
    """
    settings = read(cwd, text, {"N": "2"})
    assert (settings.server.workers, settings.server.grace) == (2, 5.0)
    assert settings.providers["b"] == BackendProvider(kind="backend", engine="xllamacpp", options=("a:2",))


def test_a_reference_that_is_not_set_names_path_and_variable(cwd: Path) -> None:
    text = 'providers:\n  openai: {kind: openai, base_url: "http://a", api_key: "${OPENAI_API_KEY}"}'
    found = problem(cwd, text, {"OPENAI_API_KEY": ""})
    assert found == Problem(
        "providers.openai.api_key",
        "the environment variable OPENAI_API_KEY is not set",
        "config/config.yaml:2:48",
        "set it, or write ${OPENAI_API_KEY:-default}",
    )


def test_a_reference_that_is_not_set_is_reported_once(cwd: Path) -> None:
    found = problem(cwd, 'providers: {openai: {kind: openai, base_url: "${URL}"}}')
    assert found.path == "providers.openai.base_url"


def test_a_reference_that_is_overridden_need_not_be_set(cwd: Path) -> None:
    text = 'providers: {openai: {kind: openai, base_url: "http://a", api_key: "${OPENAI_API_KEY}"}}'
    provider = openai(read(cwd, text, {"LLMG_PROVIDERS__OPENAI__API_KEY": "k"}), "openai")
    assert provider.api_key is not None


def test_an_empty_key_is_no_key(cwd: Path) -> None:
    text = 'providers: {o: {kind: openai, base_url: "http://a", api_key: "${K:-}"}}'
    assert openai(read(cwd, text), "o").api_key is None


@pytest.mark.parametrize("text", ["${", "${A", "${}", "${A-B}", "${A:b}", "${1A}", "${A:-${B}}"])
def test_broken_references(cwd: Path, text: str) -> None:
    found = problem(cwd, f"models_dir: {json.dumps(text)}", {"A": "x"})
    assert (found.path, found.hint) == ("models_dir", "for a plain ${ write $${")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLMG_MODELS__FAST__POLICY", "p2c"),
        ("LLMG_MODELS__FAST__POLICY", '{"kind": "p2c"}'),
        ("LLMG_MODELS__FAST__POLICY__KIND", "p2c"),
    ],
)
def test_a_policy_by_name_or_as_a_mapping_in_the_environment(cwd: Path, name: str, value: str) -> None:
    settings = read(cwd, POLICY % "weighted", {name: value})
    assert settings.models["fast"].policy.kind == "p2c"


# What is said about mistakes

BASE = """
providers:
  local: {kind: backend, engine: xllamacpp}
  openai: {kind: openai, base_url: "http://a"}
"""
OPENAI = "providers: {local: {kind: backend, engine: xllamacpp}, openai: {kind: openai, base_url: 'http://a', %s}}"
BACKEND = "providers: {local: {kind: backend, %s}}"
MODEL = BASE + "models: {fast: %s}"
POLICY = BASE + "models: {fast: {policy: %s, targets: [{provider: local, model: x}]}}"
ONE = "targets: [{provider: local, model: x}]"
HEDGE = MODEL % ("{hedge: {after: %s}, " + ONE + "}")
RETRIES = MODEL % ("{retries: {%s}, " + ONE + "}")
REDIS = "redis: {url: 'redis://h:1', %s}"
TARGETS = BASE + "models: {fast: {targets: [{provider: local, model: x}, {provider: openai, model: y, %s}]}}"

BAD = [
    # keys
    (TARGETS % "wieght: 3", "models.fast.targets[1].wieght", "unknown key", "did you mean `weight`?"),
    ("htpp: {}", "htpp", "unknown key", "did you mean `http`?"),
    ("HTTP: {}", "HTTP", "unknown key", "did you mean `http`?"),
    (
        "_env_file: x",
        "_env_file",
        "unknown key",
        f"known: {KNOWN}",
    ),
    ("_secrets_dir: /nowhere", "_secrets_dir", "unknown key", "known: http"),
    ("http: {addr: x}", "http.addr", "unknown key", "did you mean `server_addr`?"),
    ("http: {server-addr: x}", "http.server-addr", "unknown key", "did you mean `server_addr`?"),
    ("grpc: {port: 1}", "grpc.port", "unknown key", "known: enabled, server_addr, max_message, reflection"),
    (OPENAI % "apikey: x", "providers.openai.apikey", "unknown key", "did you mean `api_key`?"),
    (OPENAI % "timeouts: {first-event: 1}", "providers.openai.timeouts.first-event", "unknown", "`first_event`?"),
    (BACKEND % "engine: xllamacpp, base_url: x", "providers.local.base_url", "unknown key", ""),
    ("providers: {e: {kind: echo, x: 1}}", "providers.e.x", "unknown key", "known: kind"),
    (
        MODEL % "{target: [], targets: [{provider: local, model: x}]}",
        "models.fast.target",
        "unknown key",
        "did you mean `targets`?",
    ),
    # what is missing
    (MODEL % "{}", "models.fast.targets", "is required", ""),
    (MODEL % "{targets: []}", "models.fast.targets", "expected 1 or more entries", ""),
    (MODEL % "{targets: [{provider: local}]}", "models.fast.targets[0].model", "is required", ""),
    ("providers: {o: {kind: openai}}", "providers.o.base_url", "is required", ""),
    ("providers: {o: {base_url: x}}", "providers.o.kind", "is required", "known: backend, openai, echo"),
    ("providers: {o: {kind: backend}}", "providers.o", "expected `engine` (to start one; with", ""),
    # choices
    (
        "providers: {o: {kind: opnai}}",
        "providers.o.kind",
        "expected one of backend, openai, echo, got 'opnai'",
        "did you mean `openai`?",
    ),
    (
        "log: {level: warn}",
        "log.level",
        "expected one of debug, info, warning, error, got 'warn'",
        "did you mean `warning`?",
    ),
    ("log: {format: colour}", "log.format", "expected one of auto, console, json", ""),
    (
        MODEL % "{policy: weigthed, targets: [{provider: local, model: x}]}",
        "models.fast.policy",
        "expected one of weighted, round_robin, random, least_busy, lowest_cost, p2c, lowest_latency, sticky, prefix, "
        "priority, got 'weigthed'",
        "did you mean `weighted`?",
    ),
    (
        BACKEND % "engine: llamacpp",
        "providers.local.engine",
        "expected a known engine (xllamacpp)",
        "did you mean `xllamacpp`?",
    ),
    (
        MODEL % "{targets: [{provider: opnai, model: x}]}",
        "models.fast.targets[0].provider",
        "expected the name of a declared provider, got 'opnai'",
        "did you mean `openai`?",
    ),
    (
        "models: {m: {targets: [{provider: a, model: x}]}}",
        "models.m.targets[0].provider",
        "expected the name of a declared provider",
        "",
    ),
    # fallbacks
    (
        MODEL % "{targets: [{provider: local, model: x}], fallbacks: [fats]}",
        "models.fast.fallbacks[0]",
        "expected the name of a declared model, got 'fats'",
        "did you mean `fast`?",
    ),
    (
        MODEL % "{targets: [{provider: local, model: x}], fallbacks: [opnai/gpt]}",
        "models.fast.fallbacks[0]",
        "expected the name of a declared model, got 'opnai/gpt'",
        "known: fast",
    ),
    (
        MODEL % "{targets: [{provider: local, model: x}], fallbacks: [fast]}",
        "models.fast.fallbacks[0]",
        "expected no cycle, but this one closes fast -> fast",
        "",
    ),
    (
        BASE
        + "models: {a: &m {targets: [{provider: local, model: x}], fallbacks: [openai/y, b]}, b: {<<: *m, "
        + "fallbacks: [d, c]}, c: {<<: *m, fallbacks: [d, b]}, d: {<<: *m, fallbacks: []}}",
        "models.c.fallbacks[1]",
        "expected no cycle, but this one closes b -> c -> b",
        "",
    ),
    (
        MODEL % "{targets: [{provider: local, model: x}], fallbacks: openai/x}",
        "models.fast.fallbacks",
        "expected a list",
        "",
    ),
    (
        MODEL % "{targets: [{provider: local, model: x}], fallback_on: [content_filter]}",
        "models.fast.fallback_on[0]",
        "expected one of context_length_exceeded, content_filtered, got 'content_filter'",
        "did you mean `content_filtered`?",
    ),
    # what excludes each other
    (
        BACKEND % "engine: xllamacpp, address: 'h:1'",
        "providers.local",
        "expected either `engine` or `address`, not both",
        "",
    ),
    (BACKEND % "engine: xllamacpp, token: x", "providers.local", "expected no `token` together with `engine`", ""),
    (BACKEND % "address: 'h:1', env: {A: b}", "providers.local", "expected no `env` together with `address`", ""),
    (
        BACKEND % "address: 'h:1', external: [x]",
        "providers.local",
        "expected no `external` together with `address`",
        "",
    ),
    # kinds of values
    ("http: 5", "http", "expected a mapping", ""),
    ("models: [a]", "models", "expected a mapping", ""),
    ("models: {m: 3}", "models.m", "expected a mapping", ""),
    ("providers: {a: x}", "providers.a", "expected a mapping", ""),
    (MODEL % "{targets: {provider: local}}", "models.fast.targets", "expected a list", ""),
    (MODEL % "{targets: [x]}", "models.fast.targets[0]", "expected a mapping", ""),
    (BACKEND % "engine: xllamacpp, options: x", "providers.local.options", "expected a list", ""),
    (BACKEND % "engine: e, external: []", "providers.local.external", "expected 1 or more entries", ""),
    (BACKEND % "engine: ''", "providers.local.engine", "expected text that isn't empty", ""),
    (
        MODEL % "{targets: [{provider: local, model: 5}]}",
        "models.fast.targets[0].model",
        "expected text",
        "put it in quotes",
    ),
    (OPENAI % "api_key: 4711", "providers.openai.api_key", "expected text", "put it in quotes"),
    ("models_dir: 5", "models_dir", "expected a path", ""),
    ("http: {access_log: maybe}", "http.access_log", "expected true or false, got 'maybe'", ""),
    # numbers
    ("server: {workers: 0}", "server.workers", "expected 1 or more, got 0", ""),
    ("server: {workers: two}", "server.workers", "expected a whole number, got 'two'", ""),
    ("server: {workers: 1.5}", "server.workers", "expected a whole number, got 1.5", ""),
    ("server: {workers: yes}", "server.workers", "expected a number, got true", ""),
    (BACKEND % "engine: xllamacpp, threads: -1", "providers.local.threads", "expected 0 or more, got -1", ""),
    (TARGETS % "weight: 0", "models.fast.targets[1].weight", "expected more than 0, got 0", ""),
    (TARGETS % "weight: -1", "models.fast.targets[1].weight", "expected more than 0, got -1", ""),
    (TARGETS % "weight: .inf", "models.fast.targets[1].weight", "expected a finite number", ""),
    (TARGETS % "weight: heavy", "models.fast.targets[1].weight", "expected a number, got 'heavy'", ""),
    (TARGETS % "priority: -1", "models.fast.targets[1].priority", "expected 0 or more, got -1", ""),
    (TARGETS % "price: {input: -1, output: 0}", "models.fast.targets[1].price.input", "expected 0 or more, got -1", ""),
    (TARGETS % "price: {input: 1}", "models.fast.targets[1].price.output", "is required", ""),
    # policies
    (POLICY % "{by: user}", "models.fast.policy.kind", "is required", "known: weighted, round_robin"),
    (POLICY % "{kind: stick}", "models.fast.policy.kind", "expected one of weighted", "did you mean `sticky`?"),
    (POLICY % "5", "models.fast.policy", "expected a policy's name, or a mapping with its `kind`, got 5", ""),
    (POLICY % "[p2c]", "models.fast.policy", "expected a policy's name, or a mapping with its `kind`", ""),
    (POLICY % "{kind: p2c, decy: 1s}", "models.fast.policy.decy", "unknown key", "did you mean `decay`?"),
    (POLICY % "{kind: p2c, decay: 0}", "models.fast.policy.decay", "expected more than 0, up to 1h, got 0", ""),
    (POLICY % "{kind: sticky, by: ip}", "models.fast.policy.by", "expected one of user, session, header, got 'ip'", ""),
    (POLICY % "{kind: sticky, by: header}", "models.fast.policy", "expected a `header`, as it goes `by` one", ""),
    (POLICY % "{kind: sticky, header: x-a}", "models.fast.policy", "expected `by: header`, as there is a `header`", ""),
    (
        POLICY % "{kind: sticky, by: header, header: 'a b'}",
        "models.fast.policy.header",
        "expected the name of an HTTP header",
        "",
    ),
    (POLICY % "{kind: sticky, load_factor: 0.9}", "models.fast.policy.load_factor", "expected 1 or more, got 0.9", ""),
    (POLICY % "{kind: lowest_latency, explore: 2}", "models.fast.policy.explore", "expected 1 or less, got 2", ""),
    (
        POLICY % "{kind: priority, tiers: [p3c]}",
        "models.fast.policy.tiers[0]",
        "expected one of weighted",
        "did you mean `p2c`?",
    ),
    (
        POLICY % "{kind: priority, tiers: [{kind: sticky, by: ip}]}",
        "models.fast.policy.tiers[0].by",
        "expected one of user, session",
        "",
    ),
    (POLICY % "{kind: priority, tiers: [priority]}", "models.fast.policy.tiers[0]", "expected one of weighted", ""),
    (POLICY % "{kind: priority, tiers: []}", "models.fast.policy.tiers", "expected 1 or more entries", ""),
    (POLICY % "{kind: priority, tiers: [p2c, p2c]}", "models.fast", "expected at most as many `tiers` as", ""),
    (TARGETS % "priority: 1", "models.fast", "expected the policy `priority`, as a target has a `priority`", ""),
    (POLICY % "lowest_cost", "models.fast", "expected a `price` for each target", ""),
    (POLICY % "{kind: priority, tiers: [lowest_cost]}", "models.fast", "expected a `price` for each target", ""),
    (
        OPENAI % "resilience: {breaker: {failure_ratio: 50}}",
        "providers.openai.resilience.breaker.failure_ratio",
        "expected 1 or less, got 50",
        "",
    ),
    (
        OPENAI % "resilience: {breaker: {failure_ratio: 0}}",
        "providers.openai.resilience.breaker.failure_ratio",
        "expected more than 0, got 0",
        "",
    ),
    (
        OPENAI % "resilience: {max_inflight: 5}",
        "providers.openai.resilience.max_inflight",
        "unknown key",
        "did you mean `max_in_flight`?",
    ),
    (
        BACKEND % "engine: xllamacpp, resilience: {queue_timeout: 0}",
        "providers.local.resilience.queue_timeout",
        "expected more than 0",
        "",
    ),
    (
        MODEL % "{targets: [{provider: local, model: x}], retries: {max: -1}}",
        "models.fast.retries.max",
        "expected 0 or more, got -1",
        "",
    ),
    (
        MODEL % "{targets: [{provider: local, model: x}], retries: {budget: 20}}",
        "models.fast.retries.budget",
        "expected 1 or less, got 20",
        "",
    ),
    # units
    (
        "http: {max_body: 5 parsec}",
        "http.max_body",
        "expected a size such as 64KiB, 50MiB, or a number of bytes, got '5 parsec'",
        "",
    ),
    ("http: {max_body: 32M}", "http.max_body", "expected a size", ""),
    ("http: {max_body: 0}", "http.max_body", "expected 1KiB or more, got 0", ""),
    ("http: {max_body: 1.5}", "http.max_body", "expected a whole number of bytes", ""),
    ("http: {max_body: [1]}", "http.max_body", "expected a size", ""),
    (
        "http: {header_timeout: soon}",
        "http.header_timeout",
        "expected a duration such as 500ms, 2s, 1m30s, or a number of seconds, got 'soon'",
        "",
    ),
    ("http: {header_timeout: 0s}", "http.header_timeout", "expected more than 0", ""),
    ("http: {header_timeout: -1}", "http.header_timeout", "expected a duration", ""),
    ("http: {header_timeout: .inf}", "http.header_timeout", "expected a duration", ""),
    ("http: {header_timeout: true}", "http.header_timeout", "expected a duration", ""),
    (
        MODEL % "{targets: [{provider: local, model: x}], timeouts: {idle: 0}}",
        "models.fast.timeouts.idle",
        "expected more than 0",
        "",
    ),
    # another unit was meant
    (HEDGE % "300", "models.fast.hedge.after", "expected more than 0, up to 1m, got 300", "write 300ms if that"),
    (HEDGE % "'300'", "models.fast.hedge.after", "expected more than 0, up to 1m, got '300'", "write 300ms"),
    (HEDGE % "300s", "models.fast.hedge.after", "expected more than 0, up to 1m, got '300s'", ""),
    (HEDGE % "soon", "models.fast.hedge.after", "expected p95, or a duration such as 500ms, got 'soon'", ""),
    ("http: {header_timeout: 10000}", "http.header_timeout", "expected more than 0, up to 10m", "write 10000ms"),
    ("http: {keep_alive: 75000}", "http.keep_alive", "expected 0 to 4h, got 75000", "write 75000ms"),
    ("http: {heartbeat: 99999999}", "http.heartbeat", "expected more than 0, up to 1h", "without a unit is seconds"),
    ("server: {grace: 30000}", "server.grace", "expected 0 to 4h, got 30000", "write 30000ms"),
    (OPENAI % "timeouts: {connect: 5000}", "providers.openai.timeouts.connect", "expected more than 0, up to 2m", "ms"),
    (OPENAI % "timeouts: {total: 1e6}", "providers.openai.timeouts.total", "expected a duration such as", ""),
    (
        TARGETS % "timeouts: {idle: 60000}",
        "models.fast.targets[1].timeouts.idle",
        "expected more than 0, up to 4h, got 60000",
        "write 60000ms",
    ),
    (POLICY % "{kind: p2c, decay: 10000}", "models.fast.policy.decay", "expected more than 0, up to 1h", "10000ms"),
    (RETRIES % "backoff: 100", "models.fast.retries.backoff", "expected more than 0, up to 1m, got 100", "write 100ms"),
    (
        RETRIES % "backoff: 5s",
        "models.fast.retries",
        "expected a `backoff` of at most `max_backoff`, but 5s is longer than 2s",
        "",
    ),
    (REDIS % "timeout: 20", "redis.timeout", "expected more than 0, up to 5s, got 20", "write 20ms"),
    (REDIS % "lease: 500ms", "redis.lease", "expected 1s to 1h, got '500ms'", ""),
    ("http: {max_body: 32}", "http.max_body", "expected 1KiB or more, got 32", "write 32MiB if that is meant"),
    ("websocket: {max_message: 100B}", "websocket.max_message", "expected 1KiB or more, got '100B'", ""),
    ("grpc: {max_message: 2GiB}", "grpc.max_message", "expected 1KiB to 2147483647B, got '2GiB'", ""),
    (RETRIES % "budget: 20%", "models.fast.retries.budget", "expected a number, got '20%'", "write 0.2"),
    (POLICY % "{kind: prefix, load_factor: 125}", "models.fast.policy.load_factor", "expected 100 or less", ""),
    # addresses and URLs
    ("http: {server_addr: localhost}", "http.server_addr", "expected host:port", ""),
    ("http: {server_addr: ':8080'}", "http.server_addr", "expected host:port; for all interfaces", ""),
    ("http: {server_addr: 'localhost:'}", "http.server_addr", "expected host:port with a port", ""),
    (
        "http: {server_addr: 'localhost:65536'}",
        "http.server_addr",
        "expected host:port with a port from 0 to 65535",
        "",
    ),
    ("http: {server_addr: '::1:8080'}", "http.server_addr", "expected an IPv6 host in brackets", ""),
    ("http: {server_addr: '[::g]:8080'}", "http.server_addr", "expected an IPv6 address in the brackets", ""),
    ("http: {server_addr: 'a b:8080'}", "http.server_addr", "expected host:port with a host name", ""),
    ("grpc: {server_addr: 8081}", "grpc.server_addr", "expected text", "put it in quotes"),
    (BACKEND % "address: 'h:0'", "providers.local.address", "expected host:port with a port from 1 to 65535", ""),
    *[
        (f"providers: {{o: {{kind: openai, base_url: {json.dumps(url)}}}}}", "providers.o.base_url", message, "")
        for url, message in [
            ("api.openai.com/v1", "expected an http or https URL, such as"),
            ("ftp://a/v1", "expected an http or https URL, such as"),
            ("https://", "expected an http or https URL, such as"),
            ("https://a b/v1", "expected an http or https URL, such as"),
            ("https://a:99999/v1", "expected an http or https URL"),
            ("https://[::1/v1", "expected an http or https URL"),
            ("https://a/v1?k=v", "expected a URL without query and fragment"),
            ("https://a/v1?", "expected a URL without query and fragment"),
            ("https://a/v1#x", "expected a URL without query and fragment"),
            ("https://u:p@a/v1", "expected a URL without user and password"),
            ("https://b\u00fccher.example/v1", "expected a URL in ASCII"),
        ]
    ],
    # names and headers
    ("providers: {a/b: {kind: echo}}", 'providers["a/b"]', "expected a name of letters", ""),
    (
        BASE + "models: {'a b': {targets: [{provider: local, model: x}]}}",
        'models["a b"]',
        "expected a name of 1 to 256",
        "",
    ),
    (
        BASE + "models: {gpt-4.1: {x: 1, targets: [{provider: local, model: x}]}}",
        'models["gpt-4.1"].x',
        "unknown key",
        "",
    ),
    (OPENAI % "headers: {'a b': c}", 'providers.openai.headers["a b"]', "expected the name of an HTTP header", ""),
    (OPENAI % r'headers: {a: "b\r\nc: d"}', "providers.openai.headers.a", "expected the value of an HTTP header", ""),
    (OPENAI % r'organization: "a\r\nX-Evil: 1"', "providers.openai.organization", "expected a word of printable", ""),
    (OPENAI % r'api_key: "b\nc"', "providers.openai.api_key", "expected the value of an HTTP header", ""),
]


@pytest.mark.parametrize(("text", "path", "message", "hint"), BAD)
def test_bad_values(cwd: Path, text: str, path: str, message: str, hint: str) -> None:
    found = problem(cwd, text)
    assert found.path == path
    assert found.message.startswith(message)
    assert hint in found.hint
    assert re.fullmatch(r"config/config\.yaml:\d+:\d+", found.origin)


def test_a_problem_stands_with_its_line_and_column(cwd: Path) -> None:
    text = "http:\n  backlog: 5\n  server_adr: x\nserver: {workers: 0}\n"
    assert [found.origin for found in problems(cwd, text)] == ["config/config.yaml:3:3", "config/config.yaml:4:10"]


def test_a_problem_names_the_file_that_said_it(cwd: Path) -> None:
    write(cwd, "http: {backlog: x}", "config/config.local.yaml")
    assert problem(cwd, "http: {backlog: 5}").origin == "config/config.local.yaml:1:8"


def test_a_replaced_list_has_the_place_of_the_new_one(cwd: Path) -> None:
    env = {"LLMG_MODELS__FAST__TARGETS": '[{"provider": "local", "model": "x"}, {"provider": "locale", "model": "x"}]'}
    found = problem(cwd, TARGETS % "weight: 3", env)
    assert found.path == "models.fast.targets[1].provider"
    assert found.origin == "environment variable LLMG_MODELS__FAST__TARGETS"


def test_all_problems_are_collected(cwd: Path) -> None:
    text = """
http: {server_adr: x, backlog: 0}
log: {level: loud}
providers: {o: {kind: openai, base_url: "http://a", api_key: "${NOPE}"}}
models: {m: {targets: [{provider: p, model: x, wieght: 1}, {provider: o}]}}
"""
    env = {"LLMG_GRPC__ADDR": "x", "LLMG_SERVER": "x", "LLMG_HTTP_BACKLOG": "5"}
    assert sorted(found.path for found in problems(cwd, text, env)) == [
        "",
        "grpc.addr",
        "http.backlog",
        "http.server_adr",
        "log.level",
        "models.m.targets[0].provider",
        "models.m.targets[0].wieght",
        "models.m.targets[1].model",
        "providers.o.api_key",
        "server",
    ]


def test_the_error_reads_well(cwd: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read(cwd, TARGETS % "wieght: 3" + "\nserver: {workers: 0}")
    assert str(caught.value) == (
        "the configuration has 2 problems:\n"
        "  server.workers: expected 1 or more, got 0 (config/config.yaml:6:10)\n"
        "  models.fast.targets[1].wieght: unknown key; did you mean `weight`? (config/config.yaml:5:85)"
    )
    assert str(SettingsError(caught.value.problems[:1])).startswith("the configuration has a problem:\n  server")


# Secrets


def test_settings_do_not_show_secrets(cwd: Path) -> None:
    text = f"""
providers:
  o: {{kind: openai, base_url: "http://a", api_key: {SECRET}, headers: {{x-key: {SECRET}}}}}
  b: {{kind: backend, engine: xllamacpp, env: {{TOKEN: {SECRET}}}}}
  r: {{kind: backend, address: "h:1", token: {SECRET}}}
"""
    settings = read(cwd, text)
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("text", "env"),
    [
        (OPENAI % f"apikey: {SECRET}", {}),
        (OPENAI % f'api_key: "{SECRET}\\n"', {}),
        (OPENAI % f"api_key: [{SECRET}]", {}),
        (OPENAI % f"headers: {SECRET}", {}),
        (OPENAI % f"headers: {{authorization: [{SECRET}]}}", {}),
        (OPENAI % f'headers: {{authorization: "{SECRET}\\n"}}', {}),
        (BACKEND % f"engine: xllamacpp, token: {SECRET}", {}),
        (BACKEND % f"engine: xllamacpp, env: [{SECRET}]", {}),
        (f"providers: {{o: {{kind: openai, base_url: 'https://u:{SECRET}@a'}}}}", {}),
        (f"providers: {{o: {{kind: openai, base_url: 'https://a?key={SECRET}'}}}}", {}),
        (f"providers: {{o: {SECRET}}}", {}),
        ('log: {level: "${S}"}', {"S": SECRET}),
        ('server: {grace: "${S}"}', {"S": "90471108"}),
        ('http: {backlog: "${S}", max_body: "${S}", keep_alive: "${S}", server_addr: "${S}"}', {"S": SECRET}),
        ('providers: {o: {kind: "${S}"}, p: {kind: backend, engine: "${S}"}}', {"S": SECRET}),
        ('models: {m: {targets: [{provider: "${S}", model: x}]}}', {"S": SECRET}),
        ("", {"LLMG_PROVIDERS__O__APIKEY": SECRET}),
        ("", {"LLMG_PROVIDERS__O": SECRET}),
        ("", {"LLMG_PROVIDERS__O": f'{{"kind": "openai", "api_key": ["{SECRET}"]}}'}),
        (f"a: *{SECRET}", {}),
        (f"a: !{SECRET}", {}),
        (f"a: !!int {SECRET}", {}),
        (f"a: [{SECRET}\nb: {SECRET}: {SECRET}", {}),
    ],
)
def test_errors_do_not_show_secrets(cwd: Path, text: str, env: Env) -> None:
    with pytest.raises(SettingsError) as caught:
        read(cwd, text, env)
    for secret in (SECRET, "90471108"):
        assert secret not in str(caught.value) + repr(caught.value)


def test_a_settings_object_made_by_hand_does_not_show_secrets_either() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        OpenAIProvider(kind="openai", base_url=f"https://u:{SECRET}@a")
    assert SECRET not in str(caught.value)


# Files and YAML


@pytest.mark.parametrize(
    ("text", "origin", "message"),
    [
        ("a: [1\nb: 2", "config/config.yaml:2:2", "is not YAML"),
        ("http:\n\tbacklog: 5", "config/config.yaml:2:1", "is not YAML"),
        ("a: *b", "config/config.yaml:1:4", "is not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "config/config.yaml:2:1", "is not YAML"),
        ("<<: 5", "config/config.yaml:1:5", "expected a mapping to merge"),
        ("a: &b {}\n<<: [*b, c]", "config/config.yaml:2:5", "expected a mapping to merge, or a list of them"),
        ("a: &b {}\nc: {<<: *b, <<: *b}", "config/config.yaml:2:13", "the key stands twice (first in line 2)"),
        ("a: 1\nb: c\x01", "config/config.yaml:2:5", "is not YAML: it holds a control character"),
        ("- a", "config/config.yaml", "expected a mapping"),
        ("text", "config/config.yaml", "expected a mapping"),
        ("1: 2", "config/config.yaml:1:1", "a key is not text"),
        ("on: 2", "config/config.yaml:1:1", "a key is not text"),
        ("[a]: 2", "config/config.yaml:1:1", "a key is not text"),
        ("a: !!python/object:os.system x", "config/config.yaml:1:4", "YAML tags"),
        ("a: !!int x", "config/config.yaml:1:4", "the value is not what its tag says"),
        ("a: !secret {b: c}", "config/config.yaml:1:4", "YAML tags"),
        ("a: &x {b: *x}", "config/config.yaml:1:11", "is nested too deeply: an alias stands within what it stands for"),
        ("a: " + "[" * 100_000, "config/config.yaml:1:103", "is nested too deeply"),
        ("http: {}\nbacklog 5\nlog: {}", "config/config.yaml:2:1", "is not YAML: while scanning a simple key"),
        ("a: 1\nb: 2\na: 3", "config/config.yaml:3:1", "the key stands twice (first in line 1)"),
    ],
)
def test_bad_yaml(cwd: Path, text: str, origin: str, message: str) -> None:
    found = problem(cwd, text)
    assert found.origin == origin
    assert found.message.startswith(message)


@pytest.mark.parametrize(
    ("text", "origin", "hint"),
    [
        ("http:\n\tbacklog: 5", "config/config.yaml:2:1", "indent by spaces, not by tabs"),
        ("http:\n  backlog\n  access_log: true", "config/config.yaml:3:13", "is it indented as it should be?"),
        ("http:\n   backlog: 5\n  access_log: true", "config/config.yaml:3:3", "indent it as the keys beside it"),
        ("log: {level: @here}", "config/config.yaml:1:14", "put the text in quotes"),
    ],
)
def test_yaml_that_is_bad_in_a_known_way(cwd: Path, text: str, origin: str, hint: str) -> None:
    found = problem(cwd, text)
    assert found.origin == origin
    assert found.hint.startswith(hint)


def many(models: int) -> str:
    """A file of so many models."""
    target = "{provider: a, model: 'x', weight: 2, price: {input: 0.5, output: 1}, labels: {gpu: none}}"
    return "providers: {a: {kind: echo}}\nmodels:\n" + "".join(
        f"  m{n}: {{targets: [{target}]}}\n" for n in range(models)
    )


def test_a_large_file_is_read_in_a_fraction_of_the_time_that_nodes_take() -> None:
    text = many(200)

    def cost(call: Callable[[], object]) -> float:
        begun = time.process_time()
        call()
        return time.process_time() - begun

    ours, theirs = (lambda: parse(text, "x", places=False)), (lambda: yaml.compose(text, yaml.SafeLoader))
    assert min(cost(ours) for _ in range(3)) < min(cost(theirs) for _ in range(3)) / 4


@pytest.mark.parametrize("places", [True, False])
def test_a_file_says_what_other_readers_of_yaml_find_in_it(places: bool) -> None:
    merged = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: [*a]}\nc: {<<: [*a, *b], z: 3}\n"
    values = "d: [~, 0x1F, 1e3, .5, off, '1', \"\\n\"]\ne: |\n  b\n  c\nf: >-\n  e\n  f\n"
    tagged = "a: !!str 5\nb: !!int '5'\nc: ! 5\nd: !!map {e: !!seq [1]}"
    for text in (uncommented(), many(3), merged, values, tagged):
        assert parse(text, "x", places=places).values == yaml.load(text, yaml.SafeLoader)


def test_a_key_that_stands_twice_is_named_in_full(cwd: Path) -> None:
    assert (
        problem(cwd, "models:\n  m: {targets: [{model: x, provider: a, model: y}]}").path == "models.m.targets[0].model"
    )


def test_merge_keys_and_aliases_work(cwd: Path) -> None:
    text = """
providers:
  a: &a {kind: openai, base_url: "http://a", max_connections: 5}
  b: &b {<<: *a, base_url: "http://b"}
  c: *b
"""
    settings = read(cwd, text)
    assert openai(settings, "c") == OpenAIProvider(kind="openai", base_url="http://b", max_connections=5)


def test_a_date_is_text(cwd: Path) -> None:
    text = BASE + "models: {m: {targets: [{provider: local, model: 2024-13-45}]}}"
    assert read(cwd, text).models["m"].targets[0].model == "2024-13-45"


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeffhttp: {}\n", "http:\n"])
def test_a_file_may_say_nothing(cwd: Path, text: str) -> None:
    assert read(cwd, text) == Settings()


def test_files_that_cannot_be_read(cwd: Path) -> None:
    (cwd / "latin.yaml").write_bytes(b"a: \xff")
    for name, message in [
        ("no.yaml", "can't be read: No such"),
        ("config", "can't be"),
        ("latin.yaml", "is not UTF-8"),
    ]:
        with pytest.raises(SettingsError) as caught:
            load(Path(name), env={}, cwd=cwd)
        (found,) = caught.value.problems
        assert found.origin == name
        assert found.message.startswith(message)


# Units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("2s", 2),
        ("1m", 60),
        ("0.1h", 360),
        ("1m30s", 90),
        ("1.5 s", 1.5),
        ("2", 2),
        (0.25, 0.25),
        (3, 3),
    ],
)
def test_durations(cwd: Path, text: str | float, seconds: float) -> None:
    assert read(cwd, f"http: {{header_timeout: {text}}}").http.header_timeout == seconds
    assert read(cwd, "", {"LLMG_HTTP__HEADER_TIMEOUT": str(text)}).http.header_timeout == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65536),
        ("50MiB", 52428800),
        ("1 GiB", 2**30),
        ("1.5KiB", 1536),
        ("5MB", 5000000),
        ("9999B", 9999),
        (7777, 7777),
    ],
)
def test_sizes(cwd: Path, text: str | int, size: int) -> None:
    assert read(cwd, f"http: {{max_body: {text}}}").http.max_body == size
    assert read(cwd, "", {"LLMG_HTTP__MAX_BODY": str(text)}).http.max_body == size


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("my-host.example:80", ("my-host.example", 80)),
    ],
)
def test_addresses(cwd: Path, text: str, bind: tuple[str, int]) -> None:
    assert read(cwd, f"http: {{server_addr: '{text}'}}").http.bind == bind


def test_an_engine_of_any_name_may_be_started_by_a_command(cwd: Path) -> None:
    provider = read(cwd, BACKEND % "engine: vllm, external: [/opt/vllm/serve]").providers["local"]
    assert isinstance(provider, BackendProvider)
    assert (provider.engine, provider.external) == ("vllm", ("/opt/vllm/serve",))


def test_a_models_timeouts_lie_over_its_providers() -> None:
    assert TimeoutOverrides(idle=1).over(Timeouts(connect=2)) == Timeouts(connect=2, idle=1)


def test_the_home_directory_is_found(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert read(cwd, "models_dir: ~/models").models_dir == Path("/home/somebody/models")


# The schema and the example


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def uncommented() -> str:
    """The example with every setting that a # without a space hides."""
    return re.sub(r"^( *)#(?=[^\s#])", r"\1", (CONFIG / "config.example.yaml").read_text(), flags=re.MULTILINE)


def test_the_schema_file_is_current() -> None:
    golden = (CONFIG / "config.schema.json").read_text()
    assert golden == schema_text(), "renew it: python -m llmg.boot.settings > config/config.schema.json"


def test_the_reference_is_current() -> None:
    golden = (CONFIG.parent / "docs" / "configuration.md").read_text()
    assert golden == reference_text(), "renew it: python -m llmg.boot.settings --markdown > docs/configuration.md"


def test_the_reference_has_each_setting_once_and_its_links_lead_somewhere() -> None:
    text = reference_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert len(headings) == len(set(headings))
    slugs = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= slugs
    described = {
        field["description"]
        for section in json_schema()["$defs"].values()
        for field in section.get("properties", {}).values()
        if "description" in field
    }
    assert [each for each in described if f"| {each} |" not in text] == []
    for row in (
        "| `after` | `p95`, or duration, more than 0, up to 1m | `p95` | When: ",
        "| `max_body` | size, 1KiB or more | `32MiB` | ",
        "| `failure_ratio` | number, more than 0, up to 1 | `0.5` | ",
        "| `policy` | a policy's name, or [kind weighted, ",
        "| `cert` | path | *required* | ",
    ):
        assert row in text


def test_the_example_is_the_default(cwd: Path) -> None:
    assert load(CONFIG / "config.example.yaml", env={}) == load(env={}, cwd=cwd)


KEYS = {"ACME_OPENAI_KEY": "k", "WEB_KEY": "w" * 16, "OLD_KEY": "o" * 16}


def test_the_example_shows_defaults_where_they_are_hidden(cwd: Path) -> None:
    settings = read(cwd, uncommented(), {"OPENAI_API_KEY": "k", "MY_APP_KEY": "k" * 16, **KEYS})
    shown = openai(settings, "openai")
    checked = Resilience(health_check=HealthCheck())
    assert shown == OpenAIProvider(kind="openai", base_url=shown.base_url, api_key=shown.api_key, resilience=checked)
    assert settings.redis == Redis(url="redis://127.0.0.1:6379/0")
    assert settings.models["smollm2"].hedge == Hedge(after="p95")
    assert settings.providers["running"] == BackendProvider(kind="backend", address="127.0.0.1:50051")
    assert settings.providers["demo"] == EchoProvider(kind="echo")
    assert len(settings.models["fast"].targets) == 2


def test_the_example_shows_every_key() -> None:
    shown = {re.sub(r"\[\d+\]", "", path) for path in key_paths(yaml.safe_load(uncommented()), "")}
    defs = json_schema()["$defs"]
    places = {
        "http": "Http",
        "grpc": "Grpc",
        "rest": "Rest",
        "websocket": "WebSocket",
        "gateway": "Gateway",
        "graphql": "GraphQL",
        "log": "Log",
        "server": "Server",
        "models.fast.timeouts": "TimeoutOverrides",
        "providers.openai": "OpenAIProvider",
        "providers.demo": "EchoProvider",
        "models.smollm2.targets": "Target",
        "providers.openai.timeouts": "Timeouts",
        "providers.openai.resilience.health_check": "HealthCheck",
        "models.smollm2.hedge": "Hedge",
        "redis": "Redis",
        "limits": "RateLimits",
        "admin": "Admin",
        "tenants.acme": "Tenant",
        "providers.local.resilience.breaker": "Breaker",
        "models.smollm2.retries": "Retries",
    }
    wanted = {f"{place}.{key}" for place, name in places.items() for key in defs[name]["properties"]}
    wanted |= set(json_schema()["properties"])
    assert wanted <= shown
    backend = {path.split(".")[2] for path in shown if re.match(r"providers\.(local|running)\.", path)}
    assert backend == set(defs["BackendProvider"]["properties"])
    kept = {path.split(".")[3] for path in shown if re.match(r"providers\.(local|openai)\.resilience\.", path)}
    assert kept == set(defs["Resilience"]["properties"])
    model = {path.split(".")[2] for path in shown if re.match(r"models\.(smollm2|fast)\.", path)}
    assert model == set(defs["Model"]["properties"])


def key_paths(value: Any, at: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{at}.{key}".lstrip(".")
            yield from key_paths(inner, f"{at}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from key_paths(inner, f"{at}[{index}]")


def test_the_example_names_its_schema() -> None:
    first = (CONFIG / "config.example.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=config.schema.json"


def test_the_example_satisfies_the_schema(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load((CONFIG / "config.example.yaml").read_text()))
    validator.validate(yaml.safe_load(uncommented()))


@pytest.mark.parametrize(
    "text",
    [
        "http: {max_body: 5000, header_timeout: 0.5}",
        "http: {max_body: 5MiB, header_timeout: 1m30s, keep_alive: 0}",
        'http: {server_addr: "${ADDR:-[::1]:80}", backlog: "${N}", access_log: "${LOG:-false}", max_body: "${B}"}',
        'log: {level: "${LEVEL:-info}"}',
        'providers: {o: {kind: openai, base_url: "${URL}", api_key: "${K:-}"}}',
    ],
)
def test_the_schema_takes_what_load_takes(cwd: Path, validator: jsonschema.Draft202012Validator, text: str) -> None:
    validator.validate(yaml.safe_load(text))
    read(cwd, text, {"N": "5", "B": "5000", "URL": "http://a"})


@pytest.mark.parametrize(
    "text",
    [
        "htpp: {}",
        "http: {max_body: 32M}",
        "http: {header_timeout: soon}",
        "http: {header_timeout: 0}",
        "http: {server_addr: localhost}",
        "log: {level: loud}",
        "http: {max_body: 32}",
        "http: {header_timeout: 10000}",
        "server: {workers: 0}",
        "providers: {o: {kind: opnai}}",
        "providers: {o: {kind: openai}}",
        "providers: {o: {kind: backend}}",
        "providers: {o: {kind: backend, engine: xllamacpp, address: 'h:1'}}",
        "models: {m: {targets: []}}",
        "models: {m: {targets: [{provider: a, model: b, weight: 0}]}}",
        "models: {m: {targets: [{provider: a, model: b, wieght: 1}]}}",
    ],
)
def test_the_schema_refuses_what_load_refuses(cwd: Path, validator: jsonschema.Draft202012Validator, text: str) -> None:
    assert not validator.is_valid(yaml.safe_load(text))
    assert problems(cwd, text)


def test_every_field_of_the_schema_says_what_it_is() -> None:
    schema = json_schema()
    silent = [
        f"{name}.{key}"
        for name, section in [("", schema), *schema["$defs"].items()]
        for key, field in section.get("properties", {}).items()
        if not (field.get("description") or schema["$defs"][field["$ref"].rpartition("/")[2]].get("description"))
    ]
    assert silent == []


# What it costs


def test_settings_import_no_server_and_no_client() -> None:
    heavy = ["aiohttp", "grpc", "starlette", "uvicorn", "uvloop", "typer", "rich", "structlog", "dependency_injector"]
    code = f"import sys, llmg.boot.settings; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"

"""`llmg routes explain`, as its users run it: by a gateway, or by a configuration alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from boot.conftest import ROOT, Serve
from boot.test_cli import BOTH, WAYS, llmg, where, write
from llmg.services.admission import digest
from support.gateway import ECHO

TIERED: dict[str, Any] = {
    "providers": {"echo": {"kind": "echo"}, "openai": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}},
    "models": {
        "smart": {
            "policy": {"kind": "priority", "tiers": ["lowest_cost", "least_busy"]},
            "targets": [
                {"provider": "echo", "model": "a", "price": {"input": 2, "output": 2}, "region": "eu"},
                {"provider": "openai", "model": "b", "price": {"input": 1, "output": 1}, "weight": 2},
                {"provider": "echo", "model": "c", "priority": 1, "context_window": 2, "labels": {"gpu": "l4"}},
            ],
            "fallbacks": ["spare"],
        },
        "spare": {"targets": [{"provider": "echo", "model": "d"}]},
    },
}
KEY, OPS, OTHER = ("key-" + letter * 20 for letter in "abc")
CLOSED: dict[str, Any] = {**TIERED, "keys": {"app": KEY}, "admin": {"keys": {"ops": OPS}}}
TENANTS: dict[str, Any] = {
    "acme": {
        "models": {"fast": "smart", "own": "echo/x"},
        "allow": ["spare"],
        "limits": {"tokens_per_minute": 300},
        "teams": {"search": {"groups": {"prod": {"endpoints": {"web": {"keys": [{"id": "k", "key": OTHER}]}}}}}},
    }
}
LEVELS = ("tenants/acme", "tenants/acme/teams/search/groups/prod/endpoints/web")
DENIED = "a 'level' needs an admin's key (`admin.keys` of the configuration)\n"
PLAIN = json.loads(json.dumps(TENANTS).replace(f'"key": "{OTHER}"', f'"sha256": "{digest(OTHER).hex()}"'))


def test_by_a_configuration_alone(tmp_path: Path) -> None:
    words = ("routes", "explain", "smart", "Hello there", "-c", write(tmp_path, TIERED))
    done = llmg(*words, directory=tmp_path, COLUMNS="160")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert rows == [
        [
            "1",
            "openai/b",
            "weight 2, 1 / 1 USD per million",
            "tier 0, lowest_cost: cost 0.00051 USD, 0 in flight / weight 2",
        ],
        ["2", "echo/a", "2 / 2 USD per million, eu", "tier 0, lowest_cost: cost 0.001 USD, 0 in flight / weight 1"],
        ["-", "echo/c", "2 tokens, gpu=l4", "its context window of 2 tokens is too small for about 2"],
        ["3", "echo/d", "share 1.000, credit 1: the highest is next"],
    ]
    assert [line.strip() for line in done.stdout.splitlines() if "(" in line] == [
        "smart (priority)",
        "spare (weighted)",
    ]


def test_as_json(tmp_path: Path) -> None:
    words = ("routes", "explain", "echo/anything", "--json", "-c", write(tmp_path, TIERED))
    told = json.loads(llmg(*words, directory=tmp_path).stdout)
    assert told["model"] == "echo/anything"
    (stage,) = told["stages"]
    assert stage["policy"] == "direct"
    assert [(one["provider"], one["model"], one["place"]) for one in stage["targets"]] == [("echo", "anything", 1)]


def test_a_model_that_does_not_exist(tmp_path: Path) -> None:
    done = llmg("routes", "explain", "nope", "-c", write(tmp_path, TIERED), directory=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the model 'nope' does not exist\n")


def targets(*words: str, config: dict[str, Any], directory: Path) -> list[str]:
    """Those that would be asked, by this configuration."""
    done = llmg("routes", "explain", "--json", *words, "-c", write(directory, config), directory=directory)
    assert (done.returncode, done.stderr) == (0, "")
    stages = json.loads(done.stdout)["stages"]
    return [one["model"] for stage in stages for one in stage["targets"] if "place" in one]


def refusal(*words: str, config: dict[str, Any], directory: Path) -> tuple[int, str]:
    """Why it can't be told, by this configuration."""
    done = llmg("routes", "explain", *words, "-c", write(directory, config), directory=directory)
    assert done.stdout == ""
    return done.returncode, done.stderr


def elsewhere(directory: Path) -> dict[str, Any]:
    """The same tenants, but in a file of their own."""
    (directory / "catalog.yaml").write_text(json.dumps({"tenants": PLAIN}))
    return {**CLOSED, "catalog": {"file": str(directory / "catalog.yaml")}}


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_whose_key_it_is_says_which_models_there_are(tmp_path: Path, where: str) -> None:
    config = {**CLOSED, "tenants": TENANTS} if where == "here" else elsewhere(tmp_path)

    def told(model: str, *words: str) -> list[str]:
        return targets(model, *words, config=config, directory=tmp_path)

    assert told("own", "--api-key", OTHER) == ["x"]
    assert told("spare", "--api-key", OTHER) == ["d"]
    assert told("smart") == ["b", "a", "c", "d"]
    assert told("smart", "--api-key", KEY) == ["b", "a", "c", "d"]
    missing = (1, "the model 'smart' does not exist\n")
    assert refusal("smart", "--api-key", OTHER, config=config, directory=tmp_path) == missing
    code, words = refusal("own", "word " * 300, "--api-key", OTHER, config=config, directory=tmp_path)
    assert code == 1
    assert "more than the limit of 300 tokens a minute of tenants/acme" in words


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_of_a_level_of_the_configuration(tmp_path: Path, where: str) -> None:
    config = {**CLOSED, "tenants": TENANTS} if where == "here" else elsewhere(tmp_path)
    for level in LEVELS:
        for words in ((), ("--api-key", OPS)):
            assert targets("own", "--level", level, *words, config=config, directory=tmp_path) == ["x"]
    for level, words in (("tenants/acme/teams/nope", ()), ("tenants/nope", ("--api-key", OPS))):
        told = refusal("own", "--level", level, *words, config=config, directory=tmp_path)
        assert told == (1, f"the level '{level}' does not exist\n")
    assert refusal("smart", "--level", "tenants/acme", config=config, directory=tmp_path) == (
        1,
        "the model 'smart' does not exist\n",
    )
    assert refusal("own", "--level", LEVELS[-1], "--api-key", OTHER, config=config, directory=tmp_path) == (1, DENIED)


def test_a_key_that_the_configuration_does_not_know(tmp_path: Path) -> None:
    told = refusal("smart", "--api-key", OTHER, config=CLOSED, directory=tmp_path)
    assert told == (1, "--api-key: the API key is not valid\n")


def test_a_gateways_key_in_the_environment_is_none_of_a_configurations(tmp_path: Path) -> None:
    words = ("routes", "explain", "smart", "--json", "-c", write(tmp_path, CLOSED))
    assert llmg(*words, directory=tmp_path, LLMG_API_KEY=OTHER).returncode == 0


@pytest.mark.parametrize("words", [("--url", "http://127.0.0.1:1"), ("--grpc",), ("--ca", "ca.pem")])
def test_a_configuration_or_a_gateway(tmp_path: Path, words: tuple[str, ...]) -> None:
    told = refusal("smart", *words, config=TIERED, directory=tmp_path)
    assert told == (2, "--config asks no gateway: it excludes --url, --grpc and --ca\n")


async def explain(*words: str) -> tuple[int, str, str]:
    """On a thread: what it talks to may be on this one."""
    done = await asyncio.to_thread(llmg, "routes", "explain", *words, directory=ROOT)
    return done.returncode, done.stdout, done.stderr


@BOTH
async def test_by_a_gateway(serve: Serve, way: str) -> None:
    gateway = await serve(CLOSED)
    there = (*WAYS[way], "--url", where(gateway, way))
    code, out, err = await explain("smart", "--json", "--api-key", OPS, *there)
    assert (code, err) == (0, "")
    targets = [one for stage in json.loads(out)["stages"] for one in stage["targets"]]
    assert [(one["model"], one.get("place")) for one in targets] == [("b", 1), ("a", 2), ("c", 3), ("d", 4)]
    assert targets[0]["price"] == {"input": 1.0, "output": 1.0}
    code, out, err = await explain("smart", "--json", "--api-key", KEY, *there)
    assert (code, err) == (0, "")
    outline = [one for stage in json.loads(out)["stages"] for one in stage["targets"]]
    assert [(one["model"], one["reason"]) for one in outline] == [(name, "in the policy's order") for name in "bacd"]
    assert not any(secret in one for one in outline for secret in ("price", "region", "labels", "score"))
    code, out, err = await explain("nope", "--api-key", KEY, *there)
    assert (code, out, err) == (1, "", "the model 'nope' does not exist\n")
    code, out, err = await explain("smart", "--api-key", "other", *there)
    assert (code, out) == (1, "")
    assert "the API key is not valid" in err


@BOTH
async def test_of_a_level_by_a_gateway(serve: Serve, way: str) -> None:
    gateway = await serve({**CLOSED, "tenants": TENANTS})
    there = ("--json", *WAYS[way], "--url", where(gateway, way))
    for level in LEVELS:
        code, out, err = await explain("own", "--level", level, "--api-key", OPS, *there)
        assert (code, err) == (0, "")
        [target] = json.loads(out)["stages"][0]["targets"]
        assert (target["model"], target["score"]) == ("x", 1.0)
    code, out, err = await explain("own", "--level", "tenants/nope", "--api-key", OPS, *there)
    assert (code, out, err) == (1, "", "the level 'tenants/nope' does not exist\n")
    code, out, err = await explain("own", "--level", LEVELS[0], "--api-key", OTHER, *there)
    assert (code, out, err) == (1, "", DENIED)


@BOTH
async def test_where_no_gateway_is(serve: Serve, way: str) -> None:
    gateway = await serve(ECHO, "--door", "websocket")
    code, out, err = await explain("m", *WAYS[way], "--url", "http://{}:{}".format(*gateway.address))
    assert (code, out) == (1, "")
    assert err


@pytest.mark.parametrize("url", ["http://", "ftp://a"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    done = llmg("routes", "explain", "m", "--url", url, directory=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("--url: ")

"""docs/routing.md: its configuration loads, and it names every policy and every option."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from llmg.boot.settings import FlatModel, Settings
from llmg.boot.settings.models import CAPABILITIES
from llmg.boot.settings.policies import InnerPolicy, PriorityPolicy
from support.gateway import process

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
SECTIONS = (*get_args(InnerPolicy), PriorityPolicy)
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", TEXT, flags=re.M | re.S)
PROVIDERS = {name: {"kind": "echo"} for name in ("gpu1", "gpu2", "gpu3", "cloud1", "cloud2")}


def _models(example: str) -> dict[str, FlatModel]:
    config: dict[str, Any] = {"providers": PROVIDERS, **yaml.safe_load(example)}
    return Settings(**config).models


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_right(example: str) -> None:
    assert all(model.targets for model in _models(example).values())


def test_what_references_come_to() -> None:
    models = _models(EXAMPLES[1])
    assert models["chat"] is models["qwen3"]
    first = [target for target in models["smart"].targets if target.priority == 0]
    total = sum(target.weight for target in first)
    shares = [f"`{target.provider}` {target.weight / total:.0%}".replace("%", " %") for target in first]
    assert f"(here: {', '.join(shares)}, and `cloud1` behind them)" in TEXT.replace("\n", " ")
    assert [target.provider for target in models["smart"].targets if target.priority == 1] == ["cloud1"]


def test_every_capability_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\|$", TEXT.split("### What a target can do")[1].split("## How")[0], flags=re.M)
    assert rows == [*CAPABILITIES, "context_window"]


def test_every_policy_is_explained() -> None:
    kinds = [kind for section in SECTIONS for kind in get_args(section.model_fields["kind"].annotation)]
    rows = re.findall(r"^\| `(\w+)`.*\|$", TEXT.split("## The policies")[1].split("### Options")[0], flags=re.M)
    assert sorted(rows) == sorted(kinds)


def test_every_option_is_explained() -> None:
    options = {name for section in SECTIONS for name in section.model_fields} - {"kind"}
    rows = re.findall(r"^\| `(\w+)` \|.*\|$", TEXT.split("### Options")[1].split("### Worth")[0], flags=re.M)
    assert sorted(rows) == sorted(options)


def test_each_protocol_explains_a_route_as_is_shown(tmp_path: Path) -> None:
    fast = {**yaml.safe_load(EXAMPLES[0])["models"]["fast"], "policy": "weighted"}
    [script] = re.findall(r"^```shell\n(.*?)^```$", TEXT, flags=re.M | re.S)
    [shown] = re.findall(r"^```json\n(.*?)^```$", TEXT, flags=re.M | re.S)
    with process(tmp_path, {"providers": PROVIDERS, "models": {"fast": fast}}) as gateway:
        text = script.replace("127.0.0.1:8080", "{}:{}".format(*gateway.address))
        text = text.replace("127.0.0.1:8081", gateway.grpc_address)
        done = subprocess.run(["bash", "-euc", text], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    answers, at = [], 0
    while at < len(done.stdout):
        answer, at = json.JSONDecoder().raw_decode(done.stdout, at)
        answers.append(answer)
        at = len(done.stdout) - len(done.stdout[at:].lstrip())
    assert answers[-1]["data"] == json.loads(shown)["data"]
    told = [[one["reason"] for one in answer["stages"][0]["targets"]] for answer in answers[:-1]]
    assert told == 3 * [[one["reason"] for one in json.loads(shown)["data"]["explainRoute"]["stages"][0]["targets"]]]

"""docs/routing.md: its configuration loads, and it names every policy and every option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from llmg.boot.settings import FlatModel, Settings
from llmg.boot.settings.models import CAPABILITIES
from llmg.boot.settings.policies import InnerPolicy, PriorityPolicy

TEXT = (Path(__file__).parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
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

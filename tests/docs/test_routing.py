"""docs/routing.md: its configuration loads, and it names every policy and every option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from llmg.boot.settings import Model
from llmg.boot.settings.policies import InnerPolicy, PriorityPolicy

TEXT = (Path(__file__).parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
SECTIONS = (*get_args(InnerPolicy), PriorityPolicy)
(EXAMPLE,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, flags=re.M | re.S)


@pytest.mark.parametrize("model", yaml.safe_load(EXAMPLE)["models"].values())
def test_the_example_is_right(model: Any) -> None:
    assert Model.model_validate(model).targets


def test_every_policy_is_explained() -> None:
    kinds = [kind for section in SECTIONS for kind in get_args(section.model_fields["kind"].annotation)]
    rows = re.findall(r"^\| `(\w+)`.*\|$", TEXT.split("## The policies")[1].split("### Options")[0], flags=re.M)
    assert sorted(rows) == sorted(kinds)


def test_every_option_is_explained() -> None:
    options = {name for section in SECTIONS for name in section.model_fields} - {"kind"}
    rows = re.findall(r"^\| `(\w+)` \|.*\|$", TEXT.split("### Options")[1].split("### Worth")[0], flags=re.M)
    assert sorted(rows) == sorted(options)

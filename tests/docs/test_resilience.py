"""docs/resilience.md: the table of kinds says what the code does, the configuration loads, the options are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmg.boot.resilience import CHANGES
from llmg.boot.settings import Settings
from llmg.boot.settings.hedging import Hedge
from llmg.boot.settings.providers import HealthCheck
from llmg.core.errors import FAILS_OVER, Kind
from llmg.routing.health import COOLS, VERDICTS, Verdict
from llmg.routing.retries import RETRIED

TEXT = (Path(__file__).parents[2] / "docs" / "resilience.md").read_text(encoding="utf-8")


def test_the_table_of_kinds_is_the_codes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (yes|) \| (yes|) \| (yes|) \|$", TEXT, flags=re.M)
    written = {Kind(kind): tuple(map(bool, cells)) for kind, *cells in rows}
    assert written == {kind: (VERDICTS[kind] is Verdict.FAULT, kind in COOLS, kind in RETRIED) for kind in FAILS_OVER}


@pytest.mark.parametrize("example", re.findall(r"^```yaml\n(.*?)^```$", TEXT, flags=re.M | re.S))
def test_the_examples_are_right(example: str) -> None:
    config: dict[str, Any] = yaml.safe_load(example)
    if "providers" not in config:
        config["providers"] = {name: {"kind": "echo"} for name in ("a", "b")}
    settings = Settings(**config)
    assert settings.providers
    assert all(model.hedge == Hedge() for model in settings.models.values())  # it shows the defaults


@pytest.mark.parametrize("option", [*HealthCheck.model_fields, *Hedge.model_fields])
def test_options_are_named(option: str) -> None:
    assert re.search(rf"`{option}[`:]|\b{option}: ", TEXT)


def test_what_is_logged_of_targets_is_told() -> None:
    assert [words for words in CHANGES.values() if f"| `{words}` |" not in TEXT] == []


def test_how_many_checks_count() -> None:
    checks = HealthCheck()
    assert f"`failures` ({checks.failures}) in a row fail" in TEXT
    assert f"`passes` ({checks.passes}) in a row pass" in TEXT

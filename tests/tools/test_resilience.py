"""What clients notice of upstream processes in trouble: short runs of tools/resilience."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

RUN = Path(__file__).resolve().parents[2] / "tools" / "resilience" / "run.py"


def _run(name: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of its table. Asserts that it found nothing wrong itself."""
    file = folder / "counts.json"
    command = [sys.executable, str(RUN), name, "--clients", "12", "--requests", "150", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    rows: list[dict[str, Any]] = json.loads(file.read_text())[name]
    assert all(row["counts"]["requests"] >= 150 for row in rows)
    return rows


def test_no_client_is_refused_what_another_upstream_could_answer(tmp_path: Path) -> None:
    phases = _run("faults", tmp_path)
    assert [phase["what"] for phase in phases[::2]] == ["all are well", *["it is back"] * 4]
    for phase in phases:
        counts = phase["counts"]
        assert counts["answered"] + counts["cut"] == counts["requests"]
    for phase in phases[1::2]:  # the upstream was in trouble, and somebody noticed
        assert phase["counts"]["failed_over"] + phase["counts"]["cut"] > 0
    assert all(phase["back_after"] is not None for phase in phases[2::2])
    assert phases[7]["counts"]["cut"] > 0  # errors after a word


def test_hedging_asks_more_targets_within_its_budget(tmp_path: Path) -> None:
    without, after_a_time, _ = (way["counts"] for way in _run("hedging", tmp_path))
    assert without["attempts"] == without["answered"]
    assert after_a_time["attempts"] > after_a_time["answered"]
    assert len(after_a_time["waits"]) >= 50


def test_with_health_checks_fewer_pay_for_an_upstream_that_is_gone(tmp_path: Path) -> None:
    outages = _run("checks", tmp_path)
    assert [(outage["what"], outage["checked"]) for outage in outages] == [
        ("killed", False),
        ("killed", True),
        ("frozen", False),
        ("frozen", True),
    ]
    for outage in outages:
        assert outage["counts"]["answered"] == outage["counts"]["requests"]
        assert outage["back_after"] is not None

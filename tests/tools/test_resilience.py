"""What clients notice when one of three upstream processes fails: a short run of tools/resilience."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RUN = Path(__file__).resolve().parents[2] / "tools" / "resilience" / "run.py"


def test_no_client_is_refused_what_another_upstream_could_answer(tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    command = [sys.executable, str(RUN), "--clients", "12", "--requests", "150", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    phases: list[dict[str, Any]] = json.loads(file.read_text())
    assert [phase["what"] for phase in phases[::2]] == ["all are well", *["it is back"] * 4]
    for phase in phases:
        counts = phase["counts"]
        assert counts["requests"] >= 150
        assert counts["answered"] + counts["cut"] == counts["requests"]
    for phase in phases[1::2]:  # the upstream was in trouble, and somebody noticed
        assert phase["counts"]["failed_over"] + phase["counts"]["cut"] > 0
    assert all(phase["back_after"] is not None for phase in phases[2::2])
    assert phases[7]["counts"]["cut"] > 0  # errors after a word

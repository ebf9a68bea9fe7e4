"""The table of kinds in docs/resilience.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from llmg.core.errors import FAILS_OVER, Kind
from llmg.routing.health import COOLS, VERDICTS, Verdict
from llmg.routing.retries import RETRIED

TEXT = (Path(__file__).parents[2] / "docs" / "resilience.md").read_text(encoding="utf-8")


def test_the_table_of_kinds_is_the_codes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (yes|) \| (yes|) \| (yes|) \|$", TEXT, flags=re.M)
    written = {Kind(kind): tuple(map(bool, cells)) for kind, *cells in rows}
    assert written == {kind: (VERDICTS[kind] is Verdict.FAULT, kind in COOLS, kind in RETRIED) for kind in FAILS_OVER}

"""Which version and commit this is: stamped into a wheel as it was built, asked of git in a checkout."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import llmg


@cache
def version() -> dict[str, str]:
    """`version`, `commit`, `python`. The commit is "unknown" where neither a stamp nor git tells."""
    number, commit = _stamp() or (llmg.__version__, _git_commit())
    return {"version": number, "commit": commit, "python": platform.python_version()}


def _stamp() -> tuple[str, str] | None:
    if find_spec("llmg._build") is None:
        return None
    from importlib import import_module

    build = import_module("llmg._build")
    return build.VERSION, build.COMMIT


def _git_commit() -> str:
    root = Path(llmg.__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        words = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"

"""Stamps the version and the commit into a wheel as it is built.

`BUILD_VERSION` and `BUILD_LAST_COMMIT` win (a container build has no git folder); otherwise git is asked.
A checkout is not stamped: there `llmg version` asks git when it is run.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Stamp(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `llmg/_build.py` to a standard wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        commit = os.environ.get("BUILD_LAST_COMMIT") or _git(self.root, "rev-parse", "HEAD")
        number = os.environ.get("BUILD_VERSION") or self.metadata.version
        out = self._stamp
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f'VERSION = "{number}"\nCOMMIT = "{commit}"\n', encoding="utf-8")
        build_data["force_include"][str(out)] = "llmg/_build.py"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """See BuildHookInterface."""
        self._stamp.unlink(missing_ok=True)

    @property
    def _stamp(self) -> Path:
        return Path(self.directory) / "_build.py"


def _git(root: str, *words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

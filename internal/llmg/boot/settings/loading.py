"""Finds the files, lays them and the environment over each other, and checks the whole."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmg.boot.settings import environment, levels, yamlfile
from llmg.boot.settings.annotations import ROOT
from llmg.boot.settings.catalog import Tenant
from llmg.boot.settings.explain import Explainer
from llmg.boot.settings.layers import Layer, Origin, expand, merge
from llmg.boot.settings.problems import Keys, Problem, SettingsError
from llmg.boot.settings.shape import Settings
from llmg.boot.settings.types import ProviderName, Section

DEFAULT_FILE = Path("config/config.yaml")
LOCAL_FILE = Path("config/config.local.yaml")

EMBEDDED = Layer(
    {
        "providers": {"local": {"kind": "backend", "engine": "xllamacpp"}},
        "models": {"smollm2": {"targets": [{"provider": "local", "model": "smollm2-135m-instruct"}]}},
    },
    {(): Origin("the embedded default")},
)
"""What holds without any file: a small model, answered on this machine."""


def load(path: Path | None = None, *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Settings:
    """The configuration: the environment over files over defaults.

    `path` (or else the variable LLMG_CONFIG) names the one file to read. Without it, `config/config.yaml`
    in the working directory is read, or the embedded default taken, and `config/config.local.yaml` is laid
    over that. Raises SettingsError with all problems found.
    """
    env = os.environ if env is None else env
    cwd = Path.cwd() if cwd is None else cwd
    try:
        return _load(path, env, cwd, yamlfile.quick)
    except SettingsError:  # to be told with the places
        return _load(path, env, cwd, lambda file, name: None)


def _load(path: Path | None, env: Mapping[str, str], cwd: Path, quick: Callable[[Path, str], Layer | None]) -> Settings:
    named = [(cwd / file, str(file)) for file in files(path, env=env, cwd=cwd)]
    layers = [quick(*file) or yamlfile.read(*file) for file in named]
    if not _named(path, env) and not (cwd / DEFAULT_FILE).exists():
        layers.insert(0, EMBEDDED)
    below = merge(layers)
    over, problems = environment.layer(env, below)
    return _checked(merge([below, over]), env, problems)


def files(path: Path | None = None, *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> list[Path]:
    """The files that `load` reads, lowest first, as it names them: below the working directory, or as given."""
    env = os.environ if env is None else env
    cwd = Path.cwd() if cwd is None else cwd
    if named := _named(path, env):
        return [named]
    return [file for file in (DEFAULT_FILE, LOCAL_FILE) if (cwd / file).exists()]


def watched(path: Path | None = None, *, env: Mapping[str, str] | None = None) -> list[Path]:
    """The files that `load` would read, whether they are there or not."""
    env = os.environ if env is None else env
    named = _named(path, env)
    return [named] if named else [DEFAULT_FILE, LOCAL_FILE]


def with_tenants(settings: Settings, tenants: Mapping[str, Any], origin: str) -> Settings:
    """The settings with these tenants, as they stand in the section of that name: plain values, without `${VARIABLE}`.

    Raises SettingsError; `origin` is what problems call the place where they come from.
    """
    explainer = Explainer(Layer({}, {(): Origin(origin)}), frozenset())
    try:
        read = _Tenants(tenants=tenants)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError([explainer.problem(detail) for detail in error.errors()]) from None
    new = settings.model_copy(update={"tenants": read.tenants})
    check_tenants(new, origin)
    return new


def check_tenants(settings: Settings, origin: str) -> None:
    """Whether tenants from elsewhere fit the rest. Raises SettingsError, as `with_tenants`."""
    explainer = Explainer(Layer({}, {(): Origin(origin)}), frozenset())
    if found := levels.mistakes(settings):
        raise SettingsError([explainer.mistake(mistake) for mistake in found])


class _Tenants(Section):
    tenants: dict[ProviderName, Tenant]


def _named(path: Path | None, env: Mapping[str, str]) -> Path | None:
    variable = env.get(environment.FILE_VARIABLE)
    return path or (Path(variable) if variable else None)


def _checked(layer: Layer, env: Mapping[str, str], problems: list[Problem]) -> Settings:
    expansion = expand(layer, env)
    problems = problems + expansion.problems
    explainer = Explainer(layer, expansion.filled)
    values = expansion.values
    # BaseSettings would take a key such as `_env_file` for an argument of its own.
    unknown = [key for key in values if key not in ROOT.keys]
    problems += [explainer.unknown_key((key,), ROOT) for key in unknown]
    problems += [
        explainer.unknown_name(keys, "the name of a declared provider", name, names)
        for keys, name, names in _undeclared(values)
    ]
    try:
        settings = Settings(**{key: value for key, value in values.items() if key not in unknown})
    except ValidationError as error:
        known = {problem.path for problem in problems}  # said already
        found = [explainer.problem(detail) for detail in error.errors() if not _consequence(detail)]
        problems += [problem for problem in found if problem.path not in known]
    else:
        mistakes = [*levels.misplaced(settings), *levels.mistakes(settings)]
        problems += [explainer.mistake(mistake) for mistake in mistakes]
    if problems:
        raise SettingsError(problems)
    return settings


def _consequence(error: ErrorDetails) -> bool:
    """Pydantic calls a list too short when its entries are wrong, which is reported by itself."""
    return error["type"] == "too_short" and len(error["input"]) >= int(error["ctx"]["min_length"])


def _undeclared(values: Mapping[str, Any]) -> Iterator[tuple[Keys, str, list[str]]]:
    """Targets whose provider isn't declared: the place, the name, the declared names. Passes over wrong shapes."""
    providers = list(_mapping(values.get("providers")))
    for model, body in _mapping(values.get("models")).items():
        targets = _mapping(body).get("targets")
        for index, target in enumerate(targets if isinstance(targets, list) else []):
            name = _mapping(target).get("provider")
            if isinstance(name, str) and name and name not in providers:
                yield ("models", model, "targets", index, "provider"), name, providers


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

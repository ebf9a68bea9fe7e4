"""Finds the files, lays them and the environment over each other, and checks the whole."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llmg.boot.settings import environment, levels, yamlfile
from llmg.boot.settings.annotations import ROOT
from llmg.boot.settings.catalog import Tenant
from llmg.boot.settings.explain import Explainer
from llmg.boot.settings.layers import Layer, Origin, expand, merge
from llmg.boot.settings.problems import Keys, Problem, SettingsError, dotted, nearest
from llmg.boot.settings.shape import Settings
from llmg.boot.settings.types import ProviderName, Section

DEFAULT_FILE = Path("config/config.yaml")
LOCAL_FILE = Path("config/config.local.yaml")

_DECLARING = (("keys",), ("admin", "keys"), ("tenants",), ("providers",), ("models",))

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
        return _load(path, env, cwd, places=False)
    except SettingsError:  # to be told with the places
        return _load(path, env, cwd, places=True)


def origin(keys: Keys, path: Path | None = None, *, env: Mapping[str, str] | None = None) -> str:
    """Who said what holds at a place, as problems tell it. Of settings that `load` has just read, from the same."""
    layer, _ = _layer(path, os.environ if env is None else env, Path.cwd(), places=True)
    return layer.origin(keys).text


def _load(path: Path | None, env: Mapping[str, str], cwd: Path, *, places: bool) -> Settings:
    layer, problems = _layer(path, env, cwd, places=places)
    return _checked(layer, env, problems)


def _layer(path: Path | None, env: Mapping[str, str], cwd: Path, *, places: bool) -> tuple[Layer, list[Problem]]:
    layers = [yamlfile.read(cwd / file, str(file), places=places) for file in files(path, env=env, cwd=cwd)]
    if not _named(path, env) and not (cwd / DEFAULT_FILE).exists():
        layers.insert(0, EMBEDDED)
    below = merge(layers)
    over, problems = environment.layer(env, below)
    whole = merge([below, over])
    return whole, [*problems, *_empty(layers, whole)]


def _empty(layers: Sequence[Layer], whole: Layer) -> Iterator[Problem]:
    """Names that declare nothing: a key that was forgotten must not let everybody in."""
    for index, layer in enumerate(layers):
        for section in _DECLARING:
            for name, value in _at(layer, section).items():
                known = any(name in _at(each, section) for each in (*layers[:index], whole))
                if value is None and not known:
                    at = (*section, name)
                    hint = "`null` takes back what a lower file said, and none did"
                    yield Problem(dotted(at), "is empty", layer.origin(at).text, hint)


def _at(layer: Layer, section: tuple[str, ...]) -> Mapping[str, Any]:
    value: Any = layer.values
    for key in section:
        value = _mapping(value).get(key)
    return _mapping(value)


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
    unknown = [key for key in values if key not in ROOT.keys]
    problems += [explainer.unknown_key((key,), ROOT) for key in unknown]
    values, meant = _as_meant(values, unknown)
    problems += [
        explainer.unknown_name(keys, "the name of a declared provider", name, names)
        for keys, name, names in _undeclared(values)
    ]
    try:
        settings = Settings(**values)
    except ValidationError as error:
        known = {problem.path for problem in problems}  # said already
        found = [explainer.problem(detail) for detail in error.errors() if not _consequence(detail)]
        problems += [problem for problem in found if problem.path not in known]
        problems = [problem for problem in problems if problem.path.partition(".")[0] not in meant]
    else:
        mistakes = [*levels.misplaced(settings), *levels.mistakes(settings)]
        problems += [explainer.mistake(mistake) for mistake in mistakes]
    if problems:
        raise SettingsError(problems)
    return settings


def _as_meant(values: Mapping[str, Any], unknown: Iterable[str]) -> tuple[dict[str, Any], set[str]]:
    """The values without the unknown keys, but for those of misspelt sections: others refer to what they declare. With
    them their right names.

    (BaseSettings would take a key such as `_env_file` for an argument of its own.)
    """
    meant = {right: key for key in unknown if (right := nearest(key, ROOT.keys)) and right not in values}
    known = {key: value for key, value in values.items() if key in ROOT.keys}
    return known | {right: values[key] for right, key in meant.items()}, set(meant)


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

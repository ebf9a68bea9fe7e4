"""Fallbacks that lead nowhere, or back to where they came from. Looks at values as read; passes over wrong shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

from llmg.boot.settings.problems import Keys


def undeclared(values: Mapping[str, Any]) -> Iterator[tuple[Keys, str, list[str]]]:
    """Fallbacks that are no declared model, nor PROVIDER/MODEL: the place, the name, the declared names."""
    models, providers = _mapping(values.get("models")), _mapping(values.get("providers"))
    for model in models:
        for index, name in _fallbacks(models, model):
            provider, _, theirs = name.partition("/")
            if name and name not in models and not (provider in providers and theirs):
                yield ("models", model, "fallbacks", index), name, list(models)


def cycles(values: Mapping[str, Any]) -> Iterator[tuple[Keys, list[str]]]:
    """The place of each fallback that closes a cycle, and the cycle: its first model is also its last."""
    models = _mapping(values.get("models"))
    done: set[str] = set()
    for model in models:
        yield from _from(model, models, [], done)


def _from(model: str, models: Mapping[str, Any], path: list[str], done: set[str]) -> Iterator[tuple[Keys, list[str]]]:
    if model in done:
        return
    path.append(model)
    for index, name in _fallbacks(models, model):
        if name in path:
            yield ("models", model, "fallbacks", index), [*path[path.index(name) :], name]
        else:
            yield from _from(name, models, path, done)
    done.add(path.pop())


def _fallbacks(models: Mapping[str, Any], model: str) -> list[tuple[int, str]]:
    names = _mapping(models.get(model)).get("fallbacks")
    return [(i, name) for i, name in enumerate(names if isinstance(names, list) else []) if isinstance(name, str)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

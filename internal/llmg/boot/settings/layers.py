"""Layers of configuration: values with the place each came from, laid over each other, `${VARIABLE}` filled in.

Of two layers mappings merge key by key; anything else replaces what was below. `null` takes away what was below, so
the default holds again.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from llmg.boot.settings.problems import Keys, Problem, dotted

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{.*", re.DOTALL)  # the last: a broken one, with all that follows
_NAME_AND_DEFAULT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was said: `text` for people; `variable` is set when it was an environment variable."""

    text: str
    variable: str | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """Values, and for their places where each was said. A place without an origin has its parent's."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, Origin] = field(default_factory=dict)

    def origin(self, keys: Keys) -> Origin:
        """Where the value at this place was said, or else the nearest thing around it."""
        for end in range(len(keys), -1, -1):
            if found := self.origins.get(keys[:end]):
                return found
        return Origin("the defaults")


def merge(layers: Iterable[Layer]) -> Layer:
    """The layers as one, the last on top."""
    return reduce(_over, layers, Layer())


def _over(low: Layer, high: Layer) -> Layer:
    replaced: set[Keys] = set()
    values = _overlay(low.values, high.values, (), replaced)
    depths = {len(keys) for keys in replaced}
    kept = {
        keys: origin for keys, origin in low.origins.items() if not any(keys[:depth] in replaced for depth in depths)
    }
    return Layer(values, kept | high.origins)


def _overlay(low: dict[str, Any], high: dict[str, Any], at: Keys, replaced: set[Keys]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.pop(key, None)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _overlay(below, value, (*at, key), replaced)
            continue
        replaced.add((*at, key))
        if value is not None:
            merged[key] = _alone(value) if isinstance(value, dict) else value
    return merged


def _alone(values: dict[str, Any]) -> dict[str, Any]:
    """What is said over nothing: there is nothing that `null` could take back."""
    said = ((key, value) for key, value in values.items() if value is not None)
    return {key: _alone(value) if isinstance(value, dict) else value for key, value in said}


@dataclass(slots=True)
class Expansion:
    """The values with their references filled in; `filled` are the places that held one, right or wrong."""

    values: dict[str, Any]
    filled: set[Keys]
    problems: list[Problem]


def expand(layer: Layer, env: Mapping[str, str]) -> Expansion:
    """Fills `${NAME}` and `${NAME:-default}` in; `$${` stands for `${`. What the environment itself gave stays."""
    expansion = Expansion({}, set(), [])
    expansion.values = _fill(layer.values, (), layer, env, expansion)
    return expansion


def _fill(value: Any, at: Keys, layer: Layer, env: Mapping[str, str], out: Expansion) -> Any:
    if isinstance(value, dict):
        return {
            key: _fill(item, (*at, key), layer, env, out) if _may_refer(item) else item for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            _fill(item, (*at, index), layer, env, out) if _may_refer(item) else item for index, item in enumerate(value)
        ]
    return value if layer.origin(at).variable else _fill_text(value, at, layer, env, out)


def _may_refer(value: Any) -> bool:
    return "${" in value if isinstance(value, str) else isinstance(value, dict | list)


def _fill_text(text: str, at: Keys, layer: Layer, env: Mapping[str, str], out: Expansion) -> str:
    out.filled.add(at)

    def problem(message: str, hint: str) -> str:
        out.problems.append(Problem(dotted(at), message, layer.origin(at).text, hint))
        return ""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        parts = _NAME_AND_DEFAULT.match(match[1] or "")
        if not parts:
            return problem("expected ${NAME} or ${NAME:-default}", "for a plain ${ write $${")
        name, default = parts[1], parts[2]
        if found := env.get(name):
            return found
        if default is not None:
            return default
        return problem(f"the environment variable {name} is not set", f"set it, or write ${{{name}:-default}}")

    return _REFERENCE.sub(one, text)

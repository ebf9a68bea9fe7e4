"""Environment variables as a layer: `LLMG_HTTP__SERVER_ADDR` is http.server_addr, `__` stands between keys.

Case doesn't count. A name in a mapping (a provider's, a model's) is matched to what the files declare, with `_` for
any character a variable can't hold; a new one is taken in lower case. Lists and mappings are written as JSON. An
empty variable is none.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmg.boot.settings.annotations import ROOT, Node
from llmg.boot.settings.layers import Layer, Origin
from llmg.boot.settings.problems import Keys, Problem, dotted

PREFIX = "LLMG_"
BETWEEN = "__"
FILE_VARIABLE = "LLMG_CONFIG"
RESERVED = frozenset({FILE_VARIABLE, "LLMG_LOG"})
"""Variables that aren't settings."""


def layer(env: Mapping[str, str], below: Layer) -> tuple[Layer, list[Problem]]:
    """The settings in the environment, over the names that the layers below declare."""
    result, problems = Layer(), list(_misspelt(env))
    for name in sorted(_settings(env), key=lambda name: (name.count(BETWEEN), name)):
        origin = Origin(f"environment variable {name}", name)
        keys, node = _resolve(name, below.values)
        try:
            value = _decode(env[name], node, len(keys) < name.count(BETWEEN) + 1)
        except ValueError as error:
            right = variable(keys)
            problems.append(Problem(dotted(keys), str(error), origin.text, f"set {right}" if right != name else ""))
        else:
            _put(result.values, keys, value)
            result.origins[keys] = origin
            for end in range(1, len(keys)):  # what only the environment knows
                if keys[:end] not in below.origins:
                    result.origins.setdefault(keys[:end], origin)
    return result, problems


def variable(keys: Keys) -> str:
    """The variable that sets the value at a place."""
    return PREFIX + BETWEEN.join(_shout(str(key)) for key in keys)


def _settings(env: Mapping[str, str]) -> Iterator[str]:
    for name, value in env.items():
        rest = name.removeprefix(PREFIX)
        if rest != name and value and name not in RESERVED and (BETWEEN in rest or rest.lower() in ROOT.keys):
            yield name


def _misspelt(env: Mapping[str, str]) -> Iterator[Problem]:
    """One underscore where two belong."""
    right = {name.replace(BETWEEN, "_"): name for name in map(variable, _places(ROOT, ())) if BETWEEN in name}
    for name in env:
        if name in right and env[name]:
            yield Problem("", "is no setting", f"environment variable {name}", f"did you mean `{right[name]}`?")


def _places(node: Node, at: Keys) -> Iterator[Keys]:
    yield at
    for key in node.keys:
        if child := node.child(key):
            yield from _places(child, (*at, key))


def _resolve(name: str, values: Any) -> tuple[tuple[str, ...], Node | None]:
    """The place that a variable means and what may stand there; None where the shape knows nothing.

    It ends early at a list or a single value: nothing in one can be set by itself.
    """
    node: Node | None = ROOT
    keys: tuple[str, ...] = ()
    for segment in name.removeprefix(PREFIX).split(BETWEEN):
        key = _key(segment, node, values)
        node = node.child(key) if node else None
        values = values.get(key) if isinstance(values, dict) else None
        keys = (*keys, key)
        if node and (node.single or node.list_of):
            break
    return keys, node


def _key(segment: str, node: Node | None, values: Any) -> str:
    if node and node.mapping_of:
        declared = [key for key in values if _shout(key) == segment.upper()] if isinstance(values, dict) else []
        if declared:
            return segment.lower() if segment.lower() in declared else str(declared[0])
        # Variables for an engine's process and headers keep their case, names are lower case.
        inner = node.child(segment)
        return segment if inner and inner.single else segment.lower()
    return segment.lower()


def _decode(text: str, node: Node | None, beyond: bool) -> Any:
    if beyond:
        raise ValueError("has no parts that could be set by themselves")
    if node is None or node.single or (len(node.sections) > 1 and text in node.kinds):  # `p2c` for `{kind: p2c}`
        return text
    what = "list" if node.list_of else "object"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"expected a JSON {what}") from None
    if not isinstance(value, list if node.list_of else dict):
        raise ValueError(f"expected a JSON {what}")
    return value


def _put(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.get(key)
        if not isinstance(inner, dict):
            inner = values[key] = {}
        values = inner
    values[keys[-1]] = value


def _shout(key: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", key.upper())

"""Reads a YAML file into a layer: plain data, with the line and column of each key."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from llmg.boot.settings.layers import Layer, Origin
from llmg.boot.settings.problems import Keys, Problem, SettingsError, dotted

_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str")}


class _Loader(yaml.SafeLoader):
    """The safe loader without dates: `model: 2024-01-01` is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path: Path, name: str) -> Layer:
    """The file's layer. `name` is what problems call the file. Raises SettingsError."""
    return parse(_text(path, name), name)


def quick(path: Path, name: str) -> Layer | None:
    """The layer of a file that is JSON, without the places in it, a hundred times as fast; None: read it otherwise, as
    it is something else, or wrong. Raises SettingsError."""
    text = _text(path, name)
    try:
        values = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return Layer(values, {(): Origin(name)}) if isinstance(values, dict) else None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_number(word: str) -> None:
    raise ValueError(word)


def _text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SettingsError([Problem("", f"can't be read: {error.strerror}", name)]) from None
    except UnicodeDecodeError:
        raise SettingsError([Problem("", "is not UTF-8 text", name)]) from None


def parse(text: str, name: str) -> Layer:
    """The layer of a YAML text; an empty one says nothing. Raises SettingsError."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        reading = _Reading(loader, name)
        values = reading.value(node, ()) if node else {}
    except yaml.MarkedYAMLError as error:
        raise SettingsError([Problem("", _message(error), _place(name, error.problem_mark))]) from None
    except yaml.YAMLError:  # a character that YAML doesn't allow
        raise SettingsError([Problem("", "is not YAML: it holds a control character", name)]) from None
    except RecursionError:
        raise SettingsError([Problem("", "is nested too deeply", name)]) from None
    if not isinstance(values, dict | None):
        reading.problems.append(Problem("", "expected a mapping, such as `http: {...}`", name))
    if reading.problems:
        raise SettingsError(reading.problems)
    return Layer(values or {}, reading.origins)


class _Reading:
    """One pass over the nodes of a file."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self._loader = loader
        self._name = name
        self._flat: set[yaml.Node] = set()
        self.origins: dict[Keys, Origin] = {(): Origin(name)}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, at: Keys) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*at, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, at)

    def _mapping(self, node: yaml.MappingNode, at: Keys) -> dict[str, Any]:
        if node not in self._flat:  # an alias brings the same node again
            self._flat.add(node)
            self._refuse_duplicates(node, at)
            self._loader.flatten_mapping(node)  # `<<: *other`
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, at)
            if key is not None:
                self.origins[(*at, key)] = Origin(_place(self._name, key_node.start_mark))
                found[key] = self.value(value_node, (*at, key))
        return found

    def _item(self, node: yaml.Node, at: Keys) -> Any:
        self.origins[at] = Origin(_place(self._name, node.start_mark))
        return self.value(node, at)

    def _key(self, node: yaml.Node, at: Keys) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            return str(node.value)
        self._problem(node, at, "a key is not text", "put it in quotes")
        return None

    def _scalar(self, node: yaml.Node, at: Keys) -> Any:
        if node.tag not in _SCALARS:
            self._problem(node, at, "YAML tags (`!...`) are not understood", "put the value in quotes")
            return None
        try:
            return self._loader.construct_object(node)
        except (ValueError, KeyError):  # `!!int text`, `!!bool text`
            self._problem(node, at, "the value is not what its tag says", "")
            return None

    def _refuse_duplicates(self, node: yaml.MappingNode, at: Keys) -> None:
        first: dict[str, yaml.Node] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in first:
                line = first[key_node.value].start_mark.line + 1
                self._problem(key_node, (*at, key_node.value), f"the key stands twice (first in line {line})", "")
            first.setdefault(key_node.value, key_node)

    def _problem(self, node: yaml.Node, at: Keys, message: str, hint: str) -> None:
        self.problems.append(Problem(dotted(at), message, _place(self._name, node.start_mark), hint))


def _place(name: str, mark: yaml.Mark | None) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name


def _message(error: yaml.MarkedYAMLError) -> str:
    # PyYAML quotes names of tags and anchors, which may be the beginning of an unquoted password.
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return "is not YAML: " + re.sub(r"'([^']*)'", _redacted, said)


def _redacted(quoted: re.Match[str]) -> str:
    return quoted[0] if len(quoted[1]) < 2 or quoted[1].startswith("<") else "'...'"

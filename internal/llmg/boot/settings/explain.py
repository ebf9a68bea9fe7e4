"""Turns pydantic's errors into problems: the full path, what was expected, the nearest right key or value."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from llmg.boot.settings import environment
from llmg.boot.settings.annotations import KIND, Node, locate
from llmg.boot.settings.groups import Mistake
from llmg.boot.settings.layers import Layer, Origin
from llmg.boot.settings.problems import Expected, Keys, Problem, dotted, nearest, suggestion

_QUOTES = "put it in quotes"
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%\Z")
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "path_type": "a path",
    "too_short": "{min_length} or more entries",
    "string_too_short": "text that isn't empty",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:g} or less",
}
_SHOWN = {
    "int_parsing",
    "int_from_float",
    "float_parsing",
    "bool_parsing",
    "greater_than",
    "greater_than_equal",
    "less_than_equal",
}
"""Errors of numbers and booleans: what was written instead may be shown."""


@dataclass(frozen=True, slots=True)
class Explainer:
    """Explains errors in the values of a layer; `filled` are the places where a `${VARIABLE}` stood."""

    layer: Layer
    filled: Collection[Keys]

    def problem(self, error: ErrorDetails) -> Problem:
        """What one of pydantic's errors means."""
        place, around = locate(error["loc"])
        kind = error["type"]
        if kind == "extra_forbidden":
            return self.unknown_key(place, around)
        if kind == "missing":
            return self._problem(place, "is required, but missing")
        if kind == "union_tag_not_found":
            return self._problem(
                (*place, KIND), "is required, but missing", f"known: {', '.join(_kinds(place, around))}"
            )
        if kind == "union_tag_invalid":
            return self.unknown_choice((*place, KIND), error["ctx"]["tag"], _kinds(place, around))
        if kind == "literal_error":
            return self.unknown_choice(place, error["input"], _words(error["ctx"]["expected"]))
        if isinstance(cause := error.get("ctx", {}).get("error"), Expected):
            return self._unexpected(place, error["input"], cause)
        return self._wrong(place, around, error)

    def unknown_key(self, place: Keys, around: Node) -> Problem:
        """A key that the shape doesn't have there."""
        key, origin = str(place[-1]), self._origin(place)
        name, colon, _ = key.partition(":")
        if colon and name in around.keys and not origin.variable:
            path, hint = dotted((*place[:-1], name)), f"write `{name}: ...`"
            return Problem(path, "there is no space after its colon", origin.text, hint)
        message = "unknown environment variable" if origin.variable else "unknown key"
        if variable := _variable(origin, place, around):
            return self._problem(place, message, f"did you mean `{variable}`?")
        return self._problem(place, message, suggestion(key, around.keys))

    def unknown_choice(self, place: Keys, value: Any, choices: Iterable[str]) -> Problem:
        """A value that isn't one of those that are possible."""
        known = list(choices)
        message = f"expected {'one of ' if len(known) > 1 else ''}{', '.join(known)}"
        near = nearest(value, known) if isinstance(value, str) else None
        return self._problem(place, message + self._got(place, value), _perhaps(near))

    def unknown_name(self, place: Keys, what: str, value: str, names: Iterable[str]) -> Problem:
        """A name that should be declared elsewhere, and isn't."""
        return self._problem(place, f"expected {what}{self._got(place, value)}", suggestion(value, names))

    def mistake(self, mistake: Mistake) -> Problem:
        """What is wrong although each section is right by itself."""
        return self._unexpected(mistake.keys, mistake.value, mistake.cause)

    def _unexpected(self, place: Keys, value: Any, cause: Expected) -> Problem:
        got = self._got(place, value) if cause.show else ""
        hint = "" if place in self.filled else cause.hint
        if cause.choices and isinstance(value, str):
            told = set(cause.choices) <= set(re.findall(r"[\w-]+", cause.what))
            hint = _perhaps(nearest(value, cause.choices)) if told else suggestion(value, cause.choices)
        return self._problem(place, str(cause) + got, hint)

    def _wrong(self, place: Keys, around: Node, error: ErrorDetails) -> Problem:
        what = _EXPECTED.get(error["type"])
        if what is None:
            return self._problem(place, error["msg"])
        got = self._got(place, error["input"]) if error["type"] in _SHOWN else ""
        message = f"expected {what.format(**error.get('ctx', {}))}{got}"
        return self._problem(place, message, self._remedy(place, around, error))

    def _remedy(self, place: Keys, around: Node, error: ErrorDetails) -> str:
        value = error["input"]
        if error["type"] == "string_type" and isinstance(value, int | float):
            return _QUOTES
        if error["type"] == "tuple_type" and isinstance(value, str):
            return "put it in brackets"
        if _EXPECTED[error["type"]] == "a mapping":
            return _inside(around.child(place[-1]))
        percent = _PERCENT.match(value) if isinstance(value, str) and place not in self.filled else None
        return f"write {float(percent[1]) / 100:g}" if percent and error["type"] == "float_parsing" else ""

    def _got(self, place: Keys, value: Any) -> str:
        if place in self.filled or not isinstance(value, str | int | float):
            return ""
        return f", got {str(value).lower() if isinstance(value, bool) else repr(value)}"

    def _problem(self, place: Keys, message: str, hint: str = "") -> Problem:
        return Problem(dotted(place), message, self._origin(place).text, hint)

    def _origin(self, place: Keys) -> Origin:
        return self.layer.origin(place)


def _perhaps(near: str | None) -> str:
    return f"did you mean `{near}`?" if near else ""


def _inside(mapping: Node | None) -> str:
    """What stands in it."""
    if mapping is not None and len(mapping.sections) > 1 and mapping.kinds:
        return f"with its `{KIND}`: {', '.join(mapping.kinds)}"
    if mapping is None or mapping.keys:
        return suggestion("", mapping.keys) if mapping else ""
    return "each entry with a name before it: `name: ...`"


def _variable(origin: Origin, place: Keys, around: Node) -> str | None:
    """The variable that was meant, if the wrong key is part of a variable's name: each key the nearest one."""
    if origin.variable is None:
        return None
    segments = origin.variable.removeprefix(environment.PREFIX).split(environment.BETWEEN)
    node: Node | None = around
    for index in range(len(place) - 1, len(segments)):
        if node and node.keys and (near := nearest(segments[index], node.keys)):
            segments[index] = near.upper()
        node = node.child(segments[index].lower()) if node else None
    right = environment.PREFIX + environment.BETWEEN.join(segments)
    return right if right != origin.variable else None


def _kinds(place: Keys, around: Node) -> tuple[str, ...]:
    node = around.child(place[-1])
    return node.kinds if node else ()


def _words(listed: str) -> list[str]:
    """The choices in pydantic's "'a', 'b' or 'c'"."""
    return listed.replace("'", "").replace(" or ", ", ").split(", ")

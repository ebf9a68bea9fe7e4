"""Reads a YAML file into a layer: plain data, with the line and column of each key.

It is read from its events, as libyaml gives them where PyYAML has it: an order of magnitude faster than by PyYAML's own
nodes and constructors, and a text that is nested a hundred thousand times ends no process.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)
from yaml.reader import Reader

from llmg.boot.settings.layers import Layer, Origin
from llmg.boot.settings.problems import Keys, Problem, SettingsError, dotted

_DEEPEST: Final = 100
_PLACES: Final = 1_000_000  # that are told exactly: aliases of aliases may stand for any number of them
_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = f"{_TAG}str"
_SCALARS: Final = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str")}
_COLLECTIONS: Final = {None, "!", f"{_TAG}map", f"{_TAG}seq"}
_MERGE: Final = f"{_TAG}merge"
_Events: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN: Final = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""What plain text may mean, by how it begins: as the safe loader has it, but that `model: 2024-01-01` is text."""
_Mark = Any
"""PyYAML's, or libyaml's: `line` and `column`, counted from 0."""


def read(path: Path, name: str, *, places: bool = True) -> Layer:
    """The file's layer. `name` is what problems call the file. Without `places`, problems in it are told without line
    and column, and it is read faster; JSON, which is YAML, too, by far. Raises SettingsError."""
    text = _text(path, name)
    if not places and (values := _json(text)) is not None:
        return Layer(values, {(): Origin(name)})
    return parse(text, name, places=places)


def _json(text: str) -> dict[str, Any] | None:
    """The values of a text that is JSON; None: it is something else, or wrong."""
    try:
        values = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


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


def parse(text: str, name: str, *, places: bool = True) -> Layer:
    """The layer of a YAML text; an empty one says nothing. `places`: see `read`. Raises SettingsError."""
    reading = _Reading(name)
    try:
        values = reading.read(yaml.parse(text, _Events))
    except _Unreadable as error:
        raise SettingsError([Problem("", str(error), _place(name, error.mark))]) from None
    except yaml.MarkedYAMLError as error:
        raise SettingsError([_broken(error, text, name)]) from None
    except yaml.YAMLError:
        raise SettingsError([_unprintable(text, name)]) from None
    if not isinstance(values, dict | None):
        reading.problems.append(Problem("", "expected a mapping, such as `http: {...}`", name))
    if reading.problems:
        raise SettingsError(reading.problems)
    return Layer(values or {}, reading.origins() if places else {(): Origin(name)})


class _Unreadable(Exception):
    """After this the rest means nothing."""

    def __init__(self, words: str, mark: _Mark) -> None:
        super().__init__(words)
        self.mark = mark


class _Open:
    """A mapping or list that has not ended yet."""

    def __init__(self, event: CollectionStartEvent) -> None:
        self.anchor = event.anchor
        self.mark: _Mark = event.start_mark
        self.value: Any = [] if isinstance(event, SequenceStartEvent) else {}
        self.marks: dict[str | int, _Mark] = {}  # where its keys or items stand
        self.merged: list[_Whole] = []
        self.merge: _Mark | None = None  # where its `<<` stands
        self.waits = False  # was a key read, whose value is next?
        self.key: str | None = None  # None then: it is `<<`, or can't be used
        self.merging = False  # is it `<<`?

    @property
    def wants_key(self) -> bool:
        """Is a key next?"""
        return isinstance(self.value, dict) and not self.waits

    @property
    def place(self) -> str | int | None:
        """The key or index that is being read."""
        return len(self.value) if isinstance(self.value, list) else self.key

    def whole(self) -> "_Whole":
        """Now that it has ended. What stands in it wins over what was merged into it."""
        if not self.merged:
            return self.value, self.marks
        values: dict[str, Any] = {}
        marks: dict[str | int, _Mark] = {}
        for more, places in (*reversed(self.merged), (self.value, self.marks)):
            values |= more
            marks |= places
        return values, marks


_Whole = tuple[Any, dict[str | int, _Mark]]
"""A mapping or list, and where its keys or items stand."""


class _Reading:
    """One pass over the events of a file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loader = yaml.SafeLoader("")
        self._open: list[_Open] = []
        self._anchors: dict[str, Any] = {}
        self._marks: dict[int, dict[str | int, _Mark]] = {}  # by the identity of mappings and lists
        self._root: Any = None
        self.problems: list[Problem] = []

    def read(self, events: Iterable[Event]) -> Any:
        """The value of them all. Raises _Unreadable; other problems are collected."""
        documents = 0
        for event in events:
            if isinstance(event, NodeEvent):
                self._node(event)
            elif isinstance(event, CollectionEndEvent):
                self._end()
            elif isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _Unreadable("is not YAML: a second document begins", event.start_mark)
        return self._root

    def origins(self) -> dict[Keys, Origin]:
        """Where each key and item stands."""
        found: dict[Keys, Origin] = {(): Origin(self._name)}
        self._add_origins(self._root, (), found)
        return found

    def _add_origins(self, value: Any, at: Keys, found: dict[Keys, Origin]) -> None:
        if isinstance(value, dict | list) and len(found) < _PLACES:
            marks = self._marks[id(value)]
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                place = (*at, key)
                found[place] = Origin(_place(self._name, marks[key]))
                self._add_origins(inner, place, found)

    def _node(self, event: Any) -> None:
        if isinstance(event, AliasEvent):
            self._take(self._meant(event), event.start_mark)
        elif isinstance(event, ScalarEvent):
            self._scalar(event)
        else:
            self._begin(event)

    def _meant(self, event: AliasEvent) -> Any:
        if any(each.anchor == event.anchor for each in self._open):
            raise _Unreadable("is nested too deeply: an alias stands within what it stands for", event.start_mark)
        if event.anchor not in self._anchors:
            raise _Unreadable("is not YAML: found undefined alias", event.start_mark)
        return self._anchors[event.anchor]

    def _begin(self, event: CollectionStartEvent) -> None:
        if event.tag not in _COLLECTIONS:
            self._refuse_tag(event.start_mark)
        if len(self._open) >= _DEEPEST:
            raise _Unreadable("is nested too deeply", event.start_mark)
        self._open.append(_Open(event))

    def _end(self) -> None:
        ended = self._open.pop()
        value, marks = ended.whole()
        self._marks[id(value)] = marks
        if ended.anchor is not None:
            self._anchors[ended.anchor] = value
        self._take(value, ended.mark)

    def _scalar(self, event: ScalarEvent) -> None:
        tag = event.tag if event.tag and event.tag != "!" else _resolved(event)
        if tag == _MERGE and self._open and self._open[-1].wants_key:
            self._begin_merge(event.start_mark)
            return
        value = event.value if tag in (_TEXT, _MERGE) else self._value(tag, event)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        self._take(value, event.start_mark)

    def _value(self, tag: str, event: ScalarEvent) -> Any:
        if tag not in _SCALARS:
            self._refuse_tag(event.start_mark)
            return None
        try:
            return self._loader.yaml_constructors[tag](self._loader, yaml.ScalarNode(tag, event.value))
        except (ValueError, KeyError):  # `!!int text`, `!!bool text`
            self._problem(event.start_mark, "the value is not what its tag says")
            return None

    def _take(self, value: Any, mark: _Mark) -> None:
        if not self._open:
            self._root = value
        elif self._open[-1].wants_key:
            self._take_key(value, mark)
        else:
            self._add(value, mark)

    def _take_key(self, key: Any, mark: _Mark) -> None:
        last = self._open[-1]
        last.waits = True
        if not isinstance(key, str):
            self._problem(mark, "a key is not text", "put it in quotes")
            return
        last.key = key
        if first := last.marks.get(key):
            self._stands_twice(mark, first)
        else:
            last.marks[key] = mark

    def _begin_merge(self, mark: _Mark) -> None:
        last = self._open[-1]
        last.waits = last.merging = True
        if last.merge is not None:
            self._stands_twice(mark, last.merge)
        last.merge = mark

    def _stands_twice(self, mark: _Mark, first: _Mark) -> None:
        self._problem(mark, f"the key stands twice (first in line {first.line + 1})")

    def _add(self, value: Any, mark: _Mark) -> None:
        last = self._open[-1]
        if isinstance(last.value, list):
            last.marks[len(last.value)] = mark
            last.value.append(value)
            return
        if last.key is not None:
            last.value[last.key] = value
        elif last.merging:
            self._merge(last, value, mark)
        last.waits, last.merging, last.key = False, False, None

    def _merge(self, into: _Open, value: Any, mark: _Mark) -> None:
        values = value if isinstance(value, list) else [value]
        if all(isinstance(each, dict) for each in values):
            into.merged += [(each, self._marks[id(each)]) for each in values]
        else:
            self._problem(mark, "expected a mapping to merge, or a list of them")

    def _refuse_tag(self, mark: _Mark) -> None:
        self._problem(mark, "YAML tags (`!...`) are not understood", "put the value in quotes")

    def _problem(self, mark: _Mark, message: str, hint: str = "") -> None:
        places = [each.place for each in self._open]
        path = dotted(tuple(place for place in places if place is not None))
        self.problems.append(Problem(path, message, _place(self._name, mark), hint))


def _resolved(event: ScalarEvent) -> str:
    """The tag of what has none."""
    if event.implicit[0]:  # not in quotes
        for tag, pattern in _PLAIN.get(event.value[:1], ()):
            if pattern.match(event.value):
                return str(tag)
    return _TEXT


def _place(name: str, mark: _Mark | None) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name


def _broken(error: yaml.MarkedYAMLError, text: str, name: str) -> Problem:
    # PyYAML quotes names of tags and anchors, which may be the beginning of an unquoted password.
    problem, context, mark, begin = error.problem or "", error.context or "", error.problem_mark, error.context_mark
    if begin is not None and any(part in problem for part in _LATE):
        mark = begin
    elif begin is not None and mark is not None and begin.line < mark.line:
        context += f" that begins in line {begin.line + 1}"
    said = ", ".join(part for part in (context, problem) if part)
    message = "is not YAML: " + re.sub(r"'([^']*)'", _redacted, said)
    tabbed = mark is not None and re.match(r" *\t", _line(text, mark.line))
    hint = "indent by spaces, not by tabs" if tabbed else next((_HINTS[part] for part in _HINTS if part in problem), "")
    return Problem("", message, _place(name, mark), hint)


_LATE: Final = ("could not find expected ':'", "found unexpected end of stream")
"""What is noticed late: what is wrong is where the thing begins."""
_HINTS: Final = {
    "mapping values are not allowed": "is it indented as it should be? A text with `: ` in it needs quotes",
    "did not find expected key": "indent it as the keys beside it",
    "cannot start any token": "put the text in quotes",
    "could not find expected ':'": "write `key: value`",
    "found unexpected end of stream": "close the quotes",
}
"""By a part of what PyYAML says."""


def _redacted(quoted: re.Match[str]) -> str:
    return quoted[0] if len(quoted[1]) < 2 or quoted[1].startswith("<") else "'...'"


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number] if number < len(lines) else ""


def _unprintable(text: str, name: str) -> Problem:
    found = Reader.NON_PRINTABLE.search(text)
    before = text[: found.start()] if found else ""
    place = f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}" if found else name
    return Problem("", "is not YAML: it holds a control character", place)

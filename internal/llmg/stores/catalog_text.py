"""A catalog as text: YAML or JSON, with `tenants` at its top.

YAML is read from its events, as libyaml gives them: at a tenth of the time that nodes and constructors take, and a
text that is nested a hundred thousand times ends no process. There are no tags, no dates and no merge keys (`<<`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
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
from yaml.nodes import ScalarNode

_HEAD: Final = "# Written by llmg. Comments are lost when the admin API changes something.\n"
_DEEPEST: Final = 100
_COPIES: Final = (
    1_000_000  # values that aliases may stand for: a few lines of them can stand for more than memory holds
)
_TAG: Final = "tag:yaml.org,2002:"
_VALUES: Final = frozenset(f"{_TAG}{name}" for name in ("null", "bool", "int", "float"))
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumping: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Dumping):  # type: ignore[misc, valid-type]  # whichever of the two there is
    """The safe dumper, without anchors."""

    def ignore_aliases(self, data: object) -> bool:
        """See yaml.SafeDumper."""
        return True


class _Bad(ValueError):
    """What is wrong, and where."""

    def __init__(self, words: str, mark: Any) -> None:
        super().__init__(f"{words} (line {mark.line + 1}, column {mark.column + 1})" if mark else words)


class _Open:
    """A mapping or sequence that has not ended yet."""

    def __init__(self, event: CollectionStartEvent, before: int) -> None:
        """`before`: how many values there were before it."""
        self.anchor = event.anchor
        self.before = before
        self.value: Any = [] if isinstance(event, SequenceStartEvent) else {}
        self._key: str | None = None

    def add(self, value: Any, event: Event) -> None:
        if isinstance(self.value, list):
            self.value.append(value)
        elif self._key is not None:
            self.value[self._key] = value
            self._key = None
        elif not isinstance(value, str):
            raise _Bad("a key is not text: put it in quotes", event.start_mark)
        elif value in self.value:
            raise _Bad("a key stands twice", event.start_mark)
        else:
            self._key = value


class _Values:
    """One pass over the events of a text."""

    def __init__(self) -> None:
        self._scalars = yaml.SafeLoader("")
        self._anchors: dict[str, tuple[Any, int]] = {}  # with how many values there are in it
        self._open: list[_Open] = []
        self._root: Any = None
        self._documents = 0
        self._count = 0  # of values, those that aliases stand for among them
        self._copies = 0

    def read(self, events: Iterable[Event]) -> Any:
        """The value of them all."""
        for event in events:
            if isinstance(event, NodeEvent):
                self._node(event)
            elif isinstance(event, CollectionEndEvent):
                ended = self._open.pop()
                self._take(ended.value, ended.anchor, event, self._count - ended.before)
            elif isinstance(event, DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise _Bad("a second document begins", event.start_mark)
        return self._root

    def _node(self, event: Any) -> None:
        self._count += 1
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise _Bad("an alias without its anchor", event.start_mark)
            value, size = self._anchors[event.anchor]
            self._count += size
            self._copies += size
            if self._copies > _COPIES:
                raise _Bad("its aliases stand for too much", event.start_mark)
            self._take(value, None, event)
        elif event.tag is not None:
            raise _Bad("tags (`!...`) are not understood", event.start_mark)
        elif isinstance(event, ScalarEvent):
            self._take(self._scalar(event), event.anchor, event)
        else:
            self._open.append(_Open(event, self._count))
            if len(self._open) > _DEEPEST:
                raise _Bad("it is nested too deeply", event.start_mark)

    def _scalar(self, event: ScalarEvent) -> Any:
        if not event.implicit[0]:  # in quotes
            return event.value
        tag = self._scalars.resolve(ScalarNode, event.value, (True, False))  # type: ignore[no-untyped-call]
        if tag not in _VALUES:
            return event.value
        return self._scalars.construct_object(ScalarNode(tag, event.value))

    def _take(self, value: Any, anchor: str | None, event: Event, size: int = 1) -> None:
        if anchor is not None:
            self._anchors[anchor] = value, size
        if self._open:
            self._open[-1].add(value, event)
        else:
            self._root = value


def read_text(data: bytes) -> Any:
    """The value of YAML, or of JSON. Raises ValueError with what is wrong and where, without quoting the text."""
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("{"):  # JSON, most likely: that is fifty times as fast
            try:
                return msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError):
                pass  # YAML may begin so, too, and says where it is wrong
        return _Values().read(yaml.parse(text, _Loader))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        raise _Bad("it is neither YAML nor JSON", error.problem_mark) from None
    except yaml.YAMLError:
        raise ValueError("it holds a control character") from None


def parse(data: bytes) -> dict[str, Any]:
    """The tenants of a catalog. Raises ValueError with what is wrong."""
    if not data.strip():
        raise ValueError("it is empty; without tenants it would say `tenants: {}`")
    value = read_text(data)
    if not isinstance(value, dict) or set(value) != {"tenants"}:
        raise ValueError("expected `tenants` at its top, and nothing else there")
    tenants = value["tenants"]
    if not isinstance(tenants, dict | None):
        raise ValueError("expected a mapping below `tenants`")
    return tenants or {}


def serialize(tenants: dict[str, Any], *, as_yaml: bool) -> bytes:
    """The text of a catalog with these."""
    value = {"tenants": tenants}
    if not as_yaml:
        return msgspec.json.format(msgspec.json.encode(value)) + b"\n"
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return (_HEAD + text).encode()

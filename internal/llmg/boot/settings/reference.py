"""docs/configuration.md: every setting with its type, default and meaning, read from the shape itself."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from llmg.boot.settings import units
from llmg.boot.settings.annotations import KIND
from llmg.boot.settings.models import Entry, FlatModel, Model
from llmg.boot.settings.shape import Settings
from llmg.boot.settings.types import Bytes, Seconds, Section, Words

_HEAD = """\
# Configuration

Every setting, in the order of the [schema](../config/config.schema.json) that editors understand. An
[example](../config/config.example.yaml) has them all with their defaults. `llmg config check` says what is wrong with a
file, and where, and starts nothing. (This page is made by `python -m llmg.boot.settings --markdown`.)

- **Files** are YAML or JSON: `config/config.yaml`, over which `config/config.local.yaml` is laid; or, instead of both,
  the one that `-c FILE` or `LLMG_CONFIG` names. Mappings merge key by key; anything else replaces what was below.
  `null` takes back what a lower file said.
- **Environment variables** win over files: `LLMG_HTTP__SERVER_ADDR` is `http.server_addr`, with `__` between keys.
  Lists and mappings are JSON.
- **`${NAME}`** is filled in from the environment, and must be set there; `${NAME:-default}` has a default. For a plain
  `${` write `$${`.
- **Durations**: `500ms`, `2s`, `1m30s`, `1h`, or a number of seconds. **Sizes**: `64KiB`, `50MiB` (by 1024), `64KB`,
  `50MB` (by 1000), or a number of bytes. What can only have been meant in another unit is refused.
- **Changes**: `keys`, `labels`, `limits`, `admin`, `tenants`, `providers`, `models` and `models_dir` are taken over
  while it runs; the rest needs a restart.
"""
_NAMES = {
    "tenants": "TENANT",
    "teams": "TEAM",
    "groups": "GROUP",
    "endpoints": "ENDPOINT",
    "providers": "PROVIDER",
    "models": "MODEL",
    "upstreams": "PROVIDER",
}
"""What the keys of a mapping are called."""


def reference_text() -> str:
    """The page."""
    return "\n".join([_HEAD, *_Reference().lines()])


class _Reference:
    """Each section has its table where it is at the shortest path, and is linked to from elsewhere."""

    def __init__(self) -> None:
        self._headings = _headings()
        self._bases: dict[type[BaseModel], str] = {}  # what several have in common, by where it was said
        self._met: list[tuple[str, type[BaseModel]]] = []  # whose tables are next
        self._shown: set[type[BaseModel]] = set()

    def lines(self) -> Iterator[str]:
        """All of them, but the head."""
        for name, field in Settings.model_fields.items():
            yield f"## {name}\n"
            sections = _sections(field.annotation)
            if len(sections) == 1 and _many(field.annotation) is None:
                yield from self._tables(name, sections[0])
            else:
                yield f"{field.description} Type: {self._type(name, name, field)}.{_by_default(field)}\n"
                yield from self._children()

    def _children(self) -> Iterator[str]:
        met, self._met = self._met, []
        for path, section in met:
            yield f"### {self._headings[section]}\n"
            yield from self._tables(path, section)

    def _tables(self, path: str, section: type[BaseModel]) -> Iterator[str]:
        yield f"{' '.join((section.__doc__ or '').split())}\n"
        fields = dict(section.model_fields)
        (base,) = section.__bases__
        if base in self._bases:
            fields = {name: field for name, field in fields.items() if name not in base.model_fields}
            shared = ", ".join(f"`{name}`" for name in base.model_fields)
            yield f"As {_link(self._bases[base], self._bases[base])} {shared}, and:\n"
        elif issubclass(base, Section) and base is not Section:
            self._bases[base] = self._headings[section]
        yield "| name | type | default | meaning |"
        yield "|---|---|---|---|"
        for name, field in fields.items():
            cells = (f"`{name}`", self._type(f"{path}.{name}", name, field), _default(field), field.description or "")
            yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
        yield ""
        yield from self._children()

    def _type(self, path: str, name: str, field: FieldInfo) -> str:
        sections = _sections(field.annotation)
        if not sections:
            return _words(field.annotation, field.metadata)
        links = []
        for inside, section in _inside(path, name, field):
            heading = self._headings[section]
            if section not in self._shown and heading == inside + _which(section, sections):
                self._shown.add(section)
                self._met.append((inside, section))
            links.append(_link(heading, (_which(section, sections) or heading).lstrip(", ")))
        return _MANY[_many(field.annotation)] + ", or ".join([*_said(field.annotation, field.metadata), *links])


def _headings() -> dict[type[BaseModel], str]:
    """Of all sections, by the shortest path to each."""
    found: dict[type[BaseModel], str] = {}
    waiting: deque[tuple[str, type[BaseModel]]] = deque([("", Settings)])
    while waiting:
        at, parent = waiting.popleft()
        for name, field in parent.model_fields.items():
            for inside, section in _inside(f"{at}.{name}".lstrip("."), name, field):
                if section not in found:
                    found[section] = inside + _which(section, _sections(field.annotation))
                    waiting.append((inside, section))
    return found


def _inside(path: str, name: str, field: FieldInfo) -> list[tuple[str, type[BaseModel]]]:
    """The sections that may stand in a field, and at which path."""
    many = _many(field.annotation)
    inside = {None: path, dict: f"{path}.{_NAMES.get(name, 'NAME')}", tuple: f"{path}[]"}[many]
    return [(inside, section) for section in _sections(field.annotation)]


_MANY = {None: "", dict: "by name: ", tuple: "list of: "}


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Those that may stand there, whether by themselves, by name or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [Model if annotation is FlatModel else annotation]  # which is what is made of it
    inner = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return list(dict.fromkeys(section for argument in inner for section in _sections(argument)))


def _many(annotation: Any) -> Any:
    """dict or tuple, where there are several."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType):
        return next((found for found in map(_many, arguments) if found), None) if arguments else None
    return origin if origin in (dict, tuple) else None


def _which(section: type[BaseModel], among: list[type[BaseModel]]) -> str:
    """What tells it from the others."""
    if len(among) == 1:
        return ""
    if KIND in section.model_fields:
        return f", kind {', '.join(get_args(section.model_fields[KIND].annotation))}"
    return f", with {next(name for name, field in section.model_fields.items() if field.is_required())}"


def _link(heading: str, text: str) -> str:
    """As GitHub names headings."""
    return f"[{text}](#{re.sub(r'[^a-z0-9 _-]', '', heading.lower()).replace(' ', '-')})"


def _said(annotation: Any, metadata: Iterable[Any] = ()) -> list[str]:
    """What else may stand in the place of a section."""
    if annotation is FlatModel:
        return _said(Entry)
    if isinstance(annotation, type):
        return []
    arguments = get_args(annotation)
    found = [each.text for each in (*metadata, *arguments) if isinstance(each, Words)]
    held = arguments[1:] if get_origin(annotation) is dict else arguments[:1]
    return found or [text for each in held for text in _said(each)]


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value may be."""
    metadata = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata = [*more, *metadata]
    for each in metadata:
        if isinstance(each, Words):
            return each.text
        if isinstance(each, Seconds | Bytes):
            return f"{'duration' if isinstance(each, Seconds) else 'size'}, {each.range}"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return ", or ".join(filter(None, (_words(each, metadata) for each in arguments if each is not NoneType)))
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"list of: {_words(arguments[0])}"
    if origin is dict:
        return f"by name: {_words(arguments[1])}"
    return _PLAIN.get(annotation, "") + _bounds(metadata)


_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", SecretStr: "text", Path: "path"}


def _bounds(metadata: list[Any]) -> str:
    found = [inner for each in metadata for inner in (each.metadata if isinstance(each, FieldInfo) else [each])]
    words = [f"{each.ge} or more" for each in found if isinstance(each, Ge)]
    words += [f"more than {each.gt}" for each in found if isinstance(each, Gt)]
    words += [f"up to {each.le}" for each in found if isinstance(each, Le)]
    return "".join(f", {each}" for each in words)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    text = _value(field.default, field.metadata)
    return f"`{text}`" if text else ""


def _by_default(field: FieldInfo) -> str:
    text = _default(field)
    return f" Default: {text}." if text else ""


def _value(value: Any, metadata: Iterable[Any] = ()) -> str:
    if value is None or (isinstance(value, BaseModel) and KIND not in type(value).model_fields):
        return ""
    if isinstance(value, BaseModel):
        return str(getattr(value, KIND))
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if any(isinstance(each, Seconds) for each in metadata):
        return units.spoken_duration(value) if value else "0"
    if any(isinstance(each, Bytes) for each in metadata):
        return units.spoken_size(value)
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)

"""JSON to typed values, keeping what is unknown and naming the field that is wrong.

msgspec drops unknown fields or refuses them. So a body is decoded by structs that refuse them, and when they do,
once more as plain dicts, which `split` parts into what we know and what we keep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, inspect

from llmg.core.errors import Failure, Kind, invalid

T = TypeVar("T")
S = TypeVar("S", bound=Struct)

_PATH = re.compile(r" - at `(?:\$|key in \$)\.?([^`]*)`$")
_NAMED = {  # what is wrong with the field that is named last
    "it is required": re.compile(r"^Object missing required field `([^`]+)`"),
    "there is no such field": re.compile(r"^Object contains unknown field `([^`]+)`"),
}
_NO_CHOICE = re.compile(r"^Invalid (?:enum )?value ")
_STEP = re.compile(r"\w+|\[[^\]]*\]")

# What a field of type Raw has when it is absent (msgspec takes `Raw | None` for None alone).
NULL: Final = msgspec.Raw(b"null")

DEEPEST: Final = 256  # levels of a request's JSON: no schema comes near, and what is deeper costs recursion
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: a level down, a level up

_fields: Callable[[bytes], dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def split(given: dict[str, Any], struct: type[Struct]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the fields that the struct has, the others)."""
    names = struct.__struct_encode_fields__
    extra = {name: value for name, value in given.items() if name not in names}
    return ({name: value for name, value in given.items() if name in names}, extra) if extra else (given, extra)


def graft(known: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """What `split` parted, put together again; an object that stands in both gets the fields of both."""
    both = {name: {**known[name], **value} for name, value in extra.items() if _objects(known.get(name), value)}
    return {**known, **extra, **both}


def _objects(first: Any, second: Any) -> bool:
    return isinstance(first, dict) and isinstance(second, dict)


def too_deep(body: bytes, most: int = DEEPEST) -> bool:
    """Is it nested deeper than `most` levels? Costs next to nothing where there are too few brackets for that.

    The interpreter's own limit differs from version to version: some would go on to 10,000 levels.
    """
    if body.count(b"[") + body.count(b"{") <= most:
        return False
    steps = memoryview(_STRING.sub(b"", body).translate(_STEPS, _NO_BRACKETS)).cast("b")
    depth = 0
    for start in range(0, len(steps), 4096):
        depths = list(accumulate(steps[start : start + 4096], initial=depth))
        if max(depths) > most:
            return True
        depth = depths[-1]
    return False


def raw_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """A body's top-level fields, byte for byte. Raises Failure when it is no JSON object in UTF-8."""
    try:
        body.decode()  # Raw takes any bytes
        if too_deep(body):
            raise RecursionError
        return _fields(body)
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not valid UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except msgspec.ValidationError:
        raise invalid("the body must be a JSON object") from None
    except msgspec.DecodeError as error:
        raise invalid(_not_json(error) if body.strip() else "the body is empty") from None


def convert(value: Any, kind: type[T], where: str = "") -> T:
    """A plain value as a typed one. Raises Failure naming the field, `where` in front of its path."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise refused(error, where, kind) from None


def refused(error: msgspec.ValidationError, where: str = "", kind: Any = None) -> Failure:
    """msgspec's word for a value that does not fit that kind, as a Failure that names the field."""
    text = str(error)
    path = ""
    if found := _PATH.search(text):
        path = found[1].removesuffix("[...]")
        text = text[: found.start()]
    for words, pattern in _NAMED.items():
        if named := pattern.match(text):
            path, text = _joined(path, named[1]), words
    if (choice := _NO_CHOICE.match(text)) and (allowed := _allowed(kind, path)):
        text = f"{text[choice.end() :]} is none of {', '.join(allowed)}"
    param = _joined(where, path)
    text = text[:1].lower() + text[1:]
    return Failure(Kind.INVALID_REQUEST, f"invalid '{param}': {text}" if param else text, param=param or None)


def _allowed(kind: Any, path: str) -> list[str]:
    """The words among which a field of a kind, at that path, has its value."""
    types = list(_flat([inspect.type_info(kind)]))
    for step in _STEP.findall(path):
        types = list(_flat(inner for outer in types for inner in _inside(outer, step)))
    words = (str(word) for type in types if isinstance(type, inspect.LiteralType) for word in type.values)
    return [*dict.fromkeys(words)]  # kinds of a union may have the same


def _flat(types: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    for type in types:
        if isinstance(type, inspect.UnionType):
            yield from _flat(type.types)
        else:
            yield type


def _inside(outer: inspect.Type, step: str) -> Iterator[inspect.Type]:
    if isinstance(outer, inspect.ListType) and step.startswith("["):
        yield outer.item_type
    elif isinstance(outer, inspect.StructType):
        if step == outer.tag_field:
            yield inspect.LiteralType((outer.tag,))
        yield from (field.type for field in outer.fields if field.encode_name == step)


def malformed(error: msgspec.DecodeError | RecursionError, kind: Any = None) -> Failure:
    """A body that can't be read as that kind, as a Failure that names the field where there is one."""
    if isinstance(error, msgspec.ValidationError):
        return refused(error, kind=kind)
    return invalid("the body is nested too deeply" if isinstance(error, RecursionError) else _not_json(error))


def _not_json(error: msgspec.DecodeError) -> str:
    return f"the body is not valid JSON: {error}"


def _joined(where: str, path: str) -> str:
    if not where or not path:
        return where or path
    return where + path if path.startswith("[") else f"{where}.{path}"

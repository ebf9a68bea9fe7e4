"""Fields that are no messages: from JSON and to it, as proto3's JSON mapping has it.

A reader takes decoded JSON and gives what a message's constructor takes; what does not fit raises Misfit.
A writer gives what msgspec encodes as the mapping wants it. None stands for the one that changes nothing: text, bytes
(msgspec writes them in base64), booleans and small integers.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from array import array
from collections.abc import Callable, Iterable
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

Read = Callable[[Any], Any]
Write = Callable[[Any], Any]

NULL: Final = "google.protobuf.NullValue"

_F: Final = FieldDescriptor
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LONGEST_NUMBER: Final = 400  # characters
# Single precision: what is rounded to its largest number, which has a short name above itself.
_LARGEST: Final = {_F.CPPTYPE_FLOAT: 3.4028235677973362e38, _F.CPPTYPE_DOUBLE: 1.7976931348623157e308}
_LIMITS: Final = {
    _F.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _F.CPPTYPE_UINT32: (0, 2**32 - 1),
    _F.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _F.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_NO_NUMBERS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_URL_SAFE: Final = str.maketrans("-_", "+/")
_NAMES: Final = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "an array",
    dict: "an object",
}
_SHOWN: Final = 20  # of an enum's names


class Misfit(Exception):
    """A value that does not fit. `words` say what was expected; `path` is the way to it, from the inside out."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words
        self.path: list[str | int] = []

    @property
    def pointer(self) -> str:
        """Where it is in the JSON (RFC 6901)."""
        return pointer(reversed(self.path))


def pointer(path: Iterable[str | int]) -> str:
    """A JSON pointer (RFC 6901) of names and indexes."""
    return "".join([f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path])


def expected(what: str, value: Any) -> Misfit:
    """A value of a wrong type."""
    return Misfit(f"expected {what}, got {_NAMES.get(type(value), 'null')}")


# --- in --------------------------------------------------------------------------------------------------------------


def reader(field: FieldDescriptor) -> Read:
    """Of one value of a field, which may be repeated or a map's."""
    if field.enum_type is not None:
        return _null if field.enum_type.full_name == NULL else _enum(field.enum_type)
    if field.type == _F.TYPE_BYTES:
        return _bytes
    return _READERS[field.cpp_type]


def key_reader(field: FieldDescriptor) -> Read:
    """Of a map's keys, which JSON has as strings."""
    return _bool_key if field.cpp_type == _F.CPPTYPE_BOOL else reader(field)


def _integer(least: int, most: int) -> Read:
    what = f"an integer from {least} to {most}"

    def read(value: Any) -> int:
        number = _number(value) if type(value) is str else value
        if type(number) is float and number.is_integer():
            number = int(number)
        if type(number) is int and least <= number <= most:
            return number
        raise Misfit(f"expected {what}") if type(value) in (str, int, float) else expected(what, value)

    return read


def _number(text: str) -> int | float | None:
    """What JSON would have without quotes; None when that is no number."""
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


def _float(largest: float) -> Read:
    def read(value: Any) -> float:
        if type(value) is str:
            if value in _NO_NUMBERS:
                return _NO_NUMBERS[value]
            number = _number(value)
            if number is None:
                raise Misfit(f"expected a number, or one of {', '.join(_NO_NUMBERS)}")
        elif type(value) is float or type(value) is int:
            number = value
        else:
            raise expected("a number", value)
        if not -largest <= number <= largest:
            raise Misfit(f"expected a number from {-largest:g} to {largest:g}")
        return float(number)

    return read


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise expected("true or false", value)
    return value


def _bool_key(value: str) -> bool:
    if value not in ("true", "false"):
        raise Misfit("expected 'true' or 'false'")
    return value == "true"


def _str(value: Any) -> str:
    if type(value) is not str:
        raise expected("a string", value)
    return value


def _bytes(value: Any) -> bytes:
    """Of both alphabets, with its padding or without."""
    if type(value) is not str:
        raise expected("a string in base64", value)
    text = value.translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Misfit("expected a string in base64") from None


def _enum(descriptor: EnumDescriptor) -> Read:
    numbers = {name: value.number for name, value in descriptor.values_by_name.items()}
    known = frozenset(numbers.values()) if descriptor.is_closed else None
    wrong = f"expected one of {', '.join([*numbers][:_SHOWN])}{' ...' if len(numbers) > _SHOWN else ''}"
    integer = _integer(*_LIMITS[_F.CPPTYPE_INT32])

    def read(value: Any) -> int:
        if type(value) is str and value in numbers:
            return numbers[value]
        try:
            number: int = integer(value)
        except Misfit:
            raise Misfit(wrong) from None
        if known is not None and number not in known:
            raise Misfit(wrong)
        return number

    return read


def _null(value: Any) -> int:
    if value is not None and (value != "NULL_VALUE" and (value != 0 or type(value) is bool)):
        raise Misfit("expected null")
    return 0


_READERS: Final[dict[int, Read]] = {
    **{kind: _integer(*limits) for kind, limits in _LIMITS.items()},
    **{kind: _float(largest) for kind, largest in _LARGEST.items()},
    _F.CPPTYPE_BOOL: _bool,
    _F.CPPTYPE_STRING: _str,
}


# --- out -------------------------------------------------------------------------------------------------------------


def writer(field: FieldDescriptor) -> Write | None:
    """Of one value of a field, which may be a map's."""
    if field.enum_type is not None:
        return _null_out if field.enum_type.full_name == NULL else _enum_out(field.enum_type)
    return _WRITERS.get(field.cpp_type)


def list_writer(field: FieldDescriptor) -> Write:
    """Of a repeated field's values."""
    if field.cpp_type == _F.CPPTYPE_FLOAT:
        return _floats_out
    one = writer(field)
    return list if one is None else lambda values: [one(value) for value in values]


def key_writer(field: FieldDescriptor) -> Write:
    """Of a map's keys, which JSON has as strings."""
    return _bool_key_out if field.cpp_type == _F.CPPTYPE_BOOL else str


def double_out(value: float) -> float | str:
    """A double; JSON has no NaN and no infinities."""
    if value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _float_out(value: float) -> float | str:
    return _floats_out((value,))[0]


def _floats_out(values: Iterable[float]) -> list[float | str]:
    """Each with as few digits as name the same single-precision number: 0.1, not 0.10000000149011612.

    7 digits are enough for all that have a short name, 9 always are.
    """
    given = list(values)
    short = [float(f"{value:.7g}") for value in given]
    out: list[float | str] = [*short]
    for place, stored in enumerate(array("f", short)):
        if stored != given[place] or stored - stored != 0:
            out[place] = _longer(given[place])
    return out


def _longer(value: float) -> float | str:
    if value - value != 0:
        return double_out(value)
    candidate = float(f"{value:.8g}")
    return candidate if array("f", (candidate,))[0] == value else float(f"{value:.9g}")


def _enum_out(descriptor: EnumDescriptor) -> Write:
    names = {number: value.name for number, value in descriptor.values_by_number.items()}
    return lambda number: names.get(number, number)


def _null_out(_: int) -> None:
    return None


def _bool_key_out(value: bool) -> str:
    return "true" if value else "false"


_WRITERS: Final[dict[int, Write]] = {
    _F.CPPTYPE_INT64: str,
    _F.CPPTYPE_UINT64: str,
    _F.CPPTYPE_DOUBLE: double_out,
    _F.CPPTYPE_FLOAT: _float_out,
}

"""The types of google.protobuf whose JSON is not that of their fields; but for Any, which needs all the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from llmg.wire.transcoding import scalars
from llmg.wire.transcoding.scalars import Misfit, Read, Write, double_out, expected

_P: Final = "google.protobuf."
_EXACT: Final = 2**53  # the largest whole number below which a double has all of them
VALUE: Final = _P + "Value"
STRUCT: Final = _P + "Struct"
LIST: Final = _P + "ListValue"
ANY: Final = _P + "Any"
# What they are in a string.
TEXTUAL: Final = {
    _P + "Timestamp": "a time like 2006-01-02T15:04:05Z (RFC 3339)",
    _P + "Duration": "seconds like 1.5s",
    _P + "FieldMask": "names of fields with commas between them",
}
WRAPPERS: Final = frozenset(
    _P + kind + "Value" for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
# What can be given as plain text: in a path, or in a query.
TEXT_LIKE: Final = frozenset({*TEXTUAL, *WRAPPERS})
TYPES: Final = frozenset({VALUE, STRUCT, LIST, ANY, *TEXTUAL, *WRAPPERS})


def reader(descriptor: Descriptor) -> Read | None:
    """From JSON to a message, or to what stands for one in a constructor; None: it is no such type."""
    make = _READERS.get(descriptor.full_name)
    return None if make is None else make(descriptor)


def writer(descriptor: Descriptor) -> Write | None:
    """From a message to JSON; None: it is no such type."""
    make = _WRITERS.get(descriptor.full_name)
    return None if make is None else make(descriptor)


def _read_text(descriptor: Descriptor) -> Read:
    make: Any = GetMessageClass(descriptor)
    what = TEXTUAL[descriptor.full_name]

    def read(value: Any) -> Any:
        if type(value) is not str:
            raise expected(what, value)
        message = make()
        try:
            message.FromJsonString(value)
        except (ValueError, OverflowError):
            raise Misfit(f"expected {what}") from None
        return message

    return read


def _read_wrapper(descriptor: Descriptor) -> Read:
    inner = scalars.reader(descriptor.fields_by_name["value"])
    return lambda value: {"value": inner(value)}


def _read_struct(descriptor: Descriptor) -> Read:
    make: Any = GetMessageClass(descriptor)

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise expected("an object", value)
        message = make()
        try:
            message.update(value)
        except OverflowError:
            raise _too_large() from None
        return message

    return read


def _read_list(descriptor: Descriptor) -> Read:
    make: Any = GetMessageClass(descriptor)

    def read(value: Any) -> Any:
        if type(value) is not list:
            raise expected("an array", value)
        message = make()
        try:
            message.extend(value)
        except OverflowError:
            raise _too_large() from None
        return message

    return read


def _read_value(descriptor: Descriptor) -> Read:
    make: Any = GetMessageClass(descriptor)
    struct, values = _read_struct(_inner(descriptor, "struct_value")), _read_list(_inner(descriptor, "list_value"))
    kinds: dict[type, Callable[[Any], dict[str, Any]]] = {
        type(None): lambda _: {"null_value": 0},
        bool: lambda value: {"bool_value": value},
        str: lambda value: {"string_value": value},
        float: lambda value: {"number_value": value},
        int: lambda value: {"number_value": value},
        dict: lambda value: {"struct_value": struct(value)},
        list: lambda value: {"list_value": values(value)},
    }

    def read(value: Any) -> Any:
        try:
            return make(**kinds[type(value)](value))
        except OverflowError:
            raise _too_large() from None

    return read


def _inner(descriptor: Descriptor, name: str) -> Descriptor:
    message = descriptor.fields_by_name[name].message_type
    assert message is not None
    return message


def _too_large() -> Misfit:
    return Misfit("expected numbers of a magnitude below 1.8e308")


def _write_text(_: Descriptor) -> Write:
    return lambda message: message.ToJsonString()


def _write_wrapper(descriptor: Descriptor) -> Write:
    inner = scalars.writer(descriptor.fields_by_name["value"])
    return (lambda message: message.value) if inner is None else lambda message: inner(message.value)


def _struct(message: Any) -> dict[str, Any]:
    return {name: _value(value) for name, value in message.fields.items()}


def _list(message: Any) -> list[Any]:
    return [_value(value) for value in message.values]


def _value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "struct_value":
        return _struct(message.struct_value)
    if kind == "list_value":
        return _list(message.list_value)
    if kind == "number_value":
        number = message.number_value
        whole = abs(number) <= _EXACT and number.is_integer() and (number or math.copysign(1.0, number) > 0)
        return int(number) if whole else double_out(number)
    return None if kind is None or kind == "null_value" else getattr(message, kind)


_READERS: Final[dict[str, Callable[[Descriptor], Read]]] = {
    **dict.fromkeys(TEXTUAL, _read_text),
    **dict.fromkeys(WRAPPERS, _read_wrapper),
    STRUCT: _read_struct,
    LIST: _read_list,
    VALUE: _read_value,
}
_WRITERS: Final[dict[str, Callable[[Descriptor], Write]]] = {
    **dict.fromkeys(TEXTUAL, _write_text),
    **dict.fromkeys(WRAPPERS, _write_wrapper),
    STRUCT: lambda _: _struct,
    LIST: lambda _: _list,
    VALUE: lambda _: _value,
}

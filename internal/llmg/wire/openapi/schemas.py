"""JSON Schema (2020-12) of protobuf messages, as the JSON mapping of protobuf writes and reads them.

protobuf.dev/programming-guides/json: names in lowerCamelCase, 64-bit integers as strings (read as numbers too), enums
by name, bytes in base64, and the well-known types in forms of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldOptions

from llmg.wire.openapi.comments import Comments

Schema = dict[str, Any]
WHOLE: Final[frozenset[str]] = frozenset()


def _integer(bits: int, *, signed: bool) -> Schema:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    schema = {"type": "integer", "format": f"{'int' if signed else 'uint'}{bits}", "minimum": low, "maximum": high}
    if bits == 64:
        digits = {"pattern": r"^-?[0-9]{1,19}$" if signed else r"^[0-9]{1,20}$"}
        schema |= {"type": ["integer", "string"], **digits}
    return schema


def _real(name: str) -> Schema:
    return {"type": ["number", "string"], "format": name, "pattern": "^(NaN|-?Infinity)$"}


_STRING: Final[Schema] = {"type": "string"}
_BOOLEAN: Final[Schema] = {"type": "boolean"}
_BYTES: Final[Schema] = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^([A-Za-z0-9+/_-]{4})*([A-Za-z0-9+/_-]{2}(==)?|[A-Za-z0-9+/_-]{3}=?)?$",
}
_SCALARS: Final[Mapping[int, Schema]] = {
    FieldDescriptor.TYPE_STRING: _STRING,
    FieldDescriptor.TYPE_BOOL: _BOOLEAN,
    FieldDescriptor.TYPE_BYTES: _BYTES,
    FieldDescriptor.TYPE_DOUBLE: _real("double"),
    FieldDescriptor.TYPE_FLOAT: _real("float"),
    FieldDescriptor.TYPE_INT32: _integer(32, signed=True),
    FieldDescriptor.TYPE_SINT32: _integer(32, signed=True),
    FieldDescriptor.TYPE_SFIXED32: _integer(32, signed=True),
    FieldDescriptor.TYPE_UINT32: _integer(32, signed=False),
    FieldDescriptor.TYPE_FIXED32: _integer(32, signed=False),
    FieldDescriptor.TYPE_INT64: _integer(64, signed=True),
    FieldDescriptor.TYPE_SINT64: _integer(64, signed=True),
    FieldDescriptor.TYPE_SFIXED64: _integer(64, signed=True),
    FieldDescriptor.TYPE_UINT64: _integer(64, signed=False),
    FieldDescriptor.TYPE_FIXED64: _integer(64, signed=False),
}
# What is required, and can't be told from what is not there when it is empty, must not be empty.
_FILLED: Final = {"string": "minLength", "array": "minItems", "object": "minProperties"}
# A map's keys are names in JSON, whatever they are in the message.
_KEYS: Final[Mapping[int, str]] = {
    FieldDescriptor.CPPTYPE_BOOL: "^(true|false)$",
    FieldDescriptor.CPPTYPE_INT32: "^-?[0-9]+$",
    FieldDescriptor.CPPTYPE_INT64: "^-?[0-9]+$",
    FieldDescriptor.CPPTYPE_UINT32: "^[0-9]+$",
    FieldDescriptor.CPPTYPE_UINT64: "^[0-9]+$",
}
# What JSON has as one string, though it is a message: fit for a query parameter.
_TEXTS: Final[Mapping[str, Schema]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string", "description": "Names of fields, with commas between."},
}
_WRAPPED: Final[Mapping[str, Schema]] = {
    f"google.protobuf.{name}Value": _SCALARS[kind]
    for name, kind in {
        "Bool": FieldDescriptor.TYPE_BOOL,
        "Bytes": FieldDescriptor.TYPE_BYTES,
        "Double": FieldDescriptor.TYPE_DOUBLE,
        "Float": FieldDescriptor.TYPE_FLOAT,
        "Int32": FieldDescriptor.TYPE_INT32,
        "Int64": FieldDescriptor.TYPE_INT64,
        "String": FieldDescriptor.TYPE_STRING,
        "UInt32": FieldDescriptor.TYPE_UINT32,
        "UInt64": FieldDescriptor.TYPE_UINT64,
    }.items()
}
SIMPLE: Final[Mapping[str, Schema]] = {**_TEXTS, **_WRAPPED}
_WELL_KNOWN: Final[Mapping[str, Schema]] = {
    **SIMPLE,
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string", "description": "The URL of the message's type."}},
    },
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Value": {},
    "google.protobuf.NullValue": {"type": "null"},
}


class Schemas:
    """Schemas of messages; what they refer to gathers in `components`."""

    def __init__(self, comments: Comments, open_ended: frozenset[str] = frozenset()) -> None:
        """`open_ended`: full names of messages that may get more fields later, so that clients must bear them."""
        self.components: dict[str, Schema] = {}
        self._comments = comments
        self._open = open_ended
        self._names: dict[str, str] = {}

    def reference(self, kind: Descriptor | EnumDescriptor) -> Schema:
        """What stands for a message or an enum where it is used."""
        if kind.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[kind.full_name])
        name = self._names.get(kind.full_name)
        if name is None:
            name = self._names[kind.full_name] = self._free_name(kind)
            self.components[name] = {}  # before it is looked into: it may refer to itself
            self.components[name] = self._enum(kind) if isinstance(kind, EnumDescriptor) else self.message(kind)
        return {"$ref": f"#/components/schemas/{name}"}

    def message(self, message: Descriptor, without: frozenset[str] = WHOLE) -> Schema:
        """A message, but for the fields at these paths (`shelf.name`)."""
        left = [field for field in message.fields if field.name not in without]
        schema: Schema = {
            "type": "object",
            "properties": {field.json_name: self._part(field, without) for field in left},
        }
        required = [field.json_name for field in left if is_required(field)]
        if required:
            schema["required"] = required
        if message.full_name not in self._open:
            schema["additionalProperties"] = False
        return _described(self._choices(message, left) | schema, self._text(message))

    def field(self, field: FieldDescriptor) -> Schema:
        """A field, with what is said about it."""
        schema = self._value(field)
        if is_required(field) and not field.has_presence and schema.get("type") in _FILLED:
            schema[_FILLED[schema["type"]]] = 1
        return _described(schema | _marks(field), self._comments.get(field.full_name, ""))

    def _part(self, field: FieldDescriptor, without: frozenset[str]) -> Schema:
        inner = frozenset(path.partition(".")[2] for path in without if path.startswith(f"{field.name}."))
        return self.message(made_of(field), inner) if inner else self.field(field)

    def _value(self, field: FieldDescriptor) -> Schema:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            key, value = message.fields_by_name["key"], message.fields_by_name["value"]
            names = {"propertyNames": {"pattern": _KEYS[key.cpp_type]}} if key.cpp_type in _KEYS else {}
            return {"type": "object", "additionalProperties": self._one(value), **names}
        return {"type": "array", "items": self._one(field)} if field.is_repeated else self._one(field)

    def _one(self, field: FieldDescriptor) -> Schema:
        kind = field.message_type or field.enum_type
        return dict(_SCALARS[field.type]) if kind is None else self.reference(kind)

    def _enum(self, enum: EnumDescriptor) -> Schema:
        # The zero that stands for nothing goes last: tools take the first for an example.
        values = sorted(enum.values, key=lambda value: value.number == 0 and value.name.endswith("UNSPECIFIED"))
        names = [value.name for value in values]
        said = [(name, self._comments.get(f"{enum.full_name}.{name}", "")) for name in names]
        listed = "\n".join(f"- `{name}`: {text}" for name, text in said if text)
        text = "\n\n".join(filter(None, (self._comments.get(enum.full_name, ""), listed)))
        return _described({"type": "string", "enum": names}, text)

    def _choices(self, message: Descriptor, left: list[FieldDescriptor]) -> Schema:
        """Of a oneof's fields one at most. (What `optional` makes is a oneof of one field: nothing to say.)"""
        oneofs = [names for oneof in message.oneofs if len(names := _names(oneof.fields, left)) > 1]
        if oneofs and len(oneofs[0]) == len(left):
            return {"maxProperties": 1}
        both = [{"required": list(pair)} for names in oneofs for pair in combinations(names, 2)]
        return {"not": {"anyOf": both}} if both else {}

    def _text(self, message: Descriptor) -> str:
        choices = [
            f"At most one of {', '.join(f'`{field.json_name}`' for field in oneof.fields)}. "
            + self._comments.get(oneof.full_name, "")
            for oneof in message.oneofs
            if len(oneof.fields) > 1
        ]
        return "\n\n".join(part.strip() for part in (self._comments.get(message.full_name, ""), *choices) if part)

    def _free_name(self, kind: Descriptor | EnumDescriptor) -> str:
        """Short, where it is the first of that name."""
        short = kind.full_name.removeprefix(f"{kind.file.package}.")
        return kind.full_name if short in self.components else short


def is_required(field: FieldDescriptor) -> bool:
    """Must a request have it?"""
    return field.is_required or field_behavior_pb2.REQUIRED in _behavior(field)


def made_of(field: FieldDescriptor) -> Descriptor:
    """The message that a field holds, which must be one."""
    assert field.message_type is not None, field.full_name
    return field.message_type


def reachable(messages: Iterable[Descriptor]) -> frozenset[str]:
    """The full names of these messages, and of all that they are made of."""
    found: set[str] = set()
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in found:
            found.add(message.full_name)
            waiting += [field.message_type for field in message.fields if field.message_type is not None]
    return frozenset(found)


def _behavior(field: FieldDescriptor) -> list[int]:
    # The options of a pool that is not the default one don't know the extension: they are read once more.
    options = FieldOptions.FromString(field.GetOptions().SerializeToString())
    return list(options.Extensions[field_behavior_pb2.field_behavior])


def _marks(field: FieldDescriptor) -> Schema:
    behavior = _behavior(field)
    marks = {
        "readOnly": field_behavior_pb2.OUTPUT_ONLY in behavior,
        "writeOnly": field_behavior_pb2.INPUT_ONLY in behavior,
        "deprecated": field.GetOptions().deprecated,
    }
    return {mark: True for mark, on in marks.items() if on}


def _names(fields: Iterable[FieldDescriptor], among: list[FieldDescriptor]) -> list[str]:
    return [field.json_name for field in fields if field in among]


def _described(schema: Schema, text: str) -> Schema:
    return {"description": text, **schema} if text else schema

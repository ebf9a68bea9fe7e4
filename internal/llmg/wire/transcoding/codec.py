"""JSON to protobuf messages and back: proto3's JSON mapping, compiled from the descriptors, each message once.

In: names in camel case and as in the proto, 64-bit integers as strings or numbers, enums by name or number, bytes in
either alphabet of base64, null for what is absent. What does not fit raises Misfit, with the way to it.
Out: camel case, 64-bit integers as strings, enums by name; what is not set is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from llmg.wire.transcoding import scalars, wellknown
from llmg.wire.transcoding.scalars import NULL, Misfit, Read, Write, expected

_TYPE: Final = "@type"


class Field(NamedTuple):
    """A message's field as JSON has it. `rivals` are the others of its oneof; `nullable`: null is a value of it."""

    name: str
    read: Read
    rivals: tuple[str, ...]
    nullable: bool


class Codec:
    """All that is compiled for the messages of one pool."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool
        self._readers: dict[str, Read] = {}
        self._writers: dict[str, Write] = {}

    # --- in ----------------------------------------------------------------------------------------------------------

    def reader(self, descriptor: Descriptor) -> Read:
        """From decoded JSON to what stands for the message in a constructor: its keyword arguments, or itself."""
        known = self._readers.get(descriptor.full_name)
        if known is not None:
            return known
        own = self._read_any(descriptor) if descriptor.full_name == wellknown.ANY else wellknown.reader(descriptor)
        if own is None:
            fields: dict[str, Field] = {}
            own = _read_object(fields)
            self._readers[descriptor.full_name] = own  # before its fields, which may hold the message itself
            fields.update(self._fields(descriptor))
        self._readers[descriptor.full_name] = own
        return own

    def _fields(self, descriptor: Descriptor) -> dict[str, Field]:
        fields = [(field, self._field(field)) for field in descriptor.fields]
        return {field.name: made for field, made in fields} | {field.json_name: made for field, made in fields}

    def _field(self, field: FieldDescriptor) -> Field:
        oneof = field.containing_oneof
        rivals = () if oneof is None else tuple(other.name for other in oneof.fields if other.name != field.name)
        return Field(field.name, self.field_reader(field), rivals, takes_null(field))

    def field_reader(self, field: FieldDescriptor) -> Read:
        """From decoded JSON to what the field is set to in a constructor."""
        entry = map_entry(field)
        if entry is not None:
            return _read_map(scalars.key_reader(entry[0]), self.value_reader(entry[1]))
        one = self.value_reader(field)
        return _read_list(one) if field.is_repeated else one

    def value_reader(self, field: FieldDescriptor) -> Read:
        """The same for one value of it, if it is repeated."""
        return scalars.reader(field) if field.message_type is None else self.reader(field.message_type)

    def _read_any(self, descriptor: Descriptor) -> Read:
        make: Any = GetMessageClass(descriptor)

        def read(value: Any) -> Any:
            if type(value) is not dict:
                raise expected("an object", value)
            return make(**self._packed(value)) if value else make()

        return read

    def _packed(self, value: dict[str, Any]) -> dict[str, Any]:
        url = value.get(_TYPE)
        inner = self._type(url)
        if inner is None:
            misfit = Misfit("expected the URL of a known message type")
            misfit.path.append(_TYPE)
            raise misfit
        if inner.full_name in wellknown.TYPES:
            try:
                made = self.reader(inner)(value.get("value"))
            except Misfit as misfit:
                misfit.path.append("value")
                raise
        else:
            made = self.reader(inner)({name: item for name, item in value.items() if name != _TYPE})
        return {"type_url": url, "value": build(inner, made).SerializeToString()}

    def _type(self, url: object) -> Descriptor | None:
        if not isinstance(url, str) or "/" not in url:
            return None
        try:
            found: Descriptor = self._pool.FindMessageTypeByName(url.rpartition("/")[2])
        except KeyError:
            return None
        return found

    # --- out ---------------------------------------------------------------------------------------------------------

    def writer(self, descriptor: Descriptor) -> Write:
        """From a message to what msgspec encodes."""
        known = self._writers.get(descriptor.full_name)
        if known is not None:
            return known
        own = self._write_any if descriptor.full_name == wellknown.ANY else wellknown.writer(descriptor)
        if own is None:
            fields: dict[int, tuple[str, Write | None]] = {}
            own = _write_object(fields)
            self._writers[descriptor.full_name] = own
            fields.update({field.number: (field.json_name, self.field_writer(field)) for field in descriptor.fields})
        self._writers[descriptor.full_name] = own
        return own

    def field_writer(self, field: FieldDescriptor) -> Write | None:
        """From a field's value to what msgspec encodes; None: it is that already."""
        entry = map_entry(field)
        if entry is not None:
            return _write_map(scalars.key_writer(entry[0]), self.field_writer(entry[1]))
        if field.message_type is None:
            return scalars.list_writer(field) if field.is_repeated else scalars.writer(field)
        one = self.writer(field.message_type)
        return (lambda values: [one(value) for value in values]) if field.is_repeated else one

    def _write_any(self, message: Any) -> Any:
        """What is of an unknown type, or can't be read, stays as it is: in base64."""
        if not message.type_url:
            return {}
        inner = self._type(message.type_url)
        if inner is None:
            return {_TYPE: message.type_url, "value": message.value}
        try:
            held = GetMessageClass(inner).FromString(message.value)
        except DecodeError:
            return {_TYPE: message.type_url, "value": message.value}
        written = self.writer(inner)(held)
        return {_TYPE: message.type_url, **({"value": written} if inner.full_name in wellknown.TYPES else written)}


def build(descriptor: Descriptor, read: Any) -> Message:
    """A message of what its reader gave."""
    return read if isinstance(read, Message) else GetMessageClass(descriptor)(**read)


def map_entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor] | None:
    """A map's keys and values; None: it is no map."""
    message = field.message_type
    if message is None or not message.GetOptions().map_entry:
        return None
    return message.fields_by_name["key"], message.fields_by_name["value"]


def takes_null(field: FieldDescriptor) -> bool:
    """Is null a value of it, and not the lack of one?"""
    if field.is_repeated:
        return False
    if field.message_type is not None:
        return field.message_type.full_name == wellknown.VALUE
    return field.enum_type is not None and field.enum_type.full_name == NULL


def _read_object(fields: Mapping[str, Field]) -> Read:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise expected("an object", value)
        out: dict[str, Any] = {}
        name = ""
        try:
            for name, item in value.items():
                field = fields.get(name)
                if field is None:
                    raise _unknown(name, fields)
                own, convert, rivals, nullable = field
                if item is None and not nullable:
                    continue
                if own in out:
                    raise Misfit(f"the field {own!r} is there twice, by two names")
                for rival in rivals:
                    if rival in out:
                        raise Misfit(f"only one of {rival!r} and {own!r} may be set")
                out[own] = convert(item)
        except Misfit as misfit:
            misfit.path.append(name)
            raise
        return out

    return read


def _unknown(name: str, fields: Mapping[str, Field]) -> Misfit:
    near = get_close_matches(name[:100], fields, n=1)
    return Misfit("there is no such field" + (f"; did you mean {near[0]!r}?" if near else ""))


def _read_list(one: Read) -> Read:
    def read(value: Any) -> list[Any]:
        if type(value) is not list:
            raise expected("an array", value)
        out: list[Any] = []
        try:
            for item in value:
                out.append(one(item))  # noqa: PERF401 - where it stops is where the misfit is
        except Misfit as misfit:
            misfit.path.append(len(out))
            raise
        return out

    return read


def _read_map(key: Read, one: Read) -> Read:
    def read(value: Any) -> dict[Any, Any]:
        if type(value) is not dict:
            raise expected("an object", value)
        out: dict[Any, Any] = {}
        name = ""
        try:
            for name, item in value.items():
                out[key(name)] = one(item)
        except Misfit as misfit:
            misfit.path.append(name)
            raise
        return out

    return read


def _write_object(fields: Mapping[int, tuple[str, Write | None]]) -> Write:
    def write(message: Any) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for field, value in message.ListFields():
            known = fields.get(field.number)
            if known is not None:  # an extension is not
                name, convert = known
                out[name] = value if convert is None else convert(value)
        return out

    return write


def _write_map(key: Write, one: Write | None) -> Write:
    if one is None:
        return lambda values: {key(name): value for name, value in values.items()}
    return lambda values: {key(name): one(value) for name, value in values.items()}

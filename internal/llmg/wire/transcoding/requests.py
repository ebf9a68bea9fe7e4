"""HTTP requests to an RPC's message, and its messages to HTTP bodies, as one binding has it.

What is wrong with a request is refused as invalid_request, with its source: a JSON pointer into the body, or the
parameter of the path or the query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from llmg.core.errors import Failure, Kind
from llmg.wire.jsonapi import Refused, Source, refused
from llmg.wire.openai.fields import too_deep
from llmg.wire.transcoding import scalars, wellknown
from llmg.wire.transcoding.bindings import ANY, Binding, top_level
from llmg.wire.transcoding.codec import Codec, build, map_entry, takes_null
from llmg.wire.transcoding.scalars import Misfit, Read, pointer
from llmg.wire.transcoding.templates import decode

# Levels: messages that are nested deeper are read by no server of gRPC. (A Struct takes several for each of JSON's:
# that is found out when the message is put together.)
_DEEPEST: Final = 100
_TOO_DEEP: Final = "it is nested too deeply"
_STEP: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[^.\[\]]+')  # `models["gpt-4.1"].targets[0]` has four
_decode_json: Final = msgspec.json.Decoder().decode
_encode_json: Final = msgspec.json.Encoder().encode


class Transcoder:
    """One binding, compiled."""

    def __init__(self, binding: Binding, codec: Codec) -> None:
        self._binding = binding
        self._parameters = _Parameters(binding, codec)
        self._body: Read | None = None
        self._null_is_none = False
        if binding.body == ANY:
            self._body = codec.reader(binding.input)
        elif binding.body:
            field = top_level(binding.input, binding.body)
            self._body = codec.field_reader(field)
            self._null_is_none = not takes_null(field)
        self._write = codec.writer(binding.output)
        self._write_field = None
        if binding.response_body:
            self._write_field = codec.field_writer(top_level(binding.output, binding.response_body))

    # --- in ----------------------------------------------------------------------------------------------------------

    def decode(self, body: bytes, segments: list[str], query: bytes) -> Message:
        """The request's message. An empty body is as none. Raises Refused (invalid_request)."""
        given: Any = self._decode_body(body) if body else {}
        if self._binding.template.variables or query:
            self._parameters.put(given, segments, query)
        try:
            return build(self._binding.input, given)
        except DecodeError:
            raise _refused("", _TOO_DEEP) from None

    def _decode_body(self, body: bytes) -> Any:
        read = self._body
        if read is None:
            raise _refused("", "this request takes no body")
        try:
            if too_deep(body, _DEEPEST):
                raise RecursionError
            value = _decode_json(body)
        except RecursionError:
            raise _refused("", _TOO_DEEP) from None
        except UnicodeDecodeError as error:
            raise _refused("", f"it is not valid UTF-8 (byte {error.start})") from None
        except msgspec.DecodeError as error:
            words, _, _ = str(error).partition(" - at `")  # a place in msgspec's words, without the fields' names
            raise _refused("", f"it is not valid JSON: {words}") from None
        if value is None and self._null_is_none:
            return {}
        try:
            made = read(value)
        except Misfit as misfit:
            raise _refused(misfit.pointer, misfit.words) from None
        except DecodeError:
            raise _refused("", _TOO_DEEP) from None
        return made if self._binding.body == ANY else {self._binding.body: made}

    # --- out ---------------------------------------------------------------------------------------------------------

    def encode(self, message: Message) -> bytes:
        """A response's body. Raises Failure (upstream_protocol) when JSON can't have it: a date of the year 10,000."""
        try:
            if not self._binding.response_body:
                return _encode_json(self._write(message))
            value = getattr(message, self._binding.response_body)
            return _encode_json(value if self._write_field is None else self._write_field(value))
        except ValueError as error:
            words = "the server's answer can't be put in JSON"
            raise Failure(Kind.UPSTREAM_PROTOCOL, words, detail=str(error)) from None

    # --- what the server says of a request ----------------------------------------------------------------------------

    def source(self, field: str) -> Source:
        """Where in the HTTP request a field of the message is: `chat.messages[0].role`, as servers name them."""
        steps = [_unquoted(step) for step in _STEP.findall(field)]
        body = self._binding.body
        for variable in self._binding.template.variables:
            if list(variable.path) == steps:
                return Source(parameter=variable.name)
        named = list(_json_names(self._binding.input, steps))
        if body == ANY:
            return Source(pointer=pointer(named))
        if body and steps[:1] == [body]:
            return Source(pointer=pointer(named[1:]))
        return Source(parameter=".".join(step for step in named if not step.isdigit()))


def _refused(where: str, words: str) -> Refused:
    detail = f"invalid '{where}': {words}" if where else f"invalid body: {words}"
    return refused(Kind.INVALID_REQUEST, detail, Source(pointer=where))


def _unquoted(step: str) -> str:
    """A key of a map that is no plain word stands in quotes, as in JSON."""
    if not step.startswith('"'):
        return step
    try:
        return str(_decode_json(step))
    except msgspec.DecodeError:  # whatever the server means by it
        return step


def _json_names(message: Descriptor | None, steps: list[str]) -> Iterator[str]:
    """The steps with the names that JSON has for them, as far as the descriptors know them."""
    key = False
    for step in steps:
        if key or step.isdigit():
            key = False
            yield step
            continue
        field = None if message is None else message.fields_by_name.get(step)
        if field is None:
            message = None
            yield step
            continue
        yield field.json_name
        entry = map_entry(field)
        key = entry is not None
        message = field.message_type if entry is None else entry[1].message_type


# --- the path and the query ------------------------------------------------------------------------------------------


class _Parameters:
    """Fields that are given as text."""

    def __init__(self, binding: Binding, codec: Codec) -> None:
        self._binding = binding
        self._codec = codec
        self._names: dict[str, dict[str, FieldDescriptor]] = {}
        self._variables = [(v, self._resolve(v.path)) for v in binding.template.variables]

    def put(self, given: dict[str, Any], segments: list[str], query: bytes) -> None:
        """Adds them to a message's keyword arguments. The path's go over the body's. Raises Refused."""
        for variable, fields in self._variables:
            try:
                text = variable.value(segments)
                _drop(given, fields)
                self._put(given, fields, text)
            except Misfit as misfit:
                raise _unfit(variable.name, misfit.words) from None
            except ValueError as error:
                raise _unfit(variable.name, str(error)) from None
        for name, text in _pairs(query):
            try:
                self._put(given, self._asked(name), text)
            except Misfit as misfit:
                raise _unfit(name, misfit.words) from None

    def _asked(self, name: str) -> list[FieldDescriptor]:
        if self._binding.body == ANY:
            raise Misfit("there are no parameters here, all is in the body")
        fields = self._resolve(tuple(name.split(".")))
        if fields[0].name == self._binding.body:
            raise Misfit("this field is the body")
        if any(fields == taken for _, taken in self._variables):
            raise Misfit("this field is in the path")
        return fields

    def _resolve(self, path: tuple[str, ...]) -> list[FieldDescriptor]:
        message: Descriptor | None = self._binding.input
        fields: list[FieldDescriptor] = []
        if len(path) > _DEEPEST:
            raise Misfit("it is nested too deeply")
        for name in path:
            if message is None or message.full_name in wellknown.TYPES or (fields and fields[-1].is_repeated):
                raise Misfit(f"there is no field {name[:100]!r} in {fields[-1].name!r}")
            field = self._fields(message).get(name)
            if field is None:
                raise Misfit("there is no such field")
            fields.append(field)
            message = field.message_type
        return fields

    def _fields(self, message: Descriptor) -> dict[str, FieldDescriptor]:
        known = self._names.get(message.full_name)
        if known is None:
            known = {field.name: field for field in message.fields} | {f.json_name: f for f in message.fields}
            self._names[message.full_name] = known
        return known

    def _put(self, given: dict[str, Any], fields: list[FieldDescriptor], text: str) -> None:
        value = self._reader(fields[-1])(text)
        for field in fields[:-1]:
            _check_rivals(given, field)
            given = given.setdefault(field.name, {})
        last = fields[-1]
        _check_rivals(given, last)
        if last.is_repeated:
            given.setdefault(last.name, []).append(value)
        elif last.name in given:
            raise Misfit("it is there twice")
        else:
            given[last.name] = value

    def _reader(self, field: FieldDescriptor) -> Read:
        message = field.message_type
        if message is None:
            return scalars.key_reader(field)  # as JSON has them in a string
        if message.full_name in wellknown.TEXTUAL:
            return self._codec.reader(message)
        if message.full_name in wellknown.WRAPPERS:
            inner = scalars.key_reader(message.fields_by_name["value"])
            return lambda text: {"value": inner(text)}
        raise Misfit("this field can't be a parameter: it is no text, number or the like")


def _check_rivals(given: dict[str, Any], field: FieldDescriptor) -> None:
    oneof = field.containing_oneof
    for other in oneof.fields if oneof is not None else ():
        if other.name != field.name and other.name in given:
            raise Misfit(f"only one of {other.name!r} and {field.name!r} may be set")


def _drop(given: dict[str, Any], fields: list[FieldDescriptor]) -> None:
    """Without what the body says of a field, and of its rivals, on the way to it."""
    for field in fields:
        oneof = field.containing_oneof
        for other in oneof.fields if oneof is not None else ():
            if other.name != field.name:
                given.pop(other.name, None)
        if field is fields[-1]:
            given.pop(field.name, None)
        given = given.get(field.name, {})


def _pairs(query: bytes) -> Iterator[tuple[str, str]]:
    for piece in query.split(b"&"):
        if piece:
            name, _, value = piece.replace(b"+", b" ").partition(b"=")
            try:
                yield decode(name.decode()), decode(value.decode())
            except ValueError as error:
                raise _unfit(unquote_to_bytes(name).decode(errors="replace")[:200], str(error)) from None


def _unfit(name: str, words: str) -> Refused:
    return refused(Kind.INVALID_REQUEST, f"invalid parameter '{name[:200]}': {words}", Source(parameter=name[:200]))

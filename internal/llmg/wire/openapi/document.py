"""An OpenAPI 3.1 document of RPCs that can be called by HTTP, from the same table that routes them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPMethod
from typing import Any, Final
from urllib.parse import quote

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from msgspec import Struct
from msgspec.structs import replace

from llmg.jsonapi.v1 import errors_pb2
from llmg.wire.openapi.comments import NONE, Comments
from llmg.wire.openapi.comments import comments as documented
from llmg.wire.openapi.schemas import SIMPLE, Schema, Schemas, is_required, made_of, reachable
from llmg.wire.transcoding.bindings import ANY, Binding, top_level
from llmg.wire.transcoding.templates import ONE, REST, Template, Variable

JSON: Final = "application/json"
JSON_API: Final = "application/vnd.api+json"
SSE: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"

_ERROR: Final = errors_pb2.DESCRIPTOR.message_types_by_name["Error"]
_ERRORS: Final = errors_pb2.DESCRIPTOR.message_types_by_name["ErrorsResponse"]
_STREAMED: Final = (
    "As many of these as there are, as they come: a line each, or the data of a server-sent event each. What fails "
    "meanwhile ends the stream: as the `error` of a line, or as an event `error` with the document of a refusal."
)
_METHODS: Final = frozenset(HTTPMethod) - {HTTPMethod.CONNECT}
_LITERAL: Final = "!$&'()*+,;=:@"  # what a path's segment may hold as it is, beside letters, digits and -._~
_KEYS: Final[Mapping[str, Schema]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def openapi(
    bindings: Iterable[Binding],
    *,
    title: str,
    version: str,
    description: str = "",
    servers: Sequence[str] = (),
    comments: Comments = NONE,
) -> dict[str, Any]:
    """The document, ready for a JSON encoder.

    `servers`: URLs; none: where the document comes from. `comments`: by full name, where they are known. An RPC whose
    request is a stream has no place here. A method that OpenAPI has no word for stands as `x-` and its name.
    """
    table = [binding for binding in bindings if not binding.client_streaming]
    comments = {**comments, **documented("llmg.jsonapi.v1")}
    schemas = Schemas(comments, open_ended=reachable([*(binding.output for binding in table), _ERRORS]))
    ids = _operation_ids(table)
    paths: dict[str, dict[str, Any]] = {}
    shapes: dict[str, list[str]] = {}
    for binding, name in zip(table, ids, strict=True):
        pieces = _alike(list(_pieces(binding.template)), shapes)
        operation = {"operationId": name, **_operation(binding, pieces, schemas, comments)}
        path = "".join(f"{{{piece.name}}}" if piece.name else piece.text for piece in pieces)
        paths.setdefault(path, {})[_key(binding.method)] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, **({"description": description} if description else {})},
        **({"servers": [{"url": url} for url in servers]} if servers else {}),
        "tags": _tags(table, comments),
        "security": [{name: []} for name in _KEYS] + [{}],  # without keys in its configuration, all are let in
        "paths": paths,
        "components": {
            "responses": {"Errors": _response("The request has failed.", {JSON_API: schemas.reference(_ERRORS)})},
            "schemas": dict(sorted(schemas.components.items())),
            "securitySchemes": dict(_KEYS),
        },
    }


def _key(method: str) -> str:
    verb = method.lower()
    return verb if method in _METHODS else f"x-{'any' if method == ANY else verb}"


def _operation_ids(table: Sequence[Binding]) -> list[str]:
    """The RPC's name; with its service's where two have it; numbered where it has several bindings."""
    owners: dict[str, set[str]] = {}
    for binding in table:
        owners.setdefault(binding.rpc.name, set()).add(binding.path)
    seen: Counter[str] = Counter()
    ids = []
    for binding in table:
        rpc = binding.rpc
        name = rpc.name if len(owners[rpc.name]) == 1 else f"{rpc.containing_service.full_name}.{rpc.name}"
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return ids


def _tags(table: Sequence[Binding], comments: Comments) -> list[dict[str, str]]:
    names = dict.fromkeys(binding.rpc.containing_service.full_name for binding in table)
    return [
        {"name": name.rpartition(".")[2], **({"description": comments[name]} if name in comments else {})}
        for name in names
    ]


def _operation(binding: Binding, pieces: Sequence[_Piece], schemas: Schemas, comments: Comments) -> dict[str, Any]:
    in_path = [_path_parameter(binding, piece, schemas) for piece in pieces if piece.name]
    parameters = [*in_path, *_query_parameters(binding, schemas)]
    body = _body(binding, schemas)
    return {
        "tags": [binding.rpc.containing_service.name],
        **_words(binding.rpc, comments),
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": body} if body else {}),
        "responses": {
            "200": _answer(binding, schemas, comments),
            "4XX": {"$ref": "#/components/responses/Errors"},
            "5XX": {"$ref": "#/components/responses/Errors"},
        },
    }


def _words(rpc: MethodDescriptor, comments: Comments) -> dict[str, Any]:
    text = comments.get(rpc.full_name, "")
    summary, *more = re.split(r"[.:;](?:\s|$)", text, maxsplit=1)
    words = {"summary": summary, "description": text if any(more) else ""}
    marks = {"deprecated": True} if rpc.GetOptions().deprecated else {}
    return {name: value for name, value in words.items() if value} | marks


# --- what is asked -------------------------------------------------------------------------------------------------

_Path = tuple[FieldDescriptor, ...]


class _Piece(Struct, frozen=True):
    """Of a path: text as it is; or a wildcard (ONE or REST), with a name, the variable that it belongs to, if any, and
    which of that variable's wildcards it is (0: the only one).
    """

    text: str
    name: str = ""
    variable: Variable | None = None
    number: int = 0


def _pieces(template: Template) -> Iterator[_Piece]:
    """The path's parts. OpenAPI's variables stand for one segment each: a variable's literals go between them, and one
    of several wildcards becomes several.
    """
    for at, segment in enumerate(template.segments):
        yield _Piece("/")
        if segment not in (ONE, REST):
            yield _Piece(quote(segment, safe=_LITERAL))
            continue
        owner = next((v for v in template.variables if v.start <= at and (v.end is None or at < v.end)), None)
        inside = template.segments[owner.start : owner.end] if owner else template.segments
        start = owner.start if owner else 0
        wild = [start + i for i, other in enumerate(inside) if other in (ONE, REST)]
        number = 0 if owner and len(wild) == 1 else wild.index(at) + 1
        name = (owner.name if owner else "segment") + (f".{number}" if number else "")
        yield _Piece(segment, name, owner, number)
    if template.verb:
        yield _Piece(f":{quote(template.verb, safe=_LITERAL)}")


def _alike(pieces: list[_Piece], shapes: dict[str, list[str]]) -> list[_Piece]:
    """The same path must have the same names at each method, so the first one's: not `{name}` and `{book.name}`."""
    shape = "".join("{}" if piece.name else piece.text for piece in pieces)
    names = iter(shapes.setdefault(shape, [piece.name for piece in pieces if piece.name]))
    return [replace(piece, name=next(names)) if piece.name else piece for piece in pieces]


def _path_parameter(binding: Binding, piece: _Piece, schemas: Schemas) -> dict[str, Any]:
    said, schema = ["Any one segment."], {"type": "string"}
    if piece.variable is not None:
        inside = binding.template.segments[piece.variable.start : piece.variable.end]
        field = schemas.field(_field(binding.input, piece.variable.path))
        said = [field.pop("description", "")]
        if len(inside) == 1:
            schema = field
        else:
            which = f"wildcard {piece.number}" if piece.number else "the wildcard"
            said.append(f"Here: what {which} stands for in `{piece.variable.name}`, which is `{'/'.join(inside)}`.")
        if piece.text == REST:
            said.append("It may hold slashes, which are not escaped.")
    text = " ".join(filter(None, said))
    return {"name": piece.name, "in": "path", "required": True, **_parameter({"description": text, **schema})}


def _field(message: Descriptor, path: tuple[str, ...]) -> FieldDescriptor:
    for name in path[:-1]:
        message = made_of(top_level(message, name))
    return top_level(message, path[-1])


def _in_path(binding: Binding) -> frozenset[str]:
    return frozenset(variable.name for variable in binding.template.variables)


def _query_parameters(binding: Binding, schemas: Schemas) -> Iterator[dict[str, Any]]:
    if binding.body == ANY:
        return
    taken = _in_path(binding) | {binding.body}
    for path in _leaves(binding.input, taken):
        name = ".".join(step.json_name for step in path)
        required = {"required": True} if all(map(is_required, path)) else {}
        yield {"name": name, "in": "query", **required, **_parameter(schemas.field(path[-1]))}


def _leaves(message: Descriptor, taken: frozenset[str], outer: _Path = ()) -> Iterator[_Path]:
    """What a query can say: values, and lists of them, however deep they are in messages."""
    above = {message, *(step.containing_type for step in outer)}  # a message within itself has no end
    for field in message.fields:
        path = (*outer, field)
        kind = field.message_type
        if ".".join(step.name for step in path) in taken:
            continue
        if kind is None or kind.full_name in SIMPLE:
            yield path
        elif not field.is_repeated and kind not in above and kind.file.package != "google.protobuf":
            yield from _leaves(kind, taken, path)


def _parameter(schema: Schema) -> dict[str, Any]:
    """With its description where parameters have theirs."""
    text = schema.pop("description", None)
    return {"description": text, "schema": schema} if text else {"schema": schema}


def _body(binding: Binding, schemas: Schemas) -> dict[str, Any] | None:
    if not binding.body:
        return None
    taken = _in_path(binding)
    if binding.body == ANY:
        schema = schemas.message(binding.input, taken) if taken else schemas.reference(binding.input)
        required = any(is_required(field) for field in binding.input.fields if field.name not in taken)
    else:
        field = top_level(binding.input, binding.body)
        inner = frozenset(name.partition(".")[2] for name in taken if name.startswith(f"{field.name}."))
        schema = schemas.message(made_of(field), inner) if inner else schemas.field(field)
        required = is_required(field)
    return {"required": required, "content": {JSON: {"schema": schema}}}


# --- what is answered ----------------------------------------------------------------------------------------------


def _answer(binding: Binding, schemas: Schemas, comments: Comments) -> dict[str, Any]:
    if binding.response_body:
        field = top_level(binding.output, binding.response_body)
        schema, text = schemas.field(field), comments.get(field.full_name, "")
    else:
        schema, text = schemas.reference(binding.output), comments.get(binding.output.full_name, "")
    if not binding.server_streaming:
        return _response(text or "The answer.", {JSON: schema})
    line = {"type": "object", "properties": {"result": schema, "error": schemas.reference(_ERROR)}, "maxProperties": 1}
    return _response(f"{text} {_STREAMED}".strip(), {NDJSON: line, SSE: schema})


def _response(text: str, contents: Mapping[str, Schema]) -> dict[str, Any]:
    return {"description": text, "content": {kind: {"schema": schema} for kind, schema in contents.items()}}

"""The OpenAPI document: of our own services, and of some that only a descriptor set tells about."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from google.protobuf import duration_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from llmg.gatewayapi.v1 import chat_pb2, embeddings_pb2, models_pb2
from llmg.wire.openapi.document import openapi
from llmg.wire.openapi.own import own
from llmg.wire.openapi.schemas import is_required
from llmg.wire.transcoding.bindings import bindings

HERE = Path(__file__).parent / "openapi"
ROOT = Path(__file__).parents[2]
OURS = own()


def library() -> DescriptorPool:
    """library.proto as a server's reflection would give it: in a pool of its own, without comments."""
    google = find_spec("google.api")
    assert google is not None
    assert google.submodule_search_locations is not None
    includes = [HERE, Path(google.submodule_search_locations[0]).parents[1], Path(protoc.__file__).parent / "_proto"]
    flags = ["--include_imports", *(f"-I{path}" for path in includes)]
    with TemporaryDirectory() as temp:
        out = Path(temp, "library.binpb")
        assert protoc.main(["protoc", *flags, f"--descriptor_set_out={out}", "library.proto"]) == 0
        files = FileDescriptorSet.FromString(out.read_bytes()).file
    pool = DescriptorPool()
    for file in files:
        pool.Add(file)
    return pool


POOL = library()
THEIRS = openapi(
    bindings(POOL.FindServiceByName(f"library.v1.{name}") for name in ("Shelves", "Books")),
    title="A library",
    version="7",
    servers=["https://library.test"],
)
DOCUMENTS = [pytest.param(OURS, id="ours"), pytest.param(THEIRS, id="theirs")]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method, operation."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


@cache
def validator(whose: str, name: str) -> Draft202012Validator:
    """Of the component of that name."""
    document = {"ours": OURS, "theirs": THEIRS}[whose]
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return Draft202012Validator(schema)


def references(value: Any) -> Iterator[str]:
    """All `$ref`s in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


# --- the document --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_it_is_openapi(document: dict[str, Any]) -> None:
    """By the schema that the OpenAPI Initiative publishes (2022-10-07), and JSON Schema's own for the schemas."""
    schema = json.loads((HERE / "schema-3.1.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(document)] == []
    for component in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(component)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_referred_to_is_there(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 5
    for reference in found:
        value = document
        for step in reference.removeprefix("#/").split("/"):
            value = value[step]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids)) > 4


def test_ours_is_the_golden_one() -> None:
    assert json.loads((ROOT / "apis/openapi.json").read_text()) == OURS


def test_every_message_of_ours_is_there() -> None:
    names = {
        message.name
        for file in (chat_pb2, embeddings_pb2, models_pb2)
        for message in file.DESCRIPTOR.message_types_by_name.values()
    }
    parameters = {"ListModelsRequest", "GetModelRequest"}
    unwrapped = {  # a field of them is the body
        "CreateChatCompletionRequest",
        "CreateChatCompletionResponse",
        "CreateChatCompletionStreamRequest",
        "GetModelResponse",
    }
    assert names - set(OURS["components"]["schemas"]) == parameters | unwrapped


def test_all_of_ours_is_described() -> None:
    silent = [f"{method} {path}" for path, method, operation in operations(OURS) if not operation["summary"]]
    silent += [tag["name"] for tag in OURS["tags"] if not tag["description"]]
    silent += [
        p["name"]
        for _, _, operation in operations(OURS)
        for p in operation.get("parameters", ())
        if not p["description"]
    ]
    for name, schema in OURS["components"]["schemas"].items():
        silent += [name] * (not schema.get("description"))
        silent += [f"{name}.{key}" for key, part in schema.get("properties", {}).items() if not part.get("description")]
    assert silent == []


def test_the_values_of_an_enum_are_explained() -> None:
    role = OURS["components"]["schemas"]["Role"]
    assert "- `ROLE_USER`: The user." in role["description"]
    assert "ROLE_USER" in role["enum"]


def test_a_stream() -> None:
    operation = OURS["paths"]["/api/v1/chat/completions:stream"]["post"]
    contents = operation["responses"]["200"]["content"]
    one = {"$ref": "#/components/schemas/CreateChatCompletionStreamResponse"}
    assert set(contents) == {"text/event-stream", "application/x-ndjson"}
    assert contents["text/event-stream"]["schema"] == one
    assert contents["application/x-ndjson"]["schema"]["properties"]["result"] == one


def test_errors_and_keys() -> None:
    for _, _, operation in operations(OURS):
        assert (
            operation["responses"]["4XX"] == operation["responses"]["5XX"] == {"$ref": "#/components/responses/Errors"}
        )
    assert OURS["components"]["responses"]["Errors"]["content"] == {
        "application/vnd.api+json": {"schema": {"$ref": "#/components/schemas/ErrorsResponse"}}
    }
    assert OURS["security"] == [{"bearer": []}, {"apiKey": []}, {}]
    assert OURS["components"]["securitySchemes"]["apiKey"]["name"] == "x-api-key"


def test_paths_and_parameters_of_theirs() -> None:
    found = {
        f"{method} {path}": (
            operation["operationId"],
            [f"{p['in']} {p['name']}{'!' * p.get('required', False)}" for p in operation.get("parameters", ())],
        )
        for path, method, operation in operations(THEIRS)
    }
    asked = ["query words!", "query filter.kinds", "query filter.since", "query filter.atLeast", "query filter.must"]
    assert found == {
        "get /v1/shelves/{name}": ("library.v1.Shelves.Get", ["path name!", "query kind"]),
        "get /v1/shelves/{name.1}/books/{name.2}": (
            "library.v1.Books.Get",
            ["path name.1!", "path name.2!", "query kind"],
        ),
        "get /v1/books/{name}": ("library.v1.Books.Get_2", ["path name!", "query kind"]),
        "get /v1/{segment.1}/first": ("library.v1.Books.Get_3", ["path segment.1!", "query name!", "query kind"]),
        # named as for `get`: one path can't have two kinds of names
        "patch /v1/shelves/{name.1}/books/{name.2}": ("Update", ["path name.1!", "path name.2!", "query updateMask"]),
        "post /v1/books/{name}:move": ("Move", ["path name!"]),
        "x-search /v1/books": ("Search", asked),
        "x-any /v1/books": ("Search_2", asked),
    }


def test_bodies_of_theirs() -> None:
    update = THEIRS["paths"]["/v1/shelves/{name.1}/books/{name.2}"]["patch"]
    body = update["requestBody"]["content"]["application/json"]["schema"]
    assert "kind" in body["properties"]
    assert "name" not in body["properties"], "it is in the path"
    assert (update["requestBody"]["required"], update["deprecated"]) == (True, True)
    move = THEIRS["paths"]["/v1/books/{name}:move"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(move["properties"]) == {"toShelf", "byForce"}
    assert move["required"] == ["toShelf"]


def test_the_body_of_an_answer_of_theirs() -> None:
    search = THEIRS["paths"]["/v1/books"]["x-search"]["responses"]["200"]["content"]
    assert search["text/event-stream"]["schema"] == {"$ref": "#/components/schemas/Book"}


def test_names_that_clash() -> None:
    schemas = THEIRS["components"]["schemas"]
    assert {"Shelf.Kind", "Book.Kind", "Book.Empty", "Empty"} <= set(schemas)


def test_hints_for_wildcards() -> None:
    parameters = THEIRS["paths"]["/v1/shelves/{name.1}/books/{name.2}"]["get"]["parameters"]
    assert parameters[1]["description"] == "Here: what wildcard 2 stands for in `name`, which is `shelves/*/books/*`."
    assert OURS["paths"]["/api/v1/models/{id}"]["get"]["parameters"][0]["description"].endswith(
        "It may hold slashes, which are not escaped."
    )


# --- the schemas ---------------------------------------------------------------------------------------------------

Draw = Callable[..., Any]
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
WELL_KNOWN: dict[str, st.SearchStrategy[Any]] = {  # in their JSON
    "Any": st.just({"@type": f"type.googleapis.com/{duration_pb2.Duration.DESCRIPTOR.full_name}", "value": "3s"}),
    "Duration": st.integers(-(10**9), 10**9).map(lambda ms: f"{ms / 1000:.3f}s"),
    "FieldMask": st.sampled_from(["", "kind", "name,everything.aDouble"]),
    "ListValue": st.lists(json_values, max_size=3),
    "Struct": st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    "Timestamp": st.datetimes().map(lambda time: f"{time.isoformat()}Z"),
    "Value": json_values,
}
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, (1 << 64) - 1),
}


def values(field: FieldDescriptor, draw: Draw, depth: int) -> Any:
    """One value of the field."""
    if field.message_type is not None:
        return message(field.message_type, draw, depth + 1)
    if field.enum_type is not None:
        numbers = [value.number for value in field.enum_type.values]
        return draw(st.sampled_from(numbers[int(is_required(field)) :]))
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return draw(SCALARS[field.cpp_type])
    least = int(is_required(field))
    return draw(st.binary(min_size=least, max_size=9) if field.type == field.TYPE_BYTES else st.text(min_size=least))


def message(kind: Descriptor, draw: Draw, depth: int = 0) -> Any:
    """Some message of that kind. Beyond some depth only what is required is set."""
    made: Any = GetMessageClass(kind)()
    if kind.file.package == "google.protobuf" and kind.name in WELL_KNOWN:
        return json_format.ParseDict(draw(WELL_KNOWN[kind.name]), made)
    for field in kind.fields:
        required = is_required(field)
        if not required and (depth > 2 or not draw(st.booleans())):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
            name = values(key, draw, depth)
            if value.message_type is None:
                getattr(made, field.name)[name] = values(value, draw, depth)
            else:
                getattr(made, field.name)[name].CopyFrom(values(value, draw, depth))
        elif field.is_repeated:
            count = draw(st.integers(int(required), 2))
            getattr(made, field.name).extend([values(field, draw, depth) for _ in range(count)])
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(values(field, draw, depth))
        else:
            setattr(made, field.name, values(field, draw, depth))
    return made


def ours(name: str) -> Any:
    """One of our messages, by its short name."""
    files = (chat_pb2, embeddings_pb2, models_pb2)
    return next(found for file in files if (found := file.DESCRIPTOR.message_types_by_name.get(name)) is not None)


OUR_ROOTS = (
    "Chat",
    "ChatCompletion",
    "CreateChatCompletionStreamResponse",
    "CreateEmbeddingsRequest",
    "CreateEmbeddingsResponse",
    "ListModelsResponse",
    "Model",
)


@given(st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", OUR_ROOTS)
def test_our_messages_fit_their_schemas(name: str, data: st.DataObject) -> None:
    made = message(ours(name), data.draw)
    validator("ours", name).validate(json_format.MessageToDict(made))


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", ["Book", "Shelf", "Everything"])
def test_their_messages_fit_their_schemas(name: str, data: st.DataObject) -> None:
    made = message(POOL.FindMessageTypeByName(f"library.v1.{name}"), data.draw)
    validator("theirs", name).validate(json_format.MessageToDict(made))


BAD = {
    "two of a oneof": {"person": "Ann", "library": "7"},
    "two of another": {"picture": "AAAA", "color": "red"},
    "no such value": {"kind": "KIND_ROMANCE"},
    "a number for a string": {"name": 7},
    "no base64": {"picture": "a"},
    "one for many": {"sequels": {}},
    "a bad key": {"everything": {"byInt32": {"x": ""}}},
    "a bad bool key": {"everything": {"byBool": {"yes": "KIND_OPEN"}}},
    "too large for 32 bits": {"everything": {"anInt32": 1 << 31}},
    "too large for 64 bits": {"everything": {"anInt64": 1 << 63}},
    "negative": {"everything": {"aUint64": "-1"}},
    "a fraction": {"everything": {"aUint32": 1.5}},
    "words for a number": {"everything": {"aDouble": "many"}},
    "no duration": {"everything": {"duration": "3"}},
    "a list for an object": {"everything": {"struct": []}},
}


@pytest.mark.parametrize("given", [pytest.param(body, id=name) for name, body in BAD.items()])
def test_what_protobuf_refuses_the_schemas_refuse(given: dict[str, Any]) -> None:
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict(given, GetMessageClass(POOL.FindMessageTypeByName("library.v1.Book"))())
    assert not validator("theirs", "Book").is_valid(given)


GOOD = {
    "integers as numbers": {"library": 7, "everything": {"anInt64": 7, "aUint64": 1}},
    "integers as strings": {"library": "7", "everything": {"anInt64": "-7", "aUint64": "18446744073709551615"}},
    "no number": {"everything": {"aDouble": "NaN", "aFloat": "-Infinity", "wrappedDouble": "Infinity"}},
    "base64 in either alphabet": {
        "picture": base64.b64encode(b"\xff\xfe\xfd").decode(),
        "everything": {"someBytes": "-_A"},
    },
    "a name of its own": {"everything": {"another-name": "x"}},
    "one of each oneof": {"person": "Ann", "color": "red"},
}


@pytest.mark.parametrize("given", [pytest.param(body, id=name) for name, body in GOOD.items()])
def test_what_protobuf_takes(given: dict[str, Any]) -> None:
    json_format.ParseDict(given, GetMessageClass(POOL.FindMessageTypeByName("library.v1.Book"))())
    validator("theirs", "Book").validate(given)


def test_requests_are_closed_and_answers_open() -> None:
    """What is unknown in a request is refused; an answer may get more fields one day."""
    schemas = OURS["components"]["schemas"]
    assert schemas["Chat"]["additionalProperties"] is False
    assert "additionalProperties" not in schemas["ChatCompletion"]


def test_what_is_required_is_not_empty() -> None:
    chat = OURS["components"]["schemas"]["Chat"]
    assert chat["required"] == ["model", "messages"]
    assert (chat["properties"]["model"]["minLength"], chat["properties"]["messages"]["minItems"]) == (1, 1)
    assert "minLength" not in chat["properties"]["user"]


def test_marks() -> None:
    book = THEIRS["components"]["schemas"]["Book"]["properties"]
    assert book["name"]["readOnly"] is True
    assert book["kind"]["deprecated"] is True

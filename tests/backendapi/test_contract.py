"""The wire of the backends' contract, against a table that was not made from our .proto.

contract.json was made from the descriptor of LocalAI's own contract (mudler/LocalAI at 82c191af): it is the oracle, and
changes only when LocalAI's contract does.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto

from llmg.backendapi import backend_pb2

CONTRACT: dict[str, Any] = json.loads((Path(__file__).parent / "contract.json").read_text(encoding="utf-8"))
FILE = backend_pb2.DESCRIPTOR
SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("double", "float", "int64", "uint64", "int32", "bool", "string", "bytes", "uint32")
}
STREAMING = {(False, False): "unary", (False, True): "server", (True, True): "bidi", (True, False): "client"}


def type_name(field: FieldDescriptor) -> str:
    if field.message_type is None:
        return SCALARS[field.type] if field.enum_type is None else str(field.enum_type.name)
    if field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        return f"map<{type_name(key)}, {type_name(value)}>"
    return str(field.message_type.name)


def field_row(field: FieldDescriptor) -> dict[str, Any]:
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    oneof = field.containing_oneof
    synthetic = oneof is not None and oneof.name == f"_{field.name}"  # how proto3 stores `optional`
    label = "repeated" if field.is_repeated and not is_map else "optional" if synthetic else ""
    return {
        "number": field.number,
        "type": type_name(field),
        "label": label,
        "oneof": oneof.name if oneof is not None and not synthetic else "",
    }


def message_row(message: Descriptor) -> dict[str, Any]:
    proto = DescriptorProto()
    message.CopyToProto(proto)
    reserved = [number for part in proto.reserved_range for number in range(part.start, part.end)]
    return {"fields": {field.name: field_row(field) for field in message.fields}, "reserved": reserved}


def rpc_row(method: MethodDescriptor) -> dict[str, str]:
    streaming = STREAMING[method.client_streaming, method.server_streaming]
    return {"request": method.input_type.name, "response": method.output_type.name, "streaming": streaming}


def enums() -> dict[str, EnumDescriptor]:
    nested = {
        f"{message.name}.{enum.name}": enum
        for message in FILE.message_types_by_name.values()
        for enum in message.enum_types
    }
    return dict(FILE.enum_types_by_name) | nested


def test_the_service_is_localais() -> None:
    assert FILE.package == CONTRACT["package"]
    assert list(FILE.services_by_name) == [CONTRACT["service"]]
    methods = FILE.services_by_name["Backend"].methods
    assert {method.name: rpc_row(method) for method in methods} == CONTRACT["rpcs"]
    assert len(methods) == 52


def test_no_message_is_missing_or_added() -> None:
    assert set(FILE.message_types_by_name) == set(CONTRACT["messages"])
    assert len(CONTRACT["messages"]) == 114


@pytest.mark.parametrize("name", sorted(CONTRACT["messages"]))
def test_each_message_has_the_same_fields(name: str) -> None:
    assert message_row(FILE.message_types_by_name[name]) == CONTRACT["messages"][name]


def test_the_enums_have_the_same_values() -> None:
    ours = {name: {value.name: value.number for value in enum.values} for name, enum in enums().items()}
    assert ours == CONTRACT["enums"]


def test_bytes_written_by_hand_are_read_as_meant() -> None:
    # Prompt (1) = "hi", TopP (32) = 0.5, Metadata (52) = {"a": "b"}, MinP (53) = 0.25
    wire = b"\x0a\x02hi" + b"\x85\x02\x00\x00\x00\x3f" + b"\xa2\x03\x06\x0a\x01a\x12\x01b" + b"\xad\x03\x00\x00\x80\x3e"
    options = backend_pb2.PredictOptions.FromString(wire)
    assert (options.Prompt, options.TopP, dict(options.Metadata), options.MinP) == ("hi", 0.5, {"a": "b"}, 0.25)
    assert options.SerializeToString() == wire

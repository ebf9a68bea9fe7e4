"""A protoc plugin: the comments of each package, as `comments.json`, by full name (a value's: its enum's and its own).

What Python's generated descriptors leave out; OpenAPI's descriptions are made of it. The parameters are the packages
whose comments are wanted.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import PurePosixPath

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

Path = tuple[int, ...]  # of field numbers and indices, as SourceCodeInfo.Location has it


def of_enum(enum: EnumDescriptorProto, scope: str, at: Path) -> Iterator[tuple[Path, str]]:
    yield at, (name := f"{scope}.{enum.name}")
    for i, value in enumerate(enum.value):
        yield (*at, 2, i), f"{name}.{value.name}"


def of_message(message: DescriptorProto, scope: str, at: Path) -> Iterator[tuple[Path, str]]:
    yield at, (name := f"{scope}.{message.name}")
    for i, field in enumerate(message.field):
        yield (*at, 2, i), f"{name}.{field.name}"
    for i, oneof in enumerate(message.oneof_decl):
        yield (*at, 8, i), f"{name}.{oneof.name}"
    for i, nested in enumerate(message.nested_type):
        yield from of_message(nested, name, (*at, 3, i))
    for i, enum in enumerate(message.enum_type):
        yield from of_enum(enum, name, (*at, 4, i))


def names(file: FileDescriptorProto) -> Iterator[tuple[Path, str]]:
    """Where each thing of the file stands in it, and its full name."""
    for i, message in enumerate(file.message_type):
        yield from of_message(message, file.package, (4, i))
    for i, enum in enumerate(file.enum_type):
        yield from of_enum(enum, file.package, (5, i))
    for i, service in enumerate(file.service):
        yield (6, i), (name := f"{file.package}.{service.name}")
        for j, method in enumerate(service.method):
            yield (6, i, 2, j), f"{name}.{method.name}"


def comments(file: FileDescriptorProto) -> dict[str, str]:
    """Full name -> comment, for what has one. Lines are joined, paragraphs kept."""
    by_path = dict(names(file))
    found = {}
    for location in file.source_code_info.location:
        text = location.leading_comments or location.trailing_comments
        if text.strip() and tuple(location.path) in by_path:
            paragraphs = "\n".join(line.strip() for line in text.strip().splitlines()).split("\n\n")
            found[by_path[tuple(location.path)]] = "\n\n".join(part.replace("\n", " ") for part in paragraphs)
    return found


def folder(file: FileDescriptorProto) -> str:
    return str(PurePosixPath(file.name).parent)


def packages(files: Iterable[FileDescriptorProto]) -> Iterator[tuple[str, dict[str, str]]]:
    for name, members in groupby(sorted(files, key=folder), folder):
        yield name, {key: text for file in members for key, text in comments(file).items()}


def main() -> None:
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    wanted = request.parameter.split(",")
    files = [file for file in request.proto_file if file.name in request.file_to_generate and file.package in wanted]
    for name, found in packages(files):
        content = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        response.file.add(name=f"{name}/comments.json", content=content)
    sys.stdout.buffer.write(response.SerializeToString())


if __name__ == "__main__":
    main()

"""Which HTTP requests stand for which RPCs: the google.api.http rules of services, as a table.

The same table routes requests (`routes.py`), transcodes them (`requests.py`) and describes them (OpenAPI).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from msgspec import Struct

from llmg.wire.transcoding import templates, wellknown
from llmg.wire.transcoding.templates import ONE, REST, Template

ANY: Final = "*"  # as a method: each of HTTP's; as a body: all fields that the path does not have


class Binding(Struct, frozen=True, kw_only=True):
    """One way to call one RPC by HTTP. An RPC has as many as its rule has patterns, in the rule's order.

    `method` is HTTP's, in capitals, or ANY (`custom: {kind: "*"}`). `body`: "" (there is none), ANY, or the name of the
    request's field that the HTTP body is. `response_body`: "" (the whole message), or the name of the response's field
    that is the answer's body; in a stream that of each message. Fields of the request that neither the path nor the
    body has are query parameters; with ANY there are none.
    """

    method: str
    template: Template
    body: str
    response_body: str
    rpc: MethodDescriptor

    @property
    def path(self) -> str:
        """The RPC's name on a channel: `/package.Service/Method`."""
        return f"/{self.rpc.containing_service.full_name}/{self.rpc.name}"

    @property
    def input(self) -> Descriptor:
        """The request's message."""
        return self.rpc.input_type

    @property
    def output(self) -> Descriptor:
        """The response's message; in a stream each one."""
        return self.rpc.output_type

    @property
    def server_streaming(self) -> bool:
        """Is the answer a stream of messages?"""
        return self.rpc.server_streaming

    @property
    def client_streaming(self) -> bool:
        """Is the request a stream? There is no way to send one by HTTP here (501)."""
        return self.rpc.client_streaming


def bindings(services: Iterable[ServiceDescriptor]) -> tuple[Binding, ...]:
    """All bindings of the services' methods; a method without a rule has none.

    Raises ValueError, naming the RPC, on a rule that does not hold: a bad template, or a field that is not there or
    can't stand where it is named.
    """
    return tuple(
        binding for service in services for method in service.methods for binding in _of_method(method, _rule(method))
    )


def _rule(method: MethodDescriptor) -> HttpRule:
    # The options of a pool that is not the default one don't know the extension: they are read once more.
    options = MethodOptions.FromString(method.GetOptions().SerializeToString())
    return options.Extensions[annotations_pb2.http]


def _of_method(method: MethodDescriptor, rule: HttpRule) -> Iterator[Binding]:
    try:
        for one in (rule, *rule.additional_bindings):
            if one.WhichOneof("pattern") is not None:
                yield _binding(method, one)
    except ValueError as error:
        raise ValueError(f"the google.api.http rule of {method.full_name} does not hold: {error}") from None


def _binding(method: MethodDescriptor, rule: HttpRule) -> Binding:
    kind = rule.WhichOneof("pattern")
    verb, path = (rule.custom.kind, rule.custom.path) if kind == "custom" else (str(kind), getattr(rule, str(kind)))
    template = templates.parse(path)
    for variable in template.variables:
        _check_variable(method.input_type, variable.path)
    if rule.body not in ("", ANY):
        top_level(method.input_type, rule.body)
    if rule.response_body:
        top_level(method.output_type, rule.response_body)
    return Binding(method=verb.upper(), template=template, body=rule.body, response_body=rule.response_body, rpc=method)


def fixed_paths(table: Iterable[Binding]) -> frozenset[str]:
    """Paths that hold no field: whoever dispatches by path can look them up as they are."""
    fixed = [binding.template for binding in table if not {ONE, REST} & set(binding.template.segments)]
    return frozenset("/" + "/".join(one.segments) + (f":{one.verb}" if one.verb else "") for one in fixed)


def top_level(message: Descriptor, name: str) -> FieldDescriptor:
    """The message's field of that name. Raises ValueError when it has none."""
    field = message.fields_by_name.get(name)
    if field is None:
        raise ValueError(f"{message.full_name} has no field {name!r}")
    return field


def _check_variable(message: Descriptor, path: tuple[str, ...]) -> None:
    """A path can hold single values: no lists, and only those messages that are text in JSON."""
    for name in path[:-1]:
        outer = top_level(message, name)
        if outer.message_type is None or outer.is_repeated or outer.message_type.full_name in wellknown.TYPES:
            raise ValueError(f"the field {name!r} of {message.full_name} has no fields that a path can name")
        message = outer.message_type
    field = top_level(message, path[-1])
    if field.is_repeated or message.full_name in wellknown.TYPES:
        raise ValueError(f"the field {'.'.join(path)!r} is repeated, and can't stand in a path")
    if field.message_type is not None and field.message_type.full_name not in wellknown.TEXT_LIKE:
        raise ValueError(f"the field {'.'.join(path)!r} is a message, and can't stand in a path")

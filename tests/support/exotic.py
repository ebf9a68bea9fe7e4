"""exotic.proto: compiled when it is asked for, answered in process or by a server of its own."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import google.api
import grpc
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection
from grpc_tools import protoc  # type: ignore[import-untyped]

from llmg.wire.transcoding.bindings import Binding, bindings

_HERE = Path(__file__).parent
NAME = "exotic.Exotic"


@functools.cache
def pool() -> DescriptorPool:
    """Its types and all that they need, in a pool of their own."""
    googles = Path(next(iter(google.api.__path__))).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        includes = (_HERE, googles, files("grpc_tools") / "_proto")
        arguments = [*(f"-I{path}" for path in includes), f"--descriptor_set_out={out}", "--include_imports"]
        assert protoc.main(["protoc", *arguments, str(_HERE / "exotic.proto")]) == 0
        made = DescriptorPool()
        for file in FileDescriptorSet.FromString(out.read_bytes()).file:
            made.AddSerializedFile(file.SerializeToString())
    return made


def service() -> ServiceDescriptor:
    """Exotic."""
    found: ServiceDescriptor = pool().FindServiceByName(NAME)
    return found


def table() -> tuple[Binding, ...]:
    """Its bindings."""
    return bindings([service()])


def descriptor(name: str = "Everything") -> Descriptor:
    """A message's."""
    found: Descriptor = pool().FindMessageTypeByName(f"exotic.{name}")
    return found


def make(name: str = "Everything", **fields: Any) -> Any:
    """A message."""
    return GetMessageClass(descriptor(name))(**fields)


# --- answers ---------------------------------------------------------------------------------------------------------


class Answers:
    """What the methods do; `entered` and `left` are set when one that waits begins and is cancelled."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.waiting = 0  # how many wait, or did
        self.remaining: float | None = None

    async def echo(self, request: Any, context: Any) -> Any:
        return request

    async def purge(self, request: Any, context: Any) -> Any:
        assert request.inner.name.startswith("things")
        return GetMessageClass(service().methods_by_name["Purge"].output_type)()

    async def fail(self, request: Any, context: Any) -> Any:
        code = next(code for code in grpc.StatusCode if code.value[0] == request.inner.size)
        details = bytes.fromhex(request.inner.name)
        await context.abort(code, request.text, (("grpc-status-details-bin", details),) if details else ())

    async def metadata(self, request: Any, context: Any) -> Any:
        await context.send_initial_metadata(
            (("x-first", "1"), ("x-data-bin", b"\x00\x01"), ("x-llmg-route", "p/m"), ("x-request-id", "theirs"))
        )
        context.set_trailing_metadata((("x-last", "2"), ("x-llmg-attempts", "3")))
        given = {k: v if isinstance(v, str) else v.hex() for k, v in context.invocation_metadata()}
        return make(names=given)

    async def many(self, request: Any, context: Any) -> None:
        for number in range(request.number):
            await context.write(make(number=number + 1, inner={"name": f"n{number + 1}"}))
        if request.text:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, request.text)

    async def wait(self, request: Any, context: Any) -> None:
        self.remaining = context.time_remaining()
        self.waiting += 1
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()

    def method(self, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        """By the RPC's name."""
        own: Mapping[str, Callable[[Any, Any], Awaitable[Any]]] = {
            "Purge": self.purge,
            "Fail": self.fail,
            "Metadata": self.metadata,
            "Many": self.many,
            "Wait": self.wait,
            "WaitForMany": self.wait,
        }
        return own.get(name, self.echo)

    def handlers(self) -> dict[str, Callable[[Any, Any], Awaitable[Any]]]:
        """By the names on a channel."""
        return {f"/{NAME}/{method.name}": self.method(method.name) for method in service().methods}


@asynccontextmanager
async def server(
    answers: Answers, *, reflecting: bool = True, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[str]:
    """The service on a server of grpc.aio; its address."""
    made = grpc.aio.server()
    handlers = {method.name: _handler(method, answers.method(method.name)) for method in service().methods}
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    if reflecting:
        reflection.enable_server_reflection((NAME, reflection.SERVICE_NAME), made, pool=pool())
    place = "127.0.0.1:0"
    port = made.add_insecure_port(place) if credentials is None else made.add_secure_port(place, credentials)
    await made.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await made.stop(None)


def _handler(method: MethodDescriptor, answer: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    decode, encode = (
        GetMessageClass(method.input_type).FromString,
        GetMessageClass(method.output_type).SerializeToString,
    )
    make_handler: Any = grpc.unary_stream_rpc_method_handler if method.server_streaming else None
    if method.client_streaming:
        make_handler = grpc.stream_unary_rpc_method_handler
    return (make_handler or grpc.unary_unary_rpc_method_handler)(
        answer, request_deserializer=decode, response_serializer=encode
    )

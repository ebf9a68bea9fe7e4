"""RPCs of a server somewhere else, which says itself what they are: by reflection (grpc.reflection.v1, or v1alpha)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from llmg.core.errors import Failure, Kind
from llmg.doors.gateway.upstream import Call, Metadata, Status, Stream, Unary, Write

_DETAILS: Final = "grpc-status-details-bin"
# The same messages under two names: servers have the one, the other, or both.
_REFLECTION: Final = tuple(f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha"))


def options(keepalive: float) -> tuple[tuple[str, int], ...]:
    """A channel's. `keepalive`: seconds of silence after which the server is asked for a sign of life.

    Servers that are not told otherwise hang up on who asks more often than every five minutes.
    """
    return (
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", round(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    )


# --- what there is ---------------------------------------------------------------------------------------------------


async def describe(channel: grpc.aio.Channel, timeout: float) -> tuple[DescriptorPool, tuple[ServiceDescriptor, ...]]:
    """What the server has: all its types, and its services but for reflection itself. `timeout` in seconds.

    Raises Failure: upstream_unavailable, not_implemented (it has no reflection), upstream_protocol (what it says of
    itself does not hold).
    """
    try:
        async with asyncio.timeout(timeout):
            files, names = await _ask_either(channel)
    except TimeoutError:
        raise Failure(Kind.UPSTREAM_UNAVAILABLE, f"the server did not answer within {timeout:g} s") from None
    pool = DescriptorPool()
    try:
        for file in _in_order(files):
            pool.AddSerializedFile(file.SerializeToString())
        return pool, tuple(pool.FindServiceByName(name) for name in names)
    except (TypeError, KeyError, ValueError) as error:
        words = f"the server's description of itself does not hold: {error}"
        raise Failure(Kind.UPSTREAM_PROTOCOL, words) from None


async def _ask_either(channel: grpc.aio.Channel) -> tuple[dict[str, FileDescriptorProto], list[str]]:
    for service in _REFLECTION:
        try:
            return await _ask(channel, service)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                words = f"the server does not answer: {error.details()}"
                raise Failure(Kind.UPSTREAM_UNAVAILABLE, words) from None
    raise Failure(Kind.NOT_IMPLEMENTED, "the server has no reflection, from which its methods would be learned")


async def _ask(channel: grpc.aio.Channel, service: str) -> tuple[dict[str, FileDescriptorProto], list[str]]:
    # On the wire the same as a stream of one question; but one that the server refuses says why, each time.
    ask: Any = channel.unary_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    listed = await _said(ask, ServerReflectionRequest(list_services=""))
    names = [one.name for one in listed.list_services_response.service if one.name not in _REFLECTION]
    files: dict[str, FileDescriptorProto] = {}
    for name in names:
        await _learn(ask, ServerReflectionRequest(file_containing_symbol=name), files)
    while missing := {name for file in files.values() for name in file.dependency} - set(files):
        for name in missing:
            await _learn(ask, ServerReflectionRequest(file_by_filename=name), files, name)
    return files, names


async def _said(ask: Any, request: ServerReflectionRequest) -> ServerReflectionResponse:
    asking = ask(request)
    answer = await asking.read()
    if answer is grpc.aio.EOF:
        raise Failure(Kind.UPSTREAM_PROTOCOL, "the server ended its description of itself too early")
    asking.cancel()
    return answer


async def _learn(
    ask: Any, request: ServerReflectionRequest, files: dict[str, FileDescriptorProto], name: str = ""
) -> None:
    """Adds the files that the server answers with; those of Google's that it lacks are known here."""
    answer = await _said(ask, request)
    if answer.HasField("error_response"):
        try:
            raw = [descriptor_pool.Default().FindFileByName(name).serialized_pb]
        except KeyError:
            words = f"the server can't describe itself: {answer.error_response.error_message}"
            raise Failure(Kind.UPSTREAM_PROTOCOL, words) from None
    else:
        raw = list(answer.file_descriptor_response.file_descriptor_proto)
    try:
        for file in map(FileDescriptorProto.FromString, raw):
            files.setdefault(file.name, file)
    except DecodeError:
        raise Failure(Kind.UPSTREAM_PROTOCOL, "the server's description of itself can't be read") from None
    if name and name not in files:
        raise Failure(Kind.UPSTREAM_PROTOCOL, f"the server's description of itself lacks {name}")


def _in_order(files: dict[str, FileDescriptorProto]) -> Iterator[FileDescriptorProto]:
    """Each after those that it depends on."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[FileDescriptorProto]:
        if name not in done:
            done.add(name)
            for dependency in files[name].dependency:
                yield from visit(dependency)
            yield files[name]

    for name in files:
        yield from visit(name)


# --- calls -----------------------------------------------------------------------------------------------------------


class Remote:
    """See Upstream. The channel is the caller's to close."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def admit(self, metadata: Metadata, /) -> None:
        """See Upstream. Who may ask is for the server to say."""

    def unary(self, rpc: MethodDescriptor, /) -> Unary:
        """See Upstream."""
        ask: Any = self._channel.unary_unary(_path(rpc), *_codecs(rpc))

        async def answer(request: Message, call: Call) -> Message:
            asking = ask(request, timeout=call.timeout, metadata=tuple(call.metadata))
            try:
                response: Message = await asking
                call.initial, call.trailing = await asking.initial_metadata(), await asking.trailing_metadata()
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                _failed(error, call)
            return response

        return answer

    def stream(self, rpc: MethodDescriptor, /) -> Stream:
        """See Upstream."""
        ask: Any = self._channel.unary_stream(_path(rpc), *_codecs(rpc))

        async def answer(request: Message, call: Call, write: Write) -> None:
            asking = ask(request, timeout=call.timeout, metadata=tuple(call.metadata))
            begun = False
            try:
                async for message in _read(asking, call):
                    if not begun:
                        begun, call.initial = True, await asking.initial_metadata()
                    await write(message)
                call.trailing = await asking.trailing_metadata()
            finally:
                asking.cancel()

        return answer


async def _read(asking: Any, call: Call) -> AsyncIterator[Message]:
    while True:
        try:
            message = await asking.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            _failed(error, call)
        if message is grpc.aio.EOF:
            return
        yield message


def _failed(error: BaseException, call: Call) -> NoReturn:
    if isinstance(error, grpc.aio.AioRpcError):
        call.trailing = tuple(error.trailing_metadata() or ())
        details = dict(call.trailing).get(_DETAILS)
        raw = details if isinstance(details, bytes) else None
        raise Status(error.code().value[0], error.details() or "", raw, foreign=True) from None
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise error
    # Nobody cancelled us: that is how grpc.aio says that the server did.
    raise Status(grpc.StatusCode.CANCELLED.value[0], "the server cancelled the request", None, foreign=True) from None


def _path(rpc: MethodDescriptor) -> str:
    return f"/{rpc.containing_service.full_name}/{rpc.name}"


def _codecs(rpc: MethodDescriptor) -> Iterable[Any]:
    return _class(rpc.input_type).SerializeToString, _class(rpc.output_type).FromString


def _class(descriptor: Descriptor) -> Any:
    return GetMessageClass(descriptor)

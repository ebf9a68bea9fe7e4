"""The port to the RPCs behind this door: one of this process's, or of a server somewhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from msgspec import Struct

Metadata = Sequence[tuple[str, str | bytes]]
Write = Callable[[Message], Awaitable[None]]


class Call(Struct, kw_only=True):
    """One call: the metadata that goes along, the seconds it may take, and the metadata that has come back so far.

    `headers`: those of the HTTP request, by names in lower case, for who answers in this process.
    """

    metadata: Metadata
    headers: Mapping[bytes, bytes] = {}
    timeout: float | None = None
    initial: Metadata = ()
    trailing: Metadata = ()


class Status(Exception):
    """How a call failed: gRPC's code, its message, and `details` (a serialized google.rpc.Status), if there are any.

    `foreign`: it comes from a server that is not ours, so that its words on its own faults are not for clients.
    """

    def __init__(self, code: int, message: str, details: bytes | None, *, foreign: bool) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details
        self.foreign = foreign


Unary = Callable[[Message, Call], Awaitable[Message]]
Stream = Callable[[Message, Call, Write], Awaitable[None]]


class Upstream(Protocol):
    """Answers RPCs. What it gives may be called by many tasks at once; cancelling the task cancels the call.

    Calls raise Status, or Failure.
    """

    def admit(self, metadata: Metadata, /) -> None:
        """Before a request's body is read: may it come in? Raises Failure (unauthenticated)."""
        ...

    def unary(self, rpc: MethodDescriptor, /) -> Unary:
        """One that has one response. Raises ValueError when it is not there."""
        ...

    def stream(self, rpc: MethodDescriptor, /) -> Stream:
        """One that has many: each is written, before the next one is asked for. Raises ValueError."""
        ...

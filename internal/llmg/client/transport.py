"""Calls over grpclib: its channel and its stream, with what they lack for a client that must lose nothing.

- Errors are `LlmgError`s, with what the trailing metadata says.
- A server that says goodbye (GOAWAY: it drains, or the connection is old) may finish the calls that are under way.
- An interrupted call leaves its task as it was: grpclib cancels the task and never takes that back, so that the task's
  next `asyncio.timeout` or `TaskGroup` would be misled.
- A call that nobody reads holds up itself, not its neighbours on the same connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

import betterproto2
import grpclib.client
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase, StatusDetailsCodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import Deadline, decode_metadata
from grpclib.protocol import H2Protocol
from grpclib.utils import Wrapper
from h2.exceptions import ProtocolError
from hyperframe.frame import Frame, GoAwayFrame
from multidict import MultiDict

from llmg.client import checks
from llmg.client.errors import GARBLED, LlmgError, from_status, unavailable

In = TypeVar("In", bound=betterproto2.Message)
Out = TypeVar("Out", bound=betterproto2.Message)
Metadata = Mapping[str, str | bytes]

_CONNECT_WITHIN: Final = 20.0  # seconds
_CLOSE_WITHIN: Final = 1.0  # seconds, for the farewells of TLS
_KEEPALIVE: Final = 30.0  # seconds of silence, after which a server that has calls of ours is asked for a sign of life
_STREAM_WINDOW: Final = 1 << 20  # bytes that a call may have unread
_CONNECTION_WINDOW: Final = 1 << 30  # and all of them: a call that is not read must not keep others from theirs


class Method(NamedTuple, Generic[In, Out]):
    """One of the contract's."""

    path: str
    request: type[In]
    response: type[Out]
    cardinality: Cardinality = Cardinality.UNARY_UNARY


class Channel(grpclib.client.Channel):
    """A connection to a gateway, made when it is first needed, and again when it was lost."""

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, keepalive: float = _KEEPALIVE
    ) -> None:
        super().__init__(
            host,
            port,
            ssl=tls,
            codec=_Codec(),
            status_details_codec=_RawDetails(),
            config=Configuration(
                _keepalive_time=keepalive,
                _keepalive_timeout=keepalive,
                _http2_max_pings_without_data=0,
                _http2_min_sent_ping_interval_without_data=keepalive / 2,
                http2_connection_window_size=_CONNECTION_WINDOW,
                http2_stream_window_size=_STREAM_WINDOW,
            ),
        )
        self.name = self._authority
        self._open: set[_Protocol] = set()

    def call(self, method: Method[In, Out], timeout: float | None, metadata: Metadata) -> Call[In, Out]:
        """A call, to be entered."""
        return self.request(
            method.path, method.cardinality, method.request, method.response, timeout=timeout, metadata=metadata
        )

    def request(  # type: ignore[override]  # the types of what is sent and received
        self,
        name: str,
        cardinality: Cardinality,
        request_type: type[In],
        reply_type: type[Out],
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
        metadata: Any = None,
    ) -> Call[In, Out]:
        """See grpclib."""
        if timeout is not None:
            own = Deadline.from_timeout(timeout)
            deadline = own if deadline is None else min(own, deadline)
        return Call(
            self,
            name,
            cast(Any, MultiDict(metadata or ())),
            cardinality,
            request_type,
            reply_type,
            codec=self._codec,
            status_details_codec=self._status_details_codec,
            dispatch=self.__dispatch__,
            deadline=deadline,
        )

    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(grpclib.client.Handler(), self._config, self._h2_config, self._open)

    async def _create_connection(self) -> H2Protocol:
        try:
            async with asyncio.timeout(_CONNECT_WITHIN):
                return await super()._create_connection()
        except TimeoutError:
            raise ConnectionError("it does not answer") from None

    async def aclose(self) -> None:
        """Ends all calls, closes all connections and waits until they are gone."""
        self.close()
        left = set(self._open)
        for protocol in left:
            protocol.processor.close()
        if left:
            await asyncio.wait([protocol.gone for protocol in left], timeout=_CLOSE_WITHIN)
        for protocol in set(self._open):
            protocol.abort()


class Call(grpclib.client.Stream[In, Out]):
    """One call. Whatever it raises is an `LlmgError` (or comes from the caller)."""

    def __init__(self, channel: Channel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self._name = channel.name
        self._timer: asyncio.TimerHandle | None = None
        self._left = False

    @property
    def trailers(self) -> Mapping[str, str]:
        """The trailing metadata, as far as it has come."""
        given = self.trailing_metadata
        if given is None and self._send_request_done:  # cut off after its last words, or by them
            given = decode_metadata(self._stream.trailers or self._stream.headers or ())
        return {key: value for key, value in (given or {}).items() if isinstance(value, str)}

    async def __aenter__(self) -> Call[In, Out]:
        self._wrapper = interruption = _Interruption()
        if self._deadline is not None:
            with self._translating():
                remaining = self._deadline.time_remaining()
                if not remaining:
                    raise TimeoutError
            self._timer = asyncio.get_running_loop().call_later(remaining, interruption.cancel, TimeoutError())
        return self

    async def send_message(self, message: In, *, end: bool = False) -> None:
        """See grpclib. A message that can't be written is an InvalidRequestError, and nothing is sent."""
        checks.message(message)
        with self._translating():
            await super().send_message(message, end=end)

    async def recv_message(self) -> Out | None:
        """See grpclib."""
        with self._translating():
            return await super().recv_message()

    async def recv_trailing_metadata(self) -> None:
        """See grpclib."""
        with self._translating():
            await super().recv_trailing_metadata()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._left:
            return
        self._left = True
        try:
            with self._translating():
                await super().__aexit__(exc_type, exc, tb)
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def leave(self) -> None:
        """Ends it at once, wherever it stands: the server learns of it, and nothing is waited for."""
        await self.__aexit__(GeneratorExit, GeneratorExit(), None)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except GRPCError as error:
            raise self._of_status(error) from None
        except TimeoutError:
            raise from_status(Status.DEADLINE_EXCEEDED, "the call's time is up", None, self.trailers) from None
        except StreamTerminatedError as error:
            raise self._of_reset(error) from None
        except OSError as error:
            raise unavailable(f"no gateway answers at {self._name}: {error.strerror or error}") from error
        except (ProtocolError, AssertionError) as error:  # grpclib asserts that no stream ends within a message
            raise self._lost(error) from error

    def _of_status(self, error: GRPCError) -> LlmgError:
        return from_status(error.status, error.message, error.details, self.trailers)

    def _of_reset(self, error: StreamTerminatedError) -> LlmgError:
        try:
            self._maybe_raise()  # a status that came before the reset
        except GRPCError as known:
            return self._of_status(known)
        return self._lost(error)

    def _lost(self, error: Exception) -> LlmgError:
        return unavailable(f"the connection to {self._name} was lost: {error}")


class _Interruption(Wrapper):
    """Wakes the task that waits for a call by cancelling it, and takes that back when the task has woken."""

    def __init__(self) -> None:
        super().__init__()
        self._inside: dict[asyncio.Task[Any], int] = {}
        self._interrupted: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> None:
        if self._error is not None:
            raise self._error
        task = _this_task()
        self._inside[task] = task.cancelling()

    def cancel(self, error: Exception) -> None:
        """The first reason holds."""
        if self._error is None:
            self._error = error
            self._interrupted = {task for task in self._inside if task.cancel()}

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        task = _this_task()
        before = self._inside.pop(task)
        if task in self._interrupted:
            self._interrupted.discard(task)
            if task.uncancel() > before:
                return  # somebody else cancelled it, too: theirs goes on
        if self._error is not None:
            raise self._error


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "a call needs a task"
    return task


class _Protocol(H2Protocol):
    """grpclib's, which lets the server finish what it has begun when it says goodbye (RFC 9113, 6.8).

    grpclib and h2 take a GOAWAY for the end of the connection.
    """

    def __init__(self, handler: grpclib.client.Handler, config: Any, h2_config: Any, known: set[_Protocol]) -> None:
        super().__init__(handler, config, h2_config)
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._known = known
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport = cast(asyncio.Transport, transport)
        self._known.add(self)
        self.connection._connection._frame_dispatch_table[GoAwayFrame] = self._goodbye

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._known.discard(self)
        self.gone.set_result(None)

    def abort(self) -> None:
        """Without farewells."""
        assert self._transport is not None
        self._transport.abort()

    def _goodbye(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Any]]:
        # The next call makes a new connection; the server closes this one, when nothing is under way any more.
        self.handler.connection_lost = True  # type: ignore[attr-defined]
        for number, stream in list(self.processor.streams.items()):
            if number > frame.last_stream_id:
                stream.__terminated__("the server has closed it")
        return [], []


class _Codec(CodecBase):
    """betterproto2's messages."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        """See grpclib."""
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        """See grpclib."""
        try:
            return message_type.parse(data)
        except GARBLED as error:
            raise GRPCError(Status.INTERNAL, f"no {message_type.__name__} was received: {error}") from None


class _RawDetails(StatusDetailsCodecBase):
    """`grpc-status-details-bin` as it came."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        """See grpclib."""
        raise AssertionError("clients send none")

    def decode(self, status: Status, message: str | None, data: bytes) -> bytes:
        """See grpclib."""
        return data

"""The launcher of a worker: it asks the supervisor's, over a unix domain socket, so that each model runs once.

Each line is a message in JSON. The worker numbers its questions; the supervisor answers them in any order. What the
supervisor says unasked is `Gone` alone, so that a worker forgets a process as soon as it has ended.

    worker                     supervisor
      | Ensure(id, spec) ------->|
      |<------ Found(id, running)|   or Failed(id, ...)
      | Inquire(id, spec, gen) ->|
      |<-------- Cause(id, text) |   or Failed(id, ...)
      |<------- Gone(spec, gen)  |
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

import msgspec
import structlog
from msgspec import Struct

from llmg.core.errors import Blame, Failure, Kind, internal
from llmg.ports import Launcher, Running, Spec

if TYPE_CHECKING:  # it brings grpc along
    from llmg.launcher.local import Gone as Listener

log = structlog.get_logger("llmg.launcher")

SOCKET_NAME: Final = "launcher.sock"


class Ensure(Struct, frozen=True, tag=True):
    """Launcher.ensure."""

    id: int
    spec: Spec


class Inquire(Struct, frozen=True, tag=True):
    """Launcher.post_mortem."""

    id: int
    spec: Spec
    generation: int


class Found(Struct, frozen=True, tag=True):
    """What ensure gave."""

    id: int
    running: Running


class Cause(Struct, frozen=True, tag=True):
    """What post_mortem gave."""

    id: int
    text: str | None


class Failed(Struct, frozen=True, tag=True):
    """The Failure that was raised, whole."""

    id: int
    kind: Kind
    message: str
    param: str | None
    code: str | None
    retry_after: float | None
    detail: str | None
    blame: Blame


class Gone(Struct, frozen=True, tag=True):
    """That process has ended."""

    spec: Spec
    generation: int


Question = Ensure | Inquire
Notice = Found | Cause | Failed | Gone

_encode = msgspec.json.Encoder().encode
_question: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
_notice: msgspec.json.Decoder[Notice] = msgspec.json.Decoder(Notice)


class Watched(Launcher, Protocol):
    """A launcher that tells when a process ends. LocalLauncher is one."""

    def listening(self, gone: Listener) -> AbstractContextManager[None]:
        """Has `gone` called at each process's end, while the context is open."""
        ...


class _Lines(asyncio.Protocol):
    """Either end of the connection: lines in, messages out."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._open = b""  # the line that is not yet ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        *lines, self._open = (self._open + data).split(b"\n")
        for line in lines:
            self.line_received(line)

    def line_received(self, line: bytes) -> None:
        raise AssertionError("each end has its own")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def send(self, message: Question | Notice) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_encode(message) + b"\n")

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.close()
            await self.lost.wait()


# -- the supervisor's end -------------------------------------------------------------------------------------------


class LauncherServer:
    """Lets the workers use a launcher of this process, which stays its maker's to close."""

    def __init__(self, launcher: Watched) -> None:
        self._launcher = launcher
        self._connections: set[_Connection] = set()
        self._cleanup = AsyncExitStack()

    async def start(self, path: str | None = None) -> str:
        """Serves from now on, at a socket in a new directory that is ours alone, or at `path`; gives its path."""
        if path is None:
            directory = tempfile.mkdtemp(prefix="llmg-")  # mode 0700
            self._cleanup.callback(shutil.rmtree, directory)
            path = os.path.join(directory, SOCKET_NAME)
        self._cleanup.enter_context(self._launcher.listening(self._gone))
        server = await asyncio.get_running_loop().create_unix_server(self._connection, path)
        self._cleanup.callback(Path(path).unlink, missing_ok=True)  # some event loops have removed it by then
        self._cleanup.push_async_callback(server.wait_closed)
        self._cleanup.push_async_callback(self._disconnect)
        self._cleanup.callback(server.close)
        return path

    async def aclose(self) -> None:
        """Disconnects the workers: what they wait for fails."""
        await self._cleanup.aclose()

    async def _disconnect(self) -> None:
        await asyncio.gather(*(connection.aclose() for connection in list(self._connections)))

    def _connection(self) -> _Connection:
        return _Connection(self._launcher, self._connections)

    def _gone(self, spec: Spec, generation: int) -> None:
        for connection in self._connections:
            connection.send(Gone(spec, generation))


class _Connection(_Lines):
    """One worker's."""

    def __init__(self, launcher: Launcher, connections: set[_Connection]) -> None:
        super().__init__()
        self._launcher = launcher
        self._connections = connections
        self._answering: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connections.discard(self)
        for task in self._answering:
            task.cancel()

    def line_received(self, line: bytes) -> None:
        task = asyncio.create_task(self._answer(_question.decode(line)))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, question: Question) -> None:
        try:
            if isinstance(question, Ensure):
                self.send(Found(question.id, await self._launcher.ensure(question.spec)))
            else:
                text = await self._launcher.post_mortem(question.spec, question.generation)
                self.send(Cause(question.id, text))
        except Failure as failure:
            self.send(_failed(question.id, failure))
        except Exception as error:
            log.exception("the launcher failed to answer a worker")
            self.send(_failed(question.id, internal(error)))


def _failed(number: int, failure: Failure) -> Failed:
    return Failed(
        number,
        kind=failure.kind,
        message=failure.message,
        param=failure.param,
        code=failure.code,
        retry_after=failure.retry_after,
        detail=failure.detail,
        blame=failure.blame,
    )


def _failure(failed: Failed) -> Failure:
    return Failure(
        failed.kind,
        failed.message,
        param=failed.param,
        code=failed.code,
        retry_after=failed.retry_after,
        detail=failed.detail,
        blame=failed.blame,
    )


# -- the worker's end -----------------------------------------------------------------------------------------------


class RemoteLauncher:
    """See `ports.Launcher`: the one that a LauncherServer serves at `path`. It connects when it is first asked.

    When the supervisor is gone, each call fails with upstream_unavailable.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = itertools.count(1)
        self._running: dict[Spec, Running] = {}
        self._connecting = asyncio.Lock()
        self._link: _Link | None = None

    async def ensure(self, spec: Spec, /) -> Running:
        """See `ports.Launcher`."""
        running = self._running.get(spec)
        return running if running is not None else await self._found(spec)

    async def _found(self, spec: Spec) -> Running:
        notice = await self._ask(Ensure(next(self._numbers), spec))
        assert isinstance(notice, Found)
        return notice.running

    async def post_mortem(self, spec: Spec, generation: int, /) -> str | None:
        """See `ports.Launcher`."""
        notice = await self._ask(Inquire(next(self._numbers), spec, generation))
        assert isinstance(notice, Cause)
        return notice.text

    async def aclose(self) -> None:
        """Disconnects. The models go on running: they are the supervisor's."""
        if self._link is not None:
            await self._link.aclose()

    async def _ask(self, question: Question) -> Notice:
        link = await self._linked()
        notice = await link.ask(question)
        if isinstance(notice, Failed):
            raise _failure(notice)
        return notice

    async def _linked(self) -> _Link:
        async with self._connecting:
            if self._link is None or self._link.lost.is_set():
                loop = asyncio.get_running_loop()
                try:
                    _, self._link = await loop.create_unix_connection(lambda: _Link(self._running), self._path)
                except OSError as error:
                    raise _supervisor_gone(str(error)) from error
            return self._link


class _Link(_Lines):
    """The connection to the supervisor. It keeps `running` true: what is there answers, as far as is known."""

    def __init__(self, running: dict[Spec, Running]) -> None:
        super().__init__()
        self._running = running
        self._pending: dict[int, tuple[Question, asyncio.Future[Notice]]] = {}
        self._gone: dict[Spec, int] = {}  # the last generation of which that is known

    async def ask(self, question: Question) -> Notice:
        """The answer. Raises Failure (upstream_unavailable) when the connection is lost before it comes."""
        if self.lost.is_set():
            raise _supervisor_gone("the connection is lost")
        answered: asyncio.Future[Notice] = asyncio.get_running_loop().create_future()
        self._pending[question.id] = question, answered
        self.send(question)
        try:
            return await answered
        finally:
            del self._pending[question.id]

    def line_received(self, line: bytes) -> None:
        notice = _notice.decode(line)
        if isinstance(notice, Gone):
            self._forget(notice)
        elif (pending := self._pending.get(notice.id)) is not None:  # else the one who asked has left
            question, answered = pending
            if isinstance(notice, Found):
                self._remember(question.spec, notice.running)
            if not answered.done():
                answered.set_result(notice)

    def _remember(self, spec: Spec, running: Running) -> None:
        # A process may end while the answer that names it is being written: the notice of its end is here first then.
        if running.generation > self._gone.get(spec, 0):
            self._running[spec] = running

    def _forget(self, gone: Gone) -> None:
        self._gone[gone.spec] = gone.generation
        running = self._running.get(gone.spec)
        if running is not None and running.generation <= gone.generation:
            del self._running[gone.spec]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._running.clear()  # they end with the supervisor
        for _, answered in self._pending.values():
            if not answered.done():
                answered.set_exception(_supervisor_gone(str(exc or "it closed the connection")))


def _supervisor_gone(detail: str) -> Failure:
    return Failure(
        Kind.UPSTREAM_UNAVAILABLE,
        "the gateway's supervisor, which runs the local models, can't be reached",
        detail=detail,
        blame="us",
    )

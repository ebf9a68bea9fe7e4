"""The launcher that runs engines as children of this process.

Per spec there is at most one engine. Its life:

    (nothing) --ensure--> starting --loaded--> running --exit--> (nothing); the next ensure starts the next generation
                             |
                             +--failed--> cooling down --time passes--> (nothing)

A start is a task of its own, so that a caller who leaves does not take it along; it never raises, it gives a Failure.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import structlog

from llmg.core.errors import Failure, Kind, internal
from llmg.launcher.cooldown import Cooldowns, again
from llmg.launcher.engine import EXIT_ADDRESS_IN_USE, Engine, Exited
from llmg.launcher.process import Process
from llmg.ports import Clock, Running, Spec

log = structlog.get_logger("llmg.launcher")

Gone = Callable[[Spec, int], None]
"""Told, on the event loop, that the process of this spec and generation has ended."""

_PORT_ATTEMPTS: Final = 5
_NOTICE_SECONDS: Final = 1.0  # between a broken connection and the news that the process has gone
_REMEMBERED: Final = 4  # generations whose last words are kept


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalLauncher:
    """See `ports.Launcher`. One event loop's; `aclose` it at the end, or the engines are killed with the process."""

    def __init__(self, clock: Clock, *, port: Callable[[], int] = free_port) -> None:
        self._port = port
        self._cooldowns = Cooldowns(clock)
        self._running: dict[Spec, Running] = {}
        self._engines: dict[Spec, Engine] = {}
        self._starting: dict[Spec, asyncio.Task[Running | Failure]] = {}
        self._generations: dict[Spec, int] = {}  # of the last that ran
        self._dead: dict[Spec, deque[Engine]] = {}
        self._burials: set[asyncio.Task[None]] = set()
        self._listeners: list[Gone] = []
        self._closing: asyncio.Task[None] | None = None

    async def ensure(self, spec: Spec, /) -> Running:
        """See `ports.Launcher`. After a failed start it refuses another for a while, with `retry_after`."""
        running = self._running.get(spec)
        return running if running is not None else await self._started(spec)

    async def _started(self, spec: Spec) -> Running:
        task = self._starting.get(spec)
        if task is None:
            if self._closing is not None:
                raise _shutting_down()
            self._cooldowns.check(spec)
            task = self._starting[spec] = asyncio.create_task(self._start(spec), name=f"start {spec.model}")
            task.add_done_callback(lambda _: self._starting.pop(spec))
        await asyncio.wait({task})  # not `await task`: a caller that is cancelled must not cancel the others' start
        if task.cancelled():
            raise _shutting_down()
        outcome = task.result()
        if isinstance(outcome, Failure):
            raise again(outcome)
        return outcome

    async def _start(self, spec: Spec) -> Running | Failure:
        try:
            return await self._launch(spec)
        except Failure as failure:
            log.warning("a model could not be started", model=spec.model, reason=failure.message, detail=failure.detail)
            return self._cooldowns.failed(spec, failure)
        except Exception as error:
            log.exception("a model could not be started", model=spec.model)
            return self._cooldowns.failed(spec, internal(error))

    async def _launch(self, spec: Spec) -> Running:
        """The model, running. Raises Failure; then no process is left."""
        deadline = asyncio.get_running_loop().time() + spec.startup_timeout
        for _ in range(_PORT_ATTEMPTS - 1):
            with suppress(_PortTaken):
                return await self._attempt(spec, deadline)
        return await self._attempt(spec, deadline)

    async def _attempt(self, spec: Spec, deadline: float) -> Running:
        """One process: loaded and admitted, or stopped. Raises Failure; _PortTaken if another port may do better."""
        generation = self._generations.get(spec, 0) + 1
        engine = await Engine.spawn(spec, generation, self._port(), lambda process: self._exited(spec, process))
        try:
            async with asyncio.timeout_at(deadline):
                await engine.load()
            self._admit(engine)
        except TimeoutError as error:
            raise _late(engine) from error
        except Exited as error:
            await engine.process.close()
            raise _crashed(engine) from error
        finally:
            if self._engines.get(spec) is not engine:
                await engine.give_up()
        return engine.running

    def _admit(self, engine: Engine) -> None:
        """From now on it is the one that answers. Raises Exited if it has ended meanwhile."""
        if engine.process.exited.is_set():
            raise Exited
        spec = engine.spec
        self._engines[spec] = engine
        self._running[spec] = engine.running
        self._generations[spec] = engine.running.generation
        self._cooldowns.succeeded(spec)
        log.info("model loaded", model=spec.model, pid=engine.process.pid, generation=engine.running.generation)

    def _exited(self, spec: Spec, process: Process) -> None:
        """A process has ended by itself: nobody is to be sent there from now on."""
        engine = self._engines.get(spec)
        if engine is not None and engine.process is process:
            self._forget(engine)
            burial = asyncio.create_task(self._bury(engine))
            self._burials.add(burial)
            burial.add_done_callback(self._burials.discard)

    def _forget(self, engine: Engine) -> None:
        del self._engines[engine.spec], self._running[engine.spec]
        self._dead.setdefault(engine.spec, deque(maxlen=_REMEMBERED)).append(engine)
        for listener in self._listeners:
            listener(engine.spec, engine.running.generation)

    async def _bury(self, engine: Engine) -> None:
        await engine.bury()
        log.warning("a backend is gone", model=engine.spec.model, reason=engine.process.epitaph())

    async def post_mortem(self, spec: Spec, generation: int, /) -> str | None:
        """See `ports.Launcher`."""
        engine = self._find(spec, generation)
        if engine is None:
            return f"the {spec.engine} backend is not running any more"
        if not await engine.process.has_exited(_NOTICE_SECONDS):
            return None
        await engine.process.close()
        return engine.process.epitaph()

    def _find(self, spec: Spec, generation: int) -> Engine | None:
        known = [*self._dead.get(spec, ()), *([self._engines[spec]] if spec in self._engines else [])]
        return next((engine for engine in known if engine.running.generation == generation), None)

    @contextmanager
    def listening(self, gone: Gone) -> Iterator[None]:
        """Has `gone` called at each process's end, while the context is open."""
        self._listeners.append(gone)
        try:
            yield
        finally:
            self._listeners.remove(gone)

    async def aclose(self) -> None:
        """Stops all engines, at the same time, and waits until they have ended; `ensure` fails from now on.

        Each has its model unloaded (2 s), gets SIGTERM, and after 5 s SIGKILL. To be called again does no harm.
        """
        if self._closing is None:
            self._closing = self._close()
        await asyncio.shield(self._closing)

    def _close(self) -> asyncio.Task[None]:
        starting, engines = list(self._starting.values()), list(self._engines.values())
        for task in starting:
            task.cancel()
        for engine in engines:
            self._forget(engine)
        closing = asyncio.create_task(self._stop(starting, engines), name="stop all models")
        # When the event loop ends it cancels this task, too, perhaps before its first step.
        for engine in engines:
            closing.add_done_callback(engine.kill)
        return closing

    async def _stop(self, starting: Sequence[asyncio.Task[Running | Failure]], engines: Sequence[Engine]) -> None:
        stopping = (engine.stop() for engine in engines)
        for outcome in await asyncio.gather(*starting, *self._burials, *stopping, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("a backend was not stopped as it should be", exc_info=outcome)


class _PortTaken(Failure):
    """Another process was faster; another port may do."""


def _crashed(engine: Engine) -> Failure:
    process = engine.process
    make = _PortTaken if process.returncode == EXIT_ADDRESS_IN_USE else Failure
    return make(Kind.BACKEND_CRASHED, process.epitaph(" while starting"), detail=process.output())


def _late(engine: Engine) -> Failure:
    return Failure(
        Kind.UPSTREAM_TIMEOUT,
        f"{engine.process.title} was not ready within {engine.spec.startup_timeout:g} s: {engine.stage}",
        detail=engine.process.output(),
    )


def _shutting_down() -> Failure:
    return Failure(Kind.SHUTTING_DOWN, "the gateway is shutting down")

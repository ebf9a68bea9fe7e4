"""A provider that plays a script and remembers what was done to it, so that a test can wait instead of sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from msgspec import Struct

from llmg.core.context import Context
from llmg.core.events import Batch, Closed, Delta, Event, Finished, Opened, PartKind, Reason, Started
from llmg.core.request import Request
from llmg.core.usage import Usage
from llmg.ports import Answering


class Gate:
    """A place in a script where the provider waits. `reached` is set when it comes there, `open` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()

    def open(self) -> None:
        """Lets through whoever waits, and all who come later."""
        self._open.set()

    async def pass_through(self) -> None:
        """Waits until it is open."""
        self.reached.set()
        await self._open.wait()


Step: TypeAlias = Batch | Exception | Gate


class Script(Struct, frozen=True, kw_only=True):
    """One call's course: what it does when opened and when entered, and then step by step.

    A batch is given, an exception raised, a gate waited at.
    """

    steps: Sequence[Step] = ()
    at_open: Exception | None = None
    at_enter: Exception | Gate | None = None


class Call:
    """What happened to one call: what was asked, what was given, how it was left."""

    def __init__(self, request: Request, context: Context) -> None:
        self.request = request
        self.context = context
        self.entered = asyncio.Event()
        self.exited = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.exits = 0
        self.given = 0  # batches


class Scripted:
    """A `ports.Provider`. Each call plays the next script; the last one is played by all that come later.

    A sequence of steps stands for a script that has only steps.
    """

    def __init__(self, *scripts: Script | Sequence[Step]) -> None:
        self._scripts = [s if isinstance(s, Script) else Script(steps=s) for s in scripts or ((),)]
        self.calls: list[Call] = []

    def open(self, request: Request, context: Context, /) -> Answering:
        """See `ports.Provider`."""
        script = self._scripts[min(len(self.calls), len(self._scripts) - 1)]
        call = Call(request, context)
        self.calls.append(call)
        if script.at_open is not None:
            raise script.at_open
        return _Playing(script, call)


class _Playing:
    def __init__(self, script: Script, call: Call) -> None:
        self._script = script
        self._steps = iter(script.steps)
        self._call = call

    async def __aenter__(self) -> _Playing:
        assert not self._call.entered.is_set(), "entered twice"
        at_enter = self._script.at_enter
        if isinstance(at_enter, Exception):
            raise at_enter
        if at_enter is not None:
            await self._wait(at_enter)
        self._call.entered.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._call.entered.is_set(), "exited without having been entered"
        self._call.exits += 1
        self._call.exited.set()

    def __aiter__(self) -> _Playing:
        return self

    async def __anext__(self) -> Batch:
        assert not self._call.exited.is_set(), "iterated after the exit"
        for step in self._steps:
            if isinstance(step, Gate):
                await self._wait(step)
            elif isinstance(step, Exception):
                raise step
            else:
                self._call.given += 1
                return step
        raise StopAsyncIteration

    async def _wait(self, gate: Gate) -> None:
        try:
            await gate.pass_through()
        except asyncio.CancelledError:
            self._call.cancelled.set()
            raise


def saying(
    *words: str, choice: int = 0, kind: PartKind = "text", reason: Reason = "stop", usage: Usage | None = None
) -> list[list[Event]]:
    """The batches of a chat answer of one part, a word each."""
    answer: list[list[Event]] = [[Started("scripted", 1_760_000_000, "scripted-model"), Opened(choice, 0, kind)]]
    answer += [[Delta(choice, 0, word)] for word in words]
    answer.append([Closed(choice, 0), Finished(choice, reason)])
    return answer if usage is None else [*answer, [usage]]

"""The launcher of local models, there when it is needed: a reload may bring the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from llmg.boot.system import SystemClock
from llmg.ports import Running, Spec

if TYPE_CHECKING:
    from llmg.launcher.local import Gone, LocalLauncher


class LazyLauncher:
    """See `ports.Launcher`: a LocalLauncher, which brings grpc along, from the first question on."""

    def __init__(self) -> None:
        self._made: LocalLauncher | None = None
        self._listeners: list[Gone] = []
        self._stack = ExitStack()

    async def ensure(self, spec: Spec, /) -> Running:
        """See `ports.Launcher`."""
        return await self._launcher().ensure(spec)

    async def post_mortem(self, spec: Spec, generation: int, /) -> str | None:
        """See `ports.Launcher`."""
        return await self._launcher().post_mortem(spec, generation)

    @contextmanager
    def listening(self, gone: Gone) -> Iterator[None]:
        """Has `gone` called at each process's end, while the context is open."""
        self._listeners.append(gone)
        try:
            yield
        finally:
            self._listeners.remove(gone)

    async def aclose(self) -> None:
        """Stops the engines."""
        if self._made is not None:
            await self._made.aclose()
        self._stack.close()

    def _launcher(self) -> LocalLauncher:
        if self._made is None:
            from llmg.launcher.local import LocalLauncher

            self._made = LocalLauncher(SystemClock())
            self._stack.enter_context(self._made.listening(self._tell))
        return self._made

    def _tell(self, spec: Spec, generation: int) -> None:
        for gone in list(self._listeners):
            gone(spec, generation)

"""This process's catalog, kept at what the store holds, whoever changed that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import structlog

from llmg.core.errors import Failure, Kind, internal
from llmg.ports import CatalogStore, Document

log = structlog.get_logger("llmg.catalog")


class Following:
    """Takes over what a store holds."""

    def __init__(
        self,
        store: CatalogStore,
        apply: Callable[[dict[str, Any], int], Awaitable[None]],
        *,
        held: Document | None = None,
        again: float = 0.5,
    ) -> None:
        """`apply(tenants, version)` makes it this process's catalog, or raises Failure and leaves all as it was.
        `held`: what was taken over already. `again`: seconds until a store that told of a change, and then could not be
        reached, is asked once more."""
        self._again = again
        self._store = store
        self._apply = apply
        self._lock = asyncio.Lock()
        self._held = held
        self._refused: int | None = None  # the version that could not be taken over, if that was the latest
        self._reconsider = asyncio.Event()

    @property
    def version(self) -> int:
        """Of what was taken over; -1: nothing was."""
        return -1 if self._held is None else self._held.version

    async def in_force(self) -> Document:
        """What holds here: what the store holds now, or, while that can't be taken over, what did before it.

        Raises Failure where nothing does yet.
        """
        try:
            await self.refresh()
        except Failure:  # why, the watch has told
            if self._held is None:
                raise
        assert self._held is not None
        return self._held

    async def refresh(self) -> None:
        """Takes over what the store holds now, where it is something else. Raises Failure, and leaves all as it was."""
        async with self._lock:  # so that what was loaded last is applied last
            document = await self._store.load()
            if document != self._held:  # a store that was emptied and filled again counts from 1
                self._refused = document.version
                await self._apply(document.tenants, document.version)
                self._held = document
            self._refused = None

    def reconsider(self) -> None:
        """What catalogs have to fit is another: one that was refused may hold now."""
        self._reconsider.set()

    async def run(self) -> NoReturn:
        """Takes over each change within a second of it, until it is cancelled. Whatever goes wrong: a key that was
        revoked must not be good for as long as the process lives."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                await self._reconsider.wait()
                self._reconsider.clear()
                if self._refused is not None:
                    await self._changed(self._refused)

    async def _watch(self) -> NoReturn:
        while True:
            try:
                await self._store.watch(self.version, self._changed)
            except Exception:
                log.exception("the catalog could not be watched", again_in=self._again)
                await asyncio.sleep(self._again)

    async def _changed(self, version: int) -> None:
        """Tries until it is known what the store holds: it tells of a change once."""
        while True:
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - the rim: the next catalog may be a better one
                failure = error if isinstance(error, Failure) else internal(error)
                words = "the catalog was not taken over"
                log.error(words, version=version, reason=failure.message, detail=failure.detail)
                if failure.kind is not Kind.UPSTREAM_UNAVAILABLE:
                    return
                await asyncio.sleep(self._again)
            else:
                log.info("the catalog was taken over", version=self.version)
                return

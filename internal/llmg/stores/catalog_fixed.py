"""The catalog of the configuration file: it can be read here, and changed there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

from llmg.core.errors import Failure, Kind
from llmg.ports import AuditEntry, Document

_WORDS = (
    "the catalog is in the configuration file: edit it there, or set `catalog.file` or `catalog.redis` to edit it here"
)


class FixedCatalog:
    """See CatalogStore. There is no log of changes that never are."""

    def __init__(self, tenants: Callable[[], dict[str, Any]]) -> None:
        """`tenants` gives the configuration's section, as it is now. Called on a thread: it may be large."""
        self._tenants = tenants

    async def load(self) -> Document:
        """See CatalogStore."""
        return Document(0, await asyncio.to_thread(self._tenants))

    async def save(self, document: Document, entry: AuditEntry, /) -> None:
        """See CatalogStore."""
        raise Failure(Kind.METHOD_NOT_ALLOWED, _WORDS)

    async def watch(self, seen: int, changed: Callable[[int], Awaitable[None]], /) -> NoReturn:
        """See CatalogStore. Who reads the configuration file tells of its changes."""
        while True:
            await asyncio.Event().wait()

    async def append(self, entry: AuditEntry, /) -> None:
        """See CatalogStore."""

    async def entries(self, size: int, token: str, /) -> tuple[Sequence[AuditEntry], str]:
        """See CatalogStore."""
        return (), ""

"""The log of the administration: a line for each call of a method, whoever asked, by whichever door.

Each line goes to the process's own log. The store keeps those of changes and of what was refused, for all processes;
of those who are no administrators only so many, as whoever has no key must not be able to fill it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog
from msgspec.structs import asdict, replace

from llmg.core.context import ADMIN, Context, Principal
from llmg.core.errors import Failure, Kind, internal
from llmg.ports import AuditEntry, CatalogStore, Clock
from llmg.services.admin.names import KEYS

log = structlog.get_logger("llmg.audit")

READS: Final = frozenset({"ListLevels", "GetLevel", "ListKeys", "ListAuditEntries"})
"""The methods that change nothing."""
OK: Final = "ok"
ANONYMOUS: Final = "anonymous"
"""The actor where no valid key was shown."""
OUTSIDERS: Final = 60
"""How many entries are kept of those who are no administrators: at once, and a minute."""

_LONGEST: Final = 5000  # characters of a resource: more than any level's name can have


class Call:
    """One call, until it is known what became of it: `entry` is what is known by now."""

    __slots__ = ("entry",)

    def __init__(self, entry: AuditEntry) -> None:
        self.entry = entry


class Audit:
    """Writes it."""

    def __init__(self, store: CatalogStore, version: Callable[[], int], clock: Clock) -> None:
        """`version` gives that of the catalog in force here."""
        self._store = store
        self._version = version
        self._clock = clock
        self._left = float(OUTSIDERS)
        self._counted = clock.monotonic()

    @asynccontextmanager
    async def call(self, context: Context, method: str, resource: str) -> AsyncIterator[Call]:
        """One call of a method that was reached. What went well is in the store already, if it belongs there."""
        context.audited = True
        call = Call(self._entry(context, method, resource))
        try:
            yield call
        except Failure as failure:
            await self._refuse(call.entry, context, failure)
            raise
        except asyncio.CancelledError:
            is_saved = call.entry.before != call.entry.after  # with this entry, by which it is in the log as made
            _tell(call.entry if is_saved else replace(call.entry, outcome=Kind.CANCELLED.value))
            raise
        except Exception as error:
            mistake = internal(error)
            await self._refuse(call.entry, context, mistake)
            raise mistake from error
        _tell(call.entry)

    async def refused(self, context: Context, method: str, resource: str, failure: Failure) -> None:
        """A call that a door refused. One that was made is in the log."""
        if not context.audited:
            await self._refuse(self._entry(context, method, resource), context, failure)

    def _entry(self, context: Context, method: str, resource: str) -> AuditEntry:
        version = max(0, self._version())
        return AuditEntry(
            time=self._clock.time(),
            actor=_actor(context.principal),
            method=method,
            resource="".join(char if char.isprintable() else "?" for char in resource[:_LONGEST]),
            before=version,
            after=version,
            request_id=context.request_id,
            door=context.door,
        )

    async def _refuse(self, entry: AuditEntry, context: Context, failure: Failure) -> None:
        """What was refused is refused, whether or not the store can be written."""
        entry = replace(entry, outcome=failure.kind.value)
        _tell(entry)
        if not self._is_kept(entry.method, ADMIN in context.principal.roles):
            return
        try:
            await self._store.append(entry)
        except Exception as error:  # noqa: BLE001 - it is in the process's own log, and the answer stays what it is
            other = error if isinstance(error, Failure) else internal(error)
            log.warning("the audit log can't be written", reason=other.message, detail=other.detail)

    def _is_kept(self, method: str, by_admin: bool) -> bool:
        if by_admin:
            return method not in READS
        now = self._clock.monotonic()
        self._left = min(OUTSIDERS, self._left + (now - self._counted) * OUTSIDERS / 60.0)
        self._counted = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _tell(entry: AuditEntry) -> None:
    say = log.info if entry.outcome == OK else log.warning
    say("audit", **asdict(entry))


def _actor(principal: Principal) -> str:
    """An administrator's key by its name, any other by its path: they may be called the same."""
    if ADMIN in principal.roles:
        return principal.key_id
    if not principal.key_id:
        return ANONYMOUS
    level = principal.levels[-1].name if principal.levels else ""
    return f"{level}/{KEYS}/{principal.key_id}".removeprefix("/")

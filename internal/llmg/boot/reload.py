"""The configuration as it changes: its files are watched, read again, checked whole, and then put in force at once.

What is wrong is logged, and the old one holds. What can't change while the gateway runs is logged, too; the rest holds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import structlog
from msgspec import Struct
from msgspec.structs import replace

from llmg.boot import collector
from llmg.boot.exposure import Exposed
from llmg.boot.settings import Settings, SettingsError, check_tenants, load, watched
from llmg.core.errors import Failure

log = structlog.get_logger("llmg.reload")

CHANGE: Final = ("keys", "labels", "limits", "admin", "tenants", "providers", "models", "models_dir")
"""The sections that may change while the gateway runs."""

_REFUSED: Final = "the new configuration can't be used, the old one holds"
_EVERY: Final = 1.0  # seconds between looks at the files
_SETTLED: Final = 0.1  # seconds for which a file that was written must stay as it is: it may be half of it

Look = tuple[tuple[int, ...] | None, ...]
"""What tells a file from what it was, of each file; None: it is not there."""

Sleep = Callable[[float], Awaitable[None]]


class Source(Struct, frozen=True):
    """Where the configuration came from. `config`: the file that was named; `folder`: where names are looked up;
    `read`: what was read; `look`: how the files were then."""

    config: Path | None
    folder: Path
    read: Settings
    look: Look


def read(config: Path | None, folder: Path | None = None) -> Source:
    """Reads it. Raises SettingsError."""
    folder = folder or Path.cwd()
    look = _look(config, folder)  # before it is read: what changes meanwhile is seen as a change
    return Source(config, folder, load(config, cwd=folder), look)


def _look(config: Path | None, folder: Path) -> Look:
    return tuple(_identity(folder / file) for file in watched(config))


def _identity(file: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)  # of what a link leads to: in Kubernetes that is exchanged
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class InForce(Protocol):
    """What can be exchanged while requests run."""

    turn: asyncio.Lock
    """Held from the look at what is in force to the change."""

    @property
    def settings(self) -> Settings:
        """Those in force."""
        ...

    async def put(self, settings: Settings, version: str) -> None:
        """Puts others in force, all at once or not at all. Raises SettingsError, Failure or Exposed."""
        ...


class Reloader:
    """Keeps what is in force as the configuration says."""

    def __init__(
        self,
        source: Source,
        in_force: InForce,
        *,
        reloaded: Callable[[], None] = lambda: None,
        sleep: Sleep = asyncio.sleep,
        every: float = _EVERY,
    ) -> None:
        """`reloaded` is called when another configuration is in force. `every`: seconds between looks at the files."""
        self.source = source
        self._started = source.read
        self._in_force = in_force
        self._reloaded = reloaded
        self._sleep = sleep
        self._every = every
        self._refused_by: Settings | None = None  # what was in force when the files could not be used, if so
        self._asked = asyncio.Event()
        self._count = 0

    async def run(self) -> None:
        """Looks after the files, until it is cancelled."""
        while True:
            await self._moment()
            look = _look(self.source.config, self.source.folder)
            if look != self.source.look or self._asked.is_set() or self._may_fit_now():
                while (again := await self._later(look)) != look:
                    look = again
                self._asked.clear()
                await self.reload()

    def ask(self) -> None:
        """The files are to be read at once, whether they have changed or not."""
        self._asked.set()

    async def reload(self) -> bool:
        """Reads the files. Was what they say put in force?"""
        source, look = self.source, _look(self.source.config, self.source.folder)
        refused = self._refused_by is not None
        self._refused_by = self._in_force.settings
        self.source = replace(source, look=look)  # a bad file is read again when it is another
        try:
            with collector.paused():
                new = await asyncio.to_thread(load, source.config, cwd=source.folder)
                changed = await self._put(new)
        except (SettingsError, Failure, Exposed) as error:
            log.error(_REFUSED, reason=str(error))
            return False
        except Exception:
            log.exception(_REFUSED)  # our own mistake, which must not end the watch
            return False
        self.source = Source(source.config, source.folder, new, look)
        self._refused_by = None
        if refused and not changed:
            log.info("the configuration is as it was, and in force")
        return True

    def _may_fit_now(self) -> bool:
        """Could the files not be used, and has the catalog from elsewhere, which they have to fit, changed since?"""
        return self._refused_by is not None and self._refused_by is not self._in_force.settings

    async def _put(self, new: Settings) -> bool:
        """Was anything changed?"""
        async with self._in_force.turn:
            old = self._in_force.settings
            names = [name for name in CHANGE if name != "tenants" or old.catalog is None]
            settings = old.model_copy(update={name: getattr(new, name) for name in names})
            changed = await asyncio.to_thread(differences, old, settings)
            if changed:
                if old.catalog is not None:
                    await asyncio.to_thread(check_tenants, settings, "catalog")
                self._count += 1
                await self._in_force.put(settings, f"reload {self._count}")
        rest = self._started.model_copy(update={name: getattr(new, name) for name in CHANGE})
        restart = differences(rest, new)
        if changed:
            log.info("configuration reloaded", changed=changed)
            self._reloaded()
        if restart:
            log.warning("some of the new configuration needs a restart", settings=restart)
        return bool(changed)

    async def _moment(self) -> None:
        """Until it is time to look again."""
        asked = asyncio.ensure_future(self._asked.wait())
        slept = asyncio.ensure_future(self._sleep(self._every))
        try:
            await asyncio.wait({asked, slept}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (asked, slept):
                task.cancel()

    async def _later(self, look: Look) -> Look:
        await self._sleep(_SETTLED)
        return _look(self.source.config, self.source.folder)


def differences(old: Settings, new: Settings) -> list[str]:
    """The settings that differ: `http.server_addr`; of what has names of its own, the section: `models`."""
    found = []
    for name in Settings.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before is not after and before != after:
            fields = getattr(type(after), "model_fields", {}) if type(before) is type(after) else {}
            inner = [f"{name}.{field}" for field in fields if getattr(before, field) != getattr(after, field)]
            found += inner or [name]
    return found

"""What is in force in this process: the settings, and the catalog that was made of them. Exchanged at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from msgspec.structs import replace

from llmg.boot import build, collector
from llmg.boot.catalog import compile_catalog
from llmg.boot.exposure import check_closed, check_exposure
from llmg.boot.scopes import LevelScope, Scopes
from llmg.boot.settings import Settings, with_tenants
from llmg.boot.settings.levels import check_together, names
from llmg.ports import Clock
from llmg.routing.catalog import Catalog
from llmg.routing.models import Group

log = structlog.get_logger("llmg.catalog")


class Current:
    """The one place where it is looked up. A request keeps the scope that it was let in with."""

    def __init__(self, needs: build.Needs, clock: Clock) -> None:
        """Of the settings in `needs`, which have been checked. Raises Failure where a model can't be made."""
        self.turn = asyncio.Lock()
        """Held from the look at what is in force to the change."""
        self._needs = needs
        self._clock = clock
        self._scopes, self.catalog = compiled(needs, clock)
        _make(self._scopes, self.catalog)

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._needs.settings

    @property
    def scope(self) -> LevelScope:
        """What those may ask for who belong to no level but the root."""
        assert self.catalog.scope is not None
        return self.catalog.scope

    def find(self, name: str, /) -> Group:
        """A model of the root by its name. Raises Failure (model_not_found)."""
        return self.scope.find(name)

    async def put(self, settings: Settings, version: str) -> None:
        """Puts others in force, all at once or not at all. Raises SettingsError, Failure or Exposed."""
        check_closed(self.settings, settings)
        await asyncio.to_thread(check, settings)
        needs = replace(self._needs, settings=settings)
        scopes, catalog = await asyncio.to_thread(compiled, needs, self._clock, version)
        before = self._scopes
        try:
            _make(scopes, catalog)
        except BaseException:
            before.take_over(needs.transport)
            raise
        self._needs, self._scopes, self.catalog = needs, scopes, catalog
        scopes.take_over(needs.transport)

    async def apply_tenants(self, tenants: Mapping[str, Any], version: str) -> None:
        """Puts a catalog from elsewhere in force: the section `tenants`, as plain values.

        Raises SettingsError, Failure or Exposed, and leaves all as it was.
        """
        async with self.turn:
            with collector.paused():
                settings = await asyncio.to_thread(with_tenants, self.settings, tenants, f"catalog {version}")
                await self.put(settings, version)
        log.info("catalog in force", version=version, keys=len(self.catalog))


def check(settings: Settings) -> None:
    """What only this machine knows to be right or wrong. Raises SettingsError, Failure or Exposed."""
    check_exposure(settings)
    check_together(settings)
    build.check(settings)


def compiled(needs: build.Needs, clock: Clock, version: str = "") -> tuple[Scopes, Catalog]:
    """What may be asked for by whom. Pure: nothing is made of it yet, so it may take its time on a thread."""
    levels, _ = names(needs.settings)
    scopes = build.make_scopes(needs, [*dict.fromkeys(levels.values())], int(clock.time()))
    return scopes, compile_catalog(needs.settings, levels, scopes.scope, version)


def _make(scopes: Scopes, catalog: Catalog) -> None:
    """Makes the root's models, which shows what can't be made. Those of other levels wait until they are asked for."""
    assert catalog.scope is not None
    scopes.expect()
    catalog.scope.declared()

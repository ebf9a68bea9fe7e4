"""The models of a configuration, without a gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmg.boot import build
from llmg.boot.scopes import LevelScope
from llmg.boot.settings import Settings
from llmg.ports import Launcher
from llmg.providers.http import Transport
from llmg.routing.catalog import Names


def root_models(config: Mapping[str, Any], launcher: Launcher | None = None) -> LevelScope:
    """Those of the root."""
    settings = Settings(**config)
    root = Names(own=settings.models)
    scopes = build.make_scopes(build.Needs(settings, Transport(), launcher), [root], 1_760_000_000)
    scope = scopes.scope(root, settings.providers)
    scopes.expect()
    return scope

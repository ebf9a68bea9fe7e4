"""From settings to the catalog: each level's names, scope and limits, and whose each key is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from llmg.boot.exposure import everybody
from llmg.boot.limits import limits_of
from llmg.boot.scopes import LevelScope, Providers
from llmg.boot.settings import Settings
from llmg.boot.settings.catalog import Endpoint as EndpointSection
from llmg.boot.settings.catalog import EndpointKey, walk
from llmg.boot.settings.catalog import Level as Section
from llmg.boot.settings.levels import LevelNames
from llmg.boot.settings.models import FlatModel
from llmg.boot.settings.problems import Keys
from llmg.core.context import ADMIN, Principal
from llmg.core.levels import Level
from llmg.routing.catalog import Catalog, Endpoint, Key, Names
from llmg.services.admission import digest

MakeScope = Callable[[Names[FlatModel], Providers], LevelScope]

_ADMIN: Final = frozenset({ADMIN})


class Place(Struct, frozen=True):
    """A level, with all that those below it go by."""

    names: Names[FlatModel]
    providers: Providers
    scope: LevelScope
    levels: tuple[Level, ...]
    labels: dict[str, str]


def compile_catalog(settings: Settings, levels: LevelNames, make_scope: MakeScope, version: str = "") -> Catalog:
    """The catalog of these settings, which have been checked. `levels`: what names mean at each; `make_scope` makes
    what may be asked for at one."""
    root = _root(settings, levels[()], make_scope)
    places: dict[Keys, Place] = {(): root}
    keys = _flat_keys(settings, root)
    endpoints: dict[str, Endpoint] = {}
    for at, section in walk(settings.tenants):
        place = places[at] = _within(places[at[:-2]], at, section, levels[at], make_scope)
        if isinstance(section, EndpointSection):
            endpoint = Endpoint(name=place.levels[-1].name, alias=section.alias or "", levels=place.levels)
            endpoints[endpoint.name] = endpoint
            for key in section.keys:
                keys[key.digest] = _key(key, at, place)
    anonymous = Principal(levels=root.levels, scope=root.scope) if everybody(settings) else None
    scopes = {place.levels[-1].name: place.scope for place in places.values()}
    return Catalog(version, root.scope, keys, endpoints, anonymous, scopes)


def _root(settings: Settings, names: Names[FlatModel], make_scope: MakeScope) -> Place:
    labels = dict(settings.labels)
    scope = make_scope(names, settings.providers)
    return Place(names, settings.providers, scope, (_level((), settings, labels),), labels)


def _flat_keys(settings: Settings, root: Place) -> dict[bytes, Key]:
    """Those of the root itself."""
    found = {}
    for roles, keys in ((frozenset[str](), settings.keys), (_ADMIN, settings.admin.keys)):
        for name, key in keys.items():
            principal = Principal(key_id=name, roles=roles, levels=root.levels, scope=root.scope)
            found[digest(key.get_secret_value())] = Key(principal)
    return found


def _within(above: Place, at: Keys, section: Section, names: Names[FlatModel], make_scope: MakeScope) -> Place:
    """What a level says of itself is its own; the rest is shared with the level above."""
    providers, scope, labels = above.providers, above.scope, above.labels
    if section.upstreams:
        providers = {**providers, **{name: own.over(providers[name]) for name, own in section.upstreams.items()}}
    if names is not above.names or providers is not above.providers:
        scope = make_scope(names, providers)
    if section.labels:
        labels = {**labels, **section.labels}
    return Place(names, providers, scope, (*above.levels, _level(at, section, labels)), labels)


def _level(at: Keys, section: Section | Settings, labels: Mapping[str, str]) -> Level:
    return Level(name="/".join(map(str, at)), limits=limits_of(section.limits), labels=tuple(labels.items()))


def _key(key: EndpointKey, at: Keys, place: Place) -> Key:
    tenant, team, *groups, endpoint = map(str, at[1::2])
    principal = Principal(
        tenant=tenant,
        team=team,
        groups=tuple(groups),
        endpoint=endpoint,
        key_id=key.id,
        levels=place.levels,
        scope=place.scope,
    )
    if key.expires is None:
        return Key(principal, revoked=key.revoked)
    return Key(principal, key.expires.timestamp(), key.revoked)

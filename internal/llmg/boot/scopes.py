"""What may be asked for at each level of the catalog: its models, each made when it is first asked for.

A model is made once for all levels at which it means the same: those that inherit it, and have the same providers for
its targets. Its fallbacks are what their names mean where the model is defined.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from llmg.boot.live import Definition, Live, Upstream
from llmg.boot.settings import Provider
from llmg.boot.settings.fingerprint import fingerprint
from llmg.boot.settings.models import FlatModel
from llmg.boot.settings.providers import ResilienceOverrides
from llmg.providers.http import Transport
from llmg.routing.catalog import Names, Scope
from llmg.routing.models import Group, Target, only

Providers = Mapping[str, Provider]
"""The providers as a level has them, by their names."""

LevelScope = Scope[FlatModel]

_DIRECT: Final = 256  # PROVIDER/MODEL names whose targets are kept: clients make them up


class Make(Struct, frozen=True):
    """How things are made: a model but for its fallbacks, given its name and its providers; a target that no model
    declares. `ground`: the fingerprint of what else they depend on."""

    group: Callable[[str, FlatModel, Callable[[str], Upstream]], Group]
    target: Callable[[Upstream, str], Target]
    ground: bytes


class Home(Struct, frozen=True):
    """Where a model is defined. Its aliases are the same model."""

    names: Names[FlatModel]
    name: str
    definition: Definition


class Scopes:
    """Makes the scopes of one configuration."""

    def __init__(self, live: Live, levels: Iterable[Names[FlatModel]], make: Make) -> None:
        """`levels`: all that have names, those above before those below."""
        self._live = live
        self._make = make
        self._homes: dict[int, Home] = {}  # by the identity of models, which the names keep
        self._sites: dict[int, _Site] = {}  # by the identity of providers, which the sites keep
        self._ids: dict[tuple[str, int], bytes] = {}  # likewise
        self._declared: dict[str, dict[str, set[ResilienceOverrides]]] = {}
        for names in levels:
            for name, model in names.own.items():
                if id(model) not in self._homes:
                    print = fingerprint(model, make.ground)
                    self._homes[id(model)] = Home(names, name, Definition(names.path, name, print))
                    for target in model.targets:
                        models = self._declared.setdefault(target.provider, {})
                        models.setdefault(target.model, set()).add(target.resilience)

    def scope(self, names: Names[FlatModel], providers: Providers) -> LevelScope:
        """What may be asked for where names and providers are these."""
        site = self._sites.get(id(providers))
        if site is None:
            ids = {name: self._id(name, config) for name, config in providers.items()}
            site = self._sites[id(providers)] = _Site(self._live, self._make, self._homes, providers, ids)
        return Scope(names, site.named, site.direct)

    def expect(self) -> None:
        """From now on, what is made is kept: when all scopes are made, and before the first model is."""
        self._live.expect(self._definitions(), self._ids.values(), self._declared)

    def take_over(self, transport: Transport) -> None:
        """From now on, nothing is kept that only other configurations need."""
        self._live.keep(self._definitions(), self._ids.values(), self._declared, transport)

    def _definitions(self) -> Iterator[Definition]:
        return (home.definition for home in self._homes.values())

    def _id(self, name: str, config: Provider) -> bytes:
        """The same where name and configuration are."""
        known = self._ids.get((name, id(config)))
        if known is None:
            known = self._ids[name, id(config)] = fingerprint(name, config)
        return known


class _Site:
    """Some levels at which the providers are the same, and their models."""

    def __init__(
        self, live: Live, make: Make, homes: Mapping[int, Home], providers: Providers, ids: Mapping[str, bytes]
    ) -> None:
        self._live = live
        self._make = make
        self._homes = homes
        self._providers = providers
        self._ids = ids
        self._upstreams: dict[str, Upstream] = {}
        self._targets: OrderedDict[str, Target] = OrderedDict()  # those asked for last at the end

    def named(self, names: Names[FlatModel], name: str) -> Group:
        """What a level defines by this name. Nothing here keeps it, as it keeps this by its fallbacks: what belongs to
        a configuration has no cycles."""
        model = names.own[name]
        home = self._homes[id(model)]
        used = dict.fromkeys(target.provider for target in model.targets)
        ids = tuple(self._upstream(provider).id for provider in used)
        group = self._live.group(home.definition, ids, lambda: self._make.group(home.name, model, self._upstream))
        fallbacks = self._fallbacks(home)
        if not fallbacks:
            return group if group.name == name else replace(group, name=name)

        def find(fallback: str) -> Group:
            where = fallbacks[fallback]
            found = self.direct(fallback) if where is None else self.named(where, fallback)
            assert found is not None, fallback  # the configuration has been checked
            return found

        return replace(group, name=name, fallbacks=tuple(fallbacks), find=find)

    def direct(self, name: str) -> Group | None:
        """PROVIDER/MODEL; None: it is no such name."""
        provider, slash, model = name.partition("/")
        if provider not in self._providers or not slash or not model:
            return None
        target = self._targets.pop(name, None)
        if target is None:
            target = self._make.target(self._upstream(provider), model)
            if len(self._targets) >= _DIRECT:
                self._targets.popitem(last=False)
        self._targets[name] = target
        return only(name, target)

    def _fallbacks(self, start: Home) -> dict[str, Names[FlatModel] | None]:
        """A model's fallbacks, after each of them its own: each name once, with the level that defines it (None:
        PROVIDER/MODEL), and never the model itself."""
        found: dict[str, Names[FlatModel] | None] = {}
        self._add_fallbacks(start, start, found)
        return found

    def _add_fallbacks(self, of: Home, start: Home, found: dict[str, Names[FlatModel] | None]) -> None:
        for name in of.names.own[of.name].fallbacks:
            where = of.names.refer(name, of.name)
            defined = None if where is None else self._homes[id(where.own[name])]
            if name not in found and defined is not start:
                found[name] = where
                if defined is not None:
                    self._add_fallbacks(defined, start, found)

    def _upstream(self, provider: str) -> Upstream:
        upstream = self._upstreams.get(provider)
        if upstream is None:
            upstream = self._upstreams[provider] = self._live.upstream(
                self._ids[provider], provider, self._providers[provider]
            )
        return upstream

"""What lives longer than a configuration: connections, what is known of targets, what is counted for models.

Each is kept by the configuration that it was made for. So what a reload does not change goes on as it was, and levels
of the catalog for which a provider is the same share what there is of it. What no model names any more is forgotten, as
are models that only clients name, when there are many of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from llmg.boot.resilience import State, checked, make_state
from llmg.boot.settings import BackendProvider, EchoProvider, Provider
from llmg.boot.settings.providers import Resilience, ResilienceOverrides
from llmg.providers.http import Origin, Transport
from llmg.routing.models import Group

_UNDECLARED: Final = 256  # models of each provider that only clients name, and of which something is kept

Declared = Mapping[str, Mapping[str, set[ResilienceOverrides]]]
"""The targets of all models: by provider and model, what differs of their resilience."""


class Upstream:
    """A provider as it is at some level: its connections, and what is known of its models."""

    def __init__(self, name: str, config: Provider, id: bytes) -> None:
        """`id`: see Live."""
        self.name = name
        self.config = config
        self.id = id
        self.kept = True  # is it configured? If not, requests that began before use it up
        self.origin: Origin | None = None  # of those that speak HTTP
        self.declared: Mapping[str, set[ResilienceOverrides]] = {}  # see Declared
        self.states: dict[tuple[str, Resilience], State] = {}  # of these
        self.changes = 0  # of the states
        self.checked = checked(config)
        self.resilience = Resilience() if isinstance(config, EchoProvider) else config.resilience
        self._others: OrderedDict[tuple[str, Resilience], State] = OrderedDict()  # those asked for last at the end

    def state(self, model: str, own: ResilienceOverrides | None = None) -> State:
        """What is known of a model. `own`: what differs from the provider's resilience; where something does, it is
        known apart."""
        known = model, self.resilience if own is None else self._with(own)
        state = self.states.get(known)
        if state is None:
            state = self._others.pop(known, None) or make_state(known[1], self.name, model)
            if self._is_declared(known):
                self.states[known] = state
                self.changes += 1
            else:
                self._add_other(known, state)
        return state

    def settle(self) -> None:
        """Other models are declared: what the others have, which clients may still name, is no longer kept for ever."""
        for known in [known for known in self.states if not self._is_declared(known)]:
            self._add_other(known, self.states.pop(known))
            self.changes += 1

    def _is_declared(self, known: tuple[str, Resilience]) -> bool:
        model, resilience = known
        return any(self._with(own) == resilience for own in self.declared.get(model, ()))

    def _with(self, own: ResilienceOverrides) -> Resilience:
        return own.over(self.resilience) if own.model_fields_set else self.resilience

    def _add_other(self, known: tuple[str, Resilience], state: State) -> None:
        self._others[known] = state
        if len(self._others) > _UNDECLARED:
            self._others.popitem(last=False)


class Definition(Struct, frozen=True):
    """What a group's counters belong to: the level and name that define the model, and the fingerprint of it all."""

    path: str
    name: str
    print: bytes


class Live:
    """All of it. In one event loop.

    A request that was let in before a reload may ask for what only the old configuration has: that is made for it, and
    not kept here.
    """

    def __init__(self) -> None:
        self.channels: Any = None  # providers.backend.Channels: made with the first backend, as it brings grpc along
        self.changed: Callable[[], None] = lambda: None
        """Called when a model was made, or things were forgotten."""
        self._upstreams: dict[bytes, Upstream] = {}
        self._groups: dict[tuple[Definition, tuple[bytes, ...]], Group] = {}
        self._definitions: set[Definition] = set()  # of what is configured, and so is kept
        self._ids: dict[bytes, None] = {}  # likewise, those above before those below
        self._declared: dict[str, dict[str, set[ResilienceOverrides]]] = {}  # likewise

    def upstreams(self) -> Iterator[Upstream]:
        """All that were asked for, and still are configured: those above before those below."""
        return (self._upstreams[id] for id in self._ids if id in self._upstreams)

    def upstream(self, id: bytes, name: str, config: Provider) -> Upstream:
        """The provider of that name and configuration. `id`: the same where both are."""
        upstream = self._upstreams.get(id)
        if upstream is None:
            upstream = Upstream(name, config, id)
            if id in self._ids:
                self._upstreams[id] = upstream
                upstream.declared = self._declared.get(name, {})
            else:
                upstream.kept = False
        return upstream

    def group(self, definition: Definition, upstreams: tuple[bytes, ...], make: Callable[[], Group]) -> Group:
        """The model of that definition, with the providers of those ids for its targets."""
        group = self._groups.get((definition, upstreams))
        if group is None:
            group = make()
            if definition in self._definitions and all(id in self._ids for id in upstreams):
                self._groups[definition, upstreams] = group
                self.changed()
        return group

    def expect(self, definitions: Iterable[Definition], upstreams: Iterable[bytes], declared: Declared) -> None:
        """These may be kept, too, from now on."""
        self._definitions |= set(definitions)
        self._ids |= dict.fromkeys(upstreams)
        for provider, models in declared.items():
            known = self._declared.setdefault(provider, {})
            for model, owns in models.items():
                known[model] = known.get(model, set()) | owns
        self._declare()

    def keep(
        self, definitions: Iterable[Definition], upstreams: Iterable[bytes], declared: Declared, transport: Transport
    ) -> None:
        """Forgets everything else. Requests under way have what they need; connections that are idle are closed.

        `upstreams`: those above before those below."""
        self._definitions, self._ids = set(definitions), dict.fromkeys(upstreams)
        self._groups = {
            key: group
            for key, group in self._groups.items()
            if key[0] in self._definitions and all(id in self._ids for id in key[1])
        }
        gone = [self._upstreams.pop(id) for id in self._upstreams.keys() - self._ids.keys()]
        for upstream in gone:
            upstream.kept = False
            if upstream.origin is not None:
                transport.retire(upstream.origin)
        self._declared = {provider: dict(models) for provider, models in declared.items()}
        self._declare()
        if self.channels is not None:
            for address in _addresses(gone) - _addresses(self.upstreams()):
                self.channels.retire(address)
        self.changed()

    def _declare(self) -> None:
        for upstream in self._upstreams.values():
            upstream.declared = self._declared.get(upstream.name, {})
            upstream.settle()


def _addresses(upstreams: Iterable[Upstream]) -> set[str]:
    """Of backends that run elsewhere."""
    configs = [upstream.config for upstream in upstreams]
    return {config.address for config in configs if isinstance(config, BackendProvider) and config.address is not None}

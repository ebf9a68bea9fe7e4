"""What lives longer than a configuration: connections, what is known of targets, what is counted for models.

Each is kept by the configuration that it was made for. So what a reload does not change goes on as it was, and levels
of the catalog for which a provider is the same share what there is of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct

from llmg.boot.resilience import State, checked, make_state
from llmg.boot.settings import BackendProvider, EchoProvider, Provider
from llmg.boot.settings.providers import Resilience, ResilienceOverrides
from llmg.providers.http import Origin, Transport
from llmg.routing.models import Group

_UNDECLARED: Final = 256  # models of each provider that only clients name, and of which something is kept


class Upstream:
    """A provider as it is at some level: its connections, and what is known of its models."""

    def __init__(self, name: str, config: Provider, id: bytes) -> None:
        """`id`: see Live."""
        self.name = name
        self.config = config
        self.id = id
        self.kept = True  # is it configured? If not, requests that began before use it up
        self.origin: Origin | None = None  # of those that speak HTTP
        self.states: dict[tuple[str, Resilience], State] = {}  # of the declared models, as they are configured
        self.checked = checked(config)
        self.resilience = Resilience() if isinstance(config, EchoProvider) else config.resilience
        self._others = lru_cache(_UNDECLARED)(lambda model: make_state(self.resilience))

    def state(self, model: str, own: ResilienceOverrides | None = None, *, declared: bool) -> State:
        """What is known of a model; `declared` in the configuration, or only named by a client. `own`: what differs
        from the provider's; where something does, it is known apart."""
        resilience = self.resilience if own is None or not own.model_fields_set else own.over(self.resilience)
        state = self.states.get((model, resilience))
        if state is None:
            state = self._others(model) if resilience == self.resilience else make_state(resilience)
            if declared:
                self.states[model, resilience] = state
        return state


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

    def expect(self, definitions: Iterable[Definition], upstreams: Iterable[bytes]) -> None:
        """These may be kept, too, from now on."""
        self._definitions |= set(definitions)
        self._ids |= dict.fromkeys(upstreams)

    def keep(self, definitions: Iterable[Definition], upstreams: Iterable[bytes], transport: Transport) -> None:
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
        if self.channels is not None:
            for address in _addresses(gone) - _addresses(self.upstreams()):
                self.channels.retire(address)
        self.changed()


def _addresses(upstreams: Iterable[Upstream]) -> set[str]:
    """Of backends that run elsewhere."""
    configs = [upstream.config for upstream in upstreams]
    return {config.address for config in configs if isinstance(config, BackendProvider) and config.address is not None}

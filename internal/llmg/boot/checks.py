"""The health checks of all providers that are in use somewhere, however they change."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from llmg.boot.live import Live, Upstream
from llmg.boot.resilience import make_check
from llmg.providers.http import Transport
from llmg.routing.probes import Check, Prober


class _Made(Struct, frozen=True):
    """The check of an upstream when so many targets of it were known; None: it has none."""

    upstream: Upstream
    targets: int
    check: Check | None


class Checks:
    """Has the prober check what there is."""

    def __init__(self, live: Live, transport: Transport, prober: Prober) -> None:
        self._live = live
        self._transport = transport
        self._prober = prober
        self._due = False
        self._made: dict[bytes, _Made] = {}  # by their ids: there may be one for each tenant

    def changed(self) -> None:
        """There are other targets than before. Many changes in a row are one."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._due = False
        self._made = {upstream.id: self._of(upstream) for upstream in self._live.upstreams() if upstream.states}
        self._prober.watch([made.check for made in self._made.values() if made.check is not None])

    def _of(self, upstream: Upstream) -> _Made:
        made = self._made.get(upstream.id)
        if made is not None and made.upstream is upstream and made.targets == len(upstream.states):
            return made
        healths = [state.health for state in upstream.states.values()]
        check = make_check(upstream.name, upstream.id, upstream.config, healths, self._transport, self._live.channels)
        return _Made(upstream, len(healths), check)

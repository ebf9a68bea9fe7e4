"""The health checks of all providers that are in use somewhere, however they change."""

from __future__ import annotations

import asyncio

from llmg.boot.live import Live
from llmg.boot.resilience import make_check
from llmg.providers.http import Transport
from llmg.routing.probes import Prober


class Checks:
    """Has the prober check what there is."""

    def __init__(self, live: Live, transport: Transport, prober: Prober) -> None:
        self._live = live
        self._transport = transport
        self._prober = prober
        self._due = False

    def changed(self) -> None:
        """There are other targets than before. Many changes in a row are one."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._due = False
        made = [
            make_check(
                upstream.name,
                upstream.id,
                upstream.config,
                [state.health for state in upstream.states.values()],
                self._transport,
                self._live.channels,
            )
            for upstream in self._live.upstreams()
            if upstream.states
        ]
        self._prober.watch([check for check in made if check is not None])

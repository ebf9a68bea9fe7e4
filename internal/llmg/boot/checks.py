"""The health checks of all providers that are in use somewhere, however they change.

Where levels of the catalog have another key for the same server, or other headers, that is still checked once: with the
key of the highest of them.
"""

from __future__ import annotations

import asyncio

from msgspec import Struct

from llmg.boot.live import Live, Upstream
from llmg.boot.resilience import make_check
from llmg.providers.http import Transport
from llmg.routing.probes import Check, Prober


class _Made(Struct, frozen=True):
    """The check for these upstreams when what is known of their targets had changed so often."""

    upstreams: tuple[tuple[Upstream, int], ...]
    check: Check | None


class Checks:
    """Has the prober check what there is."""

    def __init__(self, live: Live, transport: Transport, prober: Prober) -> None:
        self._live = live
        self._transport = transport
        self._prober = prober
        self._due = False
        self._made: dict[bytes, _Made] = {}  # by what is asked

    def changed(self) -> None:
        """There are other targets than before. Many changes in a row are one."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._due = False
        alike: dict[bytes, list[tuple[Upstream, int]]] = {}
        for upstream in self._live.upstreams():
            if upstream.checked is not None and upstream.states:
                alike.setdefault(upstream.checked, []).append((upstream, upstream.changes))
        self._made = {asked: self._of(asked, tuple(upstreams)) for asked, upstreams in alike.items()}
        self._prober.watch([made.check for made in self._made.values() if made.check is not None])

    def _of(self, asked: bytes, upstreams: tuple[tuple[Upstream, int], ...]) -> _Made:
        made = self._made.get(asked)
        if made is not None and made.upstreams == upstreams:
            return made
        healths = [state.health for upstream, _ in upstreams for state in upstream.states.values()]
        first, _ = upstreams[0]
        check = make_check(first.name, first.id, first.config, healths, self._transport, self._live.channels)
        return _Made(upstreams, check)

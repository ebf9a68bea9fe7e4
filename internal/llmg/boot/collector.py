"""The cyclic garbage collector, kept from looking at what lives long.

What a configuration is made of lives until the next one, and what a request makes dies by its reference counts. Neither
is the collector's business, and it holds everything up while it looks: a fifth of all time by its default thresholds,
and tenths of a second at a time where a large catalog is being read.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SLACK: Final = 50_000  # objects: what a few thousand connections leave
_GROWTH: Final = 1.25

_most = 0.0  # objects that may be kept from the collector before it looks at them after all


def calm() -> None:
    """After the start: what is there stays, and the rest is looked at seldom."""
    gc.collect()
    _freeze()
    gc.set_threshold(50_000, 20, 50)


@contextmanager
def paused() -> Iterator[None]:
    """While a configuration is read and made. What there is afterwards is not looked at again: it has no cycles, so it
    goes when the last who uses it has gone. The connections that there are then do have some, and stay: so when much
    has come together, all is looked at once."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if gc.get_freeze_count() > _most:
            gc.unfreeze()
            gc.collect()
            _freeze()
        if enabled:
            gc.enable()


def _freeze() -> None:
    global _most
    gc.freeze()
    _most = gc.get_freeze_count() * _GROWTH + _SLACK

"""What configurations are made of is kept from the cyclic collector; what only was there at the time is not lost."""

from __future__ import annotations

import gc
import weakref

from llmg.boot import collector


class Knot:
    """Something that refers to itself, as a connection and its protocol do."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_at_a_reload_goes_all_the_same() -> None:
    left: weakref.WeakSet[Knot] = weakref.WeakSet()
    gc.collect()
    bound = (len(gc.get_objects()) + gc.get_freeze_count()) // 2 + 100_000
    most = 0
    try:
        for _ in range(2 * bound // 5000):
            with collector.paused():
                knots = [Knot() for _ in range(5000)]
            left.update(knots)
            del knots
            most = max(most, len(left))
    finally:
        gc.unfreeze()
    assert most < bound
    assert gc.isenabled()


def test_it_is_looked_at_seldom() -> None:
    looks: list[str] = []

    def look(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            looks.append(phase)

    with collector.paused():
        pass
    gc.callbacks.append(look)
    try:
        for _ in range(100):
            with collector.paused():
                made = [[number] for number in range(100)]
        del made
    finally:
        gc.callbacks.remove(look)
        gc.unfreeze()
    assert looks == []

"""What configurations are made of is kept from the cyclic collector; what only was there at the time is not lost."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable

import pytest

from llmg.boot import collector


class Knot:
    """Something that refers to itself, as a connection and its protocol do."""

    def __init__(self) -> None:
        self.itself = self


def what_was_there_at_a_reload_goes_all_the_same() -> None:
    left: weakref.WeakSet[Knot] = weakref.WeakSet()
    gc.collect()
    bound = (len(gc.get_objects()) + gc.get_freeze_count()) // 2 + 100_000
    most = 0
    for _ in range(2 * bound // 5000):
        with collector.paused():
            knots = [Knot() for _ in range(5000)]
        left.update(knots)
        del knots
        most = max(most, len(left))
    assert most < bound
    assert gc.isenabled()


def it_is_looked_at_seldom() -> None:
    looks: list[str] = []

    def look(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            looks.append(phase)

    with collector.paused():
        pass
    gc.callbacks.append(look)
    for _ in range(100):
        with collector.paused():
            made = [[number] for number in range(100)]
    del made
    assert looks == []


@pytest.mark.parametrize("shown", [what_was_there_at_a_reload_goes_all_the_same, it_is_looked_at_seldom])
def test_in_a_process_of_its_own(shown: Callable[[], None]) -> None:
    """Where nothing is but what it is about: the tests' own is large, and has a collector as it comes."""
    subprocess.run([sys.executable, "-W", "error", __file__, shown.__name__], check=True, timeout=60)


if __name__ == "__main__":
    globals()[sys.argv[1]]()

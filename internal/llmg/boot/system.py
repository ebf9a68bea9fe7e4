"""The real clock and the real dice, behind their ports."""

from __future__ import annotations

import os
import random
import time


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


class RandomIds:
    """128 random bits, in hexadecimal. Names, not secrets: the seed is the system's, what follows is not."""

    def __init__(self) -> None:
        self._bits = random.Random(os.urandom(32)).getrandbits

    def new(self) -> str:
        """See `ports.Ids`."""
        return f"{self._bits(128):032x}"

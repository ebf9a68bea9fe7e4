"""Consistent hashing with bounded loads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from llmg.ports import Asked
from llmg.routing.policies.base import Counting

_POINTS: Final = 100  # on the ring, of a target of weight 1: shares are right to about a tenth
_MOST_POINTS: Final = 65_536  # of all targets


class Sticky(Counting):
    """Requests of one key go to one target, as long as it has not much more in flight than the others.

    Consistent hashing (Karger et al. 1997) with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016; also in
    HAProxy as `hash-balance-factor`, in Envoy): a target may have `load_factor` times its fair share in flight,
    rounded up; beyond that the key goes to the next on the ring. A request without a key goes to the least busy.
    The ring depends on names and weights alone: all replicas of the gateway have the same, and a target that comes or
    goes takes along its own keys only.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        key: Callable[[Asked], str | None],
        load_factor: float = 1.25,
    ) -> None:
        """`names`: of the targets, each another one. `load_factor`: 1 or more."""
        super().__init__(weights)
        self._key = key
        self._factor = load_factor
        points = sorted(_points(names, weights))
        self._hashes = [point for point, _ in points]
        self._owners = [index for _, index in points]

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        if len(candidates) == 1:
            return candidates[0]
        key = self._key(asked)
        if key is None:
            return self._least(candidates)
        room = self._room(candidates, self._factor)
        left = set(candidates)
        owners = self._owners
        place = bisect_right(self._hashes, _hash(key))
        while True:  # ends, as one of the candidates has room
            index = owners[place % len(owners)]
            if index in left:
                if self._has_room(index, room):
                    return self._choose(index)
                left.remove(index)
            place += 1


def _points(names: Sequence[str], weights: Sequence[float]) -> list[tuple[int, int]]:
    each = min(_POINTS, _MOST_POINTS / sum(weights))
    return [
        (_hash(f"{name}\n{point}"), index)
        for index, (name, weight) in enumerate(zip(names, weights, strict=True))
        for point in range(max(1, round(each * weight)))
    ]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())

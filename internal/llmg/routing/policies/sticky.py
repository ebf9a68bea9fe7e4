"""Consistent hashing with bounded loads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from llmg.ports import Asked, Ranked
from llmg.routing.policies.base import Counting, one_by_one

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

    kind = "sticky"

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
        return self._choose(self._pick(candidates, self._key(asked)))

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. No score: the ring gives the order, but for those that have too much to do."""
        key = self._key(asked)
        room = self._room(candidates, self._factor)
        order = one_by_one(lambda left: self._pick(left, key), candidates)
        return [Ranked(index, None, self._words(index, key, room)) for index in order]

    def _words(self, index: int, key: str | None, room: float) -> str:
        if key is None:
            return f"nothing to go by: {self._load(index)}"
        return f"next on the ring, {self._busy[index]} in flight of at most {self._limit(self._weights[index], room)}"

    def _pick(self, candidates: Sequence[int], key: str | None) -> int:
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
                    return index
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

"""Prompt-prefix locality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from llmg.ports import Asked, Clock, Ranked
from llmg.routing.policies.base import Counting, one_by_one


class PrefixIndex:
    """Which targets have lately seen which prefixes, at most `capacity` blocks of them.

    A block is known by a hash over the prompt up to its end; its targets are the bits of an integer. Two generations:
    what is seen goes into the young one; when that is half of the capacity or `expiry` seconds old, the old one is
    forgotten and the young one takes its place. So a block is kept `expiry` to 2 `expiry` seconds after its last use.
    """

    def __init__(self, clock: Clock, capacity: int, expiry: float) -> None:
        self._clock = clock
        self._half = max(1, capacity // 2)
        self._expiry = expiry
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._born = clock.monotonic()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, blocks: Sequence[int], candidates: int) -> list[int]:
        """Sets of candidates (bits), the longest known prefix first; each holds the one before it."""
        self._turn()
        return _holders(self._young, self._old, blocks, candidates)

    def look(self, blocks: Sequence[int], candidates: int) -> list[int]:
        """The same as `find`, without forgetting what is too old by now."""
        young, old = self._generations(self._clock.monotonic())
        return _holders(young, old, blocks, candidates)

    def known(self, blocks: Sequence[int], target: int) -> int:
        """How many of the blocks, from the first, the target (a bit) has. Changes nothing."""
        young, old = self._generations(self._clock.monotonic())
        count = 0
        for block in blocks:
            if not target & (young.get(block, 0) | old.get(block, 0)):
                break
            count += 1
        return count

    def add(self, blocks: Sequence[int], target: int) -> None:
        """The target (a bit) now has this prefix. Of a prefix larger than half the capacity, only the beginning."""
        young, old = self._young, self._old
        for block in blocks[: self._half]:
            young[block] = young.get(block, 0) | old.get(block, 0) | target
            if len(young) >= self._half:
                self._age(self._clock.monotonic())
                young, old = self._young, self._old

    def _generations(self, now: float) -> tuple[dict[int, int], dict[int, int]]:
        """The young and the old one, as they are by now."""
        age = now - self._born
        if age < self._expiry:
            return self._young, self._old
        # Nobody may have asked for so long that the young are too old, too.
        return {}, self._young if age < 2 * self._expiry else {}

    def _turn(self) -> None:
        now = self._clock.monotonic()
        if now - self._born >= self._expiry:
            self._young, self._old = self._generations(now)
            self._born = now

    def _age(self, now: float) -> None:
        self._old, self._young, self._born = self._young, {}, now


def _holders(young: Mapping[int, int], old: Mapping[int, int], blocks: Sequence[int], candidates: int) -> list[int]:
    found: list[int] = []
    for block in blocks:
        holders = candidates & (young.get(block, 0) | old.get(block, 0))
        if not holders:
            break
        if holders != candidates or not found:
            found.append(holders)
        candidates = holders
    found.reverse()
    return found


class Prefix(Counting):
    """The target that has seen the longest part of this prompt before, and so has it in its cache, unless it has too
    much in flight: then the one with the next longest, at last the least busy of all.

    The prompt is known by chained hashes of its blocks (as in vLLM's prefix cache); what each target has seen is what
    was sent there. Too much is `load_factor` times its fair share of what is in flight (bounded loads, see `Sticky`),
    and `slack` requests more, so that few requests don't drive each other away from their caches. A prefix that
    nobody has seen goes to the least busy, so that new ones never pile up on one target.
    """

    kind = "prefix"

    def __init__(
        self,
        weights: Sequence[float],
        clock: Clock,
        *,
        block: int = 512,
        capacity: int = 65_536,
        expiry: float = 600.0,
        load_factor: float = 1.25,
        slack: int = 1,
    ) -> None:
        """`block`: bytes; `capacity`: blocks, about 150 bytes each; `expiry`: seconds; `load_factor`: >= 1."""
        super().__init__(weights)
        self._index = PrefixIndex(clock, capacity, expiry)
        self._block = block
        self._factor = load_factor
        self._slack = slack

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        blocks = asked.blocks(self._block)
        chosen = self._choose(self._pick(candidates, blocks, self._index.find))
        self._index.add(blocks, 1 << chosen)
        return chosen

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. The score: how many blocks of the prompt the target has seen."""
        blocks = asked.blocks(self._block)
        order = one_by_one(lambda left: self._pick(left, blocks, self._index.look), candidates)
        known = [(index, self._index.known(blocks, 1 << index)) for index in order]
        return [
            Ranked(index, count, f"has seen {count} of {len(blocks)} blocks, {self._load(index)}")
            for index, count in known
        ]

    def _pick(
        self, candidates: Sequence[int], blocks: Sequence[int], find: Callable[[Sequence[int], int], list[int]]
    ) -> int:
        chosen = self._seen(candidates, find(blocks, self._bits(candidates))) if blocks else None
        return self._least(candidates) if chosen is None else chosen

    def _seen(self, candidates: Sequence[int], found: Sequence[int]) -> int | None:
        if not found:
            return None
        room = self._room(candidates, self._factor)
        tried = 0
        for holders in found:
            free = [index for index in _indexes(holders & ~tried) if self._has_room(index, room, self._slack)]
            if free:
                return self._least(free)
            tried = holders
        return None

    def _bits(self, candidates: Sequence[int]) -> int:
        if len(candidates) == len(self._weights):
            return (1 << len(candidates)) - 1
        return sum([1 << index for index in candidates])


def _indexes(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest

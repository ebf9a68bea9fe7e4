"""Lowest price."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from llmg.ports import Asked
from llmg.routing.policies.base import Counting

_USUAL_OUTPUT = 512  # tokens, where a request does not say what it allows


class Price(Struct, frozen=True, kw_only=True):
    """USD per million tokens."""

    input: float
    output: float


class LowestCost(Counting):
    """The target that answers this request for the least money: estimated input and the output that it allows (512
    tokens where it does not say), at each target's price. Of those with one price, the least busy.
    """

    def __init__(self, prices: Sequence[Price], weights: Sequence[float]) -> None:
        super().__init__(weights)
        self._at: dict[Price, list[int]] = {}  # the targets at each price: few prices, many targets
        for index, price in enumerate(prices):
            self._at.setdefault(price, []).append(index)

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        into = asked.input_tokens
        out = _USUAL_OUTPUT if asked.output_tokens is None else asked.output_tokens

        def cost(price: Price) -> float:
            return price.input * into + price.output * out

        at = self._at
        if len(candidates) < len(self._weights):
            left = frozenset(candidates)
            at = {price: free for price, all_of_them in at.items() if (free := [i for i in all_of_them if i in left])}
        return self._least(at[min(at, key=cost)])

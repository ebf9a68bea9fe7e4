"""Lowest price."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmg.core.prices import Price as Price
from llmg.ports import Asked, Ranked
from llmg.routing.policies.base import Counting, one_by_one

_USUAL_OUTPUT = 512  # tokens, where a request does not say what it allows
_MILLION = 1_000_000  # tokens that a price is for


class LowestCost(Counting):
    """The target that answers this request for the least money: estimated input and the output that it allows (512
    tokens where it does not say), at each target's price. Of those with one price, the least busy.
    """

    kind = "lowest_cost"

    def __init__(self, prices: Sequence[Price], weights: Sequence[float]) -> None:
        super().__init__(weights)
        self._prices = tuple(prices)
        self._at: dict[Price, list[int]] = {}  # the targets at each price: few prices, many targets
        for index, price in enumerate(prices):
            self._at.setdefault(price, []).append(index)

    def choose(self, candidates: Sequence[int], asked: Asked, /) -> int:
        """See `ports.Policy`."""
        return self._choose(self._cheapest(candidates, _cost(asked)))

    def rank(self, candidates: Sequence[int], asked: Asked, /) -> Sequence[Ranked]:
        """See `ports.Policy`. The score: USD."""
        cost = _cost(asked)
        order = one_by_one(lambda left: self._cheapest(left, cost), candidates)
        costs = [(index, cost(self._prices[index]) / _MILLION) for index in order]
        return [Ranked(index, usd, f"cost {usd:.2g} USD, {self._load(index)}") for index, usd in costs]

    def _cheapest(self, candidates: Sequence[int], cost: Callable[[Price], float]) -> int:
        at = self._at
        if len(candidates) < len(self._weights):
            left = frozenset(candidates)
            at = {price: free for price, all_of_them in at.items() if (free := [i for i in all_of_them if i in left])}
        return self._least(at[min(at, key=cost)])


def _cost(asked: Asked) -> Callable[[Price], float]:
    """Of the request, at a price, in USD per million."""
    into = asked.input_tokens
    out = _USUAL_OUTPUT if asked.output_tokens is None else asked.output_tokens
    return lambda price: price.input * into + price.output * out

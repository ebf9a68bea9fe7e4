"""From a model's settings to its policy. A kind of policy is one row in `MAKERS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from llmg.boot.settings import FlatModel, Target
from llmg.boot.settings.policies import InnerPolicy, PriorityPolicy, Sticky
from llmg.ports import Asked, Clock, Policy, Random
from llmg.routing import policies
from llmg.routing.policies.lowest_cost import Price

# What a sticky policy can go by.
KEYS: Final[dict[str, Callable[[Sticky], Callable[[Asked], str | None]]]] = {
    "session": lambda config: lambda asked: asked.session,
    "user": lambda config: lambda asked: asked.user,
    "header": lambda config: _by_header(config.header or ""),
}

# Each gets the policy's settings, the targets', the clock and chance.
MAKERS: Final[dict[str, Callable[[Any, Sequence[Target], Clock, Random], Policy]]] = {
    "weighted": lambda config, targets, clock, random: policies.Weighted(_weights(targets)),
    "round_robin": lambda config, targets, clock, random: policies.RoundRobin(),
    "random": lambda config, targets, clock, random: policies.WeightedRandom(_weights(targets), random),
    "least_busy": lambda config, targets, clock, random: policies.LeastBusy(_weights(targets)),
    "lowest_cost": lambda config, targets, clock, random: policies.LowestCost(_prices(targets), _weights(targets)),
    "p2c": lambda config, targets, clock, random: policies.P2C(_weights(targets), clock, random, config.decay),
    "lowest_latency": lambda config, targets, clock, random: policies.LowestLatency(
        len(targets), clock, random, config.decay, config.explore, config.load_factor
    ),
    "sticky": lambda config, targets, clock, random: policies.Sticky(
        _names(targets), _weights(targets), KEYS[config.by](config), config.load_factor
    ),
    "prefix": lambda config, targets, clock, random: policies.Prefix(
        _weights(targets),
        clock,
        block=config.block,
        capacity=config.capacity,
        expiry=config.expiry,
        load_factor=config.load_factor,
        slack=config.slack,
    ),
}


def make_policy(model: FlatModel, clock: Clock, random: Random) -> Policy:
    """The policy of a model: its own, as it counts."""

    def make(config: InnerPolicy) -> Policy:
        return MAKERS[config.kind](config, model.targets, clock, random)

    config = model.policy
    if isinstance(config, PriorityPolicy):
        return policies.Priority(
            [target.priority for target in model.targets], lambda place: make(config.within(place))
        )
    return make(config)


def _by_header(name: str) -> Callable[[Asked], str | None]:
    lower = name.lower()
    return lambda asked: asked.header(lower)


def _weights(targets: Sequence[Target]) -> list[float]:
    return [target.weight for target in targets]


def _prices(targets: Sequence[Target]) -> list[Price]:
    """Those of other tiers, which this policy is never asked of, may have none."""
    free = Price(input=0, output=0)
    return [Price(input=t.price.input, output=t.price.output) if t.price else free for t in targets]


def _names(targets: Sequence[Target]) -> list[str]:
    """`provider/model`, and which of its name it is: a model may stand in the list twice."""
    seen = Counter[str]()
    names = []
    for target in targets:
        name = f"{target.provider}/{target.model}"
        seen[name] += 1
        names.append(f"{name}#{seen[name]}")
    return names

"""Policies: which of a model's targets is asked next. Pure: no I/O; time and chance come by ports.

One class a file, each a `ports.Policy`. Targets are indexes; weights and prices are given in the targets' order.
"""

from llmg.routing.policies.least_busy import LeastBusy
from llmg.routing.policies.lowest_cost import LowestCost
from llmg.routing.policies.lowest_latency import LowestLatency
from llmg.routing.policies.p2c import P2C
from llmg.routing.policies.prefix import Prefix
from llmg.routing.policies.priority import Priority
from llmg.routing.policies.round_robin import RoundRobin
from llmg.routing.policies.sticky import Sticky
from llmg.routing.policies.weighted import Weighted
from llmg.routing.policies.weighted_random import WeightedRandom

__all__ = [
    "P2C",
    "LeastBusy",
    "LowestCost",
    "LowestLatency",
    "Prefix",
    "Priority",
    "RoundRobin",
    "Sticky",
    "Weighted",
    "WeightedRandom",
]

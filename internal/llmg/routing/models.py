"""A model as the router knows it: a name, and the targets that may answer for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Protocol

from msgspec import Struct, field
from msgspec.structs import force_setattr

from llmg.core.errors import Kind
from llmg.ports import Policy, Profile, Provider
from llmg.routing.health import Health
from llmg.routing.hedge import Hedges
from llmg.routing.policies.base import First
from llmg.routing.policies.lowest_cost import Price
from llmg.routing.retries import Retries


class Target(Struct, frozen=True, kw_only=True):
    """One model of one provider. `region` and `labels` are the operator's words for it."""

    provider: str
    model: str
    inner: Provider
    weight: float = 1.0
    profile: Profile = Profile()
    health: Health = field(default_factory=Health)
    price: Price | None = None
    region: str = ""
    labels: tuple[tuple[str, str], ...] = ()


class Able(Struct, frozen=True):
    """The targets of a model that have an operation, as indexes, ascending.

    `alike`, where some of them can't do all that it may ask for: those that can do the same, kind by kind, as there are
    few kinds however many targets there are. Empty where all can do everything.
    """

    all: tuple[int, ...] = ()
    alike: tuple[tuple[Profile, tuple[int, ...]], ...] = ()


class Operations(Struct, frozen=True):
    """Which of a model's targets have an operation."""

    chat: Able = Able()
    embed: Able = Able()


@lru_cache(1024)
def operations(profiles: tuple[Profile, ...]) -> Operations:
    """Of targets with these profiles. Kept, as some models are made anew for a request: PROVIDER/MODEL."""
    known = list(enumerate(profiles))
    return Operations(
        chat=_able([(index, profile) for index, profile in known if profile.chat]),
        embed=_able([(index, profile) for index, profile in known if profile.embed]),
    )


def _able(targets: Sequence[tuple[int, Profile]]) -> Able:
    """Of targets that have the operation: their indexes and profiles."""
    alike: dict[Profile, list[int]] = {}
    if any(profile.lacks or profile.context_window is not None for _, profile in targets):
        for index, profile in targets:
            alike.setdefault(profile, []).append(index)
    kinds = tuple((profile, tuple(indexes)) for profile, indexes in alike.items())
    return Able(tuple([index for index, _ in targets]), kinds)


class Group(Struct, frozen=True, kw_only=True):
    """A name that clients use, and the targets that may answer for it.

    When they all fail, or one fails with a kind of `fallback_on`, the models of `fallbacks` are asked, in this order;
    then, if none of them answers either, the model's own targets again, as `retries` allow. `find` gives its
    fallbacks; None: whoever asks knows them. With `hedges`, another target is asked when the first keeps a request
    waiting. `operations` follow from the targets.
    """

    name: str
    targets: tuple[Target, ...]
    policy: Policy
    created: int = 0
    fallbacks: tuple[str, ...] = ()
    fallback_on: frozenset[Kind] = frozenset()
    retries: Retries | None = None
    hedges: Hedges | None = None
    find: Callable[[str], Group] | None = None
    operations: Operations = Operations()

    def __post_init__(self) -> None:
        """Once for all requests, as there may be many targets."""
        force_setattr(self, "operations", operations(tuple([target.profile for target in self.targets])))

    def profile(self) -> Profile:
        """What at least one of the targets can do."""
        return Profile(
            chat=any(t.profile.chat for t in self.targets),
            embed=any(t.profile.embed for t in self.targets),
            n=any(t.profile.n for t in self.targets),
        )


class Finding(Protocol):
    """Knows models by their names."""

    def find(self, name: str, /) -> Group:
        """The model of that name. Raises Failure (model_not_found)."""
        ...


def only(name: str, target: Target) -> Group:
    """A model that has one target."""
    return Group(name=name, targets=(target,), policy=_ONLY)


_ONLY: Final = First()

"""From a target's settings to what is known of it at run time."""

from __future__ import annotations

from msgspec.structs import replace

from llmg.boot.settings import Target as Config
from llmg.ports import Profile
from llmg.routing.models import Target
from llmg.routing.policies.lowest_cost import Price


def described(target: Target, config: Config) -> Target:
    """The target with what the configuration says of it. `config` is a flat model's."""
    return replace(
        target,
        profile=make_profile(config, target.profile),
        price=None if config.price is None else Price(input=config.price.input, output=config.price.output),
        region=config.region,
        labels=tuple(config.labels.items()),
    )


def make_profile(config: Config, adapter: Profile) -> Profile:
    """What a target can do: what its adapter can, and what the configuration says of the model."""
    can = config.capabilities or {}
    return replace(
        adapter,
        embed=adapter.embed if config.embeddings is None else config.embeddings,
        has=frozenset([name for name, has in can.items() if has]),
        lacks=frozenset([name for name, has in can.items() if not has]),
        context_window=config.context_window,
    )

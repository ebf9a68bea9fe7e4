"""Models in a table, for routers that need no configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llmg.core.errors import Failure, Kind
from llmg.routing.models import Group, Target, only


class Models:
    """The models by name. A declared model wins; else `PROVIDER/MODEL` reaches a declared provider's model."""

    def __init__(self, groups: Mapping[str, Group], providers: Mapping[str, Callable[[str], Target]]) -> None:
        """`providers` give a target for any model of theirs."""
        self._groups = groups
        self._providers = providers

    def declared(self) -> Sequence[Group]:
        """Those with a name of their own."""
        return tuple(self._groups.values())

    def find(self, name: str) -> Group:
        """The model of that name. Raises Failure (model_not_found)."""
        group = self._groups.get(name)
        return group if group is not None else self._by_provider(name)

    def _by_provider(self, name: str) -> Group:
        provider, slash, model = name.partition("/")
        make = self._providers.get(provider)
        if make is None or not slash or not model:
            raise Failure(Kind.MODEL_NOT_FOUND, f"the model '{name[:200]}' does not exist", param="model")
        return only(name, make(model))

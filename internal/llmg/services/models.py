"""Which models there are: the same list for every door."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from llmg.core.context import Principal


class Model(Struct, frozen=True, kw_only=True):
    """A model a client may name. `created` is Unix time in seconds; `owner` the providers behind it."""

    id: str
    created: int
    owner: str
    operations: tuple[str, ...]


class Models:
    """The use case behind every door's list of models: of those that the caller may ask for."""

    def __init__(
        self, declared: Callable[[Principal], Sequence[Model]], find: Callable[[str, Principal], Model]
    ) -> None:
        self._declared = declared
        self._find = find

    def list(self, principal: Principal) -> Sequence[Model]:
        """All that were declared, by name."""
        return sorted(self._declared(principal), key=lambda model: model.id)

    def get(self, id: str, principal: Principal) -> Model:
        """The one of that name. Raises Failure (model_not_found)."""
        return self._find(id, principal)

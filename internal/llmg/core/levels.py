"""The levels of the catalog, and what bounds requests at each."""

from __future__ import annotations

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """What all requests below a level may take together. None: any number.

    `requests` and `tokens` in any 60 seconds (tokens: of prompts and answers), `concurrent`: at the same time.
    """

    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None


UNLIMITED = Limits()


class Level(Struct, frozen=True, kw_only=True):
    """A level of the catalog. `name` is its path, such as `tenants/acme/teams/search/endpoints/web`; the root's is
    empty. `labels` are its own and those of the levels above, the nearest of a name."""

    name: str = ""
    limits: Limits = UNLIMITED
    labels: tuple[tuple[str, str], ...] = ()


class Rate(Struct, frozen=True):
    """What is left of a limit. `reset`: seconds until all of it is there again."""

    limit: int
    remaining: int
    reset: float


class Rates(Struct, frozen=True, kw_only=True):
    """Of the levels that hold for a request, the one with the least left; None: there is no limit of the kind."""

    requests: Rate | None = None
    tokens: Rate | None = None

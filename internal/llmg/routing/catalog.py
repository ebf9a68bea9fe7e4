"""The catalog: who may ask, and for what. A snapshot: it never changes, and a request keeps the one it came in by.

Levels lie in each other: the root, tenants, teams, groups within groups, endpoints. Two rules hold among them:

- What is *set* is overridden by the nearest level. A name of a model means what the nearest level says that it means.
- What *bounds* holds at every level. A name from above is seen only where every level between lets it through.

Names are lexical, as variables of nested functions are: what a level defines refers to what is seen there, wherever it
is asked from; a definition that refers to its own name means that of the level above. So a level that takes a name
away, or gives it another meaning, changes nothing in what the levels above have made of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

from llmg.core.context import ANONYMOUS, Principal
from llmg.core.errors import Failure, Kind
from llmg.core.levels import Level
from llmg.routing.models import Group

D = TypeVar("D")


class Allow:
    """Does one of these patterns match a name? `*` in a pattern stands for any text."""

    __slots__ = ("_expression", "_names", "_wild")

    def __init__(self, patterns: Iterable[str]) -> None:
        known = frozenset(patterns)
        self._names = frozenset(pattern for pattern in known if "*" not in pattern)
        self._wild = sorted(known - self._names)
        self._expression: re.Pattern[str] | None = None  # made when it is first needed: of many levels, few ask

    def __call__(self, name: str) -> bool:
        """Yes or no."""
        return name in self._names or (bool(self._wild) and self._matches(name))

    def _matches(self, name: str) -> bool:
        if self._expression is None:
            self._expression = re.compile("|".join(map(_expression, self._wild)), re.DOTALL)
        return self._expression.fullmatch(name) is not None


def _expression(pattern: str) -> str:
    """The regular expression of a pattern with `*`. Clients make names up, so nothing is tried twice: what lies between
    two stars is taken where it first comes."""
    first, *middle, last = map(re.escape, pattern.split("*"))
    return first + "".join(f"(?>.*?{part})" for part in middle if part) + ".*" + last


class Names(Generic[D]):
    """The models' names at one level: those that it defines, over those of the levels above that it allows."""

    __slots__ = ("above", "allow", "own", "path")

    def __init__(
        self,
        path: str = "",
        own: Mapping[str, D] | None = None,
        above: Names[D] | None = None,
        allow: Allow | None = None,
    ) -> None:
        """`path` is the level's name. `allow` None: everything from above."""
        self.path = path
        self.own: Mapping[str, D] = own or {}
        self.above = above
        self.allow = allow

    def find(self, name: str) -> Names[D] | None:
        """The level whose definition the name means here, in `own`; None: it means nothing here."""
        if name in self.own:
            return self
        if self.above is None or not self._inherits(name):
            return None
        return self.above.find(name)

    def refer(self, name: str, by: str) -> Names[D] | None:
        """The level whose definition the name means in this level's own definition of `by`; None: it means nothing."""
        if name in self.own and name != by:
            return self
        return None if self.above is None else self.above.find(name)

    def allows(self, name: str) -> bool:
        """May a name be asked for here that no level defines: PROVIDER/MODEL?"""
        return self._inherits(name) and (self.above is None or self.above.allows(name))

    def knows(self, name: str) -> bool:
        """Does this level or one above define the name, whether it is allowed here or not?"""
        return name in self.own or (self.above is not None and self.above.knows(name))

    def __iter__(self) -> Iterator[str]:
        """Every name that means something here."""
        yield from self.own
        for name in self.above or ():
            if name not in self.own and self._inherits(name):
                yield name

    def _inherits(self, name: str) -> bool:
        return self.allow is None or self.allow(name)


class Scope(Generic[D]):
    """What may be asked for at a level: its models, each made when it is first asked for, and PROVIDER/MODEL."""

    __slots__ = ("_direct", "_found", "_make", "_names")

    def __init__(
        self, names: Names[D], make: Callable[[Names[D], str], Group], direct: Callable[[str], Group | None]
    ) -> None:
        """`make` gives the model of a name that a level defines, `direct` that of a name PROVIDER/MODEL; None: there
        is no such provider."""
        self._names = names
        self._make = make
        self._direct = direct
        self._found: dict[str, Group] = {}

    def find(self, name: str) -> Group:
        """The model of that name. Raises Failure (model_not_found), whether it is not allowed or not there."""
        found = self._found.get(name)
        return found if found is not None else self._find(name)

    def declared(self) -> Sequence[Group]:
        """Those with a name of their own."""
        return tuple(self.find(name) for name in self._names)

    def _find(self, name: str) -> Group:
        home = self._names.find(name)
        if home is not None:
            group = self._found[name] = self._make(home, name)
            return group
        direct = self._direct(name) if self._names.allows(name) else None
        if direct is None:
            raise Failure(Kind.MODEL_NOT_FOUND, f"the model '{name[:200]}' does not exist", param="model")
        return direct


class Key(Struct, frozen=True):
    """An API key. `expires`: Unix seconds."""

    principal: Principal
    expires: float = inf
    revoked: bool = False


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where clients belong to. `name` is its level's: `tenants/.../endpoints/web`; `alias` is its short name."""

    name: str
    alias: str = ""
    levels: tuple[Level, ...] = ()


class Catalog:
    """All that is known of who may ask, at one time."""

    __slots__ = ("_keys", "anonymous", "by_alias", "endpoints", "scope", "scopes", "version")

    def __init__(
        self,
        version: str = "",
        scope: Scope[Any] | None = None,
        keys: Mapping[bytes, Key] | None = None,
        endpoints: Mapping[str, Endpoint] | None = None,
        anonymous: Principal | None = None,
        scopes: Mapping[str, Scope[Any]] | None = None,
    ) -> None:
        """`scope`: what may be asked for at the root. `keys` by their SHA-256, `endpoints` by their names. `anonymous`:
        who asks without a key, where that may be. `scopes`: what may be asked for at each level, by its name."""
        self.version = version
        self.scope = scope
        self._keys = keys or {}
        self.endpoints = endpoints or {}
        self.by_alias = {endpoint.alias: endpoint for endpoint in self.endpoints.values() if endpoint.alias}
        self.anonymous = anonymous
        self.scopes = scopes or {}

    def find(self, digest: bytes, now: float) -> Principal:
        """Whose key has this SHA-256. Raises Failure (unauthenticated). Who learns that a key has expired or was
        revoked has shown all of it."""
        key = self._keys.get(digest)
        if key is None:
            raise Failure(Kind.UNAUTHENTICATED, "the API key is not valid")
        if key.revoked:
            raise Failure(Kind.UNAUTHENTICATED, "the API key has been revoked")
        if now >= key.expires:
            raise Failure(Kind.UNAUTHENTICATED, "the API key has expired")
        return key.principal

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._keys)


EVERYBODY: Final = Catalog(anonymous=ANONYMOUS)
"""Without any keys, everybody is let in, as nobody."""

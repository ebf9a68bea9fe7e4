"""Reading and changing the catalog's tree: pure functions on plain data, which is never changed in place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import UNSET

from llmg.core.errors import Failure, Kind, conflict
from llmg.services.admin.names import CHILDREN, KEYS, Path, kind_of, name_of, place
from llmg.services.admin.values import Changes, Level, Upstream, UpstreamChange

Node = dict[str, Any]
"""A level as the configuration has it. The root of all is `{"tenants": {...}}`."""

SETTINGS: Final = ("allow", "models", "upstreams", "limits", "labels", "alias")
_NAMED: Final = 100  # differences


# --- reading ---------------------------------------------------------------------------------------------------------


def find(root: Node, path: Path) -> Node:
    """The level there. Raises Failure (not_found)."""
    node = root
    for kind, id in path:
        held = node.get(kind) or {}
        if id not in held:
            raise missing(name_of(path))
        node = held[id] or {}  # `acme:` alone, in YAML
    return node


def missing(name: str) -> Failure:
    """There is nothing of that name."""
    return Failure(Kind.NOT_FOUND, f"there is no '{name}'", param="name")


def children(node: Node, path: Path) -> list[tuple[Path, Node]]:
    """The levels right below, by name."""
    below = [
        ((*path, (kind, id)), child or {})
        for kind in CHILDREN[kind_of(path)]
        for id, child in (node.get(kind) or {}).items()
    ]
    return sorted(below, key=lambda found: name_of(found[0]))


def of_alias(root: Node, alias: str) -> Path | None:
    """Where the endpoint of that alias is; None: there is none."""
    levels: list[tuple[Path, Node]] = [((), root)]
    while levels:
        path, node = levels.pop()
        if node.get("alias") == alias:
            return path
        levels += children(node, path)
    return None


def shown(node: Node, path: Path) -> Level:
    """A level without its secrets."""
    allow = node.get("allow")
    return Level(
        name=name_of(path),
        etag=etag(node),
        allow=None if allow is None else tuple(allow),
        models=node.get("models") or {},
        upstreams={name: _shown_upstream(held or {}) for name, held in (node.get("upstreams") or {}).items()},
        limits=node.get("limits") or {},
        labels=node.get("labels") or {},
        alias=node.get("alias"),
    )


def _shown_upstream(held: Node) -> Upstream:
    return Upstream(
        base_url=held.get("base_url"),
        address=held.get("address"),
        has_api_key=bool(held.get("api_key")),
        has_token=bool(held.get("token")),
        headers=tuple(sorted(held.get("headers") or {})),
    )


def etag(node: Node) -> str:
    """What stands for a level's own settings, secrets included."""
    own = {name: node[name] for name in SETTINGS if node.get(name) is not None}
    return hashlib.sha256(msgspec.json.encode(own, order="deterministic")).hexdigest()[:16]


# --- changing --------------------------------------------------------------------------------------------------------


def put(root: Node, path: Path, change: Callable[[Node], Node]) -> Node:
    """The tree with another level there. Raises Failure (not_found)."""
    find(root, path)
    return _put(root, path, change)


def _put(node: Node, path: Path, change: Callable[[Node], Node]) -> Node:
    if not path:
        return change(node)
    (kind, id), rest = path[0], path[1:]
    held = node.get(kind) or {}
    return {**node, kind: {**held, id: _put(held.get(id) or {}, rest, change)}}


def add(root: Node, path: Path, level: Node) -> Node:
    """The tree with one level more. Raises Failure (not_found: the level above; conflict: it is there)."""
    above, (kind, id) = path[:-1], path[-1]
    held = find(root, above).get(kind) or {}
    if id in held:
        raise conflict(f"there is a '{name_of(path)}' already", "name")
    return _put(root, above, lambda node: {**node, kind: {**held, id: level}})


def remove(root: Node, path: Path) -> Node:
    """The tree without that level. Raises Failure (not_found)."""
    find(root, path)
    above, (kind, id) = path[:-1], path[-1]

    def without(node: Node) -> Node:
        left = {name: child for name, child in node[kind].items() if name != id}
        return {**node, kind: left} if left else {name: value for name, value in node.items() if name != kind}

    return _put(root, above, without)


def changed(node: Node, changes: Changes) -> Node:
    """A level with these changes."""
    out = dict(node)
    for name in SETTINGS:
        value = getattr(changes, name)
        if value is UNSET:
            continue
        if name == "upstreams" and value is not None:
            held = node.get(name) or {}
            value = {provider: _merged(held.get(provider) or {}, wanted) for provider, wanted in value.items()}
        elif isinstance(value, tuple):
            value = list(value)
        out[name] = value
        if value is None or value == {}:
            del out[name]
    return out


def _merged(held: Node, wanted: UpstreamChange) -> Node:
    """Overrides of a provider, with the secrets that are held where no others are given."""
    told = {name.lower() for name in (*wanted.headers, *wanted.remove_headers)}  # it is one header, however written
    headers = {name: value for name, value in (held.get("headers") or {}).items() if name.lower() not in told}
    gone = {name.lower() for name in wanted.remove_headers}
    headers |= {name: value for name, value in wanted.headers.items() if name.lower() not in gone}
    out = {
        "base_url": wanted.base_url,
        "address": wanted.address,
        "api_key": held.get("api_key") if wanted.api_key is None else wanted.api_key,
        "token": held.get("token") if wanted.token is None else wanted.token,
        "headers": headers or None,
    }
    return {name: value for name, value in out.items() if value is not None}


# --- what is different ------------------------------------------------------------------------------------------------


def differences(before: Node, after: Node, path: Path) -> tuple[str, ...]:
    """The names of what is different in a level, its keys included: `allow`, `limits.max_concurrent`. No values. What
    is said of one that is gone is nothing."""
    try:
        there = find(after, path)
    except Failure:
        return ()
    try:
        was = find(before, path)
    except Failure:
        was = {}
    names = [*_below((), _plain(was), _plain(there))]
    if len(names) > _NAMED:
        return (*names[:_NAMED], f"and {len(names) - _NAMED} more")
    return tuple(names)


def _plain(node: Node) -> Node:
    out = {name: node.get(name) for name in SETTINGS}
    out[KEYS] = {str(key.get("id")): key for key in node.get(KEYS) or ()}
    return out


def _below(at: tuple[str, ...], before: Any, after: Any) -> Iterator[str]:
    """Down to a provider's settings and headers, but models, and keys that are new or gone, are told as a whole."""
    if before == after:
        return
    told = [value for value in (before, after) if value is not None]
    whole = len(at) == 2 and (at[0] == "models" or (at[0] == KEYS and len(told) == 1))
    old, new = before or {}, after or {}
    if whole or not (old or new) or not all(isinstance(value, dict) for value in told):
        yield place(*at)
        return
    for name in dict.fromkeys((*old, *new)):
        yield from _below((*at, str(name)), old.get(name), new.get(name))

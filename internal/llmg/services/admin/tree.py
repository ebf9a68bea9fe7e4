"""Reading and changing the catalog's tree: pure functions on plain data, which is never changed in place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET

from llmg.core.errors import Failure, Kind, conflict
from llmg.services.admin.names import CHILDREN, Path, kind_of, name_of
from llmg.services.admin.values import Changes, Level, Upstream, UpstreamChange

Node = dict[str, Any]
"""A level as the configuration has it. The root of all is `{"tenants": {...}}`."""

SETTINGS: Final = ("allow", "models", "upstreams", "limits", "labels", "alias")


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


def of_alias(root: Node, alias: str) -> Path:
    """Where the endpoint of that alias is. Raises Failure (not_found)."""
    levels: list[tuple[Path, Node]] = [((), root)]
    while levels:
        path, node = levels.pop()
        if node.get("alias") == alias:
            return path
        levels += children(node, path)
    raise missing(alias)


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
    headers = {**(held.get("headers") or {}), **wanted.headers}
    for name in wanted.remove_headers:
        headers.pop(name, None)
    out = {
        "base_url": wanted.base_url,
        "address": wanted.address,
        "api_key": held.get("api_key") if wanted.api_key is None else wanted.api_key,
        "token": held.get("token") if wanted.token is None else wanted.token,
        "headers": headers or None,
    }
    return {name: value for name, value in out.items() if value is not None}

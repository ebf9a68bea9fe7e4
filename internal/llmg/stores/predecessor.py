"""The catalog of llmg's predecessor, as ours: from its keys in Redis, or from its configuration file.

| there                         | here                                                                      |
|-------------------------------|---------------------------------------------------------------------------|
| an endpoint, by its API key   | an endpoint below its tenant, team and group; of the key, the SHA-256     |
| alias                         | alias                                                                     |
| upstream.openai.base_url      | upstreams.PROVIDER.base_url, at the same level                            |
| upstream.openai.api_key       | upstreams.PROVIDER.api_key                                                |
| upstream.openai.extra_headers | upstreams.PROVIDER.headers; several values of a name, with commas between |
| upstream.group                | the first of them, which is the one that was asked                        |
| weight, compatible            | nothing: it is told                                                       |

There, the nearest upstream held as a whole; here, the nearest of each field does. So a key that an upstream lacks is
written as none where a level above has one, and where it has an address of its own: the provider's key is not for that.
What else differs is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from llmg.stores.catalog_text import read_text

PREFIX: Final = "config:providers:auth:metadata:"
_KINDS: Final = {"tenant": "tenants", "team": "teams", "group": "groups", "endpoint": "endpoints"}
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_ALMOST: Final = re.compile(r"[^A-Za-z0-9._-]+")
_UNNAMED: Final = "default"

Path = tuple[tuple[str, str], ...]
Node = dict[str, Any]


class Imported(Struct, frozen=True):
    """The `tenants` of a catalog, and what could not be taken over as it was, in sentences without secrets."""

    tenants: Node
    notes: tuple[str, ...]


async def from_redis(redis: Any, provider: str) -> Imported:
    """From a Redis (`redis.asyncio.Redis`); its upstreams become overrides of that `provider`. Raises RedisError."""
    found: dict[str, bytes] = {}
    names = [_text(name) async for name in redis.scan_iter(match=f"{PREFIX}*", count=1000)]
    for start in range(0, len(names), 1000):
        some = names[start : start + 1000]
        values = await redis.mget(some)
        found |= {name.removeprefix(PREFIX): value for name, value in zip(some, values, strict=True) if value}
    return from_keys(found, provider)


def from_keys(values: Mapping[str, bytes | str], provider: str) -> Imported:
    """From the values of its keys in Redis, by their names without PREFIX."""
    builder = _Builder(provider)
    upstreams: dict[tuple[str, str], Any] = {}
    aliases: list[tuple[str, Node]] = []
    for name, raw in sorted(values.items()):
        kind, _, rest = name.partition(":")
        value = _json(raw)
        if not isinstance(value, dict):
            builder.note(f"the value of '{PREFIX}{kind}:...' is no JSON object, and left out")
        elif kind == "api_key":
            builder.endpoint(_place(value), _get(value, "alias"), [rest])
            builder.ignored(value)
        elif kind == "alias":
            aliases.append((rest, value))
        elif kind == "upstream":
            level, _, id = rest.partition(":")
            upstreams[level, id] = value
        else:
            builder.note(f"'{PREFIX}{kind}:...' is not known, and left out")
    for alias, value in aliases:
        key = _get(value, "apikey", "api_key")
        builder.endpoint(_place(value), alias, [key] if key else [])
    for (level, id), value in upstreams.items():
        builder.upstream_of_all(level, id, value)
    return builder.done()


def from_file(data: bytes, provider: str) -> Imported:
    """From its configuration file. Raises ValueError with what is wrong with that."""
    value = read_text(data)
    routes = value.get("configs", value) if isinstance(value, dict) else None
    if not isinstance(routes, dict) or not isinstance(routes.get("tenants"), list):
        raise ValueError("expected a list of `tenants`, or `configs` with one")
    builder = _Builder(provider)
    if routes.get("upstream"):
        builder.note("the upstream of all tenants is left out: it was never used")
    for tenant in _nodes(routes, "tenants"):
        builder.walk(tenant, (("tenants", _name(tenant)),))
    return builder.done()


class _Builder:
    """Puts a catalog together."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._tenants: Node = {}
        self._ids: dict[str, str] = {}
        self._notes: dict[str, None] = {}
        self._aliases: dict[str, Path] = {}
        self._places: dict[Path, None] = {}  # by the ids that they had there

    def note(self, words: str) -> None:
        self._notes[words] = None

    def done(self) -> Imported:
        """All of it."""
        root = {"tenants": self._tenants}
        for path, node in list(_levels(root, ())):
            self._settle(root, path, node)
        return Imported(self._tenants, tuple(self._notes))

    # --- what there was --------------------------------------------------------------------------------------------

    def walk(self, given: Node, path: Path) -> None:
        """A level of the file, and all below it."""
        kind = path[-1][0]
        if kind == "endpoints":
            key = _get(given, "api_key", "apikey")
            self.endpoint(path, _get(given, "alias"), [key] if key else [])
        else:
            self._level(path)
        if given.get("upstream"):
            self._upstream(path, given["upstream"])
        for below in ("teams", "groups", "endpoints"):
            for child in _nodes(given, below):
                self.walk(child, (*path, (below, _name(child))))

    def endpoint(self, path: Path, alias: str, keys: Iterable[str]) -> None:
        """One, with its keys."""
        node = self._level(path)
        for key in keys:
            digest = sha256(key.encode()).hexdigest()
            held = node.setdefault("keys", [])
            if all(other["sha256"] != digest for other in held):
                held.append({"id": f"k{digest[:12]}", "sha256": digest})
        if not alias:
            return
        name = self._id(alias)
        if self._aliases.setdefault(name, path) != path:
            self.note(f"{_written(path)}: its alias '{alias}' is that of {_written(self._aliases[name])}, and left out")
        else:
            node["alias"] = name

    def ignored(self, endpoint: Node) -> None:
        """What stood in an endpoint in Redis, and was never used there."""
        if endpoint.get("upstream"):
            self.note(f"{_written(_place(endpoint))}: the upstream within the endpoint is left out: it was never used")

    def upstream_of_all(self, level: str, id: str, given: Node) -> None:
        """An upstream of each level of that kind and id: there, ids were unique."""
        kind = _KINDS.get(level)
        places = [path for path in self._places if kind and path[-1] == (kind, id)]
        if kind == "tenants" and not places:
            places = [((kind, id),)]
            self._level(places[0])
        if not places:
            self.note(f"the upstream of {level} '{id}' is left out: no endpoint belongs to that")
        for path in places:
            self._upstream(path, given)

    # --- what becomes of it ----------------------------------------------------------------------------------------

    def _level(self, path: Path) -> Node:
        node: Node = {"tenants": self._tenants}
        for depth, (kind, id) in enumerate(path, 1):
            self._places[path[:depth]] = None
            node = node.setdefault(kind, {}).setdefault(self._id(id), {})
        return node

    def _id(self, given: str) -> str:
        if not given:
            self.note(f"what had no id is named '{_UNNAMED}'")
            return _UNNAMED
        if given not in self._ids:
            made = given
            if not _ID.match(given):
                made = f"x{_ALMOST.sub('-', given)}-{sha256(given.encode()).hexdigest()[:6]}"
                self.note(f"the id '{given}' became '{made}'")
            self._ids[given] = made
        return self._ids[given]

    def _upstream(self, path: Path, given: Node) -> None:
        where = _written(path)
        several = given.get("group") or []
        held = _openai(several[0] if several else given)
        for other in several[1:]:
            host = urlsplit(_get(_openai(other), "base_url", "baseurl")).hostname
            self.note(f"{where}: of several upstreams the first is taken, as it was the one asked; left out: {host}")
        out: Node = {"base_url": self._address(where, _get(held, "base_url", "baseurl"))}
        out["api_key"] = _get(held, "api_key", "apikey")
        out["headers"] = {name: ", ".join(_values(value)) for name, value in (held.get("extra_headers") or {}).items()}
        if held.get("weight") is not None:
            self.note(f"{where}: the upstream's weight is left out: targets of a model have weights")
        if any(_leaves(held.get("compatible"))):
            self.note(f"{where}: what the upstream is compatible with is left out: a provider's kind says that")
        self._level(path)["upstreams"] = {self._provider: {name: value for name, value in out.items() if value}}

    def _address(self, where: str, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^\s?#@]+", url):
            self.note(f"{where}: the upstream's address is left out: it is no plain http(s) URL")
            return ""
        if not url:
            self.note(f"{where}: the upstream has no address: that of the level above or of '{self._provider}' holds")
        return url

    def _settle(self, root: Node, path: Path, node: Node) -> None:
        """Makes a level's upstream hold as a whole, as far as it can be said."""
        levels = [_at(root, path[:depth]) for depth in range(1, len(path))]
        above = [_override(level, self._provider) for level in levels]
        if path[-1][0] == "endpoints" and not any("upstreams" in level for level in (*levels, node)):
            self.note(f"{_written(path)}: there was no upstream, so it was refused; here it has the providers' own")
        if "upstreams" not in node:
            self._tell_skipped(path, above)
            return
        own = _override(node, self._provider)
        if "api_key" not in own and ("base_url" in own or any("api_key" in upstream for upstream in above)):
            own["api_key"] = ""
        if {name for upstream in above for name in upstream.get("headers", {})} - set(own.get("headers", {})):
            self.note(f"{_written(path)}: the headers of the levels above are sent, too")

    def _tell_skipped(self, path: Path, above: list[Node]) -> None:
        groups = [depth for depth, (kind, _) in enumerate(path[:-1]) if kind == "groups"]
        if path[-1][0] == "groups" and any(above[depth] for depth in groups):
            self.note(f"{_written(path)}: the upstream of the group around it holds here, too; there, it did not")


# --- theirs ----------------------------------------------------------------------------------------------------------


def _place(endpoint: Node) -> Path:
    owners = (("tenants", "tenant"), ("teams", "team"), ("groups", "group"))
    return (*((kind, _owner(endpoint.get(name))) for kind, name in owners), ("endpoints", _get(endpoint, "id")))


def _owner(value: Any) -> str:
    return _get(value, "id") if isinstance(value, dict) else str(value or "")


def _name(node: Node) -> str:
    return _get(node, "id")


def _get(node: Any, *names: str) -> str:
    """A text, by one of these names; case does not matter, as it did not there."""
    for name, value in node.items() if isinstance(node, dict) else ():
        if name.lower() in names and value:
            return str(value)
    return ""


def _nodes(node: Node, kind: str) -> list[Node]:
    return [child for child in node.get(kind) or () if isinstance(child, dict)]


def _openai(upstream: Any) -> Node:
    held = upstream.get("openai") if isinstance(upstream, dict) else None
    return held if isinstance(held, dict) else {}


def _values(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    else:
        yield value


def _json(raw: bytes | str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


# --- ours ------------------------------------------------------------------------------------------------------------


def _written(path: Path) -> str:
    return "/".join(f"{kind}/{id or _UNNAMED}" for kind, id in path)


def _levels(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    for kind in _KINDS.values():
        for id, child in node.get(kind, {}).items():
            below = (*path, (kind, id))
            yield below, child
            yield from _levels(child, below)


def _at(root: Node, path: Path) -> Node:
    for kind, id in path:
        root = root[kind][id]
    return root


def _override(node: Node, provider: str) -> Node:
    held: Node = node.get("upstreams", {}).get(provider, {})
    return held

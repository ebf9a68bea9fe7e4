"""Names of the catalog's resources: pairs of a kind and an id, from a tenant on."""

from __future__ import annotations

import json
import re
from typing import Final

from llmg.core.errors import Failure, invalid

Path = tuple[tuple[str, str], ...]
"""`tenants/acme/teams/search` is `(("tenants", "acme"), ("teams", "search"))`; the root of all is empty."""

CHILDREN: Final[dict[str, tuple[str, ...]]] = {
    "": ("tenants",),
    "tenants": ("teams",),
    "teams": ("groups",),
    "groups": ("groups", "endpoints"),
    "endpoints": (),
}
"""Which kinds of levels may lie right below one; the root's kind is empty."""
KEYS: Final = "keys"
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+\Z")
_DEEPEST: Final = 32


def kind_of(path: Path) -> str:
    """Of the last in it; the root's is empty."""
    return path[-1][0] if path else ""


def name_of(path: Path) -> str:
    """As it is written."""
    return "/".join(f"{kind}/{id}" for kind, id in path)


def place(*keys: str) -> str:
    """In the catalog, as mistakes name places: `tenants.acme`, but `tenants["acme.com"]`."""
    pieces = (f".{key}" if _PLAIN.match(key) else f"[{json.dumps(key, ensure_ascii=False)}]" for key in keys)
    return "".join(pieces).removeprefix(".")


def level_path(name: str, param: str = "name") -> Path:
    """Of a level. Raises Failure (invalid_request), naming the `param`."""
    pieces = name.split("/")
    if len(pieces) % 2 or len(pieces) > 2 * _DEEPEST:
        raise _wrong(param)
    path = tuple(zip(pieces[::2], pieces[1::2], strict=True))
    above = ""
    for kind, id in path:
        if kind not in CHILDREN[above] or not _ID.match(id):
            raise _wrong(param)
        above = kind
    return path


def endpoint_path(name: str, param: str = "parent") -> Path:
    """Of an endpoint. Raises Failure (invalid_request)."""
    path = level_path(name, param)
    if kind_of(path) != "endpoints":
        raise invalid(f"invalid '{param}': expected an endpoint, as only these have keys", param)
    return path


def key_path(name: str, param: str = "name") -> tuple[Path, str]:
    """Of a key: its endpoint's, and its id. Raises Failure (invalid_request)."""
    above, slash, id = name.rpartition(f"/{KEYS}/")
    if not slash or not _ID.match(id):
        raise invalid(f"invalid '{param}': expected the name of a key, such as {_EXAMPLE}/endpoints/web/keys/k1", param)
    return endpoint_path(above, param), id


def check_id(id: str, param: str) -> None:
    """Raises Failure (invalid_request)."""
    if not _ID.match(id):
        raise invalid(f"invalid '{param}': expected letters, digits, '.', '_' and '-', at most 128", param)


_EXAMPLE: Final = "tenants/acme/teams/search/groups/prod"


def _wrong(param: str) -> Failure:
    return invalid(f"invalid '{param}': expected the name of a level, such as {_EXAMPLE}", param)

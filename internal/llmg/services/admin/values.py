"""What the admin API shows, and what it is told. No secret is in what it shows, but for a key that was just made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

from msgspec import UNSET, Struct, UnsetType

T = TypeVar("T")


class Page(Struct, Generic[T], frozen=True):
    """Some of a list, and the token by which to go on; empty: these were the last."""

    items: Sequence[T]
    next: str = ""


class Upstream(Struct, frozen=True, kw_only=True):
    """What a level overrides of a provider. Of secrets it says whether they are set; of headers, which."""

    base_url: str | None = None
    address: str | None = None
    has_api_key: bool = False
    has_token: bool = False
    headers: tuple[str, ...] = ()


class Level(Struct, frozen=True, kw_only=True):
    """A level's own settings; what it has from the levels above is not here.

    `name` is its path: `tenants/acme/teams/search`. `allow` None: no list. `models` and `limits` are as in the
    configuration. `etag` changes whenever one of the settings does.
    """

    name: str
    etag: str
    allow: tuple[str, ...] | None = None
    models: dict[str, Any] = {}
    upstreams: dict[str, Upstream] = {}
    limits: dict[str, Any] = {}
    labels: dict[str, str] = {}
    alias: str | None = None


class UpstreamChange(Struct, frozen=True, kw_only=True):
    """What shall be overridden of a provider. Secrets that are None, and headers not named, stay as they are."""

    base_url: str | None = None
    address: str | None = None
    api_key: str | None = None
    token: str | None = None
    headers: dict[str, str] = {}
    remove_headers: tuple[str, ...] = ()


class Changes(Struct, frozen=True, kw_only=True):
    """New settings of a level. UNSET: as it is; None: none. Each is changed as a whole.

    Of `upstreams`, a provider that is not named loses all overrides.
    """

    allow: tuple[str, ...] | UnsetType | None = UNSET
    models: dict[str, Any] | UnsetType | None = UNSET
    upstreams: dict[str, UpstreamChange] | UnsetType | None = UNSET
    limits: dict[str, Any] | UnsetType | None = UNSET
    labels: dict[str, str] | UnsetType | None = UNSET
    alias: str | UnsetType | None = UNSET


class Key(Struct, frozen=True, kw_only=True):
    """A key of an endpoint. `name`: `tenants/.../endpoints/web/keys/k1`. `digest`: how its SHA-256 begins, in hex."""

    name: str
    digest: str
    expires: datetime | None = None
    revoked: bool = False


class Issued(Struct, frozen=True):
    """A new key. The `secret` is what clients show; it is here once, and kept nowhere."""

    key: Key
    secret: str

"""Who may ask, and for what: tenants, teams, groups within groups, endpoints and their keys."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, WithJsonSchema, model_validator

from llmg.boot.settings.limits import RateLimits
from llmg.boot.settings.models import Entry
from llmg.boot.settings.problems import Expected, Keys
from llmg.boot.settings.providers import OpenAIProvider, Provider
from llmg.boot.settings.types import (
    ApiKey,
    HeaderName,
    HeaderValue,
    HttpUrl,
    Key,
    ModelName,
    PeerAddress,
    ProviderName,
    Section,
    Text,
    Words,
)
from llmg.core.addresses import server
from llmg.services.admission import digest

_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
_A_TIME = "a date and time with its zone, such as 2026-12-31T00:00:00Z"


def _sha256(value: str) -> str:
    if not _SHA256.match(value):
        raise Expected("the SHA-256 of a key, in 64 hexadecimal digits")
    return value.lower()


def _time(value: object) -> object:
    if isinstance(value, datetime):
        return value
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise Expected(_A_TIME, show=True)
    return found


Sha256 = Annotated[
    str,
    AfterValidator(_sha256),
    WithJsonSchema({"type": "string", "pattern": _SHA256.pattern.replace(r"\Z", "$")}),
    Words("64 hexadecimal digits"),
]
Time = Annotated[
    datetime,
    BeforeValidator(_time),
    WithJsonSchema({"type": "string", "format": "date-time"}),
    Words("date and time with its zone"),
]


class EndpointKey(Section):
    """An API key of an endpoint: its SHA-256, or the key itself."""

    id: ProviderName = Field(description="Its name, for logs and to revoke it by.")
    sha256: Sha256 | None = Field(default=None, description="The SHA-256 of the key, in hexadecimal. Or else:")
    key: ApiKey | None = Field(
        default=None, description="The key. Write ${VARIABLE}, not the key itself. Only its SHA-256 is kept."
    )
    expires: Time | None = Field(default=None, description="From when on it is no longer good. Left out: never.")
    revoked: bool = Field(default=False, description="Whether it is no longer good from now on.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "EndpointKey":
        if (self.sha256 is None) == (self.key is None):
            raise Expected("either `sha256` or `key`")
        return self

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key."""
        if self.key is not None:
            return digest(self.key.get_secret_value())
        assert self.sha256 is not None
        return bytes.fromhex(self.sha256)


_SECRET = ("api_key", "token", "headers")
_KNOWN_BY = ("api_key", "token", "organization")


def _with_headers(held: Mapping[str, SecretStr], own: Mapping[str, SecretStr]) -> dict[str, SecretStr]:
    replaced = {name.lower() for name in own}
    return {**{name: value for name, value in held.items() if name.lower() not in replaced}, **own}


class Upstream(Section):
    """What is different in a provider, field by field. What is left out is as the level above has it."""

    base_url: HttpUrl | None = Field(
        default=None,
        description="For kind openai: another address. Another server gets no key and no headers from above, so it "
        'needs `api_key` beside it ("" for none), or `headers`.',
    )
    api_key: Key = Field(default=None, description='For kind openai: another key; "" for none.')
    headers: dict[HeaderName, HeaderValue] = Field(
        default={}, description="For kind openai: more headers, or others in the place of those of the same name."
    )
    address: PeerAddress | None = Field(
        default=None,
        description="For a running backend: another address. The token from above stays with its own, so another needs "
        '`token` beside it ("" for none).',
    )
    token: Key = Field(default=None, description='For a running backend: another token; "" for none.')

    def over(self, provider: Provider) -> Provider:
        """The provider with this over it: field by field, headers by their names.

        At another server nothing of the provider's own is sent along that it would know us by.
        """
        said: dict[str, object] = {
            name: getattr(self, name) for name in ("api_key", "token") if name in self.model_fields_set
        }
        said |= {name: value for name in ("base_url", "address") if (value := getattr(self, name)) is not None}
        moves = self.moves(provider)
        if moves:
            said = dict.fromkeys(set(_KNOWN_BY) & set(type(provider).model_fields)) | said
        if isinstance(provider, OpenAIProvider) and (self.headers or moves):
            said["headers"] = self.headers if moves else _with_headers(provider.headers, self.headers)
        return provider.model_copy(update=said)

    def moves(self, provider: Provider) -> bool:
        """Does it lead to another server than the provider's? Another path of the same one is none."""
        return any(
            own is not None and server(own) != server(getattr(provider, name, None))
            for name, own in (("base_url", self.base_url), ("address", self.address))
        )

    def leaves_open(self, provider: Provider) -> bool:
        """Does it lead to another server without saying what that shall know us by, in the place of what there is?"""
        given = self.headers or not self.model_fields_set.isdisjoint({"api_key", "token"})
        return not given and self.moves(provider) and any(getattr(provider, name, None) for name in _SECRET)


class Level(Section):
    """What may be said at every level."""

    holds: ClassVar[tuple[str, ...]] = ()
    """The fields in which other levels lie."""

    allow: tuple[Text, ...] | None = Field(
        default=None,
        description="Of the names of models from the levels above, including PROVIDER/MODEL, only these are seen here "
        "and below; * stands for any text. Left out: all of them.",
    )
    models: dict[ModelName, Entry] = Field(
        default={},
        description="Models of this level and those below, or other names for models. They are over those of the same "
        "names from above.",
    )
    upstreams: dict[ProviderName, Upstream] = Field(
        default={}, description="What is different in providers, by their names, at this level and below."
    )
    limits: RateLimits = Field(
        default=RateLimits(), description="What all requests of this level and those below may take together."
    )
    labels: dict[ProviderName, Text] = Field(default={}, description="Labels, over those of the levels above.")


class Endpoint(Level):
    """Where clients belong to."""

    alias: ProviderName | None = Field(default=None, description="A short name; there is no other endpoint of it.")
    keys: tuple[EndpointKey, ...] = Field(
        default=(), description="The API keys of its clients: several, so that a new one can take the place of an old."
    )


class Group(Level):
    """Endpoints, and groups of them, that have something in common."""

    holds = ("groups", "endpoints")
    groups: dict[ProviderName, "Group"] = Field(default={}, description="Groups within this one.")
    endpoints: dict[ProviderName, Endpoint] = Field(default={}, description="Its endpoints.")


class Team(Level):
    """A team of a tenant."""

    holds = ("groups",)
    groups: dict[ProviderName, Group] = Field(default={}, description="Its groups of endpoints.")


class Tenant(Level):
    """A tenant: who shares the gateway with others."""

    holds = ("teams",)
    teams: dict[ProviderName, Team] = Field(default={}, description="Its teams.")


class Admin(Section):
    """Who may change the catalog while the gateway runs."""

    keys: dict[ProviderName, ApiKey] = Field(
        default={},
        description="API keys of administrators, by a name of your choice. Write ${VARIABLE}, not the key itself. They "
        "may also ask whatever a key under `keys` may.",
    )


class Source(Section):
    """Where tenants are kept that may change while the gateway runs, instead of in the configuration."""

    file: Path | None = Field(default=None, description="A file (YAML or JSON) with what stands under `tenants`.")
    redis: bool = Field(default=False, description="Redis, as `redis` says.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "Source":
        if (self.file is None) != self.redis:
            raise Expected("either `file` or `redis: true`")
        return self


def walk(tenants: Mapping[str, Level]) -> Iterator[tuple[Keys, Level]]:
    """Every level with its place in the configuration, each after the one that it lies in."""
    waiting: list[tuple[Keys, Level]] = [(("tenants", name), tenant) for name, tenant in tenants.items()]
    while waiting:
        at, section = waiting.pop()
        yield at, section
        for kind in section.holds:
            waiting += [((*at, kind, name), level) for name, level in getattr(section, kind).items()]

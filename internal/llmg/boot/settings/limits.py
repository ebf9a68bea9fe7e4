"""How many requests may be made, and where they are counted."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from llmg.boot.settings.problems import Expected
from llmg.boot.settings.types import PositiveCount, ProviderName, Seconds, Section, UpTo5s, Words

_SCHEMES = ("redis", "rediss")


def _redis_url(value: SecretStr) -> SecretStr:
    """What is wrong is not shown: the password may be part of it."""
    try:
        url = urlsplit(value.get_secret_value())
        port = url.port
    except ValueError:
        raise Expected("a URL such as redis://127.0.0.1:6379/0") from None
    if url.scheme not in _SCHEMES or not url.hostname or port == 0:
        raise Expected("a URL such as redis://127.0.0.1:6379/0; rediss:// for TLS")
    if url.query or url.fragment or not (url.path in ("", "/") or url.path[1:].isdecimal()):
        raise Expected("a URL that ends with the number of a database, or after the port")
    return value


RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url), Words("redis or rediss URL")]


class RateLimits(Section):
    """What all requests of a level may take together. What is left out is not limited."""

    requests_per_minute: PositiveCount | None = Field(default=None, description="Requests in any 60 seconds.")
    tokens_per_minute: PositiveCount | None = Field(
        default=None, description="Tokens of prompts and answers in any 60 seconds."
    )
    max_concurrent: PositiveCount | None = Field(default=None, description="Requests at the same time.")

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return self.requests_per_minute is None and self.tokens_per_minute is None and self.max_concurrent is None


class Redis(Section):
    """A Redis (6.2 or later) or Valkey server that several gateways share."""

    url: RedisUrl = Field(
        description="redis://USER:PASSWORD@HOST:PORT/DATABASE, or rediss:// for TLS. Write ${VARIABLE}, not the "
        "password itself."
    )
    timeout: UpTo5s = Field(
        default=0.02, description="The longest that a request waits for it. Then `on_failure` holds, until it is back."
    )
    on_failure: Literal["local", "open", "closed"] = Field(
        default="local",
        description="The limits while it is away. local: each process keeps to its share, the limit divided by the "
        "number of processes known last, by what it lets in itself. open: there are none. closed: who has limits is "
        "refused (503).",
    )
    prefix: ProviderName = Field(default="llmg", description="What the names of its keys begin with, in braces.")
    lease: Annotated[float, Seconds(most=3600.0, least=1.0)] = Field(
        default=15.0, description="The time after which the requests of a gateway that is gone run no more."
    )
    ca: Path | None = Field(
        default=None, description="For rediss://: the certificates that sign the server's, instead of the system's."
    )


def check_limits(limits: Iterable[RateLimits], workers: int, redis: Redis | None) -> None:
    """Raises Expected where several worker processes have limits, and no place to count them together."""
    if workers > 1 and redis is None and not all(one.unlimited for one in limits):
        raise Expected("`redis`, as there are limits and several workers: they count together there")

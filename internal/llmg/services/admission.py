"""What every door does before it asks: who is it, and under which ids does the request run?"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from llmg import ports
from llmg.core.context import ANONYMOUS, Context, Observer, Principal
from llmg.core.errors import Failure, Kind, invalid
from llmg.ports import Clock, Ids
from llmg.routing.catalog import Catalog

LONGEST: Final = 10 * 365 * 86400.0  # seconds: timers and gRPC's deadlines overflow far beyond
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}\Z")


class Authenticator:
    """Knows clients by their API keys. The catalog is asked for anew each time, so it may be exchanged at any."""

    def __init__(self, catalog: Callable[[], Catalog], clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock

    def authenticate(self, key: str | None, /) -> Principal:
        """See ports.Authenticator."""
        catalog = self._catalog()
        if catalog.anonymous is not None:
            return catalog.anonymous
        if not key:
            words = "an API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise Failure(Kind.UNAUTHENTICATED, words)
        return catalog.find(digest(key), self._clock.time())


def digest(key: str) -> bytes:
    """The SHA-256 of an API key, which is all that is kept of it."""
    return sha256(key.encode(errors="surrogateescape")).digest()


def bearer(authorization: str | None, api_key: str | None) -> str | None:
    """The key that a client shows in its headers. A scheme other than Bearer (RFC 6750) is no key of ours."""
    if authorization is not None:
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return credentials.strip() or api_key
    return api_key


def seconds(text: str | None) -> float | None:
    """The time that a client gives its request (`x-llmg-timeout`, in seconds), LONGEST at most.

    Raises Failure (invalid_request).
    """
    if text is None:
        return None
    try:
        given = float(text)
    except ValueError:
        given = 0.0
    if not 0 < given < float("inf"):
        raise invalid("invalid 'x-llmg-timeout': expected a number of seconds above 0", "x-llmg-timeout")
    return min(given, LONGEST)


class Admission:
    """Lets requests in, the same way at each door."""

    def __init__(self, authenticator: ports.Authenticator, clock: Clock, ids: Ids, observer: Observer) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._ids = ids
        self._observer = observer

    def principal(self, authorization: str | None, api_key: str | None) -> Principal:
        """Who shows these headers (`authorization`, `x-api-key`). Raises Failure (unauthenticated)."""
        return self._authenticator.authenticate(bearer(authorization, api_key))

    def request_id(self, asked: str | None = None) -> str:
        """The client's own (`x-request-id`) where it has one that can be repeated to it, else a new one."""
        return asked if asked and _REQUEST_ID.match(asked) else f"req_{self._ids.new()[:24]}"

    def context(
        self,
        door: str,
        request_id: str,
        principal: Principal = ANONYMOUS,
        *,
        traceparent: str | None = None,
        session: str | None = None,
        remaining: float | None = None,
    ) -> Context:
        """The context of one request. `session`: what it belongs to, in the client's own words (`x-llmg-session`).
        `remaining`: seconds to its deadline, which is LONGEST away at most."""
        return Context(
            id=self._ids.new(),
            request_id=request_id,
            door=door,
            created=int(self._clock.time()),
            principal=principal,
            deadline=None if remaining is None else self._clock.monotonic() + min(remaining, LONGEST),
            traceparent=traceparent,
            session=session,
            trail=[],
            observer=self._observer,
        )

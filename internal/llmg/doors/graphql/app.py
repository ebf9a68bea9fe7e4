"""The GraphQL door as an ASGI application, for one path: HTTP and WebSocket."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from llmg.doors.graphql.asking import Gateway
from llmg.doors.graphql.exchange import STREAMS, Exchange, Options, words
from llmg.doors.graphql.limits import Limits
from llmg.doors.graphql.schema import DEFAULT_LIMITS, Schema, make_schema
from llmg.doors.graphql.sockets import PROTOCOLS, Sockets
from llmg.doors.http.guard import Guard
from llmg.doors.http.pages import from_browser, graphiql_page
from llmg.doors.http.refusing import ByPath
from llmg.ports import Provider
from llmg.services.admin import Admin
from llmg.services.admission import Admission
from llmg.services.explain import Explain
from llmg.services.models import Models

TRANSPORTS: Final = frozenset({*STREAMS, *PROTOCOLS})


class Door:
    """One ASGI application for both kinds of connection."""

    def __init__(
        self, gateway: Gateway, schema: Schema, options: Options, sockets: ASGIApp, page: ASGIApp | None
    ) -> None:
        self._gateway = gateway
        self._schema = schema
        self._options = options
        self._sockets = sockets
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one connection."""
        if scope["type"] == "websocket":
            await self._sockets(scope, receive, send)
        elif self._page is not None and from_browser(scope):
            await self._page(scope, receive, send)
        else:
            await Exchange(scope, receive, send, self._gateway, self._schema, self._options).handle()


def make_graphql(
    *,
    pipeline: Provider,
    models: Models,
    admission: Admission,
    explain: Explain | None = None,
    admin: Admin | None = None,
    introspection: bool = True,
    graphiql: bool = False,
    transports: Collection[str] = TRANSPORTS,
    max_depth: int = DEFAULT_LIMITS.depth,
    max_aliases: int = DEFAULT_LIMITS.aliases,
    max_tokens: int = DEFAULT_LIMITS.tokens,
    max_body: int = 32 << 20,
    max_operations: int = 100,
    heartbeat: float = 10.0,
    init_timeout: float = 10.0,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """The door, to be mounted at one path for HTTP and WebSocket.

    `explain` None: routes are not explained here; `admin` None: the catalog is not administered here. `graphiql`:
    browsers are shown it (its assets are to be mounted beside the door: doors/http/pages.py). `transports`: which of
    TRANSPORTS subscriptions may use. `max_depth`, `max_aliases`, `max_tokens` bound a document; `max_body` bytes;
    `max_operations` at once over one WebSocket. `heartbeat`: seconds of silence in a stream after which one is sent;
    `init_timeout`: seconds for a WebSocket's connection_init. `origins`: other origins whose pages may open a WebSocket
    here, besides this host's and loopback's.
    """
    gateway = Gateway(pipeline, models, admission, explain, admin)
    schema = make_schema(Limits(max_depth, max_aliases, max_tokens), introspection=introspection)
    options = Options(max_body=max_body, heartbeat=heartbeat, streams=STREAMS & frozenset(transports))
    sockets = Sockets(
        gateway,
        schema,
        protocols=[name for name in PROTOCOLS if name in transports],
        init_timeout=init_timeout,
        operations=max_operations,
    )
    guarded = Guard(sockets, hosts=None, origins=origins, words=ByPath({"": words}))
    return Door(gateway, schema, options, guarded, graphiql_page() if graphiql else None)

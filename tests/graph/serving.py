"""The GraphQL door on a real socket, within the test's event loop; what the tests of it have in common."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llmg.core.context import SILENT, Principal
from llmg.core.errors import Failure, Kind
from llmg.doors.graphql.app import make_graphql
from llmg.ports import Provider
from llmg.providers.echo import Echo
from llmg.routing import models as routing
from llmg.routing.catalog import EVERYBODY
from llmg.routing.limits.local import Local
from llmg.routing.policies import RoundRobin
from llmg.services.admission import Admission, Authenticator
from llmg.services.explain import Explain
from llmg.services.models import Model, Models
from llmg.testing.clocks import FakeClock
from llmg.testing.ids import CountingIds
from llmg.testing.models import Models as Table
from support.http import Response, connect

MODEL = Model(id="m", created=1_700_000_000, owner="echo", operations=("chat", "embed"))
ROUTES = Table(
    {
        "m": routing.Group(
            name="m", targets=(routing.Target(provider="echo", model="m", inner=Echo()),), policy=RoundRobin()
        )
    },
    {},
)
CHAT = "mutation ($input: ChatInput!) { createChatCompletion(input: $input) { id model choices { text } } }"
STREAM = """subscription ($input: ChatInput!) { chatCompletion(input: $input) {
  text events { __typename ... on Delta { part delta: text } ... on Finished { reason } } } }"""


def asking(text: str = "Hello there", **fields: Any) -> dict[str, Any]:
    """Variables for a chat of one message."""
    messages = [{"role": "USER", "parts": [{"text": {"text": text}}]}]
    return {"input": {"model": "m", "messages": messages, **fields}}


def find(id: str, _: Principal) -> Model:
    """The one model."""
    if id != MODEL.id:
        raise Failure(Kind.MODEL_NOT_FOUND, f"there is no model {id!r}", param="model")
    return MODEL


class Door:
    """Where it listens, and short ways to ask it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    @property
    def socket_url(self) -> str:
        """For WebSocket clients."""
        return "ws://{}:{}/graphql".format(*self.address)

    async def raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> Response:
        """One request; underscores in headers' names stand for dashes."""
        async with connect(self.address) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await connection.ask(method, path, body, named)

    async def post(self, body: Any, **headers: str) -> Response:
        """A POST of JSON."""
        return await self.raw(
            "POST", "/graphql", json.dumps(body).encode(), **{"content_type": "application/json", **headers}
        )

    async def ask(self, query: str, variables: dict[str, Any] | None = None, **headers: str) -> Any:
        """An operation's answer, which is 200."""
        response = await self.post({"query": query, "variables": variables}, **headers)
        assert response.status == 200, response
        return response.json()

    async def refused(self, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """An operation's only error."""
        answer = await self.ask(query, variables)
        assert len(answer["errors"]) == 1, answer
        error: dict[str, Any] = answer["errors"][0]
        return error


@asynccontextmanager
async def serving(
    provider: Provider | None = None,
    *,
    http: type[HttpToolsProtocol] = HttpToolsProtocol,
    grace: float = 1.0,
    **options: Any,
) -> AsyncIterator[Door]:
    """The door in front of a provider; the echo, where none is given. `grace`: seconds for what is under way then."""
    explain = Explain(lambda _: ROUTES, lambda _: None, Local(FakeClock()), FakeClock(), lambda _: True)
    app = make_graphql(
        pipeline=provider or Echo(),
        models=Models(lambda _: [MODEL], find),
        admission=Admission(Authenticator(lambda: EVERYBODY, FakeClock()), FakeClock(), CountingIds(), SILENT),
        **{"explain": explain, **options},
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(
        app, http=http, ws="websockets-sansio", ws_per_message_deflate=False, lifespan="off", log_config=None
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    await server.on_tick(0)  # makes the headers of all answers
    try:
        yield Door(listener.getsockname())
    finally:
        await _stop(server, grace)


async def _stop(server: uvicorn.Server, grace: float) -> None:
    """As uvicorn does it; but that looks only ten times a second whether it is to, and again whether it is over."""
    state = server.server_state
    for listening in server.servers:
        listening.close()
    for connection in list(state.connections):
        connection.shutdown()
    with suppress(TimeoutError):
        async with asyncio.timeout(grace):
            while state.connections or state.tasks:
                await asyncio.sleep(0)
    for task in state.tasks:
        task.cancel()

"""The door on a server that is not ours, which does not tell when a client has left: uvicorn as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from llmg.core.context import SILENT
from llmg.doors.rest.app import make_door, openai_routes
from llmg.doors.rest.inference import ChatCompletions, Embeddings
from llmg.routing.catalog import EVERYBODY
from llmg.services.admission import Admission, Authenticator
from llmg.services.models import Models
from llmg.testing.clocks import FakeClock
from llmg.testing.ids import CountingIds
from llmg.testing.scripted import Gate, Scripted, saying
from support.gateway import Gateway, chat
from support.http import request

both = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@asynccontextmanager
async def plain(provider: Scripted) -> AsyncIterator[Gateway]:
    """The door before this provider, on uvicorn's own protocol."""
    admission = Admission(Authenticator(lambda: EVERYBODY, FakeClock()), FakeClock(), CountingIds(), SILENT)
    door = make_door(
        openai_routes(
            chat=ChatCompletions(provider, admission, 1 << 20, 10.0),
            embeddings=Embeddings(provider, admission, 1 << 20, 10.0),
            models=Models(lambda _: [], lambda name, _: pytest.fail(name)),
            admission=admission,
        )
    )
    config = Config(door, http="httptools", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpToolsProtocol(config, state, {}), "127.0.0.1", 0
    )
    try:
        yield Gateway(server.sockets[0].getsockname())
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        await asyncio.gather(*state.tasks)


@both
async def test_it_answers(stream: bool) -> None:
    async with plain(Scripted(saying("Hello", " there"))) as gateway:
        response = await gateway.chat(stream=stream)
        assert response.status == 200
        assert b"Hello" in response.body
        assert b"there" in response.body


@both
async def test_it_refuses(stream: bool) -> None:
    async with plain(Scripted()) as gateway:
        response = await gateway.chat(stream=stream, n=0)
        assert response.status == 400
        assert response.error["param"] == "n"


@both
async def test_who_leaves_ends_the_call(stream: bool) -> None:
    gate = Gate()
    provider = Scripted([*saying("Hello")[:2], gate, *saying("Hello")[2:]])
    async with plain(provider) as gateway, gateway.connect() as connection:
        body = json.dumps(chat(stream=stream)).encode()
        await connection.send(request("POST", "/v1/chat/completions", body))
        async with asyncio.timeout(10):
            await gate.reached.wait()
        if stream:
            await connection.head()
            await connection.chunk()
        await connection.leave()
        async with asyncio.timeout(1):
            await provider.calls[0].exited.wait()
        assert provider.calls[0].cancelled.is_set()

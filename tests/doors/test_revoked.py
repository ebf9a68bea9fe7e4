"""Sockets last for days: whose key it is that one has shown is asked for each request anew."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from llmg.boot.system import SystemClock
from llmg.core.context import SILENT, Principal
from llmg.core.errors import Failure, Kind
from llmg.services.admission import Admission
from llmg.testing.ids import CountingIds
from llmg.testing.scripted import Gate, Script, Scripted, saying
from support import graphql
from support.doors import rest_door
from support.http import PATIENCE

KEY = "key-" + "a" * 20
REVOKED = Failure(Kind.UNAUTHENTICATED, "the API key was revoked")


class Fickle:
    """An Authenticator that changes its mind."""

    def __init__(self) -> None:
        self.known: Principal | None = Principal(key_id="first")

    def authenticate(self, key: str | None, /) -> Principal:
        if key != KEY:
            raise Failure(Kind.UNAUTHENTICATED, "an API key is needed")
        if self.known is None:
            raise REVOKED
        return self.known


class Speaker:
    """One connection that has greeted, in one of the protocols."""

    def __init__(self, wire: ClientConnection, protocol: str) -> None:
        self._wire = wire
        self._protocol = protocol

    async def tell(self, **frame: Any) -> None:
        await self._wire.send(json.dumps(frame))

    async def hear(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await self._wire.recv())
        return frame

    async def start(self, id: str) -> None:
        """A chat."""
        if self._protocol == "llmg.v1":
            request = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
            await self.tell(type="start", id=id, request=request)
            return
        message = {"role": "USER", "parts": [{"text": {"text": "Hello"}}]}
        payload = {"query": graphql.STREAM, "variables": {"input": {"model": "m", "messages": [message]}}}
        await self.tell(type="start" if self._protocol == "graphql-ws" else "subscribe", id=id, payload=payload)

    async def end(self, id: str) -> str | None:
        """How a chat ends: with which code of an error, if with one."""
        code = None
        while True:
            frame = await self.hear()
            assert frame["id"] == id
            if frame["type"] in ("done", "complete"):
                return code
            if frame["type"] == "error":
                return str(frame["error"]["code"]).upper()
            for error in frame.get("payload", {}).get("errors", ()):
                code = error["extensions"]["code"]


PROTOCOLS = {"llmg.v1": "/v1/ws", "graphql-transport-ws": "/graphql", "graphql-ws": "/graphql"}


@asynccontextmanager
async def speaking(protocol: str, shows: str, keys: Fickle, provider: Scripted) -> AsyncIterator[Speaker]:
    """Somebody who has shown the key in the handshake, or in the greeting."""
    let_in = Admission(keys, SystemClock(), CountingIds(), SILENT)
    greeting: dict[str, Any] = {"type": "init" if protocol == "llmg.v1" else "connection_init"}
    if shows == "greeting":
        greeting |= {"key": KEY} if protocol == "llmg.v1" else {"payload": {"apiKey": KEY}}
    async with (
        rest_door(provider, let_in=let_in) as door,
        connect(
            "ws://{}:{}{}".format(*door.address, PROTOCOLS[protocol]),
            subprotocols=[Subprotocol(protocol)],
            additional_headers={"Authorization": f"Bearer {KEY}"} if shows == "handshake" else {},
            open_timeout=PATIENCE,
        ) as wire,
    ):
        speaker = Speaker(wire, protocol)
        await speaker.tell(**greeting)
        assert (await speaker.hear())["type"] in ("ready", "connection_ack")
        yield speaker


@pytest.mark.parametrize("shows", ["handshake", "greeting"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_key_that_is_revoked_meanwhile(protocol: str, shows: str) -> None:
    keys, gate = Fickle(), Gate()
    provider = Scripted(saying("hi"), Script(steps=[gate, *saying("hi")]), saying("hi"))
    async with speaking(protocol, shows, keys, provider) as it:
        await it.start("1")
        assert await it.end("1") is None
        keys.known = Principal(key_id="second")
        await it.start("2")
        await gate.reached.wait()
        keys.known = None
        await it.start("3")
        assert await it.end("3") == "UNAUTHENTICATED"
        gate.open()  # what is under way goes on
        assert await it.end("2") is None
        keys.known = Principal(key_id="third")
        await it.start("4")
        assert await it.end("4") is None
    assert [call.context.principal.key_id for call in provider.calls] == ["first", "second", "third"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_handshakes_headers_are_each_requests(protocol: str) -> None:
    provider = Scripted(saying("hi"))
    async with speaking(protocol, "handshake", Fickle(), provider) as it:
        await it.start("1")
        assert await it.end("1") is None
    header = provider.calls[0].context.header
    assert header("authorization") == f"Bearer {KEY}"
    assert header("x-other") is None

"""Which protocols are served, and where."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest

from boot.conftest import Serve, Served, at
from llmg.boot.exposure import wanted
from llmg.boot.settings import Settings
from support.gateway import ECHO, Gateway

QUERY = {"query": "{ models { id } }"}


async def statuses(gateway: Gateway) -> dict[str, int]:
    """What answers at each door's path."""
    return {
        "rest": (await gateway.ask("GET", "/v1/models")).status,
        "graphql": (await gateway.post("/graphql", QUERY, {"Content-Type": "application/json"})).status,
        "health": (await gateway.ask("GET", "/healthz")).status,
    }


async def test_graphql_alone(serve: Serve) -> None:
    gateway = await serve(ECHO, "--door", "graphql")
    assert await statuses(gateway) == {"rest": 404, "graphql": 200, "health": 200}
    assert gateway.grpc_address == ""


async def test_grpc_alone(serve: Serve) -> None:
    gateway = await serve(ECHO, "--door", "grpc")
    assert gateway.grpc_address != ""
    assert "address" not in gateway.entries[0]


@pytest.mark.parametrize("words", [(), ("--workers", "2")])
async def test_graphql_at_a_port_of_its_own(serve: Serve, words: Sequence[str]) -> None:
    config = {**ECHO, "graphql": {"server_addr": "127.0.0.1:0"}}
    gateway = await serve(config, *words, ready=2 if words else 1)
    assert await statuses(gateway) == {"rest": 200, "graphql": 404, "health": 200}
    own = Gateway(at((await gateway.said("ready"))[0]["graphql_address"]))
    assert await statuses(own) == {"rest": 404, "graphql": 200, "health": 200}
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    assert gateway.complaints == []


async def test_nothing_to_serve(serve: Serve) -> None:
    off = {name: {"enabled": False} for name in ("rest", "websocket", "gateway", "graphql", "grpc")}
    gateway: Served = await serve({**ECHO, **off}, ready=0)
    assert await gateway.ended() == 2
    assert "every protocol is off" in "".join(gateway.lines)


def test_where_http_listens() -> None:
    both = Settings(graphql={"server_addr": "127.0.0.1:9"})
    assert wanted(both) == {"http": ("127.0.0.1", 8080), "graphql": ("127.0.0.1", 9)}
    assert list(wanted(Settings())) == ["http"]
    off = {name: {"enabled": False} for name in ("rest", "websocket", "gateway")}
    assert list(wanted(Settings(**off))) == ["http"]
    assert list(wanted(Settings(**off, graphql={"server_addr": "127.0.0.1:9"}))) == ["graphql"]
    assert wanted(Settings(**off, graphql={"enabled": False, "server_addr": "127.0.0.1:9"})) == {}


@pytest.mark.parametrize(("trusted", "seen"), [(("127.0.0.0/8",), "203.0.113.7"), (("192.0.2.1",), "127.0.0.1")])
async def test_only_a_trusted_proxy_is_believed_who_asks(serve: Serve, trusted: Sequence[str], seen: str) -> None:
    http = {"server_addr": "127.0.0.1:0", "access_log": True, "forwarded_allow_ips": trusted}
    gateway = await serve({**ECHO, "http": http})
    told = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    assert (await gateway.ask("GET", "/v1/models", headers=told)).status == 200
    gateway.tell(signal.SIGTERM)
    assert await gateway.ended() == 0
    asked = [line for line in gateway.lines if "/v1/models" in line]
    assert len(asked) == 1
    assert seen in asked[0]

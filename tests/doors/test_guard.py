"""Who may come in by a web page: Host and Origin."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from llmg.doors.http.guard import Guard, is_loopback
from support.gateway import ECHO, in_process

PORT = ":8080"


async def passes(host: str, origin: str = "", *, kind: str = "http", **options: Any) -> int:
    """The status that a request with these gets: 200 when it passes."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        return {"type": f"{kind}.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    given = [(b"host", host.encode()), (b"origin", origin.encode())]
    scope = {
        "type": kind,
        "path": "/",
        "headers": [(name, value) for name, value in given if value],
        "extensions": {"websocket.http.response": {}},
    }
    await Guard(app, **{"hosts": (), "origins": (), **options})(scope, receive, send)
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST", "a.localhost", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080", ""]
)
async def test_names_of_this_machine_are_answered(host: str) -> None:
    assert await passes(host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "127.evil", "10.0.0.1", "[", "localhost@e"]
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_other_names_are_not(host: str, kind: str) -> None:
    assert await passes(host, kind=kind) == 403


async def test_a_name_can_be_given() -> None:
    assert await passes("llmg.internal:8080", hosts=("llmg.internal",)) == 200
    assert await passes("other.internal:8080", hosts=("llmg.internal",)) == 403


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:1", "https://a.ok"])
async def test_pages_of_this_machine_and_of_named_origins_may(origin: str) -> None:
    assert await passes("localhost", origin, origins=("https://a.ok",)) == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://["])
@pytest.mark.parametrize("hosts", [(), None])
async def test_other_pages_may_not(origin: str, hosts: Any) -> None:
    assert await passes("localhost", origin, hosts=hosts) == 403


async def test_elsewhere_a_page_of_the_same_host_may() -> None:
    assert await passes("llmg.internal:8080", "http://llmg.internal:8080", hosts=None) == 200
    assert await passes("llmg.internal:8080", "http://llmg.internal", hosts=None) == 403


async def test_what_was_good_once_does_not_make_others_good() -> None:
    assert is_loopback("localhost")
    assert not is_loopback("")


async def test_a_page_with_a_name_of_its_own_is_refused() -> None:
    """DNS rebinding: the page's host name points here, so that it is of the same origin."""
    async with in_process(ECHO) as gateway:
        for headers in ({"Host": "evil.example:8080"}, {"Origin": "https://evil.example"}):
            answer = await gateway.ask("GET", "/v1/models", headers=headers)
            assert answer.status == 403
            assert answer.error["code"] == "permission_denied"
            assert "evil.example" in answer.error["message"]
            assert "http." in answer.error["message"]


async def test_a_name_that_leads_to_loopback_is_loopback() -> None:
    config = {**ECHO, "http": {"server_addr": f"{socket.gethostname()}:0"}}
    own = {address[0] for *_, address in socket.getaddrinfo(socket.gethostname(), None)}
    expected = 403 if all(is_loopback(str(address)) for address in own) else 200
    async with in_process(config) as gateway:
        assert (await gateway.ask("GET", "/v1/models", headers={"Host": "evil.example"})).status == expected


async def test_where_names_are_given_they_hold_everywhere() -> None:
    async with in_process({**ECHO, "http": {"server_addr": "0.0.0.0:0", "hosts": ["llmg.internal"]}}) as gateway:
        assert (await gateway.ask("GET", "/v1/models", headers={"Host": "llmg.internal"})).status == 200
        assert (await gateway.ask("GET", "/v1/models", headers={"Host": "evil.example"})).status == 403


async def test_with_keys_any_name_and_page_will_do() -> None:
    async with in_process({**ECHO, "keys": {"app": "k" * 16}}) as gateway:
        headers = {"Host": "llmg.example", "Origin": "https://app.example", "Authorization": f"Bearer {'k' * 16}"}
        assert (await gateway.ask("GET", "/v1/models", headers=headers)).status == 200


async def test_named_origins_may_read_the_answers() -> None:
    async with in_process({**ECHO, "http": {"origins": ["https://app.example"]}}) as gateway:
        asked = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        preflight = await gateway.ask("OPTIONS", "/v1/chat/completions", headers=asked)
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        answer = await gateway.ask("GET", "/v1/models", headers={"Origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        refused = await gateway.ask("GET", "/v1/models", headers={"Origin": "https://evil.example"})
        assert refused.status == 403

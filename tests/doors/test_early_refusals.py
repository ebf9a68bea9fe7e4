"""What is answered before a door is reached, or beside it, is said in the words of the door whose path it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from llmg.core.errors import Failure
from llmg.doors.gateway.app import words as jsonapi_words
from llmg.doors.http.refusing import ByPath, Refusal, openai
from support.gateway import ECHO, Gateway, in_process
from support.http import PATIENCE, Response, request
from support.sockets import serving

Shape = Callable[[Response], dict[str, Any]]
KEY = "k" * 16
NARROW = {"max_headers": "4KiB", "header_timeout": "150ms", "body_timeout": "150ms", "max_body": "64KiB"}
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def as_openai(response: Response) -> dict[str, Any]:
    """Code, words and the request's id, of an error in OpenAI's shape."""
    error = response.error
    return {"code": error["code"], "message": error["message"], "id": response.headers["x-request-id"]}


def as_jsonapi(response: Response) -> dict[str, Any]:
    """Of one in JSON:API's."""
    assert response.headers["content-type"] == "application/vnd.api+json", response
    [error] = response.json()["errors"]
    assert error["status"] == str(response.status)
    assert error["title"]
    return {"code": error["code"], "message": error["detail"], "id": error["id"]}


def as_graphql(response: Response, kind: str = "application/json") -> dict[str, Any]:
    """Of one in GraphQL's."""
    assert response.headers["content-type"] == f"{kind}; charset=utf-8", response
    body = response.json()
    assert set(body) == {"errors"}, body
    [error] = body["errors"]
    extensions = error["extensions"]
    return {"code": extensions["code"].lower(), "message": error["message"], "id": extensions["requestId"]}


DOORS: dict[str, Shape] = {
    "/v1/chat/completions": as_openai,
    "/v1/ws": as_openai,
    "/v1/nothing": as_openai,
    "/api/v1/chat/completions": as_jsonapi,
    "/api/v1/models?pageSize=1": as_jsonapi,
    "/api": as_jsonapi,
    "/graphql": as_graphql,
    "/graphql/below": as_graphql,
    "/graphqlx": as_openai,
    "/": as_openai,
}
at_each_door = pytest.mark.parametrize(("path", "shape"), DOORS.items(), ids=DOORS)


def check(response: Response, shape: Shape, status: int, code: str) -> None:
    """Asserts that it is this refusal, in this shape."""
    assert response.status == status, response
    told = shape(response)
    assert told["code"] == code
    assert told["message"]
    assert told["id"] == response.headers["x-request-id"] == "req-7"


@pytest.fixture
async def narrow() -> AsyncIterator[Gateway]:
    """A gateway with all doors of HTTP, and small limits."""
    async with in_process({**ECHO, "http": NARROW}) as gateway:
        yield gateway


async def sent(gateway: Gateway, data: bytes) -> Response:
    """The answer to these bytes."""
    async with gateway.connect() as connection:
        await connection.send(data)
        return await connection.response()


def begun(path: str, headers: Mapping[str, str] = {}, method: str = "POST") -> bytes:
    """A request's head, of the id `req-7`; the parser tells of a header when it has seen the next."""
    return request(method, path, headers={"X-Request-Id": "req-7", **headers, "X-Last": ""})


@at_each_door
async def test_a_page_that_nobody_named(narrow: Gateway, path: str, shape: Shape) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        check(await sent(narrow, begun(path, headers)), shape, 403, "permission_denied")
        check(await sent(narrow, begun(path, {**HANDSHAKE, **headers}, "GET")), shape, 403, "permission_denied")


@at_each_door
async def test_headers_that_are_too_large(narrow: Gateway, path: str, shape: Shape) -> None:
    check(await sent(narrow, begun(path, {"X": "x" * 5000})), shape, 431, "request_too_large")
    check(await sent(narrow, begun(path, {"X": "x" * 5000, **HANDSHAKE}, "GET")), shape, 431, "request_too_large")


@at_each_door
async def test_a_head_or_a_body_that_is_no_http(narrow: Gateway, path: str, shape: Shape) -> None:
    check(await sent(narrow, begun(path)[:-2] + b"bad header\r\n\r\n"), shape, 400, "invalid_request")
    check(await sent(narrow, begun(path, {"Transfer-Encoding": "chunked"}) + b"zz\r\n"), shape, 400, "invalid_request")


@at_each_door
async def test_a_head_that_is_slow(narrow: Gateway, path: str, shape: Shape) -> None:
    check(await sent(narrow, begun(path)[:-2]), shape, 408, "client_timeout")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/chat/completions", "/graphql"])
async def test_a_body_that_is_slow_or_too_large(narrow: Gateway, path: str) -> None:
    headers = {"Content-Length": "10", "Content-Type": "application/json"}
    check(await sent(narrow, begun(path, headers) + b"{"), DOORS[path], 408, "client_timeout")
    headers["Content-Length"] = "100000"
    check(await sent(narrow, begun(path, headers)), DOORS[path], 413, "request_too_large")


@at_each_door
async def test_a_handshake_that_is_none(narrow: Gateway, path: str, shape: Shape) -> None:
    for name, value in (("Sec-WebSocket-Key", "short"), ("Sec-WebSocket-Version", "7")):
        response = await sent(narrow, begun(path, {**HANDSHAKE, name: value}, "GET"))
        check(response, shape, 400, "invalid_request")
        assert "WebSocket handshake" in shape(response)["message"]
        assert name in shape(response)["message"]


async def test_a_handshake_by_a_wrong_key() -> None:
    async with in_process({**ECHO, "keys": {"app": KEY}}) as gateway:
        for path in ("/v1/ws", "/graphql"):
            wrong = {**HANDSHAKE, "Authorization": "Bearer wrong", "Sec-WebSocket-Protocol": "graphql-transport-ws"}
            response = await sent(gateway, begun(path, wrong, "GET"))
            check(response, DOORS[path], 401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/api", "/graphql/below", "/graphqlx", "/v1/nothing", "/", "/api/v1/nothing"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
async def test_nothing_there(narrow: Gateway, path: str, method: str) -> None:
    check(await sent(narrow, begun(path, method=method)), DOORS.get(path, as_jsonapi), 404, "not_found")


@pytest.mark.parametrize("path", ["/api/v1/chat/completions", "/graphql/below", "/v1/chat/completions"])
async def test_no_websocket_there(narrow: Gateway, path: str) -> None:
    check(await sent(narrow, begun(path, HANDSHAKE, "GET")), DOORS[path], 404, "not_found")


@pytest.mark.parametrize("path", ["/api/v1/chat/completions", "/graphql", "/v1/chat/completions"])
async def test_another_method(narrow: Gateway, path: str) -> None:
    response = await sent(narrow, begun(path, method="DELETE"))
    check(response, DOORS[path], 405, "method_not_allowed")
    assert response.headers["allow"]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/graphql-response+json, application/json;q=0.9", "application/graphql-response+json"),
        ("text/event-stream, application/graphql-response+json", "application/graphql-response+json"),
        ("text/event-stream", "application/json"),
        ("*/*", "application/json"),
    ],
)
async def test_graphql_is_told_by_the_type_that_its_client_takes(narrow: Gateway, accept: str, kind: str) -> None:
    refusals = [
        begun("/graphql", {"Accept": accept, "Origin": "https://evil.example"}),
        begun("/graphql", {"Accept": accept, "X": "x" * 5000}),
        begun("/graphql/below", {"Accept": accept}),
    ]
    for data in refusals:
        assert as_graphql(await sent(narrow, data), kind)["message"]


async def test_a_request_without_a_path_is_told_in_openais_words(narrow: Gateway) -> None:
    for data in (b"hello\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n", b"", b"GET http://[ HTTP/1.1\r\nhost: a\r\n\r\n"):
        assert as_openai(await sent(narrow, data))["code"] in ("invalid_request", "client_timeout")


async def test_what_was_asked_before_over_the_connection_does_not_matter(narrow: Gateway) -> None:
    async with narrow.connect() as connection:
        await connection.send(begun("/graphql", method="DELETE"))
        assert (await connection.response()).status == 405
        await connection.send(b"nonsense\r\n\r\n")
        assert as_openai(await connection.response())["code"] == "invalid_request"


# -- the server itself ----------------------------------------------------------------------------------------------


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    """Leaves a handshake as it is."""
    await receive()


WORDS = ByPath({"/api": jsonapi_words})


async def test_a_handshake_that_nobody_answers() -> None:
    async with serving(broken, words=WORDS) as served:
        check(await sent(served, begun("/api/ws", HANDSHAKE, "GET")), as_jsonapi, 500, "internal")


async def test_handshakes_while_the_server_drains() -> None:
    asked = asyncio.Event()

    async def held(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with serving(held, words=WORDS) as served, served.connect() as first, served.connect() as late:
        await late.send(begun("/api/ws", HANDSHAKE, "GET")[:-2])
        await first.send(begun("/api/ws", HANDSHAKE, "GET"))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
        draining = asyncio.create_task(served.drain(0.2))
        await asyncio.sleep(0)  # it has begun
        await late.send(b"\r\n")
        check(await late.response(), as_jsonapi, 503, "shutting_down")
        check(await first.response(), as_jsonapi, 503, "shutting_down")
        await draining


# -- the table ------------------------------------------------------------------------------------------------------


def other(failure: Failure, headers: Mapping[bytes, bytes], request_id: str, status: int | None) -> Refusal:
    """Some door's."""
    return Refusal(400, b"text/plain", b"no")


@pytest.mark.parametrize(
    ("path", "words"),
    [("/a", other), ("/a/b", jsonapi_words), ("/a/b/c", jsonapi_words), ("/a/x", other), ("/ab", openai), ("", openai)],
)
def test_the_longest_path_has_the_word(path: str, words: object) -> None:
    assert ByPath({"/a": other, "/a/b": jsonapi_words}).at(path) is words


@pytest.mark.parametrize("path", ["", "/", "*", "/healthz", "/v1/chat/completions"])
def test_all_paths_can_have_other_words(path: str) -> None:
    assert ByPath({"": other}).at(path) is other

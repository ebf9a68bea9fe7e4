"""Whatever a client sends: a clear refusal in OpenAI's shape, nothing of our insides, and the others go on."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from support.gateway import ECHO, Gateway, chat, in_process
from support.http import Connection, Response, chunked, cut_events, request

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
LIMITS = {
    "max_body": "200KiB",
    "max_headers": "8KiB",
    "header_timeout": "150ms",
    "body_timeout": "150ms",
    "keep_alive": "1s",
}


@pytest.fixture
async def narrow() -> AsyncIterator[Gateway]:
    """A gateway with small limits."""
    async with in_process({**ECHO, "http": LIMITS}) as gateway:
        yield gateway


def refused(
    response: Response, status: int, *, param: str | None = None, code: str = "invalid_request", says: str = ""
) -> None:
    """Asserts the refusal, and that nothing of our insides is in it."""
    assert response.status == status, response
    error = response.error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["code"] == code
    assert says in error["message"]
    assert not re.search(r"Traceback|\.py\b|llmg\.|msgspec|<class|0x[0-9a-f]{6}", error["message"])


async def still_works(connection: Connection) -> None:
    """Asserts that the same connection answers a good request."""
    response = await connection.post(CHAT, chat(text="still here"))
    assert response.status == 200
    assert response.json()["choices"][0]["message"]["content"] == "still here"


BODIES: list[tuple[str, bytes, str | None, str]] = [
    ("no JSON", b"{nope", None, "not valid JSON"),
    ("cut JSON", b'{"model": "m", "messages": [', None, "not valid JSON"),
    ("empty", b"", None, "empty"),
    ("blank", b"  ", None, "empty"),
    ("an array", b"[]", None, "must be a JSON object"),
    ("a string", b'"hello"', None, "must be a JSON object"),
    ("null", b"null", None, "must be a JSON object"),
    ("bad UTF-8", b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}', None, "UTF-8"),
    ("bad UTF-8 in an unknown field", b'{"model": "m", "messages": [], "x": "\xff"}', None, "UTF-8"),
    ("deep arrays", b'{"model": "m", "messages": ' + b"[" * 2000 + b"]" * 2000 + b"}", None, "nested"),
    ("deep objects", b'{"x": ' + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"}", None, "nested"),
    ("deep tools", b'{"model": "m", "messages": [], "tools": ' + b"[" * 2000 + b"]" * 2000 + b"}", None, "nested"),
    ("two values", b"{} {}", None, "not valid JSON"),
]


@pytest.mark.parametrize(("body", "param", "says"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
async def test_a_body_that_is_none(echo: Gateway, body: bytes, param: str | None, says: str) -> None:
    async with echo.connect() as connection:
        refused(await connection.ask("POST", CHAT, body, {"Content-Length": str(len(body))}), 400, says=says)
        await still_works(connection)


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS, "/v1/routes/explain", "/graphql"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, identity"])
async def test_a_body_that_is_compressed(echo: Gateway, path: str, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    response = await echo.ask("POST", path, gzip.compress(b"{}"), headers)
    assert response.status == 415
    assert "must not be compressed" in response.body.decode()
    assert "content-encoding" in response.body.decode()


async def test_a_body_that_is_what_it_is(echo: Gateway) -> None:
    body = json.dumps(chat()).encode()
    assert (await echo.ask("POST", CHAT, body, {"Content-Encoding": "Identity"})).status == 200


async def test_a_deep_body_in_an_embeddings_request(echo: Gateway) -> None:
    body = b'{"model": "m", "input": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    refused(await echo.ask("POST", EMBEDDINGS, body), 400, says="nested")


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"model": 7}, "model"),
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"messages": "hello"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [7]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "2"}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"stop": [1]}, "stop"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tool_choice": 7}, "tool_choice"),
    ({"metadata": {"a": 1}}, "metadata"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param"), FIELDS, ids=[f"{json.dumps(f)[:48]}" for f, _ in FIELDS])
async def test_a_field_that_is_wrong_is_named(echo: Gateway, fields: dict[str, Any], param: str, stream: bool) -> None:
    response = await echo.post(CHAT, chat(**{"stream": stream, **fields}))
    assert response.error["param"] is not None
    assert response.error["param"].startswith(param)
    refused(response, 400, param=response.error["param"], says=param.partition("[")[0])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": 7}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
async def test_a_wrong_field_of_an_embeddings_request(echo: Gateway, fields: dict[str, Any], param: str) -> None:
    response = await echo.post(EMBEDDINGS, {"model": "m", "input": "a", **fields})
    refused(response, 400, param=param, says=param)


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS])
@pytest.mark.parametrize("model", ["nope", "no/pe", "echo/", "/m", "m" * 5000, "with\r\nX-Injected: 1"])
async def test_an_unknown_model(echo: Gateway, path: str, model: str) -> None:
    response = await echo.post(path, {"model": model, "messages": [{"role": "user", "content": "x"}], "input": "x"})
    refused(response, 404, param="model", code="model_not_found")
    assert "x-injected" not in response.headers
    assert len(response.body) < 1000


async def test_a_name_that_no_header_could_carry(echo: Gateway) -> None:
    """A client may name any model of a provider; the route is told in a header."""
    response = await echo.chat("echo/a\r\nX-Injected: 1\x00é" + "m" * 5000)
    assert response.status == 200
    assert "x-injected" not in response.headers
    assert response.headers["x-llmg-route"].startswith("echo/a??X-Injected: 1??mmm")
    assert len(response.headers["x-llmg-route"]) < 1000
    assert response.json()["choices"][0]["message"]["content"] == "Hello"


# -- sizes ----------------------------------------------------------------------------------------------------------


async def test_too_large_by_its_own_word(narrow: Gateway) -> None:
    """Refused before it is sent."""
    async with narrow.connect() as connection:
        await connection.send(request("POST", CHAT, headers={"Content-Length": str(201 << 10)}))
        response = await connection.response()
        refused(response, 413, code="request_too_large", says="204800")
        assert response.headers["connection"] == "close"
        assert await connection.closed() == b""
    assert (await narrow.chat()).status == 200


@pytest.mark.parametrize("size", [300 << 10, 8 << 20])
async def test_a_client_that_sends_all_of_a_too_large_body_first_hears_why(narrow: Gateway, size: int) -> None:
    """As most clients do: a connection that is closed on them at once is an error without a reason."""
    async with narrow.connect() as connection:
        await connection.send(request("POST", CHAT, b"x" * size))
        refused(await connection.response(), 413, code="request_too_large")
        assert await connection.closed() == b""


async def test_too_large_in_chunks(narrow: Gateway) -> None:
    async with narrow.connect() as connection:
        await connection.send(request("POST", CHAT, headers={"Transfer-Encoding": "chunked"}))
        await connection.send(chunked([b"x" * (50 << 10)] * 5))
        refused(await connection.response(), 413, code="request_too_large")
    assert (await narrow.chat()).status == 200


async def test_just_large_enough_in_one_piece_and_in_chunks(narrow: Gateway) -> None:
    body = json.dumps(chat(text="word " * 30_000)).encode()
    body += b" " * ((200 << 10) - len(body))
    async with narrow.connect() as connection:
        assert (await connection.ask("POST", CHAT, body)).status == 200
        pieces = [body[i : i + 10_000] for i in range(0, len(body), 10_000)]
        await connection.send(request("POST", CHAT, chunked(pieces), {"Transfer-Encoding": "chunked"}))
        assert (await connection.response()).status == 200
        await still_works(connection)


def with_headers(size: int, count: int) -> bytes:
    """A request whose line and headers are of `size` bytes, in `count` headers."""
    body = json.dumps(chat()).encode()
    plain = request("POST", CHAT, body, {f"X-{i:04}": "" for i in range(count)})
    own = sum(len(line.replace(b": ", b"")) for line in plain.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]) + len(CHAT)
    share, rest = divmod(size - own, count)
    return request("POST", CHAT, body, {f"X-{i:04}": "v" * (share + (rest if i == 0 else 0)) for i in range(count)})


@pytest.mark.parametrize("count", [1, 100])
async def test_headers_of_the_size_that_is_allowed(echo: Gateway, count: int) -> None:
    async with echo.connect() as connection:
        await connection.send(with_headers(60 << 10, count))
        assert (await connection.response()).status == 200
        await still_works(connection)


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("size", [(64 << 10) + 1, 1 << 20])
async def test_headers_that_are_too_large(echo: Gateway, size: int, count: int) -> None:
    async with echo.connect() as connection:
        await connection.send(with_headers(size, count))
        refused(await connection.response(), 431, code="request_too_large", says="65536")
        assert await connection.closed() == b""
    assert (await echo.chat()).status == 200


async def test_a_header_without_end(narrow: Gateway) -> None:
    """Refused when the limit is reached, and not when the memory is."""
    async with narrow.connect() as connection:
        await connection.send(request("POST", CHAT)[:-2] + b"X-Long: ")
        while True:
            answer = asyncio.ensure_future(connection.response())
            await connection.send(b"v" * 1024)
            done, _ = await asyncio.wait({answer}, timeout=0.01)
            if done:
                break
            answer.cancel()
            await asyncio.wait({answer})
        refused(await answer, 431, code="request_too_large")


async def test_a_head_that_begins_behind_a_large_body_is_not_taken_for_a_large_head(echo: Gateway) -> None:
    first = request("POST", CHAT, json.dumps(chat(text="x" * (100 << 10))).encode())
    second = request("POST", CHAT, json.dumps(chat(text="second")).encode())
    async with echo.connect() as connection:
        await connection.send(first + second[:40])
        assert (await connection.response()).status == 200
        await connection.send(second[40:])
        assert (await connection.response()).json()["choices"][0]["message"]["content"] == "second"


async def test_a_trailer_is_no_header(echo: Gateway) -> None:
    body = json.dumps(chat()).encode()
    ending = b"%x\r\n%b\r\n0\r\nx-request-id: from-a-trailer\r\n\r\n" % (len(body), body)
    async with echo.connect() as connection:
        await connection.send(request("POST", CHAT, headers={"Transfer-Encoding": "chunked"}) + ending)
        response = await connection.response()
    assert response.status == 200
    assert response.headers["x-request-id"] != "from-a-trailer"


@pytest.mark.parametrize("endless", [b"x: %b\r\n" % (b"a" * 8000), b"a:b\r\n" * 1000, b"a" * 8192])
async def test_trailers_without_end_are_refused(echo: Gateway, endless: bytes) -> None:
    async with echo.connect() as connection:
        await connection.send(request("POST", CHAT, headers={"Transfer-Encoding": "chunked"}) + b"1\r\n{\r\n0\r\nx:")
        for _ in range(100):
            await connection.send(endless)
        assert (await connection.response()).status == 431


async def test_many_small_chunks_are_a_body(echo: Gateway) -> None:
    body = json.dumps(chat(text="x" * 20_000)).encode()
    pieces = chunked([body[i : i + 1] for i in range(len(body))])
    async with echo.connect() as connection:
        await connection.send(request("POST", CHAT, headers={"Transfer-Encoding": "chunked"}) + pieces)
        assert (await connection.response()).status == 200


# -- slowness -------------------------------------------------------------------------------------------------------


async def drip(connection: Connection, data: bytes) -> Response:
    """Sends a byte at a time until there is an answer."""
    answer = asyncio.ensure_future(connection.response())
    for byte in data:
        await connection.send(bytes([byte]))
        done, _ = await asyncio.wait({answer}, timeout=0.01)
        if done:
            return answer.result()
    return await answer


async def test_headers_that_come_too_slowly(narrow: Gateway) -> None:
    async with narrow.connect() as connection:
        response = await drip(connection, request("GET", "/v1/models", headers={"X": "x" * 4000}))
        refused(response, 408, code="client_timeout", says="took too long")
        assert response.headers["connection"] == "close"
        assert await connection.closed() == b""
    assert (await narrow.chat()).status == 200


async def test_headers_that_come_too_slowly_on_a_connection_in_use(narrow: Gateway) -> None:
    async with narrow.connect() as connection:
        await still_works(connection)
        refused(await drip(connection, b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * 4000), 408, code="client_timeout")


async def test_a_body_that_comes_too_slowly(narrow: Gateway) -> None:
    body = json.dumps(chat(text="x" * 4000)).encode()
    async with narrow.connect() as connection:
        await connection.send(request("POST", CHAT, headers={"Content-Length": str(len(body))}))
        refused(await drip(connection, body), 408, code="client_timeout", says="body")
        assert await connection.closed() == b""
    assert (await narrow.chat()).status == 200


async def test_a_client_that_says_nothing(narrow: Gateway) -> None:
    async with narrow.connect() as connection:
        refused(await connection.response(), 408, code="client_timeout", says="request")


async def test_a_body_that_nobody_waits_for_costs_no_second_answer(narrow: Gateway) -> None:
    """The answer is out before the body is: the connection is closed when its time is up, without a word."""
    async with narrow.connect() as connection:
        await connection.send(request("POST", "/nowhere", headers={"Content-Length": "100"}))
        refused(await connection.response(), 404, code="not_found")
        assert await connection.closed() == b""


# -- HTTP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 20,
        b"GET /v1/models\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: nine\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://localhost HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET ?a HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["words", "TLS", "a byte in the path", "no length", "two lengths", "no chunk", "no path", "a query alone"],
)
async def test_what_is_no_http(echo: Gateway, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with echo.connect() as connection:
        await connection.send(data)
        refused(await connection.response(), 400, says="HTTP")
        assert await connection.closed() == b""
    assert (await echo.chat()).status == 200
    assert not caplog.records


async def test_pipelined_requests_are_answered_in_turn(echo: Gateway) -> None:
    said = [f"request {number}" for number in range(20)]
    async with echo.connect() as connection:
        await connection.send(b"".join(request("POST", CHAT, json.dumps(chat(text=text)).encode()) for text in said))
        answers = [(await connection.response()).json()["choices"][0]["message"]["content"] for _ in said]
        assert answers == said
        await still_works(connection)


async def test_pipelined_streams_and_refusals(echo: Gateway) -> None:
    async with echo.connect() as connection:
        await connection.send(
            request("POST", CHAT, json.dumps(chat(text="one two", stream=True)).encode())
            + request("POST", CHAT, b"{")
            + request("GET", "/v1/models")
        )
        assert (await connection.response()).events[-1] == "[DONE]"
        refused(await connection.response(), 400)
        assert (await connection.response()).json()["data"][0]["id"] == "m"


async def test_nonsense_behind_a_request_does_not_cost_its_answer(echo: Gateway) -> None:
    async with echo.connect() as connection:
        await connection.send(request("POST", CHAT, json.dumps(chat(text="a good one")).encode()) + b"nonsense\r\n\r\n")
        assert (await connection.response()).json()["choices"][0]["message"]["content"] == "a good one"
        await connection.closed()


@pytest.mark.parametrize(
    "wish",
    [
        {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "eA=="},
    ],
    ids=["h2c", "websocket"],
)
async def test_a_wish_for_another_protocol_is_not_heard(echo: Gateway, wish: dict[str, str]) -> None:
    """Java's HTTP client wishes for HTTP/2 with each request."""
    body = json.dumps(chat(text="from Java")).encode()
    async with echo.connect() as connection:
        response = await connection.ask("POST", CHAT, body, wish)
        assert response.json()["choices"][0]["message"]["content"] == "from Java"
        await connection.send(request("POST", CHAT, headers={**wish, "Content-Length": str(len(body))}))
        await connection.send(body)
        assert (await connection.response()).json()["choices"][0]["message"]["content"] == "from Java"
        await still_works(connection)


async def test_connect_is_refused(echo: Gateway) -> None:
    async with echo.connect() as connection:
        await connection.send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
        response = await connection.response()
        assert response.status in (400, 405)
        assert response.error["type"] == "invalid_request_error"


async def test_a_client_that_waits_to_be_told_to_go_on(echo: Gateway) -> None:
    body = json.dumps(chat(text="went on")).encode()
    async with echo.connect() as connection:
        headers = {"Expect": "100-continue", "Content-Length": str(len(body))}
        await connection.send(request("POST", CHAT, headers=headers))
        assert (await connection.head())[0] == 100
        await connection.send(body)
        assert (await connection.response()).json()["choices"][0]["message"]["content"] == "went on"


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/", 404, "not_found", None),
        ("POST", "/v1/nothing", 404, "not_found", None),
        ("GET", "/v1/chat/completions/", 404, "not_found", None),
        ("GET", "/%2e%2e/etc/passwd", 404, "not_found", None),
        ("GET", CHAT, 405, "method_not_allowed", "POST"),
        ("DELETE", EMBEDDINGS, 405, "method_not_allowed", "POST"),
        ("POST", "/v1/models", 405, "method_not_allowed", "GET, HEAD"),
        ("PUT", "/v1/models/m", 405, "method_not_allowed", "GET, HEAD"),
        ("POST", "/healthz", 405, "method_not_allowed", "GET, HEAD"),
        ("GET", "/v1/models/nope", 404, "model_not_found", None),
    ],
)
async def test_other_paths_and_methods(
    echo: Gateway, method: str, path: str, status: int, code: str, allow: str | None
) -> None:
    async with echo.connect() as connection:
        response = await connection.ask(method, path)
        refused(response, status, code=code, param="model" if code == "model_not_found" else None)
        assert response.headers.get("allow") == allow
        await still_works(connection)


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models", 200), ("/healthz", 200), ("/nowhere", 404), (CHAT, 405), ("/v1/models/x", 404)]
)
async def test_head_has_no_body(echo: Gateway, path: str, status: int) -> None:
    async with echo.connect() as connection:
        response = await connection.ask("HEAD", path)
        assert response.status == status
        assert int(response.headers["content-length"]) > 0
        await still_works(connection)


# -- the request's name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abc-123", "x" * 128, "a/b?c=d&e", '"quoted"'])
async def test_a_sane_request_id_comes_back(echo: Gateway, given: str) -> None:
    for path in ("/v1/models", "/nowhere"):
        response = await echo.ask("GET", path, headers={"X-Request-Id": given})
        assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "with space", "tab\there", "umlaut\xe4", None])
async def test_another_request_id_is_replaced(echo: Gateway, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    ids = [(await echo.ask("GET", "/v1/models", headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", id) for id in ids)
    assert ids[0] != ids[1]


async def test_each_kind_of_answer_has_a_request_id(echo: Gateway) -> None:
    responses = [
        await echo.chat(),
        await echo.chat(stream=True),
        await echo.chat(n=0),
        await echo.chat("nope"),
        await echo.post(EMBEDDINGS, {"model": "m", "input": "x"}),
        await echo.ask("GET", "/healthz"),
    ]
    assert len({response.headers["x-request-id"] for response in responses}) == len(responses)


# -- whatever comes -------------------------------------------------------------------------------------------------


def mangled(good: bytes, rounds: int) -> Iterable[bytes]:
    """A good request with bytes changed, removed and doubled, the same in each run."""
    seed = int.from_bytes(b"mangle")
    for round in range(rounds):
        data = bytearray(good)
        for _ in range(1 + round % 5):
            seed = (seed * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            place, what = (seed >> 20) % len(data), (seed >> 50) % 4
            if what == 0:
                data[place] = (seed >> 12) & 0xFF
            elif what == 1:
                del data[place : place + 1 + (seed >> 5) % 9]
            elif what == 2:
                data[place:place] = data[place : place + 20]
            else:
                data[place:place] = b"\x00\r\n\xff"
        yield bytes(data)


async def test_mangled_requests_do_no_harm(narrow: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    good = request("POST", CHAT, json.dumps(chat(text="so far so good", n=2, temperature=0.5)).encode())

    async def answers(data: bytes) -> list[int]:
        async with narrow.connect() as connection:
            await connection.send(data)
            return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", await connection.closed())]

    requests = list(mangled(good, 200))
    for data, statuses in zip(requests, await asyncio.gather(*map(answers, requests)), strict=True):
        assert statuses, data
        assert max(statuses) < 500, data
    assert (await narrow.chat()).status == 200
    assert "Exception" not in caplog.text


async def test_the_secrets_of_the_environment_are_in_no_answer(echo: Gateway) -> None:
    """Nor is any path of ours."""
    answers = [await echo.ask("GET", "/version"), await echo.ask("GET", "/nowhere"), await echo.chat(n=0)]
    for answer in answers:
        assert os.getcwd().encode() not in answer.body


def test_events_are_cut_where_they_end() -> None:
    assert cut_events(b": heartbeat\n\ndata: {}\n\n") == [": heartbeat", "{}"]

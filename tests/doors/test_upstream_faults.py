"""Whatever an upstream does: a clear error with the right status, or the next target's answer."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from llmg.providers import http
from support import upstream as acts
from support.gateway import Gateway, in_process, to_upstream
from support.http import Response
from support.upstream import KEY, Act, Upstream, upstream

QUICK = {"timeouts": {"first_event": "400ms", "idle": "400ms"}}
RATE = "rate_limit_error"
SERVER = "server_error"
BAD = "invalid_request_error"


def error_of(response: Response) -> dict[str, Any]:
    """The error, in which no secret is."""
    assert KEY.encode() not in response.body
    assert KEY not in str(response.headers)
    return response.error


def told(up: Upstream, **fields: Any) -> Mapping[str, Any]:
    """A gateway's configuration with this upstream, and the key."""
    return to_upstream(up.base_url, api_key=KEY, **fields)


# name: (what the upstream does, status, type, code)
BEFORE_COMMIT: dict[str, tuple[Act, int, str, str]] = {
    "never answers": (acts.stall, 504, SERVER, "upstream_timeout"),
    "stalls after its head": (acts.stall_after_head, 504, SERVER, "upstream_timeout"),
    "hangs up": (acts.hang_up, 503, SERVER, "upstream_unavailable"),
    "hangs up in its head": (acts.hang_up_in_head, 502, SERVER, "upstream_truncated"),
    "HTML with 200": (acts.html(200), 502, SERVER, "upstream_protocol"),
    "HTML with 502": (acts.html(502), 502, SERVER, "upstream_error"),
    "HTML with 503": (acts.html(503), 503, SERVER, "upstream_unavailable"),
    "a redirect": (acts.html(302), 502, SERVER, "upstream_protocol"),
    "no content": (acts.answering(200, None), 502, SERVER, "upstream_protocol"),
    "another JSON": (acts.answering(200, {"hello": "world"}), 502, SERVER, "upstream_protocol"),
    "no choices": (acts.answering(200, {**acts.ANSWER, "choices": []}), 502, SERVER, "upstream_truncated"),
    "429": (acts.rate_limited, 429, RATE, "upstream_rate_limited"),
    "401 with the key": (acts.unauthorized, 502, SERVER, "upstream_auth"),
    "400": (acts.bad_request, 400, BAD, "too_hot"),
    "404": (acts.answering(404, {"error": {"message": "no such model"}}), 404, BAD, "upstream_model_not_found"),
    "413": (acts.answering(413, {"error": {"message": "too long"}}), 413, BAD, "request_too_large"),
    "500": (acts.answering(500, {"error": {"message": "stack trace"}}), 502, SERVER, "upstream_error"),
    "529": (acts.answering(529, {}), 503, SERVER, "upstream_unavailable"),
    "an error with 200": (acts.error_with_200, 502, SERVER, "upstream_error"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(("act", "status", "type", "code"), BEFORE_COMMIT.values(), ids=BEFORE_COMMIT)
async def test_before_the_first_content(act: Act, status: int, type: str, code: str, stream: bool) -> None:
    at_once = {"resilience": {"max_cooldown": 0}}
    async with upstream(act, acts.good) as up, in_process(told(up, **QUICK, **at_once)) as gateway:
        response = await gateway.chat(stream=stream)
        assert response.status == status
        error = error_of(response)
        assert (error["type"], error["code"]) == (type, code)
        assert len(up.calls) == 1
        assert (await gateway.chat(stream=stream)).status == 200


async def test_a_rate_limit_says_when_to_come_back() -> None:
    async with upstream(acts.rate_limited) as up, in_process(told(up)) as gateway:
        assert (await gateway.chat()).headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("given", "told_on"),
    [
        ("0.2", "1"),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "0"),
        ("Wed, 21 Oct 2015 07:28:00", "0"),
        ("Wed, 21 Oct 2015 07:28:00 -0000", "0"),
        ("inf", None),
        ("nan", None),
        ("1e300", None),
        ("-1", "0"),
        ("soon", None),
        ("Wed, 99 Oct 99999 07:28:00 GMT", None),
    ],
)
async def test_what_an_upstream_may_write_as_retry_after(given: str, told_on: str | None) -> None:
    act = acts.answering(429, {"error": {"message": "slow down"}}, retry_after=given)
    async with upstream(act) as up, in_process(told(up)) as gateway:
        response = await gateway.chat()
        assert response.status == 429
        assert response.headers.get("retry-after") == told_on


async def test_what_the_caller_got_wrong_is_told_in_the_upstreams_words_but_not_the_key() -> None:
    async with upstream(acts.bad_request) as up, in_process(told(up)) as gateway:
        error = error_of(await gateway.chat())
        assert error == {
            "message": "'temperature' is too hot for Bearer ***",
            "type": BAD,
            "param": "temperature",
            "code": "too_hot",
        }


async def test_an_upstream_that_refuses_to_be_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with in_process(to_upstream(f"http://127.0.0.1:{port}/v1")) as gateway:
        for stream in (False, True):
            response = await gateway.chat(stream=stream)
            assert response.status == 503
            assert error_of(response)["code"] == "upstream_unavailable"


async def test_an_upstream_that_takes_no_connection() -> None:
    """Its queue is full: the connection is never made."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = "http://{}:{}/v1".format(*full.getsockname())
        async with in_process(to_upstream(url, timeouts={"connect": "200ms"})) as gateway:
            response = await gateway.chat()
            assert response.status == 504
            assert error_of(response)["code"] == "upstream_timeout"


async def test_a_host_that_does_not_exist() -> None:
    async with in_process(to_upstream("http://nowhere.invalid/v1")) as gateway:
        response = await gateway.chat()
        assert response.status == 503
        assert error_of(response)["code"] == "upstream_unavailable"


@pytest.mark.parametrize(
    ("act", "status", "code"),
    [(acts.cut_midway, 502, "upstream_truncated"), (acts.stall_midway, 504, "upstream_timeout")],
    ids=["cut", "stalls"],
)
async def test_in_the_midst_of_a_whole_answer(act: Act, status: int, code: str) -> None:
    async with upstream(act, acts.good) as up, in_process(told(up, **QUICK)) as gateway:
        response = await gateway.chat()
        assert response.status == status
        assert error_of(response)["code"] == code
        assert (await gateway.chat()).status == 200


# name: (what the upstream does after "Hello", code)
AFTER_COMMIT: dict[str, tuple[Act, str]] = {
    "cut": (acts.cut_midway, "upstream_truncated"),
    "stalls": (acts.stall_midway, "upstream_timeout"),
    "ends without a reason": (acts.unfinished, "upstream_truncated"),
    "data: error": (acts.error_data, "upstream_error"),
    "event: error": (acts.error_event, "upstream_error"),
    "no JSON": (acts.failing_midway(b"data: {oops\n\n"), "upstream_protocol"),
    "bad UTF-8": (acts.failing_midway(b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'), "upstream_protocol"),
    "deep": (acts.failing_midway(b"data: " + b'{"a":' * 5000 + b"\n\n"), "upstream_protocol"),
    "[DONE] too early": (acts.failing_midway(b"data: [DONE]\n\n"), "upstream_truncated"),
    "rate limited": (
        acts.failing_midway(b'data: {"error":{"message":"x","code":"rate_limit_exceeded"}}\n\n'),
        "upstream_rate_limited",
    ),
    "a status as code": (
        acts.failing_midway(b'data: {"error":{"message":"x","code":503}}\n\n'),
        "upstream_unavailable",
    ),
}


@pytest.mark.parametrize(("act", "code"), AFTER_COMMIT.values(), ids=AFTER_COMMIT)
async def test_after_the_first_content(act: Act, code: str) -> None:
    """The status is out: the error comes in the stream, which then ends in good order, without [DONE]."""
    async with (
        upstream(act, acts.good) as up,
        in_process(told(up, **QUICK)) as gateway,
        gateway.connect() as connection,
    ):
        response = await connection.post("/v1/chat/completions", _streaming())
        assert response.status == 200
        assert KEY.encode() not in response.body
        role, hello, failure = [json.loads(event) for event in response.events]
        assert role["choices"][0]["delta"]["role"] == "assistant"
        assert hello["choices"][0]["delta"] == {"content": "Hello"}
        assert set(failure) == {"error"}
        assert set(failure["error"]) == {"message", "type", "param", "code"}
        assert failure["error"]["code"] == code
        assert len(up.calls) == 1
        again = await connection.post("/v1/chat/completions", _streaming())
        assert again.events[-1] == "[DONE]"


def _streaming() -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


@pytest.mark.parametrize("stalls", [acts.stall, acts.stall_after_head, acts.stall_midway])
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_an_upstream_that_is_given_up_is_hung_up_on(stalls: Act, stream: bool) -> None:
    async with upstream(stalls) as up, in_process(told(up, **QUICK)) as gateway:
        await gateway.chat(stream=stream)
        await (await up.call()).until_gone()


# -- the next target ------------------------------------------------------------------------------------------------


def two(first: Upstream, second: Upstream) -> dict[str, Any]:
    """A model with two targets, of which the first is always tried first."""
    return {
        "providers": {
            "one": {"kind": "openai", "base_url": first.base_url, "api_key": KEY, **QUICK},
            "two": {"kind": "openai", "base_url": second.base_url, **QUICK},
        },
        "models": {
            "m": {
                "targets": [{"provider": "one", "model": "a", "weight": 1e9}, {"provider": "two", "model": "b"}],
                "retries": {"max": 0},
            }
        },
    }


CALLERS = ["400", "413"]  # what the caller got wrong


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("name", [name for name in BEFORE_COMMIT if name not in CALLERS])
async def test_the_next_target_answers(name: str, stream: bool) -> None:
    async with (
        upstream(BEFORE_COMMIT[name][0]) as first,
        upstream(acts.saying("from the second")) as second,
        in_process(two(first, second)) as gateway,
    ):
        response = await gateway.chat(stream=stream)
        assert response.status == 200
        assert b"from the second" in response.body
        assert response.headers["x-llmg-route"] == "two/b"
        assert response.headers["x-llmg-attempts"] == "2"
        assert [call.body["model"] for call in (*first.calls, *second.calls)] == ["a", "b"]


@pytest.mark.parametrize("act", [acts.cut_midway, acts.stall_midway], ids=["cut", "stalls"])
async def test_a_whole_answer_fails_over_until_it_is_whole(act: Act) -> None:
    async with upstream(act) as first, upstream(acts.good) as second, in_process(two(first, second)) as gateway:
        response = await gateway.chat()
        assert response.status == 200
        assert response.headers["x-llmg-route"] == "two/b"


@pytest.mark.parametrize(("act", "code"), AFTER_COMMIT.values(), ids=AFTER_COMMIT)
async def test_no_other_target_after_the_first_content(act: Act, code: str) -> None:
    async with upstream(act) as first, upstream(acts.good) as second, in_process(two(first, second)) as gateway:
        response = await gateway.chat(stream=True)
        assert response.headers["x-llmg-route"] == "one/a"
        assert json.loads(response.events[-1])["error"]["code"] == code
        assert second.calls == []


@pytest.mark.parametrize("name", CALLERS)
async def test_what_the_caller_got_wrong_is_asked_of_nobody_else(name: str) -> None:
    act, status, _, _ = BEFORE_COMMIT[name]
    async with upstream(act) as first, upstream(acts.good) as second, in_process(two(first, second)) as gateway:
        assert (await gateway.chat()).status == status
        assert second.calls == []


async def test_when_all_fail_the_last_failure_is_told() -> None:
    async with (
        upstream(acts.rate_limited) as first,
        upstream(acts.html(503)) as second,
        in_process(two(first, second)) as gateway,
    ):
        for stream in (False, True):
            response = await gateway.chat(stream=stream)
            assert response.status == 503
            assert error_of(response)["code"] == "upstream_unavailable"


# -- targets in trouble --------------------------------------------------------------------------------------------


async def test_who_says_when_to_come_back_is_not_asked_before() -> None:
    async with upstream(acts.rate_limited, acts.good) as up, in_process(told(up)) as gateway:
        for _ in range(2):
            response = await gateway.chat()
            assert (response.status, response.error["code"]) == (429, "upstream_rate_limited")
            assert response.headers["retry-after"] == "7"
        assert len(up.calls) == 1


async def test_an_upstream_that_goes_on_failing_is_left_alone() -> None:
    trouble = {"resilience": {"breaker": {"consecutive": 2, "open_for": "1h"}}}
    async with upstream(acts.html(503)) as first, upstream(acts.good) as second:
        config = two(first, second)
        config["providers"]["one"].update(trouble)
        async with in_process(config) as gateway:
            routes = [(await gateway.chat(stream=stream)).headers for stream in (False, True, False, True)]
    assert [headers.get("x-llmg-attempts", "1") for headers in routes] == ["2", "2", "1", "1"]
    assert len(first.calls) == 2


async def test_what_failed_is_asked_again_when_no_other_is_left() -> None:
    async with upstream(acts.html(503), acts.good) as up:
        config = to_upstream(up.base_url)
        config["models"]["m"]["retries"] = {"max": 1, "backoff": "1ms"}
        async with in_process(config) as gateway:
            response = await gateway.chat()
    assert (response.status, response.headers["x-llmg-attempts"]) == (200, "2")


TOO_LONG = acts.answering(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("act", [acts.html(503), TOO_LONG], ids=["down", "too long"])
async def test_another_model_answers_in_its_name(act: Act, stream: bool) -> None:
    async with upstream(act) as first, upstream(acts.good) as second:
        config = two(first, second)
        own, other = config["models"]["m"]["targets"]
        config["models"] = {
            "m": {"targets": [own], "fallbacks": ["n"], "fallback_on": ["context_length_exceeded"]},
            "n": {"targets": [other]},
        }
        async with in_process(config) as gateway:
            response = await gateway.chat(stream=stream)
    assert (response.status, response.headers["x-llmg-attempts"]) == (200, "2")
    assert response.headers["x-llmg-route"] == "two/b"
    answer = json.loads(response.events[0]) if stream else response.json()
    assert answer["model"] == "m"


async def test_a_target_that_is_full_sheds_what_may_not_wait() -> None:
    places = {"max_in_flight": 1, "max_queue": 0, "queue_timeout": "3s"}
    async with upstream(acts.stall, acts.good) as up, in_process(told(up, resilience=places)) as gateway:
        async with gateway.connect() as leaving:
            await leaving.write("POST", "/v1/chat/completions", json.dumps(_streaming()).encode())
            held = await up.call()
            response = await gateway.chat()
            assert (response.status, response.error["code"]) == (503, "overloaded")
            assert response.headers["retry-after"] == "3"
            await leaving.leave()
        await held.until_gone()
        assert (await gateway.chat()).status == 200


async def test_who_waits_for_a_place_gets_it() -> None:
    let_go = asyncio.Event()

    async def when_told(call: acts.Call) -> None:
        await let_go.wait()
        await acts.good(call)

    places = {"max_in_flight": 1, "queue_timeout": "1h"}
    async with upstream(when_told) as up, in_process(told(up, resilience=places)) as gateway:
        first = asyncio.create_task(gateway.chat())
        await up.call()
        others = [asyncio.create_task(gateway.chat(stream=stream)) for stream in (True, False)]
        let_go.set()
        assert [response.status for response in await asyncio.gather(first, *others)] == [200] * 3
        assert up.connections == 1


# -- connections that were kept alive -------------------------------------------------------------------------------


async def _with_one_kept(gateway: Gateway) -> None:
    assert (await gateway.chat()).status == 200


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_a_kept_connection_that_had_died_costs_a_new_try(stream: bool) -> None:
    async with upstream(acts.good, acts.hang_up, acts.good) as up, in_process(told(up)) as gateway:
        await _with_one_kept(gateway)
        assert (await gateway.chat(stream=stream)).status == 200
        assert (len(up.calls), up.connections) == (3, 2)
        assert up.calls[1].raw == up.calls[2].raw


async def test_one_new_try_however_many_connections_had_died() -> None:
    """Two are kept and both have died: one is tried, and then a new one."""
    together = asyncio.Barrier(2)

    async def side_by_side(call: acts.Call) -> None:
        await together.wait()
        await acts.good(call)

    script = [side_by_side, side_by_side, acts.hang_up, acts.good]
    async with upstream(*script) as up, in_process(told(up)) as gateway:
        await asyncio.gather(gateway.chat(), gateway.chat())
        assert up.connections == 2
        assert (await gateway.chat()).status == 200
        assert (len(up.calls), up.connections) == (4, 3)


async def test_an_upstream_that_was_at_work_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dies later than a closed connection would show did not die of being stale."""
    monkeypatch.setattr(http, "_STALE", -1.0)
    async with upstream(acts.good, acts.hang_up, acts.good) as up, in_process(told(up)) as gateway:
        assert (await gateway.chat()).status == 200
        assert (await gateway.chat()).error["code"] == "upstream_unavailable"
        assert len(up.calls) == 2


async def test_a_new_connection_that_dies_is_not_tried_again() -> None:
    async with upstream(acts.hang_up) as up, in_process(told(up)) as gateway:
        assert (await gateway.chat()).status == 503
        assert len(up.calls) == 1


async def test_the_new_try_is_not_tried_again() -> None:
    async with upstream(acts.good, acts.hang_up) as up, in_process(told(up)) as gateway:
        await _with_one_kept(gateway)
        assert (await gateway.chat()).status == 503
        assert len(up.calls) == 3


@pytest.mark.parametrize("act", [acts.hang_up_in_head, acts.cut_midway], ids=["in the head", "in the body"])
async def test_no_new_try_when_something_was_answered(act: Act) -> None:
    async with upstream(acts.good, act, acts.good) as up, in_process(told(up)) as gateway:
        await _with_one_kept(gateway)
        response = await gateway.chat()
        assert response.status == 502
        assert error_of(response)["code"] == "upstream_truncated"
        assert len(up.calls) == 2


async def test_connections_are_kept_after_whole_answers_and_streams() -> None:
    async with upstream(acts.good) as up, in_process(told(up)) as gateway:
        for stream in (False, True, True, False):
            assert (await gateway.chat(stream=stream)).status == 200
        assert up.connections == 1

"""Where a request would go: the same explanation by each door, in its own words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from msgspec import UNSET

from llmg.client import Client, LlmgError
from llmg.core.context import ADMIN, SILENT, Principal
from llmg.core.errors import Kind
from llmg.core.levels import Level, Limits
from llmg.core.prices import Price
from llmg.doors.graphql.errors import CODES
from llmg.gatewayapi.v1 import routing_pb2 as pb
from llmg.gatewayapi.v1.routing_pb2_grpc import RoutingServiceStub
from llmg.ports import Profile
from llmg.routing.catalog import Catalog, Key
from llmg.routing.limits.local import Local
from llmg.routing.models import Group, Target
from llmg.routing.policies import Priority, Weighted
from llmg.services.admission import Admission, Authenticator, digest
from llmg.services.explain import Explain
from llmg.testing.clocks import FakeClock
from llmg.testing.ids import CountingIds
from llmg.testing.models import Models
from llmg.testing.scripted import Gate, Script, Scripted, saying
from support.doors import grpc_door, refusal, rest_door
from support.http import PATIENCE
from support.sockets import client, websocket_door

OPS, KEY, HELD, FEW = ("key-" + letter * 20 for letter in "abcd")
LIMITED = (Level(name="tenants/acme", limits=Limits(requests=2, tokens=1000)),)
JSON = {"Content-Type": "application/json"}
NOBODY = Scripted()  # is asked of nothing
TARGETS = (
    Target(provider="p", model="a", inner=NOBODY, weight=3.0, price=Price(input=0.5, output=1.5), region="eu"),
    Target(provider="q", model="b", inner=NOBODY, labels=(("gpu", "l4"),)),
    Target(provider="q", model="c", inner=NOBODY, profile=Profile(lacks=frozenset({"tools"}), embed=False)),
)
MODELS = Models(
    {
        "m": Group(
            name="m",
            targets=TARGETS,
            policy=Priority([0, 0, 4], lambda _: Weighted([3.0, 1.0, 1.0])),
            fallbacks=("spare",),
        ),
        "spare": Group(
            name="spare",
            targets=(
                Target(
                    provider="p",
                    model="d",
                    inner=NOBODY,
                    profile=Profile(has=frozenset({"tools"}), context_window=4096),
                ),
            ),
            policy=Weighted([1.0]),
        ),
    },
    {},
)

ACME = "tenants/acme"
LEVELS = {
    ACME: Models(
        {"m": Group(name="m", targets=(Target(provider="own", model="x", inner=NOBODY),), policy=Weighted([1.0]))}, {}
    )
}


def _models(_: Principal) -> Models:
    return MODELS


def _admission() -> Admission:
    """An administrator, a client, and one of each with limits."""
    known = {
        OPS: Principal(key_id="ops", roles=frozenset({ADMIN})),
        KEY: Principal(key_id="app"),
        HELD: Principal(key_id="held", levels=LIMITED),
        FEW: Principal(key_id="few", roles=frozenset({ADMIN}), levels=LIMITED),
    }
    catalog = Catalog(keys={digest(key): Key(principal) for key, principal in known.items()})
    return Admission(Authenticator(lambda: catalog, FakeClock()), FakeClock(), CountingIds(), SILENT)


def _explain() -> Explain:
    return Explain(_models, LEVELS.get, Local(FakeClock()), FakeClock(), lambda principal: ADMIN in principal.roles)


EXPLAIN = _explain()
TOLD: dict[str, Any] = {
    "model": "m",
    "stages": [
        {
            "model": "m",
            "policy": "priority",
            "targets": [
                {
                    "provider": "p",
                    "model": "a",
                    "verdict": "candidate",
                    "place": 1,
                    "score": 3.0,
                    "reason": "tier 0, weighted: share 0.750, credit 3: the highest is next",
                    "weight": 3.0,
                    "tier": 0,
                    "price": {"input": 0.5, "output": 1.5},
                    "region": "eu",
                },
                {
                    "provider": "q",
                    "model": "b",
                    "verdict": "candidate",
                    "place": 2,
                    "score": 1.0,
                    "reason": "tier 0, weighted: share 0.250, credit 1: the highest is next",
                    "weight": 1.0,
                    "tier": 0,
                    "labels": {"gpu": "l4"},
                },
                {
                    "provider": "q",
                    "model": "c",
                    "verdict": "rejected",
                    "reason": "can't do tools",
                    "weight": 1.0,
                    "tier": 4,
                },
            ],
        },
        {
            "model": "spare",
            "policy": "weighted",
            "targets": [
                {
                    "provider": "p",
                    "model": "d",
                    "verdict": "candidate",
                    "place": 3,
                    "score": 1.0,
                    "reason": "share 1.000, credit 1: the highest is next",
                    "weight": 1.0,
                    "context_window": 4096,
                    "capabilities": ["tools"],
                }
            ],
        },
    ],
}
CHAT = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": [{"type": "function", "function": {"name": "f"}}],
}
GATEWAY_CHAT = {
    "model": "m",
    "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "Hello"}}]}],
    "tools": [{"name": "f"}],
}
GRAPHQL_CHAT = {
    "model": "m",
    "messages": [{"role": "USER", "parts": [{"text": {"text": "Hello"}}]}],
    "tools": [{"name": "f"}],
}
QUERY = """query ($input: ExplainRouteInput!, $level: String! = "") { explainRoute(input: $input, level: $level) { model
  stages { model policy targets { provider model verdict place score reason weight tier price { input output }
  context_window: contextWindow
  capabilities region labels { name value } } } } }"""

Ask = Callable[[Mapping[str, Any], str], Awaitable[dict[str, Any]]]
"""Asks with these fields of a chat in the place of its own, or for vectors ("embeddings"); `level` among them stands
beside the request. What was told, or `{"kind": ..., "param": ...}`."""


def _failed(kind: str, param: str | None) -> dict[str, Any]:
    return {"kind": Kind(kind.lower()), "param": param}


@asynccontextmanager
async def _rest(explain: Explain | None, key: str | None) -> AsyncIterator[Ask]:
    async with rest_door(NOBODY, let_in=_admission(), explain=explain) as door:

        async def ask(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
            body = {"model": "m", "input": ["x"], **fields} if what == "embeddings" else {**CHAT, **fields}
            response = await door.post("/v1/routes/explain", body, _headers(key))
            if response.status != 200:
                return _failed(response.error["code"], response.error["param"])
            found = response.json()
            assert found.pop("object") == "route"
            return dict(found)

        yield ask


def _headers(key: str | None) -> dict[str, str]:
    return {**JSON, **({} if key is None else {"Authorization": f"Bearer {key}"})}


def _beside(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is the request's, and what stands beside it."""
    own = {name: value for name, value in fields.items() if name != "level"}
    return own, {name: value for name, value in fields.items() if name == "level"}


def _message(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
    own, beside = _beside(fields)
    if what == "embeddings":
        return {"embeddings": {"model": "m", "inputs": [{"text": "x"}], **own}, **beside}
    return {"chat": {**GATEWAY_CHAT, **own}, **beside}


def _of_proto(found: dict[str, Any]) -> dict[str, Any]:
    for stage in found["stages"]:
        for target in stage["targets"]:
            target["verdict"] = target["verdict"].removeprefix("VERDICT_").lower()
            if "contextWindow" in target:
                target["context_window"] = target.pop("contextWindow")
    return found


@asynccontextmanager
async def _gateway(explain: Explain | None, key: str | None) -> AsyncIterator[Ask]:
    async with rest_door(NOBODY, let_in=_admission(), explain=explain) as door:

        async def ask(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
            response = await door.post("/api/v1/routes:explain", _message(fields, what), _headers(key))
            if response.status != 200:
                (error,) = response.json()["errors"]
                return _failed(error["code"], error.get("source", {}).get("pointer"))
            return _of_proto(response.json())

        yield ask


@asynccontextmanager
async def _grpc(explain: Explain | None, key: str | None) -> AsyncIterator[Ask]:
    async with grpc_door(NOBODY, let_in=_admission(), explain=explain) as door:
        stub: Any = RoutingServiceStub(door.channel)

        async def ask(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
            message = json_format.ParseDict(_message(fields, what), pb.ExplainRouteRequest())
            metadata = () if key is None else (("authorization", f"Bearer {key}"),)
            try:
                answer = await stub.ExplainRoute(message, timeout=PATIENCE, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                told = refusal(error)
                return _failed(told.kind.value, told.field)
            return _of_proto(json_format.MessageToDict(answer))

        yield ask


@asynccontextmanager
async def _python(explain: Explain | None, key: str | None) -> AsyncIterator[Ask]:
    async with (
        grpc_door(NOBODY, let_in=_admission(), explain=explain) as door,
        Client(door.address, api_key=key) as speaker,
    ):

        async def ask(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
            asked: dict[str, Any] = {**CHAT, **fields}
            try:
                answer = await speaker.explain(**asked)
            except LlmgError as error:
                return _failed(error.kind, error.param)
            message = pb.ExplainRouteResponse.FromString(bytes(answer))
            return _of_proto(json_format.MessageToDict(message))

        yield ask


def _of_graphql(found: dict[str, Any]) -> dict[str, Any]:
    for stage in found["stages"]:
        for target in stage["targets"]:
            target["verdict"] = target["verdict"].lower()
            target["labels"] = {one["name"]: one["value"] for one in target["labels"]}
        stage["targets"] = [
            {name: value for name, value in target.items() if value not in (None, "", [], {})}
            for target in stage["targets"]
        ]
    return found


@asynccontextmanager
async def _graphql(explain: Explain | None, key: str | None) -> AsyncIterator[Ask]:
    async with rest_door(NOBODY, let_in=_admission(), explain=explain) as door:

        async def ask(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
            own, beside = _beside(fields)
            if what == "embeddings":
                given: dict[str, Any] = {"embeddings": {"model": "m", "inputs": [{"text": "x"}], **own}}
            else:
                given = {"chat": {**GRAPHQL_CHAT, **own}}
            body = {"query": QUERY, "variables": {"input": given, **beside}}
            answer = (await door.post("/graphql", body, _headers(key))).json()
            if "errors" in answer:
                (error,) = answer["errors"]
                kinds = {code: kind for kind, (code, _) in CODES.items()}
                return _failed(kinds[error["extensions"]["code"]].value, error["extensions"].get("param"))
            return _of_graphql(answer["data"]["explainRoute"])

        yield ask


@asynccontextmanager
async def _websocket(explain: Explain | None, key: str | None) -> AsyncIterator[Ask]:
    async with websocket_door(NOBODY, let_in=_admission(), explain=explain) as door, client(door) as it:
        await it.send(type="init", **({} if key is None else {"key": key}))
        greeting = json.loads(await it.wire.recv())

        async def ask(fields: Mapping[str, Any], what: str) -> dict[str, Any]:
            frame = greeting
            if frame["type"] == "ready":
                own, beside = _beside(fields)
                request = {"model": "m", "input": ["x"], **own} if what == "embeddings" else {**CHAT, **own}
                operation = {"operation": what} if what == "embeddings" else {}
                await it.send(type="explain", id="7", request=request, **operation, **beside)
                frame = json.loads(await it.wire.recv())
                assert frame.pop("id") == "7"
            if frame["type"] == "error":
                return _failed(frame["error"]["code"], frame["error"].get("param"))
            assert frame.pop("type") == "explanation"
            assert frame.pop("request_id").startswith("req_")
            frame.pop("rate_limits", None)
            return dict(frame)

        yield ask


DOORS = {
    "REST": _rest,
    "gateway": _gateway,
    "gRPC": _grpc,
    "Python client": _python,
    "GraphQL": _graphql,
    "WebSocket": _websocket,
}
through_each = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
Door = Callable[[Explain | None, str | None], Any]


@through_each
async def test_the_same_by_each_door(door: Door) -> None:
    async with door(EXPLAIN, OPS) as ask:
        assert await ask({}, "chat") == TOLD
    assert NOBODY.calls == []


def _outline(target: dict[str, Any]) -> dict[str, Any]:
    kept = {name: told for name, told in target.items() if name not in ("score", "price", "region", "labels")}
    return kept if "place" not in kept else {**kept, "reason": "in the policy's order"}


@through_each
async def test_who_is_no_administrator_is_told_in_outline(door: Door) -> None:
    async with door(EXPLAIN, KEY) as ask:
        told = await ask({}, "chat")
    stages = [{**stage, "targets": [_outline(target) for target in stage["targets"]]} for stage in TOLD["stages"]]
    assert told == {**TOLD, "stages": stages}


def _up_to(tokens: int, door: Door) -> dict[str, Any]:
    flat = door in (_rest, _python, _websocket)
    return {"max_tokens": tokens} if flat else {"sampling": {"maxTokens": tokens}}


@through_each
async def test_it_is_held_to_the_limits_as_the_request_would_be(door: Door) -> None:
    """But takes no tokens: there would not be enough for two."""
    async with door(_explain(), HELD) as ask:
        for _ in range(2):
            assert (await ask(_up_to(900, door), "chat"))["model"] == "m"
        assert (await ask({}, "chat"))["kind"] is Kind.RATE_LIMITED


@through_each
async def test_a_request_that_the_limits_have_never_room_for(door: Door) -> None:
    async with door(_explain(), HELD) as ask:
        assert (await ask(_up_to(1001, door), "chat"))["kind"] is Kind.REQUEST_TOO_LARGE


async def test_what_is_left_of_the_limits_is_told() -> None:
    async with rest_door(NOBODY, let_in=_admission(), explain=_explain()) as door:
        response = await door.post("/v1/routes/explain", CHAT, _headers(HELD))
    assert response.headers["x-ratelimit-remaining-requests"] == "1"
    async with websocket_door(NOBODY, let_in=_admission(), explain=_explain()) as served, client(served) as it:
        await it.send(type="init", key=HELD)
        await it.wire.recv()
        await it.send(type="explain", id="7", request=CHAT)
        assert json.loads(await it.wire.recv())["rate_limits"]["requests"]["remaining"] == 1


@pytest.mark.parametrize("door", [_rest, _gateway, _grpc, _graphql, _websocket])
async def test_of_vectors(door: Door) -> None:
    async with door(EXPLAIN, KEY) as ask:
        told = await ask({}, "embeddings")
    last = told["stages"][0]["targets"][-1]
    assert (last["verdict"], last["reason"]) == ("rejected", "can't do embeddings")


@through_each
async def test_of_a_levels_model_for_an_administrator(door: Door) -> None:
    """In full, and the caller's own where no level is named."""
    async with door(EXPLAIN, OPS) as ask:
        told = await ask({"level": ACME}, "chat")
        assert await ask({"level": ""}, "chat") == TOLD
    assert [stage["model"] for stage in told["stages"]] == ["m"]
    assert told["stages"][0]["targets"] == [
        {
            "provider": "own",
            "model": "x",
            "verdict": "candidate",
            "place": 1,
            "score": 1.0,
            "reason": "share 1.000, credit 1: the highest is next",
            "weight": 1.0,
        }
    ]


@pytest.mark.parametrize("what", ["chat", "embeddings"])
@through_each
async def test_levels_that_can_not_be_named(door: Any, what: str) -> None:
    """One that is not there, any by who is no administrator, and a model that means nothing there."""
    param = "/level" if door is _gateway else "level"
    async with door(EXPLAIN, OPS) as ask:
        assert await ask({"level": "tenants/nope"}, what) == {"kind": Kind.NOT_FOUND, "param": param}
    async with door(EXPLAIN, OPS) as ask:
        told = await ask({"level": ACME, "model": "spare"}, what)
        assert told["kind"] is Kind.MODEL_NOT_FOUND
    for name in (ACME, "tenants/nope"):
        async with door(EXPLAIN, KEY) as ask:
            assert await ask({"level": name}, what) == {"kind": Kind.PERMISSION_DENIED, "param": param}


@through_each
async def test_an_explanation_for_a_level_counts_for_who_asks(door: Door) -> None:
    async with door(_explain(), FEW) as ask:
        for _ in range(2):
            assert (await ask({"level": ACME}, "chat"))["model"] == "m"
        assert (await ask({"level": ACME}, "chat"))["kind"] is Kind.RATE_LIMITED


@pytest.mark.parametrize("level", ["7", "{}", '"\\ud800"'])
async def test_a_level_in_the_rest_body_that_is_none(level: str) -> None:
    body = f'{{"model":"m","input":"x","level":{level}}}'
    async with rest_door(NOBODY, let_in=_admission(), explain=EXPLAIN) as door:
        response = await door.ask("POST", "/v1/routes/explain", body.encode(), _headers(OPS))
    assert (response.status, response.error["code"]) == (400, "invalid_request")


async def test_a_level_by_rest_may_be_null() -> None:
    async with _rest(EXPLAIN, KEY) as ask:
        assert (await ask({"level": None}, "chat"))["model"] == "m"


@through_each
async def test_only_with_a_key(door: Door) -> None:
    async with door(EXPLAIN, None) as ask:
        assert (await ask({}, "chat"))["kind"] is Kind.UNAUTHENTICATED


NAMES = {
    _rest: ("model", "n"),
    _gateway: ("/chat/model", "/chat/n"),
    _grpc: ("chat.model", "chat.n"),
    _python: ("chat.model", "chat.n"),
    _graphql: ("input.chat.model", "input.chat.n"),
    _websocket: ("request.model", "request.n"),
}


@through_each
async def test_what_can_not_be_asked(door: Any) -> None:
    """A model that is not there, and a field that is out of range, named as this door names it."""
    model, n = NAMES[door]
    async with door(EXPLAIN, KEY) as ask:
        assert await ask({"model": "nobody"}, "chat") == {"kind": Kind.MODEL_NOT_FOUND, "param": model}
    async with door(EXPLAIN, KEY) as ask:
        assert await ask({"n": 0}, "chat") == {"kind": Kind.INVALID_REQUEST, "param": n}


@pytest.mark.parametrize("door", [_gateway, _grpc, _python, _graphql, _websocket])
async def test_where_nobody_explains(door: Door) -> None:
    async with door(None, KEY) as ask:
        assert await ask({}, "chat") == {"kind": Kind.NOT_IMPLEMENTED, "param": None}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":"m"}', b'{"model":"m","input":[],"messages":[]}'])
async def test_bodies_that_are_none(body: bytes) -> None:
    async with rest_door(NOBODY, explain=EXPLAIN) as door:
        response = await door.ask("POST", "/v1/routes/explain", body, JSON)
    assert response.status == 400
    assert response.error["code"] == "invalid_request"


async def test_a_message_without_a_request() -> None:
    async with grpc_door(NOBODY, explain=EXPLAIN) as door:
        stub: Any = RoutingServiceStub(door.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ExplainRoute(pb.ExplainRouteRequest(), timeout=PATIENCE)
    assert (refusal(caught.value).kind, refusal(caught.value).field) == (Kind.INVALID_REQUEST, "chat")


async def test_a_request_under_way_outlives_an_explanation_of_its_id() -> None:
    """An error under its id would end it."""
    gate = Gate()
    provider = Scripted(Script(steps=[gate, *saying("hi")]))
    async with websocket_door(provider, explain=EXPLAIN) as door, client(door) as it:
        await it.start("1")
        await it.send(type="explain", id="1", request={})
        assert (await it.problem()).id is UNSET
        gate.open()
        assert (await it.answer()).text == "hi"

"""npm @grpc/grpc-js: calls, streams, deadlines, cancellation and statuses."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from judges.methods import EXAMPLES, METHODS, chat, example, streamed
from judges.programs import KEY, Script, node
from llmg.core.errors import Failure, Kind
from llmg.testing.scripted import Gate, Scripted, saying
from support.doors import grpc_door
from support.gateway import Process
from support.http import PATIENCE

ROOT = Path(__file__).parents[2]
WHOLE = "llmg.gatewayapi.v1.ChatService/CreateChatCompletion"
STREAM = "llmg.gatewayapi.v1.ChatService/CreateChatCompletionStream"
ASKING = {WHOLE, STREAM, "llmg.gatewayapi.v1.EmbeddingService/CreateEmbeddings"}  # a model
BOTH = pytest.mark.parametrize("method", [WHOLE, STREAM], ids=["whole", "stream"])
APIS = ROOT / "apis"
PROTOS = {
    "folders": [str(APIS), str(ROOT / ".temp" / "protos")],
    "files": [
        *(str(path.relative_to(APIS)) for path in sorted(APIS.glob("llmg/gatewayapi/**/*.proto"))),
        "google/rpc/status.proto",
        "google/rpc/error_details.proto",
    ],
}


def calling(address: str, *calls: dict[str, Any]) -> AbstractAsyncContextManager[Script]:
    """The script, which makes these calls one after the other."""
    return node("grpc.mjs", json.dumps({"address": address, **PROTOS, "calls": calls}))


async def call(address: str, **fields: Any) -> dict[str, Any]:
    """What came of one call."""
    async with calling(address, fields) as script:
        answer: dict[str, Any] = await script.result()
    return answer


async def test_every_method(served: Process) -> None:
    asked = {"authorization": f"Bearer {KEY}", "x-request-id": "req-of-the-judge"}
    examples = {method: example(method) for method in METHODS}
    calls = [call for method, given in examples.items() for call in (*given.before, (method, given.request))]
    made = [{"method": method, "request": request, "metadata": asked} for method, request in calls]
    answers: dict[str, Any] = {}
    async with calling(served.grpc_address, *made) as script:
        for method, given in examples.items():
            for _ in given.before:
                assert (await script.result())["code"] == "OK"
            answers[method] = await script.result()
    for method, answer in answers.items():
        assert answer["code"] == "OK", answer
        assert examples[method].seen(answer["messages"]) == examples[method].expected
        assert answer["trailing"]["x-request-id"] == "req-of-the-judge"
        assert answer["trailing"].get("x-llmg-route") == ("echo/m" if method in ASKING else None)
    assert len(answers[STREAM]["messages"]) > 2


async def test_a_wrong_key(served: Process) -> None:
    calls = [{"method": method, "request": EXAMPLES[method].request} for method in METHODS]
    wrong = [{**each, "metadata": {"x-api-key": "another"}} for each in calls]
    async with calling(served.grpc_address, *calls, *wrong) as script:
        answers = [await script.result() for _ in (*calls, *wrong)]
    for answer in answers:
        assert (answer["code"], answer["messages"]) == ("UNAUTHENTICATED", [])
        assert answer["details"] == [{"type": "google.rpc.ErrorInfo", "reason": "UNAUTHENTICATED", "domain": "llmg"}]
        assert answer["trailing"]["x-request-id"]


@BOTH
async def test_a_status_with_all_its_details(method: str) -> None:
    said = "zu schnell: 慢"
    failure = Failure(Kind.UPSTREAM_RATE_LIMITED, said, retry_after=1.5, code="too_fast", param="model")
    async with grpc_door(Scripted([failure])) as door:
        answer = await call(door.address, method=method, request=chat())
    assert (answer["code"], answer["message"]) == ("RESOURCE_EXHAUSTED", said)
    assert answer["details"] == [
        {
            "type": "google.rpc.ErrorInfo",
            "reason": "UPSTREAM_RATE_LIMITED",
            "domain": "llmg",
            "metadata": {"code": "too_fast"},
        },
        {
            "type": "google.rpc.BadRequest",
            "fieldViolations": [{"field": "chat.model", "description": said}],
        },
        {"type": "google.rpc.RetryInfo", "retryDelay": {"seconds": "1", "nanos": 500_000_000}},
    ]


async def test_an_error_in_mid_stream() -> None:
    failure = Failure(Kind.UPSTREAM_TRUNCATED, "it broke off", detail="secret")
    async with grpc_door(Scripted([*saying("Hi")[:2], failure])) as door:
        answer = await call(door.address, method=STREAM, request=chat())
    assert streamed(answer["messages"]) == "Hi"
    assert answer["code"] == "UNAVAILABLE"
    assert answer["details"][0]["reason"] == "UPSTREAM_TRUNCATED"
    assert "secret" not in json.dumps(answer)


@BOTH
async def test_a_deadline_reaches_the_provider(method: str) -> None:
    provider = Scripted([*saying("Hi")[:2], Gate()])
    async with grpc_door(provider) as door:
        asked = {"method": method, "request": chat(), "deadline": 2000}
        async with calling(door.address, asked) as script:
            assert (await script.result())["code"] == "DEADLINE_EXCEEDED"
            async with asyncio.timeout(PATIENCE):
                await provider.calls[0].exited.wait()
    assert provider.calls[0].cancelled.is_set()
    assert provider.calls[0].context.deadline is not None


async def test_leaving_in_mid_stream_frees_the_provider() -> None:
    provider = Scripted([*saying("Hi")[:2], Gate()])
    async with grpc_door(provider) as door:
        asked = {"method": STREAM, "request": chat(), "leave": 2}
        async with calling(door.address, asked) as script:
            answer = await script.result()
            async with asyncio.timeout(PATIENCE):
                await provider.calls[0].exited.wait()
    assert (answer["code"], streamed(answer["messages"])) == ("CANCELLED", "Hi")
    assert provider.calls[0].cancelled.is_set()


async def test_leaving_before_a_whole_answer_frees_the_provider() -> None:
    gate = Gate()
    provider = Scripted([gate])
    asked = {"method": WHOLE, "request": chat(), "leave": 0}
    async with grpc_door(provider) as door, calling(door.address, asked) as script:
        async with asyncio.timeout(PATIENCE):
            await gate.reached.wait()
        script.tell("leave")
        assert (await script.result())["code"] == "CANCELLED"
        async with asyncio.timeout(PATIENCE):
            await provider.calls[0].exited.wait()
    assert provider.calls[0].cancelled.is_set()

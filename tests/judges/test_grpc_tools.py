"""buf curl and grpcurl: every method, called by what reflection tells of it."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from msgspec import Struct

from judges.methods import EXAMPLES, METHODS, chat, example
from judges.programs import KEY, TOOLS, Ended, run
from llmg.doors.grpc.server import SERVICES
from support.gateway import Process

BUF = Path(__file__).parents[2] / ".venv" / "bin" / "buf"
GRPCURL = TOOLS / "venv" / "bin" / "grpcurl"


async def buf_curl(address: str, path: str, *flags: str) -> Ended:
    """`buf curl`, over gRPC without TLS."""
    return await run(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *flags, f"http://{address}{path}")


async def grpcurl(address: str, path: str, *flags: str) -> Ended:
    """`grpcurl`, without TLS."""
    return await run(GRPCURL, "-plaintext", "-format-error", *flags, address, path.removeprefix("/") or "list")


def told_by_buf(ended: Ended) -> tuple[int, str, ErrorInfo]:
    """A status: its code, message and first detail."""
    error = json.loads(ended.err)
    detail = error["details"][0]
    assert detail["type"] == "google.rpc.ErrorInfo"
    return ended.code >> 3, error["message"], ErrorInfo.FromString(b64decode(detail["value"] + "=="))


def told_by_grpcurl(ended: Ended) -> tuple[int, str, ErrorInfo]:
    """A status: its code, message and first detail."""
    error = json.loads(ended.err)
    assert ended.code == 64 + error["code"]
    kind, info = error["details"][0].pop("@type"), error["details"][0]
    assert kind == "type.googleapis.com/google.rpc.ErrorInfo"
    return error["code"], error["message"], ErrorInfo(**info)


class Tool(Struct, frozen=True):
    """How it is called, how it is asked what there is, and how its report of an error is read."""

    curl: Callable[..., Awaitable[Ended]]
    list: Sequence[str]
    told: Callable[[Ended], tuple[int, str, ErrorInfo]]

    async def call(self, gateway: Process, method: str, request: Mapping[str, Any], key: str = KEY) -> Ended:
        """One call."""
        flags = ("-H", f"authorization: Bearer {key}", "-d", json.dumps(request))
        return await self.curl(gateway.grpc_address, f"/{method}", *flags)


BOTH = pytest.mark.parametrize(
    "tool",
    [
        pytest.param(Tool(buf_curl, ["--list-services"], told_by_buf), id="buf curl"),
        pytest.param(Tool(grpcurl, [], told_by_grpcurl), id="grpcurl"),
    ],
)


def decoded(out: str) -> list[Any]:
    """JSON values, one after the other."""
    values, decoder = [], json.JSONDecoder()
    while out := out.lstrip():
        value, end = decoder.raw_decode(out)
        values.append(value)
        out = out[end:]
    return values


def test_every_method_has_an_example() -> None:
    assert set(EXAMPLES) == set(METHODS)


@BOTH
async def test_reflection_lists_every_service(tool: Tool, served: Process) -> None:
    ended = await tool.curl(served.grpc_address, "", *tool.list)
    assert ended.code == 0, ended
    assert set(ended.out.split()) == {*SERVICES, HEALTH, REFLECTION}


@BOTH
@pytest.mark.parametrize("method", METHODS)
async def test_every_method(tool: Tool, method: str, served: Process) -> None:
    given = example(method)
    for needed, request in given.before:
        assert (await tool.call(served, needed, request)).code == 0
    ended = await tool.call(served, method, given.request)
    assert ended.code == 0, ended
    assert given.seen(decoded(ended.out)) == given.expected


@BOTH
async def test_health(tool: Tool, served: Process) -> None:
    ended = await tool.curl(served.grpc_address, f"/{HEALTH}/Check")
    assert decoded(ended.out) == [{"status": "SERVING"}]


@BOTH
@pytest.mark.parametrize("method", [method for method in METHODS if "/CreateChat" in method])
async def test_a_status_with_its_details(tool: Tool, method: str, served: Process) -> None:
    ended = await tool.call(served, method, chat(model="nonsense"))
    code, message, info = tool.told(ended)
    assert code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "'nonsense'" in message
    assert info == ErrorInfo(reason="MODEL_NOT_FOUND", domain="llmg")


@BOTH
@pytest.mark.parametrize("method", METHODS)
async def test_a_wrong_key(tool: Tool, method: str, served: Process) -> None:
    ended = await tool.call(served, method, EXAMPLES[method].request, key="another")
    code, _, info = tool.told(ended)
    assert code == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert info.reason == "UNAUTHENTICATED"

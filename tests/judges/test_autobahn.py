"""The Autobahn test suite against an echo on our own server: the rules of WebSocket (RFC 6455)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from judges.programs import TOOLS, run
from support.sockets import serving

pytestmark = [pytest.mark.judge, pytest.mark.timeout(900)]

PATIENCE = 800.0  # seconds
GOOD = {"OK", "INFORMATIONAL", "NON-STRICT"}  # NON-STRICT: broken UTF-8 is refused at the end of a message, not amid it
COMPRESSION = ["12.*", "13.*"]  # permessage-deflate, which we don't offer


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Says back what it is told."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def judge(url: str, directory: Path) -> dict[str, Any]:
    """The suite's verdicts, by its cases' names."""
    spec = {
        "servers": [{"agent": "llmg", "url": url}],
        "cases": ["*"],
        "exclude-cases": COMPRESSION,
        "outdir": str(directory / "reports"),
    }
    file = directory / "spec.json"
    await asyncio.to_thread(file.write_text, json.dumps(spec))
    ended = await run(TOOLS / "autobahn" / "wstest", "-m", "fuzzingclient", "-s", file, patience=PATIENCE)
    assert ended.code == 0, ended
    index = await asyncio.to_thread((directory / "reports" / "index.json").read_text)
    verdicts: dict[str, Any] = json.loads(index)["llmg"]
    return verdicts


async def test_no_case_fails(tmp_path: Path) -> None:
    async with serving(echo, max_message=64 << 20) as served:
        verdicts = await judge(served.url("/"), tmp_path)
    assert len(verdicts) == 301
    failed = {
        name: verdict
        for name, verdict in verdicts.items()
        if not {verdict["behavior"], verdict["behaviorClose"]} <= GOOD
    }
    assert failed == {}

"""An engine that does what the tests tell it, by its environment and by prompts. A program, not a module.

It reports to UDP port TELL of the loopback interface: `started PID`, `loading PID`, `unloaded PID`.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llmg.backendapi import backend_pb2 as pb
from llmg.backends.servicer import Servicer, serve


def say(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


def tell(event: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(f"{event} {os.getpid()}".encode(), ("127.0.0.1", int(os.environ["TELL"])))


class Engine(Servicer):
    async def Health(self, request: pb.HealthMessage, context: Any) -> pb.Reply:
        return pb.Reply(message=os.environ.get("HEALTH", "OK").encode())

    async def load(self, options: pb.ModelOptions) -> None:
        tell("loading")
        if (refusal := os.environ.get("REFUSE")) and Path(refusal).exists():
            raise ValueError(Path(refusal).read_text())
        if os.environ.get("LOAD") == "never":
            await asyncio.Event().wait()
        if os.environ.get("LOAD") == "crash":
            say("GGML_ASSERT: the tensor is bent")
            os.abort()
        self.options = options

    async def unload(self) -> None:
        tell("unloaded")

    async def Predict(self, request: pb.PredictOptions, context: Any) -> pb.Reply:
        if request.Prompt == "crash":
            say("the last straw")
            os._exit(7)
        answer = {
            "pid": os.getpid(),
            "options": {field.name: str(value) for field, value in self.options.ListFields()},
            "env": dict(os.environ),
        }
        return pb.Reply(message=json.dumps(answer).encode())

    async def PredictStream(self, request: pb.PredictOptions, context: Any) -> AsyncIterator[pb.Reply]:
        while True:
            yield pb.Reply(message=b".")
            await asyncio.Event().wait()


def main() -> int:
    tell("started")
    match os.environ.get("START", "").split():
        case ["exit", code, *words]:
            say("warming up")
            say(" ".join(words))
            return int(code)
        case ["deaf"]:
            signal.pause()
    return serve(Engine)


if __name__ == "__main__":
    sys.exit(main())

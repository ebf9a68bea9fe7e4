"""An engine that answers when the test lets it. A program, not a module.

It tells UDP port TELL of the loopback interface `started PID`. A prediction connects to TCP port GATE and answers with
what it reads there until the end; with SLOW in its environment, loading waits in the same way.
"""

import asyncio
import os
import socket
import sys
from typing import Any

from llmg.backendapi import backend_pb2 as pb
from llmg.backends.servicer import Servicer, serve


async def gate() -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["GATE"]))
    message = await reader.read()
    writer.close()
    return message


class Engine(Servicer):
    async def load(self, options: pb.ModelOptions) -> None:
        if "SLOW" in os.environ:
            await gate()

    async def unload(self) -> None:
        pass

    async def Predict(self, request: pb.PredictOptions, context: Any) -> pb.Reply:
        return pb.Reply(message=await gate())


if __name__ == "__main__":
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(f"started {os.getpid()}".encode(), ("127.0.0.1", int(os.environ["TELL"])))
    sys.exit(serve(Engine))

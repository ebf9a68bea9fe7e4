"""The real model: gateways that serve it, and an engine's process of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import openai
import pytest
from msgspec import Struct

from llmg.backendapi import backend_pb2 as pb
from llmg.backendapi.backend_pb2_grpc import BackendStub
from llmg.launcher.models import resolve_model
from support.gateway import STARTED_WITHIN, Gateway, Log, Process, process
from support.http import PATIENCE

MODEL_FILE = str(resolve_model("smollm2-135m-instruct", Path("models")))
TOKEN = "the-backends-own-token"
METADATA = (("authorization", f"Bearer {TOKEN}"),)

# <|im_end|> never comes: an answer goes on until its limit.
ENDLESS: dict[str, Any] = {"logit_bias": {"2": -100}, "max_tokens": 3000}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`llmg serve` without any configuration: what a newcomer has. The model is loaded by the first request."""
    with process(tmp_path_factory.mktemp("served")) as gateway:
        yield gateway


class Engine(Struct, frozen=True):
    """An engine's process: where it listens."""

    address: str

    def stub(self, channel: grpc.aio.Channel) -> BackendStub:
        """Its calls."""
        return BackendStub(channel)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine that is not the gateway's own: with the model loaded, and a token."""
    command = [sys.executable, "-m", "llmg.backends.xllamacpp", "--addr", "127.0.0.1:0"]
    env = {**os.environ, "LOCALAI_GRPC_AUTH_TOKEN": TOKEN}
    popen = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, errors="replace")
    log = Log(popen)
    try:
        address = log.line("serving on", STARTED_WITHIN).split()[-1]
        with grpc.insecure_channel(address) as channel:
            load = channel.unary_unary(
                "/backend.Backend/LoadModel",
                request_serializer=pb.ModelOptions.SerializeToString,
                response_deserializer=pb.Result.FromString,
            )
            options = pb.ModelOptions(Model="smollm2", ModelFile=MODEL_FILE, MMap=True, ContextSize=4096)
            result = load(options, metadata=METADATA, wait_for_ready=True, timeout=STARTED_WITHIN)
            assert result.success, result.message
        yield Engine(address)
    finally:
        popen.terminate()
        try:
            popen.wait(PATIENCE)
        finally:
            popen.kill()
            popen.wait()
            log.close()


@pytest.fixture(scope="session")
def to_engine(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A gateway before that engine."""
    config = {
        "providers": {"running": {"kind": "backend", "address": engine.address, "token": TOKEN}},
        "models": {"smollm2": {"targets": [{"provider": "running", "model": "smollm2"}]}},
    }
    with process(tmp_path_factory.mktemp("to_engine"), config) as gateway:
        yield gateway


def sdk(gateway: Gateway) -> openai.AsyncOpenAI:
    """OpenAI's SDK, pointed at a gateway."""
    return openai.AsyncOpenAI(base_url=gateway.base_url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture
async def client(served: Process) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's SDK."""
    async with sdk(served) as made:
        yield made

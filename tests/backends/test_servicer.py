"""What every engine gets from the servicer base, over real sockets and, where it matters, in real processes."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from llmg.backendapi import backend_pb2 as pb
from llmg.backendapi.backend_pb2_grpc import BackendStub
from llmg.backends import options as engine_options
from llmg.backends import servicer as base
from llmg.backends.servicer import AddressInUse, Servicer, StatusError, seconds, serve, start, watch_parent

MIB = 1024 * 1024
LARGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Parrot(Servicer):
    """A whole engine: it says the prompt, or fails as the prompt tells."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = asyncio.Event()

    async def load(self, options: pb.ModelOptions) -> None:
        if options.ModelFile == "missing":
            raise FileNotFoundError("no such model\nlook elsewhere")

    async def unload(self) -> None:
        pass

    async def Predict(self, request: pb.PredictOptions, context: grpc.aio.ServicerContext[Any, Any]) -> pb.Reply:
        match request.Prompt:
            case "raise":
                raise ValueError("boom\nand more")
            case "refuse":
                raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, "too long", {"llmg-error-kind": "long"})
            case "wait":
                logging.info("waiting")
                await asyncio.to_thread(sys.stdin.readline)
        return pb.Reply(message=request.Prompt.encode())

    async def PredictStream(
        self, request: pb.PredictOptions, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.Reply]:
        try:
            for word in request.Prompt.split():
                yield pb.Reply(message=word.encode())
            if request.IgnoreEOS:
                await asyncio.Event().wait()
            if request.Prompt.endswith("raise"):
                raise ValueError("boom")
        finally:
            self.closed.set()


@pytest.fixture
async def parrot() -> AsyncIterator[tuple[Parrot, BackendStub]]:
    engine = Parrot()
    async with await start(engine) as running, grpc.aio.insecure_channel(running.address) as channel:
        yield engine, BackendStub(channel)


@pytest.fixture
async def stub(parrot: tuple[Parrot, BackendStub]) -> BackendStub:
    return parrot[1]


async def words(call: grpc.aio.UnaryStreamCall[pb.PredictOptions, pb.Reply]) -> list[bytes]:
    return [reply.message async for reply in call]


async def test_health_is_exactly_ok(stub: BackendStub) -> None:
    assert (await stub.Health(pb.HealthMessage())).message == b"OK"


async def test_what_an_engine_lacks_is_unimplemented_in_every_kind_of_call(stub: BackendStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await stub.Rerank(pb.RerankRequest())
    with pytest.raises(grpc.aio.AioRpcError) as stream:
        await stub.TTSStream(pb.TTSRequest()).read()
    with pytest.raises(grpc.aio.AioRpcError) as both:
        await stub.AudioToAudioStream(iter([pb.AudioToAudioRequest()])).read()
    codes = {error.value.code() for error in (unary, stream, both)}
    assert codes == {grpc.StatusCode.UNIMPLEMENTED}
    assert unary.value.details() == "Rerank is not implemented here"


async def finished(call: grpc.aio.UnaryUnaryCall[pb.PredictOptions, pb.Reply]) -> pb.Reply:
    return await call


async def message(call: grpc.aio.UnaryStreamCall[pb.PredictOptions, pb.Reply]) -> bytes:
    """The next of a stream."""
    reply = await call.read()
    assert isinstance(reply, pb.Reply)
    return reply.message


# -- the token --


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "secret", "Bearer secret2", "bearer secret"])
async def test_a_missing_or_wrong_token_is_refused(header: str | None) -> None:
    metadata = (("authorization", header),) if header else ()
    async with await start(Parrot(), token="secret") as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = BackendStub(channel)
        for call in (
            stub.Health(pb.HealthMessage(), metadata=metadata),
            stub.Rerank(pb.RerankRequest(), metadata=metadata),
            stub.PredictStream(pb.PredictOptions(Prompt="a b"), metadata=metadata).read(),
            stub.AudioToAudioStream(iter([pb.AudioToAudioRequest()]), metadata=metadata).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_the_right_token_opens() -> None:
    metadata = (("authorization", "Bearer secret"),)
    async with await start(Parrot(), token="secret") as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = BackendStub(channel)
        assert (await stub.Health(pb.HealthMessage(), metadata=metadata)).message == b"OK"
        assert await words(stub.PredictStream(pb.PredictOptions(Prompt="a b"), metadata=metadata)) == [b"a", b"b"]


# -- the model's identity --

# fmt: off
GUARDED = [
    "Predict", "PredictStream", "Embedding", "TokenizeString", "GenerateImage", "GenerateVideo", "TTS", "TTSStream",
    "SoundGeneration", "AudioTranscription", "AudioTranscriptionStream", "Detect", "Depth", "FaceVerify",
    "FaceAnalyze", "VoiceVerify", "VoiceAnalyze", "VoiceEmbed", "Rerank", "TokenClassify", "Score", "VAD",
    "Diarize", "SoundDetection", "AudioTransform",
]
# fmt: on


@pytest.mark.parametrize("name", GUARDED)
async def test_a_call_for_another_model_is_not_found(stub: BackendStub, name: str) -> None:
    assert (await stub.LoadModel(pb.ModelOptions(Model="one"))).success
    method = pb.DESCRIPTOR.services_by_name["Backend"].methods_by_name[name]
    request = getattr(pb, method.input_type.name)(ModelIdentity="two")
    call = getattr(stub, name)(request)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (call.read() if method.server_streaming else call)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert "model identity mismatch" in (refused.value.details() or "")


def test_those_are_all_calls_that_name_a_model() -> None:
    methods = pb.DESCRIPTOR.services_by_name["Backend"].methods
    naming = {
        method.name
        for method in methods
        if "ModelIdentity" in method.input_type.fields_by_name and not method.client_streaming
    }
    assert naming == set(GUARDED)


async def test_an_identity_that_is_equal_or_unknown_to_either_side_passes(stub: BackendStub) -> None:
    asked = pb.PredictOptions(Prompt="hi", ModelIdentity="one")
    assert (await stub.Predict(asked)).message == b"hi"  # nothing is loaded
    await stub.LoadModel(pb.ModelOptions(Model="one"))
    assert (await stub.Predict(asked)).message == b"hi"
    assert (await stub.Predict(pb.PredictOptions(Prompt="hi"))).message == b"hi"
    assert (await stub.Free(pb.HealthMessage())).success
    assert (await stub.Predict(pb.PredictOptions(Prompt="hi", ModelIdentity="two"))).message == b"hi"


async def test_a_failed_load_is_a_result_and_leaves_no_identity(
    parrot: tuple[Parrot, BackendStub], caplog: pytest.LogCaptureFixture
) -> None:
    engine, stub = parrot
    await stub.LoadModel(pb.ModelOptions(Model="one"))
    result = await stub.LoadModel(pb.ModelOptions(Model="two", ModelFile="missing"))
    assert (result.success, result.message) == (False, "FileNotFoundError: no such model")
    assert engine.identity == ""
    assert "look elsewhere" in caplog.text


# -- errors --


async def test_an_exception_is_internal_with_its_cause_and_the_trace_is_logged(
    stub: BackendStub, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Predict(pb.PredictOptions(Prompt="raise"))
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INTERNAL, "ValueError: boom")
    assert "Traceback" in caplog.text
    assert "and more" in caplog.text


async def test_an_exception_within_a_stream_follows_what_was_sent(stub: BackendStub) -> None:
    call = stub.PredictStream(pb.PredictOptions(Prompt="a raise"))
    assert [await message(call), await message(call)] == [b"a", b"raise"]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INTERNAL, "ValueError: boom")


async def test_a_status_error_keeps_code_words_and_trailing_metadata(stub: BackendStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Predict(pb.PredictOptions(Prompt="refuse"))
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "too long")
    assert ("llmg-error-kind", "long") in tuple(failed.value.trailing_metadata())


async def test_a_cancelled_stream_is_closed_in_the_engine(parrot: tuple[Parrot, BackendStub]) -> None:
    engine, stub = parrot
    call = stub.PredictStream(pb.PredictOptions(Prompt="a", IgnoreEOS=True))
    await call.read()
    assert not engine.closed.is_set()
    call.cancel()
    await asyncio.wait_for(engine.closed.wait(), 1)


async def test_a_stream_that_nobody_reads_is_closed_too(parrot: tuple[Parrot, BackendStub]) -> None:
    engine, stub = parrot
    prompt = " ".join(["x" * 1000] * 20_000)  # more than the windows between the two hold: a write is waiting
    call = stub.PredictStream(pb.PredictOptions(Prompt=prompt, IgnoreEOS=True))
    await call.read()
    call.cancel()
    await asyncio.wait_for(engine.closed.wait(), 1)


# -- sizes --


async def test_messages_of_50_mib_pass_and_larger_ones_do_not() -> None:
    async with await start(Parrot()) as running, grpc.aio.insecure_channel(running.address, options=LARGE) as channel:
        stub = BackendStub(channel)
        size = 50 * MIB - 16
        assert len((await stub.Predict(pb.PredictOptions(Prompt="x" * size))).message) == size
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Predict(pb.PredictOptions(Prompt="x" * (50 * MIB + 1)))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


# -- addresses and processes --


async def test_an_address_in_use_is_said_and_not_shared() -> None:
    async with await start(Parrot()) as running:
        with pytest.raises(AddressInUse, match=running.address):
            await start(Parrot(), running.address)


async def spawn(*arguments: str, program: str = "", **env: str) -> tuple[asyncio.subprocess.Process, str]:
    """A parrot in a process of its own; its address once it serves. `program` runs it as a grandchild instead."""
    command = ["-c", program] if program else [__file__, "--addr", "127.0.0.1:0", *arguments]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | env
    )
    assert process.stderr is not None
    line = await asyncio.wait_for(process.stderr.readline(), 20)
    assert b"serving on" in line, line
    return process, line.decode().split()[-1]


async def test_a_second_process_on_the_same_port_exits_with_its_own_code() -> None:
    async with await start(Parrot()) as running:
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--addr", running.address, stderr=asyncio.subprocess.PIPE
        )
        _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == base.EXIT_ADDRESS_IN_USE
    assert f"cannot listen on {running.address}: the port is in use" in stderr.decode()


async def test_sigterm_lets_the_call_under_way_finish() -> None:
    process, address = await spawn(LOCALAI_GRPC_AUTH_TOKEN="secret")
    assert process.stdin is not None
    assert process.stderr is not None
    async with grpc.aio.insecure_channel(address) as channel:
        metadata = (("authorization", "Bearer secret"),)
        call = BackendStub(channel).Predict(pb.PredictOptions(Prompt="wait"), metadata=metadata)
        pending = asyncio.ensure_future(finished(call))
        assert b"waiting" in await asyncio.wait_for(process.stderr.readline(), 5)
        process.send_signal(signal.SIGTERM)
        assert b"stopping" in await asyncio.wait_for(process.stderr.readline(), 5)
        process.stdin.write(b"go on\n")
        assert (await asyncio.wait_for(pending, 5)).message == b"wait"
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_it_ends_when_its_parent_is_killed() -> None:
    program = f"import subprocess, sys; subprocess.run([sys.executable, {__file__!r}, '--addr', '127.0.0.1:0'])"
    parent, address = await spawn(program=program, LOCALAI_BACKEND_PARENT_WATCH_INTERVAL="50ms")
    assert parent.stderr is not None
    async with grpc.aio.insecure_channel(address) as channel:
        assert (await BackendStub(channel).Health(pb.HealthMessage())).message == b"OK"
        parent.kill()
        # The grandchild holds the pipe open until it ends, too.
        assert b"the parent process is gone" in await asyncio.wait_for(parent.stderr.read(), 5)
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await BackendStub(channel).Health(pb.HealthMessage())
        assert gone.value.code() == grpc.StatusCode.UNAVAILABLE
    await parent.wait()


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "OFF"])
def test_the_watch_can_be_turned_off(word: str) -> None:
    watch_parent({"LOCALAI_BACKEND_PARENT_WATCH": word})
    assert "parent-watch" not in [thread.name for thread in threading.enumerate()]


async def test_the_base_needs_no_engine() -> None:
    code = "import sys; sys.modules['xllamacpp'] = None; import llmg.backends.servicer"
    process = await asyncio.create_subprocess_exec(sys.executable, "-W", "error", "-c", code)
    assert await asyncio.wait_for(process.wait(), 20) == 0


# -- small things --


@pytest.mark.parametrize(
    ("text", "value"), [("2s", 2.0), ("500ms", 0.5), ("1m30s", 90.0), ("1.5h", 5400.0), (".5s", 0.5), ("10us", 1e-5)]
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "2", "s", "2 s", "-1s", "1x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        seconds(text)


def test_options_are_split_at_the_first_colon_and_normalised() -> None:
    entries = ["parallel: 4", "--Flash-Attn:on", "path:C:/x", "verbose", "parallel:8"]
    assert engine_options.parse(entries) == {"parallel": "8", "flash_attn": "on", "path": "C:/x", "verbose": ""}


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(serve(Parrot))

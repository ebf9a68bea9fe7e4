"""The launcher, with real processes."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from msgspec.structs import replace

from launcher.conftest import Ear, FakeClock, MakeSpec, ended, exists
from llmg.backendapi import backend_pb2 as pb
from llmg.backendapi.backend_pb2_grpc import BackendStub
from llmg.backends import servicer
from llmg.core.errors import Failure, Kind
from llmg.launcher import engine
from llmg.launcher.engine import command, cores, options
from llmg.launcher.local import LocalLauncher, free_port
from llmg.launcher.models import resolve_model
from llmg.ports import Running, Spec


async def predict(running: Running, prompt: str = "") -> dict[str, Any]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        request = pb.PredictOptions(Prompt=prompt, ModelIdentity=running.identity)
        metadata = (("authorization", f"Bearer {running.token}"),)
        reply = await BackendStub(channel).Predict(request, metadata=metadata, timeout=30)
        answer: dict[str, Any] = json.loads(reply.message)
        return answer


async def crash(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await predict(running, "crash")


async def failure_of(launcher: LocalLauncher, spec: Spec) -> Failure:
    with pytest.raises(Failure) as caught:
        await launcher.ensure(spec)
    return caught.value


def pids(ear: Ear) -> list[int]:
    return [pid for event, pid in ear.drain() if event == "started"]


async def test_starts_loads_and_stops(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    spec = make_spec(
        file="/models/polly.gguf",
        context_size=512,
        threads=3,
        parallel=2,
        embeddings=True,
        options=("a:b",),
        COLOUR="red",
    )
    running = await launcher.ensure(spec)
    assert running.identity == "polly"
    assert running.generation == 1
    assert await launcher.ensure(spec) is running

    answer = await predict(running)
    assert answer["options"] == {
        "Model": "polly",
        "ModelFile": "/models/polly.gguf",
        "ModelPath": "/models",
        "ContextSize": "512",
        "Threads": "3",
        "Embeddings": "True",
        "MMap": "True",
        "Options": "['parallel:2', 'a:b']",
    }
    inherited = {name: value for name, value in os.environ.items() if name not in ("TELL", "COLOUR")}
    assert answer["env"].items() >= inherited.items()
    assert answer["env"]["COLOUR"] == "red"
    assert await launcher.post_mortem(spec, 1) is None

    await launcher.aclose()
    assert ("unloaded", answer["pid"]) in ear.drain()
    assert not exists(answer["pid"])
    assert await launcher.post_mortem(spec, 1) == "the parrot backend was stopped"
    assert (await failure_of(launcher, spec)).kind is Kind.SHUTTING_DOWN
    await launcher.aclose()


async def test_each_process_wants_its_own_token(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    one, two = await asyncio.gather(launcher.ensure(make_spec()), launcher.ensure(make_spec(model="coco")))
    assert one.token != two.token
    assert one.address != two.address
    with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
        await predict(Running(address=one.address, token=two.token, identity="polly", generation=1))


async def test_many_who_ask_share_one_start(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    spec = make_spec()
    asking = [asyncio.create_task(launcher.ensure(spec)) for _ in range(20)]
    await ear.hear("started")
    for task in asking[:5]:
        task.cancel()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[:5])
    assert set(map(id, outcomes[5:])) == {id(await launcher.ensure(spec))}
    assert len(pids(ear)) == 1


async def test_a_start_outlives_all_who_asked(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    spec = make_spec()
    asking = asyncio.create_task(launcher.ensure(spec))
    pid = await ear.hear("started")
    asking.cancel()
    await asyncio.wait({asking})
    assert (await predict(await launcher.ensure(spec)))["pid"] == pid


async def test_a_failing_start_fails_all_who_wait(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    spec = make_spec(START="exit 1 no")
    asking = [failure_of(launcher, spec) for _ in range(5)]
    failures = await asyncio.gather(*asking)
    assert len({id(failure) for failure in failures}) == 5
    assert len({repr(failure) for failure in failures}) == 1
    assert len(pids(ear)) == 1


async def test_after_a_crash_the_next_generation(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    spec = make_spec()
    gone: list[tuple[Spec, int]] = []
    with launcher.listening(lambda spec, generation: gone.append((spec, generation))):
        first = await launcher.ensure(spec)
        await crash(first)
        # asked at once, as the call that lost its connection does
        why = await launcher.post_mortem(spec, 1)
        assert why is not None
        assert why.startswith("the parrot backend exited with code 7: ")
        assert why.endswith("the last straw")
        assert gone == [(spec, 1)]

        second = await launcher.ensure(spec)
        assert second.generation == 2
        assert second.token != first.token
        assert await launcher.post_mortem(spec, 1) == why
        assert await launcher.post_mortem(spec, 2) is None

        os.kill((await predict(second))["pid"], signal.SIGKILL)
        assert await launcher.post_mortem(spec, 2) == "the parrot backend was killed by signal 9 (SIGKILL)"
        assert (await launcher.ensure(spec)).generation == 3
        assert gone == [(spec, 1), (spec, 2)]
    assert await launcher.post_mortem(spec, 99) == "the parrot backend is not running any more"


async def test_an_exit_while_starting(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    failure = await failure_of(launcher, make_spec(START="exit 3 no device found"))
    assert failure.kind is Kind.BACKEND_CRASHED
    assert failure.message == "the parrot backend exited with code 3 while starting: warming up | no device found"
    assert failure.retry_after == 1


async def test_a_crash_while_loading(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    failure = await failure_of(launcher, make_spec(LOAD="crash"))
    assert failure.kind is Kind.BACKEND_CRASHED
    assert failure.message.startswith("the parrot backend was killed by signal 6 (SIGABRT) while starting: ")
    assert failure.message.endswith("GGML_ASSERT: the tensor is bent")


async def test_no_such_engine(launcher: LocalLauncher) -> None:
    failure = await failure_of(launcher, Spec(engine="nosuch", model="m"))
    assert failure.kind is Kind.BACKEND_CRASHED
    assert "exited with code 1 while starting: " in failure.message
    assert "No module named llmg.backends.nosuch" in failure.message


async def test_no_such_command(launcher: LocalLauncher) -> None:
    failure = await failure_of(launcher, Spec(engine="mine", model="m", external=("/no/such/program",)))
    assert failure.kind is Kind.BACKEND_CRASHED
    assert failure.message == "the mine backend could not be started: No such file or directory"


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"START": "deaf"}, "it did not answer Health"),
        ({"HEALTH": "nearly"}, "Health answered b'nearly'"),
    ],
)
async def test_never_healthy(
    launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear, env: dict[str, str], reason: str
) -> None:
    failure = await failure_of(launcher, make_spec(startup_timeout=3, **env))
    assert failure.kind is Kind.UPSTREAM_TIMEOUT
    assert failure.message.startswith(f"the parrot backend was not ready within 3 s: {reason}")
    assert not exists(pids(ear)[0])


async def test_never_loaded(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    failure = await failure_of(launcher, make_spec(startup_timeout=3, LOAD="never"))
    assert failure.kind is Kind.UPSTREAM_TIMEOUT
    assert failure.message == "the parrot backend was not ready within 3 s: it was still loading the model"
    assert not exists(pids(ear)[0])


async def test_a_refused_model_is_left_alone_for_a_while(
    launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear, clock: FakeClock, tmp_path: Path
) -> None:
    refusal = tmp_path / "refusal"
    refusal.write_text("unknown architecture 'parrot'")
    spec = make_spec(REFUSE=refusal)

    async def fails_after(seconds: float) -> Failure:
        failure = await failure_of(launcher, spec)
        assert failure.kind is Kind.UPSTREAM_ERROR
        assert failure.message == "the engine could not load the model: ValueError: unknown architecture 'parrot'"
        assert failure.retry_after == seconds
        return failure

    first = await fails_after(1)
    assert first.detail is not None
    assert "could not load polly" in first.detail
    assert not any(map(exists, pids(ear)))
    clock.now += 0.5
    await fails_after(0.5)
    assert len(pids(ear)) == 1
    clock.now += 0.5
    await fails_after(2)
    assert len(pids(ear)) == 2
    clock.now += 2
    refusal.unlink()
    running = await launcher.ensure(spec)
    assert running.generation == 1

    refusal.write_text("unknown architecture 'parrot'")
    await crash(running)
    assert await launcher.post_mortem(spec, 1) is not None
    await fails_after(1)


@contextmanager
def taken_ports(count: int) -> Iterator[list[int]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        yield [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()


async def test_a_port_that_was_taken(clock: FakeClock, make_spec: MakeSpec, ear: Ear) -> None:
    with taken_ports(2) as taken:
        free = free_port()
        ports = iter([*taken, free])
        launcher = LocalLauncher(clock, port=lambda: next(ports))
        try:
            running = await launcher.ensure(make_spec())
            assert running.address == f"127.0.0.1:{free}"
            assert running.generation == 1
        finally:
            await launcher.aclose()
    assert len(pids(ear)) == 3


async def test_ports_that_are_all_taken(clock: FakeClock, make_spec: MakeSpec, ear: Ear) -> None:
    with taken_ports(1) as taken:
        launcher = LocalLauncher(clock, port=lambda: taken[0])
        failure = await failure_of(launcher, make_spec())
        await launcher.aclose()
    assert failure.kind is Kind.BACKEND_CRASHED
    assert "the parrot backend exited with code 98 while starting: " in failure.message
    assert f"cannot listen on 127.0.0.1:{taken[0]}" in failure.message
    assert len(pids(ear)) == 5


def test_the_exit_code_is_the_engines() -> None:
    assert engine.EXIT_ADDRESS_IN_USE == servicer.EXIT_ADDRESS_IN_USE


@pytest.mark.parametrize("stage", ["started", "loading"])
async def test_closing_during_a_start_leaves_nothing(
    launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear, stage: str
) -> None:
    asking = asyncio.create_task(failure_of(launcher, make_spec(LOAD="never")))
    await ear.hear(stage)
    await launcher.aclose()
    assert (await asking).kind is Kind.SHUTTING_DOWN
    assert not exists(pids(ear)[0])


async def test_closing_before_a_start_began(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    asking = asyncio.create_task(failure_of(launcher, make_spec()))
    while not launcher._starting:
        await asyncio.sleep(0)
    await launcher.aclose()
    assert (await asking).kind is Kind.SHUTTING_DOWN
    assert not any(map(exists, pids(ear)))


@pytest.mark.parametrize("begun", [True, False])
async def test_a_closing_that_is_cancelled_leaves_nothing(clock: FakeClock, make_spec: MakeSpec, begun: bool) -> None:
    launcher = LocalLauncher(clock)
    pid = (await predict(await launcher.ensure(make_spec())))["pid"]
    os.kill(pid, signal.SIGSTOP)  # it can't obey Free nor SIGTERM
    closing = asyncio.create_task(launcher.aclose())
    while launcher._closing is None:
        await asyncio.sleep(0)
    if begun:
        await asyncio.wait({closing}, timeout=0.05)
    launcher._closing.cancel()  # as the end of the event loop does
    await ended(pid)
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_models_are_stopped_at_the_same_time(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    runnings = await asyncio.gather(*(launcher.ensure(make_spec(model=name)) for name in ("one", "two", "three")))
    processes = [(await predict(running))["pid"] for running in runnings]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await launcher.aclose()
    assert 7 <= loop.time() - started < 12  # Free 2 s, SIGTERM 5 s, SIGKILL
    assert not any(map(exists, processes))


async def test_a_call_under_way_does_not_keep_it(launcher: LocalLauncher, make_spec: MakeSpec, ear: Ear) -> None:
    running = await launcher.ensure(make_spec())
    async with grpc.aio.insecure_channel(running.address) as channel:
        metadata = (("authorization", f"Bearer {running.token}"),)
        call = BackendStub(channel).PredictStream(pb.PredictOptions(), metadata=metadata)
        assert await anext(aiter(call)) == pb.Reply(message=b".")
        async with asyncio.timeout(15):
            await launcher.aclose()
    assert not any(map(exists, pids(ear)))


async def test_a_backend_in_use_costs_a_look_up(launcher: LocalLauncher, make_spec: MakeSpec) -> None:
    spec = make_spec()
    running = await launcher.ensure(spec)
    asking = launcher.ensure(spec)
    with pytest.raises(StopIteration) as stopped:
        asking.send(None)  # one step and no wait
    assert stopped.value.value is running


async def test_a_real_model(launcher: LocalLauncher, tmp_path: Path) -> None:
    file = resolve_model("smollm2-135m-instruct", tmp_path)
    spec = Spec(engine="xllamacpp", model="smollm2-135m-instruct", file=str(file), context_size=256, parallel=2)

    async def asked(running: Running, prompt: str) -> pb.Reply:
        async with grpc.aio.insecure_channel(running.address) as channel:
            request = pb.PredictOptions(Prompt=prompt, Tokens=4, ModelIdentity=running.identity)
            metadata = (("authorization", f"Bearer {running.token}"),)
            return await BackendStub(channel).Predict(request, metadata=metadata, timeout=60)

    first = await launcher.ensure(spec)
    reply = await asked(first, "The capital of France is")
    assert reply.message
    assert 1 <= reply.tokens <= 4

    os.kill(launcher._engines[spec].process.pid, signal.SIGKILL)
    assert await launcher.post_mortem(spec, 1) == "the xllamacpp backend was killed by signal 9 (SIGKILL)"
    second = await launcher.ensure(spec)
    assert second.generation == 2
    assert (await asked(second, "The capital of France is")).message

    missing = replace(spec, file=str(tmp_path / "missing.gguf"))
    with pytest.raises(Failure, match="the engine could not load the model: ") as caught:
        await launcher.ensure(missing)
    assert caught.value.kind is Kind.UPSTREAM_ERROR
    assert missing.model in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_our_engines_are_modules() -> None:
    assert command(Spec(engine="xllamacpp", model="m")) == (sys.executable, "-m", "llmg.backends.xllamacpp")


def test_one_core_is_left_to_the_gateway() -> None:
    spec = Spec(engine="xllamacpp", model="m")
    assert options(spec).Threads == max(cores() - 1, 1)
    assert options(replace(spec, threads=8)).Threads == 8

"""A worker's launcher, and the supervisor's that it asks."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.conftest import HERE, Ear, MakeSpec, ended, exists
from llmg.core.errors import Failure, Kind
from llmg.launcher.local import Gone
from llmg.launcher.remote import LauncherServer, RemoteLauncher
from llmg.ports import Running, Spec

SPEC = Spec(engine="parrot", model="polly", options=("a:b",), env=(("A", "b"),), external=("x",))


def running(generation: int) -> Running:
    return Running(address="127.0.0.1:1", token="t", identity="polly", generation=generation)


class Scripted:
    """A launcher that the test plays: it answers each question when the test does."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[Spec, int | None, asyncio.Future[object]]] = asyncio.Queue()
        self.listeners: list[Gone] = []
        self.cancelled = asyncio.Event()

    async def _ask(self, spec: Spec, generation: int | None) -> object:
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait((spec, generation, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def ensure(self, spec: Spec, /) -> Running:
        found = await self._ask(spec, None)
        assert isinstance(found, Running)
        return found

    async def post_mortem(self, spec: Spec, generation: int, /) -> str | None:
        text = await self._ask(spec, generation)
        assert text is None or isinstance(text, str)
        return text

    @contextmanager
    def listening(self, gone: Gone) -> Iterator[None]:
        self.listeners.append(gone)
        yield
        self.listeners.remove(gone)

    def gone(self, generation: int) -> None:
        for listener in self.listeners:
            listener(SPEC, generation)

    async def question(self) -> asyncio.Future[object]:
        async with asyncio.timeout(30):
            return (await self.asked.get())[2]


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
async def server(scripted: Scripted) -> AsyncIterator[LauncherServer]:
    made = LauncherServer(scripted)
    yield made
    await made.aclose()


@pytest.fixture
async def path(server: LauncherServer) -> str:
    return await server.start()


@pytest.fixture
async def worker(path: str) -> AsyncIterator[RemoteLauncher]:
    made = RemoteLauncher(path)
    yield made
    await made.aclose()


async def found(scripted: Scripted, worker: RemoteLauncher, generation: int) -> Running:
    """Has the worker ask, and the supervisor answer."""
    asking = asyncio.create_task(worker.ensure(SPEC))
    (await scripted.question()).set_result(running(generation))
    return await asking


async def heard(scripted: Scripted, worker: RemoteLauncher) -> None:
    """The worker has by now received all that was sent to it before."""
    asking = asyncio.create_task(worker.post_mortem(SPEC, 0))
    (await scripted.question()).set_result(None)
    assert await asking is None


async def test_the_socket_is_ours_alone_and_goes(server: LauncherServer, path: str) -> None:
    directory = Path(path).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert Path(path).is_socket()
    await server.aclose()
    assert not directory.exists()


async def test_a_path_of_ones_own(scripted: Scripted, tmp_path: Path) -> None:
    server = LauncherServer(scripted)
    path = str(tmp_path / "s")
    assert await server.start(path) == path
    worker = RemoteLauncher(path)
    assert await found(scripted, worker, 1) == running(1)
    await worker.aclose()
    await server.aclose()
    assert list(tmp_path.iterdir()) == []


async def test_a_spec_crosses_whole_and_is_asked_once(scripted: Scripted, worker: RemoteLauncher) -> None:
    asking = asyncio.create_task(worker.ensure(SPEC))
    spec, generation, answer = await scripted.asked.get()
    assert (spec, generation) == (SPEC, None)
    answer.set_result(running(1))
    assert await asking == running(1)
    step = worker.ensure(SPEC)
    with pytest.raises(StopIteration) as stopped:
        step.send(None)  # one step and no wait
    assert stopped.value.value == running(1)


async def test_answers_come_in_any_order(scripted: Scripted, worker: RemoteLauncher) -> None:
    asking = [asyncio.create_task(worker.post_mortem(SPEC, number)) for number in range(50)]
    questions = [await scripted.asked.get() for _ in asking]
    for _, generation, answer in reversed(questions):
        answer.set_result(f"reason\n{generation}")
    assert await asyncio.gather(*asking) == [f"reason\n{number}" for number in range(50)]


async def test_a_failure_crosses_whole(scripted: Scripted, worker: RemoteLauncher) -> None:
    failure = Failure(
        Kind.UPSTREAM_ERROR, "“no”", param="model", code="E1", retry_after=0.25, detail="a\nb", blame="caller"
    )
    for asking in (asyncio.create_task(worker.ensure(SPEC)), asyncio.create_task(worker.post_mortem(SPEC, 1))):
        (await scripted.question()).set_exception(failure)
        with pytest.raises(Failure) as caught:
            await asking
        assert vars(caught.value) == vars(failure)


async def test_a_mistake_of_the_supervisor_is_a_failure(scripted: Scripted, worker: RemoteLauncher) -> None:
    asking = asyncio.create_task(worker.ensure(SPEC))
    (await scripted.question()).set_exception(ZeroDivisionError("oops"))
    with pytest.raises(Failure) as caught:
        await asking
    assert caught.value.kind is Kind.INTERNAL
    assert "oops" not in caught.value.message


async def test_a_process_that_is_gone_is_asked_for_again(scripted: Scripted, worker: RemoteLauncher) -> None:
    assert await found(scripted, worker, 1) == running(1)
    scripted.gone(1)
    await heard(scripted, worker)
    assert await found(scripted, worker, 2) == running(2)
    scripted.gone(1)  # an old notice does not take the new one away
    await heard(scripted, worker)
    assert await worker.ensure(SPEC) == running(2)


async def test_a_process_that_is_gone_before_it_is_known(scripted: Scripted, worker: RemoteLauncher) -> None:
    await heard(scripted, worker)  # it is connected
    asking = asyncio.create_task(worker.ensure(SPEC))
    answer = await scripted.question()
    scripted.gone(1)
    answer.set_result(running(1))
    assert await asking == running(1)
    assert await found(scripted, worker, 2) == running(2)


async def test_one_who_leaves_does_not_disturb_the_others(scripted: Scripted, worker: RemoteLauncher) -> None:
    leaving, staying = (asyncio.create_task(worker.ensure(SPEC)) for _ in range(2))
    first, second = await scripted.question(), await scripted.question()
    leaving.cancel()
    await asyncio.wait({leaving})
    first.set_result(running(1))
    await heard(scripted, worker)
    second.set_result(running(1))
    assert await staying == running(1)


async def test_all_pending_calls_fail_when_the_supervisor_goes(
    scripted: Scripted, server: LauncherServer, worker: RemoteLauncher
) -> None:
    assert await found(scripted, worker, 1) == running(1)
    asking = [asyncio.create_task(worker.post_mortem(SPEC, number)) for number in range(3)]
    for _ in asking:
        await scripted.question()
    await server.aclose()
    for task in (*asking, asyncio.create_task(worker.ensure(SPEC))):
        with pytest.raises(Failure, match="supervisor, which runs the local models, can't be reached") as caught:
            await task
        assert caught.value.kind is Kind.UPSTREAM_UNAVAILABLE
        assert caught.value.blame == "us"


async def test_a_worker_that_goes_takes_its_questions_along(scripted: Scripted, worker: RemoteLauncher) -> None:
    asking = asyncio.create_task(worker.ensure(SPEC))
    await scripted.question()
    await worker.aclose()
    async with asyncio.timeout(30):
        await scripted.cancelled.wait()
    with pytest.raises(Failure):
        await asking


# -- from another process, with real engines ---


class Supervisor:
    """Another process that serves a launcher."""

    def __init__(self) -> None:
        self.child = subprocess.Popen([sys.executable, HERE / "supervisor.py"], stdout=subprocess.PIPE)
        assert self.child.stdout is not None
        self.path = self.child.stdout.readline().decode().strip()

    async def ended(self) -> int:
        await ended(self.child.pid)
        return self.child.wait()


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    with made.child:
        yield made
        made.child.terminate()


async def test_workers_share_a_model_of_the_supervisor(supervisor: Supervisor, make_spec: MakeSpec, ear: Ear) -> None:
    path = supervisor.path
    workers = [RemoteLauncher(path), RemoteLauncher(path)]
    spec = make_spec()
    one, two = await asyncio.gather(*(worker.ensure(spec) for worker in workers))
    assert one == two
    pid = await ear.hear("started")

    os.kill(pid, signal.SIGKILL)
    for worker in workers:
        assert await worker.post_mortem(spec, 1) == "the parrot backend was killed by signal 9 (SIGKILL)"
    one, two = await asyncio.gather(*(worker.ensure(spec) for worker in workers))
    assert one == two
    assert one.generation == 2

    with pytest.raises(Failure, match=r"exited with code 4 while starting: warming up \| no") as caught:
        await workers[0].ensure(make_spec(START="exit 4 no"))
    assert caught.value.kind is Kind.BACKEND_CRASHED
    assert caught.value.retry_after == 1

    supervisor.child.terminate()
    assert await supervisor.ended() == 0
    assert not any(exists(pid) for event, pid in ear.drain() if event == "started")
    with pytest.raises(Failure, match="can't be reached"):
        await workers[0].ensure(spec)
    for worker in workers:
        await worker.aclose()


async def test_engines_end_with_a_supervisor_that_was_killed(
    supervisor: Supervisor, make_spec: MakeSpec, ear: Ear
) -> None:
    worker = RemoteLauncher(supervisor.path)
    spec = make_spec(LOCALAI_BACKEND_PARENT_WATCH_INTERVAL="20ms")
    stuck = make_spec(LOAD="never", LOCALAI_BACKEND_PARENT_WATCH_INTERVAL="20ms")
    await worker.ensure(spec)
    engine = await ear.hear("loading")
    asking = asyncio.create_task(worker.ensure(stuck))
    loading = await ear.hear("loading")

    supervisor.child.kill()
    with pytest.raises(Failure, match="can't be reached"):
        await asking
    await ended(engine)
    await ended(loading)
    await worker.aclose()

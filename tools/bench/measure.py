"""One gateway in one round: start it, put it under each load, weigh it, stop it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateways import KEY, UPSTREAM, Gateway, Json, filled
from prepare import CACHE, HERE, built, processors
from processes import Server, cpu_seconds, free_port, pinned, pss_mb
from report import Sample

CHUNKS = 64  # events of a stream that carry text
SETTLE = 0.1  # seconds in which a server finishes what the last load left behind


class Failed(Exception):
    """A gateway that could not be measured; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the load generator is told: connections, requests a second (None: as fast as answers come), the body."""

    body: str
    connections: int
    rate: int | None = None


ADDED: Mapping[str, Json] = {
    "unary": {},
    "stream": {"stream": True},
    "paced": {"stream": True, "user": "paced"},  # the mock upstream looks for this word
}
UNARY = Load(body="unary", connections=32)
BURST = Load(body="stream", connections=16)
PACED = Load(body="paced", connections=128)
LATENCY = Load(body="unary", connections=4, rate=40)
FIRST_EVENT = Load(body="stream", connections=4, rate=20)
WARM_UP = (Load(body="unary", connections=8), Load(body="stream", connections=4))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the load generator printed: see loadgen.c. `cpu` is the server's time meanwhile, in microseconds."""

    cpu: float
    done: int
    events: int
    errors: int
    rps: float
    p50: float
    p99: float
    ttf50: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all gateways of a run share."""

    folder: Path
    loadgen: Path
    upstream: Server
    upstream_port: int
    gateway_cpu: int
    seconds: float
    profile: Path | None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that has answered."""

    gateway: Gateway
    server: Server
    port: int
    start_s: float | None


# ---- starting ----


def ask(gateway: Gateway, port: int) -> tuple[int, bytes]:
    """One unary request; raises OSError or HTTPException."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    headers |= dict(header.split(": ", 1) for header in gateway.headers)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", gateway.path, json.dumps(gateway.request), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_until_good(gateway: Gateway, server: Server, port: int, seconds: float) -> None:
    """Returns at the first answer with status 200; raises Failed when none comes in time."""

    def look() -> str:
        try:
            status, body = ask(gateway, port)
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        return "" if status == 200 else f"{status} {body[:300]!r}"

    wait_until_right(look, server, seconds)


def wait_until_right(look: Callable[[], str], server: Server, seconds: float) -> None:
    """Looks until it finds nothing amiss; raises Failed with what is, when that takes too long.

    A process that starts tells nobody that it is ready: it has to be asked, again and again.
    """
    deadline = time.monotonic() + seconds
    while amiss := look():
        if time.monotonic() > deadline:
            raise Failed(f"no good answer in {seconds:g} s ({amiss}); its last lines:\n{server.last_words()}")
        pause(server, 0.01)


def pause(server: Server, seconds: float) -> None:
    """Lets it work for so long; raises Failed if it ends."""
    if server.ends_within(seconds):
        raise Failed(f"it ended with code {server.process.returncode}; its last lines:\n{server.last_words()}")


# How to wait until a gateway is ready: gateway, server, port, seconds; it raises Failed when that is too long.
Ready = Callable[[Gateway, Server, int, float], None]


def command_of(gateway: Gateway, bench: Bench, port: int) -> list[str]:
    """The command line, its configuration written to a file."""
    config = bench.folder / f"{gateway.name}.yaml"
    values = {
        "port": str(port),
        "upstream": str(bench.upstream_port),
        "python": sys.executable,
        "bin": str(Path(sys.executable).parent),
        "here": str(HERE),
        "litellm": str(CACHE / "litellm" / "bin"),
        "config": str(config),
    }
    config.write_text(json.dumps(filled(gateway.config, values)))
    command: list[str] = filled(gateway.command, values)
    if bench.profile is None:
        return command
    script = command[1:] if command[0] == sys.executable else command
    return [sys.executable, "-m", "cProfile", "-o", str(bench.profile), *script]


@contextmanager
def running(gateway: Gateway, bench: Bench, ready: Ready = wait_until_good) -> Iterator[Running]:
    """The gateway, started and ready; stopped at the end. Raises Failed when it does not come up."""
    if not gateway.command:
        yield Running(gateway=gateway, server=bench.upstream, port=bench.upstream_port, start_s=None)
        return
    port = free_port()
    command = command_of(gateway, bench, port)
    # A setting from outside would change what is measured.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMG_")}
    started = time.monotonic()
    try:
        with pinned(bench.gateway_cpu):
            server = Server(
                command,
                log=bench.folder / f"{gateway.name}.log",
                environment={**environment, **gateway.environment},
            )
    except OSError as error:
        raise Failed(f"it can't be started: {error}") from error
    try:
        ready(gateway, server, port, gateway.ready_within)
        yield Running(gateway=gateway, server=server, port=port, start_s=time.monotonic() - started)
    finally:
        server.stop(signal.SIGINT if bench.profile else signal.SIGTERM)


@contextmanager
def bench_of(seconds: float, profile: Path | None) -> Iterator[Bench]:
    """The mock upstream, answering, and a folder for the run; both gone at the end."""
    loadgen, upstream = built("loadgen"), built("upstream")
    gateway_cpu, other_cpu = processors()
    os.sched_setaffinity(0, {gateway_cpu, other_cpu})
    with tempfile.TemporaryDirectory(prefix="llmg-bench-") as name, pinned(other_cpu):
        folder, port = Path(name), free_port()
        server = Server([str(upstream), str(port), str(CHUNKS)], log=folder / "upstream.log", environment=os.environ)
        try:
            wait_until_good(Gateway(name=UPSTREAM), server, port, 5)
            yield Bench(
                folder=folder,
                loadgen=loadgen,
                upstream=server,
                upstream_port=port,
                gateway_cpu=gateway_cpu,
                seconds=seconds,
                profile=profile,
            )
        finally:
            server.stop()


# ---- measuring ----


def body_file(gateway: Gateway, kind: str, folder: Path) -> Path:
    """The gateway's request as it is sent: unary, streamed, or streamed at a model's pace."""
    path = folder / f"{gateway.name}-{kind}.json"
    path.write_text(json.dumps({**gateway.request, **ADDED[kind]}))
    return path


def put_under(load: Load, target: Running, bench: Bench, seconds: float) -> Result:
    """Runs the load and gives its figures; raises Failed when nothing was answered."""
    environment = dict(os.environ, KEY=KEY)
    if load.rate:
        environment["RATE"] = str(load.rate)
    body = body_file(target.gateway, load.body, bench.folder)
    arguments = [str(target.port), target.gateway.path, str(load.connections), str(seconds), str(body)]
    command = [str(bench.loadgen), *arguments, *target.gateway.headers]
    pause(target.server, SETTLE)
    before = cpu_seconds(target.server.pid)
    try:
        printed = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds + 30, check=True
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise Failed(f"under {load.body} load it takes no connections") from error
    except subprocess.CalledProcessError as error:
        why = f"{error.stderr.strip()}; its last lines:\n{target.server.last_words()}"
        raise Failed(f"under {load.body} load: {why}") from error
    cpu = (cpu_seconds(target.server.pid) - before) * 1e6
    figures = {name: float(value) for name, value in (pair.split("=") for pair in printed.split())}
    if not figures["done" if load.body == "unary" else "events"]:
        raise Failed(f"under {load.body} load it gave nothing; its last lines:\n{target.server.last_words()}")
    return Result(
        cpu=cpu,
        done=int(figures["done"]),
        events=int(figures["events"]),
        errors=int(figures["err"] + figures["nonok"]),
        **{name: figures[name] for name in ("rps", "p50", "p99", "ttf50")},
    )


def measure(target: Running, bench: Bench) -> Sample:
    """All figures of one gateway in one round."""
    pid = target.server.pid
    idle = pss_mb(pid)
    warm = [put_under(load, target, bench, min(1.0, bench.seconds)) for load in WARM_UP]
    # The paced load is the last: it is cut off in mid-stream, and a gateway that does not see its clients leave
    # would go on reading those streams under the next load.
    loads = (UNARY, BURST, LATENCY, FIRST_EVENT, PACED)
    unary, burst, latency, first_event, paced = results = [put_under(x, target, bench, bench.seconds) for x in loads]
    return Sample(
        us_request=unary.cpu / unary.done,
        us_event=burst.cpu / burst.events,
        us_paced=paced.cpu / paced.events,
        rps=unary.rps,
        p50_ms=latency.p50,
        p99_ms=latency.p99,
        ttft_ms=first_event.ttf50,
        idle_mb=idle,
        loaded_mb=pss_mb(pid),
        start_s=target.start_s,
        errors=sum(result.errors for result in [*warm, *results]),
    )

"""Each door beside a bare relay of its protocol: what a request and an event cost, in CPU time of the server.

One llmg with all of its doors, and one relay at a time, on the servers' processor. Under each load they take turns,
A-B-A-B, so that a machine that slows down slows both. So does a yardstick: a program that never changes, whose cost is
known from the machine that the limits in microseconds were set on. Where it takes longer, they are longer by as much.

To add a door: a row here, a client in clients.py, a relay in relays/.
"""

import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gateways import BASELINE, GATEWAYS, OURS, Gateway, Json
from measure import SETTLE, UNARY, Bench, Failed, Running, pause, running, wait_until_right
from measure import put_under as put_under_http
from prepare import HERE
from processes import Server, cpu_seconds, free_port
from report import NOMINAL

STREAMS: Mapping[str, int] = {"unary": 32, "burst": 16, "paced": 128}  # at once
WARM_UP = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A program, and what a unary request of it cost where the limits were set: CPU microseconds."""

    gateway: Gateway
    nominal: float


HTTP = Yardstick(gateway=next(gateway for gateway in GATEWAYS if gateway.name == BASELINE), nominal=NOMINAL)
GRPC = Yardstick(
    gateway=Gateway(name="grpc-still", command=("{python}", "{here}/relays/grpc_still.py", "{port}", "{upstream}")),
    nominal=150,
)


@dataclass(frozen=True, kw_only=True)
class Door:
    """A door and its loads. `limits`: the most CPU microseconds of ours, per request (unary) or event."""

    name: str
    port: str = "http"  # which of llmg's ports it is at
    loads: tuple[str, ...] = ("burst", "paced")
    yardstick: Yardstick = HTTP
    limits: Mapping[str, float] = field(default_factory=dict)


DOORS = (
    Door(
        name="grpc", port="grpc", loads=("unary", "burst", "paced"), yardstick=GRPC, limits={"unary": 300, "burst": 8}
    ),
    Door(name="websocket", limits={"burst": 8}),
    Door(name="graphql", limits={"burst": 25}),
    Door(name="gateway", loads=("unary", "burst", "paced"), limits={"unary": 250}),
)
RATIOS: Mapping[str, float] = {"paced": 1.5}  # the most that a door may cost of what its relay costs


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One server under one load, in one round. `us`: CPU per request or event; `busy`: its share of the processor."""

    us: float
    busy: float
    errors: int


Rounds = Sequence[tuple[Figure, Figure]]  # ours and the relay's


@dataclass(frozen=True, kw_only=True)
class Row:
    """A door under a load: medians over the rounds, the ratio made within a round first, the errors summed.

    `slowness`: how much longer this machine takes than that of `limit_us`, 1 or more.
    """

    door: str
    load: str
    us: float
    relay_us: float
    ratio: float
    busy: float
    relay_busy: float
    errors: int
    limit_us: float | None
    limit_ratio: float | None
    slowness: float = 1.0

    @property
    def missed(self) -> list[str]:
        """A line for each figure above its limit."""
        name = f"{self.door} {self.load}"
        lines = []
        if self.limit_us is not None and self.us > self.limit_us * self.slowness:
            lines.append(f"{name}: {self.us:.1f} us is above {self.limit_us:g} x {self.slowness:.2f}")
        if self.limit_ratio is not None and self.ratio > self.limit_ratio:
            lines.append(f"{name}: {self.ratio:.2f} of the relay is above {self.limit_ratio:g}")
        return lines


def row(door: Door, load: str, rounds: Rounds, slowness: float = 1.0) -> Row:
    """See Row."""
    ours, relays = zip(*rounds, strict=True)
    return Row(
        door=door.name,
        load=load,
        us=statistics.median(figure.us for figure in ours),
        relay_us=statistics.median(figure.us for figure in relays),
        ratio=statistics.median(own.us / relay.us for own, relay in rounds if relay.us),
        busy=statistics.median(figure.busy for figure in ours),
        relay_busy=statistics.median(figure.busy for figure in relays),
        errors=sum(figure.errors for figure in (*ours, *relays)),
        limit_us=door.limits.get(load),
        limit_ratio=RATIOS.get(load),
        slowness=slowness,
    )


# ---- the servers ----


def all_doors(grpc_port: int) -> Gateway:
    """llmg's own row, with every door open."""
    ours = next(gateway for gateway in GATEWAYS if gateway.name == OURS)
    config: Json = {**(ours.config or {}), "grpc": {"server_addr": f"127.0.0.1:{grpc_port}"}}
    return Gateway(name=OURS, command=ours.command, config=config)


def relay_of(door: Door) -> Gateway:
    """The program in relays/."""
    program = f"{{here}}/relays/{door.name}_relay.py"
    return Gateway(name=f"{door.name}-relay", command=("{python}", program, "{port}", "{upstream}"))


def wait_until_listening(gateway: Gateway, server: Server, port: int, seconds: float) -> None:
    """Returns when connections are taken; raises Failed when they are not in time."""

    def look() -> str:
        with socket.socket() as probe:
            return "" if probe.connect_ex(("127.0.0.1", port)) == 0 else "it does not listen"

    wait_until_right(look, server, seconds)


# ---- measuring ----


def put_under(door: Door, load: str, server: Server, port: int, seconds: float) -> Figure:
    """Runs the load and weighs the server meanwhile; raises Failed when nothing was answered."""
    arguments = [door.name, load, str(port), str(STREAMS[load]), str(seconds)]
    pause(server, SETTLE)
    before = cpu_seconds(server.pid)
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / "clients.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=seconds + 30,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"under {load} load it takes no connections") from error
    except subprocess.CalledProcessError as error:
        raise Failed(f"under {load} load: {error.stderr.strip()[-1000:]}") from error
    cpu = cpu_seconds(server.pid) - before
    figures = {name: int(value) for name, value in (pair.split("=") for pair in done.stdout.split())}
    answered = figures["done" if load == "unary" else "events"]
    if not answered:
        why = done.stderr.strip()[:1000]
        raise Failed(f"under {load} load it gave nothing: {why}; its last lines:\n{server.last_words()}")
    return Figure(us=cpu * 1e6 / answered, busy=cpu / seconds, errors=figures["err"])


@contextmanager
def ours_running(bench: Bench) -> Iterator[tuple[Server, Mapping[str, int]]]:
    """llmg, and its ports by name."""
    grpc_port = free_port()
    with running(all_doors(grpc_port), bench) as own:
        yield own.server, {"http": own.port, "grpc": grpc_port}


def cost(yardstick: Running, bench: Bench) -> float:
    """Of a unary request, in CPU microseconds."""
    if yardstick.gateway is GRPC.gateway:
        return put_under(DOORS[0], "unary", yardstick.server, yardstick.port, bench.seconds).us
    result = put_under_http(UNARY, yardstick, bench, bench.seconds)
    return result.cpu / result.done


def measure(door: Door, ours: Server, port: int, bench: Bench, rounds: int) -> list[Row]:
    """A row per load."""
    own = door.yardstick
    with (
        running(relay_of(door), bench, wait_until_listening) as relay,
        running(own.gateway, bench, wait_until_listening) as still,
    ):
        sides = ((ours, port), (relay.server, relay.port))
        for server, at in sides:
            put_under(door, "burst", server, at, min(WARM_UP, bench.seconds))
        taken: dict[str, list[tuple[Figure, Figure]]] = {load: [] for load in door.loads}
        costs: list[float] = []
        for number in range(rounds):
            print(f"hack/bench: {door.name}: round {number + 1} of {rounds}", file=sys.stderr)
            costs.append(cost(still, bench))
            for load in door.loads:
                figure, bare = (put_under(door, load, server, at, bench.seconds) for server, at in sides)
                taken[load].append((figure, bare))
        slowness = max(1.0, statistics.median(costs) / own.nominal)
        return [row(door, load, rounds_of, slowness) for load, rounds_of in taken.items()]


def run(doors: Sequence[Door], bench: Bench, rounds: int) -> tuple[list[Row], dict[str, str]]:
    """The rows, and why a door has none."""
    rows: list[Row] = []
    failures: dict[str, str] = {}
    try:
        with ours_running(bench) as (server, ports):
            for door in doors:
                try:
                    rows += measure(door, server, ports[door.port], bench, rounds)
                except Failed as failure:
                    failures[door.name] = str(failure)
    except Failed as failure:
        failures[OURS] = str(failure)
    return rows, failures


# ---- reporting ----


def table(rows: Sequence[Row], failures: Mapping[str, str]) -> str:
    """The rows under their headings, then what could not be measured and why."""
    columns = ("CPU us", "relay us", "ratio", "busy %", "relay busy %", "errors", "limit")
    lines = ["door".ljust(12) + "load".ljust(8) + "".join(name.rjust(14) for name in columns)]
    for figures in rows:
        cells = (
            f"{figures.us:.1f}",
            f"{figures.relay_us:.1f}",
            f"{figures.ratio:.2f}",
            f"{figures.busy * 100:.0f}",
            f"{figures.relay_busy * 100:.0f}",
            str(figures.errors),
            _limit(figures),
        )
        lines.append(figures.door.ljust(12) + figures.load.ljust(8) + "".join(cell.rjust(14) for cell in cells))
    lines += [f"{name.ljust(12)}FAILED: {why}" for name, why in failures.items()]
    return "\n".join(lines)


def _limit(figures: Row) -> str:
    if figures.limit_us is not None:
        return f"{figures.limit_us:g} us x {figures.slowness:.2f}"
    return "-" if figures.limit_ratio is None else f"{figures.limit_ratio:g} x"


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For JSON."""
    return [{name: getattr(figures, name) for name in Row.__dataclass_fields__} for figures in rows]


def verdict(rows: Sequence[Row], failures: Mapping[str, str], check: bool) -> list[str]:
    """Why this run is not a good one; empty when it is."""
    lines = [f"{name}: it could not be measured" for name in failures]
    lines += [f"{each.door} {each.load}: {each.errors} errors" for each in rows if each.errors]
    if check:
        lines += [line for each in rows for line in each.missed]
    return lines

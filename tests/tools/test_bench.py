"""The benchmark's runner, on a run too short to mean anything: that it measures, reports and cleans up."""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"

# The runner with one more row, for what no row of the table does.
WITH_ROW = """
import sys
sys.path.insert(0, {folder!r})
import run
from gateways import Gateway

run.GATEWAYS += (Gateway(name="extra", command={command!r}, ready_within=5),)
sys.exit(run.main())
"""


@dataclass
class Runner:
    """Starts the runner with a folder for temporary files that marks everything it starts."""

    temporary: Path

    def command(self, *arguments: str, row: tuple[str, ...] | None = None) -> list[str]:
        short = ["--secs", "0.3", "--rounds", "1", *arguments]
        if row is None:
            return [sys.executable, str(BENCH / "run.py"), *short]
        return [sys.executable, "-c", WITH_ROW.format(folder=str(BENCH), command=row), *short]

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        environment = dict(os.environ, TMPDIR=str(self.temporary))
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, *arguments: str, row: tuple[str, ...] | None = None) -> tuple[int, str, str]:
        with self.start(self.command(*arguments, row=row)) as process:
            out, err = process.communicate(timeout=90)
        return process.returncode, out, err

    def left_behind(self) -> list[str]:
        """Files in its folder and processes that it started and that still run."""
        mark = f"TMPDIR={self.temporary}".encode()
        left = [str(path) for path in self.temporary.iterdir()]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    left.append((entry / "cmdline").read_text())
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return left


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return Runner(temporary)


def test_a_row_for_each_gateway_and_no_errors(runner: Runner, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    code, out, err = runner.run("--only", "upstream,passthrough", "--json", str(file))
    assert code == 0, f"{out}\n{err}"  # without a C compiler this says so

    report = json.loads(file.read_text())
    assert list(report["gateways"]) == ["upstream", "passthrough"]
    assert report["failures"] == {}
    for name, row in report["gateways"].items():
        assert row["errors"] == 0, name
        assert row["rps"] > 0, name
        assert row["ttft_ms"] > 0, name
        assert name in out
    upstream, passthrough = report["gateways"].values()
    assert upstream["added_p50_ms"] is None
    assert upstream["start_s"] is None
    assert passthrough["paced_ratio"] == 1
    assert None not in passthrough.values()
    assert runner.left_behind() == []


def test_a_gateway_that_does_not_start_is_reported_with_its_last_words(runner: Runner, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    broken = ("{python}", "-c", "raise SystemExit('the cause')")
    code, out, err = runner.run("--only", "upstream,extra", "--json", str(file), row=broken)
    assert code == 1, f"{out}\n{err}"
    assert "extra" in err
    assert "FAILED" in out
    assert "the cause" in out
    report = json.loads(file.read_text())
    assert list(report["gateways"]) == ["upstream"]
    assert "ended with code 1" in report["failures"]["extra"]
    assert runner.left_behind() == []


def test_a_command_that_does_not_exist_is_reported(runner: Runner) -> None:
    code, out, err = runner.run("--only", "extra", row=("{here}/no-such-gateway",))
    assert code == 1, f"{out}\n{err}"
    assert "can't be started" in out


def test_nothing_is_left_when_it_is_ended_in_the_middle(runner: Runner, tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    server = f"""
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "300"])
open({str(started)!r}, "w").close()
signal.pause()
"""
    with runner.start(runner.command("--only", "extra", row=("{python}", "-c", server))) as process:
        started.read_text()  # waits for the server to open the other end
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert runner.left_behind() == []


def test_an_unknown_name_is_refused(runner: Runner) -> None:
    code, _, err = runner.run("--only", "upstream,nothing")
    assert code == 2
    assert "no such gateway: nothing" in err


def test_check_fails_when_llmg_was_not_measured(runner: Runner) -> None:
    code, _, err = runner.run("--only", "upstream", "--check")
    assert code == 1
    assert "llmg: nothing was measured" in err


def test_without_a_compiler_it_says_what_to_install(runner: Runner, tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import prepare, pathlib\n"
    code += "prepare.CACHE = pathlib.Path(sys.argv[2]); prepare.built('upstream')"
    command = [sys.executable, "-c", code, str(BENCH), str(tmp_path)]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "no C compiler found: install gcc" in done.stderr


def test_a_row_for_each_load_of_a_door(runner: Runner, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    code, out, err = runner.run("--doors", "--door", "grpc", "--json", str(file))
    assert code == 0, f"{out}\n{err}"
    report = json.loads(file.read_text())
    assert report["failures"] == {}
    assert [(row["door"], row["load"]) for row in report["doors"]] == [
        ("grpc", "unary"),
        ("grpc", "burst"),
        ("grpc", "paced"),
    ]
    for row in report["doors"]:
        assert row["errors"] == 0, row
        assert row["us"] > 0, row
        assert row["relay_us"] > 0, row
        assert row["load"] in out
    assert runner.left_behind() == []


# One door after the other, each beside its relay: what a relay or a client does not say right is an error.
FROM_RELAY = """
import sys
sys.path.insert(0, {folder!r})
import doors, json, measure, pathlib
door = next(door for door in doors.DOORS if door.name == {door!r})
with measure.bench_of(0.3, None) as bench, measure.running(
    doors.relay_of(door), bench, doors.wait_until_listening
) as relay:
    figures = {{load: doors.put_under(door, load, relay.server, relay.port, 0.3) for load in door.loads}}
print(json.dumps({{load: figure.errors for load, figure in figures.items()}}))
"""


@pytest.mark.parametrize("door", ["grpc", "websocket", "graphql", "gateway"])
def test_a_relay_says_what_the_upstream_said(runner: Runner, door: str) -> None:
    with runner.start([sys.executable, "-c", FROM_RELAY.format(folder=str(BENCH), door=door)]) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert set(json.loads(out).values()) == {0}
    assert runner.left_behind() == []


def test_an_unknown_door_is_refused(runner: Runner) -> None:
    code, _, err = runner.run("--door", "grpc,nothing")
    assert code == 2
    assert "no such door: nothing" in err


@pytest.fixture(scope="module")
def doors() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module("doors")
    finally:
        sys.path.remove(str(BENCH))


def test_a_doors_ratio_is_made_within_a_round(doors: Any) -> None:
    door = doors.Door(name="any", limits={"burst": 8})

    def figure(us: float) -> Any:
        return doors.Figure(us=us, busy=0.5, errors=1)

    rounds = [(figure(8.0), figure(4.0)), (figure(90.0), figure(90.0)), (figure(9.0), figure(3.0))]
    row = doors.row(door, "burst", rounds)
    assert (row.us, row.relay_us, row.ratio, row.errors) == (9.0, 4.0, 2.0, 6)
    assert row.missed == ["any burst: 9.0 us is above 8 x 1.00"]
    assert doors.row(door, "burst", rounds, 1.25).missed == []  # where all takes a quarter longer
    assert doors.verdict([row], {}, check=False) == ["any burst: 6 errors"]
    paced = doors.row(door, "paced", rounds)
    assert paced.missed == ["any paced: 2.00 of the relay is above 1.5"]
    assert doors.verdict([paced], {"other": "why"}, check=True) == [
        "other: it could not be measured",
        "any paced: 6 errors",
        "any paced: 2.00 of the relay is above 1.5",
    ]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return runpy.run_path(str(BENCH / "report.py"))


@pytest.fixture(scope="module")
def sample(report: dict[str, Any]) -> Callable[..., Any]:
    def make(**figures: float) -> Any:
        plain = ("us_request", "us_event", "us_paced", "rps", "p50_ms", "p99_ms", "ttft_ms", "idle_mb", "loaded_mb")
        return report["Sample"](**{**dict.fromkeys(plain, 1.0), "start_s": 1.0, "errors": 0, **figures})

    return make


def test_figures_are_medians_errors_are_summed(report: dict[str, Any], sample: Callable[..., Any]) -> None:
    rounds = {n: sample(us_request=us, errors=n) for n, us in enumerate((100.0, 900.0, 120.0))}
    row = report["row"](rounds, None, None)
    assert row["us_request"] == 120
    assert row["errors"] == 3
    assert row["added_p50_ms"] is None
    assert row["paced_ratio"] is None


def test_comparisons_are_made_within_a_round(report: dict[str, Any], sample: Callable[..., Any]) -> None:
    ours = {0: sample(us_paced=50.0, p50_ms=1.0), 1: sample(us_paced=100.0, p50_ms=3.0), 2: sample(us_paced=9.0)}
    base = {0: sample(us_paced=40.0), 1: sample(us_paced=80.0)}
    bare = {0: sample(p50_ms=0.25), 1: sample(p50_ms=2.25)}
    row = report["row"](ours, bare, base)
    assert row["paced_ratio"] == 1.25
    assert row["added_p50_ms"] == 0.75


def test_missed_names_each_figure_above_its_limit(report: dict[str, Any]) -> None:
    missed, at_limit = report["missed"], dict(report["LIMITS"])
    assert missed(at_limit, None) == []
    assert missed(at_limit | {"us_request": 150.1}, None) == ["us_request: 150.10 is above 150 x 1.00"]
    assert missed(at_limit | {"paced_ratio": None}, None) == ["paced_ratio: not measured (limit 1.4)"]
    assert missed(at_limit | {"errors": 1}, None) == ["errors: 1.00 is above 0"]


def test_on_a_slower_machine_only_what_is_cpu_time_may_take_longer(report: dict[str, Any]) -> None:
    missed, half_slower = report["missed"], {"us_request": report["NOMINAL"] * 1.5}
    figures = dict(report["LIMITS"]) | {"us_request": 224.9, "us_event": 8.9}
    assert missed(figures, half_slower) == []
    assert missed(figures | {"us_event": 9.1}, half_slower) == ["us_event: 9.10 is above 6 x 1.50"]
    assert missed(figures | {"loaded_mb": 111}, half_slower) == ["loaded_mb: 111.00 is above 110"]
    assert len(missed(figures, {"us_request": report["NOMINAL"] / 2})) == 2  # a faster one needs no less

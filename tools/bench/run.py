"""Puts gateways side by side in one run, on the same upstream, load and processor.

Run it as hack/bench; docs/benchmarks.md says what the columns mean. The gateway has one processor to itself; the mock
upstream, the load generator and this script share the other. The gateways take turns, round by round, so that a
machine that slows down slows all of them, and each figure is the median of its rounds.
"""

import argparse
import datetime
import json
import os
import platform
import pstats
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateways import BASELINE, GATEWAYS, LITELLM, OURS, UPSTREAM, Gateway
from measure import UNARY, Bench, Failed, bench_of, measure, put_under, running
from prepare import LITELLM_VERSION, install_litellm
from report import Row, Sample, missed, row, table

import doors

PROFILED = (BASELINE, OURS)  # what runs on the project's interpreter


@dataclass(frozen=True)
class Outcome:
    """One row per gateway that was measured, one reason per gateway that failed in any round."""

    rows: dict[str, Row]
    failures: dict[str, str]


def run(gateways: Sequence[Gateway], bench: Bench, rounds: int) -> Outcome:
    """Measures the gateways in turns, each round beginning with the next one."""
    samples: dict[str, dict[int, Sample]] = {gateway.name: {} for gateway in gateways}
    failures: dict[str, str] = {}
    for number in range(rounds):
        first = number % len(gateways)
        for gateway in (*gateways[first:], *gateways[:first]):
            print(f"hack/bench: round {number + 1} of {rounds}: {gateway.name}", file=sys.stderr)
            try:
                with running(gateway, bench) as target:
                    samples[gateway.name][number] = measure(target, bench)
            except Failed as failure:
                failures[gateway.name] = f"round {number + 1}: {failure}"
    compare = samples.get(UPSTREAM), samples.get(BASELINE)
    rows = {name: row(rounds_of, *compare) for name, rounds_of in samples.items() if rounds_of}
    if UPSTREAM in rows:
        rows[UPSTREAM] |= {"added_p50_ms": None, "added_p99_ms": None}
    return Outcome(rows, failures)


def profile(gateway: Gateway, bench: Bench, file: Path) -> None:
    """Runs one gateway under the unary load with cProfile and prints where its time went."""
    try:
        with running(gateway, bench) as target:
            put_under(UNARY, target, bench, bench.seconds)
    except Failed as failure:
        raise SystemExit(f"hack/bench: {gateway.name}: {failure}") from failure
    pstats.Stats(str(file)).sort_stats("tottime").print_stats(40)


# ---- the command line ----


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hack/bench", description="Puts llmg beside other gateways, in one run.")
    parser.add_argument("--only", metavar="NAMES", help="of: " + ",".join(gateway.name for gateway in GATEWAYS))
    parser.add_argument("--litellm", nargs="?", const=LITELLM_VERSION, metavar="VERSION", help="LiteLLM, too")
    parser.add_argument("--secs", type=float, default=4.0, help="length of each load (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each gateway (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--check", action="store_true", help="exit 1 when llmg misses a figure")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="only profile llmg (or --only NAME)")
    parser.add_argument("--doors", action="store_true", help="each door beside a bare relay of its protocol, instead")
    parser.add_argument("--door", metavar="NAMES", help="only these: " + ",".join(door.name for door in doors.DOORS))
    options = parser.parse_args()
    if options.secs <= 0 or options.rounds < 1:
        parser.error("--secs and --rounds must be above 0")
    names = options.only.split(",") if options.only else None
    unknown = set(names or ()) - {gateway.name for gateway in GATEWAYS}
    if unknown:
        parser.error(f"no such gateway: {', '.join(sorted(unknown))}")
    missing = set(options.door.split(",") if options.door else ()) - {door.name for door in doors.DOORS}
    if missing:
        parser.error(f"no such door: {', '.join(sorted(missing))}")
    if options.profile and options.only and options.only not in PROFILED:
        parser.error(f"--profile takes one of {', '.join(PROFILED)}")
    return options


def chosen(options: argparse.Namespace) -> list[Gateway]:
    """The rows to run, in the table's order."""
    if options.only:
        names = set(options.only.split(","))
    else:
        names = {gateway.name for gateway in GATEWAYS if not gateway.asked_for}
    if options.litellm:
        names.add(LITELLM)
    if options.profile:
        names = {options.only or OURS}
    return [gateway for gateway in GATEWAYS if gateway.name in names]


def as_json(figures: dict[str, object], options: argparse.Namespace) -> str:
    machine = {"processors": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    run_of = {"date": today, "secs": options.secs, "rounds": options.rounds, **machine}
    return json.dumps({"run": run_of, **figures}, indent=2) + "\n"


def verdict(outcome: Outcome, check: bool) -> list[str]:
    """Why this run is not a good one; empty when it is."""
    lines = [f"{name}: it could not be measured" for name in outcome.failures]
    lines += [f"{name}: {figures['errors']:.0f} errors" for name, figures in outcome.rows.items() if figures["errors"]]
    if check:
        lines += [f"{OURS}: {line}" for line in missed(outcome.rows.get(OURS), outcome.rows.get(BASELINE))]
    return lines


def bench_gateways(options: argparse.Namespace) -> list[str]:
    """llmg beside other gateways; why the run is not a good one."""
    gateways = chosen(options)
    if any(gateway.name == LITELLM for gateway in gateways):
        install_litellm(options.litellm or LITELLM_VERSION)
    with bench_of(options.secs, options.profile) as bench:
        if options.profile:
            profile(gateways[0], bench, options.profile)
            return []
        outcome = run(gateways, bench, options.rounds)
    print(table(outcome.rows, outcome.failures))
    if options.json:
        options.json.write_text(as_json({"gateways": outcome.rows, "failures": outcome.failures}, options))
    return verdict(outcome, options.check)


def bench_doors(options: argparse.Namespace) -> list[str]:
    """llmg's doors beside bare relays; why the run is not a good one."""
    names = options.door.split(",") if options.door else [door.name for door in doors.DOORS]
    with bench_of(options.secs, None) as bench:
        rows, failures = doors.run([door for door in doors.DOORS if door.name in names], bench, options.rounds)
    print(doors.table(rows, failures))
    if options.json:
        options.json.write_text(as_json({"doors": doors.as_dicts(rows), "failures": failures}, options))
    return doors.verdict(rows, failures, options.check)


def main() -> int:
    """The exit code: 0, or 1 when a gateway failed, gave errors, or (with --check) missed a figure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    options = arguments()
    wrong = bench_doors(options) if options.doors or options.door else bench_gateways(options)
    print("\n".join(f"hack/bench: {line}" for line in wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

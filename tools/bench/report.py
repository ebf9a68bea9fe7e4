"""From the samples of all rounds to one row per gateway, the table, and what misses its figure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One gateway in one round."""

    us_request: float
    us_event: float
    us_paced: float
    rps: float
    p50_ms: float
    p99_ms: float
    ttft_ms: float
    idle_mb: float
    loaded_mb: float
    start_s: float | None  # None: it is not started for the round
    errors: int


@dataclass(frozen=True)
class Column:
    """One figure of a row: its key in the JSON, its two lines of heading, its decimals in the table."""

    key: str
    heading: tuple[str, str]
    decimals: int


COLUMNS = (
    Column("us_request", ("CPU us", "/request"), 1),
    Column("us_event", ("CPU us", "/event"), 2),
    Column("us_paced", ("CPU us", "/paced"), 1),
    Column("paced_ratio", ("paced", "ratio"), 2),
    Column("rps", ("rps", "32 conn"), 0),
    Column("added_p50_ms", ("added", "p50 ms"), 2),
    Column("added_p99_ms", ("added", "p99 ms"), 2),
    Column("ttft_ms", ("TTFT", "p50 ms"), 2),
    Column("idle_mb", ("idle", "MB"), 1),
    Column("loaded_mb", ("loaded", "MB"), 1),
    Column("start_s", ("start", "s"), 2),
    Column("errors", ("errors", ""), 0),
)

Row = dict[str, float | None]
Rounds = Mapping[int, Sample]  # by the number of the round; rounds that failed are missing

LIMITS: Mapping[str, float] = {
    "us_request": 150,
    "us_event": 6,
    "paced_ratio": 1.4,
    "added_p50_ms": 1.2,
    "loaded_mb": 110,
    "start_s": 1.5,
    "errors": 0,
}
STRETCHED = ("us_request", "us_event")  # limits in CPU time, which a slower machine takes more of
NOMINAL = 92.0  # CPU microseconds of the pass-through's request on the machine that the limits were set on


def slowness(baseline: Row | None) -> float:
    """How much longer this machine takes than that of the limits, by the pass-through of the run: 1 or more."""
    cost = baseline["us_request"] if baseline else None
    return max(1.0, cost / NOMINAL) if cost else 1.0


def row(rounds: Rounds, upstream: Rounds | None, baseline: Rounds | None) -> Row:
    """Medians over the rounds; the comparisons are made within a round first, the errors are summed.

    `upstream` and `baseline` are the bare upstream and the pass-through of the same run; None leaves out what is
    compared with them.
    """
    samples = list(rounds.values())
    plain = ("us_request", "us_event", "us_paced", "rps", "p50_ms", "p99_ms", "ttft_ms", "idle_mb", "loaded_mb")
    figures: Row = {key: _median([getattr(sample, key) for sample in samples]) for key in plain}
    figures["start_s"] = _median([sample.start_s for sample in samples if sample.start_s is not None])
    figures["errors"] = sum(sample.errors for sample in samples)
    over = [(sample, upstream[number]) for number, sample in rounds.items() if upstream and number in upstream]
    figures["added_p50_ms"] = _median([sample.p50_ms - bare.p50_ms for sample, bare in over])
    figures["added_p99_ms"] = _median([sample.p99_ms - bare.p99_ms for sample, bare in over])
    beside = [(sample, baseline[number]) for number, sample in rounds.items() if baseline and number in baseline]
    figures["paced_ratio"] = _median([sample.us_paced / base.us_paced for sample, base in beside if base.us_paced])
    return figures


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def table(rows: Mapping[str, Row], failures: Mapping[str, str]) -> str:
    """The rows under two lines of headings, then what could not be measured and why."""
    width = max(len(name) for name in ("gateway", *rows, *failures)) + 1
    lines = [
        "gateway".ljust(width) + "".join(column.heading[0].rjust(10) for column in COLUMNS),
        " " * width + "".join(column.heading[1].rjust(10) for column in COLUMNS),
    ]
    lines += [name.ljust(width) + "".join(_cell(figures[c.key], c) for c in COLUMNS) for name, figures in rows.items()]
    lines += [f"{name.ljust(width)} FAILED: {why}" for name, why in failures.items()]
    return "\n".join(lines)


def _cell(value: float | None, column: Column) -> str:
    return ("-" if value is None else f"{value:,.{column.decimals}f}").rjust(10)


def missed(figures: Row | None, baseline: Row | None) -> list[str]:
    """A line for each figure above its limit or not measured; empty when all are reached."""
    if figures is None:
        return ["nothing was measured"]
    slower = slowness(baseline)
    lines = []
    for key, limit in LIMITS.items():
        value = figures[key]
        if value is None:
            lines.append(f"{key}: not measured (limit {limit:g})")
        elif key in STRETCHED and value > limit * slower:
            lines.append(f"{key}: {value:.2f} is above {limit:g} x {slower:.2f}")
        elif key not in STRETCHED and value > limit:
            lines.append(f"{key}: {value:.2f} is above {limit:g}")
    return lines

"""What clients notice of upstreams in trouble: runs with real processes, and a table of counts for each.

Three upstreams, the gateway, and a steady load of clients, half of them with streams. Exits with 1 when a client got
what it need not have got.
"""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

import checks
import faults
import hedging

RUNS = {"faults": faults, "hedging": hedging, "checks": checks}


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="What clients notice of upstreams in trouble.")
    parser.add_argument("runs", nargs="*", choices=RUNS, default=list(RUNS), help="which (default: all)")
    parser.add_argument("--clients", type=int, default=24, help="at a time (default 24)")
    parser.add_argument("--requests", type=int, default=3000, help="in each phase, at least (default 3000)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for each phase, at most (default 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there, too")
    arguments = parser.parse_args()
    counts, held = {}, True
    for name in arguments.runs:
        run = RUNS[name]
        rows = asyncio.run(run.run(arguments.clients, arguments.requests, arguments.patience))
        counts[name] = [asdict(row) for row in rows]
        held = run.held(rows) and held
        print(f"{run.table(rows)}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(counts))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

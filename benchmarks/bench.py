"""Measure kv-core over a backend: goodput, the engine thread's time, the control plane, latency.

    python -m benchmarks.bench [--quick] [--json] [--only goodput,calls,control,latency] [--rounds 5] [--backend fake]

Starts a prefill and a decode process on this machine; everything printed comes from this one run. How to read it stands
in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from typing import Any

from benchmarks.harness import goodput, latency, rooms, tables
from benchmarks.harness.figures import machine
from benchmarks.harness.ranks import Pair

SECTIONS = ("goodput", "calls", "control", "latency")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the sections, each in a pair of processes of its own."""
    rounds = options.rounds or (3 if options.quick else 5)
    quick = options.quick
    result: dict[str, Any] = {"backend": options.backend, "python": platform.python_version(), "machine": machine()}
    for section in options.only:
        with Pair(options.backend) as pair:
            if section == "goodput":
                result[section] = goodput.run(pair, quick=quick, rounds=rounds, tell=tell)
            elif section == "calls":
                result[section] = rooms.calls(pair, quick=quick, tell=tell)
            elif section == "control":
                result[section] = rooms.control(pair, quick=quick, rounds=rounds, tell=tell)
            else:
                result[section] = latency.run(pair, quick=quick, tell=tell)
            pair.command("quit")
    return result


def tell(text: str) -> None:
    """What is being done: on standard error, so that the output can be redirected."""
    print(text, file=sys.stderr, flush=True)


def sections(text: str) -> list[str]:
    """Names of sections, comma-separated."""
    names = text.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: sections are {', '.join(SECTIONS)}")
    return names


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Benchmark of kv-core over a backend; see docs/benchmarks.md.")
    parser.add_argument("--quick", action="store_true", help="fewer cells, rooms and rounds: half a minute, 2 GiB")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--only", type=sections, default=list(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--rounds", type=int, default=0, help="repetitions of each measurement (default 5; quick: 3)")
    parser.add_argument("--backend", default="fake")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(tables.plain(result)))
    else:
        print("\n".join(tables.report(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

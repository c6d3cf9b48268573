"""The Grafana dashboard against a real Prometheus with real traffic: every query of every panel has to have data.

    python -m tests.long.dashboard [--seconds 60] [--backends fake nixl mooncake] [--picture docs/dashboard.png] [--json]

On one backend after the other ``kv-core demo`` serves requests, with faults, with ranks that are killed and come back, and with
digests; Prometheus scrapes both ranks once a second, the alert rules loaded. Then every query of the dashboard is asked, with
its variables at "all". With ``--picture`` the panels are drawn as Grafana lays them out (needs matplotlib: ``make dashboard``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from core.tests.cli.support import COMMAND, environment
from core.tests.observe.prometheus_server import MISSING, PROMETHEUS, free_port, prometheus
from kv_core import BackendLoadError, BackendNotFound, load_backend
from tests.support import command_line
from tests.support.dashboard_panels import Panel, read_panels

BACKENDS = ("fake", "nixl", "mooncake")
LIMIT_S = 120.0
STEP_S = 1.0
RATE_INTERVAL = "4s"
"""Grafana's: four times the scrape interval."""
FAULTS = [
    {"kind": "late_write", "probability": 0.01, "seconds": 1.0},
    {"kind": "drop", "probability": 0.002},
    {"kind": "delay", "probability": 0.2, "seconds": 0.03},
]
SIZES = ("--pages", "16", "--layers", "4", "--page-bytes", "16384", "--chunks", "4", "--concurrency", "6")
FAULTY = ("--requests", "900", "--timeout", "2", "--option", "prefill.faults=" + json.dumps(FAULTS))
KILLS = (("--requests", "600", "--kill", "decode"), ("--requests", "600", "--kill", "prefill", "--digest", "sampled"))
PLAIN = ("--requests", "1200", "--digest", "sampled")
BROKEN = (2, 3)
"""Exit statuses of a demo that did not run."""


def variants(backend: str) -> Iterator[tuple[str, ...]]:
    """Arguments of one demo after the other. Only the embedded backend has faults on request."""
    faulty = [FAULTY] if backend == "fake" else []
    return cycle([PLAIN, *faulty, *KILLS])


def serve(backend: str, port: int, seconds: float) -> list[str]:
    """Demos at these ports of their metrics for so long; what went wrong."""
    end = time.monotonic() + seconds
    for number, arguments in enumerate(variants(backend)):
        if time.monotonic() >= end:
            return []
        command = [
            *COMMAND, "demo", "--backend", backend, "--json", "--metrics-port", str(port), *SIZES, "--seed", str(number),
            *arguments,
        ]  # fmt: skip
        ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
        if ran.returncode in BROKEN:
            return [f"the demo on {backend} ended with {ran.returncode}: {ran.stderr[-2000:]}"]
    return []


def installed(names: Sequence[str]) -> list[str]:
    """Those that can be loaded here."""
    found = []
    for name in names:
        try:
            load_backend(name)
        except (BackendLoadError, BackendNotFound) as error:
            sys.stderr.write(f"{name} is left out: {error}\n")
        else:
            found.append(name)
    return found


def watch(backends: Sequence[str], seconds: float) -> tuple[list[Panel], list[str]]:
    """Every panel with its data, and what was not as it should be."""
    ports = {backend: free_port(2) for backend in backends}
    targets = [f"127.0.0.1:{port + place}" for port in ports.values() for place in (0, 1)]
    violations: list[str] = []

    def traffic() -> None:
        for backend, port in ports.items():
            violations.extend(serve(backend, port, seconds))

    with tempfile.TemporaryDirectory() as name:
        worker = threading.Thread(target=traffic, name="traffic")
        with prometheus(Path(name), targets, scrape="1s", up=0) as server:
            start = _now(server)
            worker.start()
            worker.join()
            panels = list(read_panels(server, start, _now(server), STEP_S, RATE_INTERVAL))
            unwell = [rule["name"] for rule in server.rules() if rule["health"] != "ok"]
    violations += [f"rule {rule} can't be evaluated" for rule in unwell]
    violations += [f"panel {panel.title!r}: no data for {query}" for panel in panels for query in panel.missing]
    return panels, violations


def _now(server: Any) -> float:
    """Prometheus's own time, in which it is asked."""
    return float(server.api("query", query="time()")["result"][1])


def rows(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """The report."""
    return [
        {
            "panel": panel.title, "kind": panel.kind, "series": len(panel.lines),
            "samples": sum(len(line.values) for line in panel.lines), "other than 0": "yes" if panel.moving else "no",
        }
        for panel in panels if panel.kind != "row"
    ]  # fmt: skip


def main() -> int:
    """The command line."""
    parser = command_line.parser("Every query of the dashboard against a real Prometheus")
    parser.add_argument("--seconds", type=float, default=60.0, help="of traffic on each backend")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, help="those of them that are installed")
    parser.add_argument("--picture", type=Path, help="where to draw the panels")
    given = parser.parse_args()
    if PROMETHEUS is None:
        sys.stderr.write(f"{MISSING}\n")
        return 2
    backends = installed(given.backends)
    panels, violations = watch(backends, given.seconds)
    if given.picture is not None:
        from tests.support.dashboard_picture import draw  # noqa: PLC0415 - matplotlib is here for this alone

        draw(panels, f"kv-core: kv-core demo on {', then '.join(backends)}; ranks are killed, faults are made", given.picture)
    command = " ".join(["python", "-m", "tests.long.dashboard", *sys.argv[1:]])
    return command_line.report("dashboard", rows(panels), violations, command=command, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())

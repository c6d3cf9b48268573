"""Every alert rule that ships, on the fault that it names: made for real, scraped and judged by a real Prometheus.

    python -m tests.long.alerts [--only ALERT ...] [--parallel 3] [--json]

For each rule two ranks are started, each a process that serves its metrics; Prometheus scrapes them once a second; then the
fault strikes. The rules are those of monitoring/, with windows and ``for`` 15 times shorter (as if 15 s between two scrapes
were one), and not a word of them changed otherwise. The alert has to fire, and no other one that has nothing to do with the
fault. On healthy traffic, with rooms that are given up in it, none fires but the one that says that bytes go over TCP; on
NIXL, where it is installed, none at all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

from core.tests.observe.prometheus_server import MISSING, PROMETHEUS, prometheus
from tests.support import command_line
from tests.support.alert_faults import FAULTS, TCP, Fault, healthy
from tests.support.alert_rules import SCRAPE, write_rules
from tests.support.observed_scene import Scene

FIRE_LIMIT_S = 240.0
HEALTHY_S = 60.0
"""Longer than the longest window and the longest ``for`` together (10 and 5 minutes, scaled)."""
LOOK_S = 0.5
MIN_SCRAPES = 3


def fire(fault: Fault) -> tuple[dict[str, Any], list[str]]:
    """Make one fault. Its row of the report, and what was not as it should be."""
    row: dict[str, Any] = {"alert": fault.alert, "fault": fault.what}
    with tempfile.TemporaryDirectory() as name, Scene() as scene:
        folder = Path(name)
        fault.begin(scene)
        with prometheus(folder, scene.targets, rules=write_rules(folder), scrape=SCRAPE) as server:
            scrapes = f"min(count_over_time(kv_core_rooms_opened_total[1m])) >= {MIN_SCRAPES}"
            scene.pump_until(lambda: server.values(scrapes), "counters at 0")
            before = server.firing()
            struck = monotonic()
            fault.strike(scene)
            try:
                scene.pump_until(_looking(lambda: fault.alert in server.firing()), f"{fault.alert} fires", FIRE_LIMIT_S)
            except AssertionError as error:
                return row, [f"{fault.alert}: {error}; firing: {sorted(server.firing())}"]
            row["fires after s"] = monotonic() - struck
            others = server.firing() - {fault.alert, TCP}
            row["fire besides"] = ", ".join(sorted(others)) or "-"
    violations = [f"{fault.alert}: {other} fires, too" for other in sorted(others - fault.also)]
    violations += [f"{fault.alert}: fired before the fault"] if fault.alert in before else []
    return row, violations


def _looking(condition: Any) -> Any:
    """Looks not at every turn."""
    due = [0.0]

    def look() -> bool:
        if monotonic() < due[0]:
            return False
        due[0] = monotonic() + LOOK_S
        return bool(condition())

    return look


def stay_silent(backend: str, allowed: frozenset[str], seconds: float = HEALTHY_S) -> tuple[dict[str, Any], list[str]]:
    """Healthy traffic for so long. The row of the report, and what fired."""
    fired: set[str] = set()
    with tempfile.TemporaryDirectory() as name, Scene(backend) as scene:
        folder = Path(name)
        scene.start()
        with prometheus(folder, scene.targets, rules=write_rules(folder), scrape=SCRAPE) as server:
            healthy(scene)
            end = monotonic() + seconds

            def over() -> bool:
                fired.update(server.firing())
                return monotonic() >= end

            scene.pump_until(_looking(over), "the end", 2 * seconds)
            ended = {one.get("metric", {}).get("outcome"): one["value"][1] for one in _outcomes(server)}
    row = {
        "alert": "(none)",
        "fault": f"healthy traffic on {backend} for {seconds:g} s: {ended}",
        "fire besides": ", ".join(sorted(fired)) or "-",
    }
    violations = [f"healthy traffic on {backend}: {name} fires" for name in sorted(fired - allowed)]
    if not float(ended.get("success", 0)) or not float(ended.get("aborted", 0)) or float(ended.get("failed", 0)):
        violations.append(f"healthy traffic on {backend} was not what it should be: {ended}")
    return row, violations


def _outcomes(server: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.api("query", query="sum by (outcome) (kv_core_rooms_concluded_total)")[
        "result"
    ]
    return found


def run(alerts: Sequence[str] | None, parallel: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the report, and what was not as it should be. ``alerts``: None for all, and for healthy traffic."""
    jobs: list[tuple[Any, ...]] = [(fire, fault) for fault in FAULTS if alerts is None or fault.alert in alerts]
    if alerts is None:
        jobs.append((stay_silent, "fake", frozenset({TCP})))
        if find_spec("nixl") is not None:
            jobs.append((stay_silent, "nixl", frozenset()))
    # The longest first: it waits for a minute for what it needs.
    jobs.sort(key=lambda job: job[0] is fire and job[1].alert != "KvCoreSlowBootstrap")
    with ThreadPoolExecutor(parallel) as threads:
        done = list(threads.map(lambda job: _guarded(*job), jobs))
    return [row for row, _ in done], [violation for _, found in done for violation in found]


def _guarded(job: Any, *arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """One that breaks must not hide the others."""
    try:
        row, violations = job(*arguments)
    except Exception as error:  # noqa: BLE001 - it is a violation of the report
        name = getattr(arguments[0], "alert", arguments[0])
        return {"alert": name, "fault": f"broke: {type(error).__name__}"}, [f"{name}: {type(error).__name__}: {error}"]
    return row, violations


def main() -> int:
    """The command line."""
    parser = command_line.parser("Every alert rule on the fault that it names")
    parser.add_argument("--only", nargs="+", choices=[fault.alert for fault in FAULTS], help="these rules alone")
    parser.add_argument(
        "--parallel", type=int, default=3, help="faults at a time, each with ranks and a Prometheus of its own"
    )
    given = parser.parse_args()
    if PROMETHEUS is None:
        sys.stderr.write(f"{MISSING}\n")
        return 2
    rows, violations = run(given.only, given.parallel)
    only = f"--only {' '.join(given.only)}" if given.only else ""
    command = command_line.repeat("tests.long.alerts", 0, *filter(None, [only]))
    return command_line.report("alerts", rows, violations, command=command, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())

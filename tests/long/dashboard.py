"""The Grafana dashboard against a real Prometheus with real traffic: every query of every panel has to have data.

    python -m tests.long.dashboard [--seconds 60] [--backends fake nixl mooncake] [--picture docs/dashboard.png] [--json]

Two ranks that do not fit together refuse each other; then, on one backend after the other, ``kv-core demo`` serves requests, with
faults, with ranks that are killed and come back, and with digests. Prometheus scrapes both ranks once a second, the alert rules loaded. Then every query of the dashboard is asked, with
its variables at "all". With ``--picture`` the panels are drawn as Grafana lays them out (needs matplotlib: ``make dashboard``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.tests.cli.support import COMMAND, environment
from core.tests.observe.prometheus_server import MISSING, PROMETHEUS, Server, free_port, prometheus
from kv_core import BackendLoadError, BackendNotFound, load_backend
from tests.support import command_line
from tests.support.dashboard_panels import Panel, read_panels
from tests.support.observed_scene import Scene
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

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
FAULTY = ("--requests", "2400", "--timeout", "2", "--option", "prefill.faults=" + json.dumps(FAULTS))
KILLS = (("--requests", "2400", "--kill", "decode", "--digest", "sampled"), ("--requests", "2400", "--kill", "prefill"))
BROKEN = (2, 3)
"""Exit statuses of a demo that did not run."""
STRANGERS_S, STRANGERS_PAUSE_S = 8.0, 0.25
"""How long a prefill rank is asked for rooms by a decode rank that it can't serve, and how often."""


def serve(backend: str, port: int, over: Callable[[], bool]) -> list[str]:
    """Demos at these ports of their metrics until it is over; what went wrong."""
    # Only the embedded backend has faults on request.
    variants = cycle([FAULTY, *KILLS] if backend == "fake" else KILLS)
    for number, arguments in enumerate(variants):
        command = [
            *COMMAND, "demo", "--backend", backend, "--json", "--metrics-port", str(port), *SIZES, "--seed", str(number),
            *arguments,
        ]  # fmt: skip
        ended, errors = run_until(command, over)
        if ended in BROKEN:
            return [f"the demo on {backend} ended with {ended}: {errors[-2000:]}"]
        if over():
            return []
    return []


def run_until(command: Sequence[str], over: Callable[[], bool]) -> tuple[int, str]:
    """A process until it ends or is over; its exit status, 0 if it was ended, and what it wrote to standard error."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=log)
        try:
            wait_until(lambda: process.poll() is not None or over(), "a demo's end", LIMIT_S)
            status = process.poll() or 0
        finally:
            process.terminate()
            process.wait(LIMIT_S)
        log.seek(0)
        return status, log.read()


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


class Traffic:
    """One backend after the other, each for so long, in a thread; the last one until ``close``. ``wrong``: what went wrong."""

    def __init__(self, ports: Mapping[str, int], strangers: Scene, seconds: float) -> None:
        self.wrong: list[str] = []
        self._ports = ports
        self._strangers = strangers
        self._seconds = seconds
        self._stop, self._shown = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)

    def wait(self) -> None:
        """Until the last backend has had its time; its ranks still serve then."""
        self._shown.wait(LIMIT_S + len(self._ports) * self._seconds)

    def _run(self) -> None:
        try:
            self._strangers.begin_traffic(concurrency=1)
            end = time.monotonic() + STRANGERS_S
            while not self._stop.wait(STRANGERS_PAUSE_S) and time.monotonic() < end:
                self._strangers.pump()
            self._strangers.close()
            for place, (backend, port) in enumerate(self._ports.items()):
                end = time.monotonic() + self._seconds
                self.wrong += serve(backend, port, self._over(end, last=place == len(self._ports) - 1))
        except Exception as error:  # noqa: BLE001 - it is a violation of the report
            self.wrong.append(f"the traffic ended: {type(error).__name__}: {error}")
        finally:
            self._shown.set()

    def _over(self, end: float, *, last: bool) -> Callable[[], bool]:
        def over() -> bool:
            if time.monotonic() < end:
                return self._stop.is_set()
            if last:
                self._shown.set()
            return self._stop.is_set() if last else True

        return over


def watch(backends: Sequence[str], seconds: float) -> tuple[list[Panel], list[str]]:
    """Every panel with its data, and what was not as it should be."""
    ports = {backend: free_port(2) for backend in backends}
    targets = [f"127.0.0.1:{port + place}" for port in ports.values() for place in (0, 1)]
    with tempfile.TemporaryDirectory() as name, Scene() as strangers:
        strangers.start(decode_args={"page_size": 32})
        with prometheus(Path(name), [*targets, *strangers.targets], scrape="1s", up=2) as server:
            start = _now(server)
            with Traffic(ports, strangers, seconds) as traffic:
                traffic.wait()
                panels = list(read_panels(server, start, _serving(server, start), STEP_S, RATE_INTERVAL))
                unwell = [rule["name"] for rule in server.rules() if rule["health"] != "ok"]
    violations = [*traffic.wrong, *(f"rule {rule} can't be evaluated" for rule in unwell)]
    violations += [f"panel {panel.title!r}: no data for {query}" for panel in panels for query in panel.missing]
    return panels, violations


def _serving(server: Server, start: float) -> float:
    """The last time at which both ranks had a peer: a dashboard is looked at while something is served."""
    served = server.series("sum(kv_core_peers) >= 2", start, _now(server), STEP_S)
    return max((at for line in served for at, _ in line["values"]), default=_now(server))


def _now(server: Server) -> float:
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
        from tests.support.dashboard_picture import draw  # matplotlib is here for this alone

        draw(
            panels,
            f"kv-core: kv-core demo on {', then '.join(backends)}; ranks are killed, faults are made",
            given.picture,
        )
    command = " ".join(["python", "-m", "tests.long.dashboard", *sys.argv[1:]])
    return command_line.report("dashboard", rows(panels), violations, command=command, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())

"""A real Prometheus (Debian's package; its binary alone, never its service), in a folder of its own, and a demo to scrape."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from core.tests.cli.support import COMMAND, environment
from core.tests.observe.test_monitoring import RULES

PROMETHEUS = shutil.which("prometheus")
MISSING = "prometheus is not installed (Debian: apt-get install prometheus)"
LIMIT_S = 60.0
URL = re.compile(r"metrics of the (\w+) rank: (http://\S+)")


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The condition's first true value."""
    deadline = monotonic() + limit_s
    while not (result := condition()):
        assert monotonic() < deadline, f"{what}: not within {limit_s:g} s"
        sleep(0.1)
    return result


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose standard error goes to a file; ended at the end."""
    with log.open("wb") as errors:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=errors)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(LIMIT_S)
        finally:
            process.kill()
            process.wait()


@contextmanager
def demo(folder: Path, *arguments: str, backend: str = "fake", port: int = 0) -> Iterator[dict[str, str]]:
    """A demo under way, and each rank's address of its metrics."""
    log = folder / f"demo-{backend}.err"
    command = [*COMMAND, "demo", "--backend", backend, "--metrics-port", str(port), *arguments]
    with running(command, log) as process:

        def told() -> dict[str, str]:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            found = dict(URL.findall(log.read_text(encoding="utf-8")))
            return found if len(found) == 2 else {}

        yield until(told, "both ranks' addresses")


def fetch(url: str) -> str:
    """What an address answers."""
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        return answer.read().decode()


def free_port(count: int = 1) -> int:
    """The first of so many ports in a row of the loopback interface that nobody has at this moment."""
    while True:
        with ExitStack() as stack:
            first = 0
            try:
                for place in range(count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", first and first + place))
                    first = first or probe.getsockname()[1]
            except (OSError, OverflowError):
                continue  # the next one is somebody's
            return first


def plain(query: str, rate_interval: str, whole: str) -> str:
    """A query of the dashboard as Prometheus takes it, all variables at "all"; empty for what is none."""
    if query.startswith("label_values("):
        query = query.removeprefix("label_values(").rpartition(", ")[0]
    variables = {
        "$__rate_interval": rate_interval,
        "$__range": whole,
        "$backend": ".*",
        "$role": ".*",
        "$instance": ".*",
    }
    for name, value in variables.items():
        query = query.replace(name, value)
    return query if "kv_core_" in query else ""


class Server:
    """A Prometheus's HTTP interface."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def api(self, path: str, **parameters: str) -> Any:
        """What it answers; None while it is coming up. A query that it refuses is an ``AssertionError``."""
        try:
            return json.loads(fetch(f"{self.base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        except OSError:
            return None  # it has not come up yet

    def values(self, query: str) -> list[float]:
        """The numbers that a query has now."""
        data = self.api("query", query=query)
        values = [float(series["value"][1]) for series in data["result"]] if data else []
        return [value for value in values if not math.isnan(value)]

    def series(self, query: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """A query over a time: one object for each series, with ``metric`` and ``values``."""
        data = self.api("query_range", query=query, start=str(start), end=str(end), step=str(step_s))
        found: list[dict[str, Any]] = data["result"] if data else []
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its health."""
        return [rule for group in self.api("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        alerts = (self.api("alerts") or {"alerts": []})["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@contextmanager
def prometheus(
    folder: Path, targets: Sequence[str], *, rules: Path = RULES, scrape: str = "250ms", evaluate: str = "1s",
    up: int | None = None,
) -> Iterator[Server]:  # fmt: skip
    """One that scrapes these ``host:port`` and has scraped each of them, or ``up`` of them."""
    assert PROMETHEUS is not None, MISSING
    config = folder / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {scrape}, evaluation_interval: {evaluate}, scrape_timeout: {scrape}}}\n"
        f"rule_files: [{rules}]\n"
        f"scrape_configs:\n  - job_name: kv-core\n    static_configs: [{{targets: {json.dumps(list(targets))}}}]\n",
        encoding="utf-8",
    )
    port = free_port()
    command = [
        PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    log = folder / "prometheus.err"
    with running(command, log) as process:
        server = Server(port)

        def scraped() -> bool:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            return bool(server.values(f"sum(up) >= {len(targets) if up is None else up}"))

        until(scraped, "every target scraped")
        yield server

"""A real Prometheus scrapes both ranks of the demo: every query of the dashboard has data, and the rules are evaluated."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from core.tests.cli.support import COMMAND, SMALL, environment
from core.tests.observe.support import Samples
from core.tests.observe.test_monitoring import RULES, dashboard, rules

pytest.importorskip("kv_fake", reason="the embedded backend is not installed")

PROMETHEUS = shutil.which("prometheus")
LIMIT_S = 60.0
VARIABLES = {"$__rate_interval": "6s", "$__range": "1m", "$backend": ".*", "$role": ".*", "$instance": ".*"}
URL = re.compile(r"metrics of the (\w+) rank: (http://\S+)")


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = monotonic() + LIMIT_S
    while not (result := condition()):
        assert monotonic() < deadline, f"{what}: not within {LIMIT_S} s"
        sleep(0.1)
    return result


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose standard error goes to a file; ended at the end."""
    with log.open("wb") as errors:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=errors)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(LIMIT_S)
        finally:
            process.kill()
            process.wait()


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[dict[str, str]]:
    """A demo under way, and each rank's address of its metrics."""
    log = folder / "demo.err"
    with running([*COMMAND, "demo", "--backend", "fake", "--metrics-port", "0", *SMALL, *arguments], log) as process:

        def told() -> dict[str, str]:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            found = dict(URL.findall(log.read_text(encoding="utf-8")))
            return found if len(found) == 2 else {}

        yield until(told, "both ranks' addresses")


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        return answer.read().decode()


def test_each_rank_serves_its_own_series(tmp_path):
    with demo(tmp_path, "--requests", "100000") as urls:
        for role, url in urls.items():
            until(lambda: succeeded(url, role) > 0, f"rooms of {role}")  # noqa: B023
            found = Samples(fetch(url))
            assert {sample.labels["role"] for sample in found.all if sample.name.startswith("kv_core_")} == {role}
            assert found.value("kv_core_backend_info", backend="fake") >= 1
            assert found.value("kv_core_wire_seconds_count") > 0


def succeeded(url: str, role: str) -> float:
    return Samples(fetch(url)).value("kv_core_rooms_concluded_total", outcome="success", role=role)


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [
            *COMMAND,
            "demo",
            "--backend",
            "fake",
            "--json",
            *SMALL,
            "--metrics-port",
            str(taken.getsockname()[1]),
        ]
        ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert ran.returncode == 3
    assert "metrics can't be served" in ran.stderr


class Server:
    """A Prometheus that scrapes these targets four times a second."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def api(self, path: str, **parameters: str) -> Any:
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


@contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[Server]:
    assert PROMETHEUS is not None
    config = folder / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: 250ms, evaluation_interval: 1s}}\nrule_files: [{RULES}]\n"
        f"scrape_configs:\n  - job_name: kv-core\n    static_configs: [{{targets: {json.dumps(targets)}}}]\n",
        encoding="utf-8",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with running(command, folder / "prometheus.err"):
        server = Server(port)
        until(lambda: server.values("sum(up) == 2"), "both ranks scraped")
        yield server


def evaluated(server: Server) -> list[dict[str, Any]]:
    return [rule for group in server.api("rules")["groups"] for rule in group["rules"]]


def plain(query: str) -> str:
    """A query of the dashboard as Prometheus takes it; empty for what is none."""
    if query.startswith("label_values("):
        query = query.removeprefix("label_values(").rpartition(", ")[0]
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query if "kv_core_" in query else ""


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: apt-get install prometheus)")
def test_every_query_of_the_dashboard_has_data(tmp_path):
    with demo(tmp_path, "--requests", "100000", "--concurrency", "2", "--chunks", "3") as urls:
        targets = [urllib.parse.urlsplit(url).netloc for url in urls.values()]
        with prometheus(tmp_path, targets) as server:
            for query in filter(None, map(plain, dashboard())):
                until(lambda: server.values(query), query)  # noqa: B023
            until(lambda: all(rule["health"] == "ok" for rule in evaluated(server)), "every rule evaluated")
            assert len(evaluated(server)) == len(rules())
            firing = server.api("alerts")["alerts"]
            allowed = {"KvCoreTransportIsTcp"}  # the embedded backend moves bytes over TCP
            assert {alert["labels"]["alertname"] for alert in firing} <= allowed, firing

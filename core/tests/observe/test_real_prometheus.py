"""A real Prometheus scrapes both ranks of the demo: every query of the dashboard has data, and the rules are evaluated."""

from __future__ import annotations

import socket
import subprocess
import urllib.parse

import pytest

from core.tests.cli.support import COMMAND, SMALL, environment
from core.tests.observe.prometheus_server import LIMIT_S, MISSING, PROMETHEUS, demo, fetch, plain, prometheus, until
from core.tests.observe.support import Samples
from core.tests.observe.test_monitoring import dashboard, rules

pytest.importorskip("kv_fake", reason="the embedded backend is not installed")


def test_each_rank_serves_its_own_series(tmp_path):
    with demo(tmp_path, *SMALL, "--requests", "100000") as urls:
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


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason=MISSING)
def test_every_query_of_the_dashboard_has_data(tmp_path):
    with demo(tmp_path, *SMALL, "--requests", "100000", "--concurrency", "2", "--chunks", "3") as urls:
        targets = [urllib.parse.urlsplit(url).netloc for url in urls.values()]
        with prometheus(tmp_path, targets) as server:
            for query in filter(None, (plain(query, "6s", "1m") for query in dashboard())):
                until(lambda: server.values(query), query)  # noqa: B023
            until(lambda: all(rule["health"] == "ok" for rule in server.rules()), "every rule evaluated")
            assert len(server.rules()) == len(rules())
            assert server.firing() <= {"KvCoreTransportIsTcp"}  # the embedded backend moves bytes over TCP

"""Several processes that share a folder: what one of them serves is the sum over all, gauges included."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

import pytest

from core.tests.observe.support import Samples, fresh
from kv_core.observe.mirror import Mirror

ROOT = Path(__file__).parents[3]
LIMIT_S = 60.0
SERVER = """
import sys
from kv_core.observe import MetricsServer
with MetricsServer() as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, "the process ended without a word"
    return line


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None and process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(LIMIT_S)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """The address of a server, and three ranks that have counted 3, 4 and 5 rooms and live."""
    with ExitStack() as stack:
        rank = str(Path(__file__).with_name("rank_process.py"))
        ranks = [
            start(tmp_path, rank, role, rooms) for role, rooms in (("prefill", "3"), ("prefill", "4"), ("decode", "5"))
        ]
        server = start(tmp_path, "-c", SERVER)
        for process in (*ranks, server):
            stack.callback(end, process)
        for process in ranks:
            assert first_line(process) == "ready"
        yield first_line(server), ranks


def scrape_url(url: str) -> Samples:
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        return Samples(answer.read().decode())


def test_one_scrape_has_all_processes(shared):
    url, ranks = shared
    deadline = monotonic() + LIMIT_S
    while True:  # the snapshots are written by a thread of each rank
        found = scrape_url(url)
        moving = found.value("kv_core_rooms", role="prefill", state="moving")
        if (moving, found.value("kv_core_rooms", role="decode", state="moving")) == (7, 5):
            break
        assert monotonic() < deadline, f"{moving} rooms after {LIMIT_S} s"
        sleep(0.05)
    for role, rooms in {"prefill": 7, "decode": 5}.items():
        assert found.value("kv_core_rooms_concluded_total", role=role, outcome="success") == rooms
        assert found.value("kv_core_transferred_bytes_total", role=role) == rooms * 1000
        assert found.value("kv_core_wire_seconds_sum", role=role) == rooms * 0.5
        assert found.value("kv_core_wire_seconds_bucket", role=role, le="0.5", source="core") == rooms
        assert found.value("kv_core_messages_stale_total", role=role, kind="stale_packets") == rooms
        assert found.value("kv_core_backend_info", role=role, transport="rdma") == 1
        assert found.value("kv_core_rooms_concluded_total", role=role, reason="integrity") == 0
    end(ranks[0])
    assert ranks[0].returncode == 0
    after = scrape_url(url)
    assert after.value("kv_core_transferred_bytes_total", role="prefill") == 7000, "what a rank counted outlives it"


def test_a_mirror_survives_what_it_calls_and_ends(caplog):
    calls: list[int] = []

    def refresh() -> None:
        calls.append(1)
        raise RuntimeError("no")

    mirror = Mirror(refresh, 0.001)
    mirror.start()
    deadline = monotonic() + LIMIT_S
    while len(calls) < 3:
        assert monotonic() < deadline
        sleep(0.001)
    assert mirror.close()
    assert mirror.close()
    assert mirror.exceptions == len(calls)
    assert len(caplog.records) == 1


def test_without_the_folder_there_is_no_thread():
    assert fresh()[1]._mirror is None

"""End to end: two processes under core's managers, every byte compared, a killed rank replaced."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

DEMO = [sys.executable, "-m", "kv_core.cli", "demo", "--backend", "mori", "--json"]


def demo(*arguments):
    done = subprocess.run([*DEMO, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_every_byte_of_many_requests():
    report = demo("--requests", "60", "--concurrency", "16", "--option", "max_outstanding=512")
    assert (report["succeeded"], report["failures"]) == (60, 0)
    assert report["bytes_verified"] == report["bytes_sent"] > 0
    assert (report["wrong_bytes"], report["stray_bytes"]) == (0, 0)
    assert report["transport"] == "rdma"


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_killed_rank_is_replaced_and_nothing_stays_quarantined(role):
    report = demo("--requests", "40", "--concurrency", "8", "--kill", role)
    assert report["succeeded"] == 40
    assert (report["wrong_bytes"], report["stray_bytes"]) == (0, 0)
    assert report["kill"]["survivor_kept"]
    assert report["kill"]["pages_quarantined"] == 0

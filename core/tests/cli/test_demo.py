"""``kv-core demo`` on the embedded backend: real processes, real bytes, and what it says when they are wrong."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import psutil
import pytest

from core.tests.cli.support import COMMAND, LIMIT_S, SMALL, demo, environment, faults, kv_core

POLL_S = 0.1
REQUEST_BYTES = 4 * 2 * 4096 + 256

pytestmark = pytest.mark.timeout(100)


def test_every_byte_is_verified() -> None:
    ran = demo("--requests", "40", "--concurrency", "8", "--chunks", "3", "--seed", "11")
    assert ran.status == 0, ran
    found = ran.document
    assert (found["requests"], found["succeeded"], found["failures"], found["failures_by_reason"]) == (40, 40, 0, {})
    assert found["bytes_sent"] == found["bytes_verified"] == 40 * REQUEST_BYTES
    assert (found["wrong_bytes"], found["stray_bytes"], found["restarts"], found["kill"]) == (0, 0, 0, None)
    assert (found["backend"], found["distribution"], found["seed"]) == ("fake", "kv-fake", 11)
    assert found["goodput_gb_s"] > 0
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
    assert found["transport"]
    assert ran.err == ""


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(("--pages", "1", "--layers", "1", "--page-bytes", "2", "--chunks", "5"), id="smallest"),
        pytest.param(("--pages", "7", "--layers", "3", "--page-bytes", "1234", "--digest", "all"), id="odd sizes"),
        pytest.param(("--pages", "64", "--layers", "16", "--concurrency", "1"), id="one at a time"),
    ],
)
def test_other_shapes(shape: tuple[str, ...]) -> None:
    ran = demo("--requests", "6", *shape)
    assert ran.status == 0, ran
    assert ran.document["succeeded"] == 6


def test_people_get_a_bar_and_a_table() -> None:
    ran = kv_core("demo", "--requests", "5", *SMALL)
    assert ran.status == 0, ran
    assert "5 of 5 succeeded" in ran.out
    assert "every byte was right" in ran.out
    assert "5/5" in ran.err


def test_a_wrong_byte_is_found_and_is_a_failure() -> None:
    ran = demo("--requests", "10", *faults(kind="corrupt", nth=5))
    assert ran.status == 1, ran
    found = ran.document
    assert (found["wrong_bytes"], found["succeeded"], found["failures"]) == (1, 9, 1)
    assert found["failures_by_reason"] == {"verify/wrong_bytes": 1}


def test_with_digests_a_wrong_byte_fails_the_room() -> None:
    ran = demo("--requests", "10", "--digest", "all", *faults(kind="corrupt", nth=5))
    assert ran.status == 1, ran
    found = ran.document
    assert (found["wrong_bytes"], found["succeeded"], found["failures"]) == (0, 9, 1)
    assert found["failures_by_reason"] == {"integrity/integrity": 1}
    assert found["failure_examples"]["integrity/integrity"]


def test_bytes_that_never_leave_are_a_timeout() -> None:
    ran = demo("--requests", "6", "--timeout", "1.5", *faults(kind="drop", nth=3))
    assert ran.status == 1, ran
    found = ran.document
    assert (found["succeeded"], found["failures_by_reason"]) == (5, {"transfer/timeout": 1})
    assert found["wrong_bytes"] == found["stray_bytes"] == 0


def test_a_late_write_lands_in_no_page_that_is_used_again() -> None:
    late = faults(kind="late_write", every=7, seconds=0.3)
    ran = demo("--requests", "40", "--concurrency", "8", *late)
    assert ran.status == 1, ran
    found = ran.document
    assert found["failures"] > 0
    assert set(found["failures_by_reason"]) == {"transfer/transport_error"}
    assert found["wrong_bytes"] == found["stray_bytes"] == 0


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_killed_rank_comes_back_and_every_request_succeeds(role: str) -> None:
    bigger = ("--pages", "16", "--page-bytes", "65536", "--layers", "8")
    ran = demo("--requests", "60", "--concurrency", "12", "--kill", role, *bigger)
    assert ran.status == 0, ran
    found, kill = ran.document, ran.document["kill"]
    assert (found["succeeded"], found["restarts"]) == (60, 1)
    assert found["bytes_sent"] == found["bytes_verified"] == 60 * (16 * 8 * 65536 + 256)
    assert found["wrong_bytes"] == found["stray_bytes"] == 0
    assert kill["survivor_kept"]
    assert kill["pid"] != kill["survivor_pid"]
    assert kill["affected_rooms"] > 0
    assert sum(kill["affected_by_reason"].values()) == kill["affected_rooms"]
    assert all("/" in reason for reason in found["failures_by_reason"])
    assert kill["pages_quarantined"] == 0
    assert kill["first_success_after_restart_s"] > 0


def test_a_rank_that_dies_by_itself_ends_the_demo_with_its_last_words() -> None:
    ran = demo("--requests", "10", *faults(kind="die", nth=5))
    assert ran.status == 3, ran
    assert "the prefill rank" in ran.err
    assert "was killed by SIGKILL" in ran.err
    assert ran.document["exit_status"] == 3


def test_a_rank_that_can_not_start_says_why() -> None:
    ran = demo("--option", 'decode.faults=[{"kind": "nonsense"}]')
    assert ran.status == 3, ran
    assert "the decode rank" in ran.document["error"]
    assert "fault kind 'nonsense' is unknown" in ran.document["error"]


@contextmanager
def endless_demo() -> Iterator[tuple[psutil.Process, list[psutil.Process], subprocess.Popen]]:
    """A demo that would run for long, once both of its ranks are there. Nothing of it is left in the end."""
    command = [*COMMAND, "demo", "--backend", "fake", "--json", *SMALL, "--requests", "200000"]
    # A shell starts what it runs in the background with SIGINT ignored, and its children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        parent = psutil.Process(process.pid)
        ranks: list[psutil.Process] = []
        try:
            deadline = monotonic() + LIMIT_S
            while len(ranks) < 2 and monotonic() < deadline and process.poll() is None:
                ranks = [child for child in parent.children() if has_settled(child)]
                psutil.wait_procs([parent], timeout=POLL_S)
            assert len(ranks) == 2, "the ranks did not start"
            yield parent, ranks, process
        finally:
            for each in (parent, *ranks):
                if each.is_running():
                    each.kill()


def has_settled(rank: psutil.Process) -> bool:
    """Whether the rank serves: its control socket listens, which is the last thing before that."""
    try:
        return any(each.status == psutil.CONN_LISTEN for each in rank.net_connections(kind="tcp"))
    except psutil.Error:
        return False


def assert_gone(ranks: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(ranks, timeout=LIMIT_S)
    assert not alive


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(sign: signal.Signals) -> None:
    with endless_demo() as (parent, ranks, process):
        parent.send_signal(sign)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 128 + sign, errors
        assert f"ended by {sign.name}".encode() in errors
        assert_gone(ranks)


def test_ranks_do_not_outlive_their_router() -> None:
    with endless_demo() as (parent, ranks, _):
        parent.kill()
        assert_gone(ranks)


def test_one_rank_that_dies_takes_the_other_along() -> None:
    with endless_demo() as (_, ranks, process):
        ranks[0].send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 3, errors
        assert f"(pid {ranks[0].pid}) was killed by SIGKILL".encode() in errors
        assert_gone(ranks)

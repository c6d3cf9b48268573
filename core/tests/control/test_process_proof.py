"""A proof of death: only ever true for a process that is really gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from core.tests.control.support import LIMIT_S
from kv_core.runtime import process_proof
from kv_core.runtime.process_proof import describe_process, is_proven_dead

DESCRIBE = """
import json, sys
from kv_core.runtime.process_proof import describe_process
print(json.dumps(describe_process()), flush=True)
sys.stdin.read()
"""
LEADER_LEAVES = """
import ctypes, json, sys, threading
from kv_core.runtime.process_proof import describe_process
print(json.dumps(describe_process()), flush=True)
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@contextmanager
def child(program: str = DESCRIBE) -> Iterator[tuple[subprocess.Popen[str], dict[str, str | int]]]:
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def dead() -> dict[str, str | int]:
    """What a process said of itself that has been killed and reaped since."""
    with child() as (process, about):
        process.kill()
        process.wait()
        assert is_proven_dead(about)
        return about


def wait_for(condition: object) -> None:
    assert callable(condition)
    pause, end = threading.Event(), monotonic() + LIMIT_S
    while not condition():
        assert monotonic() < end
        pause.wait(0.01)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_living_process_is_not_proven_dead() -> None:
    mine = describe_process()
    assert set(mine) == {"host", "pid", "start"}
    assert mine == describe_process()
    assert not is_proven_dead(mine)


def test_a_killed_process_is_proven_dead_before_and_after_it_is_reaped() -> None:
    with child() as (process, about):
        assert about["pid"] == process.pid
        assert not is_proven_dead(about)
        process.kill()
        wait_for(lambda: is_proven_dead(about))
        assert state_of(process.pid) == "Z"
        process.wait()
        assert is_proven_dead(about)


def test_a_stopped_process_is_not_proven_dead() -> None:
    with child() as (process, about):
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(lambda: state_of(process.pid) == "T")
        assert not is_proven_dead(about)


def test_a_process_whose_first_thread_has_left_is_not_proven_dead() -> None:
    with child(LEADER_LEAVES) as (process, about):
        wait_for(lambda: state_of(process.pid) == "Z")
        assert not is_proven_dead(about)
        assert process.stdin is not None
        process.kill()
        wait_for(lambda: is_proven_dead(about))


def test_a_pid_that_is_used_again_is_proof() -> None:
    with child() as (_, about):
        assert is_proven_dead(about | {"start": int(about["start"]) - 1})


def test_another_host_or_namespace_proves_nothing(dead: dict[str, str | int]) -> None:
    parts = str(dead["host"]).split("/")
    assert len(parts) == 4
    for n in range(4):
        other = [part + "1" if k == n else part for k, part in enumerate(parts)]
        assert not is_proven_dead(dead | {"host": "/".join(other)})


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 0}, {"pid": -1}, {"pid": 2**31}, {"pid": 2**80}, {"pid": "1"}, {"pid": None}, {"pid": True}, {"pid": 1.0},
        {"pid": "../self"}, {"start": -1}, {"start": "1"}, {"start": None}, {"start": 2**64}, {"start": False},
        {"host": ""}, {"host": None}, {"host": 5}, {"host": "x" * 10_000}, {"host": b"x"}, {"host": ["x"]},
    ],
)  # fmt: skip
def test_nonsense_from_the_network_proves_nothing(change: Mapping[str, object], dead: dict[str, str | int]) -> None:
    assert not is_proven_dead({**dead, **change})
    (key,) = change
    assert not is_proven_dead({name: value for name, value in dead.items() if name != key})
    assert not is_proven_dead({})


def test_where_there_is_no_proc_nothing_is_proven(
    dead: dict[str, str | int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert is_proven_dead(dead)
    monkeypatch.setattr(process_proof, "_PROC", tmp_path)
    assert describe_process() == {}
    assert not is_proven_dead(dead)


def test_a_proc_that_hides_living_processes_proves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What /proc looks like with hidepid=2, to a process that may not see the other one.
    monkeypatch.setattr(process_proof, "_PROC", tmp_path)
    monkeypatch.setattr(process_proof, "_host_id", lambda: "here")
    with child() as (process, about):
        assert not is_proven_dead(about | {"host": "here"})
        process.kill()
        process.wait()
        assert is_proven_dead(about | {"host": "here"})


@pytest.mark.parametrize(
    "stat", [b"", b"5", b"5 (a) R 1", b"5 (a) b) Z " + b"x " * 30, b"\xff" * 100, b"5 (a) \xff " + b"1 " * 30]
)
def test_an_unreadable_process_table_proves_nothing(
    stat: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_bytes(stat)
    monkeypatch.setattr(process_proof, "_PROC", tmp_path)
    monkeypatch.setattr(process_proof, "_host_id", lambda: "here")
    assert not is_proven_dead({"host": "here", "pid": 7, "start": 1})


def test_a_name_with_parentheses_does_not_confuse() -> None:
    line = b"7 (evil) Z 1 (x) S " + b" ".join(b"%d" % n for n in range(1, 40))
    assert process_proof._parse_stat(line) == ("S", 19)

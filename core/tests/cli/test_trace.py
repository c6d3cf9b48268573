"""``kv-core demo --trace`` and ``kv-core trace``: real processes, from the rooms to a trace that Perfetto can draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.tests.cli.support import SMALL, Ran, demo, faults, kv_core
from core.tests.observe.chrome_support import check_trace

REQUESTS = 12


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """A run in which one transfer fails, in a folder that is there only then."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    late = faults(kind="late_write", nth=9, seconds=0.2)
    return demo("--requests", str(REQUESTS), "--chunks", "3", "--trace", str(folder), *late), folder


def events_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    return check_trace(json.loads(path.read_text(encoding="utf-8")))


def test_the_demo_traces_both_ranks(traced: tuple[Ran, Path]):
    ran, folder = traced
    assert ran.status == 1, ran
    assert ran.document["trace"] == str(folder / "trace.json")
    assert ran.document["failures_by_reason"] == {"transfer/transport_error": 1}
    assert sorted(path.name.split("-")[0] for path in folder.glob("*.jsonl")) == ["decode", "prefill"]
    events = events_of(folder / "trace.json")
    for pid in (1, 2):
        rooms = [e for e in events["X"] if e["cat"] == "room" and e["pid"] == pid]
        assert len(rooms) == REQUESTS
        assert sum("transfer/transport_error" in e["name"] for e in rooms) == 1
    assert {e["pid"] for e in events["i"] if e["cat"] == "failed"} == {1, 2}
    chunks = [e for e in events["X"] if e["cat"] == "chunk"]
    assert 3 * (REQUESTS - 1) < len(chunks) <= 3 * REQUESTS
    assert [e for e in events["X"] if e["name"] == "drain" and e["pid"] == 1]
    arrows = [e["name"] for e in events["s"]]
    assert arrows.count("metadata") == REQUESTS
    assert arrows.count("done") == REQUESTS - 1


def test_the_command_makes_the_same_of_the_recordings(traced: tuple[Ran, Path], tmp_path: Path):
    _, folder = traced
    output = tmp_path / "again.json"
    ran = kv_core("trace", str(folder), "--output", str(output), "--json")
    assert ran.status == 0, ran
    assert json.loads(output.read_text()) == json.loads((folder / "trace.json").read_text())
    found = ran.document
    assert (found["rooms"], found["failed"], found["sides"], found["damaged_lines"]) == (2 * REQUESTS, 2, 2, 0)
    (clock,) = found["clocks"].values()
    assert (clock["method"], clock["uncertainty_us"]) == ("same clock", 0)
    files = [str(path) for path in folder.glob("*.jsonl")]
    ran = kv_core("trace", *files, "-o", str(output))
    assert ran.status == 0, ran
    assert f"{2 * REQUESTS} rooms of 2 sides, 2 of them failed" in ran.out
    assert "ui.perfetto.dev" in ran.out


def test_a_window_of_it(traced: tuple[Ran, Path], tmp_path: Path):
    _, folder = traced
    events = events_of(folder / "trace.json")
    bad = next(e for e in events["X"] if e["cat"] == "room" and "transport_error" in e["name"])
    output = tmp_path / "one.json"
    ran = kv_core("trace", str(folder), "-o", str(output), "--room", str(bad["args"]["room"]), "--json")
    assert (ran.status, ran.document["rooms"], ran.document["failed"]) == (0, 2, 2), ran
    events_of(output)
    ran = kv_core("trace", str(folder), "-o", str(output), "--from", "0", "--to", "0.000001", "--json")
    assert ran.status == 0, ran
    assert 1 <= ran.document["rooms"] < 2 * REQUESTS
    ran = kv_core("trace", str(folder), "-o", str(tmp_path / "none.json"), "--from", "3600")
    assert ran.status == 3, ran
    assert "none of them in the window" in ran.err
    assert not (tmp_path / "none.json").exists()


def test_what_is_damaged_is_said_and_the_rest_is_shown(traced: tuple[Ran, Path], tmp_path: Path):
    _, folder = traced
    source = next(folder.glob("prefill-*.jsonl"))
    lines = source.read_bytes().splitlines(keepends=True)
    lines[3] = b"this was a room once\n"
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"".join(lines)[:-20])
    ran = kv_core("trace", str(path), "-o", str(tmp_path / "t.json"), "--json")
    assert ran.status == 1, ran
    assert (ran.document["damaged_lines"], ran.document["torn_lines"]) == (1, 1)
    events_of(tmp_path / "t.json")


def test_bad_arguments_are_said(tmp_path: Path):
    ran = kv_core("trace", str(tmp_path / "nothing.jsonl"), "--json")
    assert ran.status == 2, ran
    assert "is not there" in ran.document["error"]
    (tmp_path / "x.jsonl").write_text("hello\n")
    ran = kv_core("trace", str(tmp_path))
    assert ran.status == 2, ran
    assert "is no recording" in ran.err
    ran = kv_core("trace")
    assert ran.status == 2, ran


def test_recordings_of_two_runs_are_not_mixed(traced: tuple[Ran, Path]):
    _, folder = traced
    ran = kv_core("demo", *SMALL, "--requests", "2", "--trace", str(folder))
    assert ran.status == 2, ran
    assert "has recordings of another run" in ran.err


def test_a_folder_that_can_not_be_is_said():
    ran = kv_core("demo", *SMALL, "--requests", "2", "--trace", "/dev/null/x")
    assert ran.status == 2, ran
    assert "no folder can be made there" in ran.err


def test_a_killed_ranks_rooms_are_there_up_to_its_death(tmp_path: Path):
    ran = demo(
        "--requests", "60", "--concurrency", "24", "--kill", "decode", "--trace", str(tmp_path / "t"), "--pages", "64"
    )
    assert ran.status == 0, ran
    assert len(list((tmp_path / "t").glob("decode-*.jsonl"))) == 2
    events = events_of(tmp_path / "t" / "trace.json")
    names = [e["args"]["name"] for e in events["M"] if e["name"] == "process_name"]
    assert [name.split(":")[0] for name in names] == ["prefill", "decode", "decode"]
    assert any(e["cat"] == "failed" for e in events["i"])

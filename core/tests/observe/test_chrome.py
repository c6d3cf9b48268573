"""The trace: rooms with their stages, chunks that overlap, failures with their reason, arrows between the sides."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from core.tests.observe.chrome_support import SECOND, check_trace, record, served
from core.tests.protocol.support import Bench
from kv_core.cli.trace_cmd_run import Window, build
from kv_core.observe.recordings import Recordings, read
from kv_core.observe.rows import rows


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """Two good rooms one after the other, and one whose chunk failed, which took a second to be quiet."""
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode()
    bench.meet(decode)
    prefill.told.clear()
    decode.told.clear()
    served(bench, prefill, decode, [1, 2], wire_s=0.4)
    bad, target = bench.bound(prefill, decode, 9, 7, 8)
    prefill.send(bad, 1)
    chunk = prefill.claim()
    bench.pass_time(0.5)
    prefill.do(prefill.machine.chunk_failed, chunk, "the cable is out", quiescent=False)
    bench.pass_time(1.0)
    prefill.do(prefill.machine.chunk_quiescent, chunk)
    bench.pump()
    assert target.release_safe
    return read([record(monkeypatch, tmp_path / f"{rank.name}.jsonl", rank) for rank in (prefill, decode)])


def slices(events: dict[str, list[dict[str, Any]]], **wanted: Any) -> list[dict[str, Any]]:
    """Slices with these values."""
    return [event for event in events["X"] if wanted.items() <= event.items()]


def test_both_sides_on_one_time_line(found: Recordings):
    shown, trace = build(found, Window())
    events = check_trace(trace)
    assert len(shown) == 6
    names = {e["pid"]: e["args"]["name"] for e in events["M"] if e["name"] == "process_name"}
    assert [names[pid].split(":")[0] for pid in sorted(names)] == ["prefill", "decode"]
    for pid in (1, 2):
        assert [e["name"] for e in slices(events, pid=pid, cat="room")] == [
            "room 1", "room 2", "room 9: transfer/transport_error",
        ]  # fmt: skip
    first = min(slices(events, cat="room"), key=lambda e: e["ts"])
    assert first["ts"] == 0
    prefill = slices(events, pid=1, cat="room", name="room 1")[0]
    assert prefill["dur"] == pytest.approx((0.1 + 0.1 + 0.8 + 0.1 - 0.1) * SECOND, abs=0.2 * SECOND)
    assert prefill["args"]["transfer_total_bytes"] == 200


def test_stages_follow_each_other(found: Recordings):
    events = check_trace(build(found, Window())[1])
    prefill = slices(events, pid=1, cat="room", name="room 1")[0]
    decode = slices(events, pid=2, cat="room", name="room 1")[0]
    for room, known in ((prefill, ["bootstrap", "transfer"]), (decode, ["queue", "transfer"])):
        inside = [
            e for e in slices(events, pid=room["pid"], cat="stage")
            if room["ts"] <= e["ts"] and e["ts"] + e["dur"] <= room["ts"] + room["dur"] + 0.001
        ]  # fmt: skip
        assert [e["name"] for e in inside if e["name"] in known] == known
        assert sum(e["dur"] for e in inside) == pytest.approx(room["dur"], abs=0.01), "no time is left out"
        for before, after in pairwise(inside):
            assert before["ts"] + before["dur"] == pytest.approx(after["ts"], abs=0.01)


def test_chunks_overlap_on_rows_of_their_own(found: Recordings):
    events = check_trace(build(found, Window())[1])
    chunks = slices(events, cat="chunk")
    first, second = [e for e in chunks if e["args"]["room"] == 1]
    assert first["tid"] != second["tid"]
    assert first["ts"] < second["ts"] + second["dur"]
    assert second["ts"] < first["ts"] + first["dur"]
    assert {e["args"]["bytes"] for e in (first, second)} == {100}
    assert {e["args"]["pages"] for e in (first, second)} == {1}
    assert {e["pid"] for e in chunks} == {1}
    rows_of = {e["tid"]: e["args"]["name"] for e in events["M"] if e["name"] == "thread_name" and e["pid"] == 1}
    assert rows_of == {1001: "rooms 1", 1002: "rooms 1: chunks 1", 1003: "rooms 1: chunks 2"}


def test_a_failure_says_why_on_both_sides_and_its_drain_is_seen(found: Recordings):
    events = check_trace(build(found, Window())[1])
    failures = [e for e in events["i"] if e["cat"] == "failed"]
    assert {e["pid"] for e in failures} == {1, 2}
    assert {e["name"] for e in failures} == {"failed: transfer/transport_error"}
    assert {e["args"]["message"] for e in failures} == {"the cable is out"}
    (drain,) = slices(events, pid=1, name="drain")
    assert drain["dur"] == pytest.approx(1.0 * SECOND, rel=0.01)
    (chunk,) = [e for e in slices(events, cat="chunk") if e["args"]["room"] == 9]
    assert not chunk["args"]["landed"]


def test_arrows_join_the_sides(found: Recordings):
    events = check_trace(build(found, Window())[1])
    arrows = [e["name"] for e in events["s"]]
    assert {name: arrows.count(name) for name in set(arrows)} == {
        "announce": 3, "metadata": 3, "bound": 3, "done": 2, "verdict": 2,
    }  # fmt: skip
    sides = {(e["name"], e["pid"]) for e in events["s"]}
    assert sides == {("announce", 2), ("metadata", 2), ("verdict", 2), ("bound", 1), ("done", 1)}


def test_a_window_in_time_and_one_room(found: Recordings):
    shown, trace = build(found, Window(room=9))
    assert {room.end.room for room in shown} == {9}
    events = check_trace(trace)
    assert min(e["ts"] for e in events["X"]) == 0
    begin = min(room.start_s for room in found.rooms)
    second = min(room.start_s for room in found.rooms if room.end.room == 2) - begin
    shown, _ = build(found, Window(stop_s=second - 0.01))
    assert {room.end.room for room in shown} == {1}
    last = max(room.stop_s for room in found.rooms if room.end.room == 2) - begin
    shown, _ = build(found, Window(start_s=last + 0.01))
    assert {room.end.room for room in shown} == {9}
    shown, trace = build(found, Window(room=12345))
    assert shown == []
    check_trace(trace)


def test_the_trace_says_how_the_clocks_were_brought_together(found: Recordings):
    _, trace = build(found, Window())
    assert trace["otherData"]["clocks"] == {"boot": {"offset_s": 0.0, "method": "same clock", "uncertainty_us": 0.0}}


def test_as_few_rows_as_can_be():
    assert rows([]) == []
    assert rows([(0, 2), (1, 3), (2, 4), (3, 5)]) == [0, 1, 0, 1]
    assert rows([(5, 6), (0, 9), (1, 2)]) == [1, 0, 1]
    assert rows([(0, 0), (0, 0)]) in ([0, 1], [0, 0])

"""What a trace has to be for Perfetto and Chrome to draw it; and recordings made of what machines on a bench have told."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.tests.protocol.support import Bench, Rank
from kv_core.contract.records import RoomEvent
from kv_core.observe import flight
from kv_core.observe.flight import FlightRecorder, Header
from kv_core.protocol.rooms import Room

SECOND = 1e6
SLACK_US = 0.002


def check_trace(trace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Its events by kind. Asserts that they are well-formed, that slices nest, and that arrows have slices at both ends."""
    trace = json.loads(json.dumps(trace, allow_nan=False))
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid", "tid", "ts"} <= set(event), event
        assert isinstance(event["pid"], int), event
        assert isinstance(event["tid"], int), event
        assert event["ts"] >= 0, event
        by_kind[event["ph"]].append(event)
    assert set(by_kind) <= {"X", "i", "M", "s", "f"}
    assert all(event["dur"] >= 0 and isinstance(event["args"], dict) for event in by_kind["X"])
    assert all(event["s"] == "t" for event in by_kind["i"])
    _named(by_kind)
    _nested(by_kind["X"])
    _bound(by_kind)
    return by_kind


def _named(by_kind: dict[str, list[dict[str, Any]]]) -> None:
    named = {(e["name"], e["pid"], e["tid"]) for e in by_kind["M"]}
    for event in by_kind["X"]:
        assert ("process_name", event["pid"], 0) in named
        assert ("thread_name", event["pid"], event["tid"]) in named


def _nested(slices: list[dict[str, Any]]) -> None:
    rows = defaultdict(list)
    for event in slices:
        rows[event["pid"], event["tid"]].append((event["ts"], -event["dur"], event["name"]))
    for row in rows.values():
        open_until: list[tuple[float, str]] = []
        for start, length, name in sorted(row):
            while open_until and open_until[-1][0] <= start + SLACK_US:
                open_until.pop()
            stop = start - length
            assert not open_until or stop <= open_until[-1][0] + SLACK_US, f"{name} sticks out of {open_until[-1][1]}"
            open_until.append((stop, name))


def _bound(by_kind: dict[str, list[dict[str, Any]]]) -> None:
    starts = {event["id"]: event for event in by_kind["s"]}
    stops = {event["id"]: event for event in by_kind["f"]}
    assert len(starts) == len(by_kind["s"])
    assert starts.keys() == stops.keys()
    for number, start in starts.items():
        stop = stops[number]
        assert (start["cat"], start["name"], stop["bp"]) == (stop["cat"], stop["name"], "e")
        assert start["ts"] <= stop["ts"] + SLACK_US, f"{start['name']} arrives before it is sent"
        for end in (start, stop):
            assert any(
                (e["pid"], e["tid"]) == (end["pid"], end["tid"]) and e["ts"] <= end["ts"] <= e["ts"] + e["dur"]
                for e in by_kind["X"]
            ), f"nothing to hang {end} on"


# -- recordings --------------------------------------------------------------------------------------------------------


def record(
    monkeypatch: pytest.MonkeyPatch, path: Path, rank: Rank, *, clock: str = "boot", shift_s: float = 0.0,
    wall_error_s: float = 0.0, **more: Any,
) -> Path:  # fmt: skip
    """Write what a rank told into a recording of a machine whose clock shows ``shift_s`` more, and whose wall clock is wrong."""
    real = flight.read_clock()
    header = Header(
        real.schema, real.core, f"host-{clock}", 4_000, clock, 1_000.0 + shift_s, 1_700_000_000.0 + wall_error_s
    )  # fmt: skip
    monkeypatch.setattr(flight, "read_clock", lambda: header)
    with FlightRecorder(path, **more) as recorder:
        for event in rank.told:
            recorder.kv_room_event(shifted(event, shift_s))
    return path


def shifted(event: RoomEvent, by_s: float) -> RoomEvent:
    """The event as a machine with another clock would have it."""

    def moved(moment: tuple[Any, ...]) -> tuple[Any, ...]:
        if moment[1] == "landed":
            return (moment[0] + by_s, *moment[1:5], moment[5] + by_s, moment[6] + by_s, *moment[7:])
        return (moment[0] + by_s, *moment[1:])

    return replace(event, time_s=event.time_s + by_s, history=tuple(map(moved, event.history)))


def served(bench: Bench, prefill: Rank, decode: Rank, rooms: Iterable[int], *, wire_s: float = 0.002) -> list[Room]:
    """Rooms of two overlapping chunks; each step takes its time, and each message too."""

    def step() -> None:
        bench.now += wire_s / 4
        bench.pump()

    made = []
    for number in rooms:
        target = decode.open(number)
        decode.init(target)
        step()
        source = prefill.open(number)
        prefill.init(source, 2)
        step()
        decode.offer(target, 7, 8)
        step()
        prefill.send(source, 1)
        prefill.send(source, 2)
        first, second = prefill.claim(), prefill.claim()
        bench.now += wire_s
        prefill.land(second)
        bench.now += wire_s
        prefill.land(first)
        step()
        prefill.clear(source)
        decode.clear(target)
        made += [source, target]
    return made

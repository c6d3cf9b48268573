"""Two machines' clocks on one time line: messages say how far they are apart, and how well that is known."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from core.tests.observe.chrome_support import record, served
from core.tests.protocol.support import Bench, Rank
from kv_core.observe.clocks import MESSAGES, SAME, WALL, Bounds, align
from kv_core.observe.recordings import Clock, Recordings, read


def two_sides() -> tuple[Rank, Rank]:
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode()
    bench.meet(decode)
    served(bench, prefill, decode, range(1, 6))
    return prefill, decode


def recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prefill: Rank, decode: Rank, *, clock: str, shift_s: float
) -> Recordings:
    """Decode's wall clock is half a minute off, to see that it is not believed."""
    files = [
        record(monkeypatch, tmp_path / "p.jsonl", prefill, clock="one"),
        record(monkeypatch, tmp_path / "d.jsonl", decode, clock=clock, shift_s=shift_s, wall_error_s=30.0),
    ]
    return read(files)


def test_one_clock_needs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = recorded(monkeypatch, tmp_path, *two_sides(), clock="one", shift_s=0.0)
    placed = align(found.clocks, found.rooms)
    assert {name: (place.offset_s, place.method) for name, place in placed.items()} == {"one": (0.0, SAME)}


@pytest.mark.parametrize("shift_s", [0.0, 5_000.0, -900.0, 0.0001])
def test_messages_place_another_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shift_s: float):
    found = recorded(monkeypatch, tmp_path, *two_sides(), clock="two", shift_s=shift_s)
    placed = align(found.clocks, found.rooms)
    apart = placed["two"].offset_s - placed["one"].offset_s
    place = placed["two"] if placed["two"].method == MESSAGES else placed["one"]
    assert place.method == MESSAGES
    assert place.uncertainty_s is not None
    assert place.uncertainty_s < 0.002, "a message takes half a millisecond here"
    assert abs(apart + shift_s) <= place.uncertainty_s + 1e-9


def test_without_messages_the_wall_clocks_are_all_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    prefill, decode = two_sides()
    prefill.told = [event for event in prefill.told if event.room > 5]  # none of decode's rooms
    found = recorded(monkeypatch, tmp_path, prefill, decode, clock="two", shift_s=100.0)
    found.rooms = [room for room in found.rooms if room.end.room <= 5] + [
        room for room in found.rooms if room.end.room > 5
    ]
    placed = align(found.clocks, [room for room in found.rooms if room.end.room <= 5])
    assert placed["two"].method == SAME, "the first room's clock"
    assert placed["one"].method == WALL
    assert placed["one"].uncertainty_s is None
    assert placed["one"].offset_s == pytest.approx(100.0 - 30.0)


def test_bounds_that_contradict_each_other_leave_their_middle():
    assert Bounds(1.0, 3.0).settle(50.0).offset_s == 2.0
    place = Bounds(3.0, 1.0).settle(0.0)
    assert (place.offset_s, place.uncertainty_s, place.method) == (2.0, 1.0, MESSAGES)
    assert Bounds(low=5.0).settle(1.0).offset_s == 5.0
    assert Bounds(high=5.0).settle(9.0).offset_s == 5.0
    assert Bounds().settle(9.0).offset_s == 9.0


def test_nothing_to_align():
    assert align({}, []) == {}
    assert align({"a": Clock("a", 0.0)}, [])["a"].method == SAME


def test_the_truth_lies_within_what_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Random delays on the way, and a random shift: the claimed uncertainty is kept, whatever they are."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for attempt in range(20):
        bench = Bench()
        prefill, decode = bench.prefill(), bench.decode()
        bench.meet(decode)
        for number in range(1, rng.randrange(2, 5)):
            served(bench, prefill, decode, [number], wire_s=rng.choice((1e-5, 1e-3, 0.3)))
        shift = rng.uniform(-1e4, 1e4)
        folder = tmp_path / str(attempt)
        folder.mkdir()
        found = recorded(monkeypatch, folder, prefill, decode, clock="two", shift_s=shift)
        placed = align(found.clocks, found.rooms)
        sure = max(place.uncertainty_s or 0.0 for place in placed.values())
        assert abs(placed["two"].offset_s - placed["one"].offset_s + shift) <= sure + 1e-6, f"seed {seed}"

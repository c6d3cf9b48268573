"""A room's history: what is kept of it, what the machines write, and what an operator is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.tests.protocol.support import SHORT, Bench, Rank
from kv_core.contract.config import MIN_HISTORY, TransferConfig
from kv_core.contract.failures import InvalidConfig
from kv_core.contract.moments import MOMENTS, SKIPPED, named, timeline
from kv_core.contract.records import RoomEvent, RoomEventKind
from kv_core.protocol.history import KEPT_ENDED, History
from kv_core.protocol.rooms import Room


def whats(event: RoomEvent) -> list[str]:
    """The kinds of an event's moments, phases by their names."""
    return [moment[2] if moment[1] == "phase" else moment[1] for moment in event.history]


def only(rank: Rank, room: Room, kind: RoomEventKind) -> RoomEvent:
    """The one event of this kind."""
    (event,) = [each for each in rank.told if each.life == room.life and each.kind is kind]
    return event


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 8, 9, 64])
@pytest.mark.parametrize("count", [0, 1, 4, 8, 9, 10, 70, 10_000])
def test_the_first_and_the_last_are_kept(size: int, count: int):
    history = History(size)
    for number in range(count):
        history.add((float(number), "x", number))
    kept = history.frozen()
    if count <= size:
        assert [moment[2] for moment in kept] == list(range(count))
        return
    first, last = size // 2, size - size // 2
    assert [moment[2] for moment in kept[:first]] == list(range(first))
    assert kept[first] == (float(count - last), SKIPPED, count - size)
    assert [moment[2] for moment in kept[first + 1 :]] == list(range(count - last, count))


@pytest.mark.parametrize("told", [0, 1, 3, 4, 7, 8, 9, 30])
@pytest.mark.parametrize("more", [0, 1, 2, 4, 5, 9, 40])
def test_what_came_after_the_end_is_told_once(told: int, more: int):
    history = History(8)
    for number in range(told):
        history.add((float(number), "x", number))
    before = history.tell()
    for number in range(told, told + more):
        history.add((float(number), "x", number))
    rest = history.tell_rest()
    skipped = sum(moment[2] for moment in rest if moment[1] == SKIPPED)
    numbers = [moment[2] for moment in rest if moment[1] != SKIPPED]
    assert len(numbers) + skipped == more
    assert numbers == sorted(numbers)
    assert all(number >= told for number in numbers)
    assert not more or numbers[-1] == told + more - 1
    assert len(before) <= 9


def test_the_size_is_none_or_enough():
    assert TransferConfig(flight_recorder=0).flight_recorder == 0
    assert TransferConfig(flight_recorder=MIN_HISTORY).flight_recorder == MIN_HISTORY
    for wrong in (-1, 1, MIN_HISTORY - 1):
        with pytest.raises(InvalidConfig, match=f"flight_recorder is {wrong}, must be at least 8, or 0"):
            TransferConfig(flight_recorder=wrong)


# -- what the machines write -------------------------------------------------------------------------------------------


def test_a_good_room_on_both_sides():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode, 5, 7, 8)
    prefill.send(source, 1)
    prefill.send(source, 2)
    first, second = prefill.claim(), prefill.claim()
    prefill.land(second)
    prefill.land(first)
    bench.pump()
    event = only(prefill, source, RoomEventKind.CONCLUDED)
    assert whats(event) == [
        "opened", "pages", "announced", "metadata", "ready", "handed", "handed", "posted", "moving", "posted", "landed",
        "landed", "confirming", "verdict", "success",
    ]  # fmt: skip
    values = [named(moment) for moment in event.history]
    assert values[1] == {"pages": 2}
    assert values[3] == {"peer": "d.1", "peer_life": target.life, "pages": 2, "prefix": 0}
    assert [each["chunk"] for each in values[10:12]] == [1, 0]
    assert values[10]["bytes"] == 100
    assert values[10]["stopped_s"] - values[10]["started_s"] == pytest.approx(0.1)
    told = only(decode, target, RoomEventKind.CONCLUDED)
    assert whats(told) == [
        "opened", "init", "linked", "ready", "named", "offered", "bound", "moving", "done", "verifying", "success",
    ]  # fmt: skip
    assert named(told.history[6]) == {"peer": "p.1", "peer_life": source.life}
    assert named(told.history[8])["chunks"] == 2
    assert (event.instance, told.instance) == ("p.1", "d.1")
    for rank, room in ((prefill, source), (decode, target)):
        assert whats(only(rank, room, RoomEventKind.RELEASED)) == ["released"]
        others = [e for e in rank.told if e.kind not in {RoomEventKind.CONCLUDED, RoomEventKind.RELEASED}]
        assert all(e.history == () for e in others)


def test_a_failed_room_ends_with_its_failure_and_then_says_how_it_drained():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode, 5, 7, 8)
    prefill.send(source, 1)
    chunk = prefill.claim()
    prefill.do(prefill.machine.chunk_failed, chunk, "the cable is out", quiescent=False)
    bench.pump()
    for rank, room in ((prefill, source), (decode, target)):
        event = only(rank, room, RoomEventKind.CONCLUDED)
        assert event.history[-1][1:] == ("failed", "transfer", "transport_error", "fabric", "the cable is out")
    bench.pass_time(0.5)
    prefill.do(prefill.machine.chunk_quiescent, chunk)
    bench.pump()
    released = only(prefill, source, RoomEventKind.RELEASED)
    assert whats(released) == ["chunk_quiet", "released"]
    assert released.history[-1][0] - only(prefill, source, RoomEventKind.CONCLUDED).time_s == pytest.approx(0.5)
    event = only(decode, target, RoomEventKind.RELEASED)
    assert whats(event) == ["proof", "released"]
    assert "acknowledged" in event.history[0][3]


def test_a_room_that_never_was_has_a_history_too():
    bench = Bench()
    prefill = bench.prefill()
    room = prefill.open(-3)
    event = only(prefill, room, RoomEventKind.CONCLUDED)
    assert whats(event) == ["opened", "failed"]


def test_a_room_that_can_not_find_prefill_says_why_once():
    bench = Bench()
    bench.prefill()
    decode = bench.decode()
    bench.route = None
    room = decode.open()
    decode.init(room)
    from kv_core.protocol.nodes import RouteError

    for _ in range(5):
        decode.do(decode.machine.on_route, "boot:8998", RouteError("connection refused", fatal=False))
    decode.abort(room)
    assert whats(only(decode, room, RoomEventKind.CONCLUDED)) == ["opened", "init", "trouble", "failed"]


def test_a_room_of_ten_thousand_chunks_has_a_short_history():
    bench = Bench()
    prefill, decode = bench.pair()
    source, _ = bench.bound(prefill, decode, 5, *([7] * 10_000))
    for _ in range(10_000):
        prefill.send(source, 1)
        prefill.land()
    bench.pump()
    event = only(prefill, source, RoomEventKind.CONCLUDED)
    assert len(event.history) == SHORT.flight_recorder + 1
    assert whats(event)[:5] == ["opened", "pages", "announced", "metadata", "ready"]
    assert whats(event)[-3:] == ["confirming", "verdict", "success"]
    (skipped,) = [moment for moment in event.history if moment[1] == SKIPPED]
    assert skipped[2] == 30_000 + 9 - SHORT.flight_recorder


def test_off_nothing_is_kept():
    bench = Bench()
    off = replace(SHORT, flight_recorder=0)
    prefill, decode = bench.prefill(settings=off), bench.decode(settings=off)
    bench.meet(decode)
    source, target = bench.bound(prefill, decode, 5, 7)
    prefill.send(source, 1)
    prefill.land()
    bench.pump()
    assert source.history is target.history is None
    assert all(event.history == () for rank in (prefill, decode) for event in rank.told)
    assert prefill.machine.flight.entries([source], None, 10) == []


# -- the record of a manager -------------------------------------------------------------------------------------------


def test_the_record_has_live_rooms_and_those_that_ended_last():
    bench = Bench()
    prefill, decode = bench.pair()
    for number in range(1, 4):
        bench.bound(prefill, decode, number, 7)
    machine = prefill.machine
    before = len(machine.flight.entries([], None, 1_000))
    entries = machine.flight.entries(machine.live.values(), None, 1_000)
    assert [entry.number for entry in entries[:3]] == [1, 2, 3]
    assert {entry.phase for entry in entries[:3]} == {"ready"}
    assert [e.number for e in machine.flight.entries(machine.live.values(), 2, 1_000)] == [2]
    assert len(machine.flight.entries(machine.live.values(), None, 2)) == 2 + min(2, before)
    prefill.abort(machine.table[2])
    bench.pump()
    (entry,) = machine.flight.entries(machine.live.values(), 2, 1_000)
    assert (entry.phase, entry.released) == ("failed", True)
    assert entry.moments[-1][1] == "released"


def test_good_ends_do_not_push_out_bad_ones():
    bench = Bench()
    prefill, decode = bench.pair()
    bad, _ = bench.bound(prefill, decode, 1, 7)
    prefill.abort(bad)
    bench.pump()
    for number in range(2, 2 + KEPT_ENDED + 20):
        source, target = bench.bound(prefill, decode, number, 7)
        prefill.send(source, 1)
        prefill.land()
        bench.pump()
        prefill.clear(source)
        decode.clear(target)
    entries = prefill.machine.flight.entries([], None, 1_000)
    assert sum(entry.phase == "success" for entry in entries) == KEPT_ENDED
    assert 1 in {entry.number for entry in entries}


def test_a_timeline_is_json_with_names():
    moments = ((10.0, "opened"), (10.0015, "posted", 3, "p"), (10.25, "unheard of", 1))
    assert timeline(moments, 10.0) == [
        {"ms": 0.0, "what": "opened"}, {"ms": 1.5, "what": "posted", "chunk": 3, "peer": "p"},
        {"ms": 250.0, "what": "unheard of"},
    ]  # fmt: skip
    assert all(isinstance(names, tuple) for names in MOMENTS.values())

"""Recordings: written and read back, bounded, and what is made of those that are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.tests.observe.chrome_support import record, served
from core.tests.protocol.support import Bench
from kv_core.contract.failures import InvalidConfig, MessageError
from kv_core.contract.records import RoomEventKind
from kv_core.observe import FlightRecorder
from kv_core.observe.recordings import crossings, find, peers, read


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_written_is_read(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prefill, decode = bench.prefill(), bench.decode()
    bench.meet(decode)
    served(bench, prefill, decode, range(1, 4))
    bad, target = bench.bound(prefill, decode, 9, 7)
    prefill.send(bad, 1)
    prefill.claim()
    decode.abort(target, "the client hung up: \u2028 \x00 'quoted'")
    bench.pump()
    path = record(monkeypatch, tmp_path / "prefill.jsonl", prefill)
    found = read([path])
    ends = {event.life: event for event in prefill.told if event.kind is RoomEventKind.CONCLUDED}
    assert {room.end.life: room.end for room in found.rooms} == ends
    assert (found.damaged, found.torn) == (0, 0)
    assert found.clocks["boot"].wall_offset_s == pytest.approx(1_700_000_000.0 - 1_000.0)
    assert all(room.source.pid == 4_000 for room in found.rooms)
    (last,) = [room for room in found.rooms if room.end.room == 9]
    assert last.end.failure is not None
    assert "the client hung up: \u2028" in last.end.failure.message


def test_a_release_is_written_where_it_is_news(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prefill, decode = bench.prefill(), bench.decode()
    bench.meet(decode)
    served(bench, prefill, decode, [1])
    bad, _ = bench.bound(prefill, decode, 9, 7)
    prefill.send(bad, 1)
    chunk = prefill.claim()
    prefill.abort(bad, "enough")
    bench.pass_time(1.0)
    prefill.do(prefill.machine.chunk_quiescent, chunk)
    found = read([record(monkeypatch, tmp_path / "prefill.jsonl", prefill)])
    good, bad_room = (next(room for room in found.rooms if room.end.room == number) for number in (1, 9))
    assert good.released is None
    assert bad_room.released is not None
    assert bad_room.stop_s - bad_room.end.time_s == pytest.approx(1.0)
    assert [moment[1] for moment in bad_room.moments[-3:]] == ["failed", "chunk_quiet", "released"]


def test_both_sides_of_a_room_are_brought_together(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prefill, decode = bench.prefill(), bench.decode()
    bench.meet(decode)
    served(bench, prefill, decode, [1, 2])
    served(bench, prefill, decode, [1])  # the number once more: another life
    files = [record(monkeypatch, tmp_path / f"{rank.name}.jsonl", rank) for rank in (prefill, decode)]
    found = read(find([tmp_path]))
    assert find([tmp_path]) == sorted(files)
    known = {room.key: room for room in found.rooms}
    pairs = [(room, other) for room in found.rooms for other in peers(room, known)]
    assert [(a.end.room, b.end.room) for a, b in pairs if a.end.room < 10] == [(1, 1), (2, 2), (1, 1)]
    assert len({a.key for a, _ in pairs}) == len({b.key for _, b in pairs}) == len(pairs)
    for prefill_room, decode_room in pairs:
        if prefill_room.end.failure is not None:
            continue
        found_crossings = crossings(prefill_room, decode_room)
        assert {(each.name, each.down) for each in found_crossings} == {
            ("announce", False), ("metadata", False), ("verdict", False), ("bound", True), ("done", True),
        }  # fmt: skip
        assert all(each.sent_s <= each.received_s for each in found_crossings)


def test_the_file_is_bounded(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prefill, decode = bench.prefill(), bench.decode()
    bench.meet(decode)
    served(bench, prefill, decode, range(1, 200))
    limit = 20_000
    path = record(monkeypatch, tmp_path / "p.jsonl", prefill, max_bytes=limit)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["p.jsonl", "p.jsonl.1"]
    assert all(file.stat().st_size <= limit for file in files)
    rooms = [room.end.room for room in read(find([tmp_path])).rooms]
    assert rooms == list(range(200 - len(rooms), 200)), "the last ones, without a gap"
    assert len(rooms) > len(read([path]).rooms)


def test_a_line_that_was_cut_off_is_no_damage_and_any_other_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prefill, decode = bench.prefill(), bench.decode()
    bench.meet(decode)
    served(bench, prefill, decode, range(1, 4))
    path = record(monkeypatch, tmp_path / "p.jsonl", prefill)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    found = read([path])
    assert (found.damaged, found.torn) == (0, 1)
    lines = whole.splitlines(keepends=True)
    lines.insert(2, b'{"kind": "concluded"}\n')
    lines.insert(3, b"\xff\xfe\n")
    path.write_bytes(b"".join(lines))
    found = read([path])
    assert (found.damaged, found.torn) == (2, 0)
    assert {room.end.room for room in found.rooms} >= {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hello\n", "is no recording"),
        ("{}\n", "is no recording"),
        (
            '{"recording":"kv-core-flight","schema":2,"core":"9","host":"h","pid":1,"clock":"","monotonic_s":1,"wall_s":1}\n',
            "schema 2, this kv-core reads up to 1",
        ),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str, why: str):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(MessageError, match=why):
        read([path])


def test_what_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(MessageError, match="is not there"):
        find([tmp_path / "nothing"])
    with pytest.raises(MessageError, match="has no recordings in it"):
        find([tmp_path])


@pytest.mark.parametrize("place", ["no/such/folder/x.jsonl", ""])
def test_a_file_that_can_not_be_written_is_said_at_once(tmp_path: Path, place: str):
    with pytest.raises(InvalidConfig, match="can't write"):
        FlightRecorder(tmp_path / place)


def test_a_full_disk_is_said_at_once():
    with pytest.raises(InvalidConfig, match="No space left"):
        FlightRecorder("/dev/full")

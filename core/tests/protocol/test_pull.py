"""Pull: decode reads what prefill names. What is said in which order, and when each side's pages may be reused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.tests.protocol.support import SHORT, Bench, Rank, at_rest, pages
from kv_core.contract.enums import Direction, FailureCode, FailureStage
from kv_core.protocol import effects as fx
from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import ChunkResult
from kv_core.protocol.lifecycle import Phase
from kv_core.protocol.rooms import Room

READ = Direction.READ


def met(**more: Any) -> tuple[Bench, Rank, Rank]:
    bench = Bench()
    return bench, *bench.pair(direction=READ, **more)


def reading(bench: Bench, prefill: Rank, decode: Rank) -> tuple[Room, Room, Any]:
    """A room of one chunk, which decode has begun to read."""
    source, target = bench.bound(prefill, decode)
    prefill.send(source, 1, 2)
    prefill.show()
    bench.pump()
    chunk = decode.claim()
    assert chunk is not None
    return source, target, chunk


def finish(bench: Bench, prefill: Rank, decode: Rank, *rooms: Room) -> None:
    for room, rank in zip(rooms, (prefill, decode), strict=True):
        assert room.release_safe, rank.machine.snapshot()["quarantined"]
        rank.clear(room)
    bench.pass_time(2)
    at_rest(prefill, decode)


def test_a_room_from_its_opening_to_success_on_both_sides():
    bench, prefill, decode = met()
    source, target = prefill.open(), decode.open()
    prefill.init(source, 3, aux=4)
    decode.init(target)
    decode.offer(target, 7, 8, 9, aux=5, mamba=pages(3, 4))
    bench.pump()
    prefill.send(source, 1, layers=range(2))
    prefill.send(source, 1, layers=range(2, 3))
    prefill.send(source, 2, 6, mamba=pages(11, 12))
    for _ in range(3):
        prefill.show()
    bench.pump()
    first, _, last = told = prefill.messages(msg.Readable)
    assert [chunk.number for chunk in told] == [0, 1, 2]
    assert (first.layers, last.layers, last.start, last.aux_index) == ((0, 2), None, 1, 4)
    assert last.states["mamba"][1].array().tolist() == [11, 12]
    assert [chunk.pulled for chunk in decode.chunks] == [True] * 3
    mine = decode.chunks[2]
    assert (mine.local.tolist(), mine.remote.tolist(), mine.start, mine.aux) == ([7, 8, 9], [2, 6], 1, (5, 4))
    start, here, there = mine.states["mamba"]
    assert (start, here.tolist(), there.tolist()) == (0, [3, 4], [11, 12])
    for _ in range(3):
        assert source.phase is Phase.MOVING
        decode.land()
        bench.pump()
    assert source.phase is target.phase is Phase.SUCCESS
    assert source.metric.transfer_total_bytes == target.metric.transfer_total_bytes == 300
    assert source.metric.transfer_latency_s == target.metric.transfer_latency_s == pytest.approx(0.1)
    assert source.metric.chunks == target.metric.chunks == 3
    finish(bench, prefill, decode, source, target)


def test_directions_that_differ_are_refused_with_both_values():
    bench = Bench()
    prefill, decode = bench.prefill(direction=READ), bench.decode()
    source, target = prefill.open(), decode.open()
    decode.init(target)
    bench.pump()
    for room in (source, target):
        assert room.failure is not None
        assert (room.failure.stage, room.failure.code) == (FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE)
        assert "direction (prefill 'read', decode 'write')" in room.failure.message


def test_a_peer_that_tells_no_direction_writes():
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode(direction=READ)
    del prefill.machine.me.introduction.fields["direction"]  # an older one
    target = decode.open()
    decode.init(target)
    bench.pump()
    assert target.failure is not None
    assert "direction" in target.failure.message
    assert "'write'" in target.failure.message


# -- who waits for whom ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_an_abort_while_decode_reads(side: str):
    bench, prefill, decode = met()
    source, target, chunk = reading(bench, prefill, decode)
    (prefill if side == "prefill" else decode).abort(source if side == "prefill" else target)
    bench.pump()
    assert source.failure is not None
    assert target.failure is not None
    assert source.failure.message == target.failure.message
    assert not target.release_safe, "its own reads are under way"
    assert not source.release_safe, "decode has not said that it reads no more"
    assert "its reads have ended" in prefill.machine.snapshot()["quarantined"][0]["missing"][0]
    decode.do(decode.machine.chunk_failed, chunk, "cancelled", quiescent=False)
    bench.pump()
    assert not target.release_safe
    assert not source.release_safe
    decode.do(decode.machine.chunk_quiescent, chunk)
    assert target.release_safe
    assert not source.release_safe
    bench.pump()
    finish(bench, prefill, decode, source, target)


def test_a_read_that_failed_fails_the_room_on_both_sides():
    bench, prefill, decode = met()
    source, target, chunk = reading(bench, prefill, decode)
    decode.do(decode.machine.chunk_failed, chunk, "OSError: no route", quiescent=True)
    bench.pump()
    for room in (source, target):
        assert room.failure is not None
        assert (room.failure.code, room.failure.stage) == (FailureCode.TRANSPORT_ERROR, FailureStage.TRANSFER)
        assert "no route" in room.failure.message
    finish(bench, prefill, decode, source, target)


def test_what_was_pulled_is_not_waited_for():
    bench, prefill, decode = met()
    source, target, chunk = reading(bench, prefill, decode)
    decode.land(chunk)
    decode.abort(target)
    bench.pump()
    finish(bench, prefill, decode, source, target)


def test_a_chunk_that_is_being_prepared_when_the_room_ends_is_not_named():
    bench, prefill, decode = met()
    source, target = bench.bound(prefill, decode)
    prefill.send(source, 1, 2)
    chunk = prefill.claim()
    decode.abort(target)
    bench.pump()
    assert not source.release_safe, "its owner hashes it"
    prefill.show(chunk)
    bench.pump()
    assert not prefill.messages(msg.Readable)
    finish(bench, prefill, decode, source, target)


def test_a_chunk_that_crosses_an_abort_is_not_read():
    bench, prefill, decode = met()
    source, target = bench.bound(prefill, decode)
    prefill.send(source, 1, 2)
    prefill.show()
    held = bench.wire.popleft()
    decode.abort(target)
    decode.clear(target)
    again = decode.open()
    decode.init(again)
    decode.offer(again, 7, 8)
    bench.pump()
    assert source.release_safe, "decode has said that it reads no more"
    bench.deliver(*held)
    bench.pass_time(2)
    assert not decode.chunks, "a room that has ended reads nothing, nor does the next one of its number"
    assert decode.machine.counters["stale_chunks"] == 1
    prefill.clear(source)
    decode.clear(again)


def test_what_is_said_of_other_lives_and_chunks_changes_nothing():
    bench, prefill, decode = met()
    source, target, chunk = reading(bench, prefill, decode)
    peer = decode.machine.peers["p.1"]
    life = target.life
    for message in (
        msg.Pulled(5, life, 7, 1, 0.1, 0.1, "core"), msg.Pulled(5, life + 50, 0, 1, 0.1, 0.1, "core"), msg.Quiesced(5, life),
        msg.Quiesced(5, life + 50), msg.SessionQuiesced(2**62),
    ):  # fmt: skip
        decode.machine._push(peer, message)
    decode.do(decode.machine.tick)
    bench.pump()
    assert source.phase is Phase.MOVING
    prefill.abort(source)
    assert not source.release_safe
    bench.pump()
    decode.do(decode.machine.chunk_failed, chunk, "cancelled", quiescent=True)
    bench.pump()
    finish(bench, prefill, decode, source, target)


def test_done_before_everything_was_read_is_a_failure():
    bench, prefill, decode = met()
    source, target, chunk = reading(bench, prefill, decode)
    prefill.do(prefill.machine.chunk_landed, next(iter(source.links.values())).reading[0], _landed(bench))
    bench.pump()
    assert target.failure is not None
    assert target.failure.code is FailureCode.INTEGRITY
    assert "1 chunks have not" in target.failure.message
    assert not target.release_safe
    decode.do(decode.machine.chunk_failed, chunk, "cancelled", quiescent=True)
    assert target.release_safe


def _landed(bench: Bench) -> ChunkResult:
    return ChunkResult(1, bench.now, bench.now)


# -- lost sessions -----------------------------------------------------------------------------------------------------


def lose(bench: Bench, prefill: Rank, decode: Rank) -> None:
    """Each side takes the other for dead, as after a partition."""
    prefill.do(prefill.machine.on_connection_refused, decode.endpoint)
    decode.do(decode.machine.on_connection_refused, prefill.endpoint)


def test_prefill_asks_about_a_lost_session_until_decode_reads_no_more():
    bench, prefill, decode = met()
    source, target, chunk = reading(bench, prefill, decode)
    lose(bench, prefill, decode)
    assert source.failure is not None
    assert source.failure.code is FailureCode.PEER_LOST
    assert prefill.wants(fx.ProveDeath)
    bench.pass_time(12)
    assert not source.release_safe
    assert prefill.machine.snapshot()["orphaned_links"] == 1
    assert "may still read" in prefill.machine.snapshot()["quarantined"][0]["missing"][0]
    decode.do(decode.machine.chunk_failed, chunk, "the peer was removed", quiescent=True)
    assert target.release_safe
    bench.pass_time(6)
    finish(bench, prefill, decode, source, target)


def test_a_new_session_says_that_the_reads_of_the_old_one_have_ended():
    bench, prefill, decode = met()
    source, _, chunk = reading(bench, prefill, decode)
    lose(bench, prefill, decode)
    bench.pass_time(12)
    bench.bound(prefill, decode, 6)
    assert not source.release_safe
    decode.do(decode.machine.chunk_failed, chunk, "the peer was removed", quiescent=True)
    bench.pump()
    assert source.release_safe
    assert decode.messages(msg.SessionQuiesced)


def test_the_end_of_the_reading_process_is_a_proof():
    bench, prefill, decode = met()
    source, *_ = reading(bench, prefill, decode)
    bench.dead.add(decode.name)
    prefill.do(prefill.machine.on_connection_refused, decode.endpoint)
    bench.pass_time(12)
    assert not source.release_safe
    prefill.do(prefill.machine.on_proven_dead, decode.name)
    assert source.release_safe
    prefill.wants(fx.Disconnect)
    bench.pass_time(12)
    assert not prefill.machine.snapshot()["orphaned_links"]
    before = len(prefill.sent)
    bench.pass_time(12)
    assert len(prefill.sent) == before, "nobody is asked any more"


def test_a_fence_is_a_proof():
    bench, prefill, decode = met(can_fence=True)
    source, *_ = reading(bench, prefill, decode)
    prefill.do(prefill.machine.on_connection_refused, decode.endpoint)
    (fence,) = prefill.wants(fx.FencePeer)
    assert not source.release_safe
    prefill.do(prefill.machine.on_fenced, fence.peer)
    assert source.release_safe


@pytest.mark.parametrize("quiescent", [True, False])
def test_what_decode_says_when_it_closes(quiescent: bool):
    bench, prefill, decode = met()
    source, target, chunk = reading(bench, prefill, decode)
    decode.do(decode.machine.close)
    bench.pump()
    assert source.failure is not None
    assert not source.release_safe
    for effect in decode.machine.farewell(quiescent):
        bench.wire.append((effect.endpoint, effect.packet))
    bench.dead.add(decode.name)
    bench.pump()
    assert source.release_safe is quiescent
    del target, chunk


def test_another_process_at_the_address_is_no_proof_and_is_not_asked_again():
    bench, prefill, decode = met()
    source, *_ = reading(bench, prefill, decode)
    prefill.do(prefill.machine.on_connection_refused, decode.endpoint)
    del bench.ranks[decode.endpoint]
    bench.decode("d.2", direction=READ)
    bench.pass_time(12)
    assert not source.release_safe
    before = len(prefill.sent)
    bench.pass_time(12)
    assert len(prefill.sent) == before


# -- what peers may say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kv": msg.WireIndices.of(np.array([1, 48], np.uint64))}, "item 48 of pool 'kv', which has 48"),
        ({"start": 2**40}, "TransferConfig.max_indices"),
        ({"states": {"mamba": (0, msg.WireIndices.of(np.array([1], np.uint64)))}}, "of which the room offered 0"),
        ({"states": {"other": (0, msg.WireIndices.of(np.array([1], np.uint64)))}}, "of which the room offered 0"),
        ({"aux_index": 1}, "an auxiliary row, which the room did not offer"),
        ({"kv": msg.WireIndices(3, b"1234")}, "can't take 4 bytes"),
    ],
)
def test_a_chunk_that_can_not_be_fails_the_room(change: dict[str, Any], why: str):
    bench, prefill, decode = met()
    source, target = bench.bound(prefill, decode)
    good = msg.Readable(5, target.life, source.life, 0, 0, msg.WireIndices.of(np.array([1], np.uint64)))
    values = {name: change.get(name, getattr(good, name)) for name in good.__struct_fields__}
    prefill.machine._push(prefill.machine.peers["d.1"], msg.Readable(**values))
    prefill.do(prefill.machine.tick)
    bench.pump()
    assert target.failure is not None
    assert target.failure.code is FailureCode.INVALID_REQUEST
    assert why in target.failure.message
    assert not decode.chunks
    assert source.failure is not None
    assert source.failure.message == target.failure.message
    finish(bench, prefill, decode, source, target)


@pytest.mark.parametrize("setting", ["max_indices", "max_message_bytes"])
def test_a_chunk_that_decode_can_not_be_told_of_fails_on_prefill_with_the_settings_name(setting: str):
    bench, prefill, decode = met()
    named = np.arange(2) if setting == "max_indices" else np.arange(40)
    source, target = prefill.open(), decode.open()
    prefill.init(source, len(named), aux=None)
    decode.init(target)
    decode.offer(target, *named.tolist())
    bench.pump()
    if setting == "max_indices":
        prefill.machine.settings = replace(SHORT, max_indices=1)
    else:
        prefill.machine.settings = replace(SHORT, max_message_bytes=msg.MAX_HEADER + 200)
    prefill.send(source, *range(len(named)))
    assert source.failure is not None
    assert source.failure.code is FailureCode.OVERLOADED
    assert f"TransferConfig.{setting}" in source.failure.message
    bench.pump()
    assert target.failure is not None
    assert not prefill.chunks

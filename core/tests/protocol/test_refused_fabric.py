"""A peer that the transport reaches over a fabric that is not allowed: refused as by the handshake, on both sides, for good."""

from __future__ import annotations

import pytest

from core.tests.protocol.support import SHORT, Bench, Rank
from core.tests.protocol.test_endings import Stage
from kv_core.contract.enums import FailureCode, FailureStage, KVPoll
from kv_core.protocol import effects as fx
from kv_core.protocol.rooms import Room

WHY = "TransferConfig.require_transport asks for 'rdma', and in use to this peer is 'tcp'"


def refuse(stage: Stage, side: str) -> Rank:
    """This side's transport has met the peer, and found the wrong fabric."""
    rank: Rank = getattr(stage, side)
    for peer in list(rank.machine.peers.values()):
        rank.do(rank.machine.on_peer_refused, peer.key, WHY)
    stage.bench.pump()
    return rank


def assert_refused(room: Room | None) -> None:
    assert room is not None
    assert room.poll is KVPoll.Failed
    failure = room.failure
    assert failure is not None
    assert (failure.stage, failure.code) == (FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE)
    assert not failure.retryable
    assert failure.message == WHY


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("state", ["announced", "bound", "queued"])
def test_rooms_of_both_sides_fail_with_the_reason(state: str, side: str):
    stage = Stage(state)
    rank = refuse(stage, side)
    assert_refused(stage.source)
    assert_refused(stage.target)
    assert rank.wants(fx.RemovePeer)
    assert not stage.prefill.chunks or stage.prefill.claim() is None
    assert stage.source is not None
    assert stage.source.release_safe
    if side == "decode" and state != "announced":  # prefill may have begun to write: its word is waited for
        assert not stage.room.release_safe
        stage.bench.pass_time(2 * SHORT.probe_interval_s * SHORT.dead_after)
    assert stage.room.release_safe


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_room_that_prefill_opens_afterwards_fails_at_once(side: str):
    stage = Stage("announced early")
    refuse(stage, side)
    assert_refused(stage.target)
    assert_refused(stage.prefill.open(5))


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_the_next_room_learns_the_same(side: str):
    stage = Stage("announced")
    rank = refuse(stage, side)
    source, target = stage.prefill.open(6), stage.decode.open(6)
    stage.prefill.wants(fx.AddPeer)
    stage.decode.init(target)
    for resolve in stage.decode.wants(fx.Resolve):
        stage.decode.do(stage.decode.machine.on_route, resolve.addr, stage.bench.route)
    stage.bench.pump()
    if side == "decode":  # it asks each time, and its transport says the same each time
        refuse(stage, side)
    else:
        assert not stage.prefill.wants(fx.AddPeer), "the transport need not be asked twice"
    assert_refused(source)
    assert_refused(target)
    assert rank.machine.snapshot()["peers"] == 0


def test_a_room_that_was_not_in_the_greeting_fails_on_both_sides():
    """It was opened between Welcome and refusal, and what decode says of it comes too late."""
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode()
    bench.meet(decode)
    first = decode.open(5)
    decode.init(first)
    bench.pump()
    source = prefill.open(6)
    target = decode.open(6)
    decode.init(target)  # its announcement is under way
    for peer in list(prefill.machine.peers.values()):
        prefill.do(prefill.machine.on_peer_refused, peer.key, WHY)
    bench.pump()
    for room in (first, target, source):
        assert_refused(room)


def test_others_are_served_on():
    bench = Bench()
    prefill, good, bad = bench.prefill(), bench.decode("d1.1"), bench.decode("d2.1")
    source, target = bench.bound(prefill, good)
    bench.meet(bad)
    (peer,) = [each for each in prefill.machine.peers.values() if each.name == "d2.1"]
    prefill.do(prefill.machine.on_peer_refused, peer.key, WHY)
    bench.pump()
    prefill.send(source, 1, 2)
    prefill.land()
    bench.pump()
    assert source.poll is target.poll is KVPoll.Success


def test_a_refusal_of_an_old_session_changes_nothing():
    stage = Stage("bound")
    (peer,) = stage.prefill.machine.peers.values()
    stage.prefill.do(stage.prefill.machine.on_peer_refused, peer.key._replace(generation=peer.session - 1), WHY)
    assert stage.source is not None
    assert not stage.source.ended

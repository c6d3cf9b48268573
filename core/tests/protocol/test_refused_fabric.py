"""A peer that the transport reaches over a fabric that is not allowed: refused as by the handshake, on both sides, for good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.tests.protocol.support import SHORT, Bench, Rank, at_rest
from core.tests.protocol.test_endings import Stage
from kv_core.contract.enums import FailureCode, FailureStage, KVPoll
from kv_core.protocol import effects as fx
from kv_core.protocol import messages as msg
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


class Choosy:
    """A decode rank that requires a fabric, and has shaken hands; its transport has not said yet what it uses."""

    def __init__(self) -> None:
        self.bench = bench = Bench()
        self.prefill, self.decode = bench.prefill(), bench.decode(settings=replace(SHORT, require_transport="rdma"))
        bench.meet(self.decode)
        self.rooms = [(self.prefill.open(number), self.decode.open(number)) for number in (5, 6)]
        for source, target in self.rooms:
            self.prefill.init(source, 2)
            self.prefill.send(source, 1, 2)
            self.decode.init(target)
            self.decode.offer(target, 2 * target.number, 2 * target.number + 1)
        bench.pump()
        assert self.decode.messages(msg.Announce), "prefill hears of the rooms"
        self.untouched()

    def untouched(self) -> None:
        assert not self.decode.messages(msg.Metadata), "pages were named before the fabric was known"
        assert not self.prefill.chunks


def test_no_pages_are_named_before_the_fabric_is_known():
    stage = Choosy()
    refuse(stage, "decode")  # type: ignore[arg-type]
    for source, target in stage.rooms:
        assert_refused(source)
        assert_refused(target)
        assert source.release_safe
        assert target.release_safe, "nothing could be written: no proof is waited for"
    stage.untouched()


def test_pages_are_named_once_when_it_is():
    stage = Choosy()
    (peer,) = stage.decode.machine.peers.values()
    stage.decode.do(stage.decode.machine.on_peer_met, peer.key._replace(generation=peer.session - 1))
    stage.untouched()
    for _ in range(2):
        stage.decode.do(stage.decode.machine.on_peer_met, peer.key)
    third = stage.prefill.open(7), stage.decode.open(7)
    stage.decode.init(third[1])
    stage.decode.offer(third[1], 1)
    stage.bench.pump()
    assert [message.room for message in stage.decode.messages(msg.Metadata)] == [5, 6, 7]
    stage.prefill.init(third[0], 1)
    stage.prefill.send(third[0], 1)
    for _ in range(3):
        stage.prefill.land()
    stage.bench.pump()
    for source, target in [*stage.rooms, third]:
        assert source.poll is target.poll is KVPoll.Success


def test_a_room_that_is_given_up_meanwhile_is_free_at_once():
    stage = Choosy()
    for _, target in stage.rooms:
        stage.decode.abort(target)
        assert target.release_safe
    (peer,) = stage.decode.machine.peers.values()
    stage.decode.do(stage.decode.machine.on_peer_met, peer.key)
    stage.bench.pump()
    stage.untouched()
    for source, target in stage.rooms:
        assert source.failure is not None
        assert source.failure.code is FailureCode.ABORTED_REMOTE
        stage.prefill.clear(source)
        stage.decode.clear(target)
    stage.bench.pass_time(SHORT.probe_interval_s)
    at_rest(stage.prefill, stage.decode)

"""The transport can't reach a peer: whose fault it is depends on whether the peer lives."""

from __future__ import annotations

import pytest

from core.tests.protocol.support import SHORT, Rank
from core.tests.protocol.test_endings import Stage
from kv_core.contract.enums import FailureCode, KVPoll
from kv_core.protocol import messages as msg
from kv_core.protocol.rooms import Room

SIDES = {"prefill": "decode", "decode": "prefill"}
STATES = ["announced", "bound", "queued"]


def fail(stage: Stage, side: str) -> Rank:
    """This side's transport can't reach the peer; nothing that the peer says of it has come yet."""
    rank: Rank = getattr(stage, side)
    for peer in list(rank.machine.peers.values()):
        rank.do(rank.machine.on_peer_failed, peer.key, "OSError: [Errno 111] Connection refused")
    return rank


def code(room: Room | None) -> FailureCode:
    assert room is not None
    assert room.poll is KVPoll.Failed
    assert room.failure is not None
    return room.failure.code


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("state", STATES)
def test_a_peer_that_lives_is_beyond_the_transports_reach(state: str, side: str):
    stage = Stage(state)
    rank = fail(stage, side)
    stage.bench.pump()
    assert code(stage.source) is code(stage.target) is FailureCode.TRANSPORT_ERROR
    assert "Connection refused" in str(stage.room.failure)
    assert not rank.machine.peers


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("state", STATES)
def test_a_peer_that_is_dead_is_lost(state: str, side: str):
    """The transport was the first to notice."""
    stage = Stage(state)
    rank = fail(stage, side)
    rank.do(rank.machine.on_connection_refused, getattr(stage, SIDES[side]).machine.me.endpoint)
    assert code(stage.source if side == "prefill" else stage.target) is FailureCode.PEER_LOST


@pytest.mark.parametrize(("state", "side"), [("bound", "prefill"), ("announced", "decode")])
def test_a_peer_that_says_nothing_is_lost_as_any_other(state: str, side: str):
    stage = Stage(state)
    stage.bench.dead.add(getattr(stage, SIDES[side]).name)
    fail(stage, side)
    stage.bench.pass_time(2 * SHORT.probe_interval_s * SHORT.dead_after)
    assert code(stage.source if side == "prefill" else stage.target) is FailureCode.PEER_LOST


@pytest.mark.parametrize("side", SIDES)
def test_an_answer_to_what_was_asked_before_proves_nothing(side: str):
    """The peer had answered a probe, and died; its answer is read after the transport's failure."""
    stage = Stage("bound")
    rank: Rank = getattr(stage, side)
    stage.bench.now += SHORT.probe_interval_s
    rank.do(rank.machine.tick)
    other: Rank = getattr(stage, SIDES[side])
    while stage.bench.wire[0][0] == other.endpoint:
        stage.bench.deliver(*stage.bench.wire.popleft())
    stage.bench.dead.add(other.name)
    fail(stage, side)
    room = stage.source if side == "prefill" else stage.target
    answers = [packet for packet in other.sent if isinstance(packet, msg.Pong)]
    assert answers
    assert room is not None
    stage.bench.pump()
    assert not room.ended
    rank.do(rank.machine.on_connection_refused, other.endpoint)
    assert code(room) is FailureCode.PEER_LOST

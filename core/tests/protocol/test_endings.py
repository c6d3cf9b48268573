"""Abort in each state from each side; and of any two causes that end a room, the first one stands on both sides."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from core.tests.protocol.support import SHORT, Bench, Rank, at_rest
from kv_core.contract.enums import FailureCode, KVPoll
from kv_core.protocol import effects as fx
from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import ChunkResult
from kv_core.protocol.nodes import RouteError
from kv_core.protocol.rooms import Room


class Stage:
    """A room on both sides, brought to some state."""

    def __init__(self, state: str) -> None:
        self.bench = bench = Bench()
        self.prefill = bench.prefill()
        self.decode = bench.decode()
        self.source: Room | None = None
        self.target: Room | None = None
        self.claimed: Any = None
        self.job: Any = None
        if state not in {"decode: opened", "decode: resolving", "decode: greeting"}:
            bench.meet(self.decode)
        getattr(self, "_" + state.replace(": ", "_").replace(" ", "_"))()

    def _decode_opened(self) -> None:
        self.source = self.prefill.open(5)
        self.target = self.decode.open(5)

    def _decode_resolving(self) -> None:
        self._decode_opened()
        self.decode.init(self.target)  # type: ignore[arg-type]

    def _decode_greeting(self) -> None:
        self._decode_resolving()
        self.decode.wants(fx.Resolve)
        self.decode.do(self.decode.machine.on_route, "boot:8998", self.bench.route)

    def _prefill_alone(self) -> None:
        self.source = self.prefill.open(5)
        self.prefill.init(self.source, 2)
        self.prefill.send(self.source, 1, 2)

    def _announced_early(self) -> None:
        self.target = self.decode.open(5)
        self.decode.init(self.target)
        self.bench.pump()

    def _named_early(self) -> None:
        self._announced_early()
        self.decode.offer(self.target, 7, 8)  # type: ignore[arg-type]
        self.bench.pump()

    def _announced(self) -> None:
        self.source = self.prefill.open(5)
        self._announced_early()

    def _bound(self) -> None:
        self.source, self.target = self.bench.bound(self.prefill, self.decode)

    def _queued(self) -> None:
        self._bound()
        self.prefill.send(self.source, 1)  # type: ignore[arg-type]

    def _writing(self) -> None:
        self._queued()
        self.claimed = self.prefill.claim()

    def _half_done(self) -> None:
        self._queued()
        self.prefill.land()
        self.prefill.send(self.source, 2)  # type: ignore[arg-type]
        self.claimed = self.prefill.claim()

    def _confirming(self) -> None:
        self._queued()
        self.prefill.send(self.source, 2)  # type: ignore[arg-type]
        self.prefill.land()
        self.prefill.land()

    def _verifying(self) -> None:
        self._bound()
        self.prefill.send(self.source, 1, 2)  # type: ignore[arg-type]
        self.prefill.land(digest=msg.ChunkDigest(0, 2, 0, 3, {}, False, 1))
        self.bench.pump()
        (self.job,) = self.decode.wants(fx.VerifyDigests)

    def _success(self) -> None:
        self._confirming()
        self.bench.pump()

    @property
    def room(self) -> Room:
        """Decode's room."""
        assert self.target is not None
        return self.target

    def finish(self) -> None:
        """What was under way ends, and the engines clear."""
        self.bench.pump()
        if self.job is not None:
            self.decode.do(self.decode.machine.on_verified, self.job.room, self.job.link, None)
        if self.claimed is not None:
            if self.target is not None and self.target.ended:
                assert not self.target.release_safe, "bytes may still land"
                assert self.source is not None
                assert not self.source.release_safe, "bytes may still be read"
            self.prefill.do(self.prefill.machine.chunk_quiescent, self.claimed)
        self.bench.pump()


STATES = [
    "decode: opened", "decode: resolving", "decode: greeting", "prefill alone", "announced early", "named early",
    "announced", "bound", "queued", "writing", "half done", "confirming", "verifying", "success",
]  # fmt: skip


ONLY = {"prefill alone": "prefill", "announced early": "decode", "named early": "decode"}
WHO = [(state, side) for state in STATES for side in ("prefill", "decode") if ONLY.get(state, side) == side]


@pytest.mark.parametrize("how", ["abort", "clear", "close"])
@pytest.mark.parametrize(("state", "side"), WHO)
def test_a_side_gives_up(state: str, side: str, how: str):
    stage = Stage(state)
    rank: Rank = getattr(stage, side)
    mine, other = (stage.source, stage.target) if side == "prefill" else (stage.target, stage.source)
    assert mine is not None
    if how == "close":
        rank.do(rank.machine.close)
    else:
        getattr(rank, how)(mine)
    stage.finish()
    if state == "success":
        assert [room.poll for room in (mine, other) if room is not None] == [KVPoll.Success] * 2
    else:
        expected = FailureCode.CLOSED if how == "close" else FailureCode.ABORTED_LOCAL
        assert mine.failure is not None
        assert mine.failure.code is expected
        heard = side == "prefill" or how != "close" or state not in EARLY
        if state == "confirming" and side == "prefill":
            assert other is not None
            assert other.poll is KVPoll.Success, "Done was under way, and every byte is there"
        elif other is not None and heard and (side, state) != ("prefill", "decode: opened"):
            _heard(stage, mine, other, how)
        if other is None and state != "prefill alone":
            _finds_the_tombstone(stage, side, how)
    for room, who in ((stage.source, stage.prefill), (stage.target, stage.decode)):
        if room is not None:
            assert len(who.ends(room)) <= 1
            who.clear(room)
    stage.bench.pass_time(2 * SHORT.bootstrap_timeout_s)
    for room in (stage.source, stage.target):
        assert room is None or (room.ended and room.release_safe)
    at_rest(stage.prefill, stage.decode)


def _heard(stage: Stage, mine: Room, other: Room, how: str) -> None:
    stage.bench.pass_time(3)
    assert other.failure is not None, "the other side was not told"
    assert mine.failure is not None
    assert other.failure.code is (FailureCode.CLOSED if how == "close" else FailureCode.ABORTED_REMOTE)
    assert (other.failure.message, other.failure.stage) == (mine.failure.message, mine.failure.stage)
    assert other.failure.origin == mine.failure.origin


def _finds_the_tombstone(stage: Stage, side: str, how: str) -> None:
    rank = stage.decode if side == "prefill" else stage.prefill
    room = rank.open(5)
    rank.init(room)
    stage.bench.pump()
    assert room.failure is not None, "opened against a tombstone"
    assert room.failure.code is (FailureCode.CLOSED if how == "close" else FailureCode.ABORTED_REMOTE)
    rank.clear(room)


EARLY = ["decode: opened", "decode: resolving"]


@pytest.mark.parametrize("state", EARLY)
def test_prefill_hears_of_a_room_that_was_given_up_before_decode_knew_where_to_say_so(state: str):
    stage = Stage(state)
    assert stage.target is not None
    assert stage.source is not None
    stage.decode.abort(stage.target)
    stage.bench.pass_time(1)
    assert stage.source.failure is not None
    assert stage.source.failure.code is FailureCode.ABORTED_REMOTE
    assert stage.target.release_safe
    stage.prefill.clear(stage.source)
    stage.decode.clear(stage.target)
    stage.bench.pass_time(SHORT.bootstrap_timeout_s)
    at_rest(stage.prefill, stage.decode)


@pytest.mark.parametrize("state", EARLY)
def test_a_number_that_begins_anew_is_not_given_up_with_its_former_life(state: str):
    stage = Stage(state)
    assert stage.target is not None
    assert stage.source is not None
    stage.decode.abort(stage.target)
    stage.decode.clear(stage.target)
    again = stage.decode.open(5)
    stage.decode.init(again)
    stage.decode.offer(again, 7, 8)
    stage.prefill.init(stage.source, 2)
    stage.bench.pass_time(1)
    assert [stage.source.poll, again.poll] == [KVPoll.WaitingForInput, KVPoll.Transferring]


def test_rooms_that_are_given_up_at_ever_new_addresses_are_not_kept_in_mind_without_bound():
    decode = Bench().decode()
    machine = decode.machine
    machine.settings = replace(SHORT, max_peers=3)
    for number in range(10):
        decode.abort(decode.do(machine.open, number, f"boot{number}:8998"))
    assert list(machine.nodes) == ["boot0:8998", "boot1:8998", "boot2:8998"]
    assert len(decode.wants(fx.Resolve)) == 3


def test_a_server_that_never_answers_is_asked_for_a_given_up_room_until_its_deadline():
    stage = Stage("decode: resolving")
    assert stage.target is not None
    machine = stage.decode.machine
    stage.decode.abort(stage.target)
    node = machine.nodes["boot:8998"]
    asked = 0
    while node.regrets:
        asked += len(stage.decode.wants(fx.Resolve))
        if node.resolving:
            stage.decode.do(machine.on_route, "boot:8998", RouteError("nobody listens"))
        stage.bench.now += 0.5
        stage.decode.do(machine.tick)
    assert asked > 1
    assert stage.bench.now >= SHORT.bootstrap_timeout_s
    assert not node.wanted


@pytest.mark.parametrize("how", ["abort", "clear", "bad call", "bad rank"])
def test_prefill_hears_of_a_room_that_ended_before_init_once_the_two_have_met(how: str):
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = prefill.open(5), decode.open(5)
    if how == "bad call":
        decode.offer(target, 1)
    elif how == "bad rank":
        decode.do(decode.machine.init, target, 9)
    else:
        getattr(decode, how)(target)
    bench.pump()
    assert source.failure is not None
    assert target.failure is not None
    assert (source.failure.message, source.failure.origin) == (target.failure.message, target.failure.origin)
    assert source.release_safe
    assert target.release_safe
    for rank, room in ((prefill, source), (decode, target)):
        rank.clear(room)
    bench.pass_time(1)
    at_rest(prefill, decode)


# -- two causes --------------------------------------------------------------------------------------------------------


def _own_abort(stage: Stage) -> None:
    stage.decode.abort(stage.room)


def _own_bad_call(stage: Stage) -> None:
    stage.decode.do(stage.decode.machine.invalid, stage.room, "bad")


def _own_close(stage: Stage) -> None:
    stage.decode.do(stage.decode.machine.close)


def _timeout(stage: Stage) -> None:
    machine, life = stage.decode.machine, stage.room.life

    def expire(now: float) -> Any:
        machine._room_expired(life, now)
        return machine._settle(now)

    stage.decode.do(expire)


def _refused(stage: Stage) -> None:
    stage.decode.do(stage.decode.machine.on_connection_refused, stage.prefill.endpoint)


def _replaced(stage: Stage) -> None:
    for peer in list(stage.decode.machine.peers.values()):
        reset = msg.Reset(sender="p.2", receiver="d.1", session=peer.session, about="p.1")
        stage.decode.do(stage.decode.machine.on_packet, reset)


def _peer_aborts(stage: Stage) -> None:
    assert stage.source is not None
    stage.prefill.abort(stage.source)
    stage.bench.pump()


def _transport(stage: Stage) -> None:
    stage.prefill.do(stage.prefill.machine.chunk_failed, stage.claimed, "broken", quiescent=False)
    stage.bench.pump()


def _no_way_back(stage: Stage) -> None:
    for peer in list(stage.prefill.machine.peers.values()):
        stage.prefill.do(stage.prefill.machine.on_peer_failed, peer.key, "no way")
    stage.bench.pump()


def _no_way_there(stage: Stage) -> None:
    for peer in list(stage.decode.machine.peers.values()):
        stage.decode.do(stage.decode.machine.on_peer_failed, peer.key, "no way")
    stage.bench.pump()


CAUSES: dict[str, tuple[Callable[[Stage], None], FailureCode]] = {
    "own abort": (_own_abort, FailureCode.ABORTED_LOCAL),
    "own bad call": (_own_bad_call, FailureCode.INVALID_REQUEST),
    "own close": (_own_close, FailureCode.CLOSED),
    "timeout": (_timeout, FailureCode.TIMEOUT),
    "peer refused": (_refused, FailureCode.PEER_LOST),
    "peer replaced": (_replaced, FailureCode.PEER_REPLACED),
    "peer aborts": (_peer_aborts, FailureCode.ABORTED_REMOTE),
    "transport": (_transport, FailureCode.TRANSPORT_ERROR),
    "prefill's transport can't": (_no_way_back, FailureCode.TRANSPORT_ERROR),
    "decode's transport can't": (_no_way_there, FailureCode.TRANSPORT_ERROR),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(CAUSES, 2)))
def test_the_first_of_two_causes_stands(first: str, second: str):
    stage = Stage("writing")
    source, target = stage.source, stage.target
    assert source is not None
    assert target is not None
    CAUSES[first][0](stage)
    failure = target.failure
    assert failure is not None
    assert failure.code is CAUSES[first][1]
    CAUSES[second][0](stage)
    stage.bench.pump()
    assert target.failure is failure
    assert target.poll is KVPoll.Failed
    assert len(stage.decode.ends(target)) == 1
    stage.bench.pass_time(3)
    assert len(stage.prefill.ends(source)) == 1
    assert not target.release_safe
    before = source.failure
    stage.prefill.do(stage.prefill.machine.chunk_quiescent, stage.claimed)
    assert source.failure is before
    assert source.release_safe
    assert len(stage.prefill.ends(source)) == len(stage.decode.ends(target)) == 1


@pytest.mark.parametrize("name", [name for name in CAUSES if name not in {"peer refused", "peer replaced"}])
def test_both_sides_name_the_one_cause(name: str):
    stage = Stage("writing")
    CAUSES[name][0](stage)
    stage.bench.pump()
    assert stage.source is not None
    assert stage.target is not None
    here, there = stage.target.failure, stage.source.failure
    assert here is not None
    assert there is not None
    assert (here.message, here.origin) == (there.message, there.origin)
    mapped = {FailureCode.ABORTED_LOCAL: FailureCode.ABORTED_REMOTE}
    assert mapped.get(here.code, here.code) is mapped.get(there.code, there.code)


def test_success_is_final_too():
    for name in CAUSES:
        if name == "transport":
            continue
        stage = Stage("success")
        assert stage.target is not None
        assert stage.source is not None
        if name != "timeout":
            CAUSES[name][0](stage)
        stage.bench.pass_time(3)
        assert [stage.source.poll, stage.target.poll] == [KVPoll.Success] * 2, name
        assert len(stage.decode.ends(stage.target)) == len(stage.prefill.ends(stage.source)) == 1


@pytest.mark.parametrize("first", ["abort", "failed"])
def test_an_abort_and_a_failure_that_cross_each_other(first: str):
    stage = Stage("writing")
    assert stage.source is not None
    assert stage.target is not None
    stage.bench.pump()
    stage.decode.abort(stage.target, "decode's reason")
    stage.prefill.abort(stage.source, "prefill's reason")
    if first == "failed":
        stage.bench.wire.reverse()
    stage.bench.pump()
    assert stage.target.failure is not None
    assert stage.source.failure is not None
    assert stage.target.failure.message == "decode's reason"
    assert stage.source.failure.message == "prefill's reason"
    assert not stage.target.release_safe
    stage.prefill.do(stage.prefill.machine.chunk_quiescent, stage.claimed)
    stage.bench.pump()
    assert stage.target.release_safe
    assert stage.source.release_safe


def test_bytes_that_land_after_the_end_count_for_nothing():
    stage = Stage("writing")
    assert stage.source is not None
    assert stage.target is not None
    stage.decode.abort(stage.target)
    stage.bench.pump()
    stage.prefill.do(stage.prefill.machine.chunk_landed, stage.claimed, ChunkResult(100, 1.0, 2.0))
    stage.bench.pump()
    assert stage.target.release_safe
    assert stage.source.metric.transfer_total_bytes is None
    assert stage.target.metric.transfer_total_bytes is None


def test_a_digest_that_differs_fails_both_sides():
    stage = Stage("verifying")
    assert stage.source is not None
    assert stage.target is not None
    stage.decode.do(stage.decode.machine.on_verified, stage.job.room, stage.job.link, "page 3 differs")
    stage.bench.pump()
    for room in (stage.source, stage.target):
        assert room.failure is not None
        assert (room.failure.code, room.failure.message) == (FailureCode.INTEGRITY, "page 3 differs")
        assert room.release_safe


@pytest.mark.parametrize(
    ("state", "seconds", "words"),
    [
        ("bound", 8, "the engine sent nothing"),
        ("writing", 6, "no chunk moved"),
        ("verifying", 6, "digests were not computed"),
    ],
)
def test_deadlines_of_each_phase(state: str, seconds: float, words: str):
    stage = Stage(state)
    assert stage.source is not None
    assert stage.target is not None
    stage.bench.pass_time(seconds - 1)
    assert [stage.source.failure, stage.target.failure] == [None, None]
    stage.bench.pass_time(2)
    for room in (stage.source, stage.target):
        assert room.failure is not None
        assert room.failure.code is FailureCode.TIMEOUT
    assert stage.source.failure is not None
    assert stage.target.failure is not None
    assert words in stage.source.failure.message or words in stage.target.failure.message

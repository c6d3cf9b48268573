"""Sessions between two processes: begun, doubled, dropped on either side, and begun anew."""

from __future__ import annotations

import pytest

from core.tests.protocol.support import SHORT, Bench, at_rest
from kv_core.contract.enums import FailureCode, Liveness
from kv_core.protocol import effects as fx
from kv_core.protocol import messages as msg
from kv_core.protocol.peers import PeerPhase


def test_acknowledgements_are_not_acknowledged():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    bench.pass_time(3)
    for rank in (prefill, decode):
        rank.sent.clear()
    bench.pass_time(3)
    data = [p for p in [*prefill.sent, *decode.sent] if isinstance(p, msg.Data)]
    leases = sum(bool(p.messages) for p in data)
    assert leases
    assert len(data) <= 2 * leases, "acknowledgements go to and fro"
    assert source.failure is target.failure is None


def test_a_peer_that_is_dropped_leaves_no_timer_behind_even_if_several_are_due_at_once():
    bench = Bench()
    prefill, decode = bench.pair()
    bench.bound(prefill, decode)
    decode.open(6)
    bench.dead.add(prefill.name)
    bench.pass_time(4.5)  # unanswered probes
    decode.abort(decode.machine.table[5])  # something to retransmit
    bench.now += 60  # probe, lease and retransmission come due together, and the probe finds the peer dead
    for _ in range(10):
        bench.now += 1
        decode.do(decode.machine.tick)
    gone = [key for _, key in decode.machine._timers._when if getattr(key, "phase", None) is PeerPhase.GONE]
    assert not gone
    sent = len(decode.sent)
    bench.pass_time(20)
    assert not [p for p in decode.sent[sent:] if not isinstance(p, msg.Hello)]


def test_a_flapping_connection_is_one_doubt():
    bench = Bench()
    prefill, decode = bench.pair()
    for _ in range(20):
        decode.do(decode.machine.on_connection_lost, prefill.endpoint)
        bench.now += 0.001
        decode.do(decode.machine.tick)
    (peer,) = decode.machine.peers.values()
    seen = [peer.liveness.state]
    bench.pump()
    assert [*seen, peer.liveness.state] == [Liveness.SUSPECT, Liveness.OK]


def test_a_late_double_of_a_greeting_revives_no_session():
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode()
    room = decode.open(5)
    decode.init(room)
    decode.do(decode.machine.on_route, "boot:8998", bench.route)
    decode.wants(fx.Resolve)
    hello = next(p for p in decode.sent if isinstance(p, msg.Hello))
    bench.pump()
    assert decode.machine.peers["p.1"].phase is PeerPhase.READY
    prefill.do(prefill.machine.on_connection_refused, decode.endpoint)  # prefill gives decode up
    assert not prefill.machine.peers
    bench.deliver(prefill.endpoint, hello)
    assert not prefill.machine.peers, "the session would begin at message 1 again, on one side only"
    bench.pass_time(3)
    other = decode.open(6)
    source = prefill.open(6)
    prefill.init(source, 1)
    decode.init(other)
    decode.offer(other, 3)
    bench.pass_time(3)
    prefill.send(source, 1)
    prefill.land()
    bench.pump()
    assert (source.failure, other.failure) == (None, None)


def test_a_greeting_whose_session_prefill_has_given_up_is_begun_anew():
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode()
    room = decode.open(5)
    decode.init(room)
    decode.do(decode.machine.on_route, "boot:8998", bench.route)
    decode.wants(fx.Resolve)
    bench.deliver(*bench.wire.popleft())
    bench.wire.clear()  # every Welcome is lost
    prefill.do(prefill.machine.on_connection_refused, decode.endpoint)
    bench.pass_time(3)
    assert room.failure is None
    assert decode.machine.peers["p.1"].phase is PeerPhase.READY


@pytest.mark.parametrize("who", ["prefill", "decode", "both"])
def test_two_processes_that_gave_each_other_up_find_together_again(who: str):
    bench = Bench()
    prefill, decode = bench.pair()
    if who in {"prefill", "both"}:
        prefill.do(prefill.machine.on_connection_refused, decode.endpoint)
    if who in {"decode", "both"}:
        decode.do(decode.machine.on_connection_refused, prefill.endpoint)
    bench.wire.clear()
    bench.pass_time(2.5 * SHORT.probe_interval_s * SHORT.dead_after)
    source, target = bench.bound(prefill, decode)
    bench.pass_time(3)
    assert (source.failure, target.failure) == (None, None)
    assert target.phase.value == "moving"


@pytest.mark.parametrize("landed", [True, False])
def test_a_session_lost_with_writes_under_way_is_begun_anew_for_the_proof(landed: bool):
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    prefill.send(source, 1, 2)
    chunk = prefill.claim()
    assert chunk is not None
    for rank, other in ((prefill, decode), (decode, prefill)):
        rank.do(rank.machine.on_connection_refused, other.endpoint)
    bench.wire.clear()
    assert target.failure is not None
    assert not target.release_safe
    if landed:
        prefill.do(prefill.machine.chunk_quiescent, chunk)
        assert source.release_safe
    bench.pass_time(15)
    if not landed:
        assert not target.release_safe
        assert decode.machine.snapshot()["quarantined"]
        prefill.do(prefill.machine.chunk_quiescent, chunk)
        bench.pump()
    assert target.release_safe
    decode.clear(target)
    prefill.clear(source)
    bench.pass_time(1)
    at_rest(prefill, decode)


def test_greetings_for_a_proof_end_with_the_proof():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    bench.dead.add(prefill.name)
    decode.do(decode.machine.on_connection_refused, prefill.endpoint)
    bench.pass_time(20)
    assert not target.release_safe
    decode.do(decode.machine.on_proven_dead, prefill.name)
    assert target.release_safe
    bench.pass_time(10)
    sent = len(decode.sent)
    bench.pass_time(30)
    assert len(decode.sent) == sent
    assert not decode.machine.peers
    assert source.failure is None  # nobody asked it


def test_the_farewell_of_a_quiescent_process_is_a_proof_for_all_its_sessions():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    prefill.send(source, 1, 2)
    chunk = prefill.claim()
    decode.do(decode.machine.on_connection_refused, prefill.endpoint)
    bench.pass_time(15)
    assert decode.machine.peers["p.1"].phase is PeerPhase.READY
    assert not target.release_safe
    prefill.do(prefill.machine.chunk_quiescent, chunk)
    bench.wire.clear()  # its word on the old session is lost
    prefill.do(prefill.machine.close)
    for effect in prefill.machine.farewell(True):
        bench.deliver(effect.endpoint, effect.packet)
    assert target.release_safe


def test_a_closed_manager_opens_no_room():
    bench = Bench()
    prefill, decode = bench.pair()
    for rank in (prefill, decode):
        rank.do(rank.machine.close)
        room = rank.open(5)
        assert room.failure is not None
        assert room.failure.code is FailureCode.CLOSED
        assert not rank.machine.table

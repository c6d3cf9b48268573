"""Three states from probes; and a pause of one's own is no silence of the other."""

from __future__ import annotations

from dataclasses import replace

from core.tests.protocol.support import SHORT, Bench
from kv_core.contract.enums import FailureCode, Liveness
from kv_core.protocol import effects as fx
from kv_core.protocol import messages as msg
from kv_core.protocol.liveness import PeerLiveness


def silent(probes: int) -> PeerLiveness:
    liveness = PeerLiveness(1.0, 2, 5, 0.0)
    for i in range(probes):
        liveness.probe(float(i))
    return liveness


def test_misses_are_counted_from_the_second_probe_on():
    states = [silent(n).state for n in range(1, 7)]
    ok, suspect, dead = Liveness.OK, Liveness.SUSPECT, Liveness.DEAD
    assert states == [ok, ok, suspect, suspect, suspect, dead]


def test_any_sign_of_life_makes_a_suspect_well_and_nothing_makes_the_dead_well():
    liveness = silent(4)
    assert liveness.life(4.0) is Liveness.OK
    assert liveness.misses == 0
    assert silent(6).life(7.0) is Liveness.DEAD


def test_a_process_that_was_paused_itself_finds_one_miss_and_not_sixty():
    liveness = PeerLiveness(1.0, 2, 5, 0.0)
    liveness.probe(1.0)
    assert liveness.probe(61.0) is Liveness.OK
    assert liveness.misses == 1


def test_a_doubt_is_a_suspicion_until_the_next_sign_of_life():
    liveness = PeerLiveness(1.0, 2, 5, 0.0)
    assert liveness.doubt(0.3) is Liveness.SUSPECT
    assert liveness.next_probe == 0.3
    liveness.probe(0.3)
    assert liveness.doubt(0.4) is Liveness.SUSPECT
    assert liveness.next_probe == 1.3, "the probe that is under way is enough"
    assert liveness.life(0.5) is Liveness.OK


def test_a_refusal_is_news_at_once():
    assert PeerLiveness(1.0, 2, 5, 0.0).die() is Liveness.DEAD
    liveness = PeerLiveness(1.0, 2, 5, 0.0)
    assert [liveness.miss() for _ in range(5)][-1] is Liveness.DEAD


def test_a_peer_that_falls_silent_is_suspect_then_dead_and_its_rooms_fail_in_time():
    bench = Bench()
    prefill, decode = bench.pair(settings=replace(SHORT, transferring_timeout_s=60.0))
    source, target = bench.bound(prefill, decode)
    bench.dead.add(prefill.name)
    begun = bench.now
    while not target.ended:
        bench.pass_time(0.25)
    assert 4.0 <= bench.now - begun <= 7.0
    assert target.failure is not None
    assert target.failure.code is FailureCode.PEER_LOST
    assert "dead_after=5" in target.failure.message
    states = [effect.event.liveness for effect in decode.wants(fx.TellPeer)]
    assert states[-2:] == [Liveness.SUSPECT, Liveness.DEAD]
    assert not source.ended  # its process does not know anything


def test_a_peer_whose_transfer_thread_stands_still_is_dead_however_well_it_answers():
    bench = Bench()
    prefill, decode = bench.pair()
    _, target = bench.bound(prefill, decode)
    prefill.machine.stalled_s = 100.0
    bench.pass_time(8)
    assert target.failure is not None
    assert target.failure.code is FailureCode.PEER_LOST
    assert "transfer thread" in target.failure.message


def test_a_short_stall_harms_nobody():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    prefill.machine.stalled_s = SHORT.probe_interval_s * SHORT.dead_after - 0.5
    bench.pass_time(3)
    prefill.machine.stalled_s = 0.0
    bench.pass_time(3)
    assert (source.failure, target.failure) == (None, None)


def test_a_suspect_gets_no_new_rooms_until_it_answers():
    bench = Bench()
    prefill, decode = bench.pair()
    decode.do(decode.machine.on_connection_lost, prefill.endpoint)
    room = decode.open(6)
    decode.init(room)
    assert room.phase.value == "open"
    assert not decode.messages(msg.Announce)[1:]
    decode.do(decode.machine.tick)
    bench.pump()
    assert room.phase.value == "ready"


def test_progress_of_a_transfer_is_a_sign_of_life():
    bench = Bench()
    prefill, decode = bench.pair()
    source, _ = bench.bound(prefill, decode, 5, *range(20))
    for i in range(19):
        bench.wire.clear()
        bench.now += 1.0
        prefill.do(prefill.machine.tick)
        prefill.send(source, i)
        prefill.land()
    assert source.failure is None
    assert prefill.machine.peers[decode.name].liveness.state is not Liveness.DEAD

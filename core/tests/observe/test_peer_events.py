"""Peers that join, fall silent, come back, leave and die: what the events say, and what is counted."""

from __future__ import annotations

from core.tests.observe.support import INFO, feed, fresh, observe, scrape, told
from core.tests.protocol.support import Bench, Rank
from kv_core.contract.enums import FailureCode, Liveness, Role
from kv_core.contract.records import PeerEvent
from kv_core.protocol import effects as fx


def peer_events(rank: Rank) -> list[PeerEvent]:
    return [event for event in told(rank) if isinstance(event, PeerEvent)]


def facts(rank: Rank) -> list[tuple[Liveness, Liveness | None, FailureCode | None]]:
    return [(event.liveness, event.before, event.code) for event in peer_events(rank)]


def test_joined_suspect_recovered():
    bench = Bench()
    prefill, decode = bench.pair()
    decode.do(decode.machine.on_connection_lost, prefill.endpoint)
    bench.pass_time(2)
    assert facts(decode) == [
        (Liveness.OK, None, None), (Liveness.SUSPECT, Liveness.OK, None), (Liveness.OK, Liveness.SUSPECT, None),
    ]  # fmt: skip
    found = observe(decode)
    for name, count in {"joined": 1, "suspected": 1, "recovered": 1, "lost": 0, "unmet": 0}.items():
        assert found.value(f"kv_core_peers_{name}_total") == count, name


def test_a_peer_that_is_given_up_had_been_suspect_and_says_why():
    bench = Bench()
    prefill, decode = bench.pair()
    bench.dead.add(prefill.name)
    bench.pass_time(10)
    assert facts(decode)[-1] == (Liveness.DEAD, Liveness.SUSPECT, FailureCode.PEER_LOST)
    assert observe(decode).value("kv_core_peers_lost_total", reason="peer_lost") == 1
    assert observe(decode).value("kv_core_peers_lost_total") == 1


def test_a_refused_connection_and_a_farewell_come_from_ok():
    bench = Bench()
    prefill, decode = bench.pair()
    decode.do(decode.machine.on_connection_refused, prefill.endpoint)
    assert facts(decode)[-1] == (Liveness.DEAD, Liveness.OK, FailureCode.PEER_LOST)
    bench = Bench()
    prefill, decode = bench.pair()
    for effect in prefill.machine.farewell(True):
        if isinstance(effect, fx.SendPacket):
            bench.deliver(effect.endpoint, effect.packet)
    assert facts(decode)[-1] == (Liveness.DEAD, Liveness.OK, FailureCode.CLOSED)
    found = observe(decode)
    assert found.value("kv_core_peers_lost_total", reason="closed") == 1
    assert found.value("kv_core_peers_lost_total", reason="peer_lost") == 0


def test_a_peer_that_refuses_the_handshake_was_never_met():
    bench = Bench()
    bench.prefill()
    decode = bench.decode(page_size=32)
    room = decode.open(5)
    decode.init(room)
    bench.pump()
    assert facts(decode) == [(Liveness.DEAD, None, FailureCode.INCOMPATIBLE)]
    assert observe(decode).value("kv_core_peers_unmet_total", reason="incompatible") == 1
    assert observe(decode).value("kv_core_peers_lost_total") == 0


def test_events_of_a_manager_that_fills_in_less_are_counted_all_the_same():
    registry, metrics = fresh()
    observer = metrics.observer(INFO, Role.DECODE)
    feed(observer, [PeerEvent("test", Role.DECODE, "p", state, "", 1.0) for state in (Liveness.OK, Liveness.DEAD)])
    found = scrape(registry)
    assert found.value("kv_core_peers_joined_total") == 1
    assert found.value("kv_core_peers_unmet_total", reason="peer_lost") == 1

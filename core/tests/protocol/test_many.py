"""Many rooms through each way to end: afterwards nothing is left of them, however the machine is looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.tests.protocol.support import SHORT, Bench, Rank, at_rest
from kv_core.contract.enums import KVPoll
from kv_core.protocol import effects as fx

ROOMS = 400


def success(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    source, target = bench.bound(prefill, decode, number)
    prefill.send(source, 1, 2)
    prefill.land()
    bench.pump()
    assert source.poll is target.poll is KVPoll.Success


def prefill_aborts(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    source, _ = bench.bound(prefill, decode, number)
    prefill.send(source, 1, 2)
    chunk = prefill.claim()
    prefill.abort(source)
    prefill.do(prefill.machine.chunk_quiescent, chunk)


def decode_aborts(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    source, target = bench.bound(prefill, decode, number)
    prefill.send(source, 1, 2)
    decode.abort(target)
    bench.pump()
    assert prefill.claim() is None


def aborted_while_queued(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    target = decode.open(number)
    decode.init(target)
    bench.pump()
    decode.abort(target)
    bench.pump()
    assert prefill.open(number).failure is not None


def transport_fails(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    source, _ = bench.bound(prefill, decode, number)
    prefill.send(source, 1, 2)
    prefill.do(prefill.machine.chunk_failed, prefill.claim(), "broken", quiescent=True)


def unequal(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    source = prefill.open(number)
    prefill.init(source, 3)
    target = decode.open(number)
    decode.init(target)
    decode.offer(target, 1)


def duplicate(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    success(bench, prefill, decode, number)
    for rank in (prefill, decode):
        rank.clear(rank.open(number))


def never_asked(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    prefill.init(prefill.open(number), 1)


def never_opened(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    target = decode.open(number)
    decode.init(target)
    decode.offer(target, 1)


def session_lost(bench: Bench, prefill: Rank, decode: Rank, number: int) -> None:
    bench.bound(prefill, decode, number)
    if number % 50 == 49:
        prefill.do(prefill.machine.on_connection_refused, decode.endpoint)
        bench.pass_time(2)
        bench.meet(decode)
        bench.pass_time(2)


WAYS: list[Callable[[Bench, Rank, Rank, int], None]] = [
    success, prefill_aborts, decode_aborts, aborted_while_queued, transport_fails, unequal, duplicate, never_asked,
    never_opened, session_lost,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_is_left(way: Callable[[Bench, Rank, Rank, int], None]):
    bench = Bench()
    prefill, decode = bench.pair()
    for number in range(ROOMS):
        way(bench, prefill, decode, number)
        bench.pump()
        if way not in {never_asked, never_opened}:
            for rank in (prefill, decode):
                for room in list(rank.machine.table.values()):
                    if room.ended:
                        rank.clear(room)
            bench.pump()
    bench.pass_time(2 * SHORT.bootstrap_timeout_s + SHORT.waiting_timeout_s, step=0.5)
    for rank in (prefill, decode):
        for room in list(rank.machine.table.values()):
            assert room.ended
            rank.clear(room)
        rank.wants(fx.TellPeer)
    bench.pass_time(2 * SHORT.bootstrap_timeout_s, step=0.5)
    at_rest(prefill, decode)
    for rank in (prefill, decode):
        machine = rank.machine
        sessions = set(machine.peers.values())
        assert len(sessions) == 1
        kinds = sorted(kind for kind, _ in machine._timers._when)
        assert set(kinds) <= {"probe", "lease", "link", "node"}
        assert len(machine._timers._heap) < 400
        for peer in sessions:
            assert not peer.rooms
            assert not peer.awaiting
            assert not peer.regrets
            assert not peer.link.unacknowledged
        assert not machine._effects
        assert not machine._dirty
        assert not rank.wants(fx.FencePeer)

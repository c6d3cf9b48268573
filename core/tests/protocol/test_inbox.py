"""Early news and early endings: bounded in number and in bytes, and forgotten in time."""

from __future__ import annotations

import numpy as np
import pytest

from core.tests.protocol.support import SHORT, Bench, at_rest
from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import FailureCode, FailureStage
from kv_core.contract.failures import Failure
from kv_core.protocol import machine
from kv_core.protocol import messages as msg
from kv_core.protocol.inbox import Early, Inbox, Stone, Tombstones
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.peers import Peer

FAILURE = Failure(FailureStage.QUEUED, FailureCode.ABORTED_REMOTE, "x")


def peer(name: str = "d.1") -> Peer:
    return Peer(name, 1, "tcp://d:1", PeerLiveness(1.0, 2, 5, 0.0))


def early(number: int, who: Peer, life: int, pages: int | None = None, destinations: int = 1) -> Early:
    metadata = None
    if pages is not None:
        metadata = msg.Metadata(number, life, msg.WireIndices.of(np.arange(pages, dtype=np.uint64)), {}, None, 0, 1)
    return Early(number, who, life, metadata, 10.0, destinations)


def test_news_are_found_by_room_and_by_peer_and_life():
    inbox, a, b = Inbox(10, 10_000), peer("a"), peer("b")
    entries = [early(5, a, 1), early(5, b, 1), early(6, a, 2)]
    assert all(inbox.put(entry) for entry in entries)
    assert inbox.get(b, 1) is entries[1]
    assert inbox.take_room(5) == entries[:2]
    assert inbox.take_room(5) == []
    assert inbox.take_peer(a) == entries[2:]
    assert len(inbox) == 0
    assert inbox._bytes == 0
    assert not inbox._rooms


def test_newer_news_of_a_life_take_the_place_of_older_ones():
    inbox, a = Inbox(1, 10_000), peer()
    assert inbox.put(early(5, a, 1))
    assert inbox.put(early(5, a, 1, pages=10))
    assert len(inbox) == 1
    assert inbox.pop(a, 1).metadata is not None  # type: ignore[union-attr]
    assert inbox._bytes == 0


def test_bounds():
    inbox, a = Inbox(3, 2_200), peer()
    assert [inbox.put(early(i, a, i)) for i in range(1, 5)] == [True, True, True, False]
    inbox.take_peer(a)
    assert inbox.put(early(1, a, 1, pages=400))
    assert not inbox.put(early(2, a, 2, pages=400))
    assert inbox.put(early(2, a, 2))


def test_the_oldest_tombstone_goes_first():
    stones = Tombstones(2)
    for number in (1, 2, 3):
        stones.put(number, Stone(FAILURE, float(number), remote=True))
    assert len(stones) == 2
    assert stones.opened(1) is None
    stones.expire(2.5)
    assert len(stones) == 1
    assert stones.opened(3) is not None
    assert stones.opened(3) is None


def test_who_a_tombstone_is_for():
    stones, a, b = Tombstones(9), peer("a"), peer("b")
    stones.put(1, Stone(FAILURE, 9.0))
    assert stones.opened(1) is None, "our own end is no news to us"
    stones.put(1, Stone(FAILURE, 9.0))
    assert stones.announced(early(1, a, 1)) is FAILURE
    assert stones.announced(early(1, a, 2)) is None
    stones.put(1, Stone(FAILURE, 9.0, told=1))
    assert stones.announced(early(1, b, 1, destinations=2)) is FAILURE
    assert len(stones) == 0
    stones.put(1, Stone(FAILURE, 9.0, remote=True, peer="a", destinations=2))
    assert stones.announced(early(1, b, 1, destinations=2)) is None
    assert len(stones) == 1, "the other destination belongs to the request that has ended"
    assert stones.announced(early(1, a, 2, destinations=2)) is None
    assert len(stones) == 0, "the same rank has begun the number anew"


BOUNDED = TransferConfig(
    max_inbox=3, max_tombstones=2, max_rooms=8, bootstrap_timeout_s=10, waiting_timeout_s=8, transferring_timeout_s=6,
    lease_s=4,
)  # fmt: skip


def test_a_full_inbox_refuses_with_a_reason_and_takes_again_once_there_is_room():
    bench = Bench()
    prefill, decode = bench.pair(settings=BOUNDED)
    rooms = [decode.open(i) for i in range(4)]
    for room in rooms:
        decode.init(room)
        decode.offer(room, 7)
    bench.pump()
    assert [room.failure.code if room.failure else None for room in rooms] == [None, None, None, FailureCode.OVERLOADED]
    assert "max_inbox" in rooms[3].failure.message  # type: ignore[union-attr]
    assert rooms[3].release_safe
    source = prefill.open(0)
    prefill.init(source, 1)
    decode.clear(rooms[3])
    retry = decode.open(3)
    decode.init(retry)
    bench.pump()
    assert retry.failure is None
    assert source.phase.value == "ready"


def test_leases_of_many_rooms_travel_in_several_messages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "MAX_LIVES_PER_LEASE", 100)
    bench = Bench()
    prefill, decode = bench.pair()
    rooms = [decode.open(number) for number in range(250)]
    for room in rooms:
        decode.init(room)
    bench.pass_time(2.5 * SHORT.lease_s)
    assert {len(lease.lives) for lease in decode.messages(msg.Lease)} == {100, 50}
    assert prefill.machine.snapshot()["early_rooms"] == 250
    sources = [prefill.open(number) for number in range(250)]
    bench.pass_time(2.5 * SHORT.lease_s)
    assert not any(room.failure for room in (*rooms, *sources))
    assert prefill.machine.snapshot()["leases"] == decode.machine.snapshot()["leases"] == 250


def test_early_news_end_with_their_lease_when_decode_renews_no_more():
    bench = Bench()
    prefill, decode = bench.pair()
    room = decode.open(5)
    decode.init(room)
    bench.pass_time(3 * SHORT.lease_s)
    assert room.failure is None
    assert prefill.machine.snapshot()["early_rooms"] == 1, "renewed"
    (session,) = decode.machine.peers.values()
    session.rooms.clear()  # decode forgets to renew
    bench.pass_time(1.5 * SHORT.lease_s)
    assert prefill.machine.snapshot()["early_rooms"] == 0


def test_pages_that_nobody_opens_a_room_for_fail_in_time_and_leave_nothing():
    bench = Bench()
    prefill, decode = bench.pair()
    room = decode.open(5)
    decode.init(room)
    decode.offer(room, 7)
    bench.pass_time(SHORT.waiting_timeout_s + 1)
    assert room.failure is not None
    assert room.failure.code in {FailureCode.UNKNOWN_ROOM, FailureCode.TIMEOUT}
    assert room.release_safe
    decode.clear(room)
    bench.pass_time(2 * SHORT.bootstrap_timeout_s)
    at_rest(prefill, decode)


def test_tombstones_are_cleaned_by_time_alone():
    bench = Bench()
    prefill, decode = bench.pair()
    for number in range(20):
        room = prefill.open(number)
        prefill.abort(room)
        prefill.clear(room)
        other = decode.open(100 + number)
        decode.init(other)
        bench.pump()
        decode.clear(other)
        bench.pump()
    assert prefill.machine.snapshot()["tombstones"] == 40
    bench.pass_time(1.5 * SHORT.bootstrap_timeout_s)
    assert prefill.machine.snapshot()["tombstones"] == 0


def test_a_lost_peer_takes_its_news_with_it():
    bench = Bench()
    prefill, decode = bench.pair()
    for number in range(5):
        decode.init(decode.open(number))
    bench.pump()
    assert prefill.machine.snapshot()["early_rooms"] == 5
    prefill.do(prefill.machine.on_connection_refused, decode.endpoint)
    assert prefill.machine.snapshot()["early_rooms"] == 0
    assert not [key for key in prefill.machine._timers._when if key[0] == "early"]

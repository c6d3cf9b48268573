"""Chunks that work: their bytes, their results, and that many are in flight."""

from __future__ import annotations

import threading
from time import monotonic

import numpy as np

from core.tests.transfer.support import ALL, POISON, DoubleTransport, Memory, bench, same, settings, until
from kv_core.contract.enums import Capability


def test_pages_states_and_the_auxiliary_row_land_in_one_transfer():
    with bench() as b:
        peer = b.peer("decode")
        items = np.array([1, 3], np.uint64), np.array([2, 0], np.uint64)
        chunk = b.submit(peer, [5, 2, 9], [0, 7, 3], states={"state": (0, *items)}, aux=(1, 2))
        until(lambda: b.has_landed(chunk))
        target = b.targets["decode"]
        assert same(b.source, target, "kv", [5, 2, 9], [0, 7, 3])
        assert same(b.source, target, "state", [1, 3], [2, 0])
        assert same(b.source, target, "aux", [1], [2])
        assert len(b.transport.posted) == 1
        untouched = [page for page in range(16) if page not in (0, 7, 3)]
        assert all((array[untouched] == POISON).all() for array in target.arrays["kv"])
        result = b.sink.landed_chunks[id(chunk)]
        assert result.nbytes == 3 * 4 * 64 + 2 * 2 * 40 + 32
        assert result.latency_source == "core"
        assert result.stopped - result.started >= 0
        b.rest()


def test_layers_take_their_buffers_only():
    with bench() as b:
        chunk = b.submit(b.peer("decode"), [4], [6], layers=range(1, 2))
        until(lambda: b.has_landed(chunk))
        target = b.targets["decode"]
        assert all((array == POISON).all() for array in target.arrays["kv"][:2])
        assert all(
            (array[6] == b.source.arrays["kv"][k + 2][4]).all() for k, array in enumerate(target.arrays["kv"][2:])
        )


def test_a_chunk_without_pages_lands_without_a_transfer():
    with bench() as b:
        chunk = b.submit(b.peer("decode"), [], [])
        until(lambda: b.has_landed(chunk))
        assert b.sink.landed_chunks[id(chunk)].nbytes == 0
        assert b.transport.posted == []


def test_a_long_chunk_is_a_group_of_transfers_with_one_conclusion():
    config = settings(max_batch_descriptors=6, queue_shards=3)
    transport = DoubleTransport(config, auto=False)
    with bench(transport, config=config) as b:
        chunk = b.submit(b.peer("decode"), range(16), list(reversed(range(16))))
        until(lambda: len(transport.posted) == 16)
        for transfer in transport.posted[1:]:
            transport.land(transfer)
        until(lambda: b.engine.snapshot()["outstanding_transfers"] == 1)
        assert not b.has_landed(chunk)
        transport.land(transport.posted[0])
        until(lambda: b.has_landed(chunk))
        assert b.sink.landed_chunks[id(chunk)].nbytes == 16 * 4 * 64
        assert same(b.source, b.targets["decode"], "kv", range(16), list(reversed(range(16))))


def test_many_chunks_are_in_flight_at_once():
    transport = DoubleTransport(auto=False)
    with bench(transport) as b:
        peers = [b.peer(f"decode-{k}") for k in range(4)]
        chunks = [b.submit(peers[k % 4], [k % 16], [k % 16]) for k in range(100)]
        until(lambda: len(transport.posted) == 100)
        assert b.engine.snapshot()["outstanding_transfers"] == 100
        assert b.engine.snapshot()["outstanding_bytes"] == 100 * 4 * 64
        for transfer in transport.posted:
            transport.land(transfer)
        until(lambda: all(map(b.has_landed, chunks)))
        b.rest()


def test_the_window_bounds_the_bytes_in_flight_to_each_peer():
    config = settings(window_bytes=1000)  # no multiple of what a batch takes
    with bench(DoubleTransport(config), config=config) as b:
        peers = [b.peer(f"decode-{k}") for k in range(3)]
        chunks = [b.submit(peers[k % 3], range(8), range(8)) for k in range(30)]
        until(lambda: all(map(b.has_landed, chunks)))
        assert set(b.transport.most_bytes) == {"decode-0", "decode-1", "decode-2"}
        assert max(b.transport.most_bytes.values()) <= 1000


def test_a_batch_larger_than_the_window_goes_alone():
    config = settings(window_bytes=10)
    with bench(DoubleTransport(config), config=config) as b:
        chunk = b.submit(b.peer("decode"), [1, 2], [3, 4])
        until(lambda: b.has_landed(chunk))
        assert same(b.source, b.targets["decode"], "kv", [1, 2], [3, 4])
        assert max(b.transport.most_bytes.values()) == 64


def test_the_engines_own_time_is_taken_where_every_transfer_has_it():
    config = settings(max_batch_descriptors=4)
    transport = DoubleTransport(config, auto=False)
    now = [100.0]
    with bench(transport, config=config, clock=lambda: now[0]) as b:
        peer = b.peer("decode")
        timed = b.submit(peer, [0, 1], [0, 1])
        until(lambda: len(transport.posted) == 2)
        now[0] = 110.0
        transport.land(transport.posted[0], wire=2.0)
        transport.land(transport.posted[1], wire=3.5)
        until(lambda: b.has_landed(timed))
        half = b.submit(peer, [0, 1], [0, 1])
        until(lambda: len(transport.posted) == 4)
        now[0] = 120.0
        transport.land(transport.posted[2], wire=2.0)
        transport.land(transport.posted[3])
        until(lambda: b.has_landed(half))
        result = b.sink.landed_chunks[id(timed)]
        assert (result.latency_source, result.started, result.stopped) == ("engine", 100.0, 103.5)
        result = b.sink.landed_chunks[id(half)]
        assert (result.latency_source, result.started, result.stopped) == ("core", 110.0, 120.0)


def test_one_thread_makes_every_call():
    with bench() as b:
        chunk = b.submit(b.peer("decode"), [1], [1])
        until(lambda: b.has_landed(chunk))
        b.engine.close(5.0)
        made = {name: who for name, who in b.transport.threads.items() if name != "register_memory"}
        assert {"add_peer", "prepare", "submit", "progress", "release", "deregister_memory", "close"} <= set(made)
        assert len(set().union(*made.values())) == 1
        assert threading.get_ident() not in set().union(*made.values())


def test_put_wakes_an_idle_owner_and_an_idle_owner_rests():
    with bench() as b:
        peer = b.peer("decode")
        until(lambda: b.engine.snapshot()["peers"] == 1)
        until(lambda: b.transport.waits > 0)
        before, began = b.transport.waits, monotonic()
        until(lambda: monotonic() - began > 0.3)
        assert b.transport.waits - before <= 3
        assert b.engine.stalled_s() == 0.0
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(chunk))


def test_a_chunk_may_come_before_its_peer():
    with bench() as b:
        peer = b.stranger("decode")
        chunk = b.submit(peer, [3], [4])
        until(lambda: b.engine.snapshot()["queued_chunks"] == 1)
        assert not b.has_landed(chunk)
        from kv_core.protocol.effects import AddPeer

        b.engine.put(AddPeer(peer.key, b"descriptor", peer.layout))
        until(lambda: b.has_landed(chunk))
        b.rest()


def test_ten_thousand_chunks_leave_nothing_behind():
    with bench(source=Memory(seed=3)) as b:
        peers = [b.peer(f"decode-{k}") for k in range(8)]
        chunks = [b.submit(peers[k % 8], [k % 16, (k + 5) % 16], [(k + 3) % 16, (k + 9) % 16]) for k in range(10_000)]
        until(lambda: all(map(b.has_landed, chunks)))
        b.rest()
        assert b.engine.snapshot()["queued_by_shard"] == [0] * len(b.engine.snapshot()["queued_by_shard"])  # type: ignore[arg-type]
        assert b.transport.live == {}


def test_auxiliary_rows_travel_in_the_result_where_the_transport_can_not_write_them():
    with bench(capabilities=ALL - {Capability.AUX}) as b:
        chunk = b.submit(b.peer("decode"), [1], [2], aux=(3, 1))
        until(lambda: b.has_landed(chunk))
        result = b.sink.landed_chunks[id(chunk)]
        assert result.aux_rows == tuple(array[3].tobytes() for array in b.source.arrays["aux"])
        assert result.nbytes == 4 * 64 + 32
        assert all((array == POISON).all() for array in b.targets["decode"].arrays["aux"])

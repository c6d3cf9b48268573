"""Bytes over copies between processes and over TCP: the right ones, in the right places, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from kv_core import Direction, Role, TransportError
from kv_core.contract.transport import PeerKey, PoolPlan, PoolSlice, TransferPlan
from kv_core.layout import Batch, make_batch
from plugins.kv_nixl.tests.nixl_ends import FABRICS, POISON, End, RemoteEnd, batch_of, states


@pytest.fixture(params=list(FABRICS), autouse=True)
def fabric(request, monkeypatch):
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in FABRICS[request.param].items():
        monkeypatch.setenv(name, value)
    return request.param


ORDER = np.random.default_rng(20)


@pytest.mark.parametrize(
    ("shape", "local", "remote"),
    [
        ((4, 64, 4096), ORDER.permutation(64)[:37], ORDER.permutation(64)[:37]),
        ((3, 64, 4096), np.arange(10, 50), np.arange(5, 45)),
        ((2, 8, 32_768), [3], [7]),
        ((1, 5, 1), [4, 0], [1, 2]),
        ((64, 1024, 64), ORDER.permutation(1024), ORDER.permutation(1024)),
    ],
    ids=["random", "contiguous", "one page", "single bytes", "65536 descriptors"],
)
def test_every_byte_lands_where_it_belongs_and_nothing_else_is_touched(shape, local, remote):
    with End(shapes={"kv": shape}) as source, RemoteEnd({"kv": shape}) as target:
        (record,) = source.finish(source.write(source.meet(target), local, remote))
        assert record.state.value == "done", record.error
        assert record.wire_seconds is not None
        assert record.wire_seconds >= 0
        expected = np.full(shape, POISON, np.uint8)
        expected[:, remote] = source.arrays["kv"][:, local]
        assert np.array_equal(target.fetch(), expected)


def test_pages_are_read_from_a_peer_and_nothing_else_is_touched():
    """Pull, both ends in one process: over copies between processes that is one process copying to itself."""
    shape, local, remote = (4, 64, 4096), ORDER.permutation(64)[:37], ORDER.permutation(64)[:37]
    with (
        End(Role.DECODE, {"kv": shape}, seed=None, direction=Direction.READ) as reader,
        End(Role.PREFILL, {"kv": shape}, seed=3, direction=Direction.READ) as source,
    ):
        before = source.arrays["kv"].copy()
        (record,) = reader.finish(reader.write(reader.meet(source), local, remote))
        assert record.state.value == "done", record.error
        expected = np.full(shape, POISON, np.uint8)
        expected[:, local] = before[:, remote]
        assert np.array_equal(reader.arrays["kv"], expected)
        assert np.array_equal(source.arrays["kv"], before)


def test_pages_state_and_auxiliary_rows_travel_in_one_request():
    shapes = {"kv": (4, 32, 8192), "mamba": (2, 8, 1000), "window": (1, 16, 256), "aux": (3, 8, 64)}
    with End(shapes=shapes) as source, RemoteEnd(shapes) as target:
        prepared = source.meet(target)
        state = {"mamba": ([1, 2], [5, 0]), "window": ([9], [3])}
        transfer = source.transport.submit(prepared, batch_of(prepared, [4, 9, 2], [0, 1, 31], state, aux=(6, 1)))
        assert len(transfer.handles) == 1
        assert states(source.finish(transfer)) == ["done"]
        for pool, here, there in (("kv", [4, 9, 2], [0, 1, 31]), ("mamba", [1, 2], [5, 0]), ("window", [9], [3])):
            assert np.array_equal(target.fetch(pool)[:, there], source.arrays[pool][:, here]), pool
        row = target.fetch("aux")
        assert np.array_equal(row[:, 1], source.arrays["aux"][:, 6])
        assert (np.delete(row, 1, axis=1) == POISON).all()


def test_two_peers_with_many_transfers_in_flight_and_pools_of_another_size():
    with End() as source, RemoteEnd() as one, RemoteEnd({"kv": (4, 200, 4096)}) as two:
        ends = (one, two)
        prepared = [source.meet(end) for end in ends]
        transfers = [source.write(prepared[n % 2], [n], [n + 100 * (n % 2)]) for n in range(60)]
        assert set(states(source.finish(*transfers))) == {"done"}
        assert np.array_equal(one.fetch()[:, 0:60:2], source.arrays["kv"][:, 0:60:2])
        assert np.array_equal(two.fetch()[:, 101:161:2], source.arrays["kv"][:, 1:60:2])


def test_a_batch_of_nothing_is_done_at_once():
    with End() as source, RemoteEnd() as target:
        prepared = source.meet(target)
        transfer = source.transport.submit(prepared, batch_of(prepared, [], []))
        assert states(list(source.transport.progress([transfer]))) == ["done"]
        source.transport.release(transfer)


def test_some_layers_only():
    with End() as source, RemoteEnd() as target:
        prepared = source.meet(target)
        items = np.array([5, 6], np.uint64)
        batch = make_batch(prepared.plan, kv=(items, items, range(1, 3)))
        assert states(source.finish(source.transport.submit(prepared, batch))) == ["done"]
        got = target.fetch()
        assert np.array_equal(got[1:3, 5:7], source.arrays["kv"][1:3, 5:7])
        assert (got[[0, 3]] == POISON).all()


def strided_plan(prepared) -> TransferPlan:
    """Lanes with holes: item i here is 4 pieces of 100 bytes, 256 apart; there they are 150 apart, in other strides.
    The second lane's pieces touch on both sides.
    """
    u = lambda *values: np.array(values, np.uint64)  # noqa: E731
    pool = PoolPlan(
        "kv", np.array([0, 1]), u(1, 2), u(3, 0), u(8, 0), u(16, 64), u(1024, 2048), u(700, 512), u(100, 64), u(4, 4),
        u(256, 64), u(150, 64),
    )  # fmt: skip
    return TransferPlan((pool,), prepared.plan.local_regions, prepared.plan.remote_regions)


@pytest.mark.parametrize("strided", [True, False], ids=["prepared lists", "by address"])
def test_unequal_strides_and_repeats(strided, monkeypatch):
    with End() as source, RemoteEnd() as target:
        first = source.meet(target)
        source.transport._strided = strided
        prepared = source.transport.prepare(first.peer, strided_plan(first))
        local, remote = np.array([3, 7, 8, 120], np.uint64), np.array([0, 300, 301, 9], np.uint64)
        batch = Batch([PoolSlice(prepared.plan.pools[0], np.array([1, 0]), local, remote)])
        assert bool(prepared.lists) is strided
        assert states(source.finish(source.transport.submit(prepared, batch))) == ["done"]
        copies = batch.copies()
        expected = np.full((4, 64 * 4096), POISON, np.uint8)
        flat = source.arrays["kv"].reshape(4, -1)
        rows = zip(*(array.tolist() for array in copies), strict=True)
        for here, start, there, stop, length in rows:
            expected[there, stop : stop + length] = flat[here, start : start + length]
        assert np.array_equal(target.fetch().reshape(4, -1), expected)


def test_an_item_outside_of_its_pool_is_refused_and_nothing_is_written():
    with End() as source, RemoteEnd() as target:
        prepared = source.meet(target)
        for local, remote in (([64], [0]), ([0], [64]), ([2**31 + 5], [0])):
            with pytest.raises(TransportError, match="outside of the 64 items") as caught:
                source.write(prepared, local, remote)
            assert caught.value.quiescent
        assert (target.fetch() == POISON).all()


def test_more_memory_of_the_same_agent_is_reached_with_a_new_generation():
    shapes = {"kv": (1, 16, 512)}
    with End(shapes=shapes) as source, End(Role.DECODE, shapes, seed=None) as target:
        target.transport.deregister_memory(target.layout.regions())
        empty = target.descriptor
        source.transport.add_peer(PeerKey(target.name, 1), empty)
        target.transport.register_memory(target.layout.regions())
        source.transport.remove_peer(PeerKey(target.name, 1))
        prepared = source.meet(target, generation=2)
        transfer = source.write(prepared, [1], [2])
        assert states(source.finish(transfer)) == ["done"]
        assert np.array_equal(target.arrays["kv"][:, 2], source.arrays["kv"][:, 1])
        with pytest.raises(TransportError, match="not known") as caught:
            source.transport.prepare(PeerKey(target.name, 1), prepared.plan)
        assert caught.value.quiescent

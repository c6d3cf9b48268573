"""Bytes: the right ones, in the right places, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from kv_core import Role, TransferState, TransportError
from plugins.kv_mori.tests.support_mori import POISON, End, RemoteEnd, batch_of, states

DONE, FAILED, PENDING = TransferState.DONE, TransferState.FAILED, TransferState.PENDING


@pytest.mark.parametrize(
    ("pages", "items", "item_len", "buffers", "options"),
    [
        (1, 4, 4096, 1, {}),
        (7, 64, 4096, 4, {}),
        (64, 128, 1000, 8, {}),
        (33, 40, 1, 3, {"max_outstanding": 5}),
        (600, 700, 256, 2, {"max_outstanding": 100}),
        (30, 40, 9000, 2, {"enable_transfer_chunking": True, "chunk_bytes": 4096, "max_outstanding": 2}),
        (16, 20, 262_147, 2, {"num_worker_threads": 1}),
    ],
)
def test_every_byte_lands_where_it_belongs_and_nothing_else_is_touched(pages, items, item_len, buffers, options):
    shape = {"items": items, "item_len": item_len, "buffers": buffers}
    with End(Role.PREFILL, seed=3, **shape, **options) as source, End(Role.DECODE, fill=POISON, **shape) as target:
        order = np.random.default_rng(5)
        local, remote = order.permutation(items)[:pages], order.permutation(items)[:pages]
        assert states(source.settle(source.write(source.meet(target), local, remote))) == [DONE]
        assert np.array_equal(target.pages[:, remote], source.pages[:, local])
        assert (target.pages[:, np.setdiff1d(np.arange(items), remote)] == POISON).all()
        assert not source.transport._moving


def test_contiguous_pages_cross_a_process_boundary():
    with End(Role.PREFILL, seed=1) as source, RemoteEnd() as target:
        pages = np.arange(64)
        assert states(source.settle(source.write(source.meet(target), pages, pages))) == [DONE]
        assert np.array_equal(target.fetch(), source.pages)


def test_one_submission_is_one_call_with_one_status_for_each_pair_of_regions():
    with End(Role.PREFILL, seed=2) as source, End(Role.DECODE, fill=POISON) as target:
        transfer = source.write(source.meet(target), [5, 1, 3], [2, 9, 4])
        assert len(transfer.statuses) == 4
        assert source.nic.jobs == 4
        assert states(source.settle(transfer)) == [DONE]


def test_many_transfers_to_several_peers_are_in_flight_at_once():
    with End(Role.PREFILL, seed=2) as source:
        targets = [End(Role.DECODE, fill=POISON) for _ in range(3)]
        prepared = [source.meet(target) for target in targets]
        transfers = [source.write(prepared[n % 3], [n], [n]) for n in range(60)]
        assert set(states(source.settle(*transfers))) == {DONE}
        for number, target in enumerate(targets):
            mine = [n for n in range(60) if n % 3 == number]
            assert np.array_equal(target.pages[:, mine], source.pages[:, mine])
            target.transport.close()


def test_what_the_send_queue_has_no_room_for_is_held_back_and_posted_later():
    with (
        End(Role.PREFILL, seed=2, max_outstanding=8) as source,
        End(Role.DECODE, fill=POISON) as target,
        End(Role.DECODE, fill=POISON) as other,
    ):
        prepared, elsewhere = source.meet(target), source.meet(other)
        source.nic.gate.clear()
        transfers = [source.write(prepared, [n, n + 2], [n, n + 2]) for n in range(0, 16, 4)]  # 8 copies each
        assert source.nic.jobs == 4
        free = source.write(elsewhere, [1], [1])
        assert source.nic.jobs == 8, "another peer's queue is not full"
        source.nic.gate.set()
        assert set(states(source.settle(*transfers, free))) == {DONE}
        written = [page for n in range(0, 16, 4) for page in (n, n + 2)]
        assert np.array_equal(target.pages[:, written], source.pages[:, written])


def test_an_empty_batch_is_done_at_once():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        transfer = source.transport.submit(prepared, batch_of(prepared, [], []))
        assert states(list(source.transport.progress([transfer]))) == [DONE]


def test_what_is_outside_the_registered_memory_is_never_posted():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        for local, remote in (([1], [64]), ([64], [1]), ([2**40], [1])):
            with pytest.raises(TransportError, match="registered") as caught:
                source.write(prepared, local, remote)
            assert caught.value.quiescent
        assert source.nic.jobs == 0


def test_late_completions_are_pending_and_a_wake_ends_the_wait():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        source.nic.gate.clear()
        transfer = source.write(prepared, [0], [0])
        assert list(source.transport.progress([transfer])) == []
        assert transfer.state is PENDING
        source.transport.wake()
        source.transport.wait(3600.0)  # returns: it was woken before
        source.nic.gate.set()
        assert states(source.settle(transfer)) == [DONE]


def test_generations_and_removal():
    with End(Role.PREFILL, seed=7) as source, End(Role.DECODE, fill=POISON) as target:
        first = source.meet(target, 1)
        source.transport.remove_peer(first.peer)
        second = source.meet(target, 2)  # the same engine with its queue pairs
        with pytest.raises(TransportError, match="not known any more"):
            source.write(first, [1], [1])
        assert states(source.settle(source.write(second, [3], [4]))) == [DONE]
        assert np.array_equal(target.pages[:, 4], source.pages[:, 3])
        source.transport.remove_peer(second.peer)
        source.transport.remove_peer(second.peer)
        with pytest.raises(TransportError, match="not known"):
            source.prepare(target, 2)


def test_closing_twice_ends_the_engine_and_its_threads():
    end = End(Role.PREFILL)
    nic = end.nic
    end.transport.close()
    end.transport.close()
    end.transport.wake()
    assert not nic.running
    assert not any(thread.is_alive() for thread in nic._threads)

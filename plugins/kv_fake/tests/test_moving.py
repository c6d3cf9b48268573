"""Bytes: the right ones, in the right places, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from kv_core import Role, TransferState, TransportError
from kv_core.contract.transport import PeerKey
from plugins.kv_fake.tests.support import POISON, End, RemoteEnd, batch_of, states

DONE, FAILED = TransferState.DONE, TransferState.FAILED


@pytest.mark.parametrize(
    ("pages", "items", "item_len", "buffers"),
    [(1, 4, 4096, 1), (7, 64, 4096, 4), (64, 128, 1000, 8), (33, 40, 1, 3), (5000, 6000, 256, 2), (16, 20, 262_147, 2)],
)
def test_every_byte_lands_where_it_belongs_and_nothing_else_is_touched(pages, items, item_len, buffers):
    shape = {"items": items, "item_len": item_len, "buffers": buffers}
    with End(Role.PREFILL, seed=3, **shape) as source, End(Role.DECODE, fill=POISON, **shape) as target:
        order = np.random.default_rng(5)
        local, remote = order.permutation(items)[:pages], order.permutation(items)[:pages]
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, local, remote))) == [DONE]
        assert np.array_equal(target.pages[:, remote], source.pages[:, local])
        rest = np.setdiff1d(np.arange(items), remote)
        assert (target.pages[:, rest] == POISON).all()


def test_contiguous_pages_cross_a_process_boundary():
    with End(Role.PREFILL, seed=1) as source, RemoteEnd() as target:
        pages = np.arange(64)
        assert states(source.finish(source.write(source.meet(target), pages, pages))) == [DONE]
        assert np.array_equal(target.fetch(), source.pages)


def test_many_transfers_to_several_peers_are_in_flight_at_once():
    with End(Role.PREFILL, seed=2) as source:
        targets = [End(Role.DECODE, fill=POISON) for _ in range(3)]
        prepared = [source.meet(target) for target in targets]
        transfers = [source.write(prepared[n % 3], [n], [n]) for n in range(60)]
        assert set(states(source.finish(*transfers))) == {DONE}
        for number, target in enumerate(targets):
            mine = [n for n in range(60) if n % 3 == number]
            assert np.array_equal(target.pages[:, mine], source.pages[:, mine])
            target.transport.close()


def test_both_directions_at_once():
    with End(Role.PREFILL, seed=4) as left, End(Role.PREFILL, seed=5) as right:
        lefts, rights = left.pages.copy(), right.pages.copy()
        there = left.write(left.meet(right), range(32), range(32, 64))
        back = right.write(right.meet(left), range(32), range(32, 64))
        assert states(left.finish(there)) + states(right.finish(back)) == [DONE, DONE]
        assert np.array_equal(right.pages[:, 32:], lefts[:, :32])
        assert np.array_equal(left.pages[:, 32:], rights[:, :32])


def test_an_empty_batch_is_done_at_once():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        transfer = source.transport.submit(source.meet(target), batch_of(source.meet(target), [], []))
        assert states(list(source.transport.progress([transfer]))) == [DONE]


def test_segments_outside_registered_memory_are_refused_and_nothing_is_written():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        beyond, good = source.write(prepared, [0, 1], [3, 64]), source.write(prepared, [1], [1])
        refused, done = source.finish(beyond, good)
        assert refused.state is FAILED
        assert refused.quiescent
        assert "segment" in (refused.error or "")
        assert done.state is DONE
        assert (target.pages[:, [0, 2, 3, 63]] == POISON).all()


def test_deregistered_memory_is_refused():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        target.transport.deregister_memory(target.layout.regions()[:1])
        assert states(source.finish(source.write(prepared, [0], [0]))) == [FAILED]
        assert (target.pages == POISON).all()


def test_an_address_that_is_not_mapped_fails_the_transfer_and_not_the_process():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        batch = batch_of(prepared, [0], [0])
        transfer = source.transport.frame(prepared, batch)
        assert transfer.pieces is not None
        transfer.pieces._iov[-1, 0] = 2**63 + 4096
        source.transport.post(transfer)
        (record,) = source.finish(transfer)
        assert record.state is FAILED
        assert "Bad address" in (record.error or "")
        assert states(source.finish(source.write(prepared, [1], [1]))) == [DONE]


@pytest.mark.parametrize(
    "descriptor", [b"", b"x", b"\0\0" + b"t" * 16 + b"host", b"\1\1" + b"t" * 16 + b"\xff\xfe", b"z" * 600]
)
def test_a_senseless_descriptor_is_refused(descriptor):
    with End(Role.PREFILL) as source, pytest.raises(TransportError):
        source.transport.add_peer(PeerKey("somebody", 1), descriptor)


def test_a_stranger_without_the_token_may_not_write():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        descriptor = bytearray(target.descriptor)
        descriptor[5] ^= 1
        key = PeerKey(target.name, 1)
        source.transport.add_peer(key, bytes(descriptor))
        with End(Role.PREFILL) as helper:
            plan = helper.meet(target).plan
        (record,) = source.finish(source.write(source.transport.prepare(key, plan), [0], [0]))
        assert record.state is FAILED
        assert record.quiescent
        assert (target.pages == POISON).all()

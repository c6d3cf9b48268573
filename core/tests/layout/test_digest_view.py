"""Both ends hash the same stream, and another one as soon as a byte is wrong."""

from __future__ import annotations

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from core.tests.layout.support import Memory, batch_pieces, gate, hand_made, head_slices, kv_args, plan_of, u64
from kv_core.contract.memory import Pool
from kv_core.contract.transport import TransferPlan
from kv_core.layout import make_batch, mirror, segments
from kv_core.layout.digest_view import End


def digest(batch, side: End, memory: list[np.ndarray]) -> int:
    stream = xxhash.xxh3_64()
    found = segments(batch, side)
    assert {array.dtype for array in found} == {np.dtype(np.uint64)}
    for region, offset, length in zip(*(array.tolist() for array in found), strict=True):
        assert offset + length <= memory[region].size
        stream.update(memory[region][offset : offset + length].data)
    return stream.intdigest()


def stream_of_the_formula(batch, memory: list[np.ndarray]) -> int:
    stream = xxhash.xxh3_64()
    for piece in batch_pieces(batch):
        region, offset = piece.local
        stream.update(memory[region][offset : offset + piece.length].data)
    return stream.intdigest()


def assert_plans_equal(one: TransferPlan, other: TransferPlan) -> None:
    assert (one.local_regions, one.remote_regions) == (other.local_regions, other.remote_regions)
    assert [pool.pool for pool in one.pools] == [pool.pool for pool in other.pools]
    for mine, theirs in zip(one.pools, other.pools, strict=True):
        for name in vars(mine):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)


@gate(200)
@given(hand_made(), st.none() | st.integers(0, 2).map(range))
def test_both_ends_hash_the_same_bytes(made, layers):
    plan, local, remote = made
    batch = make_batch(plan, (local, remote, layers))
    memory = Memory(plan)
    memory.run(batch.copies())
    source = digest(batch, "local", memory.local)
    assert source == stream_of_the_formula(batch, memory.local)
    assert source == digest(batch, "remote", memory.remote)
    # The peer makes the batch from its own plan, where its memory is the local one.
    theirs = make_batch(mirror(plan), (remote, local, layers))
    assert source == digest(theirs, "local", memory.remote)
    assert source == digest(theirs, "remote", memory.local)
    found = segments(batch, "remote")
    if found.length.size:
        region, offset = int(found.region[-1]), int(found.offset[-1])
        memory.remote[region][offset] ^= 1
        assert source != digest(theirs, "local", memory.remote)


def test_split_batches_hash_to_their_own_streams():
    plan = head_slices(4, 8, range(2), range(4), (10, 10))
    batch = make_batch(plan, (u64(5, 6, 7), u64(1, 9, 2), None))
    memory = Memory(plan)
    for part in batch.split(5, 1 << 20):
        memory.run(part.copies())
        assert digest(part, "local", memory.local) == digest(part, "remote", memory.remote)
    assert digest(batch, "local", memory.local) == digest(batch, "remote", memory.remote)


def test_segments_are_merged_by_what_touches_on_their_own_side():
    plan = head_slices(4, 8, range(2), range(4), (10, 10))
    batch = make_batch(plan, (u64(5, 6, 7), u64(1, 9, 2), range(1)))
    here = segments(batch, "local")
    assert here.length.tolist() == [3 * 4 * 16] * 2
    assert here.offset.tolist() == [5 * 64] * 2
    assert segments(batch, "remote").length.tolist() == [16] * (2 * 3 * 4)


def test_nothing_has_no_segments():
    batch = make_batch(plan_of(kv_args(), kv_args()))
    assert [array.size for array in segments(batch)] == [0, 0, 0]


def test_the_two_sides_make_each_others_mirror():
    def side(base: int, reverse: bool):
        states = [Pool.uniform("conv", [base, base + 64], 7, 5), Pool.uniform("ssm", [base + 128], 3, 5)]
        aux = Pool.uniform("aux", [base + 256], 11, 4)
        return kv_args(3, 5, 6, base=base << 8, states=tuple(reversed(states) if reverse else states), aux=aux)

    prefill, decode = side(1 << 12, reverse=False), side(1 << 20, reverse=True)
    assert_plans_equal(mirror(plan_of(prefill, decode)), plan_of(decode, prefill))
    assert_plans_equal(mirror(mirror(plan_of(prefill, decode))), plan_of(prefill, decode))

"""Batches against the oracle: the right bytes, each once, nothing else, however they are merged and split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tests.layout.support import (
    Memory,
    batch_pieces,
    flat,
    gate,
    hand_made,
    head_slices,
    item_pairs,
    kv_args,
    plan_of,
    u64,
)
from kv_core.contract.memory import Buffer, KVArgs, Pool
from kv_core.layout import Batch, make_batch, slice_for

LAYER_RANGES = st.none() | st.tuples(st.integers(-1, 4), st.integers(-1, 4)).map(lambda pair: range(*pair))


def assert_moves_right(plan, batch: Batch) -> None:
    """The flat form moves what the formula says, and the batch's figures are true."""
    expected, seen = Memory(plan), Memory(plan)
    expected.run_oracle(batch)
    copies = batch.copies()
    seen.run(copies)
    seen.assert_same(expected)
    seen.assert_once()
    all_pieces = batch_pieces(batch)
    assert batch.num_descriptors == len(all_pieces)
    assert batch.nbytes == sum(piece.length for piece in all_pieces) == int(copies.length.sum())
    assert copies.length.size <= len(all_pieces)


@gate(200)
@given(st.integers(1, 4), st.integers(1, 9), item_pairs(), LAYER_RANGES)
def test_equal_topologies(buffers, item_len, items, layers):
    local, remote = items
    most = int(max(local.max(initial=0), remote.max(initial=0))) + 1
    plan = plan_of(kv_args(buffers, item_len, most), kv_args(buffers, item_len, most + 3, base=1 << 30))
    batch = make_batch(plan, (local, remote, layers))
    assert_moves_right(plan, batch)
    # Buffers are whole items: one copy for each run that is one on both sides, on each lane.
    breaks = np.count_nonzero((np.diff(local.astype(int)) != 1) | (np.diff(remote.astype(int)) != 1))
    lanes = len([layer for layer in range(buffers) if layers is None or layer in layers])
    assert batch.copies().length.size == (lanes * (breaks + 1) if local.size else 0)


@gate(300)
@given(hand_made())
def test_any_plan(made):
    plan, local, remote = made
    assert_moves_right(plan, make_batch(plan, (local, remote, None)))


@gate(150)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.integers(1, 3), item_pairs(6))
def test_head_slices_reach_their_heads_and_no_others(tokens, head_bytes, first, heads, items):
    local, remote = items
    mine, theirs = range(first, first + heads), range(8)
    sizes = (int(local.max(initial=0)) + 1, int(remote.max(initial=0)) + 1)
    plan = head_slices(tokens, head_bytes, mine, theirs, sizes)
    batch = make_batch(plan, (local, remote, None))
    assert_moves_right(plan, batch)
    memory = Memory(plan)
    memory.run(batch.copies())
    for source, target in zip(memory.local, memory.remote, strict=True):
        expected = np.zeros((sizes[1], tokens, 8, head_bytes), np.uint8)
        pages = source.reshape(sizes[0], tokens, heads, head_bytes)
        expected[remote.astype(int), :, first : first + heads] = pages[local.astype(int)]
        np.testing.assert_array_equal(target.reshape(expected.shape), expected)


def test_repeats_that_touch_on_both_sides_become_one_copy_and_then_runs():
    plan = head_slices(16, 8, range(4), range(4), (10, 10))  # all heads: the rows touch
    batch = make_batch(plan, (u64(2, 3, 4, 8), u64(5, 6, 7, 1), None))
    assert batch.num_descriptors == 2 * 16 * 4
    assert flat(batch.copies()) == [
        (lane, 2 * 512, lane, 5 * 512, 3 * 512) if run else (lane, 8 * 512, lane, 1 * 512, 512)
        for lane in range(2)
        for run in (True, False)
    ]


def test_repeats_that_touch_on_one_side_only_stay_apart():
    plan = head_slices(4, 8, range(2), range(4), (3, 3))
    copies = make_batch(plan, (u64(0, 1), u64(0, 1), None)).copies()
    assert flat(copies)[:5] == [(0, 16 * r, 0, 32 * r, 16) for r in range(5)]
    assert copies.length.size == 2 * 2 * 4


def test_lanes_of_several_kinds_keep_their_order_and_each_merges_as_it_can():
    one, four = head_slices(1, 8, range(2), range(2), (9, 9)), head_slices(2, 8, range(2), range(4), (9, 9))
    columns = {
        name: np.concatenate([getattr(plan.pools[0], name) for plan in (one, four)])
        for name, value in vars(one.pools[0]).items()
        if isinstance(value, np.ndarray)
    }
    columns["local_region"] = columns["remote_region"] = np.arange(4, dtype=np.uint64)
    for order in ([0, 2, 1, 3], [2, 3, 0, 1]):
        pool = replace(one.pools[0], **{name: column[order] for name, column in columns.items()})
        part = slice_for(replace(one, pools=(pool,)), "kv", u64(3, 4), u64(5, 6))
        whole = {lane: [(lane, 48, lane, 80, 32)] for lane in (0, 1)}
        holes = {lane: [(lane, 96 + 16 * n, lane, 320 + 32 * n, 16) for n in range(4)] for lane in (2, 3)}
        assert flat(Batch([part]).copies()) == [row for lane in order for row in {**whole, **holes}[lane]]


def test_runs_must_count_upwards_on_both_sides():
    plan = plan_of(kv_args(1, 10, 20), kv_args(1, 10, 20))
    cases = {
        ((3, 4, 5), (7, 8, 9)): [(0, 30, 0, 70, 30)],
        ((3, 4, 5), (9, 8, 7)): [(0, 30, 0, 90, 10), (0, 40, 0, 80, 10), (0, 50, 0, 70, 10)],
        ((5, 4), (5, 4)): [(0, 50, 0, 50, 10), (0, 40, 0, 40, 10)],
        ((3, 4, 6), (7, 8, 9)): [(0, 30, 0, 70, 20), (0, 60, 0, 90, 10)],
    }
    for (local, remote), expected in cases.items():
        assert flat(make_batch(plan, (u64(*local), u64(*remote), None)).copies()) == expected


def test_unequal_item_lengths_within_a_pool():
    buffers = (Buffer(4096, 8, 6, 0, "k"), Buffer(8192, 24, 6, 0, "v"), Buffer(12288, 8, 6, 1, "k"))
    args = KVArgs(kv=Pool("kv", buffers))
    plan = plan_of(args, args)
    batch = make_batch(plan, (u64(4, 5, 0), u64(1, 2, 3), None))
    assert_moves_right(plan, batch)
    assert flat(batch.copies())[2:4] == [(1, 96, 1, 24, 48), (1, 0, 1, 72, 24)]


def test_kv_states_and_auxiliary_row_in_one_batch():
    def side(base: int, names: tuple[str, ...]) -> KVArgs:
        pools = {"conv": Pool.uniform("conv", [base, base + 64], 7, 5), "ssm": Pool.uniform("ssm", [base + 128], 3, 5)}
        aux = Pool.uniform("aux", [base + 256], 11, 4)
        return kv_args(2, 5, 6, base=1 << 30, states=tuple(pools[name] for name in names), aux=aux)

    plan = plan_of(side(1 << 12, ("conv", "ssm")), side(1 << 20, ("ssm", "conv")))
    states = {"ssm": (u64(0), u64(4)), "conv": (u64(1, 2), u64(2, 3))}
    batch = make_batch(plan, (u64(1), u64(2), range(1)), states, (3, 0))
    assert [part.plan.pool for part in batch.slices] == ["kv", "conv", "ssm", "aux"]
    assert_moves_right(plan, batch)
    # Region numbers are each side's own: kv, conv, ssm, aux here and kv, ssm, conv, aux there.
    assert flat(batch.copies()) == [
        (0, 5, 0, 10, 5), (2, 7, 3, 14, 14), (3, 7, 4, 14, 14), (4, 0, 2, 12, 3), (5, 33, 5, 0, 11),
    ]  # fmt: skip


def test_addresses_and_offsets_use_all_64_bits():
    top = 2**64 - 3 * 4096
    far = 2**63 + 12_345  # a region of more than half of the address space: offsets in it have bit 63 set
    args = KVArgs(kv=Pool("kv", (Buffer(1, far, 1, 0), Buffer(top, 4096, 1, 1))))
    plan = plan_of(args, args)
    assert [region.address for region in plan.remote_regions] == [1, top]
    assert make_batch(plan, (u64(0), u64(0), None)).copies().length.tolist() == [far, 4096]
    small = KVArgs(kv=Pool("kv", (Buffer(1, 1, far, 0), Buffer(2, 1, far, 1))))
    plan = plan_of(small, small)
    local, remote = u64(2**63 + 1, 2**63 + 2, 5), u64(2**63 - 1, 2**63, 2**63 + 12_344)
    rows = [(2**63 + 1, 2**63 - 1, 2), (5, 2**63 + 12_344, 1)]
    copies = make_batch(plan, (local, remote, None)).copies()
    assert flat(copies) == [(lane, here, lane, there, n) for lane in range(2) for here, there, n in rows]
    shifted = replace(plan.pools[0], remote_offset=u64(7, 2**64 - 1 - (2**63 + 12_344)))
    copies = Batch([slice_for(replace(plan, pools=(shifted,)), "kv", local, remote)]).copies()
    assert copies.remote_offset.tolist() == [2**63 + 6, 2**63 + 12_351, 2**64 - 2 - 12_344, 2**64 - 1]


@gate(200)
@given(hand_made(), st.integers(1, 60), st.integers(1, 200), LAYER_RANGES)
def test_splitting_covers_exactly_within_the_limits(made, max_descriptors, max_bytes, layers):
    plan, local, remote = made
    whole = make_batch(plan, (local, remote, layers))
    parts = list(whole.split(max_descriptors, max_bytes))
    seen, expected = Memory(plan), Memory(plan)
    expected.run_oracle(whole)
    for part in parts:
        seen.run(part.copies())
        assert part.num_descriptors > 0
        if part.num_descriptors > max_descriptors or part.nbytes > max_bytes:
            # More than asked only where a lane's piece of one item is too much by itself.
            assert [(one.lanes.size, one.local_items.size) for one in part.slices] == [(1, 1)]
    seen.assert_same(expected)
    assert sum(part.nbytes for part in parts) == whole.nbytes
    assert sum(part.num_descriptors for part in parts) == whole.num_descriptors
    assert sorted(piece for part in parts for piece in batch_pieces(part)) == sorted(batch_pieces(whole))


def test_splitting_fills_batches_and_keeps_order():
    plan = plan_of(
        kv_args(4, 10, 50, aux=Pool.uniform("aux", [64], 8, 4)), kv_args(4, 10, 50, aux=Pool.uniform("aux", [64], 8, 4))
    )
    items = np.arange(10, dtype=np.uint64)
    batch = make_batch(plan, (items, items, None), aux=(1, 2))
    parts = list(batch.split(13, 10_000))  # three items of four lanes, and one copy more
    assert [part.num_descriptors for part in parts] == [12, 12, 12, 5]
    assert [part.slices[0].local_items.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [part.plan.pool for part in parts[-1].slices] == ["kv", "aux"]
    assert list(batch.split(41, 408)) == [batch]
    assert [part.nbytes for part in batch.split(41, 80)] == [80, 80, 80, 80, 80, 8]
    # Less than an item: lanes 0 to 2, then lane 3.
    narrow = list(batch.split(3, 10_000))
    assert [one.lanes.tolist() for part in narrow[:10] for one in part.slices] == [[0, 1, 2]] * 10
    assert [one.lanes.tolist() for part in narrow[10:-1] for one in part.slices] == [[3]] * 3
    assert [part.num_descriptors for part in narrow] == [3] * 13 + [2]
    # Groups of lanes are as large as the limits allow, by copies and by bytes.
    for pair in (list(batch.split(2, 10_000)), list(batch.split(99, 25))):
        assert [one.lanes.tolist() for part in pair[:20] for one in part.slices] == [[0, 1]] * 10 + [[2, 3]] * 10
    with pytest.raises(ValueError, match="max_descriptors is 0"):
        next(batch.split(0, 1))


def test_limits_beyond_64_bits_are_no_limits():
    plan = plan_of(kv_args(), kv_args())
    batch = make_batch(plan, (u64(1, 2), u64(3, 4), None))
    assert list(batch.split(2**70, 2**70)) == [batch]
    assert [part.num_descriptors for part in batch.split(1, 2**70)] == [1, 1, 1, 1]


def test_an_empty_batch_has_no_slices():
    plan = plan_of(kv_args(), kv_args())
    for batch in (
        Batch(()),
        make_batch(plan),
        make_batch(plan, (u64(), u64(), None)),
        make_batch(plan, (u64(1), u64(1), range(9, 12))),
    ):
        assert (batch.slices, batch.nbytes, batch.num_descriptors) == ((), 0, 0)
        assert flat(batch.copies()) == []
        assert list(batch.split(1, 1)) == []


def test_layers_are_chosen_by_number():
    buffers = tuple(Buffer(4096 * (i + 1), 8, 6, layer) for i, layer in enumerate((5, 5, 9, -1)))
    plan = plan_of(KVArgs(kv=Pool("kv", buffers)), KVArgs(kv=Pool("kv", buffers)))
    chosen = {None: [0, 1, 2, 3], range(6): [0, 1], range(6, 9): [], range(9, 99): [2], range(-1, 0): [3]}
    for layers, lanes in chosen.items():
        assert slice_for(plan, "kv", u64(1), u64(1), layers).lanes.tolist() == lanes
    with pytest.raises(ValueError, match="step 1"):
        slice_for(plan, "kv", u64(1), u64(1), range(0, 6, 2))


def test_what_a_slice_refuses():
    plan = plan_of(kv_args(), kv_args())
    with pytest.raises(ValueError, match=r"no pool 'ssm' in this plan, only \['kv'\]"):
        slice_for(plan, "ssm", u64(1), u64(1))
    with pytest.raises(ValueError, match="no pool 'aux'"):
        make_batch(plan, aux=(1, 2))
    with pytest.raises(ValueError, match="no pool 'ssm'"):
        make_batch(plan, states={"ssm": (u64(1), u64(1))})
    with pytest.raises(ValueError, match="2 local items can't go with 1 remote"):
        slice_for(plan, "kv", u64(1, 2), u64(1))
    with pytest.raises(ValueError, match="remote items must be a uint64 array of one dimension, got int64"):
        slice_for(plan, "kv", u64(1), np.array([1]))
    with pytest.raises(ValueError, match=r"of shape \(1, 1\)"):
        slice_for(plan, "kv", u64(1).reshape(1, 1), u64(1))

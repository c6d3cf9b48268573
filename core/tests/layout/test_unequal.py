"""Unequal topologies: the lanes that come of them, what is refused and by which rule, and what a table tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.tests.layout.support import flat, u64
from kv_core.contract.items import ItemBlock, ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology
from kv_core.contract.transport import PoolPlan
from kv_core.layout import (
    Difference,
    LayoutMismatch,
    MemoryLayout,
    Move,
    Pages,
    UnsupportedTopology,
    differences,
    explain,
    mirror,
    missing_layers,
    page_batch,
    plan_transfer,
)

HEADS, HEAD_BYTES, ITEMS = 8, 4, 64
ALONE = Topology()


def side(
    place: Topology = ALONE, *, heads=HEADS, page=4, order="NHD", fused=False, layers=(0, 1), states=(), bare=False
):
    parts = ("k", "v") if fused else ("",)
    item = ItemLayout.page(page, heads, HEAD_BYTES, tp_size=place.tp_size, order=order, parts=parts)
    names = ("",) if fused else ("k", "v")
    length, told = item.nbytes, None if bare else item
    buffers = [
        Buffer(4096 + n * length * ITEMS, length, ITEMS, layer, part, told)
        for n, (layer, part) in enumerate((layer, part) for layer in layers for part in names)
    ]
    return KVArgs(Pool("kv", tuple(buffers)), states=states, page_size=page, topology=place)


def plan(source: KVArgs, destination: KVArgs, **more):
    layouts = MemoryLayout.of(source), MemoryLayout.of(destination)
    return plan_transfer(*layouts, local_topology=source.topology, remote_topology=destination.topology, **more)


def tp(rank: int, size: int) -> Topology:
    return Topology(tp_rank=rank, tp_size=size)


def columns(pool: PoolPlan) -> list[tuple[int, ...]]:
    """(offset, repeats, length) of each lane here and there."""
    rows = zip(
        pool.local_offset.tolist(),
        pool.remote_offset.tolist(),
        pool.inner_count.tolist(),
        pool.length.tolist(),
        strict=True,
    )
    return list(rows)


def test_a_described_pool_of_equal_topologies_has_the_plan_of_an_opaque_one():
    for place in (Topology(), Topology(1, 4, 1, 2, 1, 3, 1, 2)):
        for fused in (False, True):
            told, opaque = (plan(*[side(place, fused=fused, bare=bare)] * 2) for bare in (False, True))
            for mine, theirs in zip(told.pools, opaque.pools, strict=True):
                for name in vars(mine):
                    np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)


def test_token_by_token_a_slice_of_heads_is_a_lane_whose_repeats_are_the_tokens():
    (pool,) = plan(side(tp(1, 4)), side(tp(0, 2))).pools
    assert columns(pool) == [(0, 2 * HEAD_BYTES, 4, 2 * HEAD_BYTES)] * 4
    assert set(pool.local_inner_stride.tolist()) == {2 * HEAD_BYTES}
    assert set(pool.remote_inner_stride.tolist()) == {4 * HEAD_BYTES}
    assert (pool.layer.tolist(), pool.local_region.tolist(), pool.remote_region.tolist()) == (
        [0, 0, 1, 1], [0, 1, 2, 3], [0, 1, 2, 3],
    )  # fmt: skip


def test_head_by_head_a_slice_of_heads_is_one_copy():
    (pool,) = plan(side(tp(1, 4), order="HND"), side(tp(0, 2), order="HND")).pools
    assert columns(pool) == [(0, 2 * 4 * HEAD_BYTES, 1, 2 * 4 * HEAD_BYTES)] * 4


def test_between_the_orders_the_longer_axis_repeats():
    (pool,) = plan(side(tp(0, 4)), side(tp(0, 4), order="HND")).pools  # two heads of four tokens
    assert columns(pool) == [(0, 0, 4, 4), (4, 16, 4, 4)] * 4
    (pool,) = plan(side(page=4), side(page=4, order="HND")).pools  # eight heads
    assert columns(pool) == [(32 * token, 4 * token, 8, 4) for token in range(4)] * 4
    (pool,) = plan(side(tp(0, 8)), side(tp(0, 8), order="HND")).pools  # one head: the orders are the same
    assert columns(pool) == [(0, 0, 1, 16)] * 4


def test_keys_and_values_in_one_buffer_and_in_two():
    (pool,) = plan(side(fused=True), side()).pools
    assert columns(pool) == [(0, 0, 1, 128), (128, 0, 1, 128)] * 2
    assert (pool.local_region.tolist(), pool.remote_region.tolist()) == ([0, 0, 1, 1], [0, 1, 2, 3])
    (pool,) = plan(side(fused=True), side(fused=True)).pools
    assert columns(pool) == [(0, 0, 1, 256)] * 2


@pytest.mark.parametrize("sends", [True, False])
def test_smaller_pages_are_the_items_where_rows_fill_a_larger_one(sends):
    here, there = (side(page=4), side(page=16)) if sends else (side(page=16), side(page=4))
    made = plan(here, there)
    (pool,) = made.pools
    assert (pool.phases, pool.num_lanes) == (1, 4)
    assert (pool.local_ratio, pool.remote_ratio) == ((1, 4) if sends else (4, 1))
    assert set(pool.local_stride.tolist() + pool.remote_stride.tolist()) == {128}
    small, large = Pages(u64(*range(20, 30))), Pages(u64(3, 4, 9))
    batch = page_batch(made, {"kv": (small, large) if sends else (large, small)}, range(1))
    runs = [(20 * 128, 12 * 128, 8 * 128), (28 * 128, 36 * 128, 2 * 128)]  # the last larger page in part
    expected = [(lane, *((a, b) if sends else (b, a)), length) for lane in (0, 1) for a, b, length in runs]
    assert [(a, b, d, e) for a, b, _, d, e in flat(batch.copies())] == expected


def test_elsewhere_each_part_of_a_larger_page_has_its_lanes():
    made = plan(side(page=4, order="HND"), side(page=16, order="HND"))
    (pool,) = made.pools
    assert (pool.phases, pool.num_lanes) == (4, 16)
    assert pool.inner_count.tolist() == [8] * 16
    batch = page_batch(made, {"kv": (Pages(u64(5, 6, 7), first=3), Pages(u64(2, 1)))}, range(1, 2))
    seen = [(part.lanes.tolist(), part.local_items.tolist(), part.remote_items.tolist()) for part in batch.slices]
    assert seen == [([2, 3], [6], [1]), ([6, 7], [7], [1]), ([14, 15], [5], [2])]
    other = mirror(made).pools[0]
    assert (other.local_ratio, other.remote_ratio, other.phases) == (4, 1, 4)


def test_only_a_window_of_the_pages_and_only_what_decode_does_not_have():
    made = plan(side(), side())
    for mine, theirs, pairs in (
        (Pages(u64(*range(10))), Pages(u64(50, 51, 52), first=7), [(7, 50), (8, 51), (9, 52)]),
        (Pages(u64(3, 4), first=2), Pages(u64(60, 61, 62)), [(3, 62)]),
        (Pages(u64(3, 4)), Pages(u64(60), first=2), []),
        # ranks 1 of 3 and 0 of 2: positions 1, 4, 7 and 0, 2, 4, 6
        (Pages(u64(30, 31, 32), 1, 3), Pages(u64(40, 41, 42, 43), 0, 2), [(31, 42)]),
    ):
        for part in page_batch(made, {"kv": (mine, theirs)}).slices or [None]:
            seen = [] if part is None else list(zip(part.local_items.tolist(), part.remote_items.tolist(), strict=True))
            assert seen == pairs


def test_ranges_of_layers_with_the_lanes_of_pages():
    made = plan(side(layers=range(4)), side(page=16, order="HND", layers=range(4)))
    pages = {"kv": (Pages(u64(*range(8))), Pages(u64(0, 1)))}
    whole, halves = page_batch(made, pages), [page_batch(made, pages, range(n, n + 2)) for n in (0, 2)]
    assert sum(half.nbytes for half in halves) == whole.nbytes == 4 * 2 * 2 * 16 * HEADS * HEAD_BYTES
    rows = sorted(flat(whole.copies()))
    assert rows == sorted(row for half in halves for row in flat(half.copies()))
    with pytest.raises(ValueError, match="step 1"):
        page_batch(made, pages, range(0, 4, 2))


def test_a_pool_of_which_nothing_moves_is_left_out():
    aux = Pool.uniform("aux", [1 << 40], 7, 3)
    here, there = (replace(side(tp(rank, 2)), aux=aux) for rank in (0, 1))
    assert plan(here, there).pools == ()
    here, there = replace(side(tp(1, 4)), aux=aux), replace(side(tp(0, 2)), aux=aux)
    made = plan(here, there)  # heads, but rank 0 sends the row
    assert [pool.pool for pool in made.pools] == ["kv"]
    row = {"aux": (Pages(u64(1)), Pages(u64(2)))}
    assert page_batch(made, row).slices == ()
    assert page_batch(plan(replace(side(tp(0, 4)), aux=aux), there), row).nbytes == 7


# -- refusals ----------------------------------------------------------------------------------------------------------


def conv(length: int = 48) -> Pool:
    return Pool.uniform("conv", [1 << 40], length, 4)


def scales(place: Topology, *, rows=1, unit=2, total=HEADS) -> Pool:
    item = ItemLayout((ItemBlock(max(total // place.tp_size, 1), total, unit, rows),))
    return Pool.uniform("scales", [1 << 41], item.nbytes, 4, item=item)


REFUSED = {
    "opaque": (
        side(tp(0, 2), states=(conv(),)), side(tp(0, 4), states=(conv(),)),
        "not described", [("conv: tp_size", "2", "4")],
    ),
    "page sizes": (side(page=4), side(page=6), "one page size must divide", [("kv.tokens", "4", "6")]),
    "layers without numbers": (
        side(Topology(pp_size=2), layers=(-1,)), side(layers=(-1,)), "needs its layer", [("kv.layer", "-1", "-1")],
    ),
    "stages": (
        side(Topology(pp_size=2), layers=(0, 1)), side(Topology(pp_size=2), layers=(0, 1, 2)),
        "as many pipeline stages", [("kv.layer", "0..1", "0..2")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_topologies_that_break_a_rule_are_refused_with_it(name):
    source, destination, rule, expected = REFUSED[name]
    with pytest.raises(UnsupportedTopology, match=rule) as caught:
        plan(source, destination)
    assert list(caught.value.differences) == [Difference(*row) for row in expected]
    layouts = MemoryLayout.of(source), MemoryLayout.of(destination)
    places = {"local_topology": source.topology, "remote_topology": destination.topology}
    assert differences(*layouts, **places) == caught.value.differences


MISMATCHED = {
    "other heads": (side(heads=8), side(heads=16), [("kv.total[0..3]", "8", "16")]),
    "other parts": (side(fused=True, layers=(0,)), replace(side(layers=(0,)), kv=Pool("kv", (side().kv.buffers[0],))),
                    [("kv.part", "'k', 'v'", "'k'")]),
    "another number of layers": (side(layers=(0, 1)), side(layers=(0,)), [("kv.layer", "0..1", "0")]),
    "a state that one side has": (side(states=(conv(),)), side(), [("pool conv", "1 buffers", "absent")]),
    "other states": (side(states=(conv(4),)), side(states=(conv(6),)), [("conv.item_len[0]", "4", "6")]),
    "a state that one side describes": (
        side(states=(scales(Topology()),)), side(states=(replace(conv(), name="scales"),)),
        [("scales.item", "described", "opaque")],
    ),
    "other rows": (
        side(states=(scales(Topology(), rows=2),)), side(states=(scales(Topology(), rows=3),)),
        [("scales.rows", "2 in 0 tokens", "3 in 0 tokens")],
    ),
    "other units": (
        side(states=(scales(Topology(), unit=2),)), side(states=(scales(Topology(), unit=4),)),
        [("scales.unit_bytes[0]", "2", "4")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MISMATCHED))
def test_other_models_are_refused_with_every_difference(name):
    source, destination, expected = MISMATCHED[name]
    with pytest.raises(LayoutMismatch) as caught:
        plan(source, destination)
    assert type(caught.value) is LayoutMismatch
    assert list(caught.value.differences) == [Difference(*row) for row in expected]


def test_heads_that_can_not_be_shared_and_a_rank_that_has_not_its_share():
    layout = MemoryLayout.of(side(tp(0, 2)))
    with pytest.raises(UnsupportedTopology, match="must be shared evenly") as caught:
        plan_transfer(layout, layout, local_topology=tp(0, 2), remote_topology=tp(0, 3))
    assert caught.value.differences == (Difference("kv.total", "8 units by 2 ranks", "8 units by 3 ranks"),)
    with pytest.raises(LayoutMismatch) as mismatch:
        plan_transfer(layout, layout, local_topology=tp(0, 2), remote_topology=tp(0, 4))
    assert mismatch.value.differences == (Difference("kv.units", "right", "4 of 8, its share is 2"),)


def test_a_rule_and_a_mismatch_are_told_together():
    source, destination = side(page=4, states=(conv(4),)), side(page=6, states=(conv(6),))
    with pytest.raises(LayoutMismatch) as caught:
        plan(source, destination)
    assert type(caught.value) is LayoutMismatch
    assert [d.field for d in caught.value.differences] == ["kv.tokens", "conv.item_len[0]"]


def test_a_described_side_and_an_opaque_one_need_equal_topologies():
    assert plan(side(), side(bare=True)).pools[0].num_lanes == 4
    with pytest.raises(UnsupportedTopology, match=r"unless both describe their items"):
        plan(side(tp(0, 2)), side(heads=4, bare=True))


def test_layers_that_nobody_has():
    decode = MemoryLayout.of(side(layers=(0, 1, 2, 3)))
    stages = [MemoryLayout.of(side(layers=layers)) for layers in ((0, 1), (3,))]
    assert missing_layers(decode, stages) == (Difference("kv.layer", "0..3", "0..1, 3"),)
    assert missing_layers(MemoryLayout.of(side(layers=(1, 3))), stages) == ()
    uneven = side(Topology(pp_size=2), layers=(0, 1)), side(Topology(pp_size=2), layers=(0, 1, 2))
    assert plan(*uneven, uneven=True).pools[0].layer.tolist() == [0, 0, 1, 1]


# -- what is told ------------------------------------------------------------------------------------------------------


def test_what_would_move_is_told_by_heads_and_layers():
    aux = Pool.uniform("aux", [1 << 40], 7, 3)
    source, destination = replace(side(tp(2, 4)), aux=aux), replace(side(tp(1, 2), page=8), aux=aux)
    layouts = MemoryLayout.of(source), MemoryLayout.of(destination)
    ranks = (2, 0, 0, 0), (1, 0, 0, 0)
    assert explain(*layouts, source.topology, destination.topology) == (
        Move(*ranks, "kv", "0..1", "k, v", "4..5 of 8", 4, "all", 4 * 4 * 2 * HEAD_BYTES, 4 * 4),
        Move(*ranks, "aux", "-", "", "all", 0, "all", 7, 1),
    )
    assert explain(*layouts, tp(0, 4), destination.topology) == ()


def test_what_would_move_between_context_parallel_ranks_and_taking_turns():
    source = side(Topology(tp_rank=1, tp_size=2, cp_rank=1, cp_size=3), heads=1, layers=range(6))
    destination = side(Topology(cp_size=2), heads=1, layers=range(6))
    layouts = MemoryLayout.of(source), MemoryLayout.of(destination)
    (move,) = explain(*layouts, source.topology, destination.topology)
    assert (move.layers, move.units, move.pages, move.descriptors_per_page) == ("1..5 by 2", "all", "1 of 6", 6)
    assert move.as_dict()["source"] == [1, 0, 1, 0]


def test_what_would_move_of_opaque_pools():
    args = side(bare=True)
    layout = MemoryLayout.of(args)
    (move,) = explain(layout, layout, Topology(), Topology())
    assert (move.pool, move.layers, move.units, move.bytes_per_page, move.descriptors_per_page) == (
        "kv", "0..1", "all", 512, 4,
    )  # fmt: skip

"""Which pools are staged, and of what memory units are made. That bytes come where they belong: ``test_topologies``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kv_core.contract.enums import MemoryKind
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology
from kv_core.contract.transport import TransferPlan
from kv_core.layout import MemoryLayout, mirror, plan_transfer
from kv_core.layout.staging import Slab, StagedPool, staged_pools

TOKENS, HEADS, HEAD_BYTES, ITEMS = 4, 4, 32, 8
ROOMY = 1 << 20


def side(tp_size: int, *, gap: int = 0, order: str = "NHD", kind: MemoryKind = MemoryKind.HOST) -> KVArgs:
    """The first rank: three buffers with gaps between them."""
    item = ItemLayout.page(TOKENS, HEADS, HEAD_BYTES, tp_size=tp_size, order=order)
    step = item.nbytes * ITEMS + gap
    buffers = tuple(Buffer(4096 + n * step, item.nbytes, ITEMS, n, "k", item) for n in range(3))
    return KVArgs(Pool("kv", buffers, kind), page_size=TOKENS, topology=Topology(tp_size=tp_size))


def plan(source: KVArgs, destination: KVArgs) -> TransferPlan:
    """From the one to the other."""
    layouts = MemoryLayout.of(source), MemoryLayout.of(destination)
    return plan_transfer(*layouts, local_topology=source.topology, remote_topology=destination.topology)


def only(found: dict[str, StagedPool]) -> StagedPool:
    """The one pool that is staged."""
    (pool,) = found.values()
    return pool


@pytest.mark.parametrize(("gap", "slabs"), [(0, 1), (64, 3)])
def test_a_slab_is_buffers_without_a_gap_and_nothing_else(gap, slabs):
    args = side(1, gap=gap)
    pool = only(staged_pools(plan(args, side(2)), 4096, ROOMY))
    assert len(pool.slabs) == slabs
    assert sum(slab.nbytes for slab in pool.slabs) == sum(buffer.nbytes for buffer in args.kv.buffers)
    assert pool.slabs[0] == Slab(4096, args.kv.buffers[0].nbytes * (3 if slabs == 1 else 1))
    runs = list(pool.runs(np.arange(pool.plan.num_lanes)))
    assert [slab for slab, _ in runs] == list(range(slabs))
    assert [unit for _, units in runs for unit in range(pool.units)[units]] == list(range(pool.units))


def test_lanes_that_are_left_out_are_left_out_of_the_runs():
    pool = only(staged_pools(plan(side(1), side(2)), 4096, ROOMY))
    each = pool.units // 3
    assert list(pool.runs(np.array([0, 2]))) == [(0, slice(0, each)), (0, slice(2 * each, 3 * each))]


def test_a_row_has_the_items_bytes_and_a_lane_a_run():
    whole = plan(side(1), side(2))
    pool = only(staged_pools(whole, 4096, ROOMY))
    run = TOKENS * HEADS // 2 * HEAD_BYTES
    assert pool.row_bytes == 3 * run
    assert pool.plan.length.tolist() == [run] * 3
    assert pool.plan.inner_count.tolist() == [1] * 3
    assert pool.plan.local_offset.tolist() == [0, run, 2 * run]
    assert set(pool.plan.local_region.tolist()) == {len(whole.local_regions)}
    assert pool.plan.remote_offset.tolist() == whole.pools[0].remote_offset.tolist()
    assert pool.unit == HEADS // 2 * HEAD_BYTES


@pytest.mark.parametrize(
    ("source", "destination", "below", "area"),
    [
        (side(2), side(2), 4096, ROOMY), (side(2), side(1), 4096, ROOMY), (side(1), side(2), HEADS // 2 * HEAD_BYTES, ROOMY),
        (side(1), side(2), 4096, 2 * 3 * TOKENS * HEADS // 2 * HEAD_BYTES - 1), (side(1, kind=MemoryKind.CUDA), side(2), 4096, ROOMY),
        (side(1, order="HND"), side(2, order="HND"), 4096, ROOMY),
    ],
    ids=["whole pages", "apart over there", "long enough", "no room for two", "no host memory", "runs already"],
)  # fmt: skip
def test_what_gains_nothing_or_can_not_be_is_not_staged(source, destination, below, area):
    assert staged_pools(plan(source, destination), below, area) == {}


def test_what_is_apart_here_is_staged_whichever_side_sends():
    found = mirror(plan(side(2), side(1)))
    assert only(staged_pools(found, 4096, ROOMY)).units == 3 * TOKENS
    phased = replace(found, pools=tuple(replace(pool, phases=3) for pool in found.pools))
    assert staged_pools(phased, 4096, ROOMY) == {}

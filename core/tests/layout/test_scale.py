"""100,000 pages in 128 buffers: no Python object per page, and memory bounded by the batch, not by the room."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

from core.tests.layout.support import kv_args, plan_of
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import KVArgs, Pool, Topology
from kv_core.contract.transport import TransferPlan
from kv_core.layout import Batch, MemoryLayout, Pages, check_indices, make_batch, page_batch, plan_transfer, segments

PAGES = 100_000
BUFFERS = 128
ITEM_LEN = 4_096
MAX_DESCRIPTORS = 4_096


@pytest.fixture(scope="module")
def plan() -> TransferPlan:
    args = kv_args(BUFFERS, ITEM_LEN, PAGES, base=1 << 63)
    return plan_of(args, args)


@pytest.fixture(scope="module")
def scattered() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.permutation(PAGES).astype(np.uint64), rng.permutation(PAGES).astype(np.uint64)


def blocks_made(work) -> tuple[int, Any]:
    """How many live memory blocks of the interpreter the work leaves; its result is kept alive meanwhile."""
    gc.collect()
    before = sys.getallocatedblocks()
    result = work()
    return sys.getallocatedblocks() - before, result


def test_scattered_pages_are_split_in_bounded_memory(plan, scattered):
    tracemalloc.start()
    try:
        batch = make_batch(plan, (*scattered, None))
        assert batch.num_descriptors == PAGES * BUFFERS
        assert batch.nbytes == PAGES * BUFFERS * ITEM_LEN
        parts = copies = 0
        for part in batch.split(MAX_DESCRIPTORS, 1 << 40):
            assert part.num_descriptors <= MAX_DESCRIPTORS
            parts += 1
            if parts % 16 == 1:  # one in sixteen: tracing makes this slow, and they are all alike
                copies = max(copies, part.copies().length.size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parts == PAGES // (MAX_DESCRIPTORS // BUFFERS)
    assert copies > MAX_DESCRIPTORS * 0.99  # hardly two neighbours in a row touch
    # 40 bytes for each copy of one batch and as much again in passing; the room's 12.8 million would take 512 MB.
    assert peak < 2 * 40 * MAX_DESCRIPTORS + 200_000


def test_no_object_per_page(plan, scattered):
    made, batch = blocks_made(lambda: make_batch(plan, (*scattered, None)))
    assert made < 50
    assert isinstance(batch, Batch)
    first = next(iter(batch.split(PAGES, 1 << 60)))
    assert first.num_descriptors > PAGES - BUFFERS
    made, copies = blocks_made(first.copies)
    assert made < 50
    made, stream = blocks_made(lambda: segments(first, "remote"))
    assert made < 50
    made, checked = blocks_made(lambda: check_indices(scattered[0].astype(np.int64), PAGES))
    assert made < 50
    assert (copies, stream, checked) != (None, None, None)


def test_contiguous_pages_are_one_copy_for_each_buffer(plan):
    items = np.arange(PAGES, dtype=np.uint64)
    made, copies = blocks_made(lambda: make_batch(plan, (items, items, None)).copies())
    assert made < 50
    assert copies.length.tolist() == [PAGES * ITEM_LEN] * BUFFERS


def test_every_page_is_split_off_once(plan, scattered):
    seen = np.zeros(PAGES, np.uint32)
    for part in make_batch(plan, (*scattered, None)).split(MAX_DESCRIPTORS, 1 << 24):
        (one,) = part.slices
        assert one.lanes.size == BUFFERS
        seen[one.remote_items.astype(np.intp)] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_no_object_per_page_between_unequal_topologies(order, scattered):
    def side(place: Topology, page: int) -> MemoryLayout:
        item = ItemLayout.page(page, 8, 2, tp_size=place.tp_size, order=order)
        kv = Pool.uniform("kv", [1 << 40] * BUFFERS, item.nbytes, PAGES, item=item)
        return MemoryLayout.of(KVArgs(kv, page_size=page, topology=place))

    places = Topology(1, 4), Topology(0, 2)
    plan = plan_transfer(side(places[0], 4), side(places[1], 16), local_topology=places[0], remote_topology=places[1])
    small, large = Pages(scattered[0]), Pages(scattered[1])
    made, batch = blocks_made(lambda: page_batch(plan, {"kv": (small, large)}))
    assert made < 200
    assert batch.nbytes == PAGES * BUFFERS * 4 * 2 * 2
    first = next(iter(batch.split(PAGES, 1 << 60)))
    made, copies = blocks_made(first.copies)
    assert made < 50
    assert copies.length.size >= PAGES - 4 * BUFFERS

"""Descriptions of items: what they add up to, and what is refused."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import pytest

from kv_core.contract.failures import InvalidConfig
from kv_core.contract.items import MAX_PIECES, ItemBlock, ItemLayout, pieces_of, units_held
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology


def test_units_are_shared_evenly_or_held_by_as_many_ranks():
    assert [units_held(8, size) for size in (1, 2, 4, 8, 16)] == [8, 4, 2, 1, 1]
    for total, size in ((8, 3), (8, 12), (0, 1)):
        with pytest.raises(InvalidConfig, match="one of the two numbers must divide the other"):
            units_held(total, size)


def test_pages_of_both_orders_and_of_one_buffer():
    page = ItemLayout.page(4, 8, 10, tp_size=2, parts=("k", "v"))
    assert page.blocks == (
        ItemBlock(4, 8, 10, 4, 0, 40, 10, "k"),
        ItemBlock(4, 8, 10, 4, 160, 40, 10, "v"),
    )
    assert (page.nbytes, page.end, page.tokens) == (320, 320, 4)
    (block,) = ItemLayout.page(4, 8, 10, order="HND").blocks
    assert (block.row_stride, block.unit_stride) == (10, 40)
    with pytest.raises(InvalidConfig, match="one of NHD, HND, got 'NDH'"):
        ItemLayout.page(4, 8, 10, order="NDH")


def test_state_has_each_part_shared_by_itself():
    state = ItemLayout.state([("x", 8, 2), ("b", 1, 6)], tp_size=4, rows=3)
    assert state.blocks == (ItemBlock(2, 8, 2, 3, 0, 10, 2, "x"), ItemBlock(1, 1, 6, 3, 4, 10, 6, "b"))
    assert (state.nbytes, state.end, state.tokens) == (30, 30, 0)


def test_strides_that_are_not_given_are_close_together():
    block = ItemBlock(3, 6, 5, rows=2)
    assert (block.unit_stride, block.row_stride, block.end, block.nbytes) == (5, 15, 30, 30)
    assert block.axes() == (30, [])
    assert ItemBlock(3, 6, 5, 2, row_stride=20).axes() == (15, [(2, 20)])
    assert pieces_of([block, ItemBlock(3, 6, 5, 2, 100, 50, 10)]) == 1 + 6


BAD = [
    (lambda: ItemBlock(0, 1, 1), "must be positive"),
    (lambda: ItemBlock(2, 1, 1), "units at most total"),
    (lambda: ItemBlock(1, 1, 0), "must be positive"),
    (lambda: ItemBlock(1, 1, 1, rows=0), "must be positive"),
    (lambda: ItemBlock(1, 1, 1, offset=-1), "offset not negative"),
    (lambda: ItemBlock(2, 2, 4, unit_stride=-4), "must be positive"),
    (lambda: ItemBlock(2, 2, 4, unit_stride=3), "pieces overlap"),
    (lambda: ItemBlock(1, 1, 4, rows=2, row_stride=3), "pieces overlap"),
    (lambda: ItemBlock(2, 2, 4, rows=2, row_stride=6, unit_stride=8), "pieces overlap"),
    (lambda: ItemBlock(2, 2, 4, rows=3, row_stride=4, unit_stride=8), "pieces overlap"),
    (lambda: ItemLayout(()), "an item needs blocks"),
    (lambda: ItemLayout((ItemBlock(1, 1, 4), ItemBlock(1, 1, 4, offset=4))), "different parts"),
    (lambda: ItemLayout((ItemBlock(1, 1, 4, part="k"), ItemBlock(1, 1, 4, offset=3, part="v"))), "overlap"),
    (lambda: ItemLayout((ItemBlock(1, 1, 4, rows=3),), 4), "they must divide it"),
    (lambda: ItemLayout((ItemBlock(1, 1, 4),), -1), "-1 tokens"),
    (lambda: ItemLayout((ItemBlock(1, 1, 1, MAX_PIECES + 1, row_stride=2),)), "at most"),
]


@pytest.mark.parametrize(("make", "told"), BAD)
def test_what_makes_no_item_is_refused(make, told):
    with pytest.raises(InvalidConfig, match=told):
        make()


def test_interleaved_blocks_do_not_overlap():
    blocks = [ItemBlock(4, 4, 2, 3, 2 * n, 16, 4, part) for n, part in enumerate("kv")]
    assert ItemLayout(tuple(blocks)).end == 48


def test_an_engine_that_contradicts_itself_is_told():
    page = ItemLayout.page(4, 8, 10, tp_size=2)
    with pytest.raises(InvalidConfig, match="its item's blocks take 160 bytes, item_len is 159"):
        Buffer(4096, 159, 2, item=page)
    buffers = (Buffer(4096, 160, 2, 0, item=page), Buffer(8192, 160, 2, 1))
    with pytest.raises(InvalidConfig, match="must be described, for one number of tokens, or none"):
        Pool("kv", buffers)
    pool = Pool.uniform("kv", [4096], 160, 2, item=page)
    with pytest.raises(InvalidConfig, match="page_size is 16, but a KV page is described with 4 tokens"):
        KVArgs(pool, topology=Topology(tp_size=2))
    with pytest.raises(InvalidConfig, match="4 units here, but with 8 in the model and tp_size 4 a rank holds 2"):
        KVArgs(pool, page_size=4, topology=Topology(tp_size=4))
    args = KVArgs(pool, page_size=4, topology=Topology(tp_size=2))
    assert ForkingPickler.loads(bytes(ForkingPickler.dumps(args))) == args

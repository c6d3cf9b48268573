"""Descriptions of items across the wire: what comes back is what went in, and nonsense is refused with a sentence."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tests.layout.support import gate
from kv_core.contract.failures import InvalidConfig, MessageError
from kv_core.contract.items import ItemBlock, ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool
from kv_core.layout import MemoryLayout
from kv_core.layout.item_wire import LARGEST, MAX_BLOCKS


def described() -> KVArgs:
    """Three buffers with two different items."""
    items = [ItemLayout.page(16, heads, 4, parts=("k", "v")) for heads in (2, 4, 2)]
    return KVArgs(Pool("kv", tuple(Buffer(4096, 1024, 4, n, item=item) for n, item in enumerate(items))))


def test_each_description_crosses_once():
    wire = MemoryLayout.of(described()).to_wire()
    (pool,) = wire["pools"]
    assert pool["items"] == [
        [16, ["k", 2, 2, 4, 16, 0, 8, 4], ["v", 2, 2, 4, 16, 128, 8, 4]],
        [16, ["k", 4, 4, 4, 16, 0, 16, 4], ["v", 4, 4, 4, 16, 256, 16, 4]],
    ]
    assert np.frombuffer(pool["item_of"], "<i8").tolist() == [0, 1, 0]
    back = MemoryLayout.from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(wire)))
    assert back.to_wire() == wire
    assert back.pools[0].items == MemoryLayout.of(described()).pools[0].items
    assert back.pools[0].tokens == 16


def test_what_a_later_version_adds_to_a_block_is_ignored():
    wire = MemoryLayout.of(described()).to_wire()
    wire["pools"][0]["items"][0][1].append({"later": 1})
    assert MemoryLayout.from_wire(wire).pools[0].items == MemoryLayout.of(described()).pools[0].items


def block(**change: int) -> list[object]:
    names = {
        "units": 2,
        "total": 2,
        "unit_bytes": 4,
        "rows": 16,
        "offset": 0,
        "row_stride": 8,
        "unit_stride": 4,
        **change,
    }
    return ["k", *names.values()]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"items": None}, "'items' must be a list"),
    ({"items": []}, "'items' must be a list of 1 to"),
    ({"items": {"a": 1}}, "'items' must be a list"),
    ({"item_of": None}, "'item_of' must be bytes, 8 for each of 3 buffers"),
    ({"item_of": b"\0" * 16}, "'item_of' must be bytes"),
    ({"item_of": np.array([0, 2, 0], "<i8").tobytes()}, r"must lie in 0\.\.1"),
    ({"item_of": np.array([0, -1, 0], "<i8").tobytes()}, r"must lie in 0\.\.1"),
    ({"items": [[16]] * 2}, "its tokens and 1 to"),
    ({"items": [[16, *[block()] * (MAX_BLOCKS + 1)]]}, "its tokens and 1 to"),
    ({"items": ["no"] * 2}, "its tokens and 1 to"),
    ({"items": [["16", block()]] * 2}, "must be integers"),
    ({"items": [[True, block()]] * 2}, "must be integers"),
    ({"items": [[16, block(offset=-1)]] * 2}, "must be integers"),
    ({"items": [[16, block(offset=LARGEST + 1)]] * 2}, "must be integers"),
    ({"items": [[16, block()[:5]]] * 2}, "its part and 7 numbers"),
    ({"items": [[16, [7, *block()[1:]]]] * 2}, "part must be printable"),
    ({"items": [[16, ["\n", *block()[1:]]]] * 2}, "part must be printable"),
    ({"items": [[16, block(units=3)]] * 2}, "units at most total"),
    ({"items": [[16, block(unit_stride=3)]] * 2}, "pieces overlap"),
    ({"items": [[16, block(), block()]] * 2}, "different parts"),
    ({"items": [[16, block(rows=5)]] * 2}, "they must divide it"),
    ({"items": [[16, block(offset=897)]] * 2}, "its item's blocks take 1025 bytes of 1024"),
    ({"items": [[16, block()], [8, block(rows=8)]]}, "same number of tokens"),
    ({"items": [[0, block(rows=LARGEST, row_stride=9, units=1)]] * 2}, "separate pieces"),
]


@pytest.mark.parametrize(("change", "told"), BAD)
def test_nonsense_is_refused(change, told):
    wire = copy.deepcopy(MemoryLayout.of(described()).to_wire())
    wire["pools"][0].update(change)
    with pytest.raises(MessageError, match=told):
        MemoryLayout.from_wire(wire)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=3) | st.binary(max_size=24),
    lambda inner: st.lists(inner, max_size=9),
    max_leaves=24,
)


@gate(150)
@given(VALUES, VALUES)
def test_anything_else_is_refused_or_read(items, item_of):
    wire = MemoryLayout.of(described()).to_wire()
    wire["pools"][0].update(items=items, item_of=item_of)
    with contextlib.suppress(MessageError):  # anything else that is raised fails the test
        assert MemoryLayout.from_wire(wire).pools[0].tokens >= 0


def test_what_a_peer_would_refuse_is_refused_here():
    for item, told in (
        (ItemLayout((ItemBlock(1, 1, 1, part="x" * 129),)), "part of a block"),
        (ItemLayout(tuple(ItemBlock(1, 1, 1, offset=n, part=str(n)) for n in range(MAX_BLOCKS + 1))), "at most 256"),
    ):
        args = KVArgs(Pool("kv", (Buffer(4096, 512, 1),)), states=(Pool("s", (Buffer(8192, 512, 1, item=item),)),))
        with pytest.raises(InvalidConfig, match=told):
            MemoryLayout.of(args)

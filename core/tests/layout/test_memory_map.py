"""Layouts across the wire: what comes back is what went in, and what a peer invents is refused with a sentence."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tests.layout.support import gate, kv_args
from kv_core.contract.enums import MemoryKind
from kv_core.contract.failures import InvalidConfig, MessageError
from kv_core.contract.memory import AUX_POOL, KV_POOL, Buffer, KVArgs, Pool, regions_of
from kv_core.layout import MemoryLayout
from kv_core.layout.memory_map import MAX_BUFFERS, MAX_NAME

NAMES = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=12)


@st.composite
def pools(draw, name: str) -> Pool:
    num_items = draw(st.integers(1, 2**20))
    buffers = []
    for _ in range(draw(st.integers(1, 4))):
        item_len = draw(st.integers(1, 2**30))
        address = draw(st.integers(1, 2**64 - item_len * num_items))
        buffers.append(Buffer(address, item_len, num_items, draw(st.integers(-1, 2**40)), draw(NAMES | st.just(""))))
    return Pool(name, tuple(buffers), draw(st.sampled_from(MemoryKind)), draw(st.integers(0, 15)))


@st.composite
def kv_args_of_all_kinds(draw) -> KVArgs:
    names = draw(st.lists(NAMES.filter(lambda name: name not in (KV_POOL, AUX_POOL)), max_size=3, unique=True))
    aux = draw(pools(AUX_POOL)) if draw(st.booleans()) else None
    return KVArgs(kv=draw(pools(KV_POOL)), aux=aux, states=tuple(draw(pools(name)) for name in names))


@gate(150)
@given(kv_args_of_all_kinds())
def test_what_goes_over_the_wire_comes_back(args):
    layout = MemoryLayout.of(args)
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(layout.to_wire()))
    back = MemoryLayout.from_wire(wire)
    assert back.to_wire() == layout.to_wire()
    assert back.regions() == layout.regions() == regions_of(args)
    for pool in args.pools():
        read = back.pool(pool.name)
        assert read is not None
        assert (read.item_bytes, read.num_items, read.num_buffers) == (
            pool.item_bytes,
            pool.num_items,
            len(pool.buffers),
        )
        assert back.num_items(pool.name) == pool.num_items
        assert back.regions()[back.first_region(pool.name)].address == pool.buffers[0].address
        assert read.parts == tuple(buffer.part for buffer in pool.buffers)
        assert not read.address.flags.writeable


def test_the_wire_is_plain_and_little_endian():
    args = KVArgs(kv=Pool("kv", (Buffer(2**63 + 1, 3, 5, 7, "k"),), MemoryKind.CUDA, 2))
    assert MemoryLayout.of(args).to_wire() == {
        "pools": [{
            "name": "kv", "kind": "cuda", "device_id": 2, "num_items": 5, "parts": ["k"],
            "address": b"\1\0\0\0\0\0\0\x80", "item_len": b"\3\0\0\0\0\0\0\0", "layer": b"\7\0\0\0\0\0\0\0",
        }]
    }  # fmt: skip


def test_unknown_keys_are_ignored_and_a_pool_that_is_not_there_is_none():
    wire = MemoryLayout.of(kv_args()).to_wire()
    wire["later"] = wire["pools"][0]["later"] = {"anything": [1]}
    layout = MemoryLayout.from_wire(wire)
    assert layout.pool("ssm") is None
    assert layout.num_items("ssm") is None
    with pytest.raises(ValueError, match=r"no pool 'ssm' here, only \['kv'\]"):
        layout.first_region("ssm")


def u64_bytes(*values: int) -> bytes:
    return np.array(values, "<u8").tobytes()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "must not be empty"),
    ({"name": 5}, "'name' must be a printable string"),
    ({"name": "x" * (MAX_NAME + 1)}, "at most 128 characters"),
    ({"name": "kv\n"}, "printable"),
    ({"name": "ssm"}, "pools must come as 'kv'"),
    ({"kind": "tape"}, "memory kind 'tape' is not known here, only host, cuda, rocm"),
    ({"kind": ["host"]}, "memory kind 1 entries"),
    ({"device_id": 2**31}, "'device_id' must be an integer"),
    ({"device_id": True}, "'device_id' must be an integer"),
    ({"num_items": 0}, "'num_items' must be an integer in 1.."),
    ({"num_items": -1}, "'num_items' must be an integer in 1.."),
    ({"num_items": 2**64}, "got an integer of 65 bits"),
    ({"num_items": 10**5000}, "got an integer of"),
    ({"num_items": "16"}, "got '16'"),
    ({"num_items": None}, "got None"),
    ({"num_items": 2**60}, "the end within 64 bits"),
    ({"address": u64_bytes(0, 1)}, "buffer 0 at 0x0"),
    ({"address": u64_bytes(4096, 2**64 - 16 * 64 + 1)}, "buffer 1 at 0xfffffffffffffc01"),
    ({"address": u64_bytes(1)}, "got 1, 2 and 2"),
    ({"address": u64_bytes(1)[:7]}, "got 7 bytes"),
    ({"address": [1, 2]}, "'address' must be bytes"),
    ({"address": b"", "item_len": b"", "layer": b""}, "at least one, got 0, 0 and 0"),
    ({"item_len": u64_bytes(0, 1)}, "64 bits|of 0 bytes"),
    ({"item_len": u64_bytes(1, 2, 3)}, "got 2, 3 and 2"),
    ({"item_len": u64_bytes(1, 2**63)}, "within 64 bits"),
    ({"layer": u64_bytes(0, 2**64 - 2)}, "layer -2: .* layer at least -1"),
    ({"layer": bytes(8 * (MAX_BUFFERS + 1))}, "at most 65536 buffers, got 524296 bytes"),
    ({"parts": ["k"]}, "'parts' must be a list of 2 names or empty"),
    ({"parts": ["k", 3]}, "each of 'parts'"),
    ({"parts": ["k", "v" * 500]}, "each of 'parts'"),
    ({"parts": "kv"}, "'parts' must be a list"),
]


@pytest.mark.parametrize(
    ("change", "sentence"), BAD, ids=[f"{i}-{'-'.join(change)}" for i, (change, _) in enumerate(BAD)]
)
def test_what_is_refused(change, sentence):
    wire = MemoryLayout.of(kv_args()).to_wire()
    wire["pools"][0].update(change)
    with pytest.raises(MessageError, match=sentence) as caught:
        MemoryLayout.from_wire(wire)
    assert len(str(caught.value)) < 500
    for key in change:
        del wire["pools"][0][key]
    with pytest.raises(MessageError):
        MemoryLayout.from_wire(wire)


def test_buffers_that_end_at_the_very_top_are_fine():
    wire = MemoryLayout.of(kv_args()).to_wire()
    wire["pools"][0]["address"] = u64_bytes(4096, 2**64 - 16 * 64)
    region = MemoryLayout.from_wire(wire).regions()[1]
    assert region.address + region.nbytes == 2**64


def pool_wire(name: str, buffers: int = 1) -> dict:
    return {
        "name": name, "kind": "host", "device_id": 0, "num_items": 1, "parts": [],
        "address": u64_bytes(*[64] * buffers), "item_len": u64_bytes(*[8] * buffers), "layer": bytes(8 * buffers),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pools", "sentence"),
    [
        (None, "'pools' must be a list of 1 to 256 pools, got None"),
        ([], "got 0 entries"),
        ([pool_wire("kv")] * 257, "got 257 entries"),
        ([pool_wire("kv"), 5], "a pool must be a map, got 5"),
        ([pool_wire("kv"), pool_wire("kv")], "pool names must differ"),
        ([pool_wire("aux"), pool_wire("kv")], "must come as"),
        ([pool_wire("kv"), pool_wire("aux"), pool_wire("ssm")], "must come as"),
        ([pool_wire("kv", 60_000), pool_wire("ssm", 5_537)], "65537 buffers over all pools, at most 65536"),
    ],
)
def test_lists_of_pools_that_are_refused(pools, sentence):
    with pytest.raises(MessageError, match=sentence):
        MemoryLayout.from_wire({"pools": pools})


def test_a_layout_that_is_no_map():
    nothing: tuple[object, ...] = (None, [], b"x", 5, "pools")
    for wire in nothing:
        with pytest.raises(MessageError, match="the layout must be a map"):
            MemoryLayout.from_wire(wire)


def test_as_many_buffers_as_are_allowed():
    layout = MemoryLayout.from_wire({"pools": [pool_wire("kv", MAX_BUFFERS)]})
    assert len(layout.regions()) == MAX_BUFFERS


@pytest.mark.parametrize(
    ("pool", "sentence"),
    [
        (Pool("kv", (Buffer(64, 8, 1),) * (MAX_BUFFERS + 1)), "65537 buffers in 1 pools: at most 65536"),
        (Pool("kv", (Buffer(64, 8, 1, part="x" * 129),)), "at most 128 characters"),
        (Pool("kv", (Buffer(64, 8, 1, part="a\0"),)), "printable"),
        (Pool("kv", (Buffer(64, 8, 1, layer=-2),)), "layers must lie in -1"),
        (Pool("kv", (Buffer(64, 8, 1, layer=2**63),)), "layers must lie in -1"),
    ],
)
def test_what_a_peer_would_refuse_is_refused_here_first(pool, sentence):
    with pytest.raises(InvalidConfig, match=sentence):
        MemoryLayout.of(KVArgs(kv=pool))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


def read(wire: object) -> None:
    """Either a ``MessageError``, or a layout whose regions all lie within 64 bits and which survives another trip."""
    refused: MessageError | None = None
    try:
        layout = MemoryLayout.from_wire(wire)
    except MessageError as error:
        refused = error
    if refused is not None:
        assert str(refused).startswith("layout: ")
        assert len(str(refused)) < 1_000
        return
    for region in layout.regions():
        assert 0 < region.address < region.address + region.nbytes <= 2**64
    assert MemoryLayout.from_wire(layout.to_wire()).to_wire() == layout.to_wire()


@gate(300)
@given(JUNK)
def test_junk(wire):
    read(wire)
    read({"pools": wire})
    read({"pools": [wire]})


@gate(400)
@given(kv_args_of_all_kinds(), st.data())
def test_a_good_layout_with_something_wrong_in_it(args, data):
    wire = copy.deepcopy(MemoryLayout.of(args).to_wire())
    pool = data.draw(st.sampled_from(wire["pools"]))
    key = data.draw(st.sampled_from(sorted(pool)))
    if isinstance(pool[key], bytes) and data.draw(st.booleans()):
        size = len(pool[key])
        pool[key] = data.draw(st.binary(min_size=size, max_size=size))
    else:
        pool[key] = data.draw(JUNK)
    read(wire)

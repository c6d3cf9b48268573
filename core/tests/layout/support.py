"""Shared by the layout tests: layouts, hand-made plans, and an oracle that copies piece by piece in plain Python."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kv_core.contract.memory import KVArgs, Pool, Region, Topology
from kv_core.contract.transport import CopyList, PoolPlan, PoolSlice, TransferBatch, TransferPlan
from kv_core.layout import MemoryLayout, plan_transfer

# The same examples in every run, so that a failure is repeated by running the test again. KV_CORE_FUZZ=5000 tries that
# many new ones; hypothesis then prints the blob that repeats a failing one.
FUZZ = int(os.environ.get("KV_CORE_FUZZ", "0"))


def gate(examples: int) -> settings:
    return settings(
        derandomize=not FUZZ,
        max_examples=FUZZ or examples,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def kv_args(buffers: int = 2, item_len: int = 64, num_items: int = 16, base: int = 1 << 20, **rest) -> KVArgs:
    addresses = [base + i * item_len * num_items for i in range(buffers)]
    return KVArgs(kv=Pool.uniform("kv", addresses, item_len, num_items), **rest)


def plan_of(local: KVArgs, remote: KVArgs) -> TransferPlan:
    layouts = MemoryLayout.of(local), MemoryLayout.of(remote)
    return plan_transfer(*layouts, local_topology=Topology(), remote_topology=Topology())


class Piece(NamedTuple):
    """One copy of the definition in ``PoolPlan``."""

    lane: int
    local: tuple[int, int]
    remote: tuple[int, int]
    length: int


def pieces(part: PoolSlice) -> Iterator[Piece]:
    """Every copy of a slice in plan order, straight from the formula in ``PoolPlan``, with Python's integers."""
    p = part.plan
    for k in part.lanes.tolist():
        for i, j in zip(part.local_items.tolist(), part.remote_items.tolist(), strict=True):
            for r in range(int(p.inner_count[k])):
                here = int(p.local_offset[k]) + i * int(p.local_stride[k]) + r * int(p.local_inner_stride[k])
                there = int(p.remote_offset[k]) + j * int(p.remote_stride[k]) + r * int(p.remote_inner_stride[k])
                yield Piece(k, (int(p.local_region[k]), here), (int(p.remote_region[k]), there), int(p.length[k]))


def batch_pieces(batch: TransferBatch) -> list[Piece]:
    return [piece for part in batch.slices for piece in pieces(part)]


def flat(copies: CopyList) -> list[tuple[int, int, int, int, int]]:
    """The copies as rows of Python integers; checks dtype and shape on the way."""
    assert {array.dtype for array in copies} == {np.dtype(np.uint64)}
    assert {array.shape for array in copies} == {(copies.length.size,)}
    return list(zip(*(array.tolist() for array in copies), strict=True))


class Memory:
    """Two sides' regions as NumPy arrays: random non-zero at the source, poison at the destination."""

    POISON = 0

    def __init__(self, plan: TransferPlan, seed: int = 7) -> None:
        rng = np.random.default_rng(seed)
        self.local: list[np.ndarray] = [rng.integers(1, 256, region.nbytes, np.uint8) for region in plan.local_regions]
        self.remote: list[np.ndarray] = [
            np.full(region.nbytes, self.POISON, np.uint8) for region in plan.remote_regions
        ]
        self.writes: list[np.ndarray] = [np.zeros(region.nbytes, np.int64) for region in plan.remote_regions]

    def copy(self, local: tuple[int, int], remote: tuple[int, int], length: int) -> None:
        (source, at), (target, to) = local, remote
        assert at + length <= self.local[source].size
        assert to + length <= self.remote[target].size
        self.remote[target][to : to + length] = self.local[source][at : at + length]
        self.writes[target][to : to + length] += 1

    def run(self, copies: CopyList) -> None:
        for source, at, target, to, length in flat(copies):
            self.copy((source, at), (target, to), length)

    def run_oracle(self, batch: TransferBatch) -> None:
        for piece in batch_pieces(batch):
            self.copy(piece.local, piece.remote, piece.length)

    def assert_same(self, other: Memory) -> None:
        for mine, theirs in zip(self.remote + self.writes, other.remote + other.writes, strict=True):
            np.testing.assert_array_equal(mine, theirs)

    def assert_once(self) -> None:
        assert max(int(writes.max()) for writes in self.writes) <= 1
        for seen, count in zip(self.remote, self.writes, strict=True):
            np.testing.assert_array_equal(seen == self.POISON, count == 0)


def head_slices(tokens: int, head_bytes: int, local_heads: range, remote_heads: range, items: tuple[int, int]):
    """K and V of one layer, pages of (token, head, byte), each side holding other heads: a lane per buffer whose repeats
    are the tokens. This is what a planner for unequal tensor parallel sizes makes.
    """
    common = range(max(local_heads.start, remote_heads.start), min(local_heads.stop, remote_heads.stop))
    local_row, remote_row = len(local_heads) * head_bytes, len(remote_heads) * head_bytes
    two = lambda value: np.full(2, value, np.uint64)  # noqa: E731
    pool = PoolPlan(
        "kv", np.zeros(2, np.int64), u64(0, 1), u64(0, 1),
        two((common.start - local_heads.start) * head_bytes), two((common.start - remote_heads.start) * head_bytes),
        two(tokens * local_row), two(tokens * remote_row), two(len(common) * head_bytes), two(tokens),
        two(local_row), two(remote_row),
    )  # fmt: skip
    sizes = (items[0] * tokens * local_row, items[1] * tokens * remote_row)
    regions = [tuple(Region(i, (i + 1) << 32, size) for i in range(2)) for size in sizes]
    return TransferPlan((pool,), *regions)


@st.composite
def item_pairs(draw, limit: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Local and remote items, distinct on the remote side; runs are as likely as scattered ones."""
    count = draw(st.integers(0, limit))
    sides = []
    for _ in range(2):
        blocks = draw(st.lists(st.integers(1, 4), min_size=1, max_size=limit))
        starts = np.concatenate(([0], np.cumsum(np.array(blocks) + 1)[:-1]))
        order = draw(st.permutations(range(len(blocks))))
        items = [int(starts[b]) + i for b in order for i in range(blocks[b])]
        sides.append(items)
    count = min(count, len(sides[0]), len(sides[1]))
    return u64(*sides[0][:count]), u64(*sides[1][:count])


@st.composite
def hand_made(draw) -> tuple[TransferPlan, np.ndarray, np.ndarray]:
    """Any pool plan that the contract allows (repeats, gaps, unequal strides, whole items), and items for it."""
    local_items, remote_items = draw(item_pairs())
    lanes = []
    for _ in range(draw(st.integers(1, 5))):
        length, repeats = draw(st.integers(1, 6)), draw(st.integers(1, 4))
        gaps = [draw(st.sampled_from([0, 0, 1, 3])) for _ in range(4)]
        inner = [length + gaps[0], length + gaps[1]]
        steps = [inner[side] * (repeats - 1) + length + gaps[2 + side] for side in range(2)]
        if repeats == 1 and draw(st.booleans()):
            inner = [0, 0]
        lanes.append((length, repeats, *inner, *steps, draw(st.integers(0, 3)), draw(st.integers(0, 3))))
    columns = (u64(*column) for column in zip(*lanes, strict=True))
    length, repeats, local_inner, remote_inner, local_stride, remote_stride, local_offset, remote_offset = columns
    numbers = np.arange(len(lanes), dtype=np.uint64)
    order = numbers[::-1].copy()  # region numbers of the two sides need not agree
    pool = PoolPlan(
        "kv", np.arange(len(lanes)) // 2, numbers, order, local_offset, remote_offset, local_stride, remote_stride,
        length, repeats, local_inner, remote_inner,
    )  # fmt: skip
    extents = []
    for items, offset, stride in (
        (local_items, local_offset, local_stride),
        (remote_items, remote_offset, remote_stride),
    ):
        most = int(items.max(initial=0)) + 1
        extents.append([int(o) + most * int(s) for o, s in zip(offset, stride, strict=True)])
    local_regions = tuple(Region(i, (i + 1) << 32, size) for i, size in enumerate(extents[0]))
    remote_regions = tuple(Region(i, (i + 1) << 32, size) for i, size in enumerate(reversed(extents[1])))
    return TransferPlan((pool,), local_regions, remote_regions), local_items, remote_items


def pool_at(pool: Pool, base: int) -> Pool:
    """The same pool at other addresses."""
    buffers = []
    for buffer in pool.buffers:
        buffers.append(replace(buffer, address=base))
        base += buffer.nbytes
    return replace(pool, buffers=tuple(buffers))

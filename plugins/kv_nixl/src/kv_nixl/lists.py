"""What two layouts have to do with each other, as NIXL's prepared descriptor lists; and a batch as indices into them.

A list is made of rows (address, length, device, stride, count): one for each lane and repeat, over all of its items,
so that a list of millions of descriptors costs a few microseconds and a batch is two int32 arrays. A list has one kind
of memory, so there is one pair of lists for each pair of kinds (here, there) that the plan has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core import MemoryKind, Region, TransportError
from kv_core.contract.transport import U64, PoolPlan, PoolSlice, TransferBatch, TransferPlan

I32: TypeAlias = npt.NDArray[np.int32]
Kinds: TypeAlias = tuple[MemoryKind, MemoryKind]
KINDS = tuple(MemoryKind)
MAX_INDEX = 2**31 - 1
"""NIXL's indices are C ints."""


@dataclass(frozen=True)
class Lanes:
    """Where a pool's lanes begin in the lists of its kinds. Lane k has ``repeats[k]`` rows from ``first[k]`` on; row n
    begins at ``local[n]`` and ``remote[n]`` (int32) and has one index for each item.
    """

    kinds: Kinds
    first: npt.NDArray[np.intp]
    repeats: npt.NDArray[np.intp]
    single: bool
    local: I32
    remote: I32
    local_items: int
    remote_items: int

    def indices(self, part: PoolSlice) -> tuple[I32, I32]:
        """The indices of a slice on both sides, row by row, so that neighbouring items can be merged."""
        if int(part.local_items.max()) >= self.local_items or int(part.remote_items.max()) >= self.remote_items:
            raise TransportError(
                f"pool {self.kinds}: an item lies outside of the {self.local_items} items here or the {self.remote_items} "
                "items there; nothing was sent",
                quiescent=True,
            )
        rows = part.lanes
        if not self.single:
            count = self.repeats[rows]
            ends = np.cumsum(count)
            rows = np.repeat(self.first[rows] - (ends - count), count) + np.arange(ends[-1])
        local, remote = part.local_items.astype(np.int32), part.remote_items.astype(np.int32)
        return (self.local[rows, None] + local).ravel(), (self.remote[rows, None] + remote).ravel()


@dataclass
class ListPair:
    """The rows (uint64, shape (n, 5)) of one pair of lists, and how many descriptors they stand for."""

    local: list[U64] = field(default_factory=list)
    remote: list[U64] = field(default_factory=list)
    local_size: int = 0
    remote_size: int = 0


class Geometry:
    """A plan as rows. ``fits``: whether all indices are C ints; otherwise batches go by address."""

    def __init__(self, plan: TransferPlan) -> None:
        self.plan = plan
        self.pairs: dict[Kinds, ListPair] = {}
        self.pools: dict[str, Lanes] = {}
        self.fits = True
        for pool in plan.pools:
            self._add(pool)

    def _add(self, pool: PoolPlan) -> None:
        local = [self.plan.local_regions[index] for index in pool.local_region.tolist()]
        remote = [self.plan.remote_regions[index] for index in pool.remote_region.tolist()]
        kinds = (local[0].kind, remote[0].kind)
        pair = self.pairs.setdefault(kinds, ListPair())
        repeats, length = pool.inner_count, pool.length
        touching = (pool.local_inner_stride == length) & (pool.remote_inner_stride == length)
        length, repeats = np.where(touching, length * repeats, length), np.where(touching, np.uint64(1), repeats)
        here, items = _rows(local, pool.local_offset, pool.local_stride, length, repeats, pool.local_inner_stride)
        there, others = _rows(remote, pool.remote_offset, pool.remote_stride, length, repeats, pool.remote_inner_stride)
        local_bases = pair.local_size + np.arange(len(here), dtype=np.int64) * items
        remote_bases = pair.remote_size + np.arange(len(there), dtype=np.int64) * others
        pair.local.append(here)
        pair.remote.append(there)
        pair.local_size += len(here) * items
        pair.remote_size += len(there) * others
        self.fits &= max(pair.local_size, pair.remote_size) <= MAX_INDEX
        count = repeats.astype(np.intp)
        self.pools[pool.pool] = Lanes(
            kinds, np.cumsum(count) - count, count, bool((count == 1).all()), local_bases.astype(np.int32),
            remote_bases.astype(np.int32), items, others,
        )  # fmt: skip

    def indices(self, batch: TransferBatch) -> dict[Kinds, tuple[I32, I32]]:
        """A batch as indices, by kinds of memory."""
        found: dict[Kinds, list[tuple[I32, I32]]] = {}
        for part in batch.slices:
            lanes = self.pools[part.plan.pool]
            found.setdefault(lanes.kinds, []).append(lanes.indices(part))
        return {
            kinds: parts[0] if len(parts) == 1 else (_joined(parts, 0), _joined(parts, 1))
            for kinds, parts in found.items()
        }

    def addresses(self, batch: TransferBatch) -> dict[Kinds, tuple[U64, U64]]:
        """A batch as rows (address, length, device) of shape (n, 3) for each side, by kinds of memory."""
        copies = batch.copies()
        local = _spans(self.plan.local_regions, copies.local_region, copies.local_offset, copies.length)
        remote = _spans(self.plan.remote_regions, copies.remote_region, copies.remote_offset, copies.length)
        here = np.array([KINDS.index(region.kind) for region in self.plan.local_regions])
        there = np.array([KINDS.index(region.kind) for region in self.plan.remote_regions])
        pairs = here[copies.local_region.astype(np.intp)] * len(KINDS) + there[copies.remote_region.astype(np.intp)]
        return {
            (KINDS[pair // len(KINDS)], KINDS[pair % len(KINDS)]): (local[pairs == pair], remote[pairs == pair])
            for pair in np.unique(pairs).tolist()
        }


def _rows(
    regions: Sequence[Region], offset: U64, stride: U64, length: U64, repeats: U64, inner: U64
) -> tuple[U64, int]:
    """One side's rows of a pool, and the items of each: all that fit into every one of its regions."""
    one = np.uint64(1)
    nbytes = np.array([region.nbytes for region in regions], np.uint64)
    need = offset + (repeats - one) * inner + length
    if bool((need > nbytes).any()) or bool((stride < one).any()):
        raise TransportError("the plan reaches over the end of a region", quiescent=True)
    items = (nbytes - need) // stride + one
    count = int(items.min())
    each = repeats.astype(np.intp)
    step = np.arange(int(each.sum())) - np.repeat(np.cumsum(each) - each, each)
    start = np.array([region.address for region in regions], np.uint64) + offset
    rows = np.empty((len(step), 5), np.uint64)
    rows[:, 0] = np.repeat(start, each) + step.astype(np.uint64) * np.repeat(inner, each)
    rows[:, 1] = np.repeat(length, each)
    rows[:, 2] = np.repeat(np.array([region.device_id for region in regions], np.uint64), each)
    rows[:, 3] = np.repeat(stride, each)
    rows[:, 4] = count
    return rows, count


def _spans(regions: Sequence[Region], region: U64, offset: U64, length: U64) -> U64:
    chosen = region.astype(np.intp)
    address = np.array([each.address for each in regions], np.uint64)[chosen]
    device = np.array([each.device_id for each in regions], np.uint64)[chosen]
    return np.stack((address + offset, length, device), axis=1)


def _joined(parts: list[tuple[I32, I32]], side: int) -> I32:
    return np.concatenate([part[side] for part in parts])

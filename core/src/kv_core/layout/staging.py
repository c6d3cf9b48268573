"""Small pieces by way of a staging area: which pools gain by it, where each piece lies there, and what is copied in its stead.

Where one side's pieces lie apart and the other's touch (slices of heads out of whole pages, say), the side that moves the bytes
may gather the pieces in an area of its own, and move them from there in copies as long as the other side's runs; or read such
runs, and scatter them. The other side need not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kv_core.contract.enums import MemoryKind
from kv_core.contract.memory import Region
from kv_core.contract.transport import U64, PoolPlan, PoolSlice, TransferPlan

I64 = npt.NDArray[np.int64]
SUFFIX = " (staged)"
MAX_UNITS = 1 << 18
"""Most units of an item: an index of 16 bytes is kept for each."""
GAIN = 2
"""Staging has to make copies at least so many times fewer."""


class Slab(NamedTuple):
    """Memory of the rank's own from ``address`` on: a buffer, or several that follow each other without a gap."""

    address: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class StagedPool:
    """A pool whose items are staged: ``whole`` is its plan in pieces, ``plan`` the one whose local items are rows of the area.

    A row has ``row_bytes`` bytes: all lanes' pieces of one item, one after the other, in order of lane and repeat. Each of
    ``slabs`` is taken as an array of units of ``unit`` bytes, of which every piece is some; lane k is in slab ``slab[k]``. Unit u of
    item i's row is unit ``first[u] + i * step[u]`` of its lane's slab. ``starts`` (one entry per lane, and the end): a lane's first
    unit in the row.
    """

    whole: PoolPlan
    plan: PoolPlan
    row_bytes: int
    unit: int
    slabs: tuple[Slab, ...]
    slab: npt.NDArray[np.intp]
    first: I64
    step: I64
    starts: I64

    @property
    def units(self) -> int:
        """Units of a row."""
        return self.first.size

    def runs(self, lanes: npt.NDArray[np.intp]) -> Iterator[tuple[int, slice]]:
        """The units of these lanes in a row, as far as they stand together and are in one slab: (number of the slab, units)."""
        slab = self.slab[lanes]
        bounds = np.flatnonzero((np.diff(lanes) != 1) | (np.diff(slab) != 0)) + 1
        for low, high in pairwise([0, *bounds.tolist(), lanes.size]):
            yield int(slab[low]), slice(int(self.starts[lanes[low]]), int(self.starts[lanes[high - 1] + 1]))

    def pieces(self, part: PoolSlice, units: slice) -> I64:
        """Where units of a slice's rows are in their slab: one row for each item, one column for each of ``units``."""
        items = part.local_items.astype(np.int64)
        return self.first[units] + items[:, None] * self.step[units]

    def staged(self, part: PoolSlice, row: int) -> PoolSlice:
        """What is moved instead of a slice of ``whole``, whose items have the rows from ``row`` on."""
        rows = np.arange(row, row + part.local_items.size, dtype=np.uint64)
        return PoolSlice(self.plan, part.lanes, rows, part.remote_items)


def staged_pool(pool: PoolPlan, regions: Sequence[Region], below: int, area: int, area_bytes: int) -> StagedPool | None:
    """The pool by way of an area of ``area_bytes`` bytes, which is region number ``area``; None where that gains nothing or can't
    be: pieces that are ``below`` bytes long or longer in the mean, no longer runs on the other side, memory that the CPU can't
    address, or items of which the area can't hold two.
    """
    mine = [regions[index] for index in pool.local_region.tolist()]
    one = np.uint64(1)
    if pool.phases != 1 or not mine or any(region.kind is not MemoryKind.HOST for region in mine):
        return None
    if bool(((pool.inner_count > one) & (pool.remote_inner_stride != pool.length)).any()):
        return None
    run = pool.length * pool.inner_count
    row_bytes = int(run.sum())
    copies = int(np.where(pool.local_inner_stride == pool.length, one, pool.inner_count).sum())
    if row_bytes >= below * copies or copies < GAIN * pool.num_lanes or 2 * row_bytes > area_bytes:
        return None
    slabs, slab = _slabs(mine)
    base = np.array([slabs[number].address for number in slab.tolist()], np.uint64)
    apart = np.array([region.address for region in mine], np.uint64) - base + pool.local_offset
    unit = int(np.gcd.reduce(np.concatenate((pool.length, apart, pool.local_stride, pool.local_inner_stride))))
    if row_bytes > MAX_UNITS * unit:
        return None
    first, step, starts = _units(pool, apart, unit)
    ends = run.cumsum()
    none = np.zeros_like(run)
    plan = replace(
        pool, pool=pool.pool + SUFFIX, local_region=np.full_like(run, area), local_offset=ends - run,
        local_stride=np.full_like(run, row_bytes), length=run, inner_count=none + one, local_inner_stride=none,
        remote_inner_stride=none, local_ratio=1,
    )  # fmt: skip
    return StagedPool(pool, plan, row_bytes, unit, slabs, slab, first, step, starts)


def _slabs(regions: Sequence[Region]) -> tuple[tuple[Slab, ...], npt.NDArray[np.intp]]:
    """Regions (one for each lane) as slabs, and the number of each one's. Only bytes of the regions are in slabs: what is copied
    may be anything else of this process's.
    """
    slabs: list[Slab] = []
    of: dict[int, int] = {}
    for region in sorted({region.index: region for region in regions}.values(), key=lambda region: region.address):
        if slabs and slabs[-1].address + slabs[-1].nbytes == region.address:
            slabs[-1] = Slab(slabs[-1].address, slabs[-1].nbytes + region.nbytes)
        else:
            slabs.append(Slab(region.address, region.nbytes))
        of[region.index] = len(slabs) - 1
    return tuple(slabs), np.array([of[region.index] for region in regions], np.intp)


def _units(pool: PoolPlan, apart: U64, unit: int) -> tuple[I64, I64, I64]:
    """``first``, ``step`` and ``starts`` of a ``StagedPool``."""
    each = (pool.length // np.uint64(unit)).astype(np.int64)
    inner = (pool.local_inner_stride // np.uint64(unit)).astype(np.int64)
    counts = each * pool.inner_count.astype(np.int64)
    starts = np.concatenate(([0], counts.cumsum()))
    lane = np.repeat(np.arange(counts.size), counts)
    within = np.arange(lane.size) - starts[lane]
    first = (apart // np.uint64(unit)).astype(np.int64)[lane] + within // each[lane] * inner[lane] + within % each[lane]
    return first, (pool.local_stride // np.uint64(unit)).astype(np.int64)[lane], starts


def staged_pools(plan: TransferPlan, below: int, area_bytes: int) -> dict[str, StagedPool]:
    """Those of a plan's pools that gain by staging, by name. The area is the region behind the plan's local ones."""
    area = len(plan.local_regions)
    found = [staged_pool(pool, plan.local_regions, below, area, area_bytes) for pool in plan.pools]
    return {pool.whole.pool: pool for pool in found if pool is not None}


def with_area(plan: TransferPlan, pools: dict[str, StagedPool], area: Region) -> TransferPlan:
    """The plan with one more region, and a staged twin for each of ``pools``."""
    twins = tuple(pool.plan for pool in pools.values())
    return TransferPlan((*plan.pools, *twins), (*plan.local_regions, area), plan.remote_regions)


def staging_region(index: int, address: int, nbytes: int) -> Region:
    """The area as a transport registers it: behind the rank's own buffers."""
    return Region(index, address, nbytes, MemoryKind.HOST, 0, "staging")

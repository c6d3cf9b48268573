"""The staging area: memory of core's own, out of which small pieces go as long copies. Owner thread only, except ``in_use``."""

from __future__ import annotations

import ctypes
import mmap
from bisect import insort
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import Region
from kv_core.contract.transport import PoolSlice, TransferPlan, Transport
from kv_core.layout import Batch
from kv_core.layout.staging import Slab, StagedPool, staged_pools, staging_region, with_area
from kv_core.runtime.transfer.troubles import SURVIVED, Troubles

Units: TypeAlias = "npt.NDArray[np.void]"
Slabs: TypeAlias = list[Units]
SHARES = 4
"""A peer may have this part of the area."""
IN_FLIGHT = 4
"""And a batch this part of that, so that the next one is gathered while the last one moves."""
_abandoned: list[mmap.mmap] = []
"""Areas into which bytes may still come, or from which they may still be read, when their engine has ended: never unmapped."""


class Area:
    """Mapped and registered memory, given out in ranges of whole rows. First fit: there are few ranges at any time."""

    def __init__(self, region: Region, memory: mmap.mmap) -> None:
        self.region = region
        self.bytes = np.frombuffer(memory, np.uint8)
        self.in_use = 0
        self.taken = 0
        self._memory = memory
        self._ranges: list[tuple[int, int]] = []

    def take(self, count: int, row_bytes: int) -> int | None:
        """The number of the first of ``count`` rows side by side, or None if there is no room."""
        need, start = count * row_bytes, 0
        for begin, stop in self._ranges:
            if start + need <= begin:
                break
            start = max(start, -(-stop // row_bytes) * row_bytes)
        if start + need > self.bytes.size:
            return None
        insort(self._ranges, (start, start + need))
        self.in_use += need
        self.taken += 1
        return start // row_bytes

    def give_back(self, row: int, count: int, row_bytes: int) -> None:
        """End what ``take`` began."""
        self._ranges.remove((row * row_bytes, (row + count) * row_bytes))
        self.in_use -= count * row_bytes

    def abandon(self) -> None:
        """Keep the memory for ever."""
        _abandoned.append(self._memory)


class Load:
    """Rows of the area that one batch has. ``batch`` is what the transport gets."""

    def __init__(self, area: Area, staged: StagedPool, part: PoolSlice, row: int, slabs: Slabs) -> None:
        self.batch = Batch([staged.staged(part, row)])
        self.nbytes = part.local_items.size * staged.row_bytes
        self._area = area
        self._staged = staged
        self._part = part
        self._row = row
        self._slabs = slabs

    def _rows(self) -> Units:
        staged, count = self._staged, self._part.local_items.size
        start = self._row * staged.row_bytes
        taken = self._area.bytes[start : start + count * staged.row_bytes]
        return taken.view(np.dtype((np.void, staged.unit))).reshape(count, staged.units)

    # Indices are of items that were checked against the pool; ``clip`` spares a copy, and nothing is clipped.

    def gather(self) -> None:
        """Copy the pieces into the rows."""
        rows = self._rows()
        for slab, units in self._staged.runs(self._part.lanes):
            pieces = self._staged.pieces(self._part, units)
            if pieces.shape == rows.shape:
                np.take(self._slabs[slab], pieces, out=rows, mode="clip")
            else:
                rows[:, units] = np.take(self._slabs[slab], pieces, mode="clip")

    def scatter(self) -> None:
        """Copy the rows to where the pieces belong.

        ``put`` makes a copy of all that it writes into if that may overlap with what it reads, and writes all of that back: so it
        must be given the rank's own buffers alone, which neither rows nor indices are part of.
        """
        rows = self._rows()
        for slab, units in self._staged.runs(self._part.lanes):
            np.put(self._slabs[slab], self._staged.pieces(self._part, units), rows[:, units], mode="clip")

    def give_back(self) -> None:
        """The rows are used no more."""
        self._area.give_back(self._row, self._part.local_items.size, self._staged.row_bytes)


class Staged:
    """How the pools of one peer are staged, and what its transfers have of the area.

    A peer may have a part of the area, and waits for rows of its own only: one that is stopped in the middle of its transfers
    keeps its rows, and nobody waits for them. Who finds no room and has nothing to wait for goes without.
    """

    def __init__(self, area: Area, pools: dict[str, StagedPool]) -> None:
        self._area = area
        self._pools = pools
        self._slabs = {name: [_units(slab, pool.unit) for slab in pool.slabs] for name, pool in pools.items()}
        self._most = area.bytes.size // SHARES
        self._working: dict[Load, None] = {}  # those whose rows will come back, as far as is known
        self._stuck: dict[Load, None] = {}

    def batches(self, batch: Batch, max_descriptors: int, max_bytes: int) -> Iterator[Batch]:
        """The batch in parts: those that are staged have one slice each, and a part of the area has room for it."""
        yield from Batch(part for part in batch.slices if part.plan.pool not in self._pools).split(
            max_descriptors, max_bytes
        )
        limit = self._most // IN_FLIGHT
        for part in batch.slices:
            pool = self._pools.get(part.plan.pool)
            if pool is None:
                continue
            rows = max(1, limit // pool.row_bytes)
            for at in range(0, part.local_items.size, rows):
                some = slice(at, at + rows)
                cut = part._replace(local_items=part.local_items[some], remote_items=part.remote_items[some])
                for piece in Batch([cut]).split(max_descriptors, max_bytes):
                    yield from (Batch([one]) for one in piece.slices)

    def wants(self, batch: Batch) -> bool:
        """Whether this part is staged."""
        return batch.slices[0].plan.pool in self._pools

    def load(self, batch: Batch) -> tuple[Load | None, bool]:
        """Rows for a part; else None, and whether to wait: until the next of this peer's transfers has ended."""
        (part,) = batch.slices
        pool = self._pools[part.plan.pool]
        need = part.local_items.size * pool.row_bytes
        has = sum(load.nbytes for load in (*self._working, *self._stuck))
        row = self._area.take(part.local_items.size, pool.row_bytes) if has + need <= self._most or not has else None
        if row is None:
            return None, bool(self._working)
        load = Load(self._area, pool, part, row, self._slabs[part.plan.pool])
        self._working[load] = None
        return load, False

    def stick(self, load: Load) -> None:
        """The transfer that has these rows failed, or hangs: they come back once it is quiescent, if ever."""
        if load in self._working:
            del self._working[load]
            self._stuck[load] = None

    def unload(self, load: Load) -> None:
        """The transfer that had these rows is quiescent."""
        load.give_back()
        self._working.pop(load, None)
        self._stuck.pop(load, None)


def _units(slab: Slab, unit: int) -> Units:
    """A slab as an array of units; bytes behind the last whole one are of no piece."""
    raw = (ctypes.c_uint8 * slab.nbytes).from_address(slab.address)
    return np.frombuffer(memoryview(raw).cast("B"), np.dtype((np.void, unit)), slab.nbytes // unit)


class Staging:
    """Decides which peers' pools are staged. The area is mapped, and registered, for the first peer that gains by it."""

    def __init__(self, transport: Transport, troubles: Troubles, nbytes: int, num_regions: int) -> None:
        self._transport = transport
        self._troubles = troubles
        self._nbytes = nbytes if transport.staging_below > 0 else 0
        self._num_regions = num_regions
        self._area: Area | None = None

    @property
    def in_use(self) -> int:
        """Bytes of the area that are given out. Any thread."""
        area = self._area
        return 0 if area is None else area.in_use

    @property
    def batches(self) -> int:
        """How many batches have been staged. Any thread."""
        area = self._area
        return 0 if area is None else area.taken

    @property
    def regions(self) -> tuple[Region, ...]:
        """What is registered besides the rank's own memory."""
        return () if self._area is None else (self._area.region,)

    def plan(self, plan: TransferPlan) -> tuple[TransferPlan, Staged | None]:
        """What the transport prepares for a peer, and how it is used; the plan itself and None where nothing is staged."""
        if not self._nbytes:
            return plan, None
        pools = staged_pools(plan, self._transport.staging_below, self._nbytes)
        if not pools:
            return plan, None
        if self._area is None:
            self._area = self._make()
        if self._area is None:
            return plan, None
        return with_area(plan, pools, self._area.region), Staged(self._area, pools)

    def _make(self) -> Area | None:
        try:
            memory = mmap.mmap(-1, self._nbytes)
            address = ctypes.addressof(ctypes.c_uint8.from_buffer(memory))
            region = staging_region(self._num_regions, address, self._nbytes)
            self._transport.register_memory([region])
        except SURVIVED as error:
            self._troubles.add("no staging: its memory could not be had, or not registered", error)
            self._nbytes = 0
            return None
        return Area(region, memory)

    def close(self, *, quiescent: bool) -> None:
        """The transport is closed. What may still be touched is never unmapped."""
        if self._area is not None and not quiescent:
            self._area.abandon()

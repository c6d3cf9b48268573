"""From the blocks that two ranks have in common to the lanes of a plan: folded, merged, cut to the smaller page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import Topology
from kv_core.contract.transport import PoolPlan
from kv_core.layout.entries import Entries, entries_of, match
from kv_core.layout.memory_map import PoolLayout
from kv_core.layout.shares import sends_units, sends_unlayered, sends_whole, shared_pages

I64 = npt.NDArray[np.int64]
Place: TypeAlias = tuple[PoolLayout, Topology]
COLUMNS = (
    "local_region", "remote_region", "local_offset", "remote_offset", "local_stride", "remote_stride", "length",
    "inner_count", "local_inner_stride", "remote_inner_stride",
)  # fmt: skip
"""The arrays of a ``PoolPlan`` behind ``layer``, in order."""


@dataclass(frozen=True, eq=False)
class Common:
    """What one rank sends of a pool to another: ``units`` units from ``low`` on, of each pair of entries.

    ``source_ratio`` and ``destination_ratio``: how many of the smaller side's pages a page is; ``rows``: those of a block
    in a smaller page.
    """

    source: Entries
    destination: Entries
    low: I64
    units: I64
    rows: I64
    source_ratio: int
    destination_ratio: int

    @property
    def bytes_per_page(self) -> int:
        """Bytes of one smaller page, or of one item of state."""
        return int((self.units * self.rows * self.source.unit_bytes).sum())

    def only(self, chosen: npt.NDArray[np.bool_]) -> Common:
        """These pairs alone."""
        at = np.flatnonzero(chosen)
        return replace(
            self, source=self.source.take(at), destination=self.destination.take(at), low=self.low[at],
            units=self.units[at], rows=self.rows[at],
        )  # fmt: skip


def ratios(source: PoolLayout, destination: PoolLayout) -> tuple[int, int]:
    """How many smaller pages each side's page is. The pools have been compared: one page size divides the other."""
    small = min(source.tokens, destination.tokens)
    return (source.tokens // small, destination.tokens // small) if small else (1, 1)


def common(source: Place, destination: Place, *, paged: bool) -> Common:
    """What the rank ``source`` sends to ``destination`` of two pools that fit each other. ``paged``: items are pages of the
    prompt, which context parallelism shares out.
    """
    here, there = source[1], destination[1]
    a, b = match(entries_of(*source), entries_of(*destination))
    mine, theirs = ratios(source[0], destination[0])
    low = np.maximum(a.first, b.first)
    units = np.minimum(a.first + a.units, b.first + b.units) - low
    chosen = units > 0
    for total in np.unique(a.total).tolist():
        turn = np.maximum(a.layer, 0) + there.dp_rank
        sends = sends_units(total, here.tp_rank, here.tp_size, there.tp_rank, there.tp_size, turn)
        chosen &= (a.total != total) | sends
    if not sends_unlayered(here, there):
        chosen &= a.layer >= 0
    if not (shared_pages(here, there, mine, theirs)[0] if paged else sends_whole(here, there)):
        chosen[:] = False
    return Common(a, b, low, units, a.rows // mine, mine, theirs).only(chosen)


@dataclass(frozen=True, eq=False)
class _Side:
    """One side's columns: offset, and strides of the item, of repeats, of lanes."""

    region: I64
    offset: I64
    item: I64
    units: I64
    rows: I64

    def take(self, at: I64 | npt.NDArray[np.intp]) -> _Side:
        return _Side(self.region[at], self.offset[at], self.item[at], self.units[at], self.rows[at])

    def moved(self, by: I64) -> _Side:
        return replace(self, offset=self.offset + by)


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Boxes of ``rows`` x ``units`` pieces of ``length`` bytes, on both sides."""

    layer: I64
    length: I64
    units: I64
    rows: I64
    sides: tuple[_Side, _Side]

    def folded(self) -> _Boxes:
        """Axes without gaps on both sides become part of the piece."""
        a, b = self.sides
        length, units = _fold(self.length, self.units, a.units, b.units)
        length, rows = _fold(length, self.rows, a.rows, b.rows)
        length, units = _fold(length, units, a.units, b.units)
        return replace(self, length=length, units=units, rows=rows)

    def merged(self) -> _Boxes:
        """Boxes whose pieces touch on both sides and repeat alike are one: K and V of one buffer, say."""
        a, b = self.sides
        same = (self.layer[1:] == self.layer[:-1]) & (self.rows[1:] == self.rows[:-1])
        same &= (self.units[1:] == 1) & (self.units[:-1] == 1)
        for side in (a, b):
            same &= (side.region[1:] == side.region[:-1]) & (side.offset[1:] == (side.offset + self.length)[:-1])
            same &= (side.rows[1:] == side.rows[:-1]) | (self.rows[1:] == 1)
        first = np.flatnonzero(np.concatenate(([True], ~same)))
        if first.size == self.length.size:
            return self
        length = np.add.reduceat(self.length, first)
        return _Boxes(
            self.layer[first], length, self.units[first], self.rows[first], (a.take(first), b.take(first))
        ).folded()


def _fold(length: I64, count: I64, one: I64, other: I64) -> tuple[I64, I64]:
    whole = (count == 1) | ((one == length) & (other == length))
    return np.where(whole, length * count, length), np.where(whole, 1, count)


def _boxes(found: Common) -> _Boxes:
    sides = []
    for entries in (found.source, found.destination):
        offset = entries.offset + (found.low - entries.first) * entries.unit_stride
        sides.append(_Side(entries.buffer, offset, entries.stride, entries.unit_stride, entries.row_stride))
    return _Boxes(found.source.layer, found.source.unit_bytes, found.units, found.rows, (sides[0], sides[1]))


def pool_lanes(pool: str, found: Common, source_region: int, destination_region: int) -> PoolPlan:
    """The plan of a pool, the source being the local side. The regions are those of each side's first buffer."""
    boxes = _boxes(found)
    ratio = max(found.source_ratio, found.destination_ratio)
    large = 0 if found.source_ratio > 1 else 1
    phases, step = 1, np.zeros_like(boxes.length)
    if ratio > 1:
        side, step = boxes.sides[large], boxes.rows * boxes.sides[large].rows
        if bool((side.item == step * ratio).all()):
            # The rows fill the item from end to end: a smaller page's worth of them is an item of its own.
            sides = list(boxes.sides)
            sides[large] = replace(side, item=step)
            boxes = replace(boxes, sides=(sides[0], sides[1]))
        else:
            phases = ratio
    sets = []
    for phase in range(phases):
        sides = list(boxes.sides)
        sides[large] = sides[large].moved(step * phase)
        moved = replace(boxes, sides=(sides[0], sides[1])).folded()
        # Each set must have as many lanes as the others, and blocks of unequal rows may touch in some sets only.
        sets.append(_columns(moved if phases > 1 else moved.merged()))
    layer, *columns = (np.concatenate(parts) for parts in zip(*sets, strict=True))
    columns[0] = columns[0] + source_region
    columns[1] = columns[1] + destination_region
    arrays = dict(zip(COLUMNS, (column.astype(np.uint64) for column in columns), strict=True))
    return PoolPlan(
        pool, layer, **arrays, local_ratio=found.source_ratio, remote_ratio=found.destination_ratio, phases=phases
    )


def _columns(boxes: _Boxes) -> tuple[I64, ...]:
    """Lanes in the order of ``PoolPlan``'s fields. The longer axis is the lane's repeats, the shorter one makes lanes."""
    along_units = boxes.units >= boxes.rows
    lanes, repeats = np.minimum(boxes.units, boxes.rows), np.maximum(boxes.units, boxes.rows)
    at = np.repeat(np.arange(lanes.size), lanes)
    step = np.arange(at.size) - np.repeat(np.cumsum(lanes) - lanes, lanes)
    offsets, inner = [], []
    for side in boxes.sides:
        offsets.append(side.offset[at] + step * np.where(along_units, side.rows, side.units)[at])
        inner.append(np.where(repeats == 1, 0, np.where(along_units, side.units, side.rows))[at])
    a, b = boxes.sides
    return (
        boxes.layer[at], a.region[at], b.region[at], offsets[0], offsets[1], a.item[at], b.item[at], boxes.length[at],
        repeats[at], inner[0], inner[1],
    )  # fmt: skip

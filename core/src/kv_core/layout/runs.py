"""The arithmetic under ``Batch`` and ``segments``: lanes x items x repeats -> offsets and lengths, runs merged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kv_core.contract.transport import U64, PoolSlice

ONE = np.uint64(1)
NONE: U64 = np.zeros(0, np.uint64)


class SideView(NamedTuple):
    """One side of a slice: its lanes' arrays (uint64, one entry per lane) and its items."""

    region: U64
    offset: U64
    stride: U64
    inner_stride: U64
    items: U64

    def lanes(self, first: int, stop: int) -> SideView:
        """The same items on lanes ``first`` to ``stop``."""
        part = slice(first, stop)
        return SideView(self.region[part], self.offset[part], self.stride[part], self.inner_stride[part], self.items)


class Block(NamedTuple):
    """Flat copies: ``length`` bytes, and for each side the region and the offset in it."""

    length: U64
    sides: tuple[tuple[U64, U64], ...]


def local_view(part: PoolSlice) -> SideView:
    """The local side of a slice."""
    plan, lanes = part.plan, part.lanes
    return SideView(
        plan.local_region[lanes], plan.local_offset[lanes], plan.local_stride[lanes], plan.local_inner_stride[lanes],
        part.local_items,
    )  # fmt: skip


def remote_view(part: PoolSlice) -> SideView:
    """The remote side of a slice."""
    plan, lanes = part.plan, part.lanes
    return SideView(
        plan.remote_region[lanes], plan.remote_offset[lanes], plan.remote_stride[lanes],
        plan.remote_inner_stride[lanes], part.remote_items,
    )  # fmt: skip


def expand(part: PoolSlice, views: Sequence[SideView]) -> list[Block]:
    """All copies of a slice in the order lane, item, repeat. Neighbours in that order are merged where they touch on
    every given side: repeats into an item's piece, and pieces of consecutive items, if a piece is the whole stride.
    """
    length, repeats = part.plan.length[part.lanes], part.plan.inner_count[part.lanes]
    if not bool((repeats == ONE).all()):
        touching = views[0].inner_stride == length
        for view in views[1:]:
            touching &= view.inner_stride == length
        length = np.where(touching, length * repeats, length)
        repeats = np.where(touching, ONE, repeats)
    whole = repeats == ONE
    for view in views:
        whole &= view.stride == length
    if bool(whole.all()):  # nearly always, with equal topologies
        return [_runs(length, views)]
    # Lanes of one kind that stand together are one block of array arithmetic.
    kinds = np.where(whole, np.uint64(0), repeats)
    bounds = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), int(kinds.size)]
    blocks: list[Block] = []
    for first, stop in pairwise(bounds):
        lanes = [view.lanes(first, stop) for view in views]
        kind = int(kinds[first])
        blocks.append(_runs(length[first:stop], lanes) if kind == 0 else _grid(length[first:stop], kind, lanes))
    return blocks


def _runs(length: U64, views: Sequence[SideView]) -> Block:
    """Lanes whose pieces fill their stride on every side: consecutive items are one copy."""
    first, count = _item_runs([view.items for view in views])
    sides = [
        (np.repeat(view.region, first.size), (view.offset[:, None] + view.stride[:, None] * view.items[first]).ravel())
        for view in views
    ]
    return Block((length[:, None] * count).ravel(), tuple(sides))


def _item_runs(items: Sequence[U64]) -> tuple[npt.NDArray[np.intp], U64]:
    """Where items stop counting upwards by one on any side: positions of the runs' first items, and their lengths."""
    breaks = items[0][1:] - items[0][:-1] != ONE
    for other in items[1:]:
        breaks |= other[1:] - other[:-1] != ONE
    (after,) = breaks.nonzero()
    bounds = np.empty(after.size + 2, np.intp)
    bounds[0], bounds[-1] = 0, items[0].size
    np.add(after, 1, out=bounds[1:-1])
    return bounds[:-1], (bounds[1:] - bounds[:-1]).astype(np.uint64)


def _grid(length: U64, repeats: int, views: Sequence[SideView]) -> Block:
    """Lanes with holes on some side: one copy for each item and repeat."""
    inner = np.arange(repeats, dtype=np.uint64)
    each = int(views[0].items.size) * repeats
    sides = []
    for view in views:
        item = view.offset[:, None] + view.stride[:, None] * view.items
        piece = item[:, :, None] + (view.inner_stride[:, None] * inner)[:, None, :]
        sides.append((np.repeat(view.region, each), piece.ravel()))
    return Block(np.repeat(length, each), tuple(sides))


def joined(arrays: Sequence[U64]) -> U64:
    """All arrays one after the other."""
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else NONE.copy()

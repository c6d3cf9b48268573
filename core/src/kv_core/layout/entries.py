"""The blocks of a pool's buffers as columns, and which of two sides' blocks are the same part of the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core.contract.items import ItemBlock
from kv_core.contract.memory import AUX_POOL, NO_LAYER, Topology
from kv_core.layout.memory_map import PoolLayout
from kv_core.layout.shares import first_unit

I64 = npt.NDArray[np.int64]
Key: TypeAlias = tuple[int, str, int]
"""Layer, part, and which of those with the same layer and part."""
COLUMNS = ("units", "total", "unit_bytes", "rows", "offset", "row_stride", "unit_stride")
"""What an entry has from its block."""


@dataclass(frozen=True, eq=False)
class Entries:
    """One entry for each block of each buffer: int64 arrays, byte lengths included.

    ``buffer`` counts within the pool; ``first`` is the first unit held here, of ``total``; ``stride`` is the item length.
    """

    keys: tuple[Key, ...]
    buffer: I64
    layer: I64
    stride: I64
    first: I64
    units: I64
    total: I64
    unit_bytes: I64
    rows: I64
    offset: I64
    row_stride: I64
    unit_stride: I64

    def take(self, at: I64) -> Entries:
        """These entries, in this order."""
        arrays = {column.name: getattr(self, column.name)[at] for column in fields(self) if column.name != "keys"}
        return Entries(tuple(self.keys[position] for position in at.tolist()), **arrays)


def entries_of(pool: PoolLayout, place: Topology) -> Entries:
    """The entries of a rank's pool. An auxiliary row belongs to no layer and is every rank's; the item of an opaque pool
    is one unit of each tensor-parallel rank.
    """
    blocks, buffer, at = _blocks(pool, place)
    columns = {name: np.array([getattr(block, name) for block in blocks], np.int64)[at] for name in COLUMNS}
    stride = pool.item_len.astype(np.int64)[buffer]
    if pool.name == AUX_POOL or not pool.items:
        columns |= dict.fromkeys(("unit_bytes", "unit_stride", "row_stride"), stride)
    layer = np.full(buffer.size, NO_LAYER) if pool.name == AUX_POOL else pool.layer[buffer]
    names = [block.part for block in blocks]
    seen: Counter[tuple[int, str]] = Counter()
    keys: list[Key] = []
    for number, block, position in zip(layer.tolist(), at.tolist(), buffer.tolist(), strict=True):
        name = (number, names[block] or pool.parts[position])
        keys.append((*name, seen[name]))
        seen[name] += 1
    first = first_unit(columns["total"], place.tp_rank, place.tp_size)
    return Entries(tuple(keys), buffer, layer, stride, first, **columns)


def _blocks(pool: PoolLayout, place: Topology) -> tuple[list[ItemBlock], I64, I64]:
    """Different blocks; and for each entry the buffer, and which of the blocks it is."""
    if not pool.items or pool.name == AUX_POOL:
        total = 1 if pool.name == AUX_POOL else place.tp_size
        buffer = np.arange(pool.num_buffers)
        return [ItemBlock(1, total, 1)], buffer, np.zeros_like(buffer)
    counts = np.array([len(item.blocks) for item in pool.items])
    first, count = (np.cumsum(counts) - counts)[pool.item_of], counts[pool.item_of]
    buffer = np.repeat(np.arange(pool.num_buffers), count)
    within = np.arange(buffer.size) - np.repeat(np.cumsum(count) - count, count)
    return [block for item in pool.items for block in item.blocks], buffer, np.repeat(first, count) + within


def match(source: Entries, destination: Entries) -> tuple[Entries, Entries]:
    """The entries that both have, in the order of the source's bytes: entry n of one goes with entry n of the other."""
    there = {key: position for position, key in enumerate(destination.keys)}
    pairs = [(here, there[key]) for here, key in enumerate(source.keys) if key in there]
    at = np.array(pairs, np.int64).reshape(-1, 2)
    at = at[np.lexsort((source.offset[at[:, 0]], source.buffer[at[:, 0]]))]
    return source.take(at[:, 0]), destination.take(at[:, 1])

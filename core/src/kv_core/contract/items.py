"""What an item of a pool is made of, as data: boxes of equal units, which tensor parallelism shares out.

A KV page, a row of mamba state and a block of scales are described in the same words, so that a new kind of state needs
no new code. An item without a description is opaque: it moves whole, between ranks at the same place of tensor
parallelism.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kv_core.contract.failures import InvalidConfig

MAX_PIECES = 1 << 20
"""Most pieces that do not touch each other in one item: bounds what it costs to look for overlaps."""
ORDERS = ("NHD", "HND")


def units_held(total: int, tp_size: int) -> int:
    """How many of a model's ``total`` units each of ``tp_size`` ranks holds: an equal share, or one that several hold.

    Rank r holds those from ``r * total // tp_size`` on. Raises ``InvalidConfig`` if neither number divides the other.
    """
    if total < 1 or tp_size < 1 or (total % tp_size and tp_size % total):
        raise InvalidConfig(
            f"{total} units can't be shared by tp_size {tp_size}: one of the two numbers must divide the other"
        )
    return max(total // tp_size, 1)


@dataclass(frozen=True)
class ItemBlock:
    """A box of ``rows`` x ``units`` pieces of ``unit_bytes`` bytes inside an item.

    The piece of row t and of the u-th unit that is held here begins at ``offset + t * row_stride + u * unit_stride``
    (bytes; 0 for a stride means that its pieces stand close together, rows outermost). A unit is what tensor
    parallelism does not cut: a KV head, a channel. The model has ``total`` of them and this rank holds ``units``, its
    share as ``units_held`` gives it; what every rank holds whole (MLA's latent vector) is one unit of one. A row is a
    token in KV pages. ``part`` names the block; empty: the buffer's part. Raises ``InvalidConfig``.
    """

    units: int
    total: int
    unit_bytes: int
    rows: int = 1
    offset: int = 0
    row_stride: int = 0
    unit_stride: int = 0
    part: str = ""

    def __post_init__(self) -> None:
        if not self.unit_stride:
            object.__setattr__(self, "unit_stride", self.unit_bytes)
        if not self.row_stride:
            object.__setattr__(self, "row_stride", self.units * self.unit_stride)
        least = min(self.unit_bytes, self.rows, self.units, self.row_stride, self.unit_stride)
        if least < 1 or self.units > self.total or self.offset < 0:
            raise InvalidConfig(
                f"{self}: sizes, counts and strides must be positive, units at most total, offset not negative"
            )
        if not self._apart():
            raise InvalidConfig(
                f"{self}: pieces overlap: all rows must fit into the stride of a unit, or all units into that of a row"
            )

    def _apart(self) -> bool:
        if self.units == 1:
            return self.rows == 1 or self.row_stride >= self.unit_bytes
        if self.rows == 1:
            return self.unit_stride >= self.unit_bytes
        all_rows = (self.rows - 1) * self.row_stride + self.unit_bytes
        all_units = (self.units - 1) * self.unit_stride + self.unit_bytes
        rows_inside = self.row_stride >= self.unit_bytes and self.unit_stride >= all_rows
        return rows_inside or (self.unit_stride >= self.unit_bytes and self.row_stride >= all_units)

    @property
    def end(self) -> int:
        """Offset of the first byte behind the block."""
        last = (self.rows - 1) * self.row_stride + (self.units - 1) * self.unit_stride
        return self.offset + last + self.unit_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces together, gaps not counted."""
        return self.rows * self.units * self.unit_bytes

    def axes(self) -> tuple[int, list[tuple[int, int]]]:
        """Length of the longest pieces without gaps, and the (count, stride) pairs by which they repeat."""
        length, left = self.unit_bytes, [(self.units, self.unit_stride), (self.rows, self.row_stride)]
        for _ in range(2):
            for axis in [axis for axis in left if axis[0] == 1 or axis[1] == length]:
                left.remove(axis)
                length *= axis[0]
        return length, left


@dataclass(frozen=True)
class ItemLayout:
    """The blocks of an item. ``tokens``: how many tokens of the prompt an item holds; 0 if it is no page.

    Bytes that belong to no block are padding: they are not moved. Raises ``InvalidConfig`` for blocks that overlap, for
    two blocks with one name, and for rows that do not divide the tokens.
    """

    blocks: tuple[ItemBlock, ...]
    tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        names = [block.part for block in self.blocks]
        if not names or len(set(names)) != len(names):
            raise InvalidConfig(f"an item needs blocks with different parts, got {names[:16]}")
        if self.tokens < 0 or (self.tokens and any(self.tokens % block.rows for block in self.blocks)):
            rows = sorted({block.rows for block in self.blocks})
            raise InvalidConfig(
                f"an item of {self.tokens} tokens can't have blocks of {rows} rows: they must divide it"
            )
        if pieces_of(self.blocks) > MAX_PIECES:
            raise InvalidConfig(
                f"an item of {pieces_of(self.blocks)} separate pieces: at most {MAX_PIECES} are looked at"
            )
        if _overlap(self.blocks):
            raise InvalidConfig(f"blocks {names} overlap: no byte may belong to two of them")

    @property
    def end(self) -> int:
        """Offset of the first byte behind all blocks: the least that an item's length can be."""
        return max(block.end for block in self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes for block in self.blocks)

    @classmethod
    def page(
        cls, tokens: int, heads: int, head_bytes: int, *, tp_size: int = 1, order: str = "NHD",
        parts: Sequence[str] = ("",),
    ) -> ItemLayout:  # fmt: skip
        """A KV page: for each of ``parts`` (("k", "v") where one buffer holds both), one after the other, the vectors of
        ``head_bytes`` bytes of this rank's share of the model's ``heads`` heads. ``order``: NHD, token by token; HND,
        head by head. For MLA ``heads`` is 1 and ``head_bytes`` the latent vector's length.
        """
        if order not in ORDERS:
            raise InvalidConfig(f"the order of a page is one of {', '.join(ORDERS)}, got {order!r}")
        held = units_held(heads, tp_size)
        size = tokens * held * head_bytes
        strides = (held * head_bytes, head_bytes) if order == "NHD" else (head_bytes, tokens * head_bytes)
        blocks = (
            ItemBlock(held, heads, head_bytes, tokens, position * size, *strides, part)
            for position, part in enumerate(parts)
        )
        return cls(tuple(blocks), tokens)

    @classmethod
    def state(cls, parts: Iterable[tuple[str, int, int]], *, tp_size: int = 1, rows: int = 1) -> ItemLayout:
        """An item of state: ``rows`` rows, in each the ``parts`` (name, the model's number of units, bytes of a unit) one
        after the other, each part shared by itself. Mamba's convolution state is ``[("x", d_inner, 2), ("B", ...), ...]``.
        """
        shares = [(part, total, unit, units_held(total, tp_size)) for part, total, unit in parts]
        row = sum(unit * held for _, _, unit, held in shares)
        blocks, at = [], 0
        for part, total, unit, held in shares:
            blocks.append(ItemBlock(held, total, unit, rows, at, row, unit, part))
            at += unit * held
        return cls(tuple(blocks))


def pieces_of(blocks: Iterable[ItemBlock]) -> int:
    """How many pieces with gaps between them the blocks have."""
    count = 0
    for block in blocks:
        pieces = 1
        for repeats, _ in block.axes()[1]:
            pieces *= repeats
        count += pieces
    return count


def _overlap(blocks: Sequence[ItemBlock]) -> bool:
    if len(blocks) == 1:
        return False  # its own pieces have been looked at
    starts: list[npt.NDArray[np.int64]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    for block in blocks:
        length, axes = block.axes()
        at = np.array([block.offset], np.int64)
        for count, stride in axes:
            at = (at[:, None] + np.arange(count, dtype=np.int64) * stride).ravel()
        starts.append(at)
        lengths.append(np.full(at.size, length, np.int64))
    start, length_of = np.concatenate(starts), np.concatenate(lengths)
    order = np.argsort(start, kind="stable")
    return bool((start[order][1:] < (start + length_of)[order][:-1]).any())

"""Descriptions of items as they cross the wire: each different one once, and for each buffer which one it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kv_core.contract.failures import InvalidConfig, MessageError
from kv_core.contract.items import MAX_PIECES, ItemBlock, ItemLayout, pieces_of

MAX_ITEMS = 1_024
"""Most different descriptions in one pool."""
MAX_BLOCKS = 256
"""Most blocks of one item."""
MAX_PART = 128
LARGEST = 2**48
"""No offset, stride or count is larger: their products and sums then can be told from an overflow."""
FIELDS = ("units", "total", "unit_bytes", "rows", "offset", "row_stride", "unit_stride")

I64 = npt.NDArray[np.int64]


def index_items(items: Sequence[ItemLayout | None]) -> tuple[tuple[ItemLayout, ...], I64]:
    """The different descriptions of a pool's buffers, and each buffer's position among them; nothing if it has none.

    Raises ``InvalidConfig`` for what a peer would refuse to read.
    """
    known: dict[ItemLayout, int] = {}
    numbers = [known.setdefault(item, len(known)) for item in items if item is not None]
    for item in known:
        _check(item)
    if len(known) > MAX_ITEMS or sum(pieces_of(item.blocks) for item in known) > MAX_PIECES:
        raise InvalidConfig(f"{len(known)} descriptions of items in one pool: at most {MAX_ITEMS}, {MAX_PIECES} pieces")
    return tuple(known), np.array(numbers, np.int64)


def _check(item: ItemLayout) -> None:
    numbers = [getattr(block, name) for block in item.blocks for name in FIELDS]
    if len(item.blocks) > MAX_BLOCKS or max(*numbers, item.tokens) > LARGEST:
        raise InvalidConfig(f"an item of {len(item.blocks)} blocks: at most {MAX_BLOCKS}, with numbers up to {LARGEST}")
    if any(len(block.part) > MAX_PART or not block.part.isprintable() for block in item.blocks):
        raise InvalidConfig(f"the part of a block must be printable and of at most {MAX_PART} characters")


def items_to_wire(items: Sequence[ItemLayout], item_of: I64) -> dict[str, Any]:
    """Plain values for ``items_from_wire``; nothing if there is no description."""
    if not items:
        return {}
    blocks = [[[block.part, *(getattr(block, name) for name in FIELDS)] for block in item.blocks] for item in items]
    described = [[item.tokens, *rows] for item, rows in zip(items, blocks, strict=True)]
    return {"items": described, "item_of": item_of.astype("<i8").tobytes()}


def items_from_wire(
    described: object, item_of: object, where: str, item_len: npt.NDArray[np.uint64]
) -> tuple[tuple[ItemLayout, ...], I64]:
    """Read what a peer sent of a pool with these item lengths, and check it. Raises ``MessageError``."""
    if described is None and item_of is None:
        return (), np.zeros(0, np.int64)
    if not isinstance(described, (list, tuple)) or not 0 < len(described) <= MAX_ITEMS:
        raise MessageError(f"layout: {where}: 'items' must be a list of 1 to {MAX_ITEMS} descriptions")
    if not isinstance(item_of, bytes) or len(item_of) != 8 * item_len.size:
        raise MessageError(f"layout: {where}: 'item_of' must be bytes, 8 for each of {item_len.size} buffers")
    left = MAX_PIECES
    items: list[ItemLayout] = []
    for entry in described:
        item, left = _read(entry, where, left)
        items.append(item)
    numbers = np.frombuffer(item_of, "<i8").astype(np.int64)
    if int(numbers.min()) < 0 or int(numbers.max()) >= len(items):
        raise MessageError(f"layout: {where}: 'item_of' must lie in 0..{len(items) - 1}")
    if len({item.tokens for item in items}) != 1:
        raise MessageError(f"layout: {where}: all items of a pool must have the same number of tokens")
    ends = np.array([item.end for item in items], np.uint64)
    if bool((ends[numbers] > item_len).any()):
        at = int((ends[numbers] > item_len).argmax())
        raise MessageError(
            f"layout: {where}: buffer {at}: its item's blocks take {int(ends[numbers[at]])} bytes of {int(item_len[at])}"
        )
    return tuple(items), numbers


def _read(entry: object, where: str, left: int) -> tuple[ItemLayout, int]:
    """One description, and how many pieces may still come."""
    if not isinstance(entry, (list, tuple)) or not 1 < len(entry) <= MAX_BLOCKS + 1:
        raise MessageError(f"layout: {where}: an item must be its tokens and 1 to {MAX_BLOCKS} blocks")
    tokens = _number(entry[0], where)
    try:
        blocks = tuple(_block(block, where) for block in entry[1:])
        left -= pieces_of(blocks)
        if left < 0:
            raise MessageError(f"layout: {where}: items of more than {MAX_PIECES} separate pieces")
        return ItemLayout(blocks, tokens), left
    except InvalidConfig as error:
        raise MessageError(f"layout: {where}: {error}") from error


def _block(row: object, where: str) -> ItemBlock:
    if not isinstance(row, (list, tuple)) or len(row) < 1 + len(FIELDS):
        raise MessageError(f"layout: {where}: a block must be its part and {len(FIELDS)} numbers")
    part = row[0]
    if not isinstance(part, str) or len(part) > MAX_PART or not part.isprintable():
        raise MessageError(f"layout: {where}: a block's part must be printable, of at most {MAX_PART} characters")
    numbers = {name: _number(value, where) for name, value in zip(FIELDS, row[1:], strict=False)}
    return ItemBlock(**numbers, part=part)


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise MessageError(f"layout: {where}: the numbers of an item must be integers in 0..{LARGEST}")
    return value

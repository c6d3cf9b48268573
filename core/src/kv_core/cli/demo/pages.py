"""What pages hold, the memory they lie in, and the comparison.

A page's bytes follow from (seed, room, position in the prompt, buffer) alone, so that decode knows what must arrive
without hearing it from the transport. Every byte of a page is odd and the poison is even: a byte that was not written,
or was taken from poisoned memory, can't pass for a right one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import AUX_POOL, KV_POOL, Buffer, KVArgs, Pool

U8: TypeAlias = npt.NDArray[np.uint8]
U64: TypeAlias = npt.NDArray[np.uint64]

POISON = 0xA6
ODD = 0x0101010101010101
WORD = 8
AUX_BUFFER = 0xFFFF_FFFF
"""Number that stands for the auxiliary row where a buffer's number goes."""
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Shape:
    """Both ranks' memory: two buffers a layer (keys, values) of ``num_pages`` pages, and a buffer of auxiliary rows."""

    layers: int
    page_bytes: int
    num_pages: int
    num_rows: int
    aux_bytes: int

    @property
    def num_buffers(self) -> int:
        """Buffers that hold KV pages."""
        return 2 * self.layers

    @property
    def item_bytes(self) -> int:
        """Bytes of one page in one buffer."""
        return self.page_bytes // 2

    def request_bytes(self, pages: int) -> int:
        """Bytes of a request: its pages on all layers and its auxiliary row."""
        return pages * self.layers * self.page_bytes + self.aux_bytes


class Content:
    """Works out what pages hold: a table of random words from the seed, XORed with a key for each (room, page, buffer).

    One pass over the bytes, so that it costs no more than the copy. Keys come from a 64-bit mixing function
    (splitmix64), so that two places get the same key, and a page in the wrong place goes unnoticed, once in 2**56.
    """

    def __init__(self, seed: int, longest_item: int) -> None:
        generator = np.random.Generator(np.random.Philox(seed))
        words = -(-longest_item // WORD)
        self._table: U64 = generator.integers(0, 2**64, words, np.uint64) | np.uint64(ODD)
        self._seed = _mix_number(seed & _MASK)

    def pages(
        self, room: int, buffer: int, positions: npt.NDArray[np.integer], item_bytes: int, out: U64 | None = None
    ) -> U8:
        """The pages at these positions of the room's prompt, in one buffer: shape (positions, item_bytes).

        ``out``: memory for whole words, shape (positions, words); by default it is new.
        """
        base = _mix_number(self._seed ^ room)
        keys = _mix(positions.astype(np.uint64) + np.uint64(base ^ (buffer << 32)))
        # An odd byte XOR an even one is odd.
        table = self._table[: -(-item_bytes // WORD)]
        words = np.bitwise_xor(table[np.newaxis, :], (keys & np.uint64(_MASK ^ ODD))[:, np.newaxis], out=out)
        pages: U8 = words.view(np.uint8)[:, :item_bytes]
        return pages

    def row(self, room: int, length: int) -> U8:
        """The room's auxiliary row."""
        row: U8 = self.pages(room, AUX_BUFFER, np.zeros(1, np.uint64), length)[0]
        return row


class Scratch:
    """Memory for comparisons that is used again and again: fresh temporaries cost four times the comparison itself."""

    def __init__(self, item_bytes: int) -> None:
        self._item_bytes = item_bytes
        self._resize(0)

    def _resize(self, items: int) -> None:
        self._found = np.empty((items, self._item_bytes), np.uint8)
        self._differs = np.empty((items, self._item_bytes), np.bool_)
        self._words = np.empty((items, -(-self._item_bytes // WORD)), np.uint64)

    def words(self, items: int) -> U64:
        """Room for this many items in whole words."""
        if items > len(self._words):
            self._resize(items)
        return self._words[:items]

    def differing(self, buffer: U8, items: U64, expected: U8 | int) -> int:
        """Number of bytes of these items of a buffer that differ from what is expected."""
        self.words(items.size)
        found, differs = self._found[: items.size], self._differs[: items.size]
        # Without a mode NumPy would buffer the output; the numbers are in range, they come from a FreeList.
        np.take(buffer, items.astype(np.intp), axis=0, out=found, mode="clip")
        return int(np.count_nonzero(np.not_equal(found, expected, out=differs)))


class Memory:
    """One rank's buffers, all poisoned at first."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.buffers = [
            np.full((shape.num_pages, shape.item_bytes), POISON, np.uint8) for _ in range(shape.num_buffers)
        ]
        self.rows = np.full((shape.num_rows, shape.aux_bytes), POISON, np.uint8)
        self._scratch = Scratch(shape.item_bytes)

    def args(self) -> KVArgs:
        """The memory as core is told of it: buffer 2 n holds layer n's keys, buffer 2 n + 1 its values."""
        shape = self.shape
        buffers = tuple(
            Buffer(array.ctypes.data, shape.item_bytes, shape.num_pages, number // 2, "kv"[number % 2])
            for number, array in enumerate(self.buffers)
        )
        aux = Buffer(self.rows.ctypes.data, shape.aux_bytes, shape.num_rows)
        return KVArgs(kv=Pool(KV_POOL, buffers), aux=Pool(AUX_POOL, (aux,)), model="kv-core demo")

    def fill(self, content: Content, room: int, pages: U64, first: int) -> None:
        """Write a room's prompt from position ``first`` on into these pages, as computing the prompt would."""
        positions = np.arange(first, first + pages.size)
        for number, buffer in enumerate(self.buffers):
            buffer[pages] = content.pages(room, number, positions, self.shape.item_bytes)

    def fill_row(self, content: Content, room: int, row: int) -> None:
        """Write a room's auxiliary row."""
        self.rows[row] = content.row(room, self.shape.aux_bytes)

    def wrong_bytes(self, content: Content, room: int, pages: U64, row: int) -> int:
        """Number of bytes of a whole request, auxiliary row included, that are not what they must be."""
        positions = np.arange(pages.size)
        wrong = int(np.count_nonzero(self.rows[row] != content.row(room, self.shape.aux_bytes)))
        for number, buffer in enumerate(self.buffers):
            words = self._scratch.words(pages.size)
            wrong += self._scratch.differing(
                buffer, pages, content.pages(room, number, positions, self.shape.item_bytes, words)
            )
        return wrong

    def poison(self, pages: U64, row: int) -> None:
        """Make these pages and this row hold nothing that could be taken for a prompt."""
        for buffer in self.buffers:
            buffer[pages] = POISON
        self.rows[row] = POISON

    def touched_bytes(self, pages: U64, rows: U64) -> int:
        """Number of bytes of these pages and rows that are no longer poison."""
        touched = sum(self._scratch.differing(buffer, pages, POISON) for buffer in self.buffers)
        return touched + int(np.count_nonzero(self.rows[rows] != POISON))


@dataclass
class FreeList:
    """Numbers of what is free, taken in random order."""

    size: int
    random: np.random.Generator
    _free: U64 = field(init=False)

    def __post_init__(self) -> None:
        self._free = np.arange(self.size, dtype=np.uint64)

    @property
    def free(self) -> U64:
        """All that is free now."""
        return self._free

    def take(self, count: int) -> U64 | None:
        """``count`` random numbers in random order, or None if there are not so many."""
        if count > self._free.size:
            return None
        shuffled = self.random.permutation(self._free)
        self._free = shuffled[count:]
        return shuffled[:count]

    def give_back(self, numbers: U64) -> None:
        """Free these again."""
        self._free = np.concatenate([self._free, numbers])


def _mix_number(value: int) -> int:
    """Splitmix64's finaliser on a Python number."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix(values: U64) -> U64:
    """The same on an array, whose arithmetic wraps by itself."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = values ^ (values >> np.uint64(31))
    return mixed

"""The pages that are moved, and which of them each room takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kv_core import KVArgs, Pool
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import Buffer

POISON = 0xA6
TOKENS, HEADS = 16, 8
KEY_BYTES = 8


@dataclass(frozen=True)
class Shape:
    """``buffers`` buffers (keys and values of each layer) of ``pages`` items of ``item_bytes`` bytes. ``order``: NHD or HND, if
    items are described, as ``TOKENS`` tokens of ``HEADS`` heads.
    """

    buffers: int
    pages: int
    item_bytes: int
    order: str = ""

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all buffers."""
        return self.buffers * self.item_bytes


class Memory:
    """One process's pool. The source's pages differ from each other; the destination's are poison."""

    def __init__(self, shape: Shape, *, source: bool) -> None:
        self.shape = shape
        self.bytes: npt.NDArray[np.uint8] = np.empty((shape.buffers, shape.pages, shape.item_bytes), np.uint8)
        if source:
            self.bytes[:] = self._pattern()
            self._keys(self.bytes)[:] = self._numbers(np.arange(shape.pages))
        else:
            self.bytes.fill(POISON)

    def _pattern(self) -> npt.NDArray[np.uint8]:
        return np.random.default_rng(7).integers(1, 256, self.shape.item_bytes, np.uint8)

    def _keys(self, pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
        keys: npt.NDArray[np.uint64] = pages[..., :KEY_BYTES].view(np.uint64)[..., 0]
        return keys

    def _numbers(self, pages: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
        buffers = np.arange(self.shape.buffers, dtype=np.uint64)[:, None]
        numbers: npt.NDArray[np.uint64] = (buffers << np.uint64(32)) + pages.astype(np.uint64)[None, :] + np.uint64(1)
        return numbers

    def wrong_pages(self, mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> int:
        """How many of these pages do not hold what the source's pages ``theirs`` hold; compares every byte."""
        wrong = np.zeros(len(mine), bool)
        expected = self._numbers(theirs)
        pattern = self._pattern()[KEY_BYTES:]
        for buffer in range(self.shape.buffers):
            pages = self.bytes[buffer, mine]
            wrong |= self._keys(pages) != expected[buffer]
            wrong |= (pages[:, KEY_BYTES:] != pattern).any(axis=1)
        return int(wrong.sum())

    def wipe(self, pages: npt.NDArray[np.int64]) -> None:
        """Make pages poison again."""
        self.bytes[:, pages] = POISON

    def address(self, buffer: int) -> int:
        """Where a buffer begins."""
        address: int = self.bytes[buffer].__array_interface__["data"][0]
        return address

    def args(self) -> KVArgs:
        """The pool as kv-core wants it described."""
        shape = self.shape
        addresses = [self.address(buffer) for buffer in range(shape.buffers)]
        layers = [buffer // 2 for buffer in range(shape.buffers)]
        if not shape.order:
            return KVArgs(kv=Pool.uniform("kv", addresses, shape.item_bytes, shape.pages, layers=layers))
        item = ItemLayout.page(TOKENS, HEADS, shape.item_bytes // TOKENS // HEADS, order=shape.order)
        buffers = [
            Buffer(address, shape.item_bytes, shape.pages, layer, "kv"[n % 2], item)
            for n, (address, layer) in enumerate(zip(addresses, layers, strict=True))
        ]
        return KVArgs(kv=Pool("kv", tuple(buffers)), page_size=TOKENS)

    def unlike(self, mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> int:
        """How many of the destination's pages (HND) do not hold, head by head, what the source's (NHD) hold; all bytes compared."""
        source = Memory(Shape(self.shape.buffers, self.shape.pages, self.shape.item_bytes), source=True)
        wanted = source.bytes[:, theirs].reshape(self.shape.buffers, len(theirs), TOKENS, HEADS, -1).swapaxes(2, 3)
        got = self.bytes[:, mine].reshape(wanted.shape)
        return int((wanted != got).any(axis=(0, 2, 3, 4)).sum())


def page_sets(pool: int, pages: int, slots: int, pattern: str, seed: int) -> list[npt.NDArray[np.int64]]:
    """The pages of each room in flight. Disjoint where the pool is large enough for that, else drawn anew for each.

    ``pattern``: ``random``, or ``contiguous`` (ascending neighbours).
    """
    rng = np.random.default_rng(seed)
    if pattern == "contiguous":
        starts = [slot * pages % (pool - pages + 1) for slot in range(slots)]
        return [np.arange(start, start + pages) for start in starts]
    if pages * slots <= pool:
        order = rng.permutation(pool)[: pages * slots]
        return list(order.reshape(slots, pages))
    return [rng.permutation(pool)[:pages] for _ in range(slots)]


def runs(
    mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64], longest: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Positions at which runs of pages that are neighbours on both sides begin, and the number of pages in each, which is
    ``longest`` at most.
    """
    breaks = (np.diff(mine) != 1) | (np.diff(theirs) != 1)
    first = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    positions = np.arange(len(mine))
    begun = first[np.searchsorted(first, positions, side="right") - 1]
    first = positions[(positions - begun) % longest == 0]
    return first, np.diff(np.append(first, len(mine)))

"""What a memory has to look like, byte for byte, while some of its items may be written by others at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kv_conformance.nodes.memory import POISON, U8, Image, Memory

Item = tuple[str, int]
"""Name of a pool and index of an item in it."""


class Ledger:
    """The expected image of one memory, gaps included.

    An item is *closed*: its bytes are known and nobody may write it; or *open*: each of its bytes is what it was when the
    item was opened, or that byte of one of the contents that were allowed since. Content of an item: its bytes in all
    buffers of its pool, one after the other.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._expected: Image = memory.image()
        self._open: dict[Item, list[U8]] = {}  # what it was, then what is allowed
        self._places: dict[Item, list[slice]] = {}
        self._names: list[Item] = []
        self._owner = np.full(memory.shape.nbytes, -1, np.int64)
        for pool, begins in memory.shape.offsets().items():
            _, items, size = memory.shape.pools()[pool]
            for item in range(items):
                places = [slice(at + item * size, at + (item + 1) * size) for at in begins]
                for place in places:
                    self._owner[place] = len(self._names)
                self._places[(pool, item)] = places
                self._names.append((pool, item))

    def nbytes(self, pool: str) -> int:
        """Bytes of one item of this pool, over all buffers."""
        return sum(place.stop - place.start for place in self._places[(pool, 0)])

    def content(self, item: Item) -> U8:
        """The item's bytes as they are now."""
        return self._read(item, self.memory.whole)

    def write(self, item: Item, content: U8) -> None:
        """Put these bytes there, as the memory's owner; it must be closed."""
        begin = 0
        for place in self._places[item]:
            end = begin + place.stop - place.start
            self.memory.whole[place] = self._expected.whole[place] = content[begin:end]
            begin = end

    def poison(self, item: Item) -> None:
        """Let the item look as if it had never been written."""
        self.write(item, np.full(self.nbytes(item[0]), POISON, np.uint8))

    # -- who may write what ----------------------------------------------------------------------------------------

    def open(self, items: Iterable[Item]) -> None:
        """From now on what is allowed may land in these items."""
        for item in items:
            self._open[item] = [self._read(item, self._expected.whole)]

    def allow(self, item: Item, content: U8) -> None:
        """These bytes may land there, if it is open."""
        if item in self._open:
            self._open[item].append(content)

    def close(self, items: Iterable[Item]) -> str:
        """Nothing may land there any more: what is there now, stays. A sentence if that is not what may be there."""
        now = self.memory.whole.copy()
        problem = ""
        for item in items:
            problem = problem or self._foreign(item, now)
            for place in self._places[item]:
                self._expected.whole[place] = now[place]
            self._open.pop(item, None)
        return problem

    # -- looking ---------------------------------------------------------------------------------------------------

    def lacks(self, wanted: Mapping[Item, U8]) -> str:
        """Which of these contents is not there, as a sentence; empty if all are."""
        for (pool, number), content in wanted.items():
            seen = self.content((pool, number))
            if not np.array_equal(seen, content):
                wrong = np.flatnonzero(seen != content)
                poison = " (poison: never written)" if int(seen[wrong[0]]) == POISON else ""
                return (
                    f"item {number} of pool {pool!r}: {len(wrong)} of {len(seen)} bytes are not what they should be, the "
                    f"first is byte {int(wrong[0])}: expected {int(content[wrong[0]]):#04x}, seen "
                    f"{int(seen[wrong[0]]):#04x}{poison}"
                )
        return ""

    def wrong(self) -> str:
        """The first byte that can't be there, as a sentence; empty if there is none."""
        now = self.memory.whole.copy()
        differs = np.flatnonzero(now != self._expected.whole)
        if not len(differs):
            return ""
        owners = np.unique(self._owner[differs])
        if owners[0] < 0:
            at = int(differs[self._owner[differs] < 0][0])
            return f"a gap between buffers was written (offset {at}: {int(now[at]):#04x}); it belongs to nobody"
        for owner in owners:
            problem = self._foreign(self._names[int(owner)], now)
            if problem:
                return problem
        return ""

    def _foreign(self, item: Item, now: U8) -> str:
        seen, was = self._read(item, now), self._read(item, self._expected.whole)
        contents: Sequence[U8] = self._open.get(item, (was,))
        good = np.zeros(len(seen), np.bool_)
        for content in contents:
            good |= seen == content
        if bool(good.all()):
            return ""
        at = int(np.flatnonzero(~good)[0])
        pool, number = item
        why = (
            "with bytes that are neither what may land there nor what was there before"
            if item in self._open
            else "and nothing may land there: it is free, or what was to land there was said to be over for good"
        )
        return (
            f"item {number} of pool {pool!r} was written, {why}: {int((~good).sum())} of {len(seen)} bytes, the first is "
            f"byte {at}: expected {int(was[at]):#04x}, seen {int(seen[at]):#04x}"
        )

    def _read(self, item: Item, whole: U8) -> U8:
        return np.concatenate([whole[place] for place in self._places[item]])

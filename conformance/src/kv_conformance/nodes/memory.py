"""A node's memory: one file in memory that the node and the suite both map, so that the suite looks at the bytes, and writes
them, without the backend, while the node's process is stopped, and after it has died.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kv_core import Buffer, KVArgs, Pool

U8 = npt.NDArray[np.uint8]
POISON = 0xEE
"""What memory that nobody has written yet is full of."""


@dataclass(frozen=True)
class Shape:
    """What a node's memory looks like. Each pool: (buffers, items, bytes of an item), one buffer a layer.

    gap: bytes that belong to nobody, before, between and after the buffers; that they stay what they are is compared, too.
    shift: how many bytes beyond a page's boundary the first buffer begins.
    """

    kv: tuple[int, int, int] = (4, 64, 1024)
    aux: tuple[int, int, int] | None = None
    states: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    gap: int = 512
    shift: int = 0

    def pools(self) -> dict[str, tuple[int, int, int]]:
        """All pools in canonical order: KV, states, auxiliary rows."""
        return {"kv": self.kv, **self.states, **({"aux": self.aux} if self.aux else {})}

    def offsets(self) -> dict[str, list[int]]:
        """Where each buffer begins in the file."""
        place = self.gap + self.shift
        found: dict[str, list[int]] = {}
        for name, (buffers, items, item_len) in self.pools().items():
            found[name] = []
            for _ in range(buffers):
                found[name].append(place)
                place += items * item_len + self.gap
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the file: everything, and a gap at the end."""
        pools = self.pools().values()
        return self.gap + self.shift + sum(b * (n * size + self.gap) for b, n, size in pools)


class Image:
    """The bytes of a whole memory, gaps included, with each pool's buffers as arrays of shape (items, bytes of an item)."""

    def __init__(self, shape: Shape, whole: U8) -> None:
        self.shape = shape
        self.whole = whole
        self.pools: dict[str, list[U8]] = {}
        for name, places in shape.offsets().items():
            _, items, item_len = shape.pools()[name]
            self.pools[name] = [whole[at : at + items * item_len].reshape(items, item_len) for at in places]

    @property
    def kv(self) -> list[U8]:
        """The KV pages: one array of shape (pages, bytes of a page) for each buffer."""
        return self.pools["kv"]

    def take(
        self, source: Image, here: npt.ArrayLike, there: npt.ArrayLike, pool: str = "kv", *, layers: range | None = None
    ) -> None:
        """Copy items ``there`` of the source's pool into items ``here`` of this one: what a transfer should have done."""
        for layer, (mine, other) in enumerate(zip(self.pools[pool], source.pools[pool], strict=True)):
            if layers is None or layer in layers:
                mine[np.asarray(here, np.intp)] = other[np.asarray(there, np.intp)]

    def difference(self, expected: Image) -> str:
        """Where these bytes first differ from the expected ones, as a sentence; empty if they are equal."""
        if _same(self.whole, expected.whole):
            return ""
        wrong = np.flatnonzero(self.whole != expected.whole)
        if not len(wrong):
            return ""  # bytes landed meanwhile, and now they are equal
        first = int(wrong[0])
        seen, wanted = int(self.whole[first]), int(expected.whole[first])
        return (
            f"{len(wrong)} bytes are not what they should be, the first in {self._place(first)}: expected {wanted:#04x}, seen "
            f"{seen:#04x}{' (poison: never written)' if seen == POISON else ''}"
            f"{' (nothing may be written there)' if wanted == POISON else ''}"
        )

    def _place(self, at: int) -> str:
        for name, places in self.shape.offsets().items():
            _, items, item_len = self.shape.pools()[name]
            for number, begin in enumerate(places):
                if begin <= at < begin + items * item_len:
                    item, byte = divmod(at - begin, item_len)
                    return f"pool {name!r}, buffer {number}, item {item}, byte {byte}"
        return f"a gap between buffers (offset {at})"


class Memory(Image):
    """The memory itself. Made by the suite; the node opens it by the maker's process id and descriptor."""

    def __init__(self, shape: Shape, *, opened: tuple[int, int] | None = None) -> None:
        if opened is None:
            self._fd = os.memfd_create("kv-conformance")
            os.ftruncate(self._fd, shape.nbytes)
        else:
            self._fd = os.open(f"/proc/{opened[0]}/fd/{opened[1]}", os.O_RDWR)
        self._map = mmap.mmap(self._fd, shape.nbytes)
        super().__init__(shape, np.frombuffer(self._map, np.uint8))

    @property
    def ticket(self) -> tuple[int, int]:
        """By which another process opens it."""
        return os.getpid(), self._fd

    @property
    def address(self) -> int:
        """Where it is mapped in this process."""
        return int(self.whole.__array_interface__["data"][0])

    def poison(self) -> None:
        """Fill everything with poison."""
        self.whole[:] = POISON

    def randomise(self, random: np.random.Generator) -> None:
        """Fill all pools with random bytes that are never 0 and never poison; poison the gaps."""
        self.poison()
        for arrays in self.pools.values():
            for array in arrays:
                array[:] = random.integers(1, POISON, array.shape, np.uint8)

    def image(self) -> Image:
        """A copy of all bytes as they are now."""
        return Image(self.shape, self.whole.copy())

    def args(self, **changes: object) -> KVArgs:
        """``KVArgs`` of this memory as it is mapped in this process; keyword arguments replace fields."""
        pools = {}
        for name, places in self.shape.offsets().items():
            _, items, item_len = self.shape.pools()[name]
            buffers = tuple(Buffer(self.address + at, item_len, items, layer) for layer, at in enumerate(places))
            pools[name] = Pool(name, buffers)
        states = tuple(pools[name] for name in self.shape.states)
        values: dict[str, object] = {
            "kv": pools["kv"],
            "aux": pools.get("aux"),
            "states": states,
            "model": "conformance",
        }
        return KVArgs(**{**values, **changes})  # type: ignore[arg-type]

    def close(self) -> None:
        """Let go of the file; arrays that are still held keep the mapping alive. Idempotent: two nodes may share a memory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _same(one: U8, other: U8) -> bool:
    """Whether two arrays of one length are equal; eight bytes at a time, for they are long."""
    words = len(one) // 8 * 8
    return np.array_equal(one[:words].view(np.uint64), other[:words].view(np.uint64)) and np.array_equal(
        one[words:], other[words:]
    )

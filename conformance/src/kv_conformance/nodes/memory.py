"""A node's memory: one file in memory that the node and the suite both map, so that the suite looks at the bytes, and writes
them, without the backend, while the node's process is stopped, and after it has died.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kv_core import Buffer, KVArgs, Pool

U8 = npt.NDArray[np.uint8]
POISON = 0xEE
"""What memory that nobody has written yet is full of."""


class Place(NamedTuple):
    """One buffer: where it begins in the file, how many items it has, and bytes of an item."""

    at: int
    items: int
    item_len: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.at + self.items * self.item_len


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

    def places(self) -> dict[str, list[Place]]:
        """The buffers of each pool, in canonical order."""
        at = self.gap + self.shift
        found: dict[str, list[Place]] = {}
        for name, (buffers, items, item_len) in self.pools().items():
            found[name] = [
                Place(at + number * (items * item_len + self.gap), items, item_len) for number in range(buffers)
            ]
            at = found[name][-1].end + self.gap
        return found

    def offsets(self) -> dict[str, list[int]]:
        """Where each buffer begins in the file."""
        return {name: [place.at for place in places] for name, places in self.places().items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the file: everything, and a gap at the end."""
        return self.gap + max(place.end for places in self.places().values() for place in places)

    def args(self, address: int) -> dict[str, object]:
        """``KVArgs`` of such memory at this address, as keyword arguments."""
        pools = {
            name: Pool(
                name, tuple(Buffer(address + at, size, items, layer) for layer, (at, items, size) in enumerate(places))
            )
            for name, places in self.places().items()
        }
        states = tuple(pools[name] for name in self.states)
        return {"kv": pools["kv"], "aux": pools.get("aux"), "states": states, "model": "conformance"}


class Image:
    """The bytes of a whole memory, gaps included, with each pool's buffers as arrays of shape (items, bytes of an item)."""

    def __init__(self, shape: Shape, whole: U8) -> None:
        self.shape = shape
        self.whole = whole
        self.pools: dict[str, list[U8]] = {}
        for name, places in shape.places().items():
            self.pools[name] = [whole[one.at : one.end].reshape(one.items, one.item_len) for one in places]

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
        for name, places in self.shape.places().items():
            for number, place in enumerate(places):
                if place.at <= at < place.end:
                    item, byte = divmod(at - place.at, place.item_len)
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
        return KVArgs(**{**self.shape.args(self.address), **changes})  # type: ignore[arg-type]

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

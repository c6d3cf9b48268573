"""A rank's memory in NumPy arrays, with content that tells of which room and which page it is.

Content is never 0 and memory at rest is: a byte that did not arrive is 0 where something is expected, and one that
arrived where nothing may be written is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core import Buffer, KVArgs, Pool

U8 = npt.NDArray[np.uint8]
Pages: TypeAlias = "Sequence[int] | npt.NDArray[Any]"


@dataclass(frozen=True)
class Shape:
    """What a rank's memory looks like. Each layer has a buffer of keys and one of values."""

    pages: int = 64
    layers: int = 2
    page_bytes: int = 256
    aux_rows: int = 8
    aux_bytes: int = 48
    states: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Pool name to (items, bytes of an item)."""


class RankMemory:
    """Allocates a ``Shape`` and describes it. All zeros in the beginning.

    ``kv``: one array (pages, page_bytes) per buffer; ``aux``: (rows, bytes); ``states``: pool to (items, bytes).
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.kv: list[U8] = [np.zeros((shape.pages, shape.page_bytes), np.uint8) for _ in range(2 * shape.layers)]
        self.aux: U8 | None = np.zeros((shape.aux_rows, shape.aux_bytes), np.uint8) if shape.aux_rows else None
        self.states: dict[str, U8] = {
            name: np.zeros((items, width), np.uint8) for name, (items, width) in shape.states.items()
        }

    def args(self, **changes: Any) -> KVArgs:
        """``KVArgs`` of this memory; keyword arguments replace fields."""
        shape = self.shape
        buffers = tuple(
            Buffer(array.ctypes.data, shape.page_bytes, shape.pages, number // 2, "kv"[number % 2])
            for number, array in enumerate(self.kv)
        )
        aux = None
        if self.aux is not None:
            aux = Pool("aux", (Buffer(self.aux.ctypes.data, shape.aux_bytes, shape.aux_rows),))
        states = tuple(
            Pool(name, (Buffer(array.ctypes.data, array.shape[1], array.shape[0]),))
            for name, array in self.states.items()
        )
        values: dict[str, Any] = {
            "kv": Pool("kv", buffers), "aux": aux, "states": states, "page_size": 16, "dtype": "bfloat16",
            "model": "test-model", "revision": "r1", "num_kv_heads": 2, "head_dim": 64,
        }  # fmt: skip
        return KVArgs(**(values | changes))

    @property
    def page_total_bytes(self) -> int:
        """Bytes of one page over all buffers."""
        return sum(array.shape[1] for array in self.kv)

    def write(self, seed: int, room: int, pages: Pages, *, first: int = 0) -> None:
        """Put the room's content, from its page ``first`` on, into these pages."""
        if len(pages):
            for array, wanted in zip(self.kv, self._content(seed, room, first, len(pages)), strict=True):
                array[np.asarray(pages)] = wanted

    def holds(self, seed: int, room: int, pages: Pages, *, first: int = 0) -> bool:
        """Whether these pages hold the room's content, byte for byte, from its page ``first`` on."""
        if not len(pages):
            return True
        content = self._content(seed, room, first, len(pages))
        return all(
            np.array_equal(array[np.asarray(pages)], wanted) for array, wanted in zip(self.kv, content, strict=True)
        )

    def blank(self, pages: Pages) -> bool:
        """Whether nothing has been written into these pages since they were wiped."""
        return not len(pages) or not any(array[np.asarray(pages)].any() for array in self.kv)

    def wipe(self, pages: Pages) -> None:
        """Zero these pages."""
        if len(pages):
            for array in self.kv:
                array[np.asarray(pages)] = 0

    def _content(self, seed: int, room: int, first: int, count: int) -> U8:
        # Page by page, so that a page's content does not depend on how many pages are asked for.
        rng = np.random.default_rng([seed, room & (2**64 - 1)])
        shape = (first + count, len(self.kv), self.shape.page_bytes)
        pages = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
        return np.maximum(pages[first:], 1).transpose(1, 0, 2)

    def write_row(self, seed: int, room: int, row: int) -> None:
        """Put the room's content into an auxiliary row."""
        assert self.aux is not None
        self.aux[row] = row_content(seed, room, self.shape.aux_bytes)

    def holds_row(self, seed: int, room: int, row: int) -> bool:
        """Whether the auxiliary row holds the room's content."""
        assert self.aux is not None
        return bool(np.array_equal(self.aux[row], row_content(seed, room, self.shape.aux_bytes)))

    def write_state(self, seed: int, room: int, pool: str, items: Pages) -> None:
        """Put the room's content into these items of a state pool."""
        array = self.states[pool]
        array[np.asarray(items)] = state_content(seed, room, pool, len(items), array.shape[1])

    def holds_state(self, seed: int, room: int, pool: str, items: Pages) -> bool:
        """Whether these items of a state pool hold the room's content."""
        array = self.states[pool]
        wanted = state_content(seed, room, pool, len(items), array.shape[1])
        return bool(np.array_equal(array[np.asarray(items)], wanted))


def row_content(seed: int, room: int, width: int) -> U8:
    """What a room's auxiliary row contains."""
    return np.random.default_rng([seed, room & (2**64 - 1), 1]).integers(1, 256, width, np.uint8)


def state_content(seed: int, room: int, pool: str, items: int, width: int) -> U8:
    """What a room's items of a state pool contain."""
    return np.random.default_rng([seed, room & (2**64 - 1), *pool.encode()]).integers(1, 256, (items, width), np.uint8)

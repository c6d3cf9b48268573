"""A process's pages: who owns each, and what stands in it. Freed pages go to the next room at once, so errors bite."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from core.tests.simulation.handles import Handle

U64 = npt.NDArray[np.uint64]
LAYERS = (0, 1, 2)
NO_LAYER = -1
SIZES = {"kv": 48, "mamba": 16, "aux": 24}

Cell: TypeAlias = tuple[str, int, int, int]  # pool, item, layer, part (which prefill rank writes it)
Content: TypeAlias = tuple[int, str, int, int]  # source room, pool, position, layer


class Memory:
    """Pages of one process life, by pool and item."""

    def __init__(self, rng: random.Random) -> None:
        self.owner: dict[tuple[str, int], Handle | None] = {}
        self.cells: dict[Cell, Content] = {}
        self._free: dict[str, list[int]] = {}
        for pool, size in SIZES.items():
            self._free[pool] = list(range(size))
            rng.shuffle(self._free[pool])

    def take(self, pool: str, count: int, owner: Handle) -> U64:
        """Allocate; raises ``MemoryError`` if there is not enough."""
        free = self._free[pool]
        if len(free) < count:
            raise MemoryError(pool)
        items = [free.pop() for _ in range(count)]
        for item in items:
            self.owner[pool, item] = owner
        return np.array(items, np.uint64)

    def give_back(self, pool: str, items: U64) -> None:
        """The engine may reuse these pages, and the next room will."""
        for item in items.tolist():
            self.owner[pool, item] = None
            self._free[pool].append(item)

    def in_use(self) -> int:
        """Pages that some room owns."""
        return sum(SIZES.values()) - sum(map(len, self._free.values()))

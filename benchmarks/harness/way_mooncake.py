"""Mooncake's engine itself, driven as well as it can be: no kv-core at all.

Both sides know the page sets beforehand. Neighbouring pages are one run (Mooncake merges nothing by itself), addresses are
lists (arrays are slower there) made before the clock starts, a call takes 1,024 of them at most, and one thread makes
the calls: the engine has one thread for its sockets, and each call waits in a busy loop that takes processor time from it.
"""

from __future__ import annotations

import importlib
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.memory import Memory, page_sets, runs
from benchmarks.harness.work import Work

BATCH = 1_024
Call = tuple[list[int], list[int], list[int]]


class MooncakeWay:
    """Both sides; ``source`` says which."""

    def __init__(self, memory: Memory, *, source: bool) -> None:
        self._memory = memory
        self._source = source
        self._engine: Any = None
        self._session = ""
        self._theirs: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._their_pages = 0
        self._made: dict[tuple[int, int, str], list[list[Call]]] = {}

    def open(self, options: dict[str, Any]) -> dict[str, Any]:
        """Start the engine and register the memory."""
        engine = self._engine = importlib.import_module("mooncake.engine").TransferEngine()
        if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
            raise RuntimeError("Mooncake's engine could not be initialised: see its log")
        shape = self._memory.shape
        addresses = [self._memory.address(buffer) for buffer in range(shape.buffers)]
        if engine.batch_register_memory(addresses, [shape.pages * shape.item_bytes] * shape.buffers) != 0:
            raise RuntimeError("Mooncake's engine could not register the memory: see its log")
        session = f"127.0.0.1:{engine.get_rpc_port()}"
        return {"session": session, "addresses": addresses, "pages": shape.pages}

    def connect(self, told: dict[str, Any]) -> None:
        """Take the receiver's addresses."""
        self._session = told["session"]
        self._theirs = np.array(told["addresses"], np.uint64)
        self._their_pages = told["pages"]

    def run(self, work: Work) -> dict[str, Any]:
        """Rooms one after the other; the receiving side's engine has threads of its own."""
        if not self._source:
            return {}
        slots = self._calls(work)
        start = monotonic()
        for number in range(work.rooms):
            for here, there, lengths in slots[number % len(slots)]:
                if self._engine.batch_transfer_sync_write(self._session, here, there, lengths) != 0:
                    raise RuntimeError("Mooncake's batch_transfer_sync_write failed: see its log")
        return {"start": start, "end": monotonic()}

    def _calls(self, work: Work) -> list[list[Call]]:
        """For each slot the arguments of its calls."""
        key = (work.pages, work.concurrency, work.pattern)
        if key not in self._made:
            mine = page_sets(self._memory.shape.pages, work.pages, work.concurrency, work.pattern, 1)
            theirs = page_sets(self._their_pages, work.pages, work.concurrency, work.pattern, 2)
            self._made = {key: [self._room(*sets) for sets in zip(mine, theirs, strict=True)]}
        return self._made[key]

    def _room(self, mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> list[Call]:
        size = self._memory.shape.item_bytes
        addresses = np.array([self._memory.address(buffer) for buffer in range(self._memory.shape.buffers)], np.uint64)
        first, count = runs(mine, theirs)
        here = (addresses[:, None] + (mine[first] * size).astype(np.uint64)).ravel().tolist()
        there = (self._theirs[:, None] + (theirs[first] * size).astype(np.uint64)).ravel().tolist()
        lengths = np.tile(count * size, len(addresses)).tolist()
        return [(here[i : i + BATCH], there[i : i + BATCH], lengths[i : i + BATCH]) for i in range(0, len(here), BATCH)]

    def close(self) -> None:
        """Take the memory back from the engine, which ends with this object."""
        if self._engine is not None:
            shape = self._memory.shape
            self._engine.batch_unregister_memory([self._memory.address(buffer) for buffer in range(shape.buffers)])
            self._engine = None

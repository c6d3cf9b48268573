"""Mooncake's engine itself, driven as well as it can be: no kv-core at all.

Both sides know the page sets beforehand. Neighbouring pages are one run (Mooncake merges nothing by itself) of 256 KiB at
most (longer ones are slower), addresses are lists (arrays are slower there) made before the clock starts, no more than
1,024 copies are outstanding (at 2,053 the engine refuses), and one thread makes the calls (more are slower: the engine has
one thread for its sockets).

The engine's own call for this, ``batch_transfer_sync_write``, waits in a busy loop that takes processor time from that
thread: it is shown as a way of its own (``spin``). Here, the last copy of each piece is posted by itself: its status can be
asked without waiting, and the engine's lanes take copies in order, so that little is left to wait for when it has landed.
"""

from __future__ import annotations

import importlib
from collections import deque
from time import monotonic, sleep
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.harness.memory import Memory, page_sets, runs
from benchmarks.harness.work import Work

OUTSTANDING, PIECE, IN_FLIGHT = 1_024, 512, 2
"""Copies in one waiting call; copies in a piece; pieces in flight, of which one follows while the other is awaited."""
COPY_BYTES, PIECE_BYTES = 256 << 10, 32 << 20
"""Longer copies, and more bytes outstanding, cost both sides twice the processor time. Each page is a copy at least."""
MERGED_BYTES = 1 << 40
FIRST_SHARE, FIRST_S = 0.8, 20e-3
"""Slept before the first look: this share of what the last piece took, so long at most."""
SPREAD, SHORTEST_S, LONGEST_S = 0.05, 50e-6, 5e-3
"""Later looks come at this part of the time waited so far: each costs the engine's thread processor time."""


class Copies(NamedTuple):
    """Addresses here and there, and lengths in bytes."""

    here: list[int]
    there: list[int]
    lengths: list[int]


class Piece(NamedTuple):
    """A piece in flight; ``batch`` is 0 where it has one copy only."""

    batch: int
    last: int
    posted: float


class MooncakeWay:
    """Both sides; ``source`` says which. ``spin``: the engine's own waiting call."""

    def __init__(self, memory: Memory, *, source: bool, spin: bool = False) -> None:
        self._memory = memory
        self._source = source
        self._spin = spin
        self._engine: Any = None
        self._session = ""
        self._theirs: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._their_pages = 0
        self._made: dict[tuple[int, int, str], list[list[Copies]]] = {}
        self._took_s = 0.0

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
        slots = self._slots(work)
        start = monotonic()
        if self._spin:
            for number in range(work.rooms):
                for copies in slots[number % len(slots)]:
                    _check(self._engine.batch_transfer_sync_write(self._session, *copies) == 0)
        else:
            self._move(work, slots)
        return {"start": start, "end": monotonic()}

    def _move(self, work: Work, slots: list[list[Copies]]) -> None:
        flying: deque[Piece] = deque()
        for number in range(work.rooms):
            for copies in slots[number % len(slots)]:
                if len(flying) == IN_FLIGHT:
                    self._await(flying.popleft())
                flying.append(self._post(copies))
            while flying and work.concurrency == 1:
                self._await(flying.popleft())
        while flying:
            self._await(flying.popleft())

    def _post(self, copies: Copies) -> Piece:
        here, there, lengths = copies
        batch = 0
        if len(here) > 1:
            batch = self._engine.batch_transfer_async_write(self._session, here[:-1], there[:-1], lengths[:-1])
            _check(batch != 0)
        last = self._engine.transfer_submit_write(self._session, here[-1], there[-1], lengths[-1])
        _check(last != 0)
        return Piece(batch, last, monotonic())

    def _await(self, piece: Piece) -> None:
        begun = monotonic()
        sleep(min(max(self._took_s * FIRST_SHARE, SHORTEST_S), FIRST_S))
        while (state := self._engine.transfer_check_status(piece.last)) == 0:
            sleep(min(max((monotonic() - begun) * SPREAD, SHORTEST_S), LONGEST_S))
        _check(state == 1 and (piece.batch == 0 or self._engine.get_batch_transfer_status([piece.batch]) == 0))
        self._took_s = monotonic() - begun

    def _slots(self, work: Work) -> list[list[Copies]]:
        """For each slot the arguments of its calls."""
        key = (work.pages, work.concurrency, work.pattern)
        if key not in self._made:
            mine = page_sets(self._memory.shape.pages, work.pages, work.concurrency, work.pattern, 1)
            theirs = page_sets(self._their_pages, work.pages, work.concurrency, work.pattern, 2)
            self._made = {key: [self._room(*sets) for sets in zip(mine, theirs, strict=True)]}
        return self._made[key]

    def _room(self, mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> list[Copies]:
        size = self._memory.shape.item_bytes
        addresses = np.array([self._memory.address(buffer) for buffer in range(self._memory.shape.buffers)], np.uint64)
        first, count = runs(mine, theirs, max(1, (MERGED_BYTES if self._spin else COPY_BYTES) // size))
        here = (addresses[:, None] + (mine[first] * size).astype(np.uint64)).ravel().tolist()
        there = (self._theirs[:, None] + (theirs[first] * size).astype(np.uint64)).ravel().tolist()
        lengths = np.tile(count * size, len(addresses)).tolist()
        step = OUTSTANDING if self._spin else max(1, min(PIECE, PIECE_BYTES // int(count.max() * size)))
        return [
            Copies(here[i : i + step], there[i : i + step], lengths[i : i + step]) for i in range(0, len(here), step)
        ]

    def close(self) -> None:
        """Take the memory back from the engine, which ends with this object."""
        if self._engine is not None:
            shape = self._memory.shape
            self._engine.batch_unregister_memory([self._memory.address(buffer) for buffer in range(shape.buffers)])
            self._engine = None


def _check(good: bool) -> None:
    if not good:
        raise RuntimeError("Mooncake's engine refused or failed a transfer: see its log")

"""The last batches that were published, for replay."""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import NamedTuple


class Kept(NamedTuple):
    """What a ring has from some number on.

    batches: numbers and payloads, in order. first: the lowest number that is still kept, or the next one to be given.
    evicted: the highest number that is kept no more; None if nothing was ever evicted.
    """

    batches: list[tuple[int, bytes]]
    first: int
    evicted: int | None


class ReplayRing:
    """Bounded, ordered by number. ``append`` by the sender, ``since`` by the replay thread; each holds the lock briefly."""

    def __init__(self, capacity: int, next_seq: int) -> None:
        self._lock = threading.Lock()
        self._batches: deque[tuple[int, bytes]] = deque(maxlen=max(capacity, 1))
        self._next = next_seq
        self._evicted: int | None = None

    @property
    def capacity(self) -> int:
        """How many batches are kept."""
        return self._batches.maxlen or 0

    def __len__(self) -> int:
        return len(self._batches)

    def append(self, seq: int, payload: bytes) -> None:
        """Keep a batch; the oldest goes if the ring is full."""
        with self._lock:
            if len(self._batches) == self._batches.maxlen:
                self._evicted = self._batches[0][0]
            self._batches.append((seq, payload))
            self._next = seq + 1

    def since(self, start: int) -> Kept:
        """What is kept from `start` on."""
        with self._lock:
            first = self._batches[0][0] if self._batches else self._next
            if start <= first:
                return Kept(list(self._batches), first, self._evicted)
            # Numbers are dense, so the place of one is known without a search.
            skip = min(start - first, len(self._batches))
            return Kept(list(islice(self._batches, skip, None)), first, self._evicted)

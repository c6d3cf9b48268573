"""Between the scheduler's thread and the sender's: a bounded queue that never blocks and says what it dropped."""

from __future__ import annotations

import queue
import threading
from typing import NamedTuple

from kv_core.events.schema import EventBatch


class Loss(NamedTuple):
    """How much was dropped so far."""

    batches: int
    events: int

    def minus(self, other: Loss) -> Loss:
        """What came since `other`."""
        return Loss(self.batches - other.batches, self.events - other.events)


NO_LOSS = Loss(0, 0)


class DroppingQueue:
    """Drops the oldest batch where there is no room. ``put`` by the scheduler, ``get`` by the sender, ``loss`` by anybody.

    ``SimpleQueue`` takes neither a lock nor leaves the GIL in ``put``, so that a busy sender can't hold the caller up.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = max(capacity, 1)
        self.loss = NO_LOSS
        self._queue: queue.SimpleQueue[EventBatch | None] = queue.SimpleQueue()
        self._dropping = threading.Lock()

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, batch: EventBatch) -> None:
        """Append a batch. Never blocks."""
        if self._queue.qsize() >= self.capacity:
            self._drop_oldest()
        self._queue.put(batch)

    def end(self) -> None:
        """Append the end: ``get`` answers None when all before it has been taken."""
        self._queue.put(None)

    def get(self, timeout_s: float) -> EventBatch | None:
        """The oldest batch, or None for the end. Raises ``queue.Empty`` after the timeout."""
        return self._queue.get(timeout=timeout_s)

    def _drop_oldest(self) -> None:
        with self._dropping:  # callers only, and only where a batch is lost: the sender never takes it
            try:
                oldest = self._queue.get_nowait()
            except queue.Empty:
                return
            if oldest is None:
                self._queue.put(None)
                return
            self.loss = Loss(self.loss.batches + 1, self.loss.events + len(oldest.events))

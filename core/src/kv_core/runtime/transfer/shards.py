"""The transfer queues: any thread puts chunks in, the owner takes them out, the same number from each in turn."""

from __future__ import annotations

import os
from queue import Empty, SimpleQueue

from kv_core.protocol.chunks import TransferKVChunk


def shard_count(configured: int | None) -> int:
    """``configured``, or else min(max(4, cpus // 16), 12), capped by the CPUs that this process may use."""
    if configured is not None:
        return configured
    return min(max(4, (os.cpu_count() or 1) // 16), 12, len(os.sched_getaffinity(0)))


class Shard:
    """One queue. ``waiting`` counts chunks that the owner has taken out, and neither claimed nor dropped (owner only)."""

    __slots__ = ("queue", "waiting")

    def __init__(self) -> None:
        self.queue: SimpleQueue[TransferKVChunk] = SimpleQueue()
        self.waiting = 0


class Shards:
    """Transfer queues sharded by room."""

    def __init__(self, count: int) -> None:
        self._shards = [Shard() for _ in range(count)]
        self._next = 0

    def put(self, chunk: TransferKVChunk) -> None:
        """Queue a chunk. Any thread; never blocks."""
        self._of(chunk).queue.put(chunk)

    def take(self, limit: int) -> list[TransferKVChunk]:
        """Up to ``limit`` chunks, one from each shard in turn. Owner only."""
        taken: list[TransferKVChunk] = []
        empty = 0
        while len(taken) < limit and empty < len(self._shards):
            shard = self._shards[self._next]
            self._next = (self._next + 1) % len(self._shards)
            try:
                taken.append(shard.queue.get_nowait())
            except Empty:
                empty += 1
            else:
                shard.waiting += 1
                empty = 0
        return taken

    def left(self, chunk: TransferKVChunk) -> None:
        """The chunk was claimed or dropped. Owner only."""
        self._of(chunk).waiting -= 1

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take. Any thread."""
        return all(shard.queue.empty() for shard in self._shards)

    def counts(self) -> list[int]:
        """For each shard the chunks that were put and are neither claimed nor dropped. Any thread."""
        return [shard.queue.qsize() + shard.waiting for shard in self._shards]

    def _of(self, chunk: TransferKVChunk) -> Shard:
        return self._shards[chunk.room.number % len(self._shards)]

"""Deadlines by key, in a heap: setting one anew costs nothing until the old time comes."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

COMPACT_ABOVE = 256
"""Cancelled entries that the heap may hold beyond the live ones."""


class Timers(Generic[K]):
    """At most one deadline per key. Keys that come due are taken out and returned once."""

    def __init__(self) -> None:
        self._when: dict[K, float] = {}
        self._pushed: dict[K, float] = {}  # the earliest time at which the heap looks at the key again
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._when)

    def set(self, key: K, when: float) -> None:
        """Let ``key`` come due at ``when``, instead of any time set before."""
        self._when[key] = when
        pushed = self._pushed.get(key)
        if pushed is None or when < pushed:
            self._push(key, when)

    def cancel(self, key: K) -> None:
        """Forget the key; unknown ones are ignored."""
        if self._when.pop(key, None) is not None and len(self._heap) > 2 * len(self._when) + COMPACT_ABOVE:
            self._compact()

    def get(self, key: K) -> float | None:
        """When the key is due."""
        return self._when.get(key)

    def next(self) -> float | None:
        """The earliest time at which ``due`` may return something."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[K]:
        """The keys whose time has come, earliest first."""
        result: list[tuple[float, K]] = []
        while self._heap and self._heap[0][0] <= now:
            pushed, _, key = heapq.heappop(self._heap)
            if self._pushed.get(key) != pushed:
                continue  # an earlier entry for this key has been pushed since
            del self._pushed[key]
            when = self._when.get(key)
            if when is None:
                continue
            if when <= now:
                del self._when[key]
                result.append((when, key))
            else:
                self._push(key, when)
        result.sort(key=lambda entry: entry[0])
        return [key for _, key in result]

    def _push(self, key: K, when: float) -> None:
        self._count += 1
        self._pushed[key] = when
        heapq.heappush(self._heap, (when, self._count, key))

    def _compact(self) -> None:
        self._heap.clear()
        self._pushed.clear()
        for key, when in self._when.items():
            self._push(key, when)

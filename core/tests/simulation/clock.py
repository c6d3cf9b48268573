"""Virtual time: a heap of what is to happen, and a guard that no machine looks at a real clock."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

REAL_CLOCKS = ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns")


class Clock:
    """What happens when. Events of the same time happen in the order in which they were set."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        """Let ``action(*args)`` happen at ``when``, or now if that is over."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, action, args))

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        """Let ``action(*args)`` happen ``delay`` seconds from now."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, action, args))

    def run(self, until: float, enough: Callable[[], bool] | None = None) -> bool:
        """Let everything happen that is due up to ``until``; stop early when ``enough()``. True if stopped early."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action, args = heapq.heappop(heap)
            self.events += 1
            action(*args)
            if enough is not None and enough():
                return True
        self.now = max(self.now, until)
        return False


@contextmanager
def no_real_clock() -> Iterator[None]:
    """Whoever reads a real clock in here gets an ``AssertionError``: the wall clock may jump as it likes, then."""

    def refuse() -> float:
        raise AssertionError("a real clock was read inside the simulation")

    saved = {name: getattr(time, name) for name in REAL_CLOCKS}
    for name in REAL_CLOCKS:
        setattr(time, name, refuse)
    try:
        yield
    finally:
        for name, function in saved.items():
            setattr(time, name, function)

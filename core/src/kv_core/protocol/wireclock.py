"""How long a room was on the wire: the length of the union of its transfers' time spans."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class WireClock:
    """Adds up time spans, counting overlaps once: five chunks in parallel for a second are one second, not five."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._stops: list[float] = []

    def add(self, start: float, stop: float) -> None:
        """Count the span from ``start`` to ``stop`` (a negative one counts as empty)."""
        stop = max(start, stop)
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    @property
    def first(self) -> float | None:
        """When the first span began."""
        return self._starts[0] if self._starts else None

    @property
    def seconds(self) -> float:
        """Length of the union."""
        return sum(stop - start for start, stop in zip(self._starts, self._stops, strict=True))

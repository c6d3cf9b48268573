"""What counters and histograms grew by, over the last seconds of one endpoint. Pure.

A counter that went down is that of a new process: then all that the new one says is growth. Growth is summed up from each
reading to the next one, so that a restart within the window loses at most what the old process did after its last reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kv_core.cli.top.readings import GROWING, Labels, Reading


@dataclass(frozen=True)
class Growth:
    """What series grew by within so many seconds. Series that did not grow are not in it, but for buckets: a percentile
    needs all bounds.
    """

    seconds: float = 0.0
    grown: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and growth of each series of this name that grew."""
        for labels, value in self.grown.get(name, {}).items():
            yield dict(labels), value


def restarted(before: Reading, after: Reading) -> bool:
    """Whether another process answered the second time: something that only grows went down, or is gone."""
    for name in GROWING:
        now = after.samples.get(name, {})
        for labels, value in before.samples.get(name, {}).items():
            if now.get(labels, 0.0) < value:
                return True
    return False


def growth(before: Reading, after: Reading) -> Growth:
    """From one reading to a later one. A series that was not there began at 0."""
    anew = restarted(before, after)
    grown: dict[str, dict[Labels, float]] = {}
    for name in GROWING & after.samples.keys():
        earlier = {} if anew else before.samples.get(name, {})
        rises = {labels: value - earlier.get(labels, 0.0) for labels, value in after.samples[name].items()}
        every = name.endswith("_bucket")
        risen = {labels: rise for labels, rise in rises.items() if rise > 0 or every}
        if risen:
            grown[name] = risen
    return Growth(after.at_s - before.at_s, grown)


def add_up(steps: Iterable[Growth]) -> Growth:
    """One growth after the other."""
    seconds = 0.0
    total: dict[str, dict[Labels, float]] = {}
    for step in steps:
        seconds += step.seconds
        for name, series in step.grown.items():
            sums = total.setdefault(name, {})
            for labels, value in series.items():
                sums[labels] = sums.get(labels, 0.0) + value
    return Growth(seconds, total)


class History:
    """One endpoint's readings, as far as the window needs them. ``window_s``: how far back ``growth`` looks."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._steps: deque[tuple[float, Growth]] = deque()
        self.last: Reading | None = None
        self.restarts = 0

    def add(self, reading: Reading) -> None:
        """The next reading; its time must be later than that of the last one."""
        if self.last is not None:
            self.restarts += restarted(self.last, reading)
            self._steps.append((self.last.at_s, growth(self.last, reading)))
        self.last = reading
        while len(self._steps) > 1 and self._steps[0][0] < reading.at_s - self._window_s:
            self._steps.popleft()

    def growth(self) -> Growth | None:
        """Over the window; None before there are two readings."""
        return add_up(step for _, step in self._steps) if self._steps else None

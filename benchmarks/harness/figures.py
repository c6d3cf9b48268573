"""The arithmetic: percentiles, processor time, what others used of the machine meanwhile."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np


def cpu_seconds() -> float:
    """Processor time of this process so far, all threads, user and system."""
    times = os.times()
    return times.user + times.system


def percentiles_us(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Median and 99th percentile in microseconds, and how many there were."""
    if not nanoseconds:
        return {"p50": float("nan"), "p99": float("nan"), "count": 0}
    p50, p99 = np.percentile(np.asarray(nanoseconds, np.float64) / 1e3, (50, 99))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "count": len(nanoseconds)}


def cpu_seconds_of(pid: int) -> float:
    """Processor time of another process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Spread:
    """Median and extremes of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """``median (low-high)``."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


class MachineLoad:
    """How many processors others than the measured processes kept busy, from the system's own counts."""

    TICKS = os.sysconf("SC_CLK_TCK")

    def __init__(self) -> None:
        self._start = monotonic()
        self._busy = self._busy_s()

    def others(self, own_cpu_s: float) -> float:
        """Processors kept busy by others since this object was made."""
        elapsed = max(monotonic() - self._start, 1e-9)
        return round(max(0.0, self._busy_s() - self._busy - own_cpu_s) / elapsed, 2)

    @classmethod
    def _busy_s(cls) -> float:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(
            int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        )
        return (user + nice + system + irq + softirq) / cls.TICKS


def machine() -> dict[str, Any]:
    """What is needed to read the numbers: processors and their kind, kernel, load. No names."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )  # fmt: skip
    return {
        "cpus": len(os.sched_getaffinity(0)), "cpu": cpu, "kernel": os.uname().release.split("-")[0],
        "load_1m": round(os.getloadavg()[0], 2),
    }  # fmt: skip

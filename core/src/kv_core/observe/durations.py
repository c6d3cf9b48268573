"""Times between time stamps, and how they are written in a log line. Pure: no clock is read here."""

from __future__ import annotations

import math

MS_PER_S = 1_000.0
MIB = 1 << 20
"""Bytes in what SGLang calls an MB."""
GIB = 1 << 30
"""Bytes in what SGLang calls a GB."""


def known(value: float | None) -> bool:
    """Whether this is a number that may be reported: there, finite and not negative."""
    return value is not None and math.isfinite(value) and value >= 0


def duration_between(start: float | None, end: float | None) -> float | None:
    """Seconds from ``start`` to ``end`` (both of one monotonic clock); None if one of them is not known.

    Never negative: 0.0 for an end before the start, which stamps of a request that was aborted and tried again may have.
    """
    if start is None or end is None or not (math.isfinite(start) and math.isfinite(end)):
        return None
    return max(0.0, end - start)


def format_duration(seconds: float | None) -> str:
    """Milliseconds with two digits, as SGLang logs them ("12.30ms"); "n/a" if not known."""
    return "n/a" if seconds is None else f"{seconds * MS_PER_S:.2f}ms"

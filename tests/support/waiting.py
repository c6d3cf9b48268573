"""Waiting for a condition, never for a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 30.0
"""Generous: reached only by a test that fails."""
_PAUSE_S = 0.002


def wait_until(condition: Callable[[], T], what: str | Callable[[], str] = "", limit_s: float = LIMIT_S) -> T:
    """The condition's first true value; fails with ``what`` (a text, or a function that makes one) after ``limit_s``."""
    deadline = monotonic() + limit_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if monotonic() >= deadline:
            text = what() if callable(what) else what
            raise AssertionError(f"did not come true within {limit_s:g} s: {text or condition}")
        pause.wait(_PAUSE_S)

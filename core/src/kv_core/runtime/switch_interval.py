"""The interpreter's switch interval while managers are open: what a waiting thread waits for the GIL at the most.

Measured on one 8 MiB room in a process whose main thread computes: 6.5 ms at the default of 5 ms, 2.0 ms at 0.5 ms.
"""

from __future__ import annotations

import sys
import threading


class SwitchInterval:
    """The shortest interval that any open manager asks for; the process's own one again when all have closed."""

    _lock = threading.Lock()
    _wanted: list[float] = []  # noqa: RUF012 - one interpreter, one setting
    _original: float | None = None

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def acquire(self) -> None:
        """Ask for the interval."""
        if self._seconds is not None:
            with self._lock:
                if not self._wanted:
                    SwitchInterval._original = sys.getswitchinterval()
                self._wanted.append(self._seconds)
                sys.setswitchinterval(min(self._wanted))

    def release(self) -> None:
        """Ask no more. Idempotent."""
        if self._seconds is not None:
            with self._lock:
                if self._seconds in self._wanted:
                    self._wanted.remove(self._seconds)
                    restored = self._original if self._original is not None else sys.getswitchinterval()
                    sys.setswitchinterval(min(self._wanted, default=restored))
            self._seconds = None

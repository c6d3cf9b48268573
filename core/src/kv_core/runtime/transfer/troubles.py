"""Exceptions that a worker survives: counted, and logged at a limited rate."""

from __future__ import annotations

import logging
from collections.abc import Callable

LOG_PERIOD_S = 10.0
"""One kind of trouble is logged at most this often."""

SURVIVED: tuple[type[BaseException], ...] = (Exception, SystemExit)
"""What may come out of a transport or an engine's object without ending the thread that called it."""


class Troubles:
    """Counts exceptions of one thread. Used by that thread; ``count`` may be read by any."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float]) -> None:
        self.count = 0
        self._logger = logger
        self._clock = clock
        self._log_at: dict[str, float] = {}

    def add(self, what: str, error: BaseException) -> None:
        """Count an exception. ``what`` is one of few fixed phrases: it says what was being done."""
        self.count += 1
        now = self._clock()
        if now >= self._log_at.get(what, now):
            self._log_at[what] = now + LOG_PERIOD_S
            self._logger.warning(
                "transfers: %s: %s (%d exceptions so far)", what, described(error), self.count, exc_info=error
            )


def described(error: BaseException) -> str:
    """An exception as text, with its type: ``OSError: [Errno 5] Input/output error``."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

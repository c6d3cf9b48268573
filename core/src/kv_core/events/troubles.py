"""Exceptions that a thread of this layer survives: counted, and logged at a limited rate."""

from __future__ import annotations

import logging
import time

LOG_PERIOD_S = 10.0


class Troubles:
    """Of one thread; ``count`` may be read by any."""

    def __init__(self, logger: logging.Logger) -> None:
        self.count = 0
        self._logger = logger
        self._log_at: dict[str, float] = {}

    def add(self, what: str, error: BaseException | None = None) -> None:
        """Count one. `what` is one of few fixed phrases."""
        self.count += 1
        now = time.monotonic()
        if now >= self._log_at.get(what, now):
            self._log_at[what] = now + LOG_PERIOD_S
            because = f": {type(error).__name__}: {error}" if error is not None else ""
            self._logger.warning("KV events: %s%s (%d times so far)", what, because, self.count, exc_info=error)

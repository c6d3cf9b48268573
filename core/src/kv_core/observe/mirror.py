"""A thread that does something every so often: it keeps the gauges of a shared folder up to date."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

JOIN_S = 5.0
_LOGGER = logging.getLogger("kv_core.observe")


class Mirror:
    """Calls ``refresh`` every ``interval_s`` seconds until ``close``, and once more then.

    An exception ends nothing; the first of a row is logged. It also ends by itself when the main thread has: a process
    that forgets ``close`` still ends.
    """

    def __init__(self, refresh: Callable[[], None], interval_s: float) -> None:
        self._refresh = refresh
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-metrics-mirror")
        self._failing = False
        self.exceptions = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        main = threading.main_thread()
        while not self._stop.wait(self._interval_s) and main.is_alive():
            self._turn()

    def _turn(self) -> None:
        try:
            self._refresh()
            self._failing = False
        except Exception:
            self.exceptions += 1
            if not self._failing:
                _LOGGER.exception("metrics were not brought up to date; it is tried again every %g s", self._interval_s)
            self._failing = True

    def close(self) -> bool:
        """End the thread and bring everything up to date once more; True if it has ended. Idempotent."""
        first = not self._stop.is_set()
        self._stop.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)
        if first:
            self._turn()
        return not self._thread.is_alive()

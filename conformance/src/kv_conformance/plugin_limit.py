"""The time that a check may take. Ends what waits in Python; a call that hangs natively is the driver's affair."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kv_conformance.outcomes import CheckTimeout

AGAIN_S = 10.0
"""After so long it is raised again: the first one may have got lost in a destructor."""


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raise ``CheckTimeout`` in here after so many seconds. No limit outside of the main thread, where no signal arrives.

    Another one's timer (pytest-timeout's) does not run meanwhile: afterwards it has as long as it had before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise CheckTimeout(f"did not end within {limit_s:g} s")

    former = signal.signal(signal.SIGALRM, ring)
    delay, interval = signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # None: it was not set from Python, and can't be set again from here.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if former is None else former)
        if delay:
            signal.setitimer(signal.ITIMER_REAL, delay, interval)

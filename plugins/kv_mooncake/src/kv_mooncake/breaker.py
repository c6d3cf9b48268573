"""A circuit breaker: a peer that fails is refused for a while, then asked again, and taken back as soon as it answers.

One failure does not cut a peer off for good (sglang #13054), and a dead one does not cost every room its time limit.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_BACKOFF = 32
"""The wait doubles with each probe that fails, up to so many times the first."""


@dataclass
class Breaker:
    """Closed: everything passes. Open: nothing does until ``retry_at``; then one probe decides. Pure: time comes in.

    One thread at a time. ``threshold``: failures in a row that open it; ``cooldown_s``: first wait.
    """

    threshold: int
    cooldown_s: float
    failures: int = 0
    opened_at: float | None = None
    retry_at: float = 0.0
    _wait_s: float = 0.0

    @property
    def open(self) -> bool:
        """Whether submissions need a probe that succeeds before them."""
        return self.opened_at is not None

    def refuses(self, now: float) -> float:
        """Seconds for which nothing passes; 0 if everything does, or if a probe may be made."""
        return max(0.0, self.retry_at - now) if self.open else 0.0

    def succeeded(self) -> None:
        """The peer answered."""
        self.failures, self.opened_at, self._wait_s = 0, None, 0.0

    def failed(self, now: float, *, at_once: bool = False) -> None:
        """A submission or a probe failed. ``at_once``: it used up its time limit, another one shall not be tried."""
        self.failures += 1
        if self.refuses(now):
            return  # it was under way when the breaker opened
        if self.open:
            self._wait_s = min(self._wait_s * 2, self.cooldown_s * MAX_BACKOFF)
        elif at_once or self.failures >= self.threshold:
            self.opened_at, self._wait_s = now, self.cooldown_s
        else:
            return
        self.retry_at = now + self._wait_s

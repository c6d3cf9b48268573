"""Is a peer alive? Three states from probes that are answered or missed; pure.

Misses are *counted probes*, not elapsed time: a process that was itself paused for a minute has sent one probe in that
minute and finds one miss, not sixty. A verdict of DEAD is a timeout and proves nothing about what the peer may still
write; see ``is_release_safe``.
"""

from __future__ import annotations

from kv_core.contract.enums import Liveness


class PeerLiveness:
    """Liveness of one peer. Feed it probes and signs of life; read ``state``."""

    def __init__(self, interval_s: float, suspect_after: int, dead_after: int, now: float) -> None:
        self._interval_s = interval_s
        self._suspect_after = suspect_after
        self._dead_after = dead_after
        self._misses = 0
        self._answered = True
        self._doubted = False
        self.next_probe = now + interval_s
        self.last_life = now
        self.state = Liveness.OK

    @property
    def before_death(self) -> Liveness:
        """OK or SUSPECT: who was given up for missed probes had been suspect, as that takes fewer of them."""
        return Liveness.OK if self.state is Liveness.OK else Liveness.SUSPECT

    @property
    def misses(self) -> int:
        """Probes in a row that nobody answered."""
        return self._misses

    def probe(self, now: float) -> Liveness:
        """A probe goes out now; if the last one was not answered, that is a miss. Returns the state."""
        if not self._answered:
            self._misses += 1
        self._answered = False
        self.next_probe = now + self._interval_s
        return self._judge()

    def miss(self) -> Liveness:
        """A probe failed outright (an error instead of silence)."""
        self._misses += 1
        self._answered = True
        return self._judge()

    def life(self, now: float) -> Liveness:
        """A sign of life: an answer, a message, progress of a transfer. Only DEAD is final."""
        self._misses = 0
        self._answered = True
        self._doubted = False
        self.last_life = now
        return self._judge()

    def doubt(self, now: float) -> Liveness:
        """The connection broke: suspect at once, and probe at once; a connection that flaps is one doubt, not many."""
        if not self._doubted:
            self._doubted = True
            self.next_probe = now
        return self._judge()

    def die(self) -> Liveness:
        """Known at once: nobody listens at its address any more, or it said so."""
        self.state = Liveness.DEAD
        return self.state

    def _judge(self) -> Liveness:
        if self.state is not Liveness.DEAD:
            if self._misses >= self._dead_after:
                self.state = Liveness.DEAD
            elif self._doubted or self._misses >= self._suspect_after:
                self.state = Liveness.SUSPECT
            else:
                self.state = Liveness.OK
        return self.state

"""``--kill``: when a rank is killed, what that did to the rooms in flight, and how long it took to be noticed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kv_core.cli.demo.book import DIED, Attempt, Book
from kv_core.contract.enums import FailureCode, Role


@dataclass
class KillRecord:
    """One killing. Times are the router's monotonic clock, in seconds; a room is *affected* if it was in flight and failed.

    ``detect_s``: for each affected room of which the survivor noticed by itself that it is lost, from the kill until it
    said so. The other affected rooms are those that the router had to end (the survivor had not met the one that died)
    and those that had ended well on the survivor's side.
    """

    role: Role
    after: int
    pid: int = 0
    killed_at: float | None = None
    ready_at: float | None = None
    first_success_at: float | None = None
    survivor_pid: int = 0
    doomed: set[int] = field(default_factory=set)
    affected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    detect_s: list[float] = field(default_factory=list)
    survivor_kept: bool = True

    @classmethod
    def planned(cls, role: Role, requests: int) -> KillRecord:
        """Kill this rank after about a third of the requests."""
        return cls(role, requests // 3)

    def is_due(self, book: Book, concurrency: int, *, just_met: bool) -> bool:
        """Enough requests are done, a quarter of the window has met its peer and is not over, and one of these rooms has
        met it just now, so that its bytes can't all have landed; or it is high time.
        """
        done = book.totals.succeeded
        if self.killed_at is not None or done < self.after or not book.in_flight:
            return False
        survivor = self.role.peer
        at_work = sum(each.met and each.ends[survivor] is None for each in book.in_flight.values())
        enough = at_work >= max(1, concurrency // 4) or (at_work > 0 and done >= 2 * self.after)
        return (just_met and enough) or not book.waiting

    def killed(self, pid: int, survivor_pid: int, book: Book, now: float) -> None:
        """The process is gone."""
        self.pid, self.survivor_pid, self.killed_at = pid, survivor_pid, now
        self.doomed = set(book.in_flight)

    def over(self, attempt: Attempt, now: float) -> None:
        """An attempt is over: note it if the kill hit it, or if it is the first to succeed after the restart."""
        if self.killed_at is None:
            return
        if attempt.room in self.doomed:
            self.doomed.remove(attempt.room)
            if attempt.reason:
                self.affected += 1
                self.reasons[attempt.reason] += 1
                if attempt.reason != DIED and not attempt.reason.endswith(FailureCode.ABORTED_LOCAL.value):
                    self.detect_s.append(now - self.killed_at)
        elif not attempt.reason and self.first_success_at is None and self.ready_at is not None:
            self.first_success_at = now

    @property
    def passed(self) -> bool:
        """Whether the rank was killed and came back, and the other one lived through it."""
        return self.killed_at is not None and self.ready_at is not None and self.survivor_kept and not self.doomed

    def as_dict(self) -> dict[str, Any]:
        """As the report shows it. Durations in seconds."""
        return {
            "role": self.role.value,
            "pid": self.pid,
            "after_requests": self.after,
            "survivor_pid": self.survivor_pid,
            "survivor_kept": self.survivor_kept,
            "affected_rooms": self.affected,
            "affected_by_reason": dict(self.reasons),
            "noticed_rooms": len(self.detect_s),
            "max_detect_s": max(self.detect_s, default=None),
            "restart_s": _between(self.killed_at, self.ready_at),
            "first_success_after_restart_s": _between(self.ready_at, self.first_success_at),
        }


def _between(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else stop - start

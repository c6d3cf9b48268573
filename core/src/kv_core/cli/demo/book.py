"""The router's book: requests, the attempts to serve them, and what became of each. No processes, no clock."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from kv_core.cli.demo.lines import Ended
from kv_core.contract.config import MAX_ROOM
from kv_core.contract.enums import Role

DIED = "router/rank_died"
"""Reason of an attempt that the surviving rank knows nothing bad of: the other one died before it reported."""
WRONG = "verify/wrong_bytes"
"""Reason of an attempt whose room said Success over wrong bytes."""


@dataclass
class Attempt:
    """One room for one request. A side's end is None until its rank reported it."""

    request: int
    room: int
    opened_at: float
    ends: dict[Role, Ended | None] = field(default_factory=lambda: dict.fromkeys(Role))
    lost: set[Role] = field(default_factory=set)
    met: bool = False
    affected: bool = False

    @property
    def over(self) -> bool:
        """Whether both sides have ended the room, or will never say."""
        return all(end is not None or role in self.lost for role, end in self.ends.items())

    @property
    def reason(self) -> str:
        """Why the attempt failed; empty if every byte is right. Decode's word comes first: it has the answer."""
        decode, prefill = self.ends[Role.DECODE], self.ends[Role.PREFILL]
        if decode is not None and decode.wrong_bytes:
            return WRONG
        reasons = [end.reason for end in (decode, prefill) if end is not None and end.reason]
        if reasons:
            return reasons[0]
        return DIED if decode is None else ""

    @property
    def message(self) -> str:
        """The sentence that goes with the reason."""
        if self.reason == DIED:
            return "prefill knows of no failure, but the decode rank died before it said that every byte was right"
        ends = (self.ends[Role.DECODE], self.ends[Role.PREFILL])
        return next((end.message for end in ends if end and end.message), "")


@dataclass
class Totals:
    """Sums over all attempts. ``latencies_s`` and bytes are of attempts that succeeded; ``wrong_bytes`` of all."""

    succeeded: int = 0
    failed_attempts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    bytes_sent: int = 0
    bytes_verified: int = 0
    wrong_bytes: int = 0
    gave_up: int = 0


class Book:
    """Hands out attempts and takes back their ends. ``max_attempts``: how often a request is tried."""

    def __init__(self, requests: int, max_attempts: int, seed: int) -> None:
        self.requests = requests
        self.totals = Totals()
        self.in_flight: dict[int, Attempt] = {}
        self._waiting: deque[int] = deque(range(requests))
        self._tries = [0] * requests
        self._max_attempts = max_attempts
        self._random = np.random.default_rng(seed)
        self._rooms: set[int] = set()

    @property
    def waiting(self) -> int:
        """Requests that wait to be given out."""
        return len(self._waiting)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting and not self.in_flight

    def next(self, now: float) -> Attempt:
        """The next request, with a room that was never used before."""
        request = self._waiting.popleft()
        self._tries[request] += 1
        room = self._new_room()
        attempt = Attempt(request, room, now)
        self.in_flight[room] = attempt
        return attempt

    def ended(self, role: Role, end: Ended) -> Attempt | None:
        """A rank says how a room ended. The attempt if it is over by that."""
        attempt = self.in_flight.get(end.room)
        if attempt is None:
            return None
        attempt.ends[role] = end
        return self._settle(attempt)

    def rank_died(self, role: Role) -> list[Attempt]:
        """A rank will say no more of what is in flight. The attempts that are over by that."""
        over = []
        for attempt in list(self.in_flight.values()):
            if attempt.ends[role] is None:
                attempt.lost.add(role)
                if self._settle(attempt):
                    over.append(attempt)
        return over

    def _settle(self, attempt: Attempt) -> Attempt | None:
        if not attempt.over:
            return None
        del self.in_flight[attempt.room]
        totals, decode, prefill = self.totals, attempt.ends[Role.DECODE], attempt.ends[Role.PREFILL]
        totals.wrong_bytes += decode.wrong_bytes if decode else 0
        if attempt.reason:
            self._failed(attempt)
            return attempt
        assert decode is not None, "without decode's word there is a reason"
        totals.succeeded += 1
        totals.latencies_s.append(decode.latency_s)
        totals.bytes_verified += decode.nbytes
        # A prefill that died after decode had everything can't say what it sent: then decode's count is all there is.
        totals.bytes_sent += prefill.nbytes if prefill else decode.nbytes
        return attempt

    def _failed(self, attempt: Attempt) -> None:
        self.totals.failed_attempts[attempt.reason] += 1
        self.totals.examples.setdefault(attempt.reason, attempt.message)
        # A wrong byte is what the demo is there to find: trying again would only hide it.
        if attempt.reason != WRONG and self._tries[attempt.request] < self._max_attempts:
            self._waiting.append(attempt.request)
        else:
            self.totals.gave_up += 1

    def _new_room(self) -> int:
        while True:
            room = int(self._random.integers(0, MAX_ROOM, endpoint=True))
            if room not in self._rooms:
                self._rooms.add(room)
                return room

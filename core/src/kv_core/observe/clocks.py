"""Several machines' monotonic clocks on one time line.

Processes of one boot of one machine read the same clock: nothing is to be done. Otherwise the wall clocks give a first guess,
and messages correct it: none arrives before it was sent. Messages one way bound a clock's offset from below, those the
other way from above (what NTP does with one exchange); the middle of what is left is taken, and half its width is how far
off it can be at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from kv_core.observe.recordings import Clock, RecordedRoom, crossings, peers

SAME, MESSAGES, WALL = "same clock", "messages", "wall clocks"


@dataclass(frozen=True)
class Placed:
    """What to add to a clock's readings. ``uncertainty_s``: None where nothing bounds it (wall clocks)."""

    offset_s: float
    method: str
    uncertainty_s: float | None = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For the trace's metadata."""
        us = None if self.uncertainty_s is None else round(self.uncertainty_s * 1e6, 3)
        return {"offset_s": self.offset_s, "method": self.method, "uncertainty_us": us}


@dataclass
class Bounds:
    """Between which values the offset of one clock to another lies."""

    low: float = -inf
    high: float = inf

    def settle(self, guess: float) -> Placed:
        """The offset. Bounds that contradict each other (a clock drifted meanwhile) leave their middle, and how much they do."""
        if self.low > -inf and self.high < inf:
            return Placed((self.low + self.high) / 2, MESSAGES, abs(self.high - self.low) / 2)
        return Placed(min(max(guess, self.low), self.high), WALL, None)


def align(clocks: Mapping[str, Clock], rooms: Iterable[RecordedRoom]) -> dict[str, Placed]:
    """What to add to each clock's readings, so that all are those of the first room's clock."""
    rooms = list(rooms)
    names = list(dict.fromkeys([room.clock for room in rooms] + list(clocks)))
    if not names:
        return {}
    bounds = _bounds(rooms)
    placed = {names[0]: Placed(0.0, SAME)}
    while len(placed) < len(names):
        name, place = min(
            ((name, _place(name, other, clocks, placed, bounds)) for name in names if name not in placed for other in placed),
            key=lambda found: inf if found[1].uncertainty_s is None else found[1].uncertainty_s,
        )  # fmt: skip
        placed[name] = place
    return placed


def _place(
    name: str, other: str, clocks: Mapping[str, Clock], placed: Mapping[str, Placed],
    bounds: Mapping[tuple[str, str], Bounds],
) -> Placed:  # fmt: skip
    """Where a clock stands, by one that has its place."""
    base = placed[other]
    guess = clocks[name].wall_offset_s - clocks[other].wall_offset_s
    step = bounds.get((name, other), Bounds()).settle(guess)
    sure = None if step.uncertainty_s is None or base.uncertainty_s is None else step.uncertainty_s + base.uncertainty_s
    return Placed(base.offset_s + step.offset_s, step.method, sure)


def _bounds(rooms: list[RecordedRoom]) -> dict[tuple[str, str], Bounds]:
    """By (clock, other clock): what may be added to the one to have the other."""
    known = {room.key: room for room in rooms}
    found: dict[tuple[str, str], Bounds] = {}
    for prefill in rooms:
        for decode in peers(prefill, known):
            if prefill.clock == decode.clock:
                continue
            there = found.setdefault((decode.clock, prefill.clock), Bounds())
            back = found.setdefault((prefill.clock, decode.clock), Bounds())
            for crossing in crossings(prefill, decode):
                if crossing.down:  # sent by prefill's clock <= received by decode's + offset
                    there.low = max(there.low, crossing.sent_s - crossing.received_s)
                else:
                    there.high = min(there.high, crossing.received_s - crossing.sent_s)
            back.low, back.high = -there.high, -there.low
    return found

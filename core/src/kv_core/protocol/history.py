"""What happened to a room, kept short: the first moments, the last ones, and how many stood between them.

A room of ten thousand chunks is then still readable: how it began, how it ended, and that much went on in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from kv_core.contract.moments import SKIPPED, Moment

if TYPE_CHECKING:
    from kv_core.protocol.rooms import Room

Note = Callable[[Moment], None]
NOTE_NOTHING: Note = deque[Moment](maxlen=0).append
"""Takes what a room without a history notes: the cheapest thing that can be called with one argument."""
KEPT_ENDED = 64
"""Ended rooms of each kind (failed, succeeded) whose histories a manager keeps."""


class History:
    """One room's moments, ``size`` of them at most: the first half as they came, the rest the latest. At least 2."""

    __slots__ = ("_dropped", "_first", "_free", "_last", "_told")

    def __init__(self, size: int) -> None:
        self._first: list[Moment] = []  # all of them, until there are more than may be kept
        self._last: deque[Moment] | None = None
        self._free = size  # how many the first ones may be
        self._dropped = 0
        self._told = 0  # how many had come when the room's end was told

    def add(self, moment: Moment) -> None:
        """Note a moment; none is earlier than the one before."""
        if len(self._first) < self._free:
            self._first.append(moment)
        else:
            self._crowd(moment)

    def _crowd(self, moment: Moment) -> None:
        """Note one more than there is room for."""
        if self._last is None:
            half, size = self._free // 2, self._free
            self._last = deque(self._first[half:], maxlen=size - half)
            del self._first[half:]
            self._free = 0
        self._last.append(moment)
        self._dropped += 1

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self._first) + len(self._last or ()) + self._dropped

    def frozen(self, start: int = 0) -> tuple[Moment, ...]:
        """What is kept of the moments from number ``start`` on; where some were dropped stands how many, with the time of
        what comes next.
        """
        if self._last is None:
            return tuple(self._first[start:])
        fresh, kept = self.count - start, len(self._last)
        if fresh <= kept:
            return tuple(islice(self._last, kept - fresh, None))
        dropped = self.count - max(start, len(self._first)) - kept
        gap = ((self._last[0][0], SKIPPED, dropped),) if dropped else ()
        return (*self._first[start:], *gap, *self._last)

    def tell(self) -> tuple[Moment, ...]:
        """All of it, for the room's end."""
        self._told = self.count
        return self.frozen()

    def tell_rest(self) -> tuple[Moment, ...]:
        """What has come since ``tell``."""
        return self.frozen(self._told)


class FlightEntry(NamedTuple):
    """One room as the flight record has it. ``phase``: where it is, or how it ended; ``released``: its pages are free."""

    number: int
    life: int
    phase: str
    released: bool
    moments: tuple[Moment, ...]


class FlightRecord:
    """The histories of live rooms, and of those that ended last. Good ends don't push out bad ones."""

    def __init__(self, kept: int = KEPT_ENDED) -> None:
        self._kept = kept
        self._ended: dict[str, deque[FlightEntry]] = {}

    def released(self, room: Room) -> None:
        """A room has ended, and its pages are free: nothing will happen to it any more."""
        if room.history is None:
            return
        phase = room.phase.value
        if phase not in self._ended:
            self._ended[phase] = deque(maxlen=self._kept)
        # Frozen here: what is kept is numbers and texts, and nothing that would keep the room.
        self._ended[phase].append(FlightEntry(room.number, room.life, phase, True, room.history.frozen()))

    def entries(self, live: Iterable[Room], number: int | None, limit: int) -> list[FlightEntry]:
        """Of ``live`` rooms and then of ended ones, ``limit`` of each kind at most: the live ones that have been here for
        longest, the ended ones that came last. ``number``: of this room only. What is handed out changes no more.
        """
        wanted = (room for room in live if number in {None, room.number})
        entries = [
            FlightEntry(room.number, room.life, room.phase.value, room.release_safe, room.history.frozen())
            for room in islice(wanted, limit)
            if room.history is not None
        ]
        for rooms in self._ended.values():
            entries += [entry for entry in rooms if number in {None, entry.number}][-limit:]
        return entries

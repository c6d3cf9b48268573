"""Chunks whose source is not ready to be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kv_core.protocol.chunks import TransferKVChunk
from kv_core.runtime.transfer.dispatch import Dispatcher
from kv_core.runtime.transfer.troubles import SURVIVED, Troubles, described

SHORTEST_S, LONGEST_S = 0.000_5, 0.01
"""Nothing tells when an event is complete, so it is asked for: again after a tenth of the time that the newest chunk
has been parked, within these bounds. So asking adds a tenth to a short wait, and costs nothing over a long one.
"""


class Parked(NamedTuple):
    """A chunk and when it came."""

    chunk: TransferKVChunk
    since: float


class Parking:
    """Asks ``ready.query()`` and sends chunks on to the dispatcher. Owner thread only, except ``count``."""

    def __init__(self, clock: Callable[[], float], dispatcher: Dispatcher, troubles: Troubles) -> None:
        self._clock = clock
        self._dispatcher = dispatcher
        self._troubles = troubles
        self._parked: list[Parked] = []
        self.next_check: float | None = None

    @property
    def count(self) -> int:
        """Number of parked chunks. Any thread."""
        return len(self._parked)

    def add(self, chunk: TransferKVChunk) -> None:
        """Take up a chunk that has a ``ready``: it is asked at once."""
        if not self._settle(chunk):
            now = self._clock()
            self._parked.append(Parked(chunk, now))
            soon = now + SHORTEST_S
            self.next_check = soon if self.next_check is None else min(self.next_check, soon)

    def turn(self) -> None:
        """Ask all of them, if it is time."""
        now = self._clock()
        if self.next_check is None or now < self.next_check:
            return
        self._parked = [parked for parked in self._parked if not self._settle(parked.chunk)]
        self.next_check = None
        if self._parked:
            age = now - self._parked[-1].since
            self.next_check = self._clock() + min(max(age / 10, SHORTEST_S), LONGEST_S)

    def release_all(self) -> None:
        """At the end: hand over everything, ready or not; nothing is posted any more."""
        parked, self._parked, self.next_check = self._parked, [], None
        for each in parked:
            self._dispatcher.enqueue(each.chunk)

    def _settle(self, chunk: TransferKVChunk) -> bool:
        """Whether the chunk is off this list: ready, not wanted any more, or failed."""
        if chunk.room.ended:
            self._dispatcher.drop(chunk)
            return True
        if chunk.ready is None:
            self._dispatcher.enqueue(chunk)
            return True
        try:
            ready = bool(chunk.ready.query())
        except SURVIVED as error:
            self._troubles.add("ready.query() failed", error)
            self._dispatcher.refuse(chunk, f"{described(error)} (from ready.query())")
            return True
        if ready:
            self._dispatcher.enqueue(chunk)
        return ready

"""Follows a stream's numbers: what was missed, what came twice, when it began anew. Pure."""

from __future__ import annotations

from typing import NamedTuple

from kv_core.events.numbers import A_TIME, epoch_of


class Step(NamedTuple):
    """What a number means after those before it.

    kind: "first", "next", "gap" (`missing` batches in between), "restart" (another life), "stale" (was there before).
    expected: the number that would have followed.
    """

    kind: str
    expected: int
    missing: int = 0


class Sequence:
    """The highest number so far, and what to make of the next one."""

    def __init__(self) -> None:
        self.last: int | None = None

    def look(self, seq: int) -> Step:
        """What this number would mean; changes nothing."""
        last = self.last
        if last is None:
            return Step("first", 0)
        if seq == last + 1:
            return Step("next", last + 1)
        if seq > last:
            if epoch_of(seq) > A_TIME and epoch_of(seq) != epoch_of(last):
                return Step("restart", last + 1)
            return Step("gap", last + 1, seq - last - 1)
        # Back: who counts from 0 has started again; in a life with a time in its numbers it can only be a repetition.
        if seq == last or epoch_of(seq) > A_TIME:
            return Step("stale", last + 1)
        return Step("restart", last + 1)

    def take(self, seq: int) -> Step:
        """The same, and remember it."""
        step = self.look(seq)
        if step.kind != "stale":
            self.last = seq
        return step

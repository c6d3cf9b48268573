"""What a replay answers. Pure.

A request asks for everything from a number on. What can't be given is said by a batch of its own in front, numbered just below
the first one that can: an ``AllBlocksCleared`` with a reason. A consumer that knows nothing of reasons clears its index and
builds it from what follows: it ends with what the ring proves, instead of with blocks that were removed in the part that it
never saw. (Dynamo's indexer and llm-d's router, which both log such a replay as incomplete, were looked at for this.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kv_core.events.ring import Kept, ReplayRing
from kv_core.events.schema import AllBlocksCleared


@dataclass(frozen=True)
class Answer:
    """The batches of a replay, in order, and why it does not begin where it was asked to; "" if it does."""

    batches: list[tuple[int, bytes]]
    reason: str = ""


class Answers:
    """Makes answers from a ring.

    life_begins: this life's first number; requests between 0 and that are from a consumer of an earlier life.
    marker: writes down the event that says what is missing.
    """

    def __init__(
        self, ring: ReplayRing, life_begins: int, epoch: int, marker: Callable[[AllBlocksCleared], bytes]
    ) -> None:
        self._ring = ring
        self._life_begins = life_begins
        self._epoch = epoch
        self._marker = marker

    def to(self, start: int) -> Answer:
        """The answer to a request from `start` on. 0 is a consumer that knows nothing yet."""
        kept = self._ring.since(start)
        missing = self._what_is_missing(start, kept)
        if missing is None or kept.first == 0:
            return Answer(kept.batches)
        return Answer([(kept.first - 1, self._marker(missing)), *kept.batches], missing.reason or "")

    def _what_is_missing(self, start: int, kept: Kept) -> AllBlocksCleared | None:
        if 0 < start < self._life_begins:
            return AllBlocksCleared(reason="restart", epoch=self._epoch)
        if kept.evicted is not None and start <= kept.evicted:
            # Nothing is known of what a consumer of nothing has missed, but how much: everything up to there.
            asked = max(start, self._life_begins)
            return AllBlocksCleared(reason="truncated", lost_batches=kept.evicted + 1 - asked, epoch=self._epoch)
        return None

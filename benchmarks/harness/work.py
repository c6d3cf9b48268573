"""What one measurement does, and what a way of moving pages looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Work:
    """A closed loop: ``rooms`` rooms, ``concurrency`` of them in flight at any time.

    ``pages`` of the pool's pages each, ``random`` or ``contiguous``. ``first_room``: number of the first room.
    ``idle_s``: pause between two passes of the engine's loop in which nothing was to be done. ``busy``: the engine's
    thread computes in Python instead of pausing. ``patient``: the prefill engine hands its pages over when it sees that
    decode has named its own, as engines do whose forward pass comes last; otherwise at once. ``layers``: the forward pass has
    so many, and each takes ``layer_s`` seconds, in which the engine's thread sleeps; ``streamed``: each layer's pages are
    sent when it is done. ``stamps``: note when each room's computation was done, and when its Success was seen.
    """

    pages: int
    rooms: int
    concurrency: int = 1
    pattern: str = "random"
    first_room: int = 0
    idle_s: float = 0.000_5
    busy: bool = False
    patient: bool = False
    stamps: bool = False
    layers: int = 0
    layer_s: float = 0.0
    streamed: bool = False


class Way(Protocol):
    """One side's end of a way to move pages. ``run``: ``start`` and ``end`` (monotonic seconds), unless the other side tells."""

    def open(self, options: dict[str, Any]) -> dict[str, Any]:
        """Set up; returns what the other side has to know."""
        ...

    def connect(self, told: dict[str, Any]) -> None:
        """Take what the other side told."""
        ...

    def run(self, work: Work) -> dict[str, Any]:
        """Do it."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

"""Where rooms are drawn: each on a row of its side that is free as long as the room lasts, its chunks on rows below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

from kv_core.contract.enums import Role
from kv_core.contract.moments import CHUNK_FAILED, CHUNK_QUIET, HANDED, LANDED, POSTED, Moment
from kv_core.observe.recordings import RecordedRoom
from kv_core.protocol.lifecycle import Phase

STAGES = {
    Role.PREFILL: {
        Phase.OPEN: "bootstrap", Phase.READY: "queue", Phase.MOVING: "transfer", Phase.CONFIRMING: "confirm",
    },
    Role.DECODE: {
        Phase.OPEN: "bootstrap", Phase.READY: "queue", Phase.OFFERED: "offered", Phase.MOVING: "transfer",
        Phase.VERIFYING: "verify",
    },
}  # fmt: skip
"""What the time in a phase is called. Prefill's queue is for the first chunk, decode's for pages."""
DRAIN = "drain"


@dataclass(frozen=True)
class Span:
    """Something with a beginning and an end, in seconds of its own clock."""

    name: str
    start_s: float
    stop_s: float
    more: dict[str, Any] = field(default_factory=dict)


def stages(room: RecordedRoom) -> list[Span]:
    """The phases of a room one after the other, and how long its pages were not free after it had ended."""
    names = STAGES[room.end.role]
    entered = [(name, at) for phase, name in names.items() if (at := room.entered(phase)) is not None]
    if not entered or names[Phase.OPEN] != entered[0][0]:
        entered.insert(0, (names[Phase.OPEN], room.start_s))
    entered.append(("", room.end.time_s))
    spans = [Span(name, at, later) for (name, at), (_, later) in pairwise(entered)]
    if room.stop_s > room.end.time_s:
        spans.append(Span(DRAIN, room.end.time_s, room.stop_s))
    return [span for span in spans if span.stop_s > span.start_s]


def chunks(moments: Iterable[Moment], stop_s: float) -> list[Span]:
    """Each chunk from the transport's hands to its landing, as far as the history has kept both. One that never landed ends
    when it was known that it won't, or with its room at ``stop_s``. ``more["landed"]`` says which.
    """
    handed: dict[int, tuple[float, int]] = {}
    posted: dict[tuple[int, str], float] = {}
    spans: list[Span] = []
    for at, what, *values in moments:
        if what == HANDED:
            handed[values[0]] = (at, values[1])
        elif what == POSTED:
            posted[values[0], values[1]] = at
        elif what in {LANDED, CHUNK_FAILED, CHUNK_QUIET} and (values[0], values[1]) in posted:
            start = posted.pop((values[0], values[1]))
            spans.append(Span(f"chunk {values[0]}", start, at, _about(what, values, handed.get(values[0]), start)))
    for (number, peer), start in posted.items():
        spans.append(Span(f"chunk {number}", start, stop_s, {"chunk": number, "peer": peer, "landed": False}))
    return spans


def _about(what: str, values: list[Any], handed: tuple[float, int] | None, start: float) -> dict[str, Any]:
    about: dict[str, Any] = {"chunk": values[0], "peer": values[1], "landed": what == LANDED}
    if handed is not None:
        about |= {"pages": handed[1], "queued_ms": (start - handed[0]) * 1e3}
    if what == LANDED:
        _, _, nbytes, started, stopped, source = values
        about |= {"bytes": nbytes, "wire_ms": (stopped - started) * 1e3, "measured_by": source}
    return about


def rows(spans: Sequence[tuple[float, float]]) -> list[int]:
    """For each (start, stop) a row, so that none overlaps another on its row, and as few rows as can be."""
    order = sorted(range(len(spans)), key=lambda place: spans[place])
    taken: list[tuple[float, int]] = []  # (free from, row)
    found = [0] * len(spans)
    count = 0
    free: list[int] = []
    for place in order:
        start, stop = spans[place]
        while taken and taken[0][0] <= start:
            heappush(free, heappop(taken)[1])
        if not free:
            heappush(free, count)
            count += 1
        found[place] = heappop(free)
        heappush(taken, (stop, found[place]))
    return found


def overlapping(spans: Iterable[Span]) -> list[tuple[int, Span]]:
    """Spans with the row that each is on."""
    spans = list(spans)
    return list(zip(rows([(span.start_s, span.stop_s) for span in spans]), spans, strict=True))

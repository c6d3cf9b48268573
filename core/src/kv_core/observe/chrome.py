"""Recordings as a trace that Perfetto and Chrome show: a process for each side, rooms with their stages, chunks below them,
arrows for the messages between both sides of a room.

Format: the JSON array of the Trace Event Format (complete events, instants, flows, metadata); times in microseconds since
the first room's beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kv_core.contract.enums import Role
from kv_core.contract.moments import FAILED, SKIPPED, TROUBLE, named
from kv_core.observe.clocks import Placed
from kv_core.observe.recordings import Crossing, RecordedRoom, crossings, peers
from kv_core.observe.rows import DRAIN, Span, chunks, overlapping, rows, stages

NS = 1_000_000_000
INSTANTS = {FAILED: "failed", TROUBLE: "trouble", SKIPPED: "moments skipped"}
FIRST_ROW = 1_001
"""A row that had the number of its side would be taken for the process's main thread, and shown first."""
BAD = "terrible"
"""Chrome's name of a colour."""


@dataclass
class Drawn:
    """A room in its place. Times in nanoseconds of the trace."""

    room: RecordedRoom
    pid: int
    tid: int
    start: int
    stop: int


@dataclass
class Chart:
    """Makes the events. ``offsets``: what to add to each clock's readings, by clock."""

    offsets: Mapping[str, Placed]
    zero_s: float
    events: list[dict[str, Any]] = field(default_factory=list)
    drawn: dict[tuple[str, int], Drawn] = field(default_factory=dict)

    def at(self, room: RecordedRoom, time_s: float) -> int:
        """A time of a room's own clock, in nanoseconds of the trace."""
        return round((time_s + self.offsets[room.clock].offset_s - self.zero_s) * NS)

    def side(self, pid: int, name: str, order: int, members: list[RecordedRoom]) -> None:
        """One manager's rooms, on as few rows as can be."""
        self._name("process_name", pid, 0, name, order)
        placed = rows([(self.at(room, room.start_s), self.at(room, room.stop_s)) for room in members])
        below = [overlapping(chunks(room.moments, room.stop_s)) for room in members]
        height: dict[int, int] = {}
        for row, spans in zip(placed, below, strict=True):
            height[row] = max([height.get(row, 0), *(1 + place for place, _ in spans)])
        first = {}
        for row in sorted(height):
            tid = first[row] = FIRST_ROW + sum(1 + height[other] for other in range(row))
            self._name("thread_name", pid, tid, f"rooms {row + 1}", tid)
            for place in range(height[row]):
                below_tid = tid + 1 + place
                self._name("thread_name", pid, below_tid, f"rooms {row + 1}: chunks {place + 1}", below_tid)
        for room, row, spans in zip(members, placed, below, strict=True):
            self._room(room, pid, first[row], spans)

    def _room(self, room: RecordedRoom, pid: int, tid: int, below: Iterable[tuple[int, Span]]) -> None:
        start, stop = self.at(room, room.start_s), self.at(room, room.stop_s)
        self.drawn[room.key] = Drawn(room, pid, tid, start, max(stop, start + 1))
        failure = room.end.failure
        name = f"room {room.end.room}"
        if failure is not None:
            name = f"{name}: {failure.stage.value}/{failure.code.value}"
        self._slice(pid, tid, name, "room", (start, stop), about(room), bad=failure is not None)
        for span in stages(room):
            edges = (max(start, self.at(room, span.start_s)), min(stop, self.at(room, span.stop_s)))
            self._slice(pid, tid, span.name, "stage", edges, {}, bad=span.name == DRAIN)
        for place, span in below:
            edges = (self.at(room, span.start_s), self.at(room, span.stop_s))
            more = {"room": room.end.room, **span.more}
            self._slice(pid, tid + 1 + place, span.name, "chunk", edges, more, bad=not span.more["landed"])
        for moment in room.moments:
            if moment[1] in INSTANTS:
                self._instant(pid, tid, min(self.at(room, moment[0]), stop), moment)

    def arrow(self, source: RecordedRoom, target: RecordedRoom, crossing: Crossing, number: int) -> None:
        """A message, from the slice that it was sent in to the one that it came in."""
        for room, at_s, kind in ((source, crossing.sent_s, "s"), (target, crossing.received_s, "f")):
            place = self.drawn[room.key]
            # At its very end a slice is over: what happens there would hang in the air.
            at = min(max(self.at(room, at_s), place.start), place.stop - 1)
            event = {
                "ph": kind, "cat": "message", "name": crossing.name, "id": number, "pid": place.pid, "tid": place.tid,
                "ts": at / 1e3,
            }  # fmt: skip
            self.events.append(event | ({"bp": "e"} if kind == "f" else {}))

    def _slice(
        self, pid: int, tid: int, name: str, kind: str, edges: tuple[int, int], more: dict[str, Any], *, bad: bool
    ) -> None:
        start, stop = edges
        event = {
            "ph": "X", "cat": kind, "name": name, "pid": pid, "tid": tid, "ts": start / 1e3,
            "dur": max(stop - start, 0) / 1e3, "args": more,
        }  # fmt: skip
        self.events.append(event | ({"cname": BAD} if bad else {}))

    def _instant(self, pid: int, tid: int, at: int, moment: tuple[Any, ...]) -> None:
        more = named(moment)
        name = f"failed: {more['stage']}/{more['code']}" if moment[1] == FAILED else INSTANTS[moment[1]]
        self.events.append(
            {
                "ph": "i", "s": "t", "cat": moment[1], "name": name, "pid": pid, "tid": tid, "ts": at / 1e3,
                "args": more,
            }
        )  # fmt: skip

    def _name(self, what: str, pid: int, tid: int, name: str, order: int) -> None:
        for kind, more in ((what, {"name": name}), (what.replace("_name", "_sort_index"), {"sort_index": order})):
            self.events.append({"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": more})


def about(room: RecordedRoom) -> dict[str, Any]:
    """What is shown of a room that is clicked at."""
    end = room.end
    more: dict[str, Any] = {"room": end.room, "life": end.life, "state": end.state.name, "instance": end.instance}
    if end.traceparent is not None:
        more["traceparent"] = end.traceparent
    if end.failure is not None:
        more |= msgspec.to_builtins(end.failure)
    if end.metric is not None and end.failure is None:
        more |= {key: value for key, value in msgspec.to_builtins(end.metric).items() if value is not None}
    if room.released is not None and room.released.drain_latency_s:
        more["drain_latency_s"] = room.released.drain_latency_s
    return more


def chrome_trace(rooms: list[RecordedRoom], offsets: Mapping[str, Placed]) -> dict[str, Any]:
    """The whole trace. ``rooms`` as ``recordings.read`` gives them, or some of these; ``offsets`` from ``clocks.align``."""
    starts = [room.start_s + offsets[room.clock].offset_s for room in rooms]
    chart = Chart(offsets, min(starts, default=0.0))
    sides: dict[str, list[RecordedRoom]] = {}
    for room in rooms:
        sides.setdefault(room.end.instance, []).append(room)
    order = sorted(sides, key=lambda name: (list(Role).index(sides[name][0].end.role), sides[name][0].start_s))
    for pid, instance in enumerate(order, 1):
        chart.side(pid, side_name(sides[instance][0]), pid, sides[instance])
    known = {room.key: room for room in rooms}
    number = 0
    for prefill in rooms:
        for decode in peers(prefill, known):
            for crossing in crossings(prefill, decode):
                number += 1
                ends = (prefill, decode) if crossing.down else (decode, prefill)
                chart.arrow(*ends, crossing, number)
    clocks = {name: offsets[name].as_dict() for name in dict.fromkeys(room.clock for room in rooms)}
    other = {"made_by": "kv-core trace", "rooms": len(rooms), "clocks": clocks}
    return {"traceEvents": chart.events, "displayTimeUnit": "ms", "otherData": other}


def side_name(room: RecordedRoom) -> str:
    """A manager's name in the trace."""
    end, source = room.end, room.source
    return f"{end.role.value}: {end.backend}, {source.host} pid {source.pid}, {end.instance[:8]}"

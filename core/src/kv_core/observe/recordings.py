"""Recordings read back: rooms with their histories, and which room of the one side belongs to which of the other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from kv_core.contract.enums import Role
from kv_core.contract.failures import MessageError
from kv_core.contract.moments import ANNOUNCED, BOUND, DONE, METADATA, PHASE, VERDICT, Moment
from kv_core.contract.records import RoomEvent, RoomEventKind
from kv_core.observe.flight import SCHEMA, Header
from kv_core.protocol.lifecycle import Phase

SUFFIXES = (".jsonl", ".jsonl.1")
"""How the files of a folder are named that are taken for recordings."""
_EVENT = msgspec.json.Decoder(RoomEvent)
_HEADER = msgspec.json.Decoder(Header)
_IS_HEADER = b'{"recording":'


@dataclass(frozen=True)
class Clock:
    """One monotonic clock. ``name``: what tells it from others; ``wall_offset_s``: what makes it wall time, by ``pairs``
    readings of both that differ by ``spread_s``.
    """

    name: str
    wall_offset_s: float
    spread_s: float = 0.0


@dataclass
class RecordedRoom:
    """One room on one side. ``source``: who wrote it down; ``released``: what came after its end, if that was news."""

    end: RoomEvent
    source: Header
    clock: str
    released: RoomEvent | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What it is known by: its manager, and the life that this one gave it."""
        return (self.end.instance, self.end.life)

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Its whole history."""
        return self.end.history + (self.released.history if self.released is not None else ())

    @property
    def start_s(self) -> float:
        """When it was opened, by its own clock."""
        return float(self.end.history[0][0]) if self.end.history else self.end.time_s

    @property
    def stop_s(self) -> float:
        """When its pages were free, or when it ended if that is all that is known."""
        return self.end.time_s if self.released is None else self.released.time_s

    def entered(self, phase: Phase) -> float | None:
        """When it came into a phase."""
        return next((each[0] for each in self.moments if each[1] == PHASE and each[2] == phase.value), None)


@dataclass
class Recordings:
    """All that was read. ``damaged``: lines that were neither; a last line that was cut off is none of them."""

    rooms: list[RecordedRoom] = field(default_factory=list)
    clocks: dict[str, Clock] = field(default_factory=dict)
    damaged: int = 0
    torn: int = 0


def find(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, and of folders the recordings in them. Raises ``MessageError`` for what is not there."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES))
            if not inside:
                raise MessageError(f"{path} has no recordings in it: files named *{SUFFIXES[0]}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise MessageError(f"{path} is not there: a recording, or a folder of recordings, is wanted")
    return list(dict.fromkeys(found))


def read(paths: Iterable[Path]) -> Recordings:
    """Read recordings. A room that stands in two of them counts once. Raises ``MessageError`` for a file that is none."""
    result = Recordings()
    rooms: dict[tuple[str, int], RecordedRoom] = {}
    offsets: dict[str, list[float]] = {}
    for path in paths:
        _read_file(path, rooms, offsets, result)
    result.rooms = sorted(rooms.values(), key=lambda room: room.start_s)
    for name, values in offsets.items():
        result.clocks[name] = Clock(name, statistics.median(values), max(values) - min(values))
    return result


def _read_file(
    path: Path, rooms: dict[tuple[str, int], RecordedRoom], offsets: dict[str, list[float]], result: Recordings
) -> None:
    header: Header | None = None
    clock = ""
    for line, whole in _lines(path):
        try:
            if line.startswith(_IS_HEADER):
                header = _HEADER.decode(line)
                # A clock that has no name is known to be that of this process alone.
                clock = header.clock or f"{header.host} {header.pid}"
                offsets.setdefault(clock, []).append(header.wall_s - header.monotonic_s)
            elif header is not None:
                _take(_EVENT.decode(line), header, clock, rooms)
        except msgspec.MsgspecError:
            if whole:
                result.damaged += 1
            else:
                result.torn += 1  # the process was killed while it wrote
        if header is None:
            raise MessageError(f"{path} is no recording of the flight recorder: its first line does not say so")
        if header.schema > SCHEMA:
            raise MessageError(f"{path} has schema {header.schema}, this kv-core reads up to {SCHEMA}: use a newer one")


def _take(event: RoomEvent, header: Header, clock: str, rooms: dict[tuple[str, int], RecordedRoom]) -> None:
    key = (event.instance, event.life)
    if event.kind is RoomEventKind.CONCLUDED:
        rooms.setdefault(key, RecordedRoom(event, header, clock))
    elif event.kind is RoomEventKind.RELEASED and key in rooms:
        rooms[key].released = event


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """(line, whether it has its end)."""
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield line, line.endswith(b"\n")


class Crossing(NamedTuple):
    """A message that both sides' histories have, each by its own clock. ``down``: from prefill to decode."""

    name: str
    down: bool
    sent_s: float
    received_s: float


def peers(room: RecordedRoom, rooms: Mapping[tuple[str, int], RecordedRoom]) -> Iterator[RecordedRoom]:
    """The decode rooms that a prefill room served, as far as they were recorded."""
    if room.end.role is not Role.PREFILL:
        return
    keys = {(each[2], each[3]): None for each in room.moments if each[1] in {ANNOUNCED, METADATA}}
    yield from (rooms[key] for key in keys if key in rooms)


def crossings(prefill: RecordedRoom, decode: RecordedRoom) -> list[Crossing]:
    """The messages between the two sides of a room, of which both have kept the moment."""
    name, life = decode.key
    told = {each[1]: each[0] for each in prefill.moments if each[1] in _TO_PREFILL and each[2:4] == (name, life)}
    heard = {each[1]: each[0] for each in decode.moments if each[1] in _TO_DECODE and each[2] == prefill.end.instance}
    found = []
    for what, phase in _TO_PREFILL.items():
        sent = decode.entered(phase)
        if sent is not None and what in told:
            found.append(Crossing(_NAMES[what], False, sent, told[what]))
    for what, phase in _TO_DECODE.items():
        sent = prefill.entered(phase)
        if sent is not None and what in heard:
            found.append(Crossing(_NAMES[what], True, sent, heard[what]))
    return found


_TO_PREFILL = {ANNOUNCED: Phase.READY, METADATA: Phase.OFFERED, VERDICT: Phase.SUCCESS}
"""What prefill notes when a message comes, and the phase that decode comes into when it sends it."""
_TO_DECODE = {BOUND: Phase.READY, DONE: Phase.CONFIRMING}
_NAMES = {ANNOUNCED: "announce", METADATA: "metadata", VERDICT: "verdict", BOUND: "bound", DONE: "done"}

"""What an engine holds of one opening of a room, and what the referee has seen of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.tests.simulation.memory import U64
from kv_core.contract.enums import KVPoll
from kv_core.contract.failures import Failure
from kv_core.protocol.rooms import Room

if TYPE_CHECKING:
    from core.tests.simulation.processes import Process
    from core.tests.simulation.scenario import Request


class Handle:
    """One opening of a room on one side."""

    __slots__ = (
        "aborted_in", "applied", "check_at", "cleared", "concluded", "duplicate", "final", "gave_up", "index",
        "offered", "pages", "phase", "phase_since", "poll", "positions", "process", "released", "request", "room",
        "sends", "side", "started", "uid",
    )  # fmt: skip

    def __init__(self, uid: int, side: str, index: int, process: Process, request: Request) -> None:
        self.uid = uid
        self.side = side
        self.index = index
        self.process = process
        self.request = request
        self.room: Room
        self.duplicate = False
        self.poll: KVPoll | None = None
        self.phase: object = None
        self.phase_since = 0.0
        self.aborted_in: object = None  # the phase in which the room failed
        self.final: tuple[KVPoll, Failure | None, object] | None = None
        self.concluded = 0
        self.released = False
        self.cleared = False
        self.gave_up = False
        self.offered = False
        self.started = False
        self.sends = 0
        self.check_at = 0.0
        self.applied: set[int] = set()  # causes that came to pass
        self.pages: dict[str, U64] = {}
        self.positions: dict[tuple[str, int], int] = {}

    def __repr__(self) -> str:
        return f"<{self.process.name} #{self.uid} room {self.request.number} {self.poll and self.poll.name}>"

"""A peer process as one session sees it: its address, its link, its liveness, and the rooms that depend on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from kv_core.contract.transport import PeerKey
from kv_core.protocol.handshake import PeerLayout
from kv_core.protocol.link import ReliableLink
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.messages import Introduction, WireFailure
from kv_core.protocol.rooms import Room, RoomLink


class PeerPhase(Enum):
    """GREETING: Hello sent, no answer yet (decode only). READY: the session stands. GONE: it has ended."""

    GREETING = "greeting"
    READY = "ready"
    GONE = "gone"


class Regret(NamedTuple):
    """A room that ended here before the peer had heard of it: it shall hear of the end, if it can until then."""

    life: int
    destinations: int
    failure: WireFailure
    until: float


class Unreachable(NamedTuple):
    """The transport could not reach the peer; whether the peer lives is known when this ping, or a later one, is answered."""

    message: str
    ping: int


@dataclass(eq=False)
class Peer:
    """One session with one peer process."""

    name: str
    session: int
    endpoint: str
    liveness: PeerLiveness
    phase: PeerPhase = PeerPhase.READY
    introduction: Introduction | None = None
    layout: PeerLayout | None = None
    label: str = ""
    addr: str = ""
    link: ReliableLink = field(default_factory=ReliableLink)
    rooms: dict[int, RoomLink] = field(default_factory=dict)  # by the decode side's life
    awaiting: dict[int, Room] = field(default_factory=dict)  # decode: rooms that wait for the handshake, by life
    told_rooms: set[int] = field(default_factory=set)  # numbers that a Hello has named
    regrets: dict[int, Regret] = field(default_factory=dict)  # decode: by room number, until the handshake
    pings: int = 0
    stalled: bool = False
    unreachable: Unreachable | None = None
    meeting: bool = False  # decode: what the transport uses to this peer is not known yet, and has to be
    replaced: bool = False  # another process lives at its address

    @property
    def key(self) -> PeerKey:
        """What the transport knows it by."""
        return PeerKey(self.name, self.session)

    def __str__(self) -> str:
        return f"{self.label or 'peer'} at {self.endpoint}"

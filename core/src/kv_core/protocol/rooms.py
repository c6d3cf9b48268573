"""A room: all of its state in one object, so that dropping the object is dropping the room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kv_core.contract.enums import KVPoll, Role
from kv_core.contract.failures import Failure
from kv_core.contract.interfaces import Ready
from kv_core.contract.records import KVTransferMetric
from kv_core.protocol.history import NOTE_NOTHING, History, Note
from kv_core.protocol.lifecycle import POLL, TERMINAL, Phase
from kv_core.protocol.wireclock import WireClock

if TYPE_CHECKING:
    from kv_core.protocol.chunks import TransferKVChunk
    from kv_core.protocol.messages import ChunkDigest
    from kv_core.protocol.peers import Peer

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Offer:
    """What the decode engine names in ``send_metadata``: where the prompt's KV goes."""

    kv: U64
    states: dict[str, U64] = field(default_factory=dict)
    aux_index: int | None = None
    decode_prefix_len: int = 0


class RoomLink:
    """What a room has to do with one peer rank.

    ``outstanding``: chunks that were claimed here and are not yet quiescent. ``exposed`` (the side that does not move the
    bytes): the peer knows our pages and it is not yet proven that it can't touch them any more. ``verifying`` (decode): what
    arrived is being hashed, and auxiliary rows that came with the message are being written. A room may release its pages
    when it has ended and no link is outstanding, exposed or verifying. ``destinations`` (decode): how many decode ranks the
    peer serves. ``dummy`` (decode): it serves none, and is told of the room so that it can end it. ``reading`` (prefill, pull):
    the chunks that the peer may be reading, by number. ``unread`` (decode, pull): chunks that may be read and have not been.
    """

    __slots__ = (
        "announced", "aux_index", "aux_rows", "chunks", "clock", "destinations", "digests", "done", "dummy", "exposed", "keep_until", "life",
        "nbytes", "outstanding", "owes_quiesced", "pages", "peer", "prefix_len", "proof", "reading", "room", "source_life", "states", "told", "verdict",
        "unread", "verifying",
    )  # fmt: skip

    def __init__(self, room: Room, peer: Peer, life: int, destinations: int = 1, *, dummy: bool = False) -> None:
        self.room = room
        self.peer = peer
        self.life = life  # the decode side's life: the key of the link on both sides
        self.destinations = destinations
        self.dummy = dummy
        self.source_life = 0  # the prefill side's life, once bound
        self.announced = False  # decode: the peer knows of this room
        self.pages: U64 | None = None  # prefill: the remote KV items
        self.states: dict[str, U64] = {}  # prefill: the remote items of each state pool
        self.aux_index: int | None = None  # prefill: the remote auxiliary row
        self.prefix_len = 0
        self.keep_until = 0.0  # prefill: until when the other destinations are waited for
        self.nbytes = 0  # prefill: bytes that have landed there, and in how many chunks
        self.chunks = 0
        self.outstanding = 0
        self.owes_quiesced = False
        self.exposed = False
        self.verifying = False
        self.proof = ""
        self.done = False
        self.verdict = False
        self.told = False  # the peer knows of our end
        self.digests: list[ChunkDigest] = []
        self.aux_rows: list[bytes] = []
        self.reading: dict[int, TransferKVChunk] = {}
        self.unread = 0
        self.clock = WireClock()  # decode, pull: how long its reads through this link took

    @property
    def busy(self) -> bool:
        """Whether some write to or from the room's pages may still be under way through this link."""
        return bool(self.outstanding) or self.exposed or self.verifying

    @property
    def idle(self) -> bool:
        """Whether nothing moves between the two ranks: decode does not wait for prefill's."""
        return self.peer.layout is not None and self.peer.layout.idle

    def moves(self, pool: str) -> bool:
        """Whether anything of the pool moves between the two: other ranks may have the same bytes, and send them."""
        return self.peer.layout is not None and self.peer.layout.moves(pool)


class PendingChunk(NamedTuple):
    """One ``send()``: position of its first page, KV items, state items with their positions, and when to read.
    ``number``: which of the room's it is, from 0.
    """

    start: int
    local: U64
    states: dict[str, tuple[int, U64]]
    layers: range | None
    ready: Ready | None
    last: bool
    number: int


class Room:
    """One opening of one room number on this side. ``poll``, ``failure``, ``metric`` and ``release_safe`` may be read
    from any thread without the lock: each is one attribute, written once or monotonic.

    ``note`` takes a moment of the room's history; without one it takes it and forgets it.
    """

    def __init__(
        self, role: Role, number: int, life: int, addr: str, now: float, *, history: History | None = None,
        traceparent: str | None = None,
    ) -> None:  # fmt: skip
        self.role = role
        self.number = number
        self.life = life
        self.addr = addr
        self.phase = Phase.OPEN
        self.poll = KVPoll.Bootstrapping
        self.failure: Failure | None = None
        self.metric = KVTransferMetric()
        self.release_safe = False
        self.links: dict[tuple[str, int], RoomLink] = {}  # by peer instance and the decode side's life
        self.required = 1  # prefill: links that must play their part
        self.opened_at = now
        self.bootstrapped_at: float | None = None
        self.bound_at: float | None = None
        self.ended_at: float | None = None
        self.last_move = now
        self.cleared = False
        self.listed = False  # stands in the table under its number
        self.history = history
        self.note: Note = NOTE_NOTHING if history is None else history.add
        self.traceparent = traceparent
        self.peer_traceparent: str | None = None  # what the other side's engine has named
        # prefill
        self.expected: int | None = None
        self.aux_index: int | None = None
        self.coverage: Any = None
        self.complete = False
        self.handed = 0  # send() calls that were taken
        self.waiting: list[PendingChunk] = []
        self.unfinished = 0  # chunks handed over that have not landed
        self.sent_states: dict[str, int] = {}
        self.decode_prefix_len = 0
        self.clock = WireClock()
        self.nbytes = 0
        self.moved: set[int] = set()  # prefill: numbers of the chunks of which some bytes have moved
        self.chunks = 0  # decode: the same, as told
        # decode
        self.initialised = False
        self.dp_rank = 0
        self.offer: Offer | None = None
        self.remote_wire_s = 0.0
        self.latency_source = ""
        self.last_error = ""

    @property
    def sources(self) -> list[RoomLink]:
        """Decode: the links to those whose bytes are needed."""
        return [link for link in self.links.values() if not link.dummy]

    @property
    def ended(self) -> bool:
        """Whether the room has reached Success or Failed."""
        return self.phase in TERMINAL

    @property
    def busy(self) -> bool:
        """Whether some write of this room may still be under way."""
        return any(link.busy for link in self.links.values())

    def enter(self, phase: Phase) -> None:
        """Change the phase and what the engine sees of it."""
        self.phase = phase
        if phase not in TERMINAL:
            self.poll = POLL[phase]

    def publish_end(self) -> None:
        """Show the end to the engine: last, so that failure and metric are there when ``poll`` says so."""
        self.poll = POLL[self.phase]

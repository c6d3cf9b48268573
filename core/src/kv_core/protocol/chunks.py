"""``TransferKVChunk``: what one ``send()`` asks to be moved to one peer. The transfer queues hold these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kv_core.contract.interfaces import Ready
from kv_core.contract.transport import PeerKey

if TYPE_CHECKING:
    from kv_core.protocol.messages import ChunkDigest
    from kv_core.protocol.rooms import Room, RoomLink

U64 = npt.NDArray[np.uint64]


@dataclass(eq=False)
class TransferKVChunk:
    """One chunk of one room for one peer, in index form, as the side has it that moves or offers it.

    ``start``: position of its first page in the room. ``local``: KV items, uint64. ``remote``: all KV items that the peer
    named, uint64: which of them go with the chunk's depends on ``prefix``, the pages that decode had, and on page sizes.
    ``layers``: range of layer numbers, or None for all. ``states``: pool name to (start, local, remote). ``aux``:
    (local row, remote row), with the chunk that completes the room. ``ready``: asked before the source is read.
    ``number``: which of the room's ``send`` calls it was, from 0. ``pulled``: this side reads it: ``local`` are all KV items that
    it named, ``remote`` those of the chunk.
    """

    room: Room
    link: RoomLink
    peer: PeerKey
    start: int
    local: U64
    remote: U64
    layers: range | None = None
    states: dict[str, tuple[int, U64, U64]] = field(default_factory=dict)
    aux: tuple[int, int] | None = None
    ready: Ready | None = None
    digest: bool = False
    claimed: bool = False
    settled: bool = False  # landed or failed has been reported
    number: int = 0
    prefix: int = 0
    pulled: bool = False


@dataclass(frozen=True)
class ChunkResult:
    """A chunk has landed: bytes, the span on the wire (monotonic seconds), who measured it, digest and auxiliary row."""

    nbytes: int
    started: float
    stopped: float
    latency_source: str = "core"
    digest: ChunkDigest | None = None
    aux_rows: tuple[bytes, ...] = ()

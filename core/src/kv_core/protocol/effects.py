"""What a machine wants done. The runtime performs effects outside the lock, in the order in which they were decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from kv_core.contract.records import PeerEvent, RoomEvent
from kv_core.contract.transport import PeerKey
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.messages import ChunkDigest, Packet

if TYPE_CHECKING:
    from kv_core.protocol.rooms import Room, RoomLink


@dataclass(frozen=True)
class SendPacket:
    """Send this packet to this endpoint (``tcp://host:port``); connect if there is no connection. May be lost."""

    endpoint: str
    packet: Packet


@dataclass(frozen=True)
class Disconnect:
    """Nobody at this endpoint is spoken to any more: drop the connection and what is queued for it."""

    endpoint: str


@dataclass(frozen=True)
class Resolve:
    """Ask this bootstrap server for its route, once; answer with ``on_route``."""

    addr: str


@dataclass(frozen=True)
class Watch:
    """Probe this bootstrap server from now on; answer with ``on_probe``."""

    addr: str


@dataclass(frozen=True)
class Unwatch:
    """Probe it no more."""

    addr: str


@dataclass(frozen=True)
class AddPeer:
    """Make the peer known to the transport and prepare the plan; answer with ``on_peer_met``, ``on_peer_refused`` or ``on_peer_failed``.

    ``layout``: what the rules have read of the peer; the plan is made from it. ``process``: what the peer tells of its process, by which its end can be proven; empty if nothing.
    """

    peer: PeerKey
    descriptor: bytes
    layout: Any
    process: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class RemovePeer:
    """The transport shall forget the peer."""

    peer: PeerKey


@dataclass(frozen=True)
class FencePeer:
    """Prove that no write of this peer (or of an earlier generation of it) can land; answer with ``on_fenced``."""

    peer: PeerKey


@dataclass(frozen=True)
class ProveDeath:
    """Watch this peer's process until it is proven dead; answer with ``on_proven_dead``."""

    peer: PeerKey
    process: dict[str, str | int]


@dataclass(frozen=True)
class SubmitChunk:
    """Queue this chunk for transfer: claim it with ``claim_chunk`` first, then report how it went."""

    chunk: TransferKVChunk


@dataclass(frozen=True)
class VerifyDigests:
    """Hash what has arrived, and write auxiliary rows that came with the message; answer with ``on_verified``."""

    room: Room
    link: RoomLink
    digests: tuple[ChunkDigest, ...]
    aux_rows: tuple[bytes, ...]


@dataclass(frozen=True)
class TellRoom:
    """Tell the observers."""

    event: RoomEvent


@dataclass(frozen=True)
class TellPeer:
    """Tell the observers."""

    event: PeerEvent


Effect: TypeAlias = (
    SendPacket | Disconnect | Resolve | Watch | Unwatch | AddPeer | RemovePeer | FencePeer | ProveDeath | SubmitChunk
    | VerifyDigests | TellRoom | TellPeer
)  # fmt: skip

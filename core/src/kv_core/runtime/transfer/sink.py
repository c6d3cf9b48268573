"""What the transfer engine tells whoever embeds it."""

from __future__ import annotations

from typing import Protocol

from kv_core.contract.transport import PeerKey
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.messages import ChunkDigest
from kv_core.protocol.rooms import Room, RoomLink


class TransferSink(Protocol):
    """Told on the engine's owner thread; an implementation takes its own lock, and must not wait for the engine.

    For each chunk whose ``claim`` was answered with True there is exactly one ``landed``, ``readable`` or ``failed``. A ``failed``
    that is not quiescent is followed by exactly one ``quiescent``, unless the proof never comes (see
    ``TransferEngine``).
    """

    def claim(self, chunk: TransferKVChunk) -> bool:
        """May the chunk be posted? From a yes on its pages are in use until it is reported quiescent."""
        ...

    def readable(self, chunk: TransferKVChunk, digest: ChunkDigest | None, aux_rows: tuple[bytes, ...]) -> None:
        """Where the peer moves the bytes: the source is complete and may be read. ``digest``: of it, if one was asked for;
        ``aux_rows``: its auxiliary row, where that has to go by message.
        """
        ...

    def landed(self, chunk: TransferKVChunk, result: ChunkResult) -> None:
        """Every byte of the chunk is at the peer; the chunk is quiescent."""
        ...

    def failed(self, chunk: TransferKVChunk, message: str, quiescent: bool) -> None:
        """The chunk failed. ``message`` keeps the type of an exception ("OSError: ...")."""
        ...

    def quiescent(self, chunk: TransferKVChunk) -> None:
        """No byte of a chunk that was reported as failed can move any more."""
        ...

    def peer_met(self, peer: PeerKey) -> None:
        """The peer was added, its plan is prepared, and the fabric in use is one that ``require_transport`` allows."""
        ...

    def peer_failed(self, peer: PeerKey, message: str) -> None:
        """The peer could not be added, or nothing could be prepared for it."""
        ...

    def peer_refused(self, peer: PeerKey, message: str) -> None:
        """The peer can be reached, but not over a fabric that ``require_transport`` allows. Nothing was posted to it."""
        ...

    def fenced(self, peer: PeerKey) -> None:
        """No byte of this generation of the peer, or an earlier one, can land here any more."""
        ...

    def fence_failed(self, peer: PeerKey) -> None:
        """The transport could not fence the peer off: nothing is proven."""
        ...

    def verified(self, room: Room, link: RoomLink, problem: str | None) -> None:
        """What arrived was hashed: None if all digests agree, else the sentence that says what does not."""
        ...

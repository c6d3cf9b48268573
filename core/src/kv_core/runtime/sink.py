"""What the transfer engine reports, brought to the machine under the lock."""

from __future__ import annotations

from kv_core.contract.transport import PeerKey
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.messages import ChunkDigest
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.rooms import Room, RoomLink
from kv_core.runtime.runner import Runner


class MachineSink:
    """``TransferSink`` over one side's machine. Called on the transfer threads."""

    def __init__(self, runner: Runner, machine: PrefillMachine | DecodeMachine) -> None:
        self._runner = runner
        self._machine = machine
        self._prefill = machine if isinstance(machine, PrefillMachine) else None
        self._decode = machine if isinstance(machine, DecodeMachine) else None

    def claim(self, chunk: TransferKVChunk) -> bool:
        """May the chunk be posted?"""
        return self._runner.ask(self._machine.claim_chunk, chunk)

    def readable(self, chunk: TransferKVChunk, digest: ChunkDigest | None, aux_rows: tuple[bytes, ...]) -> None:
        """The peer may read the chunk's source."""
        if self._prefill is not None:
            self._runner.call(self._prefill.chunk_readable, chunk, digest, aux_rows)

    def landed(self, chunk: TransferKVChunk, result: ChunkResult) -> None:
        """Every byte of the chunk is there."""
        self._runner.call(self._machine.chunk_landed, chunk, result)

    def failed(self, chunk: TransferKVChunk, message: str, quiescent: bool) -> None:
        """The chunk failed."""
        machine = self._machine
        self._runner.call(lambda now: machine.chunk_failed(chunk, message, now, quiescent=quiescent))

    def quiescent(self, chunk: TransferKVChunk) -> None:
        """No byte of a failed or abandoned chunk can move any more."""
        self._runner.call(self._machine.chunk_quiescent, chunk)

    def peer_failed(self, peer: PeerKey, message: str) -> None:
        """The transport can't reach the peer."""
        self._runner.call(self._machine.on_peer_failed, peer, message)

    def peer_met(self, peer: PeerKey) -> None:
        """See ``TransferSink``."""
        self._runner.call(self._machine.on_peer_met, peer)

    def peer_refused(self, peer: PeerKey, message: str) -> None:
        """The transport reaches the peer, over a fabric that this side does not allow."""
        self._runner.call(self._machine.on_peer_refused, peer, message)

    def fenced(self, peer: PeerKey) -> None:
        """The peer can touch nothing here any more."""
        self._runner.call(self._machine.on_fenced, peer)

    def fence_failed(self, peer: PeerKey) -> None:
        """The transport could not fence the peer off."""
        self._runner.call(self._machine.on_fence_failed, peer)

    def verified(self, room: Room, link: RoomLink, problem: str | None) -> None:
        """What arrived was hashed."""
        if self._decode is not None:
            self._runner.call(self._decode.on_verified, room, link, problem)

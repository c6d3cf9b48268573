"""What the transfer engine reports, brought to the machine under the lock."""

from __future__ import annotations

from kv_core.contract.transport import PeerKey
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.decode import DecodeMachine
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
        return self._prefill is not None and self._runner.ask(self._prefill.claim_chunk, chunk)

    def landed(self, chunk: TransferKVChunk, result: ChunkResult) -> None:
        """Every byte of the chunk is there."""
        if self._prefill is not None:
            self._runner.call(self._prefill.chunk_landed, chunk, result)

    def failed(self, chunk: TransferKVChunk, message: str, quiescent: bool) -> None:
        """The chunk failed."""
        if self._prefill is not None:
            prefill = self._prefill
            self._runner.call(lambda now: prefill.chunk_failed(chunk, message, now, quiescent=quiescent))

    def quiescent(self, chunk: TransferKVChunk) -> None:
        """No byte of a failed or abandoned chunk can move any more."""
        if self._prefill is not None:
            self._runner.call(self._prefill.chunk_quiescent, chunk)

    def peer_failed(self, peer: PeerKey, message: str) -> None:
        """The transport can't reach the peer."""
        self._runner.call(self._machine.on_peer_failed, peer, message)

    def peer_refused(self, peer: PeerKey, message: str) -> None:
        """The transport reaches the peer, over a fabric that this side does not allow."""
        self._runner.call(self._machine.on_peer_refused, peer, message)

    def fenced(self, peer: PeerKey) -> None:
        """No write of the peer can land any more."""
        if self._decode is not None:
            self._runner.call(self._decode.on_fenced, peer)

    def fence_failed(self, peer: PeerKey) -> None:
        """The transport could not fence the peer off."""
        if self._decode is not None:
            self._runner.call(self._decode.on_fence_failed, peer)

    def verified(self, room: Room, link: RoomLink, problem: str | None) -> None:
        """What arrived was hashed."""
        if self._decode is not None:
            self._runner.call(self._decode.on_verified, room, link, problem)

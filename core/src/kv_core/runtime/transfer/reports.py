"""The way to the sink: an exception there is survived, and never taken for one of the transport's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kv_core.contract.transport import PeerKey
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.effects import VerifyDigests
from kv_core.protocol.messages import ChunkDigest
from kv_core.runtime.transfer.sink import TransferSink
from kv_core.runtime.transfer.troubles import SURVIVED, Troubles


class Reports:
    """Calls the sink on the owner's behalf."""

    def __init__(self, sink: TransferSink, troubles: Troubles) -> None:
        self._sink = sink
        self._troubles = troubles

    def claim(self, chunk: TransferKVChunk) -> bool:
        """May the chunk be posted? No, if the sink can't say."""
        try:
            return self._sink.claim(chunk)
        except SURVIVED as error:
            self._troubles.add("the sink's claim() failed", error)
            return False

    def readable(self, chunk: TransferKVChunk, digest: ChunkDigest | None, aux_rows: tuple[bytes, ...]) -> None:
        """See ``TransferSink.readable``."""
        self._tell(self._sink.readable, chunk, digest, aux_rows)

    def landed(self, chunk: TransferKVChunk, result: ChunkResult) -> None:
        """See ``TransferSink.landed``."""
        self._tell(self._sink.landed, chunk, result)

    def failed(self, chunk: TransferKVChunk, message: str, *, quiescent: bool) -> None:
        """See ``TransferSink.failed``."""
        self._tell(self._sink.failed, chunk, message, quiescent)

    def quiescent(self, chunk: TransferKVChunk) -> None:
        """See ``TransferSink.quiescent``."""
        self._tell(self._sink.quiescent, chunk)

    def peer_met(self, peer: PeerKey) -> None:
        """See ``TransferSink.peer_met``."""
        self._tell(self._sink.peer_met, peer)

    def peer_failed(self, peer: PeerKey, message: str) -> None:
        """See ``TransferSink.peer_failed``."""
        self._tell(self._sink.peer_failed, peer, message)

    def peer_refused(self, peer: PeerKey, message: str) -> None:
        """See ``TransferSink.peer_refused``."""
        self._tell(self._sink.peer_refused, peer, message)

    def fence(self, peer: PeerKey, *, proven: bool) -> None:
        """See ``TransferSink.fenced`` and ``fence_failed``."""
        self._tell(self._sink.fenced if proven else self._sink.fence_failed, peer)

    def verified(self, effect: VerifyDigests, problem: str | None) -> None:
        """See ``TransferSink.verified``."""
        self._tell(self._sink.verified, effect.room, effect.link, problem)

    def _tell(self, method: Callable[..., None], *args: Any) -> None:
        try:
            method(*args)
        except SURVIVED as error:
            self._troubles.add("the sink failed", error)

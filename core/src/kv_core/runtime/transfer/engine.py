"""``TransferEngine``: serves the transfer queues with one transport, whatever its threading model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeAlias

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Capability, Direction
from kv_core.contract.transport import Transport
from kv_core.layout import MemoryLayout
from kv_core.protocol.effects import AddPeer, FencePeer, RemovePeer, SubmitChunk, VerifyDigests
from kv_core.runtime.process_proof import is_proven_dead
from kv_core.runtime.transfer.deaths import IsDead
from kv_core.runtime.transfer.owner import Owner
from kv_core.runtime.transfer.shards import Shards, shard_count
from kv_core.runtime.transfer.sink import TransferSink
from kv_core.runtime.transfer.troubles import SURVIVED

TransferEffect: TypeAlias = SubmitChunk | AddPeer | RemovePeer | FencePeer | VerifyDigests

JOIN_S = 5.0
"""How long ``close`` waits, after its deadline, for calls of the transport that are under way."""


class TransferEngine:
    """Owns a transport from ``start`` on, and closes it.

    One owner thread makes every call to the transport; for a transport of the ``BLOCKING`` model each peer has a thread
    that submits. The memory of ``layout`` must be registered already. ``layout`` is this rank's own;
    ``AddPeer.layout`` is a ``runtime.rules.Pair``. ``clock`` is monotonic, in seconds.

    ``direction`` is the transport's; ``moves``: whether this side moves the bytes. If not (pull, on prefill's side), chunks are
    claimed when their source is ready, and reported as ``readable`` instead of being posted.

    *Quiescence.* What a transport says of its transfers is passed on. Beyond that there is one proof: ``is_dead`` says, of
    what ``AddPeer.process`` tells, that the peer's process has ended, which settles its failed transfers. Where ``submit`` raises
    anything but a ``TransportError`` with ``quiescent=True``, there is no transfer to ask about: the chunk is reported
    as failed and not quiescent, no ``quiescent`` follows, ``snapshot()["lost_submissions"]`` counts it, and ``close``
    returns False. A transport that can tell more returns a transfer, and lets ``progress`` report it.
    """

    def __init__(
        self, transport: Transport, layout: MemoryLayout, config: TransferConfig,
        sink: TransferSink, clock: Callable[[], float], logger: logging.Logger,
        *, capabilities: frozenset[Capability] = frozenset(), name: str = "kv-transfer", is_dead: IsDead = is_proven_dead,
        direction: Direction = Direction.WRITE, moves: bool = True,
    ) -> None:  # fmt: skip
        self._transport = transport
        self._layout = layout
        self._clock = clock
        self._logger = logger
        self._name = name
        self._shards = Shards(shard_count(config.queue_shards))
        self._owner = Owner(
            transport, layout, config, sink, clock, logger, frozenset(capabilities), self._shards, is_dead, direction,
            moves=moves,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._owner.run, name=name)
        self._lock = threading.Lock()
        self._accepting = True
        self._closed: bool | None = None
        self._started = False

    def start(self) -> None:
        """Start the owner thread. Once."""
        with self._lock:
            if self._started or not self._accepting:
                return
            self._started = True
            self._thread.start()

    def put(self, effect: TransferEffect) -> None:
        """Queue an effect. Any thread, also before ``start``; never blocks. After ``close`` it is dropped."""
        if not self._accepting:
            return
        if isinstance(effect, SubmitChunk):
            self._shards.put(effect.chunk)
        else:
            self._owner.commands.put(effect)
        self._owner.wake()

    def stalled_s(self) -> float:
        """Seconds for which the owner thread has had work and not come round; 0 when it is idle. Any thread."""
        return self._owner.stalled_s() if self._started and self._thread.is_alive() else 0.0

    def snapshot(self) -> dict[str, object]:
        """Counts, all 0 at rest (``peers`` when all were removed), and in ``totals`` what has been counted since the
        start. Any thread.

        ``queued_by_shard``: chunks put and not yet claimed or dropped, the parked ones (source not ready) included.
        ``active_chunks``: claimed and without a conclusion. ``outstanding_*``: taken by the transport, not known to be
        quiescent. ``unanswered_submissions``: handed to a peer's thread. ``lost_submissions``: see the class.
        ``staging_bytes``: of the staging area, in use.
        """
        owner = self._owner
        queued = self._shards.counts()
        return {
            "queued_chunks": sum(queued),
            "queued_by_shard": queued,
            "parked_chunks": owner.parking.count,
            "active_chunks": len(owner.dispatcher.active),
            "outstanding_transfers": owner.outstanding.count,
            "outstanding_bytes": owner.outstanding.nbytes,
            "unanswered_submissions": owner.poster.busy(),
            "lost_submissions": owner.dispatcher.lost,
            "staging_bytes": owner.staging.in_use,
            "commands": owner.commands.qsize(),
            "peers": len(owner.dispatcher.peers),
            "totals": {
                "dropped_chunks": owner.dispatcher.dropped,
                "stray_records": owner.outstanding.strays,
                "staged_batches": owner.staging.batches,
            },
        }

    def fabrics(self) -> dict[str, str]:
        """By peer instance: the fabric in use, in the transport's words. Any thread."""
        return {key.name: peer.fabric for key, peer in list(self._owner.dispatcher.peers.items()) if peer.fabric}

    def health(self) -> dict[str, dict[str, object]]:
        """By thread: ``alive``, ``last_progress_age_s``, ``exceptions`` (survived). Any thread."""
        owner = self._owner
        mine: dict[str, object] = {
            "alive": self._thread.is_alive(),
            "last_progress_age_s": max(0.0, self._clock() - owner.turned_at),
            "exceptions": owner.troubles.count,
        }
        return {self._name: mine, **owner.poster.health()}

    def close(self, deadline_s: float) -> bool:
        """Take nothing more, wait until everything posted is quiescent, for ``deadline_s`` seconds at the most, then
        deregister the memory and close the transport. True if everything was quiescent, and every thread has ended.

        Without quiescence the memory is not deregistered (that is no protection, and forbidden by the contract), but
        the transport is closed. Idempotent: a later call answers as the first one did. Not from the sink.
        """
        with self._lock:
            self._accepting = False
            if self._closed is None:
                self._closed = self._close(deadline_s)
            return self._closed

    def _close(self, deadline_s: float) -> bool:
        if not self._started:
            return self._close_unstarted()
        self._owner.stop(self._clock() + deadline_s)
        self._thread.join(deadline_s + JOIN_S)
        if self._thread.is_alive():
            self._logger.error(
                "transfers: a call of the transport has not returned for %.1f s, its thread is left behind",
                self._owner.stalled_s(),
            )
            return False
        return self._owner.quiescent

    def _close_unstarted(self) -> bool:
        try:
            self._transport.deregister_memory(self._layout.regions())
            self._transport.close()
        except SURVIVED as error:
            self._owner.troubles.add("the transport could not be closed", error)
        return True

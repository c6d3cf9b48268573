"""Backends that go wrong only in some histories: when a number, a page or a peer is used again. For the state machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from conformance.tests.mutants.base import mutant, record_of
from kv_core import (
    BackendRecord,
    KVArgs,
    KVPoll,
    KVTransferMetric,
    Role,
    TransferConfig,
    TransferState,
)
from kv_core.contract.observers import Observers
from kv_core.contract.transport import PeerKey, PoolSlice, Prepared, Transfer, TransferBatch, TransportContext
from kv_core.layout import Batch
from kv_core.protocol import messages as msg
from kv_core.protocol.peers import Peer
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.rooms import Room
from kv_core.runtime import CommonKVManager, CommonKVReceiver, CommonKVSender
from kv_core.runtime import parts as runtime_parts
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer

__all__ = ["record_of"]
"""Where a plugin's module finds it, whether or not the package imports this module."""

# -- old lives ---------------------------------------------------------------------------------------------------------


class Late(FakeTransport):
    """Every ``EVERY``-th batch leaves ``SECONDS`` later; what happens to it meanwhile is not noticed."""

    EVERY: ClassVar[int] = 1
    SECONDS: ClassVar[float] = 0.03

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        self._submitted = 0
        self._waits: set[FakeTransfer] = set()

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        self._submitted += 1
        if self._submitted % self.EVERY:
            return super().submit(prepared, batch)
        told = self.frame(prepared, batch)
        real = self.frame(prepared, batch)
        self._waits.add(told)

        def leave() -> None:
            self._waits.discard(told)
            if told.state is TransferState.PENDING:
                self._post_late(told)
            else:
                self._post_late(real)

        self._at(self.SECONDS, leave)
        return told


@mutant("stale_life", "KV-MODEL-1")
class StaleLife(Late):
    """A transfer that was cancelled is quiescent when nothing of it can land: here one that had not left yet is called so at
    once, and leaves all the same, into pages that the next room may have by then.
    """

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        if transfer in self._waits:
            transfer.fail("cancelled", quiescent=True)
        else:
            super().cancel(transfer)


@mutant("stale_life_seldom", "KV-MODEL-1")
class StaleLifeSeldom(StaleLife):
    """As ``StaleLife``, with every seventh batch only, which is late by less."""

    EVERY = 7
    SECONDS = 0.02


@mutant("stale_generation", "KV-MODEL-2")
class StaleGeneration(Late):
    """What was submitted to a peer that was removed is quiescent when nothing of it can land: here what had not left yet is
    called so at once, and leaves when the peer is known again, under its next generation.
    """

    EVERY = 4

    def remove_peer(self, peer: PeerKey) -> None:
        super().remove_peer(peer)
        for transfer in self._waits:
            if transfer.peer == peer:
                transfer.fail("the peer was removed", quiescent=True)

    def _post_late(self, transfer: FakeTransfer) -> None:
        newest = next((peer for peer in self._peers if peer.name == transfer.peer.name), None)
        if newest is not None and transfer.peer not in self._peers:
            transfer.peer = newest
        super()._post_late(transfer)


# -- other rooms -------------------------------------------------------------------------------------------------------


@mutant("cross_room", "KV-MODEL-1")
class CrossRoom(FakeTransport):
    """A batch's bytes go where the batch says: here descriptor lists are kept, and found again by the number of items and the
    first local one. The room that comes later writes into the pages of the earlier one.
    """

    PENDING_ONLY: ClassVar[bool] = False

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        self._lists: dict[tuple[PeerKey, str, int, int], npt.NDArray[np.uint64]] = {}
        self._sent: list[FakeTransfer] = []

    def frame(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        return super().frame(prepared, Batch(self._found(prepared.peer, part) for part in batch.slices))

    def _found(self, peer: PeerKey, part: PoolSlice) -> PoolSlice:
        if not part.local_items.size or not self._is_kept():
            return part
        key = (peer, part.plan.pool, part.local_items.size, int(part.local_items[0]))
        return part._replace(remote_items=self._lists.setdefault(key, part.remote_items))

    def _is_kept(self) -> bool:
        return True


@mutant("cross_room_seldom", "KV-MODEL-1")
class CrossRoomSeldom(CrossRoom):
    """As ``CrossRoom``, but the lists are looked at only while another transfer to the peer has not been seen to end."""

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        transfer = super().submit(prepared, batch)
        self._sent.append(transfer)
        return transfer

    def _is_kept(self) -> bool:
        self._sent = [one for one in self._sent if one.state is TransferState.PENDING]
        return bool(self._sent)


# -- handles that remember their number's past -------------------------------------------------------------------------


@mutant("metric_of_the_former_life", "KV-MODEL-1")
class MetricOfTheFormerLife(CommonKVSender):
    """A metric is of one room: here it is kept by the room's number, and the next room of that number has it, too."""

    KEPT: ClassVar[dict[int, KVTransferMetric]] = {}

    def get_transfer_metric(self) -> KVTransferMetric:
        metric = super().get_transfer_metric()
        if super().poll() is not KVPoll.Success:
            return metric
        return self.KEPT.setdefault(self.room, metric)


@mutant("bytes_add_up", "KV-MODEL-1")
class BytesAddUp(CommonKVReceiver):
    """The bytes are of one room: here a counter by the room's number is not set back when a room of it failed."""

    KEPT: ClassVar[dict[int, int]] = {}

    def abort(self, reason: str = "") -> None:
        if self._room.poll is KVPoll.Transferring:
            self.KEPT[self.room] = 1
        super().abort(reason)

    def get_transfer_metric(self) -> KVTransferMetric:
        metric = super().get_transfer_metric()
        if metric.transfer_total_bytes is None:
            return metric
        return replace(metric, transfer_total_bytes=metric.transfer_total_bytes + self.KEPT.get(self.room, 0))


@mutant("poll_of_the_next_life", "KV-MODEL-1")
class PollOfTheNextLife(CommonKVSender):
    """Success never changes: here ``poll`` asks by the room's number, and tells of the room that has it now."""

    def poll(self) -> KVPoll:
        current = self._runner.machine.table.get(self.room)
        return super().poll() if current is None or super().poll() is not KVPoll.Success else current.poll


# -- managers whose protocol forgets which life is meant ---------------------------------------------------------------


class TakesStaleMetadata(PrefillMachine):
    """Pages that were named in a life that has ended are taken up by the next room of the number."""

    def _on_metadata(self, peer: Peer, message: msg.Metadata, now: float) -> None:
        if message.life not in peer.rooms and self._inbox.get(peer, message.life) is None:
            self._on_announce(peer, msg.Announce(message.room, message.life), now)
        super()._on_metadata(peer, message, now)


class AbortsByNumber(PrefillMachine):
    """An abort ends whatever room has the number now."""

    def _on_abort(self, peer: Peer, message: msg.Abort, now: float) -> None:
        room: Room | None = self.table.get(message.room)
        super()._on_abort(peer, message, now)
        if room is not None and not room.ended:
            self._fail_with(room, message.failure.failure(), now)


class QuiescesTooSoon(PrefillMachine):
    """An abort is acknowledged while writes are under way."""

    def _on_abort(self, peer: Peer, message: msg.Abort, now: float) -> None:
        super()._on_abort(peer, message, now)
        self._push(peer, msg.Quiesced(message.room, message.life))


class _WithMachine(CommonKVManager):
    """A manager whose prefill side has another machine."""

    machine: ClassVar[type[PrefillMachine]]

    @classmethod
    def create(
        cls, record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, observers: Observers
    ) -> CommonKVManager:
        if role is Role.PREFILL:
            parts: Any = runtime_parts
            parts.PrefillMachine = cls.machine
        return super().create(record, role, args, config, observers)


@mutant("aborts_by_number", "KV-MODEL-1")
class AbortsByNumberManager(_WithMachine):
    """A message that belongs to another life is dropped: here an abort ends whatever room has the number now."""

    machine = AbortsByNumber


@mutant("takes_stale_metadata", "KV-MODEL-1")
class TakesStaleMetadataManager(_WithMachine):
    """A message that belongs to another life is dropped: here pages that were named in an old life are taken up by the next
    room of the number.
    """

    machine = TakesStaleMetadata


class _Slow(FakeTransport):
    """A fabric on which every third batch takes two milliseconds, so that something is under way when a room ends."""

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        transfer = self.frame(prepared, batch)
        if transfer.number % 3:
            self.post(transfer)
        else:
            self._at(0.002, lambda: self._post_late(transfer))
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Nothing is taken back, and nothing is said of it before it has landed."""


@mutant("quiesces_too_soon", "KV-MODEL-1")
class QuiescesTooSoonBackend:
    """Pages may be reused when every writer has said that its writes have ended: here it says so at once."""

    class Manager(_WithMachine):
        """The manager."""

        machine = QuiescesTooSoon

    transport = _Slow
    manager = Manager


@mutant("release_of_the_next_life", "KV-MODEL-1")
class ReleaseOfTheNextLife:
    """``is_release_safe`` is of one room: here a cleared handle's is answered by the number, and while no other room has it,
    there is nobody to say no.
    """

    class Receiver(CommonKVReceiver):
        """The receiver."""

        def is_release_safe(self) -> bool:
            current = self._runner.machine.table.get(self.room)
            return super().is_release_safe() or (self._room.cleared and current is not None and not current.links)

    transport = _Slow
    receiver = Receiver


@mutant("late_read", "KV-MODEL-1")
class LateRead:
    """The sending side's pages may be reused when nothing reads them any more: here as soon as its room has ended."""

    class Sender(CommonKVSender):
        """The sender."""

        def is_release_safe(self) -> bool:
            return super().is_release_safe() or super().poll() in (KVPoll.Failed, KVPoll.Success)

    transport = _Slow
    sender = Sender


# -- transfers that are taken for other ones ---------------------------------------------------------------------------


@mutant("progress_by_number", "KV-MODEL-2")
class ProgressByNumber(FakeTransport):
    """DONE is said of the transfer that is done: here of whichever is outstanding at its place, modulo 8."""

    def progress(self, transfers: Sequence[Transfer]) -> Any:
        done = {one.number % 8: one for one in transfers if isinstance(one, FakeTransfer)}
        for record in super().progress(transfers):
            other = done.get(record.transfer.number % 8, record.transfer)
            yield record._replace(transfer=other)


@mutant("forgets_failures", "KV-MODEL-2")
class ForgetsFailures(FakeTransport):
    """A failed transfer is reported until it is quiescent: here that is never said of one whose peer was removed while it
    was on its way, after the peer is known again.
    """

    def progress(self, transfers: Sequence[Transfer]) -> Any:
        names = {peer.name: peer.generation for peer in self._peers}
        for record in super().progress(transfers):
            if record.state is TransferState.DONE or names.get(record.transfer.peer.name) in (
                None,
                record.transfer.peer.generation,
            ):
                yield record

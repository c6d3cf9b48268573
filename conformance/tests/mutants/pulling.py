"""Backends that read from a peer wrongly."""

from __future__ import annotations

from dataclasses import replace

from conformance.tests.mutants.base import mutant
from conformance.tests.mutants.copying import Changed, Copying
from conformance.tests.mutants.topology import Planning
from kv_core import Direction, KVPoll, TransferState
from kv_core.contract.transport import CopyList, PeerKey, PoolPlan, Prepared, Transfer, TransferBatch, TransportContext
from kv_core.runtime import CommonKVSender
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer

READS = "reads"


@mutant("reads_go_where_earlier_ones_went", "KV-PULL-1", like=READS)
class ReadsGoWhereEarlierOnesWent(Copying):
    """What one room reads lands in its own pages: here in those of an earlier read of as many bytes."""

    known: dict[tuple[int, int], CopyList]

    def change(self, batch: TransferBatch) -> TransferBatch:
        if not self._reads:
            return batch
        self.known = getattr(self, "known", {})
        copies = batch.copies()
        earlier = self.known.setdefault((len(copies.length), batch.nbytes), copies)
        return Changed(batch, copies._replace(local_region=earlier.local_region, local_offset=earlier.local_offset))


@mutant("writes_for_a_manager_that_reads", "KV-PULL-1", like=READS)
class WritesForAManagerThatReads(FakeTransport):
    """What decode posts with ``Direction.READ`` goes from prefill's memory to its own: here decode's poison goes to prefill."""

    def __init__(self, context: TransportContext) -> None:
        super().__init__(replace(context, direction=Direction.WRITE))


@mutant("read_goes_on_after_its_cancel", "KV-PULL-2", like=READS)
class ReadGoesOnAfterItsCancel(FakeTransport):
    """A cancelled read is quiescent when no byte of it can land: here at once, while its bytes still come."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        if self._reads and transfer.state is TransferState.PENDING:
            transfer.fail("cancelled", quiescent=True)
        else:
            super().cancel(transfer)


@mutant(
    "reads_behind_another_are_done", "KV-PULL-2", like=READS,
    sometimes=dict.fromkeys(("KV-PULL-1", "KV-PULL-3", "KV-PULL-4", "KV-PULL-5"), "the bytes may come before they are looked at"),
)  # fmt: skip
class ReadsBehindAnotherAreDone(FakeTransport):
    """DONE means that every byte was read: here a read that waits for another one to end says so as soon as it is posted."""

    posted: list[FakeTransfer]

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        transfer = super().submit(prepared, batch)
        self.posted = [one for one in getattr(self, "posted", []) if one.state is TransferState.PENDING]
        if self._reads and self.posted:
            transfer.finish()
        self.posted.append(transfer)
        return transfer


@mutant("failed_sender_asks_no_reader", "KV-PULL-3", like=READS)
class FailedSenderAsksNoReader(CommonKVSender):
    """Prefill's pages are kept until decode says that its reads have ended: here they are free when the room has failed."""

    def is_release_safe(self) -> bool:
        reads = self._runner.machine.me.direction is Direction.READ
        return super().is_release_safe() or (reads and self.poll() is KVPoll.Failed)


@mutant("one_lost_source_ends_all_reads", "KV-PULL-4", like=READS)
class OneLostSourceEndsAllReads(FakeTransport):
    """A read that breaks is the affair of its peer: here nothing is read from anybody after it."""

    broken = False

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        super().add_peer(peer, descriptor)
        if self._reads:
            puller = self._peers[peer]
            pull = puller._pull

            def watched(transfer: FakeTransfer) -> str | None:
                error: str | None = pull(transfer)
                self.broken = self.broken or error is not None
                return error

            puller._pull = watched

    def post(self, transfer: FakeTransfer) -> None:
        if not self.broken:
            super().post(transfer)


@mutant("reads_at_the_local_offset", "KV-PULL-5", like=READS)
class ReadsAtTheLocalOffset(Planning):
    """A lane has an offset in the peer's item, from which it is read: here the local one is taken for it."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        return replace(plan, remote_offset=plan.local_offset) if self._reads else plan

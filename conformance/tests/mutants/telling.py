"""Backends that say something wrong about their transfers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic

from kv_core import TransferState, TransportError
from kv_core.contract.transport import Prepared, Transfer, TransferBatch, TransferProgress, TransportContext
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer
from conformance.tests.mutants.base import mutant

EARLY_S = 0.1
DONE, FAILED, PENDING = TransferState.DONE, TransferState.FAILED, TransferState.PENDING


class Telling(FakeTransport):
    """kv-fake with other records than the true ones. None: the record is kept back."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        for record in super().progress(transfers):
            told = self.tell(record)
            if told is not None:
                yield told

    def tell(self, record: TransferProgress) -> TransferProgress | None:
        """What is told instead."""
        raise NotImplementedError


@mutant("early_success", "KV-XFER-12")
class EarlySuccess(FakeTransport):
    """DONE means that every byte is in the peer's memory: here also that nobody complained for a tenth of a second."""

    def __init__(self, context: TransportContext) -> None:
        self.since: dict[FakeTransfer, float] = {}
        super().__init__(context)

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        transfer = super().submit(prepared, batch)
        self.since[transfer] = monotonic()
        return transfer

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        yield from super().progress(transfers)
        for transfer in transfers:
            assert isinstance(transfer, FakeTransfer)
            if transfer.state is PENDING and monotonic() > self.since[transfer] + EARLY_S:
                yield TransferProgress(transfer, DONE, quiescent=True)


@mutant("done_is_not_quiescent", "KV-XFER-13")
class DoneIsNotQuiescent(Telling):
    """DONE implies quiescent: here it says that it is not."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        return record._replace(quiescent=False) if record.state is DONE else record


@mutant("failed_is_always_quiescent", "KV-PEER-1")
class FailedIsAlwaysQuiescent(Telling):
    """Quiescent is said of a failed transfer only when it is certain: here always."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        return record._replace(quiescent=True) if record.state is FAILED else record


@mutant("never_quiescent", "KV-ABORT-1")
class NeverQuiescent(Telling):
    """A failed transfer is reported until it is quiescent, and at last it is: here never, if its bytes had been begun."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        begun = isinstance(record.transfer, FakeTransfer) and record.transfer.started
        return record._replace(quiescent=False) if record.state is FAILED and begun else record


@mutant("tells_a_failure_once", "KV-PEER-2")
class TellsAFailureOnce(Telling):
    """A failed transfer is reported again on each call until it is quiescent: here the first time only."""

    told: set[int]

    def tell(self, record: TransferProgress) -> TransferProgress | None:
        self.told = getattr(self, "told", set())
        if record.state is FAILED:
            if id(record.transfer) in self.told:
                return None
            self.told.add(id(record.transfer))
        return record


@mutant("failure_without_a_word", "KV-FAIL-1")
class FailureWithoutAWord(Telling):
    """FAILED comes with a sentence that says why: here with none."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        return record._replace(error=None)


@mutant("dead_peer_is_pending", "KV-LIVE-1")
class DeadPeerIsPending(Telling):
    """A transfer to a peer that died fails: here it is pending for ever."""

    def tell(self, record: TransferProgress) -> TransferProgress | None:
        return None if record.state is FAILED and "connect" in str(record.error) else record


@mutant("progress_raises_on_failure", "KV-FAIL-2")
class ProgressRaisesOnFailure(Telling):
    """``progress`` tells of a failed transfer in its record: here it raises."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        if record.state is FAILED:
            raise TransportError(f"a transfer failed: {record.error}")
        return record


@mutant("done_then_failed", "KV-XFER-14")
class DoneThenFailed(FakeTransport):
    """A transfer ends once: here one that was told to be done is told to have failed when it is asked about again."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        for record in super().progress(transfers):
            seen = getattr(self, "seen", set())
            self.seen = seen
            if record.state is DONE and id(record.transfer) in seen:
                yield record._replace(state=FAILED, error="asked too late")
            else:
                seen.add(id(record.transfer))
                yield record


@mutant("tells_of_strangers", "KV-XFER-15")
class TellsOfStrangers(FakeTransport):
    """``progress`` tells of the transfers that it is asked about: here also of those of the last call."""

    last: Sequence[Transfer] = ()

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        before, self.last = self.last, list(transfers)
        yield from super().progress([*transfers, *(one for one in before if one not in transfers)])


@mutant("progress_waits", "KV-POLL-1")
class ProgressWaits(FakeTransport):
    """``progress`` never waits: here it does, until one of the transfers has ended."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        records = list(super().progress(transfers))
        while transfers and not records:
            self.wait(0.1)
            records = list(super().progress(transfers))
        yield from records


@mutant("submit_waits", "KV-XFER-16")
class SubmitWaits(FakeTransport):
    """``submit`` returns without waiting for the bytes (threading model OWNER): here it waits for them."""

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        transfer = super().submit(prepared, batch)
        while transfer.state is PENDING:
            self.wait(0.1)
            list(super().progress([transfer]))
        return transfer


@mutant("ends_with_its_neighbour", "KV-XFER-17")
class EndsWithItsNeighbour(FakeTransport):
    """Each transfer ends by itself: here all that are asked about are done when one is."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        records = list(super().progress(transfers))
        yield from records
        if any(record.state is DONE for record in records):
            told = {id(record.transfer) for record in records}
            yield from (TransferProgress(one, DONE, quiescent=True) for one in transfers if id(one) not in told)


@mutant("held_up_by_a_slow_peer", "KV-LIVE-2")
class HeldUpByASlowPeer(FakeTransport):
    """A peer that stands still holds up nobody else's transfers: here all wait for the first one that is pending."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        records = {id(record.transfer): record for record in super().progress(transfers)}
        for transfer in transfers:
            if id(transfer) not in records:
                return
            yield records[id(transfer)]


@mutant("engine_seconds_left_out", "KV-MET-1", like="timed")
class EngineSecondsLeftOut(FakeTransport):
    """Who declares ENGINE_LATENCY tells the engine's own time of each transfer: here none is told."""


@mutant("engine_seconds_too_many", "KV-MET-2", like="timed")
class EngineSecondsTooMany(Telling):
    """The engine's own time lies between submission and end: here it is in milliseconds."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        return record._replace(wire_seconds=50.0) if record.state is DONE else record


@mutant("engine_seconds_negative", "KV-MET-3", like="timed")
class EngineSecondsNegative(Telling):
    """A duration is never negative: here the engine's is."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        return record._replace(wire_seconds=-0.001) if record.state is DONE else record



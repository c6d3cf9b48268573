"""Backends that say something wrong about their transfers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from time import monotonic

from conformance.tests.mutants.base import mutant
from conformance.tests.mutants.references import Timed
from kv_core import TransferState, TransportError
from kv_core.contract.transport import PeerKey, Prepared, Transfer, TransferBatch, TransferProgress, TransportContext
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer, Outbound

STILL_S = 0.1
LONG_S = 5.0
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


class Impatient(FakeTransport):
    """kv-fake with an end of its own for transfers of which no byte has moved for a while."""

    limit_s = STILL_S

    def __init__(self, context: TransportContext) -> None:
        self.moved: dict[FakeTransfer, tuple[int, float]] = {}
        super().__init__(context)

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        yield from super().progress(transfers)
        for transfer in transfers:
            assert isinstance(transfer, FakeTransfer)
            if transfer.state is PENDING and transfer.pieces is not None:
                moved, since = self.moved.setdefault(transfer, (0, monotonic()))
                if moved != transfer.pieces._moved:
                    self.moved[transfer] = (transfer.pieces._moved, monotonic())
                elif monotonic() > since + self.limit_s:
                    yield self.give_up(transfer)

    def give_up(self, transfer: FakeTransfer) -> TransferProgress:
        """What is told of it then."""
        raise NotImplementedError

    def release(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        self.moved.pop(transfer, None)
        super().release(transfer)

    def wait(self, timeout_s: float) -> None:
        super().wait(min(timeout_s, self.limit_s) if self.moved else timeout_s)


@mutant("early_success", "KV-ABORT-11")
class EarlySuccess(Impatient):
    """DONE means that every byte is in the peer's memory: here also that nobody complained for a tenth of a second."""

    def give_up(self, transfer: FakeTransfer) -> TransferProgress:
        return TransferProgress(transfer, DONE, quiescent=True)


@mutant("slow_is_failed", "KV-LIVE-4")
class SlowIsFailed(Impatient):
    """A peer that stands still for a moment is slow: here what was on its way to it has failed after half a second."""

    limit_s = 0.5

    def give_up(self, transfer: FakeTransfer) -> TransferProgress:
        transfer.fail("nothing has moved for half a second", quiescent=False)
        return TransferProgress(transfer, FAILED, quiescent=False, error=transfer.error)


@mutant("time_is_a_proof", "KV-ABORT-14")
class TimeIsAProof(Impatient):
    """A time-out does not make a transfer quiescent: here five seconds do."""

    limit_s = LONG_S

    def give_up(self, transfer: FakeTransfer) -> TransferProgress:
        return TransferProgress(transfer, FAILED, quiescent=True, error="nothing has moved for five seconds")


@mutant(
    "done_when_begun",
    "KV-ABORT-11",
    sometimes=dict.fromkeys(
        ("KV-POLL-5", "KV-XFER-1", "KV-XFER-11"),
        "it depends on whether the rest has arrived when the room is looked at",
    ),
)
class DoneWhenBegun(FakeTransport):
    """DONE means that every byte is in the peer's memory: here that the first one has left."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        yield from super().progress(transfers)
        for transfer in transfers:
            assert isinstance(transfer, FakeTransfer)
            if transfer.state is PENDING and transfer.pieces is not None and transfer.pieces._moved:
                yield TransferProgress(transfer, DONE, quiescent=True)

    def wait(self, timeout_s: float) -> None:
        super().wait(min(timeout_s, 0.0005))


@mutant("done_is_quiescent_later", "KV-ABORT-11")
class DoneIsQuiescentLater(FakeTransport):
    """DONE implies quiescent: here only when it is told for the second time."""

    def __init__(self, context: TransportContext) -> None:
        self.told: set[FakeTransfer] = set()
        super().__init__(context)

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        for record in super().progress(transfers):
            first = record.state is DONE and record.transfer not in self.told
            self.told.add(record.transfer)
            yield record._replace(quiescent=False) if first else record

    def release(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        self.told.discard(transfer)
        super().release(transfer)


@mutant("failed_is_always_quiescent", "KV-ABORT-12")
class FailedIsAlwaysQuiescent(Telling):
    """Quiescent is said of a failed transfer only when it is certain: here always."""

    def remove_peer(self, peer: PeerKey) -> None:
        outbound = self._peers.get(peer)
        if outbound is not None:  # nothing asks the peer to throw away what it has not read: it is to land for sure
            outbound._prove_retired = partial(_prove_nothing, outbound)
        super().remove_peer(peer)

    def tell(self, record: TransferProgress) -> TransferProgress:
        return record._replace(quiescent=True) if record.state is FAILED else record


def _prove_nothing(outbound: Outbound, _number: int) -> None:
    with outbound._lock:
        outbound._to_retire = 0


@mutant("never_quiescent", "KV-ABORT-9")
class NeverQuiescent(Telling):
    """What is quiescent is told to be so at last: here never, of a failed transfer whose bytes had been begun."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        begun = isinstance(record.transfer, FakeTransfer) and record.transfer.started
        return record._replace(quiescent=False) if record.state is FAILED and begun else record


@mutant("failure_is_told_once", "KV-ABORT-12")
class FailureIsToldOnce(FakeTransport):
    """A failed transfer is reported again on each call until it is quiescent: here the first time only."""

    def __init__(self, context: TransportContext) -> None:
        self.told: set[FakeTransfer] = set()
        super().__init__(context)

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        for record in super().progress(transfers):
            if record.transfer not in self.told:
                yield record
            if record.state is FAILED:
                self.told.add(record.transfer)

    def release(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        self.told.discard(transfer)
        super().release(transfer)


@mutant("fails_without_a_word", "KV-ABORT-13")
class FailsWithoutAWord(Telling):
    """FAILED comes with a sentence that says why: here with none."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        return record._replace(error=None)


@mutant("dead_peer_is_pending", "KV-ABORT-13")
class DeadPeerIsPending(Telling):
    """A transfer to a process that has ended fails: here it is pending for ever."""

    def tell(self, record: TransferProgress) -> TransferProgress | None:
        lost = record.error is not None and any(word in record.error for word in ("connect", "broke", "sending"))
        gone = record.transfer.peer in self._peers  # a peer that was removed is another matter
        return None if record.state is FAILED and lost and gone else record


@mutant("closed_peer_is_pending", "KV-ABORT-22")
class ClosedPeerIsPending(Telling):
    """A transfer to a peer that has closed its transport fails: here it is pending for ever."""

    def tell(self, record: TransferProgress) -> TransferProgress | None:
        closed = record.error is not None and "connection" in record.error  # which may be seen as closed, or as broken
        return None if record.state is FAILED and closed else record


@mutant("progress_raises", "KV-ABORT-13")
class ProgressRaises(Telling):
    """``progress`` tells of a failed transfer in its record: here it raises."""

    def tell(self, record: TransferProgress) -> TransferProgress:
        if record.state is FAILED:
            raise TransportError(f"a transfer failed: {record.error}")
        return record


@mutant("done_then_failed", "KV-ABORT-16")
class DoneThenFailed(FakeTransport):
    """A transfer ends once: here one that was done has failed when it is asked about again."""

    def __init__(self, context: TransportContext) -> None:
        self.told: set[FakeTransfer] = set()
        super().__init__(context)

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        for record in super().progress(transfers):
            again = record.transfer in self.told
            self.told.add(record.transfer)
            yield record._replace(state=FAILED, error="asked too late") if again else record

    def release(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        self.told.discard(transfer)
        super().release(transfer)


@mutant("ends_with_its_neighbour", "KV-XFER-7")
class EndsWithItsNeighbour(FakeTransport):
    """Each transfer ends by itself: here all that are asked about are done when one is."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        records = list(super().progress(transfers))
        yield from records
        if any(record.state is DONE for record in records):
            told = {id(record.transfer) for record in records}
            yield from (TransferProgress(one, DONE, quiescent=True) for one in transfers if id(one) not in told)


@mutant("progress_waits", "KV-ABORT-11")
class ProgressWaits(FakeTransport):
    """``progress`` never waits: here it does, until one of the transfers has ended."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        records = list(super().progress(transfers))
        while transfers and not records:
            self.wait(0.1)
            records = list(super().progress(transfers))
        yield from records


@mutant("submit_waits", "KV-LIVE-7")
class SubmitWaits(FakeTransport):
    """``submit`` returns without waiting for the bytes (threading model OWNER): here it waits for them."""

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        transfer = super().submit(prepared, batch)
        while transfer.state is PENDING:
            self.wait(0.1)
            list(super().progress([transfer]))
        return transfer


@mutant("held_up_by_a_slow_peer", "KV-LIVE-6")
class HeldUpByASlowPeer(FakeTransport):
    """A peer that stands still holds up nobody else's transfers: here all wait for the first one that is pending."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        records = {id(record.transfer): record for record in super().progress(transfers)}
        for transfer in transfers:
            if id(transfer) not in records:
                return
            yield records[id(transfer)]


@mutant("refuses_and_posts", "KV-FAIL-12")
class RefusesAndPosts(FakeTransport):
    """What ``submit`` refuses as quiescent is not written: here it has been posted before the peer was looked at."""

    def __init__(self, context: TransportContext) -> None:
        self.late: list[tuple[PeerKey, Prepared, TransferBatch]] = []
        super().__init__(context)

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        try:
            return super().submit(prepared, batch)
        except TransportError:
            self.late.append((prepared.peer, prepared, batch))
            raise

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        super().add_peer(peer, descriptor)
        for old, prepared, batch in self.late:
            if old.name == peer.name:
                transfer = self.frame(prepared, batch)
                transfer.peer = peer
                self.post(transfer)
        self.late = [one for one in self.late if one[0].name != peer.name]


@mutant("engine_tells_no_time", "KV-MET-6", like="timed")
class EngineTellsNoTime(FakeTransport):
    """Who declares ENGINE_LATENCY tells the engine's own time of each transfer: here none is told."""


@mutant("engine_tells_milliseconds", "KV-MET-6", like="timed")
class EngineTellsMilliseconds(Timed):
    """The engine's own time is in seconds: here in milliseconds."""

    def seconds(self, transfer: Transfer) -> float:
        return 1e3 * super().seconds(transfer)


@mutant("engine_tells_nothing", "KV-MET-6", like="timed")
class EngineTellsZero(Timed):
    """The engine's own time is more than 0: here it is counted from the end."""

    def seconds(self, transfer: Transfer) -> float:
        return 0.0


@mutant("engine_counts_the_sending", "KV-MET-5", like="timed")
class EngineCountsTheSending(Timed):
    """The engine's own time is that on the wire: here at most a twentieth of a second, as long as handing over takes."""

    def seconds(self, transfer: Transfer) -> float:
        return min(0.05, super().seconds(transfer))

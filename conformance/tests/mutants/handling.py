"""Backends whose senders and receivers say something wrong: of the state, the metric, the failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

from conformance.tests.mutants.base import mutant
from kv_core import Failure, FailureCode, FailureStage, KVPoll, KVTransferError, KVTransferMetric
from kv_core.protocol.lifecycle import Phase
from kv_core.runtime import CommonKVReceiver, CommonKVSender

ROW_BYTES = 80
"""Of an auxiliary row; any other number would do."""

# -- poll --------------------------------------------------------------------------------------------------------------


@mutant("poll_blocks", "KV-POLL-1")
class PollBlocks(CommonKVSender):
    """``poll`` never blocks: here it gives way for a millisecond while a peer has taken nothing for a while."""

    def poll(self) -> KVPoll:
        state = super().poll()
        if state is KVPoll.Transferring and monotonic() > self._room.last_move + 0.2:
            sleep(0.001)
        return state


@mutant("poll_drives_the_transfer", "KV-POLL-1")
class PollDrivesTheTransfer(CommonKVSender):
    """A room goes on whether or not anybody polls it: here the bytes of each chunk leave when the sender is polled next."""

    waiting: list[Callable[[], None]]

    def send(self, *args: Any, **named: Any) -> None:
        self.waiting = [*getattr(self, "waiting", []), lambda: super(PollDrivesTheTransfer, self).send(*args, **named)]

    def poll(self) -> KVPoll:
        waiting, self.waiting = getattr(self, "waiting", []), []
        for leave in waiting:
            leave()
        return super().poll()


@mutant("poll_raises_on_failure", "KV-POLL-2")
class PollRaisesOnFailure(CommonKVReceiver):
    """``poll`` never raises: here it does for a room that failed."""

    def poll(self) -> KVPoll:
        if super().poll() is KVPoll.Failed:
            self.failure_exception()
        return super().poll()


@mutant("poll_raises_after_clear", "KV-POLL-2")
class PollRaisesAfterClear(CommonKVSender):
    """A cleared handle keeps its final state: here its ``poll`` raises."""

    def poll(self) -> KVPoll:
        if self._room.cleared:
            raise KeyError(self.room)
        return super().poll()


@mutant("poll_raises_after_close", "KV-POLL-2")
class PollRaisesAfterClose(CommonKVSender):
    """``poll`` never raises, also not when the manager was closed: here it does."""

    def poll(self) -> KVPoll:
        if self._runner.machine.closed:
            raise RuntimeError("the manager is closed")
        return super().poll()


@mutant("poll_is_a_number", "KV-POLL-2")
class PollIsANumber(CommonKVReceiver):
    """``poll`` answers with a ``KVPoll``: here with its number once the room was cleared."""

    def poll(self) -> KVPoll:
        return int(super().poll()) if self._room.cleared else super().poll()  # type: ignore[return-value]


@mutant("terminal_flap", "KV-POLL-3")
class TerminalFlap(CommonKVSender):
    """Success never changes: here it is Transferring again, once, when it is asked for the tenth time."""

    asked = 0

    def poll(self) -> KVPoll:
        state = super().poll()
        self.asked += state is KVPoll.Success
        return KVPoll.Transferring if state is KVPoll.Success and self.asked == 10 else state


@mutant("late_bytes_make_a_success", "KV-POLL-4")
class LateBytesMakeASuccess(CommonKVSender):
    """Failed never changes: here it becomes Success when the last byte of a room that was given up has landed."""

    def poll(self) -> KVPoll:
        state, room = super().poll(), self._room
        late = state is KVPoll.Failed and room.complete and not room.busy and room.nbytes == 0 and bool(room.handed)
        return KVPoll.Success if late and not room.cleared else state


@mutant(
    "early_receiver",
    "KV-POLL-5",
    sometimes={"KV-POLL-6": "on a busy machine the bytes are there before decode is asked"},
)
class EarlyReceiver(CommonKVReceiver):
    """Success on the decode side means that the bytes are there: here that prefill has taken its pages, and said so."""

    def poll(self) -> KVPoll:
        state = super().poll()
        return KVPoll.Success if state is KVPoll.Transferring else state


@mutant("early_sender", "KV-POLL-6")
class EarlySender(CommonKVSender):
    """Success on the prefill side means that decode has every byte: here that the last chunk was handed to the transport."""

    def poll(self) -> KVPoll:
        state = super().poll()
        return KVPoll.Success if state is KVPoll.Transferring and self._room.complete else state


@mutant("success_after_the_first_chunk", "KV-POLL-7")
class SuccessAfterTheFirstChunk(CommonKVSender):
    """A room ends with its last chunk: here the sender says Success as soon as all that was sent so far has landed."""

    def poll(self) -> KVPoll:
        room = self._room
        landed = room.phase is Phase.MOVING and not room.unfinished and room.nbytes
        return KVPoll.Success if landed and not room.complete else super().poll()


@mutant("back_to_waiting", "KV-POLL-8")
class BackToWaiting(CommonKVSender):
    """States never go backwards: here a sender waits for input again while nothing of what it sent is outstanding."""

    def poll(self) -> KVPoll:
        state = super().poll()
        return KVPoll.WaitingForInput if state is KVPoll.Transferring and not self._room.unfinished else state


@mutant("success_without_a_verdict", "KV-POLL-9")
class SuccessWithoutAVerdict(CommonKVSender):
    """Prefill says Success only if decode does: here when its own writes are done, whatever becomes of the room then."""

    landed = False

    def poll(self) -> KVPoll:
        self.landed = self.landed or self._room.phase is Phase.CONFIRMING
        return KVPoll.Success if self.landed else super().poll()


# -- get_transfer_metric -----------------------------------------------------------------------------------------------


class Measuring(CommonKVSender):
    """A sender with another metric than the true one, once there is one."""

    def get_transfer_metric(self) -> KVTransferMetric:
        metric = super().get_transfer_metric()
        return metric if metric.transfer_total_bytes is None else self.measure(metric)

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        """What is told instead."""
        raise NotImplementedError


@mutant("bytes_counted_twice", "KV-MET-1")
class BytesCountedTwice(Measuring):
    """transfer_total_bytes are the bytes that landed: here twice as many."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, transfer_total_bytes=2 * (metric.transfer_total_bytes or 0))


@mutant("bytes_without_the_row", "KV-MET-1")
class BytesWithoutTheRow(Measuring):
    """transfer_total_bytes includes auxiliary rows: here it does not."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        row = 0 if self._room.aux_index is None else ROW_BYTES
        return replace(metric, transfer_total_bytes=(metric.transfer_total_bytes or 0) - row)


@mutant("chunks_of_one", "KV-MET-1")
class ChunksOfOne(Measuring):
    """chunks is the number of ``send`` calls that moved bytes: here always 1."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, chunks=1)


@mutant("zero_for_unknown", "KV-MET-2")
class ZeroForUnknown(CommonKVSender):
    """What is not known is None: here it is 0."""

    def get_transfer_metric(self) -> KVTransferMetric:
        metric = super().get_transfer_metric()
        if metric.transfer_total_bytes is None:
            return replace(metric, transfer_latency_s=0.0, transfer_total_bytes=0)
        return metric


@mutant("metric_of_a_failure", "KV-MET-2")
class MetricOfAFailure(CommonKVSender):
    """The metric of a room that failed stays None: here it has the bytes that had landed by then."""

    def get_transfer_metric(self) -> KVTransferMetric:
        metric, room = super().get_transfer_metric(), self._room
        if room.poll is KVPoll.Failed and room.handed:
            return replace(metric, transfer_total_bytes=room.nbytes, transfer_latency_s=room.clock.seconds)
        return metric


@mutant("metric_goes_on", "KV-MET-3")
class MetricGoesOn(Measuring):
    """The metric is frozen at the end: here its time goes on."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, total_latency_s=monotonic() - self._room.opened_at)


@mutant("metric_is_lost_by_clear", "KV-MET-3")
class MetricIsLostByClear(CommonKVSender):
    """A cleared handle keeps its metric: here it is gone."""

    def get_transfer_metric(self) -> KVTransferMetric:
        return KVTransferMetric() if self._room.cleared else super().get_transfer_metric()


@mutant("metric_of_the_receiver_only", "KV-MET-3")
class MetricOfTheReceiverOnly(Measuring):
    """Both sides of a room that succeeded know its metric: here the sender knows nothing."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return KVTransferMetric()


@mutant("latency_negative", "KV-MET-4")
class LatencyNegative(Measuring):
    """A duration is never negative: here it is taken the wrong way round."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, transfer_latency_s=-(metric.transfer_latency_s or 0.0) - 1e-6)


@mutant("latency_with_pauses", "KV-MET-4")
class LatencyWithPauses(Measuring):
    """transfer_latency_s is the time on the wire: here all the time since both sides had named their pages."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        since = (metric.total_latency_s or 0.0) - (metric.alloc_latency_s or 0.0)
        return replace(metric, transfer_latency_s=since)


@mutant("latency_of_an_unknown_source", "KV-MET-4")
class LatencyOfAnUnknownSource(Measuring):
    """latency_source says who measured, engine or core: here nobody."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, latency_source="")


# -- failure -----------------------------------------------------------------------------------------------------------


class Failing(CommonKVReceiver):
    """A receiver with another failure than the true one, once there is one."""

    def failure(self) -> Failure | None:
        failure = super().failure()
        return None if failure is None else self.fail(failure)

    def fail(self, failure: Failure) -> Failure | None:
        """What is told instead."""
        raise NotImplementedError


@mutant("silent_failure", "KV-FAIL-6")
class SilentFailure(Failing):
    """A room that failed says why: here it has no failure."""

    def fail(self, failure: Failure) -> Failure | None:
        return None


@mutant("wrong_code", "KV-ABORT-1")
class WrongCode(Failing):
    """The failure's code is the root cause: here an abort of the other side is a lost peer."""

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, code=FailureCode.PEER_LOST) if failure.code is FailureCode.ABORTED_REMOTE else failure


@mutant("wrong_stage", "KV-FAIL-4")
class WrongStage(Failing):
    """The failure says in which stage the room was: here always in the transfer."""

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, stage=FailureStage.TRANSFER)


@mutant("code_is_a_text", "KV-FAIL-6")
class CodeIsAText(Failing):
    """The failure's code is one of a closed set: here a text of its own, which is equal to it."""

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, code=failure.code.value)  # type: ignore[arg-type]


@mutant("sentence_is_lost", "KV-FAIL-2")
class SentenceIsLost(Failing):
    """The sentence of a call that can't be carried out says what was wrong: here it is the code once more."""

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, message=failure.code.value) if failure.code is FailureCode.INVALID_REQUEST else failure


@mutant("failure_changes", "KV-FAIL-7")
class FailureChanges(Failing):
    """The first root cause stays: here an abort afterwards takes its place."""

    reason = ""

    def abort(self, reason: str = "") -> None:
        self.reason = reason or "aborted"
        super().abort(reason)

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, message=self.reason) if self.reason else failure


@mutant("failure_cannot_be_pickled", "KV-FAIL-6")
class FailureCannotBePickled(Failing):
    """A failure survives pickling: here there is a function in it."""

    def fail(self, failure: Failure) -> Failure:
        changed = replace(failure)
        object.__setattr__(changed, "origin", _Origin(failure.origin))
        return changed


class _Origin(str):
    """A text that is more than one."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return (_Origin, (str(self), lambda: self))


@mutant("failure_exception_is_silent", "KV-FAIL-6")
class FailureExceptionIsSilent(CommonKVReceiver):
    """``failure_exception`` raises what went wrong: here nothing."""

    def failure_exception(self) -> None:
        return


@mutant("failure_exception_of_its_own", "KV-FAIL-6")
class FailureExceptionOfItsOwn(CommonKVReceiver):
    """``failure_exception`` raises a ``KVTransferError``: here a ``RuntimeError``."""

    def failure_exception(self) -> None:
        try:
            super().failure_exception()
        except KVTransferError as error:
            raise RuntimeError(str(error)) from None


@mutant("failure_of_a_success", "KV-FAIL-6")
class FailureOfASuccess(CommonKVSender):
    """A room that went well has no failure: here one that says so."""

    def failure(self) -> Failure | None:
        if self._room.poll is KVPoll.Success:
            return Failure(FailureStage.TRANSFER, FailureCode.TRANSPORT_ERROR, "no error")
        return super().failure()

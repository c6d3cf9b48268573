"""Backends that bring senders and receivers of their own, and get them wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

from kv_core import Failure, FailureCode, FailureStage, KVPoll, KVTransferError, KVTransferMetric
from kv_core.runtime import CommonKVReceiver, CommonKVSender
from conformance.tests.mutants.base import mutant

# -- poll --------------------------------------------------------------------------------------------------------------


@mutant("terminal_flap", "KV-POLL-2")
class TerminalFlap(CommonKVSender):
    """Success never changes: here it is Transferring again, once, when it is asked for the tenth time."""

    asked = 0

    def poll(self) -> KVPoll:
        state = super().poll()
        self.asked += state is KVPoll.Success
        return KVPoll.Transferring if state is KVPoll.Success and self.asked == 10 else state


@mutant("failed_is_not_final", "KV-POLL-2")
class FailedIsNotFinal(CommonKVReceiver):
    """Failed never changes: here it becomes Bootstrapping when the room was cleared."""

    def poll(self) -> KVPoll:
        state = super().poll()
        return KVPoll.Bootstrapping if state is KVPoll.Failed and self._room.cleared else state


@mutant("poll_blocks", "KV-POLL-3")
class PollBlocks(CommonKVSender):
    """``poll`` never blocks: here it waits for the end once bytes are on their way."""

    def poll(self) -> KVPoll:
        while (state := super().poll()) is KVPoll.Transferring:
            sleep(0.001)
        return state


@mutant("poll_raises_on_failure", "KV-POLL-4")
class PollRaisesOnFailure(CommonKVReceiver):
    """``poll`` never raises: here it does for a room that failed."""

    def poll(self) -> KVPoll:
        state = super().poll()
        if state is KVPoll.Failed:
            self.failure_exception()
        return state


@mutant("poll_raises_after_clear", "KV-CLEAR-1")
class PollRaisesAfterClear(CommonKVSender):
    """A cleared handle keeps its final state: here its ``poll`` raises."""

    def poll(self) -> KVPoll:
        if self._room.cleared:
            raise KeyError(self.room)
        return super().poll()


@mutant("poll_raises_after_close", "KV-END-9")
class PollRaisesAfterClose(CommonKVSender):
    """``poll`` never raises, also not when the manager was closed: here it does."""

    def poll(self) -> KVPoll:
        if self._runner.machine.closed:
            raise RuntimeError("the manager is closed")
        return super().poll()


@mutant("poll_is_a_number", "KV-POLL-5")
class PollIsANumber(CommonKVReceiver):
    """``poll`` answers with a ``KVPoll``: here with its number."""

    def poll(self) -> KVPoll:
        return int(super().poll())  # type: ignore[return-value]


@mutant("early_receiver", "KV-POLL-6")
class EarlyReceiver(CommonKVReceiver):
    """Success on the decode side means that the bytes are there: here that they are on their way."""

    def poll(self) -> KVPoll:
        state = super().poll()
        return KVPoll.Success if state is KVPoll.Transferring else state


# -- get_transfer_metric -----------------------------------------------------------------------------------------------


class Measuring(CommonKVSender):
    """A sender with another metric than the true one, once there is one."""

    def get_transfer_metric(self) -> KVTransferMetric:
        metric = super().get_transfer_metric()
        return metric if metric.transfer_total_bytes is None else self.measure(metric)

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        """What is told instead."""
        raise NotImplementedError


@mutant("metric_counts_twice", "KV-MET-4")
class MetricCountsTwice(Measuring):
    """transfer_total_bytes are the bytes that landed: here twice as many."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, transfer_total_bytes=2 * (metric.transfer_total_bytes or 0))


@mutant("metric_without_aux", "KV-MET-4")
class MetricWithoutAux(Measuring):
    """transfer_total_bytes includes auxiliary rows: here it does not."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        layout = self._checks._items
        less = 1 if "aux" in layout and self._room.aux_index is not None else 0
        return replace(metric, transfer_total_bytes=(metric.transfer_total_bytes or 0) - less)


@mutant("metric_in_the_receiver_only", "KV-MET-5")
class MetricOfNothing(Measuring):
    """What is known is told: here the sender of a room that succeeded knows nothing."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return KVTransferMetric()


@mutant("latency_negative", "KV-MET-6")
class LatencyNegative(Measuring):
    """A duration is never negative: here it is taken the wrong way round."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, transfer_latency_s=-(metric.transfer_latency_s or 0.0) - 1e-6)


@mutant("latency_in_milliseconds", "KV-MET-6")
class LatencyInMilliseconds(Measuring):
    """Durations are in seconds, and no longer than what went by: here they are in milliseconds."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, transfer_latency_s=1e3 * (metric.transfer_latency_s or 0.0) + 10.0)


@mutant("zero_for_unknown", "KV-MET-7")
class ZeroForUnknown(CommonKVSender):
    """What is not known is None: here it is 0."""

    def get_transfer_metric(self) -> KVTransferMetric:
        metric = super().get_transfer_metric()
        if metric.transfer_total_bytes is None:
            return replace(metric, transfer_latency_s=0.0, transfer_total_bytes=0)
        return metric


@mutant("metric_of_a_failure", "KV-MET-8")
class MetricOfAFailure(CommonKVSender):
    """The metric of a room that failed stays None: here it has the bytes that had landed by then."""

    def get_transfer_metric(self) -> KVTransferMetric:
        metric = super().get_transfer_metric()
        if self._room.poll is KVPoll.Failed:
            return replace(metric, transfer_total_bytes=self._room.nbytes, transfer_latency_s=self._room.clock.seconds)
        return metric


@mutant("metric_goes_on", "KV-MET-9")
class MetricGoesOn(Measuring):
    """The metric is frozen at the end: here its time goes on."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, total_latency_s=monotonic() - self._room.opened_at)


@mutant("metric_is_lost_by_clear", "KV-CLEAR-2")
class MetricIsLostByClear(CommonKVSender):
    """A cleared handle keeps its metric: here it is gone."""

    def get_transfer_metric(self) -> KVTransferMetric:
        return KVTransferMetric() if self._room.cleared else super().get_transfer_metric()


@mutant("latency_of_an_unknown_source", "KV-MET-10")
class LatencyOfAnUnknownSource(Measuring):
    """latency_source says who measured, engine or core: here nobody."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, latency_source="")


@mutant("chunks_of_one", "KV-MET-11")
class ChunksOfOne(Measuring):
    """chunks is the number of ``send`` calls that moved bytes: here always 1."""

    def measure(self, metric: KVTransferMetric) -> KVTransferMetric:
        return replace(metric, chunks=1)


# -- failure -----------------------------------------------------------------------------------------------------------


class Failing(CommonKVReceiver):
    """A receiver with another failure than the true one, once there is one."""

    def failure(self) -> Failure | None:
        failure = super().failure()
        return None if failure is None else self.fail(failure)

    def fail(self, failure: Failure) -> Failure | None:
        """What is told instead."""
        raise NotImplementedError


@mutant("silent_failure", "KV-FAIL-4")
class SilentFailure(Failing):
    """A room that failed says why: here it has no failure."""

    def fail(self, failure: Failure) -> Failure | None:
        return None


@mutant("wrong_code", "KV-FAIL-5")
class WrongCode(Failing):
    """The failure's code is the root cause: here it is always a transport error."""

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, code=FailureCode.TRANSPORT_ERROR)


@mutant("wrong_stage", "KV-FAIL-5")
class WrongStage(Failing):
    """The failure says in which stage the room was: here always in the transfer."""

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, stage=FailureStage.TRANSFER)


@mutant("code_is_a_text", "KV-FAIL-5")
class CodeIsAText(Failing):
    """The failure's code is one of a closed set: here a text of its own."""

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, code="EIO")  # type: ignore[arg-type]


@mutant("failure_without_a_sentence", "KV-FAIL-6")
class FailureWithoutASentence(Failing):
    """A failure has a sentence that helps: here it is empty."""

    def fail(self, failure: Failure) -> Failure:
        return replace(failure, message="")


@mutant("failure_changes", "KV-FAIL-7")
class FailureChanges(Failing):
    """The first root cause stays: here an abort afterwards takes its place."""

    aborted = ""

    def abort(self, reason: str = "") -> None:
        self.aborted = reason or "aborted"
        super().abort(reason)

    def fail(self, failure: Failure) -> Failure:
        if self.aborted and failure.code is not FailureCode.ABORTED_LOCAL:
            return replace(failure, code=FailureCode.ABORTED_LOCAL, message=self.aborted)
        return failure


@mutant("failure_cannot_be_pickled", "KV-FAIL-8")
class FailureCannotBePickled(Failing):
    """A failure survives pickling: here it has a function in it."""

    def fail(self, failure: Failure) -> Failure:
        changed = replace(failure)
        object.__setattr__(changed, "origin", _Origin(failure.origin, lambda: failure))
        return changed


class _Origin(str):
    """A text that is more than one."""

    __slots__ = ("more",)

    def __new__(cls, text: str, more: Callable[[], object]) -> _Origin:
        one = super().__new__(cls, text)
        one.more = more
        return one

    def __reduce__(self) -> Any:
        return (_Origin, (str(self), self.more))


@mutant("failure_exception_is_silent", "KV-FAIL-9")
class FailureExceptionIsSilent(CommonKVReceiver):
    """``failure_exception`` raises what went wrong: here nothing."""

    def failure_exception(self) -> None:
        return


@mutant("failure_exception_of_its_own", "KV-FAIL-9")
class FailureExceptionOfItsOwn(CommonKVReceiver):
    """``failure_exception`` raises a ``KVTransferError``: here a ``RuntimeError``."""

    def failure_exception(self) -> None:
        try:
            super().failure_exception()
        except KVTransferError as error:
            raise RuntimeError(str(error)) from None


@mutant("failure_of_a_success", "KV-FAIL-10")
class FailureOfASuccess(CommonKVSender):
    """A room that went well has no failure: here an empty one."""

    def failure(self) -> Failure | None:
        if self._room.poll is KVPoll.Success:
            return Failure(FailureStage.TRANSFER, FailureCode.TRANSPORT_ERROR, "success")
        return super().failure()


@mutant("failure_is_lost_by_clear", "KV-CLEAR-3")
class FailureIsLostByClear(CommonKVReceiver):
    """A cleared handle keeps its failure: here it is gone."""

    def failure(self) -> Failure | None:
        return None if self._room.cleared else super().failure()


# -- abort, clear, is_release_safe -------------------------------------------------------------------------------------


@mutant("abort_does_nothing", "KV-ABORT-2")
class AbortDoesNothing(CommonKVReceiver):
    """``abort`` fails the room now: here nothing happens."""

    def abort(self, reason: str = "") -> None:
        return


@mutant("abort_tells_nobody", "KV-ABORT-3")
class AbortTellsNobody(CommonKVReceiver):
    """``abort`` tells the other side: here it does not."""

    def abort(self, reason: str = "") -> None:
        machine = self._runner.machine
        push, machine._push = machine._push, lambda *_args: None  # type: ignore[method-assign]
        try:
            super().abort(reason)
        finally:
            machine._push = push  # type: ignore[method-assign]


@mutant("abort_waits", "KV-ABORT-4")
class AbortWaits(CommonKVSender):
    """``abort`` waits for nothing: here until the pages are free."""

    def abort(self, reason: str = "") -> None:
        super().abort(reason)
        while not self._room.release_safe:
            sleep(0.001)


@mutant("abort_forgets_its_reason", "KV-ABORT-5")
class AbortForgetsItsReason(CommonKVReceiver):
    """The reason of an abort stands in the failure, on both sides: here it does not."""

    def abort(self, reason: str = "") -> None:
        super().abort()


@mutant("abort_undoes_success", "KV-ABORT-6")
class AbortUndoesSuccess(CommonKVReceiver):
    """An abort after the end changes nothing: here a success becomes a failure."""

    undone = False

    def abort(self, reason: str = "") -> None:
        self.undone = super().poll() is KVPoll.Success
        super().abort(reason)

    def poll(self) -> KVPoll:
        return KVPoll.Failed if self.undone else super().poll()


@mutant("abort_twice_raises", "KV-ABORT-7")
class AbortTwiceRaises(CommonKVSender):
    """An abort of a room that has ended changes nothing: here it raises."""

    def abort(self, reason: str = "") -> None:
        if self._room.ended:
            raise KeyError(self.room)
        super().abort(reason)


@mutant("released_at_the_end", "KV-ABORT-8")
class ReleasedAtTheEnd(CommonKVReceiver):
    """Pages are free when nothing can be written to them any more: here as soon as the room has ended."""

    def is_release_safe(self) -> bool:
        return super().is_release_safe() or super().poll() in (KVPoll.Failed, KVPoll.Success)


@mutant("sender_released_at_the_end", "KV-ABORT-9")
class SenderReleasedAtTheEnd(CommonKVSender):
    """Pages are free when nothing can be read from them any more: here as soon as the room has ended."""

    def is_release_safe(self) -> bool:
        return super().is_release_safe() or super().poll() in (KVPoll.Failed, KVPoll.Success)


@mutant("never_released", "KV-ABORT-10")
class NeverReleased(CommonKVReceiver):
    """The pages of a room that has ended are free at last: here those of a failed one never are."""

    def is_release_safe(self) -> bool:
        return super().is_release_safe() and super().poll() is not KVPoll.Failed


@mutant("released_while_live", "KV-ABORT-11")
class ReleasedWhileLive(CommonKVReceiver):
    """The pages of a room that is live are not free: here they are until it moves bytes."""

    def is_release_safe(self) -> bool:
        return super().is_release_safe() or super().poll() in (KVPoll.Bootstrapping, KVPoll.WaitingForInput)


@mutant("release_is_frozen_by_clear", "KV-CLEAR-4")
class ReleaseIsFrozenByClear(CommonKVReceiver):
    """``is_release_safe`` stays live after ``clear``: here it stays as it was."""

    frozen: bool | None = None

    def clear(self) -> None:
        self.frozen = self._room.release_safe if self.frozen is None else self.frozen
        super().clear()

    def is_release_safe(self) -> bool:
        return super().is_release_safe() if self.frozen is None else self.frozen


@mutant("clear_twice_raises", "KV-CLEAR-5")
class ClearTwiceRaises(CommonKVSender):
    """``clear`` is idempotent: here the second one raises."""

    def clear(self) -> None:
        if self._room.cleared:
            raise KeyError(self.room)
        super().clear()


@mutant("clear_leaves_the_room", "KV-CLEAR-6")
class ClearLeavesTheRoom(CommonKVReceiver):
    """``clear`` drops the room: here it stays in the table."""

    def clear(self) -> None:
        if not self._room.ended:
            self.abort("the room was cleared while it was live")
        self._room.cleared = True


@mutant("clear_lets_live_rooms_go_on", "KV-CLEAR-7")
class ClearLetsLiveRoomsGoOn(CommonKVReceiver):
    """``clear`` aborts a room that is live: here it goes on."""

    def clear(self) -> None:
        if self._room.ended:
            super().clear()


@mutant("clear_waits", "KV-CLEAR-8")
class ClearWaits(CommonKVReceiver):
    """``clear`` waits for nothing: here until the pages are free."""

    def clear(self) -> None:
        super().clear()
        while not self._room.release_safe:
            sleep(0.001)

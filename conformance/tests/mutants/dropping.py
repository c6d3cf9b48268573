"""Backends whose senders and receivers abort, clear and give pages back wrongly."""

from __future__ import annotations

from time import sleep
from typing import Any, ClassVar

from conformance.tests.mutants.base import mutant
from kv_core import Failure, KVPoll
from kv_core.runtime import CommonKVReceiver, CommonKVSender

ENDED = (KVPoll.Failed, KVPoll.Success)


@mutant("abort_does_nothing", "KV-ABORT-1")
class AbortDoesNothing(CommonKVReceiver):
    """``abort`` fails the room now: here nothing happens."""

    def abort(self, reason: str = "") -> None:
        return


@mutant("abort_tells_nobody", "KV-ABORT-1")
class AbortTellsNobody(CommonKVReceiver):
    """``abort`` tells the other side: here it does not."""

    def abort(self, reason: str = "") -> None:
        machine: Any = self._runner.machine
        push, machine._push = machine._push, lambda *_args: None
        try:
            super().abort(reason)
        finally:
            machine._push = push


@mutant("abort_forgets_its_reason", "KV-ABORT-1")
class AbortForgetsItsReason(CommonKVReceiver):
    """The reason of an abort stands in the failure, on both sides: here it does not."""

    def abort(self, reason: str = "") -> None:
        super().abort()


@mutant("abort_undoes_success", "KV-ABORT-2")
class AbortUndoesSuccess(CommonKVReceiver):
    """An abort after the end changes nothing: here a success becomes a failure."""

    undone = False

    def abort(self, reason: str = "") -> None:
        self.undone = self.undone or super().poll() is KVPoll.Success
        super().abort(reason)

    def poll(self) -> KVPoll:
        return KVPoll.Failed if self.undone else super().poll()


@mutant("abort_twice_raises", "KV-ABORT-2")
class AbortTwiceRaises(CommonKVSender):
    """An abort of a room that has ended changes nothing: here it raises."""

    def abort(self, reason: str = "") -> None:
        if self._room.ended:
            raise KeyError(self.room)
        super().abort(reason)


@mutant("early_abort_is_lost", "KV-ABORT-3")
class EarlyAbortIsLost(CommonKVReceiver):
    """A room that decode gave up before prefill opened it fails there at once: here prefill is not told of it."""

    def abort(self, reason: str = "") -> None:
        machine: Any = self._runner.machine
        alone = not self._room.ended and not any(link.source_life for link in self._room.links.values())
        push, regret = machine._push, machine._regret
        if alone and self._room.offer is not None:
            machine._push, machine._regret = (lambda *_args: None), (lambda *_args: None)
        try:
            super().abort(reason)
        finally:
            machine._push, machine._regret = push, regret


@mutant("send_raises_after_the_end", "KV-ABORT-4")
class SendRaisesAfterTheEnd(CommonKVSender):
    """``send`` in a room that has failed does nothing: here it raises."""

    def send(self, *args: Any, **named: Any) -> None:
        self.failure_exception()
        super().send(*args, **named)


@mutant("sender_released_at_the_end", "KV-ABORT-5")
class SenderReleasedAtTheEnd(CommonKVSender):
    """Pages are free when nothing can be read from them any more: here as soon as the room has ended."""

    def is_release_safe(self) -> bool:
        return super().is_release_safe() or super().poll() in ENDED


@mutant("released_at_the_end", "KV-ABORT-6")
class ReleasedAtTheEnd(CommonKVReceiver):
    """Pages are free when nothing can be written to them any more: here as soon as the room has ended."""

    def is_release_safe(self) -> bool:
        return super().is_release_safe() or super().poll() in ENDED


@mutant("released_when_handed_over", "KV-XFER-20")
class ReleasedWhenHandedOver(CommonKVSender):
    """Source pages are free when they were read: here as soon as they were handed over."""

    def is_release_safe(self) -> bool:
        return super().is_release_safe() or self._room.complete


@mutant("never_released", "KV-ABORT-10")
class NeverReleased(CommonKVReceiver):
    """The pages of a room that has ended are free at last: here those of one that was given up while it moved are not."""

    moving = False

    def abort(self, reason: str = "") -> None:
        self.moving = self.moving or super().poll() is KVPoll.Transferring
        super().abort(reason)

    def is_release_safe(self) -> bool:
        return super().is_release_safe() and not self.moving


@mutant("released_while_it_waits", "KV-ABORT-1")
class ReleasedWhileItWaits(CommonKVReceiver):
    """The pages of a room that is live are not free: here they are until it moves bytes."""

    def is_release_safe(self) -> bool:
        return super().is_release_safe() or super().poll() in (KVPoll.Bootstrapping, KVPoll.WaitingForInput)


@mutant("clear_leaves_the_room", "KV-CLEAR-1")
class ClearLeavesTheRoom(CommonKVReceiver):
    """``clear`` drops the room: here one that has failed stays in the table, under a number that nobody uses."""

    def clear(self) -> None:
        failed = self._room.poll is KVPoll.Failed and not self._room.cleared
        super().clear()
        if failed:
            self._runner.machine.table[-1 - self._room.life] = self._room


@mutant("history_of_rooms", "KV-CLEAR-2")
class HistoryOfRooms(CommonKVReceiver):
    """A cleared room leaves no object behind: here a line in a history."""

    lines: ClassVar[list[list[int]]] = []

    def clear(self) -> None:
        if not self._room.cleared:
            self.lines.append([self.room])
        super().clear()


@mutant("clear_twice_raises", "KV-CLEAR-3")
class ClearTwiceRaises(CommonKVSender):
    """``clear`` is idempotent: here the second one raises."""

    def clear(self) -> None:
        if self._room.cleared:
            raise KeyError(self.room)
        super().clear()


@mutant("state_is_lost_by_clear", "KV-CLEAR-3")
class StateIsLostByClear(CommonKVReceiver):
    """A cleared handle keeps its final state: here that of a failed room is Bootstrapping again."""

    def poll(self) -> KVPoll:
        state = super().poll()
        return KVPoll.Bootstrapping if state is KVPoll.Failed and self._room.cleared else state


@mutant("failure_is_lost_by_clear", "KV-CLEAR-3")
class FailureIsLostByClear(CommonKVReceiver):
    """A cleared handle keeps its failure: here it is gone."""

    def failure(self) -> Failure | None:
        return None if self._room.cleared else super().failure()


@mutant("clear_lets_live_rooms_go_on", "KV-CLEAR-4")
class ClearLetsLiveRoomsGoOn(CommonKVReceiver):
    """``clear`` aborts a room that is live: here it goes on."""

    def clear(self) -> None:
        if self._room.ended:
            super().clear()


@mutant("clear_tells_nobody", "KV-CLEAR-4")
class ClearTellsNobody(CommonKVSender):
    """``clear`` of a live room tells the other side: here it does not."""

    def clear(self) -> None:
        machine: Any = self._runner.machine
        push, machine._push = machine._push, lambda *_args: None
        try:
            super().clear()
        finally:
            machine._push = push


@mutant("old_handles_reach_the_new_room", "KV-CLEAR-5")
class OldHandlesReachTheNewRoom(CommonKVSender):
    """A handle is of one life of a room: here a cleared one aborts whatever has its number."""

    def abort(self, reason: str = "") -> None:
        room = self._runner.machine.table.get(self.room)
        if self._room.cleared and room is not None:
            self._runner.call(self._runner.machine.abort, room, reason)
        super().abort(reason)


@mutant("release_is_frozen_by_clear", "KV-CLEAR-6")
class ReleaseIsFrozenByClear(CommonKVSender):
    """``is_release_safe`` stays live after ``clear``: here it stays as it was."""

    frozen: bool | None = None

    def clear(self) -> None:
        self.frozen = self._room.release_safe if self.frozen is None else self.frozen
        super().clear()

    def is_release_safe(self) -> bool:
        return super().is_release_safe() if self.frozen is None else self.frozen


@mutant("clear_waits", "KV-CLEAR-6")
class ClearWaits(CommonKVSender):
    """``clear`` waits for nothing: here until the pages are free."""

    def clear(self) -> None:
        super().clear()
        while not self._room.release_safe:
            sleep(0.001)

"""Backends that bring a manager of their own, and get it wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kv_core import (
    BackendRecord,
    BaseKVReceiver,
    BaseKVSender,
    FailureCode,
    KVArgs,
    ManagerClosed,
    PeerEvent,
    Role,
    RoomEvent,
    RoomEventKind,
    TransferConfig,
)
from kv_core.contract.observers import Observers
from kv_core.protocol.machine import Machine
from kv_core.protocol.peers import Peer
from kv_core.runtime import CommonKVManager
from conformance.tests.mutants.base import mutant

Tell = Callable[[Any], object]

# -- rooms -------------------------------------------------------------------------------------------------------------


@mutant("duplicate_room_raises", "KV-FAIL-14")
class DuplicateRoomRaises(CommonKVManager):
    """A room that collides with a live one is a failed room: here ``create_receiver`` raises."""

    def create_receiver(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVReceiver:
        if bootstrap_room in self._machine.table:
            raise ValueError(f"room {bootstrap_room} is open already")
        return super().create_receiver(bootstrap_addr, bootstrap_room)


@mutant("duplicate_room_ends_the_first", "KV-FAIL-15")
class DuplicateRoomEndsTheFirst(CommonKVManager):
    """The live room that another one collides with does not notice: here it fails."""

    def create_receiver(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVReceiver:
        room = self._machine.table.get(bootstrap_room)
        if room is not None:
            self._runner.call(self._machine.abort, room, "opened again")
        return super().create_receiver(bootstrap_addr, bootstrap_room)


@mutant("wrong_address_raises", "KV-FAIL-16")
class WrongAddressRaises(CommonKVManager):
    """A bootstrap address that is none makes a failed room: here it raises."""

    def create_sender(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVSender:
        _host, _, port = bootstrap_addr.rpartition(":")
        int(port)
        return super().create_sender(bootstrap_addr, bootstrap_room)

    def create_receiver(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVReceiver:
        _host, _, port = bootstrap_addr.rpartition(":")
        int(port)
        return super().create_receiver(bootstrap_addr, bootstrap_room)


@mutant("opens_after_close", "KV-END-10")
class OpensAfterClose(CommonKVManager):
    """A closed manager opens no rooms (``ManagerClosed``): here it does, and they fail."""

    def create_sender(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVSender:
        try:
            return super().create_sender(bootstrap_addr, bootstrap_room)
        except ManagerClosed:
            room = self._runner.ask(self._machine.open, bootstrap_room, bootstrap_addr)  # type: ignore[union-attr]
            return self.sender_class(self._runner, room, self._checks)

    def create_receiver(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVReceiver:
        try:
            return super().create_receiver(bootstrap_addr, bootstrap_room)
        except ManagerClosed:
            room = self._runner.ask(self._machine.open, bootstrap_room, bootstrap_addr)  # type: ignore[union-attr]
            return self.receiver_class(self._runner, room, self._checks)


@mutant("shares_handles_between_threads", "KV-THR-7")
class ThreadUnsafeOpening(CommonKVManager):
    """A manager may be used from any thread: here two that open rooms at the same time get the same one."""

    room: Any = None

    def create_receiver(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVReceiver:
        self.room = bootstrap_room
        threading.Event().wait(0.0005)  # gives up the GIL, as a lookup in a native table does
        return super().create_receiver(bootstrap_addr, self.room)


# -- observers ---------------------------------------------------------------------------------------------------------


class Observed(CommonKVManager):
    """A manager that tells its observers in a way of its own."""

    @classmethod
    def create(
        cls, record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, observers: Observers
    ) -> CommonKVManager:
        return super().create(record, role, args, config, cls.observers(observers))

    @classmethod
    def observers(cls, given: Observers) -> Observers:
        """Who is told instead."""
        return Observers(tuple(map(cls.room_told, given.room)), tuple(map(cls.peer_told, given.peer)))

    @classmethod
    def room_told(cls, tell: Tell) -> Tell:
        """What is called instead of a room observer."""
        return tell

    @classmethod
    def peer_told(cls, tell: Tell) -> Tell:
        """What is called instead of a peer observer."""
        return tell


@mutant("observer_stops_the_others", "KV-THR-8")
class ObserverStopsTheOthers(Observed):
    """An observer that raises stops no other: here nobody after it is told."""

    @classmethod
    def observers(cls, given: Observers) -> Observers:
        def all_rooms(event: RoomEvent) -> None:
            for tell in given.room:
                tell(event)

        return Observers((all_rooms,) if given.room else (), given.peer)


@mutant("observer_is_dropped_when_it_raises", "KV-THR-8")
class ObserverIsDropped(Observed):
    """An observer that raised is told of what comes next: here no more."""

    @classmethod
    def room_told(cls, tell: Tell) -> Tell:
        raised: list[BaseException] = []

        def once(event: RoomEvent) -> None:
            if not raised:
                try:
                    tell(event)
                except BaseException as error:
                    raised.append(error)
                    raise

        return once


@mutant("concluded_is_told_twice", "KV-THR-9")
class ConcludedIsToldTwice(Observed):
    """The end of a room is told once: here twice."""

    @classmethod
    def room_told(cls, tell: Tell) -> Tell:
        def twice(event: RoomEvent) -> None:
            tell(event)
            if event.kind is RoomEventKind.CONCLUDED:
                tell(event)

        return twice


@mutant("released_before_concluded", "KV-THR-9")
class ReleasedBeforeConcluded(Observed):
    """Observers hear of a room in order: here CONCLUDED comes after RELEASED."""

    @classmethod
    def room_told(cls, tell: Tell) -> Tell:
        held: dict[int, RoomEvent] = {}

        def swapped(event: RoomEvent) -> None:
            if event.kind is RoomEventKind.CONCLUDED:
                held[event.life] = event
                return
            tell(event)
            if event.kind is RoomEventKind.RELEASED and event.life in held:
                tell(held.pop(event.life))

        return swapped


@mutant("concluded_without_its_metric", "KV-THR-10")
class ConcludedWithoutItsMetric(Observed):
    """CONCLUDED carries the metric: here it does not."""

    @classmethod
    def room_told(cls, tell: Tell) -> Tell:
        return lambda event: tell(replace(event, metric=None))


@mutant("losses_are_not_told", "KV-THR-11")
class LossesAreNotTold(Observed):
    """Observers hear of a peer that was lost: here only of those that join."""

    @classmethod
    def peer_told(cls, tell: Tell) -> Tell:
        def joined(event: PeerEvent) -> None:
            if event.liveness.value == "ok":
                tell(event)

        return joined


@mutant("told_under_the_lock", "KV-THR-12")
class ToldUnderTheLock(CommonKVManager):
    """An observer may call back into the manager: here it is told under the manager's lock, and hangs."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        observers = self._parts.observers._observers

        def tell(event: RoomEvent | PeerEvent) -> None:
            if isinstance(event, PeerEvent):
                observers.tell_peer(event)
            else:
                observers.tell_room(event)

        self._runner._tell = tell


@mutant("told_on_the_engines_thread", "KV-THR-13")
class ToldOnTheEnginesThread(Observed):
    """A slow observer holds up nobody: here the next call of the engine waits for it."""

    busy: threading.Lock

    @classmethod
    def observers(cls, given: Observers) -> Observers:
        cls.busy = threading.Lock()

        def slow(tell: Tell) -> Tell:
            def told(event: RoomEvent) -> None:
                with cls.busy:
                    tell(event)

            return told

        return Observers(tuple(map(slow, given.room)), given.peer)

    def create_receiver(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVReceiver:
        with self.busy:
            return super().create_receiver(bootstrap_addr, bootstrap_room)

    def create_sender(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVSender:
        with self.busy:
            return super().create_sender(bootstrap_addr, bootstrap_room)


# -- liveness ----------------------------------------------------------------------------------------------------------


class Watching(CommonKVManager):
    """A manager that judges its peers in a way of its own."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.change(self._machine)

    def change(self, machine: Machine) -> None:
        """Change the machine, before anything has happened."""
        raise NotImplementedError


@mutant("death_is_not_noticed", "KV-LIVE-3")
class DeathIsNotNoticed(Watching):
    """The rooms of a peer that died fail: here they wait for it."""

    def change(self, machine: Machine) -> None:
        machine.on_connection_lost = lambda *_args: machine._settle(_args[-1])  # type: ignore[method-assign]
        machine.on_connection_refused = lambda *_args: machine._settle(_args[-1])  # type: ignore[method-assign]
        machine._on_timer["probe"] = lambda *_args: None


@mutant("slow_is_dead", "KV-LIVE-4")
class SlowIsDead(Watching):
    """A peer that is slow and lives is not lost: here one missed probe is enough."""

    def change(self, machine: Machine) -> None:
        new_peer = machine._new_peer

        def impatient(*args: Any) -> Peer:
            peer = new_peer(*args)
            peer.liveness._dead_after = 1
            return peer

        machine._new_peer = impatient  # type: ignore[method-assign]


@mutant("suspects_stay_suspect", "KV-LIVE-5")
class SuspectsStaySuspect(Watching):
    """A suspect peer that answers again is fine again: here it is lost."""

    def change(self, machine: Machine) -> None:
        def lost(peer: Peer, now: float) -> None:
            machine._drop_peer(peer, FailureCode.PEER_LOST, "was suspect once", now)

        machine._peer_recovered = lost  # type: ignore[method-assign]


@mutant("death_frees_the_pages", "KV-LIVE-6")
class DeathFreesThePages(Watching):
    """That a peer is taken for dead proves nothing about its writes: here its rooms' pages are free then."""

    def change(self, machine: Machine) -> None:
        gone = machine._peer_gone

        def free(peer: Peer, links: list[Any], now: float) -> None:
            for link in links:
                link.exposed = False
            gone(peer, links, now)

        machine._peer_gone = free  # type: ignore[method-assign]


@mutant("death_of_one_fails_all", "KV-LIVE-7")
class DeathOfOneFailsAll(Watching):
    """The rooms of other peers do not notice a death: here all fail."""

    def change(self, machine: Machine) -> None:
        gone = machine._peer_gone

        def all_of_them(peer: Peer, links: list[Any], now: float) -> None:
            gone(peer, links, now)
            for room in list(machine.live.values()):
                if not room.ended and room.links:
                    machine._invalid(room, "another peer was lost", now)

        machine._peer_gone = all_of_them  # type: ignore[method-assign]


# -- looking in, and the end -------------------------------------------------------------------------------------------


@mutant("rooms_are_kept_in_a_list", "KV-CLEAR-9")
class RoomsAreKept(CommonKVManager):
    """The snapshot goes back to 0 when all rooms are cleared: here it counts every room that there ever was."""

    opened = 0

    def create_receiver(self, bootstrap_addr: str, bootstrap_room: int) -> BaseKVReceiver:
        self.opened += 1
        return super().create_receiver(bootstrap_addr, bootstrap_room)

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"rooms": self.opened}


@mutant("health_is_empty", "KV-END-11")
class HealthIsEmpty(CommonKVManager):
    """``health`` tells of each thread: here of none."""

    def health(self) -> dict[str, Any]:
        return {}


@mutant("manager_close_twice_raises", "KV-END-12")
class ManagerCloseTwiceRaises(CommonKVManager):
    """A manager's ``close`` is idempotent: here the second one raises."""

    def close(self) -> None:
        if self._closed:
            raise ManagerClosed("it is closed already")
        super().close()


@mutant("manager_close_leaves_rooms", "KV-END-13")
class ManagerCloseLeavesRooms(CommonKVManager):
    """``close`` ends every room (code closed): here those that are live stay as they are."""

    def close(self) -> None:
        self._machine.close = lambda now: self._machine._settle(now)  # type: ignore[method-assign]
        self.config = replace(self.config, close_timeout_s=0.05)
        super().close()


@mutant("manager_close_leaves_a_thread", "KV-END-14")
class ManagerCloseLeavesAThread(CommonKVManager):
    """``close`` joins every thread: here the control thread goes on."""

    def close(self) -> None:
        self._parts.control.close = lambda _deadline: True  # type: ignore[method-assign]
        super().close()


@mutant("manager_is_picklable", "KV-FAIL-17")
class ManagerIsPicklable(CommonKVManager):
    """A manager refuses to be pickled: here it becomes a text."""

    def __reduce__(self) -> Any:
        return (str, (repr(self),))

"""Backends that bring a manager of their own, and get it wrong."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from time import sleep
from typing import Any, ClassVar

from conformance.tests.mutants.base import mutant
from kv_core import (
    BackendRecord,
    BaseKVReceiver,
    BaseKVSender,
    FailureCode,
    KVArgs,
    Liveness,
    ManagerClosed,
    Role,
    RoomEvent,
    RoomEventKind,
    TransferConfig,
)
from kv_core.contract.observers import Observers
from kv_core.protocol.peers import Peer
from kv_core.protocol.rooms import Room
from kv_core.runtime import CommonKVManager

Tell = Callable[[Any], object]


class Opening(CommonKVManager):
    """A manager that opens rooms in a way of its own, on both sides."""

    def create_sender(
        self, bootstrap_addr: str, bootstrap_room: int, *, traceparent: str | None = None
    ) -> BaseKVSender:
        return self.opened(super().create_sender, bootstrap_addr, bootstrap_room)

    def create_receiver(
        self, bootstrap_addr: str, bootstrap_room: int, *, traceparent: str | None = None
    ) -> BaseKVReceiver:
        return self.opened(super().create_receiver, bootstrap_addr, bootstrap_room)

    def opened(self, create: Any, addr: Any, number: Any) -> Any:
        """What is done instead."""
        raise NotImplementedError


# -- rooms -------------------------------------------------------------------------------------------------------------


@mutant("wrong_address_raises", "KV-FAIL-4")
class WrongAddressRaises(Opening):
    """A bootstrap address that is none makes a failed room: here it raises."""

    def opened(self, create: Any, addr: Any, number: Any) -> Any:
        int(addr.rpartition(":")[2])
        return create(addr, number)


@mutant("duplicate_room_raises", "KV-FAIL-5")
class DuplicateRoomRaises(Opening):
    """A room that collides with a live one is a failed room: here it raises."""

    def opened(self, create: Any, addr: Any, number: Any) -> Any:
        if number in self._machine.table:
            raise ValueError(f"room {number} is open already")
        return create(addr, number)


@mutant("duplicate_room_ends_the_first", "KV-FAIL-5")
class DuplicateRoomEndsTheFirst(Opening):
    """The live room that another one collides with does not notice: here it fails."""

    def opened(self, create: Any, addr: Any, number: Any) -> Any:
        room = self._machine.table.get(number)
        if room is not None:
            self._runner.call(self._machine.abort, room, "opened again")
        return create(addr, number)


@mutant("opens_after_close", "KV-END-1")
class OpensAfterClose(Opening):
    """A closed manager opens no rooms (``ManagerClosed``): here it does, and they fail."""

    def opened(self, create: Any, addr: Any, number: Any) -> Any:
        try:
            return create(addr, number)
        except ManagerClosed:
            machine: Any = self._machine
            room: Room = self._runner.ask(machine.open, number, addr)
            kind: Any = self.sender_class if self.role is Role.PREFILL else self.receiver_class
            return kind(self._runner, room, self._checks)


@mutant("opening_is_for_one_thread", "KV-THR-1")
class OpeningIsForOneThread(Opening):
    """A manager may be used from any thread: here two that open rooms at the same time get the same one."""

    number: Any = None

    def opened(self, create: Any, addr: Any, number: Any) -> Any:
        self.number = number
        sleep(0.0005)  # gives up the GIL, as a native lookup does
        return create(addr, self.number)


@mutant("one_prefill_at_a_time", "KV-XFER-13")
class OnePrefillAtATime(Opening):
    """Several prefill instances may be in use at once: here the first one that was asked for is asked for all rooms."""

    first: Any = None

    def opened(self, create: Any, addr: Any, number: Any) -> Any:
        good = isinstance(addr, str) and addr.startswith("127.0.0.1:") and addr.rpartition(":")[2].isdigit()
        if self.role is Role.DECODE and good:
            self.first = self.first or addr
            addr = self.first
        return create(addr, number)


# -- settings ----------------------------------------------------------------------------------------------------------


class Settled(CommonKVManager):
    """A manager with other settings, or another description of the engine, than it is given."""

    @classmethod
    def create(
        cls, record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, observers: Observers
    ) -> CommonKVManager:
        return super().create(record, role, cls.described(args), cls.configured(config), observers)

    @classmethod
    def described(cls, args: KVArgs) -> KVArgs:
        """What is handed to core instead of the engine's."""
        return args

    @classmethod
    def configured(cls, config: TransferConfig) -> TransferConfig:
        """What is handed to core instead of the engine's."""
        return config


@mutant("layout_is_taken_for_granted", "KV-FAIL-8")
class LayoutIsTakenForGranted(Settled):
    """Both sides' dtypes and layouts are compared: here nobody is told of them."""

    @classmethod
    def described(cls, args: KVArgs) -> KVArgs:
        return replace(args, dtype="any", kv_layout="any")


@mutant("bootstrap_timeout_is_ignored", "KV-FAIL-9")
class BootstrapTimeoutIsIgnored(Settled):
    """A room for which nobody asks fails after bootstrap_timeout_s: here after five minutes, whatever was set."""

    @classmethod
    def configured(cls, config: TransferConfig) -> TransferConfig:
        return replace(config, bootstrap_timeout_s=300.0)


@mutant("any_number_of_rooms", "KV-FAIL-11")
class AnyNumberOfRooms(Settled):
    """One room more than max_rooms is a failed one: here there is no bound."""

    @classmethod
    def configured(cls, config: TransferConfig) -> TransferConfig:
        return replace(config, max_rooms=65_536)


@mutant("close_waits_for_everything", "KV-END-2")
class CloseWaitsForEverything(Settled):
    """``close`` waits for close_timeout_s at most: here until all is quiescent."""

    @classmethod
    def configured(cls, config: TransferConfig) -> TransferConfig:
        return replace(config, close_timeout_s=600.0)


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
        return Observers(tuple(map(cls.told, given.room)), given.peer)

    @classmethod
    def told(cls, tell: Tell) -> Tell:
        """What is called instead of a room observer."""
        return tell


@mutant("concluded_is_told_twice", "KV-THR-3")
class ConcludedIsToldTwice(Observed):
    """The end of a room is told once: here twice."""

    @classmethod
    def told(cls, tell: Tell) -> Tell:
        def twice(event: RoomEvent) -> None:
            tell(event)
            if event.kind is RoomEventKind.CONCLUDED:
                tell(event)

        return twice


@mutant("released_before_concluded", "KV-THR-3")
class ReleasedBeforeConcluded(Observed):
    """Observers hear of a room in order: here CONCLUDED comes after RELEASED."""

    @classmethod
    def told(cls, tell: Tell) -> Tell:
        held: dict[int, RoomEvent] = {}

        def swapped(event: RoomEvent) -> None:
            if event.kind is RoomEventKind.CONCLUDED:
                held[event.life] = event
                return
            tell(event)
            if event.kind is RoomEventKind.RELEASED and event.life in held:
                tell(held.pop(event.life))

        return swapped


@mutant("concluded_without_its_metric", "KV-THR-3")
class ConcludedWithoutItsMetric(Observed):
    """CONCLUDED carries the metric: here it does not."""

    @classmethod
    def told(cls, tell: Tell) -> Tell:
        return lambda event: tell(replace(event, metric=None))


@mutant("told_under_the_lock", "KV-THR-4")
class ToldUnderTheLock(CommonKVManager):
    """An observer may call back into the manager: here it is told under the manager's lock, and hangs."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        observers = self._parts.observers._observers

        def tell(event: Any) -> None:
            (observers.tell_room if isinstance(event, RoomEvent) else observers.tell_peer)(event)

        self._runner._tell = tell


@mutant("observer_stops_the_others", "KV-THR-5")
class ObserverStopsTheOthers(Observed):
    """An observer that raises stops no other: here nobody after it is told."""

    @classmethod
    def observers(cls, given: Observers) -> Observers:
        def all_of_them(event: RoomEvent) -> None:
            for tell in given.room:
                tell(event)

        return Observers((all_of_them,) if given.room else (), given.peer)


@mutant("observer_stops_itself", "KV-THR-5")
class ObserverStopsItself(Observed):
    """An observer's SystemExit stops nothing: here it ends the thread that tells all of them."""

    @classmethod
    def observers(cls, given: Observers) -> Observers:
        ended: list[BaseException] = []

        def guarded(tell: Tell) -> Tell:
            def told(event: RoomEvent) -> None:
                if ended:
                    return
                try:
                    tell(event)
                except SystemExit as error:
                    ended.append(error)

            return told

        return Observers(tuple(map(guarded, given.room)), tuple(map(guarded, given.peer)))


@mutant("told_by_the_caller", "KV-THR-9")
class ToldByTheCaller(CommonKVManager):
    """Observers are told on a thread of their own: here on whichever thread something was decided, the engine's, too."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        runner: Any = self._runner
        observers, untold = self._parts.observers._observers, deque[Any]()
        after = runner._after

        def told(wake: bool, later: list[Any]) -> None:
            after(wake, later)
            while untold:
                event = untold.popleft()
                (observers.tell_room if isinstance(event, RoomEvent) else observers.tell_peer)(event)

        runner._after, runner._tell = told, untold.append


@mutant("losses_are_not_told", "KV-THR-10")
class LossesAreNotTold(Observed):
    """Observers hear of a peer that was lost: here only of those that join."""

    @classmethod
    def observers(cls, given: Observers) -> Observers:
        def joined(tell: Tell) -> Tell:
            return lambda event: tell(event) if event.liveness is Liveness.OK else None

        return Observers(given.room, tuple(map(joined, given.peer)))


@mutant("health_is_empty", "KV-THR-11")
class HealthIsEmpty(CommonKVManager):
    """``health`` tells of each thread: here of none."""

    def health(self) -> dict[str, Any]:
        return {}


# -- liveness ----------------------------------------------------------------------------------------------------------


class Watching(CommonKVManager):
    """A manager that judges its peers in a way of its own."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.change(self._machine)

    def change(self, machine: Any) -> None:
        """Change the machine, before anything has happened."""
        raise NotImplementedError


def nothing(machine: Any) -> Callable[..., Any]:
    """A public method of a machine that changes nothing."""
    return lambda *args: machine._settle(args[-1])


@mutant("death_is_not_noticed", "KV-LIVE-3")
class DeathIsNotNoticed(Watching):
    """The rooms of a peer that died fail: here they wait for it."""

    def change(self, machine: Any) -> None:
        machine.on_connection_lost = machine.on_connection_refused = nothing(machine)
        machine._on_timer["probe"] = lambda *_args: None


@mutant("death_of_a_writer_is_not_noticed", "KV-LIVE-2")
class DeathOfAWriterIsNotNoticed(DeathIsNotNoticed):
    """The rooms of a prefill process that died fail: here decode waits for it, and prefill does not wait for decode."""

    def change(self, machine: Any) -> None:
        if machine.me.role is Role.DECODE:
            super().change(machine)


@mutant("death_of_one_fails_all", "KV-LIVE-1")
class DeathOfOneFailsAll(Watching):
    """The rooms of other peers do not notice a death: here all fail."""

    def change(self, machine: Any) -> None:
        gone = machine._peer_gone

        def all_of_them(peer: Peer, links: list[Any], now: float) -> None:
            gone(peer, links, now)
            for room in list(machine.live.values()):
                if not room.ended and room.links and machine.me.role is Role.PREFILL:
                    machine._invalid(room, "another peer was lost", now)

        machine._peer_gone = all_of_them


@mutant("death_frees_the_pages", "KV-ABORT-8")
class DeathFreesThePages(Watching):
    """That a peer is taken for dead proves nothing about its writes: here its rooms' pages are free then."""

    def change(self, machine: Any) -> None:
        gone = machine._peer_gone

        def free(peer: Peer, links: list[Any], now: float) -> None:
            for link in links:
                link.exposed = False
            gone(peer, links, now)

        machine._peer_gone = free


@mutant("one_miss_is_death", "KV-LIVE-4")
class OneMissIsDeath(Watching):
    """A peer that is slow and lives is not lost: here one missed probe is enough."""

    def change(self, machine: Any) -> None:
        new_peer = machine._new_peer

        def impatient(*args: Any) -> Peer:
            peer: Peer = new_peer(*args)
            peer.liveness._dead_after = 1
            return peer

        machine._new_peer = impatient


@mutant("suspects_are_dropped", "KV-LIVE-5")
class SuspectsAreDropped(Watching):
    """A suspect peer that answers again is fine again: here it is lost."""

    def change(self, machine: Any) -> None:
        def lost(peer: Peer, now: float) -> None:
            machine._drop_peer(peer, FailureCode.PEER_LOST, "was suspect once", now)

        machine._peer_recovered = lost


@mutant("peers_by_their_address", "KV-RST-1")
class PeersByTheirAddress(Watching):
    """A process that takes the place of another one is a new peer: here nobody is let in at an address that was a peer's once."""

    def change(self, machine: Any) -> None:
        hello, names = machine._on_hello, dict[str, str]()

        def by_address(packet: Any, now: float) -> None:
            if names.setdefault(packet.introduction.endpoint, packet.sender) == packet.sender:
                hello(packet, now)

        machine._on_hello = by_address


@mutant("route_is_asked_for_once", "KV-RST-2")
class RouteIsAskedForOnce(Watching):
    """A restarted prefill instance is found at its address: here the first answer of the bootstrap server holds for ever."""

    def change(self, machine: Any) -> None:
        if machine.me.role is Role.DECODE:
            on_route = machine.on_route
            known: dict[str, Any] = {}

            def first(addr: str, route: Any, now: float) -> Any:
                ready = getattr(route, "ranks", None)
                if ready:
                    known.setdefault(addr, route)
                return on_route(addr, known.get(addr, route), now)

            machine.on_route = first


# -- looking in, and the end -------------------------------------------------------------------------------------------


@mutant("manager_can_be_copied", "KV-FAIL-10")
class ManagerCanBeCopied(CommonKVManager):
    """A manager refuses to be pickled: here it becomes a text."""

    def __reduce__(self) -> Any:
        return (str, (repr(self),))


@mutant("manager_close_twice_raises", "KV-END-1")
class ManagerCloseTwiceRaises(CommonKVManager):
    """``close`` is idempotent: here the third one raises."""

    closings = 0

    def close(self) -> None:
        self.closings += 1
        if self.closings == 3:
            raise ManagerClosed("it is closed already")
        super().close()


@mutant("close_leaves_rooms", "KV-END-1")
class CloseLeavesRooms(Settled):
    """``close`` ends every room with code closed: here those that are live stay as they are."""

    @classmethod
    def configured(cls, config: TransferConfig) -> TransferConfig:
        return replace(config, close_timeout_s=0.05)

    def close(self) -> None:
        machine: Any = self._machine
        machine.close = machine._settle
        super().close()


@mutant("close_leaves_a_thread", "KV-END-3")
class CloseLeavesAThread(CommonKVManager):
    """``close`` joins every thread: here one goes on that would have written the log."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        threading.Thread(target=threading.Event().wait, name="kv-log").start()


@mutant("close_leaves_a_reader", "KV-END-5")
class CloseLeavesAReader(CommonKVManager):
    """After ``close`` nobody touches the memory: here a thread that keeps it from being paged out goes on."""

    reading: ClassVar[list[threading.Thread]] = []

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        region = self._parts.rules.layout.regions()[0]

        def read() -> None:
            while True:
                ctypes.string_at(region.address, 1)
                sleep(0.05)

        self.reading.append(threading.Thread(target=read, name="kv-warm"))
        self.reading[-1].start()

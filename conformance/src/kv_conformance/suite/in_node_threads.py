"""Threads and observers inside of a node."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from resource import RUSAGE_SELF, getrusage
from time import monotonic, sleep
from typing import Any

from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.nodes.wire_server import Pairs, WireServer
from kv_core import (
    BaseKVReceiver,
    BaseKVSender,
    Failure,
    KVPoll,
    PeerEvent,
    Role,
    RoomEvent,
    RoomEventKind,
    TransferState,
)

ENGINES = 16
PAUSE_S = 0.001
LONG_S = 20.0
"""A wait that nobody ends takes so long; one that ended before half of it was ended by somebody."""
Handle = BaseKVSender | BaseKVReceiver


def at_once(threads: int, action: Callable[[int], None]) -> None:
    """Run this in so many threads that begin at the same time; raises what the first of them raised."""
    begin = threading.Barrier(threads)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            begin.wait()
            action(number)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is shown
            errors.append(error)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


# -- managers and handles ------------------------------------------------------------------------------------------------


class Crew:
    """A few threads that take turns: each call is made by another one than the last."""

    def __init__(self, size: int = 3) -> None:
        self._threads = itertools.cycle([ThreadPoolExecutor(1, f"engine-{number}") for number in range(size)])
        self._size = size

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function on the next thread, and wait for it; what it returned, or raised."""
        return next(self._threads).submit(function, *args).result()

    def leave(self) -> None:
        """End the threads."""
        for thread in itertools.islice(self._threads, self._size):
            thread.shutdown()


def room_from_many_threads(
    server: FaceServer, addr: str, room: int, pages: Sequence[int], limit_s: float
) -> tuple[KVPoll, Failure | None, bool]:  # fmt: skip
    """One side of a room, from its opening to its last call, with each call from another thread: its last state, its failure, and
    whether its pages may be used again.
    """
    deadline, elsewhere = monotonic() + limit_s, Crew()
    prefill = server.order.role is Role.PREFILL
    handle: Handle = elsewhere(server.manager.create_sender if prefill else server.manager.create_receiver, addr, room)
    if isinstance(handle, BaseKVSender):
        elsewhere(handle.init, len(pages))
        for page in pages:
            elsewhere(handle.send, [page])
    else:
        elsewhere(handle.init)
        elsewhere(handle.send_metadata, pages)
    while not elsewhere(lambda: handle.poll().terminal) and monotonic() < deadline:
        sleep(PAUSE_S)
    elsewhere(handle.get_transfer_metric)
    elsewhere(handle.clear)
    while not elsewhere(handle.is_release_safe) and monotonic() < deadline:
        sleep(PAUSE_S)
    end = elsewhere(handle.poll), elsewhere(handle.failure), elsewhere(handle.is_release_safe)
    elsewhere.leave()
    return end


def look_from_many_threads(server: FaceServer, addr: str, first: int, times: int) -> int:
    """Ask the manager everything, and open and drop rooms, in many threads at once; how many rooms were opened."""
    create = server.manager.create_sender if server.order.role is Role.PREFILL else server.manager.create_receiver
    opened: SimpleQueue[int] = SimpleQueue()

    def look(number: int) -> None:
        for turn in range(times):
            server.manager.snapshot()
            server.manager.health()
            handle = create(addr, first + number * times + turn)
            handle.poll()
            handle.clear()
            opened.put(handle.room)

    at_once(ENGINES, look)
    return opened.qsize()


# -- observers -----------------------------------------------------------------------------------------------------------


class Raising:
    """An observer that raises each time, something else in turn."""

    def __init__(self) -> None:
        self.calls = 0

    def kv_room_event(self, event: RoomEvent) -> None:
        """See the hook."""
        self.calls += 1
        raise (ValueError("no"), SystemExit(3), AssertionError("no"))[self.calls % 3]

    def kv_peer_event(self, event: PeerEvent) -> None:
        """See the hook."""
        self.calls += 1
        raise SystemExit(4)


def raising(_server: FaceServer) -> Raising:
    """Makes one."""
    return Raising()


class Slow:
    """An observer that does not come back before it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.entered = threading.Event()

    def kv_room_event(self, event: RoomEvent) -> None:
        """See the hook."""
        self.entered.set()
        self.let_go.wait()


def slow(_server: FaceServer) -> Slow:
    """Makes one."""
    return Slow()


def let_go(server: FaceServer) -> bool:
    """Let the slow observer go on; whether it was told anything before."""
    observer = server.observers[0]
    assert isinstance(observer, Slow), "the node was made with one"
    entered = observer.entered.is_set()
    observer.let_go.set()
    return entered


class Busybody:
    """An observer that does with its manager whatever an engine can do, while it is told something."""

    def __init__(self, server: FaceServer) -> None:
        self.server = server
        self.addr = ""
        self.mine = threading.RLock()  # a handle is for one thread at a time
        self.new_rooms = iter(range(1 << 40, 1 << 41))
        self.watched: dict[int, Handle] = {}
        self.done: list[RoomEventKind] = []
        self.errors: list[str] = []
        self.concluded = threading.Event()

    def kv_room_event(self, event: RoomEvent) -> None:
        """See the hook."""
        with self.mine:
            handle = self.watched.get(event.room)
            if handle is None:
                return
            try:
                self._meddle(event, handle)
            except BaseException as error:  # noqa: BLE001 - shown by the check: here it would only be logged
                self.errors.append(f"{event.kind.value}: {type(error).__name__}: {error}")
            self.done.append(event.kind)
        if event.kind is RoomEventKind.CONCLUDED:
            self.concluded.set()

    def _meddle(self, event: RoomEvent, handle: Handle) -> None:
        manager = self.server.manager
        manager.snapshot()
        manager.health()
        handle.poll()
        prefill = self.server.order.role is Role.PREFILL
        another = (manager.create_sender if prefill else manager.create_receiver)(self.addr, next(self.new_rooms))
        another.init(*([1] if prefill else []))
        another.abort("the observer gives it up")
        another.clear()
        if event.kind is RoomEventKind.CONCLUDED:
            handle.get_transfer_metric()
            handle.failure()
            handle.is_release_safe()
            handle.abort("the observer is late")
            handle.clear()


def busybody(server: FaceServer) -> Busybody:
    """Makes one."""
    return Busybody(server)


def meddled_room(
    server: FaceServer, addr: str, room: int, pages: Sequence[int], limit_s: float
) -> tuple[bool, list[RoomEventKind], list[str]]:  # fmt: skip
    """One side of a room, with a ``Busybody``, which alone touches the handle after the last call. Whether it was told of the
    room's end in time, what it was told, and what was raised.
    """
    observer = server.observers[0]
    assert isinstance(observer, Busybody), "the node was made with one"
    observer.addr = addr
    manager = server.manager
    with observer.mine:
        if server.order.role is Role.PREFILL:
            sender = manager.create_sender(addr, room)
            observer.watched[room] = sender
            sender.init(len(pages))
            for page in pages:
                sender.send([page])
        else:
            receiver = manager.create_receiver(addr, room)
            observer.watched[room] = receiver
            receiver.init()
            receiver.send_metadata(pages)
    told = observer.concluded.wait(limit_s)
    return told, observer.done, observer.errors


# -- transports ----------------------------------------------------------------------------------------------------------


def woken_waits(server: WireServer, rounds: int) -> list[str]:
    """Wait, and be woken before and during the wait, by other threads; what took as long as if nobody had."""
    transport = server.transport
    slept: list[str] = []
    turns: SimpleQueue[bool] = SimpleQueue()

    def wait(when: str) -> None:
        begin = monotonic()
        transport.wait(LONG_S)
        if monotonic() - begin > LONG_S / 2:
            slept.append(when)

    def ring() -> None:
        while turns.get():
            transport.wake()

    def ring_later() -> None:
        sleep(0.1)  # the other thread is in wait() by then
        transport.wake()

    transport.wake()
    wait("wake() came before wait()")
    later = threading.Thread(target=ring_later)
    later.start()
    wait("wake() came during wait()")
    later.join()
    ringer = threading.Thread(target=ring)
    ringer.start()
    for _ in range(rounds):
        if slept:
            break
        turns.put(True)
        wait("wake() came as wait() began")
    turns.put(False)
    ringer.join()
    return slept


def storm(server: WireServer, times: int) -> int:
    """Many threads wake at once while nobody waits; how many of the waits after the first few end before their time."""

    def ring(_number: int) -> None:
        for _ in range(times):
            server.transport.wake()

    at_once(ENGINES, ring)
    idle_waits(server, 0.01, 10)
    return idle_waits(server, 0.02, 10)


def idle_waits(server: WireServer, seconds: float, times: int) -> int:
    """Wait so often for so long, with nothing to wait for; how many waits ended long before their time."""
    early = 0
    for _ in range(times):
        begin = monotonic()
        server.transport.wait(seconds)
        early += monotonic() - begin < seconds / 4
    return early


def waits_for_a_transfer(server: WireServer, prepared: int, kv: Pairs, times: int) -> list[str]:
    """Submit and wait for each; which of them had ended and nobody was told."""
    wrong: list[str] = []
    for turn in range(times):
        [number] = server.submit(prepared, kv)
        begin = monotonic()
        while not (records := [r for r in server.progress([number]) if r.state is not TransferState.PENDING]):
            server.transport.wait(LONG_S)
            if monotonic() - begin > LONG_S / 2:
                wrong.append(f"transfer {turn + 1} of {times}")
                break
        wrong += [
            f"{record.state.value}: {record.error}" for record in records if record.state is not TransferState.DONE
        ]
        server.release([number])
        if wrong:
            break
    return wrong


def idle_cost(server: WireServer, seconds: float) -> float:
    """Processor seconds that this process takes while its owner thread waits so long and nothing happens."""
    before = getrusage(RUSAGE_SELF)
    deadline = monotonic() + seconds
    while (left := deadline - monotonic()) > 0.0:
        server.transport.wait(min(left, 1.0))
    after = getrusage(RUSAGE_SELF)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)

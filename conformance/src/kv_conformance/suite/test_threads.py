"""KV-THR: threads and observers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kv_conformance.catalog import Level, check
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Room
from kv_conformance.nodes.memory import Shape
from kv_conformance.suite.held import BIG
from kv_conformance.suite.in_node_threads import (
    ENGINES,
    busybody,
    idle_cost,
    let_go,
    look_from_many_threads,
    meddled_room,
    raising,
    room_from_many_threads,
    slow,
    storm,
    waits_for_a_transfer,
    woken_waits,
)
from kv_conformance.suite.playing import Part, Story, digest_of, play_in_threads, went_well
from kv_core import KVPoll, KVTransferMetric, Liveness, RoomEvent, RoomEventKind

OPENED, POSTED, CONCLUDED, RELEASED = (
    RoomEventKind.OPENED, RoomEventKind.CHUNK_POSTED, RoomEventKind.CONCLUDED, RoomEventKind.RELEASED,
)  # fmt: skip
IDLE_S = 1.0


@check("KV-THR-1")
def test_many_threads_each_with_rooms_of_its_own(env: Env) -> None:
    """A manager's methods may be called from any thread: rooms that many threads open, drive and clear at the same time are all
    right, and no byte of one is in another's pages.

    If this fails, look at what handles share: buffers, counters, the list of what is outstanding.
    """
    each, pages = 3, 2
    pair = env.pair(Shape(kv=(2, ENGINES * each * pages, 2048)))
    targets = np.arange(ENGINES * each * pages).reshape(ENGINES, each, pages)
    sources = env.random.permutation(targets.size).reshape(targets.shape)
    expected = pair.decode.memory.image()
    expected.take(pair.prefill.memory, targets.ravel(), sources.ravel())
    numbers = np.arange(ENGINES * each).reshape(ENGINES, each)
    mine, theirs = (
        [[Part(int(n), p, chunks) for n, p in zip(*row, strict=True)] for row in zip(numbers, of, strict=True)]
        for of, chunks in ((sources, 2), (targets, 1))
    )
    pair.decode.begin(play_in_threads, pair.addr, theirs, env.patience_s)
    pair.prefill.begin(play_in_threads, pair.addr, mine, env.patience_s)
    sent: list[list[Story]] = pair.prefill.finish(2 * env.patience_s)
    got: list[list[Story]] = pair.decode.finish(2 * env.patience_s)
    for row, (one, other) in enumerate(zip(sent, got, strict=True)):
        went_well(list(zip(one, other, strict=True)))
        for place, story in enumerate(other):
            wanted = digest_of(pair.prefill.memory, sources[row, place])
            assert story.digest == wanted, f"room {story.room}: its pages were not right at the moment of Success"
    pair.compare(expected)


@check("KV-THR-2", gate=False)
def test_no_thread_is_special(env: Env) -> None:
    """A handle may be used from any thread, one at a time, and a manager from many at once: snapshot(), health(), opening and
    dropping rooms.

    If this fails, look for what belongs to the thread that made it: an event loop, a thread-local value, a lock's owner.
    """
    pair = env.pair(Shape(kv=(2, 32, 512)))
    source, target = [5, 6, 7], [9, 1, 4]
    expected = pair.expectation(source, target)
    number = pair.number()
    for node, pages in ((pair.decode, target), (pair.prefill, source)):
        node.begin(room_from_many_threads, pair.addr, number, pages, env.patience_s)
    for node in (pair.prefill, pair.decode):
        state, failure, safe = node.finish(env.patience_s)
        name = node.process.name
        assert state is KVPoll.Success, (
            f"{name}: each call came from another thread, and the room is {state.name}: {failure}"
        )
        assert safe, f"{name}: each call came from another thread, and is_release_safe() is still False"
    pair.compare(expected)
    for node in (pair.decode, pair.prefill):
        node.begin(look_from_many_threads, pair.addr, 1000, 8)
    for node in (pair.decode, pair.prefill):
        opened = node.finish(env.patience_s)
        assert opened == 8 * ENGINES, f"{node.process.name}: {opened} rooms were opened, expected {8 * ENGINES}"
    pair.good_room()
    for node in (pair.decode, pair.prefill):
        env.wait_until(lambda node=node: not node.unrest(), f"{node.process.name} is at rest")  # type: ignore[misc]


@check("KV-THR-3")
def test_observers_are_told_in_order_and_once(env: Env) -> None:
    """Observers are told of each room, in order and once: OPENED, each chunk that was posted, CONCLUDED with the handle's own
    metric or failure, and RELEASED when its pages may be used again; lives of one number differ.

    If this fails, look at from where events are told: from one place for each, in the order in which things were decided.
    """
    observed = {"observed": True}
    pair = env.pair(prefill=observed, decode=observed)
    good = pair.move([1, 2, 3], [4, 5, 6], chunks=3, clear=False)
    for room in good:
        room.clear()
    again = pair.begin([1, 2], [7, 8], room=good[0].room)
    again[1].abort("the check gives it up")
    again[0].failed()
    lonely = pair.prefill.open(pair.addr, pair.number()), pair.decode.open(pair.addr, pair.number())
    cases = [
        (good[0], 0, [OPENED, POSTED, POSTED, POSTED, CONCLUDED, RELEASED]), (good[1], 0, [OPENED, CONCLUDED, RELEASED]),
        (again[0], 1, [OPENED, CONCLUDED, RELEASED]), (again[1], 1, [OPENED, CONCLUDED, RELEASED]),
        (lonely[0], 0, [OPENED, CONCLUDED, RELEASED]), (lonely[1], 0, [OPENED, CONCLUDED, RELEASED]),
    ]  # fmt: skip
    for room in (*again, *lonely):
        room.clear()
    for room, life, kinds in cases:
        _was_told(env, room, life, kinds)


def _was_told(env: Env, room: Room, life: int, kinds: list[RoomEventKind]) -> None:
    """The events of the n-th life of the room's number at its node."""
    what = f"{room.node.process.name}, room {room.room}"

    def lives() -> dict[int, list[RoomEvent]]:
        found: dict[int, list[RoomEvent]] = {}
        for event in room.node.events()[0]:
            if event.room == room.room:
                found.setdefault(event.life, []).append(event)
        return found

    def told() -> list[RoomEvent]:
        return [*lives().values(), *([[]] * (life + 1))][life]

    env.wait_until(lambda: len(told()) >= len(kinds), f"{what}: observers are told {[kind.value for kind in kinds]}")
    events, look = told(), room.look()
    seen = [event.kind.value for event in events]
    assert seen == [kind.value for kind in kinds], (
        f"{what}: observers were told {seen}, expected {[k.value for k in kinds]}"
    )
    times = [event.time_s for event in events]
    assert times == sorted(times), f"{what}: times of its events run backwards: {times}"
    side, role = room.node.process.name.rpartition("-")[0], {event.role.value for event in events}
    assert role == {side}, f"{what}: events of a {side} manager have role {role}"
    assert {event.backend for event in events} == {env.backend}, f"{what}: events name the backends {events}"
    concluded = events[kinds.index(CONCLUDED)]
    ended = (concluded.state, concluded.failure, concluded.metric or KVTransferMetric())
    assert ended == (look.state, look.failure, look.metric), (
        f"{what}: CONCLUDED came with {ended}, the handle says {look}"
    )
    assert look.release_safe, f"{what}: RELEASED was told, and is_release_safe() is False"


@check("KV-THR-4")
def test_an_observer_may_use_the_manager(env: Env) -> None:
    """An observer may do from its call whatever an engine may do: poll, abort and clear the room that it is told of, look into the
    manager, open and drop rooms. Nobody waits for ever.

    If this fails, look for a lock that is held, or a queue that is waited for, while observers are told.
    """
    pair = env.pair(prefill={"observer": busybody}, decode={"observer": busybody})
    source, target = [1, 2, 3], [6, 5, 4]
    expected = pair.expectation(source, target)
    number = pair.number()
    for node, pages in ((pair.decode, target), (pair.prefill, source)):
        node.begin(meddled_room, pair.addr, number, pages, env.patience_s)
    for node, kinds in ((pair.decode, [OPENED, CONCLUDED]), (pair.prefill, [OPENED, *[POSTED] * 3, CONCLUDED])):
        told, done, errors = node.finish(env.patience_s)
        name = node.process.name
        assert not errors, f"{name}: what an observer did raised: {errors}"
        assert told, (
            f"{name}: an observer that uses the manager was told {[k.value for k in done]}, and then nothing more"
        )
        assert done[: len(kinds)] == kinds, f"{name}: the observer was told {[k.value for k in done]}"
    pair.compare(expected)
    pair.good_room()


@check("KV-THR-5")
def test_an_observer_that_raises_stops_nobody(env: Env) -> None:
    """An exception of an observer, SystemExit too, is logged and stops no other observer, no room, and nothing that comes after.

    If this fails, look at what is called around the observers: each needs a guard of its own, also against BaseException.
    """
    observed = {"observed": True, "observer": raising}
    pair = env.pair(prefill=observed, decode=observed)
    rooms = [pair.move([n, n + 1], [n + 2, n + 3], clear=False) for n in range(4)]
    for number, node in enumerate((pair.prefill, pair.decode)):
        for both in rooms:
            _released(env, node, both[number].room)
    for node in (pair.prefill, pair.decode):
        assert node.events()[1], f"{node.process.name}: the observer after one that raises was told of no peer"
    pair.good_room()


def _released(env: Env, node: FaceNode, room: int) -> None:
    """Wait until the observer that keeps the events was told the room's last one."""

    def kinds() -> list[RoomEventKind]:
        return [event.kind for event in node.events()[0] if event.room == room]

    what = f"{node.process.name}: an observer after one that misbehaves is told that room {room} is released"
    env.wait_until(lambda: kinds()[-1:] == [RELEASED], what)
    expected = [CONCLUDED, RELEASED]
    assert kinds()[-2:] == expected, f"{node.process.name}: observers were told {[kind.value for kind in kinds()]}"


@check("KV-THR-6")
def test_wake_ends_a_wait(env: Env) -> None:
    """wake() makes a current wait() or the next one return at once, from any thread and however often it is called; it never
    blocks, and one wake ends one wait: afterwards wait() lasts until its time is over.

    If this fails, look for a wake that is lost between two waits, a pipe that fills up, or bytes in it that are not taken out.
    """
    writer, target = env.ends()
    road = writer.meet(target)
    writer.write(road, ([1], [2]))
    for end in (writer, target):
        name = end.process.name
        slept = end.call(woken_waits, 200, limit_s=env.patience_s)
        assert not slept, f"{name}: wait() went on although {slept[0]}"
        early = end.call(storm, 5000)
        assert early <= 2, (
            f"{name}: many wakes came, and long after them {early} of 10 waits ended at once with nothing to do"
        )
    writer.write(road, ([1], [3]))


@check("KV-THR-7")
def test_a_transfer_that_ends_ends_the_wait(env: Env) -> None:
    """wait() returns when a transfer may have moved on: an owner thread that waits long is told of each end in time.

    If this fails, look at what the engine gives to wait for (a descriptor, a callback), or ask it inside wait() with pauses.
    """
    writer, target = env.ends(BIG)
    road = writer.meet(target)
    pages = BIG.kv[1]
    wrong = writer.call(waits_for_a_transfer, road.prepared, (range(pages), range(pages)), 4)
    assert not wrong, f"wait() lasted until its time was over, or the transfer failed: {wrong[0]}"


@check("KV-THR-8", level=Level.SHOULD, gate=False)
def test_an_idle_transport_costs_next_to_nothing(env: Env) -> None:
    """wait() is no busy loop, and nothing else of a transport is: while nothing moves, a process should need next to no
    processor time.

    If this fails, look for threads of the engine that spin, and for a descriptor that stays readable when it was waited for.
    """
    writer, target = env.ends()
    writer.write(writer.meet(target), ([1], [2]))
    for end in (writer, target):
        end.process.tell("call", idle_cost, IDLE_S)
    for end in (writer, target):
        cost = end.process.answer("call", IDLE_S)
        assert cost < IDLE_S / 10, (
            f"{end.process.name} needed {cost:.2f} s of processor time in {IDLE_S:.0f} s of doing nothing"
        )


@check("KV-THR-9", reaches=("an observer did not come back",))
def test_a_slow_observer_holds_nobody_up(env: Env) -> None:
    """Observers are told on a thread of their own: one that does not come back holds up no call of the engine and no room, and is
    told what it missed afterwards.

    If this fails, look at who waits for the observers: neither the engine's thread nor the control thread may.
    """
    late = {"observed": True, "observer": slow}
    pair = env.pair(prefill=late, decode=late)
    rooms = [pair.move([n, n + 1], [n + 2, n + 3], chunks=2, clear=False) for n in range(3)]
    held = [node.events()[0] for node in (pair.prefill, pair.decode)]
    entered = [node.call(let_go) for node in (pair.prefill, pair.decode)]
    if all(entered) and not any(held):
        env.reached("an observer did not come back")
    for number, node in enumerate((pair.prefill, pair.decode)):
        for both in rooms:
            _released(env, node, both[number].room)


@check("KV-THR-10")
def test_observers_are_told_of_peers(env: Env) -> None:
    """Observers are told of a peer that has joined (OK), and of one that was lost (DEAD), with the reason.

    If this fails, look at what is told when a session begins, and when it ends.
    """
    observed = {"observed": True}
    pair = env.pair(prefill=observed, decode=observed)
    pair.good_room()
    pair.decode.close()
    env.wait_until(
        lambda: Liveness.DEAD in [event.liveness for event in pair.prefill.events()[1]],
        "prefill's observer is told that decode, which has closed its manager, is lost",
    )
    events = pair.prefill.events()[1]
    assert events[0].liveness is Liveness.OK, f"prefill's observer was told first: {events[0]}"
    assert events[-1].reason, f"a peer was lost, and the event has no reason: {events[-1]}"
    assert len({event.peer for event in events}) == 1, f"there was one peer, and events name several: {events}"
    joined = pair.decode.events()[1]
    assert [e.liveness for e in joined[:1]] == [Liveness.OK], f"decode's observer was told of its peer: {joined}"


@check("KV-THR-11")
def test_health_tells_of_every_thread(env: Env) -> None:
    """health() tells of each of the manager's threads whether it is alive, how long ago it made progress, and how many exceptions
    it survived; after close() none is alive.

    If this fails, look at which threads the manager's parts start, and whether each is named there.
    """
    pair = env.pair()
    pair.good_room()
    for node in (pair.prefill, pair.decode):
        name, health = node.process.name, node.process.ask("health")
        assert health, f"{name}: a manager that works has threads, and health() is {health!r}"
        for thread, told in health.items():
            _tells(f"{name}, thread {thread!r}", told)
        node.close()
        alive = [thread for thread, told in node.process.ask("health").items() if told.get("alive")]
        assert not alive, f"{name}: after close() these threads are alive: {alive}"


def _tells(thread: str, told: object) -> None:
    """What health() says of one thread of a manager that works."""
    assert isinstance(told, Mapping), f"{thread}: health() says {told!r}, expected a mapping"
    assert told.get("alive") is True, f"{thread} of a manager that works is not alive: {told}"
    ages = [value for key, value in told.items() if key.endswith("_s")]
    assert ages, f"{thread}: health() does not say how many seconds ago it made progress: {told}"
    assert all(age >= 0.0 for age in ages), f"{thread} made progress in the future: {told}"
    assert told.get("exceptions") == 0, f"{thread}: nothing went wrong, and it does not say 0 exceptions: {told}"

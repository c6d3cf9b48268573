"""KV-CLEAR: clear()."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import Pair, Room
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.suite.held import fly, unchanged
from kv_conformance.suite.in_node_clear import left_behind
from kv_conformance.suite.in_node_close import Holding
from kv_conformance.suite.playing import Abort, Part, play_both
from kv_core import FailureCode, KVPoll

MANY = 150
NOISE = 8 << 20
"""Bytes by which a process may grow for an allocator's reasons."""


@check("KV-CLEAR-1")
def test_it_frees_everything_that_a_room_holds(env: Env) -> None:
    """When its rooms are cleared and quiescent, every count of snapshot() is 0 on both sides, however the rooms had ended, and
    those that were cleared while they were alive.

    If this fails, look at what is kept for a room by its number or its handle, and which way of ending forgets to drop it.
    """
    pair = env.pair()
    rooms = [*pair.move([1, 2], [3, 4], clear=False), *_ended(pair), *_alive(pair)]
    rooms += [pair.prefill.open(pair.addr, rooms[0].room), pair.decode.open(pair.addr, -1)]
    for node in (pair.prefill, pair.decode):
        assert node.unrest(), (
            f"{node.process.name}: rooms are open and alive, and snapshot() counts nothing: {node.snapshot()}"
        )
    for room in rooms:
        room.clear()
    _comes_to_rest(env, pair)
    pair.good_room()
    _comes_to_rest(env, pair)


def _comes_to_rest(env: Env, pair: Pair) -> None:
    for node in (pair.prefill, pair.decode):
        try:
            env.wait_until(lambda node=node: not node.unrest(), "rest")  # type: ignore[misc]
        except AssertionError:
            left = node.unrest()
            raise AssertionError(
                f"{node.process.name}: all rooms are cleared, and snapshot() still has {left}"
            ) from None


def _ended(pair: Pair) -> list[Room]:
    """Rooms that have failed: aborted by prefill, aborted by decode, of different sizes."""
    rooms: list[Room] = []
    for who in range(2):
        both = pair.begin([1, 2], [3, 4])
        both[who].abort("the check gives it up")
        both[1 - who].failed()
        rooms += both
    both = pair.begin([1, 2, 3], [3, 4])
    for room in both:
        room.failed()
    return [*rooms, *both]


def _alive(pair: Pair) -> list[Room]:
    """Rooms in each state that is not final, and some of one side alone."""
    middle = pair.begin([1, 2, 3], [3, 4, 5])
    middle[0].send([1])
    alone = pair.decode.open(pair.addr, pair.number())
    alone.init()
    alone.until(KVPoll.WaitingForInput)
    silent = pair.decode.open(pair.addr, pair.number())
    return [*middle, *pair.begin([1], [2]), *pair.open(), pair.prefill.open(pair.addr, pair.number()), alone, silent]


@check("KV-CLEAR-2", gate=False)
def test_rooms_that_are_gone_leave_nothing_behind(env: Env) -> None:
    """clear() drops the room: however many have come and gone, the process holds no more objects, threads, descriptors and memory
    for them.

    If this fails, look for what is kept for each room or transfer besides the table that snapshot() counts: histories, caches,
    callbacks, what release() does not give back.
    """
    pair = env.pair(Shape(kv=(2, 64, 256)))
    seen: list[list[tuple[int, Holding]]] = []
    for _ in range(3):
        parts = []
        for place in range(MANY):
            page, number = np.array([place % 64]), pair.number()
            late = Abort.WAITING if place % 5 == 0 else Abort.NEVER
            parts.append((Part(number, page), Part(number, page, 1, late)))
        stories = play_both(pair, parts, env.patience_s)
        left = [story.words() for both in stories for story in both if not story.end.terminal]
        assert not left, f"rooms that did not end: {left}"
        _comes_to_rest(env, pair)
        seen.append([node.call(left_behind, env.patience_s / 4) for node in (pair.prefill, pair.decode)])
    for side, before, after in zip(("prefill", "decode"), seen[1], seen[2], strict=True):
        what = f"{side}: {MANY} rooms more have come and gone, and there are"
        grown = after[0] - before[0]
        assert grown < MANY / 2, f"{what} {grown} objects more"
        more = after[1].beyond(before[1])
        assert after[1].count() - before[1].count() < MANY / 2, f"{what} {', '.join(more)}"
        memory = after[1].memory - before[1].memory
        assert memory < NOISE, f"{what} {memory >> 10} KiB of memory more"


@check("KV-CLEAR-3")
def test_a_cleared_handle_keeps_what_it_knew(env: Env) -> None:
    """clear() is idempotent, and the cleared handle keeps its final state, failure and metric, and says whether its pages may be
    used again.

    If this fails, look at where a handle keeps its room's end: with the handle, and not in a table that clear() empties.
    """
    pair = env.pair()
    rooms = [*pair.move([1, 2], [3, 4], clear=False), *_ended(pair)]
    pair.prefill.await_safe(*rooms[::2])
    pair.decode.await_safe(*rooms[1::2])
    before = [replace(room.look(), now_s=0.0) for room in rooms]
    for what in ("clear()", "a second clear()", "abort()"):
        for room in rooms:
            room.abort("too late") if what == "abort()" else room.clear()
        for room, was in zip(rooms, before, strict=True):
            seen = replace(room.look(), now_s=0.0)
            assert seen == was, f"{room.node.process.name}: after {what} the handle says {seen}, before {was}"
    fresh = [pair.prefill.open(pair.addr, pair.number()), pair.decode.open(pair.addr, pair.number())]
    for room in fresh:
        for _ in range(2):
            room.clear()
        look = room.look()
        assert look.state is KVPoll.Failed, (
            f"{room.node.process.name}: cleared before init(), and the room is {look.state.name}"
        )
        assert look.release_safe, f"{room.node.process.name}: cleared before init(), and its pages may not be used"


@check("KV-CLEAR-4")
def test_clearing_a_live_room_aborts_it_and_tells_the_other_side(env: Env) -> None:
    """clear() aborts a room that is live, with code aborted_local, and the other side's room fails, in whichever state they are
    and whichever side it is.

    If this fails, look at clear(): dropping what is known of a room must not come before the other side has been told.
    """
    pair = env.pair()
    for who in range(2):
        waiting = pair.open()
        waiting[1].until(KVPoll.WaitingForInput)
        middle = pair.begin([1, 2, 3], [3, 4, 5])
        middle[0].send([1, 2])
        for what, both in {
            "before init()": waiting,
            "pages named": pair.begin([1], [2]),
            "one chunk sent": middle,
        }.items():
            both[who].clear()
            look = both[who].look()
            name = both[who].node.process.name
            assert look.state is KVPoll.Failed, f"{what}, {name}: after clear() the live room is {look.state.name}"
            code = None if look.failure is None else look.failure.code
            assert code is FailureCode.ABORTED_LOCAL, (
                f"{what}, {name}: the failure is {look.failure}, expected aborted_local"
            )
            told = both[1 - who].failed()
            assert told.code is FailureCode.ABORTED_REMOTE, (
                f"{what}: {name} cleared the room, the other side says {told}"
            )
            both[1 - who].clear()
    pair.good_room()


@check("KV-CLEAR-5")
def test_a_room_number_can_be_used_again(env: Env) -> None:
    """After clear() the number is free: a new room of it knows nothing of the earlier one, and handles of the earlier one can
    do nothing to it.

    If this fails, look at what is found by the room's number alone: messages and calls belong to one life of it.
    """
    pair = env.pair(Shape(kv=(2, 32, 512)))
    old: dict[int, tuple[Room, Room]] = {}
    for turn in range(24):
        number = turn % 3
        source, target = env.random.permutation(32)[:4], env.random.permutation(32)[:4]
        expected = pair.expectation(source, target)
        sender, receiver = pair.begin(source, target, room=number)
        _starts_clean(sender, receiver)
        for room in old.get(number, ()):
            room.abort("of an earlier life")
            room.clear()
        sender.send(source[:2])
        if turn % 4 == 3:
            (sender, receiver)[turn // 4 % 2].clear()
            (receiver, sender)[turn // 4 % 2].failed()
            pair.prefill.await_safe(sender)
            pair.decode.await_safe(receiver)
            for array, now in zip(expected.kv, pair.decode.memory.kv, strict=True):
                array[target] = now[target]
        else:
            sender.send(source[2:])
            pair.succeed(sender, receiver)
        pair.compare(expected)
        old[number] = (sender, receiver)
        for room in old[number]:
            room.clear()


def _starts_clean(*rooms: Room) -> None:
    for room in rooms:
        look = room.look()
        name = f"a new room of a number that was used before, {room.node.process.name}"
        assert not look.state.terminal, f"{name}: it is {look.state.name}: {look.failure}"
        assert look.failure is None, f"{name}: failure() is {look.failure}"
        assert look.metric.transfer_total_bytes is None, f"{name}: its metric is {look.metric}"
        assert not look.release_safe, f"{name}: is_release_safe() is True"


@check("KV-CLEAR-6", faults=(Fault.HOLD_DATA, Fault.FREEZE), reaches=("bytes of the old life were held",))
def test_what_is_late_belongs_to_its_own_life(env: Env) -> None:
    """Transfers that are outstanding when their room is cleared live on apart from it: clear() waits for none of them, the cleared
    handles say at last that the pages may be used again, nothing lands there from then on, and a new room of the same
    number is not touched.

    If this fails, look at what is_release_safe() of a cleared handle reads, and by what a late end of a transfer finds its room.
    """
    flight = fly(env)
    env.reached("bytes of the old life were held")
    pair, number = flight.pair, flight.sender.room
    flight.sender.clear()
    flight.sender.clear()
    sender = pair.prefill.open(pair.addr, number)
    sender.init(4)
    pair.prefill.freeze()
    pair.decode.thaw()
    flight.receiver.clear()
    flight.receiver.failed()
    pair.prefill.thaw()
    receiver = pair.decode.open(pair.addr, number)
    receiver.init()
    receiver.send_metadata([2, 3, 4, 5])
    sender.until(KVPoll.WaitingForInput, KVPoll.Failed)
    sender.send([5, 4, 3, 2])
    pair.succeed(sender, receiver)

    owners = flight.owners_follow(env.patience_s)
    strange = [owner.done() for owner in owners][1]
    assert not strange, f"{strange} bytes were read from prefill's pages after is_release_safe() of the cleared sender"
    expected = flight.before
    for array in expected.kv:
        array[flight.target] = POISON
    expected.take(pair.prefill.memory, [2, 3, 4, 5], [5, 4, 3, 2])
    wrong = pair.decode.memory.difference(expected)
    assert not wrong, f"a new room of the number, beside what was late of the old one: {wrong}"
    unchanged(pair, expected)

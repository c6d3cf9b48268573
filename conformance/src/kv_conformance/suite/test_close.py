"""KV-END: what is left after close()."""

from __future__ import annotations

from time import sleep

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import Pair, Room
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.suite.held import BIG, LOOK_S, PATIENT, fly, load, load_onto, stay_untouched
from kv_conformance.suite.in_node_close import (
    Holding,
    close_from_two_threads,
    fail_to_create,
    give_away,
    held_by,
    use_after_close,
    wake_after_close,
)
from kv_core import Capability, FailureCode, KVPoll, ManagerClosed, Role

MIB = 1 << 20
GROWTH = 4 * MIB
"""Less than one of the check's memories; more than an allocator's noise."""


@check("KV-END-1")
def test_close_ends_every_room_and_may_be_repeated(env: Env) -> None:
    """close() is idempotent, also from two threads at once. It ends the rooms that are alive with code closed and leaves the others
    as they are; handles answer afterwards, and opening a room raises ManagerClosed.

    If this fails, look at what close() takes away that handles need, and at what a second call finds.
    """
    for first, second in (("prefill", "decode"), ("decode", "prefill")):
        pair = env.pair()
        node, other = getattr(pair, first), getattr(pair, second)
        done = pair.move([5, 6], [7, 8], clear=False)
        rooms = {"in its middle": pair.begin([1, 2], [3, 4]), "not begun": pair.open()}
        rooms["in its middle"][0].send([1])
        place = 0 if first == "prefill" else 1
        node.call(close_from_two_threads)
        for what, both in rooms.items():
            look = both[place].look()
            assert look.state is KVPoll.Failed, f"{first}: after close() a room {what} is {look.state.name}"
            code = None if look.failure is None else look.failure.code
            assert code is FailureCode.CLOSED, (
                f"{first}: a room {what} failed with {look.failure}, expected code closed"
            )
            both[1 - place].failed()
        for room in done:
            state = room.poll()
            assert state is KVPoll.Success, (
                f"{room.node.process.name}: it succeeded before {first} closed, and is {state.name}"
            )
        wrong = node.call(use_after_close)
        assert not wrong, f"{first}, after close(): {wrong}"
        _is_closed(pair, done[place])
        other.close()
        other.close()


def _is_closed(pair: Pair, room: Room) -> None:
    try:
        room.node.open(pair.addr, pair.number())
    except ManagerClosed:
        return
    raise AssertionError(f"{room.node.process.name}: a room was opened after close(), expected ManagerClosed")


@check("KV-END-2", faults=(Fault.HOLD_DATA,), reaches=("bytes were held",), gate=False)
def test_close_comes_back_from_a_peer_that_is_stopped(env: Env) -> None:
    """close() of a manager, and of a transport, comes back although transfers are outstanding to a peer that is stopped; the rooms
    end with code closed, and the peer's rooms fail when it goes on.

    If this fails, look at what close() waits for without a limit: a transfer, a thread inside the engine, a message's answer.
    """
    flight = fly(env, {**PATIENT, "close_timeout_s": 0.3})
    env.reached("bytes were held")
    flight.pair.prefill.close()
    failure = flight.sender.failed()
    assert failure.code is FailureCode.CLOSED, f"prefill closed in the middle of the room, and its failure is {failure}"
    flight.pair.decode.thaw()
    flight.receiver.failed()
    flight.pair.decode.close()
    load(env).writer.close()


@check("KV-END-3", gate=False)
def test_threads_and_descriptors_are_gone(env: Env) -> None:
    """close() ends every thread and closes every descriptor: managers that come and go, with rooms in between, leave nothing of
    either behind. What an engine keeps for the whole process is there once.

    If this fails, the message names what was left; look at what close() of the transport forgets, and at what nobody joins.
    """
    pair = env.pair(Shape(kv=(2, 32, 2048)))
    held: list[list[Holding]] = []
    for turn in range(3):
        held.append(_come_and_go(env, pair, held[-1] if turn == 2 else None, reopen=turn > 0))
    for node, before, after in zip((pair.prefill, pair.decode), held[1], held[2], strict=True):
        left = after.beyond(before)
        assert not left, f"{node.process.name}: one manager more has come and gone, and left {', '.join(left)}"


def _come_and_go(env: Env, pair: Pair, baseline: list[Holding] | None, *, reopen: bool) -> list[Holding]:
    """Managers, rooms, and close() on both sides; what both processes hold then."""
    nodes = (pair.prefill, pair.decode)
    if reopen:
        for node in nodes:
            node.process.tell("reopen")
        for node in nodes:
            node.process.answer("reopen")
    pair.good_room()
    aborted, told = pair.begin([1, 2], [3, 4])
    aborted.abort("the check gives it up")
    told.failed()
    pair.good_room()
    for node in nodes:
        node.close()
    limit = env.patience_s / 2
    for place, node in enumerate(nodes):
        node.begin(held_by, None if baseline is None else baseline[place], limit)
    return [node.finish(2 * limit) for node in nodes]


@check("KV-END-4", gate=False)
def test_memory_is_given_back(env: Env) -> None:
    """close() gives back what the manager took: processes in which managers come and go, with rooms in between, do not grow.

    If this fails, look for buffers, registrations and copies of pages that outlive the transport that made them.
    """
    pair = env.pair(Shape(kv=(4, 32, 64 << 10)))
    for turn in range(3):
        _come_and_go(env, pair, None, reopen=turn > 0)
    growth: list[list[int]] = []
    for _ in range(2):  # an allocator keeps what it took, and takes no more: what grows grows twice
        before = _come_and_go(env, pair, None, reopen=True)
        for _ in range(3):
            after = _come_and_go(env, pair, None, reopen=True)
        growth.append([now.memory - then.memory for then, now in zip(before, after, strict=True)])
        if max(growth[-1]) < GROWTH:
            return
    mib = [[round(each / MIB, 1) for each in both] for both in growth]
    raise AssertionError(
        f"three managers came and went, and prefill's and decode's process grew by so many MiB, twice: {mib}"
    )


@check("KV-END-5")
def test_the_memory_is_the_engines_again(env: Env) -> None:
    """After close() nobody touches the memory that was registered: it may be unmapped, and what the engine writes there stays.

    If this fails, which a process that was killed by SIGSEGV says too, look for threads and registrations that outlive
    close().
    """
    pair = env.pair(Shape(kv=(2, 32, 2048)))
    pair.good_room()
    sender, receiver = pair.begin([1, 2], [3, 4])
    sender.send([1])
    for node in (pair.prefill, pair.decode):
        node.close()
    pair.decode.memory.poison()
    images = [node.memory.image() for node in (pair.prefill, pair.decode)]
    for node in (pair.prefill, pair.decode):
        node.call(give_away, Shape(kv=(2, 32, 2048)))
    for _ in range(3):
        sender, receiver = pair.begin([1, 2, 3], [3, 4, 5])
        sender.send([1, 2, 3])
        pair.succeed(sender, receiver)
    sleep(LOOK_S)
    for node, image in zip((pair.prefill, pair.decode), images, strict=True):
        node.snapshot()
        wrong = node.memory.difference(image)
        assert not wrong, f"{node.process.name}: memory was written after close(): {wrong}"


@check("KV-END-6")
def test_wake_after_close_does_nothing(env: Env) -> None:
    """Transport.close() is idempotent, and wake() may come at any time, also afterwards: it raises nothing, and writes to no
    descriptor whose number somebody else has by then.

    If this fails, look at what wake() writes to: an object that knows that it is closed, and not a number.
    """
    writer, target = env.ends()
    writer.write(writer.meet(target), ([1], [2]))
    for end in (writer, target):
        wrong = end.call(wake_after_close, 500)
        assert not wrong, f"{end.process.name}: {wrong[0]}"


@check("KV-END-7", gate=False, reaches=("create_manager failed",))
def test_a_manager_that_fails_to_open_leaves_nothing(env: Env) -> None:
    """create_manager undoes everything if a step fails (a port that is taken, memory that is not there or is refused, an unknown
    option): no thread and no descriptor stays.

    If this fails, look at the constructor and at register_memory(): what was made before the step that failed.
    """
    for role in Role:
        node = env.face(role)
        setting = env.harness.setting(role, Fault.REGISTRATION)
        refused = setting.options if setting is not None and setting.refused_region is not None else None
        left = node.call(fail_to_create, refused, env.patience_s / 4, limit_s=4 * env.patience_s)
        if left:
            env.reached("create_manager failed")
        for way, what in left.items():
            assert not what, f"{role.value}: a manager could not be made ({way}), and left {', '.join(what)}"


@check(
    "KV-END-8",
    requires=Capability.FENCE,
    faults=(Fault.HOLD_DATA, Fault.FREEZE),
    gate=False,
    reaches=("bytes were held",),
)
def test_nothing_lands_after_close(env: Env) -> None:
    """With FENCE, no inbound byte lands in memory that was registered once Transport.close() has returned, whatever peers still
    have on its way.

    If this fails, look at what goes on receiving after close(): a thread, a socket that was not shut, a registration.
    """
    writer, target = env.ends(BIG, fault=Fault.HOLD_DATA)
    told = writer.introduce()
    target.add_peer(told.name, 1, told.descriptor)
    target.fence(told.name, 1)
    target.process.ask("remove_peer", told.name, 1)
    target.add_peer(told.name, 2, told.descriptor)
    load_onto(env, writer, target, writer.meet(target, generation=2))
    env.reached("bytes were held")
    writer.freeze()
    target.thaw()
    target.close()
    target.memory.whole[:] = POISON
    expected = target.memory.image()
    writer.thaw()
    stay_untouched(target, expected, "bytes landed after close() had returned, and FENCE is declared")

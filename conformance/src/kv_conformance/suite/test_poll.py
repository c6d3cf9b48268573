"""KV-POLL: poll()."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import Pair, Room
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.suite.held import LOOK_S, Pages, fly, lacking
from kv_conformance.suite.in_node_poll import pages_at_success, poll_many, watch, wrong_answers
from kv_conformance.suite.playing import (
    Abort,
    Part,
    digest_of,
    moved_forward,
    play_both,
    went_well,
)
from kv_core import FAKE_BOOTSTRAP_HOST, FailureCode, KVPoll

TIMES = 100_000
"""So many polls, each of which would only have to wait a little, are more than a node's patience."""
LARGE = Shape(kv=(4, 24, 256 << 10))


@check("KV-POLL-1", faults=(Fault.HOLD_DATA, Fault.FREEZE), reaches=("bytes were held", "the peer stood still"))
def test_it_never_blocks_and_nothing_waits_for_it(env: Env) -> None:
    """poll() reads one attribute: it comes back at once, whatever the peer and the fabric do, and a room goes on whether or
    not anybody polls it.

    If this fails, look at what poll() does besides reading the state that other threads keep: it must not ask the engine or
    the peer, wait for a lock that is held while either is asked, or be what drives the transfer.
    """
    flight = fly(env)
    pair = flight.pair
    opened = pair.prefill.open(pair.addr, pair.number())
    states = pair.prefill.call(poll_many, [flight.sender.number, opened.number], TIMES)
    assert states[0] is KVPoll.Transferring, (
        f"the room whose peer is stopped is {states[0].name}, expected Transferring"
    )
    env.reached("bytes were held")
    pair.decode.thaw()
    _await_bytes(env, pair, flight.target)
    pair.succeed(flight.sender, flight.receiver)

    sender, receiver = pair.begin([1, 2], [3, 4])
    pair.prefill.freeze()
    states = pair.decode.call(poll_many, [receiver.number], TIMES)
    assert not states[0].terminal, f"the room whose peer is stopped for a moment is {states[0].name}"
    env.reached("the peer stood still")
    pair.prefill.thaw()
    sender.send([1, 2])
    _await_bytes(env, pair, np.array([3, 4]))
    pair.succeed(sender, receiver)


def _await_bytes(env: Env, pair: Pair, pages: Pages) -> None:
    """Without asking the nodes anything."""
    what = "nobody polls, and the bytes that were sent are in decode's memory"
    env.wait_until(lambda: not lacking(pair.decode.memory, pages), what)


@check("KV-POLL-2")
def test_it_answers_in_every_state(env: Env) -> None:
    """poll() never raises and always returns a KVPoll: before init(), after abort(), clear(), a failure, a refused request and
    manager.close(), on both sides, and in warm-up rooms.

    If this fails, look at poll() of the sender and the receiver: it must need nothing that clear() or close() takes away.
    """
    pair = env.pair()
    sender, receiver = pair.open()
    _answered(pair, "before a sender's init()")
    sender.init(2)
    receiver.until(KVPoll.WaitingForInput)
    _answered(pair, "in WaitingForInput")
    receiver.send_metadata([3, 4])
    sender.until(KVPoll.WaitingForInput)
    sender.send([1])
    _answered(pair, "in the middle of a room")
    sender.send([2])
    pair.succeed(sender, receiver)
    _answered(pair, "after Success")
    aborted, told = pair.begin([1], [2])
    aborted.abort("the check gives it up")
    told.failed()
    wrong = [
        pair.prefill.open(pair.addr, sender.room),
        pair.prefill.open(pair.addr, -1),
        pair.decode.open("nowhere", 7),
    ]
    wrong[0].init(1)
    _answered(pair, "after an abort and with rooms that were refused")
    warm = [node.open(f"{FAKE_BOOTSTRAP_HOST}:8998", 5) for node in (pair.prefill, pair.decode)]
    _answered(pair, "in warm-up rooms")
    for room in (sender, receiver, aborted, told, *wrong, *warm):
        room.clear()
    _answered(pair, "after clear()")
    pair.begin([1], [2])
    pair.decode.close()
    _answered(pair, "after decode's manager.close()")
    pair.prefill.close()
    _answered(pair, "after manager.close() on both sides")


def _answered(pair: Pair, when: str) -> None:
    for node in (pair.prefill, pair.decode):
        wrong = node.call(wrong_answers)
        assert not wrong, f"{node.process.name}, {when}: {'; '.join(wrong)}"


@check("KV-POLL-3")
def test_success_is_final(env: Env) -> None:
    """Success never changes: not by abort(), clear() or further calls on either side, nor by the end of the peer's manager or of
    its own; failure() stays None, and nothing more is written.

    If this fails, look at what abort(), clear() and a lost peer do to a room that has ended already: nothing.
    """
    pair = env.pair()
    sender, receiver = pair.move([1, 2, 3], [4, 5, 6], chunks=2, clear=False)
    expected = pair.decode.memory.image()
    actions: list[tuple[str, Callable[[], None]]] = [
        ("the sender's abort()", lambda: sender.abort("too late")),
        ("the receiver's abort()", lambda: receiver.abort("too late")),
        ("one send() more", lambda: sender.send([7])),
        ("another init()", lambda: sender.init(1)),
        ("another send_metadata()", lambda: receiver.send_metadata([8])),
        ("the sender's clear()", sender.clear),
        ("decode's manager.close()", pair.decode.close),
        ("prefill's manager.close()", pair.prefill.close),
    ]
    for what, action in actions:
        action()
        for room in (sender, receiver):
            _stays(room, KVPoll.Success, what)
            failure = room.failure()
            assert failure is None, f"after {what}: failure() of a room that succeeded is {failure}"
            room.do("failure_exception")
    _stay(sender, receiver, KVPoll.Success)
    pair.compare(expected)


def _stays(room: Room, state: KVPoll, what: str) -> None:
    seen = room.poll()
    assert seen is state, (
        f"after {what}: room {room.room} at {room.node.process.name} is {seen.name}, it was {state.name}"
    )


def _watch(sender: Room, receiver: Room, seconds: float = LOOK_S) -> tuple[list[KVPoll], list[KVPoll]]:
    """Both sides at the same time; also of a side that begins when it is thawed."""
    receiver.node.begin(watch, [receiver.number], seconds)
    receiver.node.thaw()
    [mine] = sender.node.call(watch, [sender.number], seconds)
    [theirs] = receiver.node.finish(seconds)
    return mine, theirs


def _stay(sender: Room, receiver: Room, state: KVPoll) -> None:
    for room, states in zip((sender, receiver), _watch(sender, receiver), strict=True):
        _only(states, state, room)


def _only(states: list[KVPoll], state: KVPoll, room: Room) -> None:
    assert states == [state], (
        f"room {room.room} at {room.node.process.name} had ended as {state.name}, and then: "
        f"{', '.join(one.name for one in states)}"
    )


@check("KV-POLL-4", faults=(Fault.HOLD_DATA,), reaches=("bytes were on their way when the room failed",), gate=False)
def test_failed_is_final_when_its_bytes_arrive_late(env: Env) -> None:
    """Failed never changes: nothing that was under way when the room failed promotes it, on either side, and its failure stays
    the first root cause.

    If this fails, look at what is done when a transfer ends, or the other side's word comes, for a room that has ended.
    """
    flight = fly(env)
    pair, sender, receiver = flight.pair, flight.sender, flight.receiver
    sender.abort("the first cause")
    first = sender.failure()
    assert sender.poll() is KVPoll.Failed, f"after abort() the sender's room is {sender.poll().name}, expected Failed"
    assert first is not None, "the room has failed, and failure() is None"
    env.reached("bytes were on their way when the room failed")
    mine, theirs = _watch(sender, receiver, 3 * LOOK_S)
    _only(mine, KVPoll.Failed, sender)
    assert KVPoll.Success not in theirs, f"prefill had aborted, and decode's states were {[s.name for s in theirs]}"
    second = receiver.failed()
    pair.prefill.await_safe(sender)
    pair.decode.await_safe(receiver)
    sender.send(flight.source[:1])
    sender.init(1)
    receiver.send_metadata([0])
    for room in (sender, receiver):
        room.abort("another cause")
    _stay(sender, receiver, KVPoll.Failed)
    for room, failure in ((sender, first), (receiver, second)):
        seen = room.failure()
        assert seen == failure, (
            f"room {room.room} at {room.node.process.name}: failure() was {failure}, and then {seen}"
        )


@check("KV-POLL-5", reaches=("pages were looked at in the moment of Success",))
def test_success_means_that_the_bytes_are_there(env: Env) -> None:
    """Success on the decode side means that every byte is visible there: whoever reads the pages in the very moment in which
    poll() first says so finds them complete.

    If this fails, look at when the transport calls a transfer DONE: not before its last byte is in the peer's memory.
    """
    pair = env.pair(LARGE)
    for first in range(1, 13, 3):
        _succeed_with_bytes(env, pair, first)
    env.reached("pages were looked at in the moment of Success")


def _succeed_with_bytes(env: Env, pair: Pair, first: int) -> None:
    """Three large rooms at the same time."""
    sources, targets = (np.array_split(env.random.permutation(LARGE.kv[1]), 3) for _ in range(2))
    rooms = range(first, first + 3)
    parts = [(Part(n, s, chunks=2), Part(n, t)) for n, s, t in zip(rooms, sources, targets, strict=True)]
    stories = play_both(pair, parts, env.patience_s)
    went_well(stories)
    for (mine, _), (_, story) in zip(parts, stories, strict=True):
        assert story.digest == digest_of(pair.prefill.memory, mine.pages), (
            f"room {story.room} said Success, and its pages were not what was sent: {story.poison} of "
            f"{mine.pages.size * sum(array.shape[1] for array in pair.decode.memory.kv)} bytes were still unwritten"
        )


@check("KV-POLL-6", faults=(Fault.HOLD_DATA,), reaches=("bytes were held",), gate=False)
def test_success_is_not_said_while_bytes_are_held(env: Env) -> None:
    """Neither side says Success as long as bytes are held back on their way, and decode finds all of them there when they have
    come.

    If this fails, look at what the transport takes for the end of a transfer: that bytes have left is not that they arrived.
    """
    flight = fly(env)
    pair = flight.pair
    [states] = pair.prefill.call(watch, [flight.sender.number], LOOK_S)
    _goes_on(states, flight.sender, "while the peer that receives its bytes is stopped")
    env.reached("bytes were held")
    pair.decode.begin(pages_at_success, flight.receiver.number, flight.target, env.patience_s)
    pair.decode.thaw()
    state, seen, poison = pair.decode.finish(env.patience_s)
    assert state is KVPoll.Success, f"nothing was wrong but that decode had been stopped, and the room is {state.name}"
    assert seen == digest_of(pair.prefill.memory, flight.source), (
        f"room {flight.receiver.room} said Success, and {poison} bytes of its pages had not been written"
    )
    pair.succeed(flight.sender, flight.receiver)
    expected = flight.before
    expected.take(pair.prefill.memory, flight.target, flight.source)
    pair.compare(expected)


@check("KV-POLL-7", reaches=("a chunk was missing", "a layer was missing", "a page was missing"))
def test_success_comes_after_the_last_chunk(env: Env) -> None:
    """A room ends when every layer has all announced pages: not before the last chunk, and not with one page of one layer
    missing, however long the others have been there.

    If this fails, look at what counts as complete: pages for each layer, as the sender announced them, and not chunks.
    """
    pair = env.pair(Shape(kv=(4, 48, 1024)))
    source, target = env.random.permutation(48)[:12], env.random.permutation(48)[:12]
    sender, receiver = pair.begin(source, target)
    expected = pair.expectation(source, target)
    for part in (source[:5], source[5:8]):
        sender.send(part)
    _lasts(env, pair, (sender, receiver), target[:8])
    env.reached("a chunk was missing")
    sender.send(source[8:])
    pair.succeed(sender, receiver)
    pair.compare(expected)

    pair.decode.memory.poison()
    sender, receiver = pair.begin(source, target)
    expected = pair.expectation(source, target)
    for layers in (range(2, 4), range(1)):
        sender.send(source, layers=layers)
    _lasts(env, pair, (sender, receiver), target, [0, 2, 3])
    env.reached("a layer was missing")
    sender.send(source[:-1], layers=range(1, 2))
    _lasts(env, pair, (sender, receiver), target[:-1])
    env.reached("a page was missing")
    sender.send(source[-1:], layers=range(1, 2))
    pair.succeed(sender, receiver)
    pair.compare(expected)


def _lasts(
    env: Env, pair: Pair, rooms: tuple[Room, Room], pages: Pages, layers: range | list[int] = range(4)
) -> None:  # fmt: skip
    """What was sent has arrived, and the room goes on."""
    arrays = [pair.decode.memory.kv[layer] for layer in layers]
    env.wait_until(lambda: not any((array[pages] == POISON).any() for array in arrays), "what was sent has arrived")
    for room, states in zip(rooms, _watch(*rooms), strict=True):
        _goes_on(states, room, "although something of it had not been sent")


def _goes_on(states: list[KVPoll], room: Room, when: str) -> None:
    ended = [state.name for state in states if state.terminal]
    assert not ended, f"room {room.room} at {room.node.process.name} ended with {ended} {when}: {room.failure()}"


@check("KV-POLL-8", reaches=("rooms succeeded", "rooms failed"))
def test_states_only_move_forward(env: Env) -> None:
    """A room's states follow the order Bootstrapping, WaitingForInput, Transferring, Success, and may end with Failed from any
    of the first three; none ever comes again.

    If this fails, look at what sets the state: chunks, pauses between them, and late messages must not set it back.
    """
    pair = env.pair(Shape(kv=(4, 64, 16 << 10)))
    aborts = {1: (Abort.OPENED, Abort.NEVER), 4: (Abort.WAITING, Abort.NEVER), 7: (Abort.NEVER, Abort.WAITING)}
    pages = [env.random.permutation(64)[:8].reshape(2, 4) for _ in range(12)]
    targets = np.array_split(env.random.permutation(64), 12)
    parts = []
    for number, source in enumerate(pages):
        mine, theirs = aborts.get(number, (Abort.NEVER, Abort.NEVER))
        target = targets[number][:4]
        parts.append((Part(number, source[0][: target.size], 4, mine), Part(number, target, 1, theirs)))
    stories = play_both(pair, parts, env.patience_s)
    for number, both in enumerate(stories):
        for story, side in zip(both, ("prefill", "decode"), strict=True):
            moved_forward(story, side)
            wanted = KVPoll.Failed if number in aborts else KVPoll.Success
            assert story.end is wanted, (
                f"room {number} on the {side} side: expected {wanted.name}, seen {story.words()}"
            )
    env.reached("rooms succeeded")
    env.reached("rooms failed")


@check("KV-POLL-9", reaches=("decode gave up in the last moment",))
def test_both_sides_come_to_the_same_end(env: Env) -> None:
    """Both sides of a room come to the same end, also when decode gives it up after the last byte and before the last word:
    prefill says Success only if decode does.

    If this fails, look at what makes the sender's room a success: that its own transfers are done is not enough.
    """
    pair = env.pair(Shape(kv=(4, 48, 16 << 10)))
    parts = []
    for number in range(12):
        source, target = env.random.permutation(48)[:4], np.arange(4 * number, 4 * number + 4)
        late = Abort.LANDED if number % 3 else Abort.NEVER
        parts.append((Part(number, source, 2), Part(number, target, 1, late)))
    late_aborts = 0
    for both in parts:  # one after the other: decode looks at its memory all the time
        [(mine, theirs)] = play_both(pair, [both], env.patience_s)
        assert mine.end is theirs.end, f"room {mine.room}: prefill {mine.words()}, decode {theirs.words()}"
        assert mine.end.terminal, f"room {mine.room} has not ended: {mine.words()}"
        failed = theirs.failure is not None and theirs.failure.code is FailureCode.ABORTED_LOCAL
        late_aborts += failed and both[1].abort is Abort.LANDED
    if late_aborts:
        env.reached("decode gave up in the last moment")

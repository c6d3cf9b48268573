"""KV-ABORT 1 to 10: rooms that are given up, in every state and from either side, and the pages that they leave."""

from __future__ import annotations

from time import sleep

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import Room
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.outcomes import Untestable
from kv_conformance.suite.endings import REASON, give_up, given_up
from kv_conformance.suite.held import BIG, LOOK_S, PATIENT, TakeOver, fly, kept, lacking, see_held, unchanged
from kv_core import Capability, FailureCode, KVPoll

SMALL = Shape(kv=(2, 32, 512))
MIDDLE = Shape(kv=(4, 32, 64 << 10))
LOST = {"probe_interval_s": 0.25, "suspect_after": 1, "dead_after": 3}
"""Settings under which a peer that stands still is soon taken for dead."""


def released(*rooms: Room) -> None:
    """The pages of all of them must be given back, and the rooms go."""
    for room in rooms:
        room.node.await_safe(room)
    for room in rooms:
        room.clear()


@check("KV-ABORT-1")
def test_a_room_that_is_given_up_while_it_waits_fails_on_both_sides(env: Env) -> None:
    """abort() fails the room at once with code aborted_local, and the other side's with aborted_remote; the reason that was
    given is in both failures. Until then the room's pages are not free, afterwards they are. Other rooms of the same two
    processes do not notice.

    If this fails, look at what your sender, receiver and manager override of abort(), failure() and poll().
    """
    pair = env.pair(SMALL)
    expected = pair.expectation([1, 2], [3, 4])
    good = pair.begin([1, 2], [3, 4])
    for named in (False, True):
        for by_sender in (False, True):
            sender, receiver = pair.open()
            sender.init(2)
            if named:
                receiver.send_metadata([5, 6])
                sender.until(KVPoll.WaitingForInput, KVPoll.Failed)
            else:
                receiver.until(KVPoll.WaitingForInput, KVPoll.Failed)
            by, other = (sender, receiver) if by_sender else (receiver, sender)
            for room in (sender, receiver):
                assert not room.is_release_safe(), (
                    f"is_release_safe() of a live room at {room.node.process.name} is True"
                )
            by.abort(REASON)
            assert by.poll() is KVPoll.Failed, f"after abort() poll() is {by.poll().name}, expected Failed at once"
            given_up(by, other)
            released(sender, receiver)
    good[0].send([1, 2])
    pair.succeed(*good)
    pair.compare(expected)


@check("KV-ABORT-2")
def test_abort_is_idempotent_and_changes_no_end(env: Env) -> None:
    """abort() of a room that has ended changes nothing: a success stays one, a failure keeps its first root cause, and
    pages that were given back stay given back. It raises nothing, after clear() neither.

    If this fails, look at what your handles override of abort(): an end is final.
    """
    pair = env.pair(SMALL)
    done = pair.move([1, 2], [3, 4], clear=False)
    before = [room.look() for room in done]
    for room in done:
        room.node.await_safe(room)
        room.abort(REASON)
        room.abort(REASON)
    failed = pair.begin([5], [6])
    failed[1].abort(REASON)
    given_up(failed[1], failed[0])
    released(*failed)
    for room in failed:
        room.abort("another reason")
    pair.good_room()
    for room, then in zip(done, before, strict=True):
        now = room.look()
        assert now.state is KVPoll.Success, f"abort() after Success made it {now.state.name}: {now.failure}"
        assert now.failure is None, f"abort() after Success left a failure: {now.failure}"
        assert now.metric == then.metric, f"abort() after Success changed the metric: {then.metric}, then {now.metric}"
        assert now.release_safe, "abort() after Success took back that the pages may be used again"
    given_up(failed[1], failed[0])
    for room in failed:
        assert room.is_release_safe(), "a second abort() took back that the pages may be used again"


@check("KV-ABORT-3")
def test_an_abort_that_comes_before_the_other_side_opens_the_room(env: Env) -> None:
    """A room that one side gave up before the other one opened it fails there with code aborted_remote: as soon as it is
    opened if the two processes have met by then, else as soon as they have. After that its number is free again.

    If this fails, look at what your manager and handles override of the rooms' opening and of abort().
    """
    pair = env.pair(SMALL)
    receiver = pair.decode.open(pair.addr, 6)
    receiver.init()
    receiver.abort(REASON)
    sender = pair.prefill.open(pair.addr, 6)
    sender.init(2)
    given_up(receiver, sender)
    released(receiver, sender)
    receiver = pair.decode.open(pair.addr, 7)
    receiver.init()
    receiver.send_metadata([1, 2])
    receiver.until(KVPoll.WaitingForInput, KVPoll.Failed)
    receiver.abort(REASON)
    released(receiver)
    sender = pair.prefill.open(pair.addr, 7)
    sender.init(2)
    sender.send([1, 2])
    given_up(receiver, sender)
    released(sender)
    sender = pair.prefill.open(pair.addr, 8)
    sender.init(2)
    sender.abort(REASON)
    receiver = pair.decode.open(pair.addr, 8)
    receiver.init()
    receiver.send_metadata([1, 2])
    given_up(sender, receiver)
    released(sender, receiver)
    for room in (6, 7, 8):
        pair.move([3, 4, 5], [6, 7, 8], room=room)


@check("KV-ABORT-4", reaches=("a chunk had landed",))
def test_what_is_sent_after_an_abort_goes_nowhere(env: Env) -> None:
    """In a room that has failed, send() does nothing: it raises nothing, moves nothing, and the room's end stays.

    If this fails, look at what your sender overrides of send(), and whether your transport still posts what it had queued.
    """
    pair = env.pair(SMALL)
    for by_sender in (True, False):
        expected = pair.expectation([1, 2, 3], [7, 8, 9])
        sender, receiver = pair.begin(np.arange(1, 10), np.arange(7, 16))
        sender.send([1, 2, 3])
        env.wait_until(lambda: not lacking(pair.decode.memory, [7, 8, 9]), "the first chunk's bytes at the decode side")
        env.reached("a chunk had landed")
        by, other = (sender, receiver) if by_sender else (receiver, sender)
        by.abort(REASON)
        given_up(by, other)
        sender.send([4, 5, 6])
        sender.send([7, 8, 9])
        released(sender, receiver)
        sleep(LOOK_S / 2)
        pair.compare(expected)
        given_up(by, other)
        for array in pair.decode.memory.kv:
            array[7:16] = POISON
    pair.good_room()


@check("KV-ABORT-5", faults=(Fault.HOLD_DATA,), reaches=("aborted in flight",))
def test_the_sender_aborts_in_flight(env: Env) -> None:
    """is_release_safe() is the only permission to reuse pages. After an abort in flight, source pages may be overwritten
    from then on, and nothing of that is ever read; target pages may be reused from then on, and no byte lands in them. Both
    are given back once nothing stands in the way; until then they are counted in snapshot()["quarantined"].

    If this fails, look at what your transport calls quiescent: an error, a cancel, a release or a full socket is no proof.
    If pages are never given back, look at whether each transfer is reported until its record says quiescent.
    """
    flight = fly(env)
    pair, sender, receiver = flight.pair, flight.sender, flight.receiver
    env.reached("aborted in flight")
    sender.abort(REASON)
    failure = sender.failure()
    assert failure is not None, "after abort() failure() is None"
    assert failure.code is FailureCode.ABORTED_LOCAL, f"expected code aborted_local, seen {failure}"
    kept(pair.prefill, sender)
    reader, owner = flight.owners_follow(env.patience_s)
    sleep(LOOK_S)
    pair.decode.thaw()
    reader.done()
    strange = owner.done()
    assert not strange, (
        f"{strange} bytes arrived that were written into the source pages after the sender's is_release_safe() had said "
        "that they may be reused: the transfer still read them"
    )
    given_up(sender, receiver)
    unchanged(pair, flight.before)
    for node in (pair.prefill, pair.decode):
        assert not node.snapshot()["quarantined"], f"{node.process.name} still counts pages that it has given back"


@check("KV-ABORT-6", faults=(Fault.HOLD_DATA,), reaches=("aborted in flight",))
def test_the_receiver_aborts_in_flight_while_the_sender_stands_still(env: Env) -> None:
    """After the receiver's abort its pages stay quarantined as long as the process that may still write them stands still:
    is_release_safe() is False, and snapshot()["quarantined"] names them. When it goes on, it acknowledges that its writes have
    ended; from is_release_safe() on no byte lands in them.

    If this fails, look at what your receiver overrides of is_release_safe(), and at what your transport calls quiescent.
    """
    flight = fly(env)
    pair, sender, receiver = flight.pair, flight.sender, flight.receiver
    pair.prefill.freeze()
    pair.decode.thaw()
    see_held(pair.decode.memory, flight.target)
    give_up(receiver)
    env.reached("aborted in flight")
    assert kept(pair.decode, receiver), (
        "is_release_safe() is True although the process that writes stands still in the middle of it, and has said nothing"
    )
    reader, owner = flight.owners_follow(env.patience_s)
    sleep(LOOK_S)
    pair.prefill.thaw()
    reader.done()
    assert not owner.done(), "bytes arrived that were written into the source pages after they had been given back"
    given_up(receiver, sender)
    unchanged(pair, flight.before)


@check("KV-ABORT-7", faults=(Fault.HOLD_DATA,), reaches=("both rooms in flight",))
def test_another_room_in_flight_does_not_notice_an_abort(env: Env) -> None:
    """An abort ends one room. Another one between the same two processes, whose bytes are on their way at the same time,
    arrives whole.

    If this fails, look at how your transport ends a transfer early: a connection that others use must not go with it.
    """
    pair = env.pair(BIG, fault=Fault.HOLD_DATA, config=PATIENT)
    pair.move([0], [0])
    lost, arriving = np.arange(1, 24), np.arange(24, 48)
    expected = pair.expectation(arriving, arriving)
    first, second = pair.begin(lost, lost), pair.begin(arriving, arriving)
    pair.decode.freeze()
    for mine, theirs in zip(np.array_split(lost, 3), np.array_split(arriving, 3), strict=True):
        first[0].send(mine)
        second[0].send(theirs)
    for sender, _ in (first, second):
        sender.until(KVPoll.Transferring, KVPoll.Failed)
    see_held(pair.decode.memory, arriving)
    env.reached("both rooms in flight")
    first[0].abort(REASON)
    sleep(2 * LOOK_S)
    pair.decode.thaw()
    given_up(*first)
    released(*first)
    pair.succeed(*second)
    for array in pair.decode.memory.kv:
        array[lost] = POISON
    pair.compare(expected)


@check("KV-ABORT-8", faults=(Fault.HOLD_DATA, Fault.FREEZE), reaches=("lost in flight",), gate=False)
def test_a_writer_that_is_taken_for_dead_and_wakes_up(env: Env) -> None:
    """That a process is taken for dead proves nothing: it may wake up and go on writing. Its rooms fail, and their pages are
    kept, until a fence, its own word, or the proof that it has ended; from is_release_safe() on no byte lands in them.

    If this fails, look at fence() if you declare it, and at what your receiver overrides of is_release_safe().
    """
    flight = fly(env, LOST | {"dead_after": 6})
    pair, sender, receiver = flight.pair, flight.sender, flight.receiver
    pair.prefill.freeze()
    pair.decode.thaw()
    failure = receiver.failed()
    assert failure.code is FailureCode.PEER_LOST, f"expected code peer_lost, seen {failure}"
    if not lacking(pair.decode.memory, flight.target):
        raise Untestable("the bytes arrived although both processes had been stopped one after the other")
    env.reached("lost in flight")
    held = kept(pair.decode, receiver)
    assert held or env.declares(Capability.FENCE), (
        "is_release_safe() is True although the process that writes stands still in the middle of it: a timeout is no proof"
    )
    reader, owner = flight.owners_follow(env.patience_s)
    sleep(LOOK_S)
    pair.prefill.thaw()
    reader.done()
    assert not owner.done(), "bytes arrived that were written into the source pages after they had been given back"
    sender.failed()
    unchanged(pair, flight.before)


@check("KV-ABORT-9", faults=(Fault.HOLD_DATA, Fault.FREEZE), reaches=("lost in flight",), gate=False)
def test_a_reader_that_is_taken_for_dead_and_wakes_up(env: Env) -> None:
    """When the process that receives is taken for dead with bytes on their way to it, the source pages are kept until the
    transport has proof that nothing reads them any more; when it wakes up, nothing of their next owner arrives in it.

    If this fails, look at remove_peer(): what is outstanding to the peer stays in progress() until it is quiescent.
    """
    flight = fly(env, LOST)
    pair, sender, receiver = flight.pair, flight.sender, flight.receiver
    failure = sender.failed()
    assert failure.code in (FailureCode.PEER_LOST, FailureCode.TRANSPORT_ERROR), f"expected peer_lost, seen {failure}"
    env.reached("lost in flight")
    kept(pair.prefill, sender)
    reader, owner = flight.owners_follow(env.patience_s)
    sleep(LOOK_S)
    pair.decode.thaw()
    reader.done()
    assert not owner.done(), "bytes arrived that were written into the source pages after they had been given back"
    receiver.failed()
    unchanged(pair, flight.before)


@check("KV-ABORT-10", reaches=("aborted in the middle",))
def test_an_abort_in_any_moment(env: Env) -> None:
    """Whenever an abort comes, both sides end, both sides' pages are given back, and from then on they are the next room's
    alone: it finds no byte of the one before.

    If this fails, look at what your transport calls quiescent, and at what your handles override.
    """
    pair = env.pair(MIDDLE)
    source, target = np.arange(24), np.arange(24)[::-1].copy()
    blank, expected = pair.decode.memory.image(), pair.decode.memory.image()
    expected.take(pair.prefill.memory, target[:3], [24, 25, 26])
    for turn in range(16):
        sender, receiver = pair.begin(source, target)
        delay = float(env.random.uniform(0.0, 0.006)) * (turn > 3)
        for part in np.array_split(source, 3):
            sender.send(part)
        if turn % 2:
            owner = TakeOver(receiver, target, POISON, 0, env.patience_s)
            sleep(delay)
            sender.abort(REASON)
        else:
            owner = TakeOver(receiver, target, POISON, 0, env.patience_s, abort_after=delay)
        owner.done()
        for room in (sender, receiver):
            room.until()
        if sender.poll() is KVPoll.Failed:
            env.reached("aborted in the middle")
        sender.node.await_safe(sender)
        pair.compare(blank)
        for room in (sender, receiver):
            room.clear()
        pair.move([24, 25, 26], target[:3])
        pair.compare(expected)
        pair.decode.memory.poison()

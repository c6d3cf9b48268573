"""KV-LIVE: peers that die, that stand still, that are slow, and what the others notice of it."""

from __future__ import annotations

from functools import partial
from time import sleep

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Pair
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.nodes.wire import Road, WireNode
from kv_conformance.nodes.wire_server import Introduction
from kv_conformance.suite.endings import at_rest, lost
from kv_conformance.suite.held import BIG, LOOK_S, PATIENT, TakeOver, fly, lacking, load_onto, see_held, states
from kv_core import Capability, KVPoll, Liveness, Role, TransferState, TransportError

SMALL = Shape(kv=(2, 32, 512))
STEADY = {"probe_interval_s": 0.25, "suspect_after": 1, "dead_after": 16}
"""Four seconds of silence until a peer is dead: one that stands still for a moment is not, though it is suspect."""
STOP_S = 0.9
HALTING = {"probe_interval_s": 0.2, "suspect_after": 1, "dead_after": 10}
HALT_S, HALTS = 0.5, 12
"""Each time one or two probes are missed: two seconds of silence would be death, and so would be misses that add up."""
FEW = Shape(kv=(3, 16, 256 << 10))
"""As ``BIG``, with fewer pages."""


def never_dead(node: FaceNode) -> None:
    """The observer must not have been told of a peer's death."""
    deaths = [event for event in node.events()[1] if event.liveness is Liveness.DEAD]
    assert not deaths, f"{node.process.name} took a peer for dead that stood still for a moment: {deaths[0].reason}"


@check("KV-LIVE-1", faults=(Fault.KILL, Fault.HOLD_DATA), reaches=("killed in flight",))
def test_a_decode_process_that_is_killed(env: Env) -> None:
    """The rooms of a process that has died fail in every stage: with a sentence, code peer_lost (or transport_error, where bytes
    were on their way), the side that is at fault, and marked as worth a retry. Their pages are given back. Rooms with
    other decode processes go on, and new ones go well.

    If this fails, look at whether transfers to a dead peer end (FAILED), and at what your manager overrides.
    """
    pair = env.pair(BIG, fault=Fault.HOLD_DATA)
    other = env.face(Role.DECODE, FEW, fault=Fault.HOLD_DATA)
    beside = Pair(pair.prefill, other, pair.addr, env.random)
    pair.move([0], [0])
    queued = pair.open()
    queued[0].init(1)
    waiting = pair.begin([1], [1])
    living = beside.begin([3, 4], [5, 6], room=100)
    flying = pair.begin(np.arange(2, 48), np.arange(2, 48))
    pair.decode.freeze()
    flying[0].send(np.arange(2, 48))
    flying[0].until(KVPoll.Transferring, KVPoll.Failed)
    sleep(LOOK_S / 2)
    if lacking(pair.decode.memory, np.arange(2, 48)):
        env.reached("killed in flight")
    pair.decode.kill()
    lost(waiting[0], Role.DECODE)
    lost(queued[0], Role.DECODE)
    lost(flying[0], Role.DECODE, in_flight=True)
    senders = [queued[0], waiting[0], flying[0]]
    pair.prefill.await_safe(*senders)
    for sender in senders:
        sender.clear()
    expected = beside.expectation([3, 4], [5, 6])
    living[0].send([3, 4])
    beside.succeed(*living)
    beside.compare(expected)
    for room in living:
        room.clear()
    at_rest(env, pair.prefill)
    beside.move([7, 8], [9, 10], room=101)


@check("KV-LIVE-2", faults=(Fault.KILL, Fault.HOLD_DATA), reaches=("killed in flight",), gate=False)
def test_a_prefill_process_that_is_killed(env: Env) -> None:
    """The rooms of a prefill process that has died in the middle of writing fail, with code peer_lost. Their pages are given back when it
    is proven that it has ended and what it had sent is read: from then on no byte lands in them. The decode manager uses
    other prefill processes.

    If this fails, look at who reads your sockets, and when: what a dead process sent must be read, or thrown away, at once.
    """
    flight = fly(env)
    pair, receiver = flight.pair, flight.receiver
    env.reached("killed in flight")
    pair.prefill.kill()
    owner = TakeOver(receiver, flight.target, POISON, 0, env.patience_s)
    pair.decode.thaw()
    owner.done()
    lost(receiver, Role.PREFILL)
    receiver.clear()
    at_rest(env, pair.decode)
    other = env.face(Role.PREFILL, BIG, fault=Fault.HOLD_DATA, bootstrap=0)
    again = Pair(other, pair.decode, other.bootstrap_addr, env.random)
    sleep(LOOK_S)
    wrong = pair.decode.memory.difference(flight.before)
    assert not wrong, f"bytes of a dead process landed after is_release_safe() had said that none can: {wrong}"
    again.good_room()


@check("KV-LIVE-3", faults=(Fault.KILL,))
def test_a_prefill_process_that_is_killed_while_rooms_wait_for_it(env: Env) -> None:
    """Rooms of which nothing is on its way fail as well when the prefill process dies: queued ones, and those that have named
    their pages.

    If this fails, look at what your manager overrides of _on_heartbeat_success and _handle_node_failure.
    """
    pair = env.pair(SMALL)
    pair.move([0], [0])
    queued, waiting = pair.open(), pair.begin([1], [1])
    queued[1].until(KVPoll.WaitingForInput, KVPoll.Failed)
    pair.prefill.kill()
    for _, receiver in (queued, waiting):
        lost(receiver, Role.PREFILL)
    pair.decode.await_safe(queued[1], waiting[1])
    for _, receiver in (queued, waiting):
        receiver.clear()
    at_rest(env, pair.decode)


@check("KV-LIVE-4", faults=(Fault.FREEZE, Fault.HOLD_DATA), reaches=("stopped in the middle",))
def test_slow_but_alive_is_not_dead(env: Env) -> None:
    """A process that stands still for less than the probes allow is not dead: its rooms succeed, with every byte, whatever
    was on its way at that time.

    If this fails, look at your engine's own time limits, and at what you report as FAILED for nothing but slowness.
    """
    pair = env.pair(
        BIG, fault=Fault.HOLD_DATA, config=STEADY, prefill={"observed": True}, decode={"observed": True}
    )  # fmt: skip
    pair.move([0], [0])
    source, target = np.arange(1, 48), np.arange(1, 48)[::-1].copy()
    expected = pair.expectation(source, target)
    sender, receiver = pair.begin(source, target)
    pair.decode.freeze()
    sender.send(source)
    sender.until(KVPoll.Transferring, KVPoll.Failed)
    sleep(STOP_S)
    if lacking(pair.decode.memory, target):
        env.reached("stopped in the middle")
    pair.prefill.freeze()
    pair.decode.thaw()
    sleep(STOP_S / 1.5)
    pair.prefill.thaw()
    pair.succeed(sender, receiver)
    pair.compare(expected)
    never_dead(pair.prefill)
    never_dead(pair.decode)


@check("KV-LIVE-5", faults=(Fault.FREEZE,), reaches=("stopped again and again",), gate=False)
def test_a_slow_peer(env: Env) -> None:
    """A process that runs only a part of the time, again and again, is slow and nothing worse: rooms with it succeed.

    If this fails, look at your engine's own time limits, and at what you report as FAILED for nothing but slowness.
    """
    pair = env.pair(BIG, config=HALTING, prefill={"observed": True}, decode={"observed": True})
    pair.move([0], [0])
    for slow, other in ((pair.decode, pair.prefill), (pair.prefill, pair.decode)):
        pair.decode.memory.poison()
        source, target = np.arange(1, 48), np.arange(1, 48)[::-1].copy()
        expected = pair.expectation(source, target)
        sender, receiver = pair.begin(source, target)
        for part in np.array_split(source, HALTS):
            sender.send(part)
            slow.freeze()
            sleep(HALT_S)
            other.snapshot()
            slow.thaw()
            sleep(HALT_S / 4)
        env.reached("stopped again and again")
        pair.succeed(sender, receiver)
        pair.compare(expected)
        never_dead(other)


@check("KV-LIVE-6", faults=(Fault.FREEZE, Fault.HOLD_DATA), reaches=("bytes held",))
def test_a_peer_that_stands_still_holds_up_nobody_else(env: Env) -> None:
    """While one decode process stands still with bytes on their way to it, rooms with another one go their way from opening to
    success; and when it goes on, its own room succeeds.

    If this fails, look at what your transport does for one peer at a time: a full socket must not be waited for in submit(),
    and a lock or a queue must not be shared.
    """
    pair = env.pair(BIG, fault=Fault.HOLD_DATA, config=PATIENT)
    beside = Pair(
        pair.prefill, env.face(Role.DECODE, FEW, fault=Fault.HOLD_DATA, config=PATIENT), pair.addr, env.random
    )
    pair.move([0], [0])
    pages = np.arange(1, 48)
    expected = pair.expectation(pages, pages)
    stuck = pair.begin(pages, pages)
    pair.decode.freeze()
    stuck[0].send(pages)
    stuck[0].until(KVPoll.Transferring, KVPoll.Failed)
    see_held(pair.decode.memory, pages)
    env.reached("bytes held")
    for number in range(100, 104):  # the two pairs share the prefill side, and so its room numbers
        pages_ = env.random.permutation(16)[:3]
        beside.move(pages_, pages_, room=number)
    pair.decode.thaw()
    pair.succeed(*stuck)
    pair.compare(expected)


@check("KV-LIVE-7", faults=(Fault.FREEZE, Fault.HOLD_DATA), reaches=("bytes held",))
def test_transfers_to_a_peer_that_stands_still_hold_up_no_others(env: Env) -> None:
    """submit() and progress() wait for no peer, and transfers to several peers don't wait for each other: with more outstanding to one that stands still than sockets hold, and with
    another one that stood still before it was ever written to, transfers to a third one are submitted and done.

    If this fails, look at what your transport does for one peer at a time: sending, connecting, taking completions in order.
    """
    writer, stuck = env.ends(BIG, fault=Fault.HOLD_DATA)
    mute, lively = (env.wire(Role.DECODE, BIG, fault=Fault.HOLD_DATA, wait=False) for _ in range(2))
    mute.process.started()
    lively.process.started()
    told = mute.introduce()
    mute.freeze()
    road = writer.meet(lively)
    work = load_onto(env, writer, stuck, writer.meet(stuck))
    env.reached("bytes held")
    unmet, first = _approach(writer, told)
    expected = lively.memory.image()
    for number in range(20):
        one = writer.submit(road, ([number], [number]))
        env.wait_until(
            partial(_done, writer, one, work.numbers),
            "the end of a small transfer, with others to a peer that stands still outstanding",
        )
        writer.release(one)
    expected.take(writer.memory, range(20), range(20))
    wrong = lively.memory.difference(expected)
    assert not wrong, wrong
    mute.thaw()
    stuck.thaw()
    records = writer.drive(*work.numbers)
    assert all(record.state is TransferState.DONE for record in records), (
        f"transfers to a peer that stood still for a moment: expected done, seen {states(records)}"
    )
    if unmet is None:
        return
    ended = writer.drive(first, quiescent=False)[0]
    assert ended.state is not TransferState.PENDING, (
        "a transfer to a peer that stood still before it was met never ends"
    )
    writer.release(first)
    env.wait_until(
        lambda: writer.drive(writer.submit(unmet, ([2], [2])))[0].state is TransferState.DONE,
        "a transfer to a peer that stood still when it was met, and goes on",
    )


@check("KV-LIVE-8", requires=Capability.PROBE, faults=(Fault.FREEZE, Fault.KILL))
def test_probing_a_peer(env: Env) -> None:
    """probe() says whether a peer can be reached through the fabric now: True for one that lives, False for one whose process
    has ended and for one that is not known. It comes back whatever the peer does, and never raises.

    If this fails, look at what probe() asks: that a kernel accepted a connection does not mean that anybody is there.
    """
    writer, target = env.ends(SMALL)
    road = writer.meet(target)
    assert writer.probe(road), "probe() of a peer that lives is False"
    writer.write(road, ([1], [1]))
    assert writer.probe(road), "probe() of a peer that lives and was written to is False"
    assert not writer.probe(road._replace(name="nobody")), "probe() of a peer that was never added is True"
    assert not writer.probe(road._replace(generation=99)), "probe() of a generation that was never added is True"
    target.freeze()
    writer.probe(road)
    target.thaw()
    env.wait_until(lambda: writer.probe(road), "that probe() finds the peer again, which goes on")
    writer.write(road, ([2], [2]))
    target.kill()
    env.wait_until(lambda: not writer.probe(road), "that probe() says False of a process that was killed")
    assert not writer.probe(road), "probe() says True again of a process that was killed"


def _done(writer: WireNode, number: int, others: list[int]) -> bool:
    """Whether a transfer is done, asked about together with others, as core does it."""
    told = {record.number: record for record in writer.progress(*others, number)}
    record = told.get(number)
    assert record is None or record.state is not TransferState.FAILED, f"transfer {number} failed: {record}"
    return record is not None and record.state is TransferState.DONE


def _approach(writer: WireNode, told: Introduction) -> tuple[Road | None, int]:
    """Meet a peer that stands still, and submit something to it; None if that is refused, as it may be."""
    try:
        road = writer.meet(told)
    except TransportError:
        return None, 0
    return road, writer.submit(road, ([1], [1]))

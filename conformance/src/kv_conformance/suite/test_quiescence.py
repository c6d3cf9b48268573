"""KV-ABORT 11 to 22: what a transport says of transfers that are held, removed, lost, cancelled or fenced, and whether it is so."""

from __future__ import annotations

from time import monotonic, sleep

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.suite.held import (
    BIG,
    LOOK_S,
    Witness,
    lacking,
    load,
    load_onto,
    see_held,
    serves,
    states,
    stay_untouched,
)
from kv_conformance.suite.in_node_abort import fence_and_take_over
from kv_core import Capability, Role, TransferState

SMALL = Shape(kv=(2, 32, 512))
LONG_S = 40.0
"""Longer than engines take that give up a peer which stands still."""


@check("KV-ABORT-11", faults=(Fault.HOLD_DATA,), reaches=("bytes held",))
def test_what_has_not_arrived_is_not_done(env: Env) -> None:
    """DONE means that every byte is in the peer's memory, and implies quiescent. While the peer's process stands still and the
    bytes wait somewhere on their way, a transfer is PENDING, or FAILED; when it goes on, they arrive.

    If this fails, look at what your engine's completion means: that the bytes were handed over is not enough.
    """
    work = load(env)
    env.reached("bytes held")
    witness = Witness(work)
    witness.watch(LOOK_S)
    done = [number for number in work.items if witness.state(number) is TransferState.DONE]
    for number in done:
        assert not lacking(work.target.memory, work.items[number][1]), (
            f"transfer {number} is reported DONE, and the process that is to receive it has been stopped since before it was "
            "submitted: its bytes are not in that process's memory"
        )
    work.target.thaw()
    env.wait_until(witness.settled, f"the end of {len(work.items)} transfers to a peer that was stopped for a moment")
    said = list(witness.records.values())
    assert all(record.state is TransferState.DONE for record in said), (
        f"a peer that stood still for a moment is slow, and not lost: expected all transfers done, seen {states(said)}: "
        f"{next(record.error for record in said if record.state is not TransferState.DONE)}"
    )
    witness.compare()


@check("KV-ABORT-12", faults=(Fault.HOLD_DATA,), reaches=("bytes held",))
def test_outstanding_transfers_of_a_removed_peer(env: Env) -> None:
    """remove_peer() refuses new submissions at once; what is outstanding stays in progress() until it is quiescent. A record
    that says quiescent is final: no byte of that transfer lands afterwards.

    If this fails, look at remove_peer() and at what you take for a proof: that a connection was closed here proves nothing
    about what lies in the peer's sockets.
    """
    work = load(env)
    env.reached("bytes held")
    witness = Witness(work)
    witness.watch(LOOK_S)  # driven as core drives it: what can be on its way to the peer is
    work.writer.remove_peer(work.road)
    late = work.writer.submit(work.road, ([0], [0]))
    witness.watch(LOOK_S)
    work.target.thaw()
    env.wait_until(witness.settled, "the end of transfers to a removed peer that runs: they stay in progress()")
    witness.watch(2 * LOOK_S)
    sleep(LOOK_S)
    witness.compare()
    refused = work.writer.drive(late)[0]
    assert refused.state is TransferState.FAILED, (
        f"a submission to a removed peer is {refused.state.value}, expected a TransportError"
    )
    serves(env, work.writer)


@check("KV-ABORT-13", faults=(Fault.HOLD_DATA, Fault.KILL), reaches=("bytes held",))
def test_outstanding_transfers_of_a_peer_that_dies(env: Env) -> None:
    """Transfers to a process that has ended become FAILED, with a sentence, and never DONE unless their bytes had arrived. One
    that is not quiescent is reported again on each call, until it is released; the transport serves other peers.

    If this fails, look at how you notice that a peer is gone, and at what progress() says of the same transfer twice.
    """
    work = load(env)
    env.reached("bytes held")
    witness = Witness(work)
    work.target.kill()
    env.wait_until(witness.settled, "the end of transfers to a process that was killed")
    for _ in range(3):
        witness.look()
    for number in work.items:
        record = witness.records[number]
        complete = not lacking(work.target.memory, work.items[number][1])
        assert record.state is TransferState.FAILED or complete, (
            f"transfer {number} to a process that was killed is {record.state.value}, and its bytes have not arrived"
        )
        assert record.state is not TransferState.FAILED or record.error, f"transfer {number} failed without a sentence"
    work.writer.remove_peer(work.road)
    work.writer.release(*witness.open)
    serves(env, work.writer)


@check("KV-ABORT-14", faults=(Fault.HOLD_DATA,), reaches=("bytes held",), gate=False)
def test_what_an_engine_gave_up_is_not_quiescent_for_that(env: Env) -> None:
    """FAILED does not imply quiescent: a timeout or an error code is no proof. What was called quiescent while the peer's
    process stood still, for as long as it took the engine to lose its patience, does not land when the process goes on.

    If this fails, look at the transfers that your engine gives up by itself: it may not know what becomes of their bytes.
    """
    work = load(env)
    env.reached("bytes held")
    witness = Witness(work)
    deadline = monotonic() + LONG_S
    while monotonic() < deadline and not witness.settled():
        if any(record.state is TransferState.FAILED for record in witness.records.values()):
            break
        sleep(0.02)
    witness.watch(4 * LOOK_S)
    work.target.thaw()
    env.wait_until(witness.settled, "the end of transfers to a peer that was stopped and goes on")
    witness.watch(4 * LOOK_S)
    sleep(LOOK_S)
    witness.compare()


@check("KV-ABORT-15", faults=(Fault.HOLD_DATA,), reaches=("bytes held",))
def test_closing_with_transfers_outstanding(env: Env) -> None:
    """close() comes back although transfers to a peer that stands still are outstanding; a second one does nothing.

    If this fails, look at what close() waits for: it joins its own threads, and waits for no peer.
    """
    work = load(env)
    env.reached("bytes held")
    work.writer.close()
    work.writer.close()
    work.target.thaw()
    assert work.target.introduce().descriptor, "the peer of a closed transport must go on"


@check("KV-ABORT-16", requires=Capability.CANCEL)
def test_cancelling_what_has_ended_does_nothing(env: Env) -> None:
    """cancel() of a transfer that is done changes nothing: it stays done, and the peer can be written to.

    If this fails, look at cancel(): it may come at any time between submit() and release().
    """
    writer, target = env.ends(SMALL)
    road = writer.meet(target)
    expected = target.memory.image()
    expected.take(writer.memory, [1, 2], [3, 4])
    number = writer.submit(road, ([3, 4], [1, 2]))
    first = writer.drive(number)[0]
    writer.cancel(number)
    writer.cancel(number)
    assert first.state is TransferState.DONE, f"the transfer is {first.state.value}: {first.error}"
    again = writer.drive(number, limit_s=LOOK_S)[0]
    assert again.state is TransferState.DONE, f"after cancel() a transfer that was done is {again.state.value}"
    writer.release(number)
    wrong = target.memory.difference(expected)
    assert not wrong, wrong
    expected.take(writer.memory, [5], [6])
    writer.write(road, ([6], [5]))
    wrong = target.memory.difference(expected)
    assert not wrong, wrong


@check("KV-ABORT-17", requires=Capability.CANCEL, faults=(Fault.HOLD_DATA,), reaches=("bytes held",))
def test_what_is_cancelled_before_it_left_never_lands(env: Env) -> None:
    """A cancelled transfer is reported FAILED, and quiescent as soon as that is certain; what has not left yet never will.
    Others to the same peer arrive.

    If this fails, look at cancel(): what it takes out of your queue, and what it says of a transfer that is half on its way.
    """
    writer, target = env.ends(BIG, fault=Fault.HOLD_DATA)
    road = writer.meet(target)
    probe = writer.submit(road, ([1], [0]))
    writer.drive(probe)
    writer.cancel(probe)  # without the capability it ends here
    writer.release(probe)
    work = load_onto(env, writer, target, road, transfers=8)
    env.reached("bytes held")
    witness = Witness(work)
    cancelled = work.numbers[1::2]
    for number in cancelled:
        writer.cancel(number)
    last = cancelled[-1]
    env.wait_until(
        lambda: witness.settled() or witness.state(last) is TransferState.FAILED,
        "the end of a cancelled transfer that stood behind others to a peer that is stopped",
    )
    target.thaw()
    env.wait_until(witness.settled, "the end of all transfers")
    env.wait_until(lambda: witness.settled() and not witness.open, "that all are quiescent, with every process running")
    sleep(LOOK_S)
    witness.compare()
    for number in work.numbers[::2]:
        assert witness.state(number) is TransferState.DONE, (
            f"transfer {number} was not cancelled and is {witness.state(number).value}: {witness.records[number].error}"
        )


@check("KV-ABORT-18", requires=Capability.FENCE, reaches=("a write after the fence",))
def test_a_fence_shuts_out_a_generation_and_those_before(env: Env) -> None:
    """After fence() returned, nothing of that generation of the peer, or of an earlier one, lands; a later one, and other
    peers, may write. Fencing a peer that is not known, or fencing twice, returns.

    If this fails, look at what your fence remembers: the generation, for as long as the peer may try.
    """
    target = env.wire(Role.DECODE, SMALL)
    target.fence("nobody", 3)
    writer, other = env.wire(Role.PREFILL, SMALL, wait=False), env.wire(Role.PREFILL, SMALL, wait=False)
    writer.process.started()
    other.process.started()
    expected = target.memory.image()
    expected.take(writer.memory, [0, 1], [0, 1])
    road, beside = writer.meet(target, 2), other.meet(target, 4)
    writer.write(road, ([0], [0]))
    other.write(beside, ([2], [2]))
    expected.take(other.memory, [2], [2])
    target.fence(writer.name, 1)
    writer.write(road, ([1], [1]))
    for generation in (4, 4, 1):
        target.fence(writer.name, generation)
    numbers = writer.submit_many(road, 8, (np.arange(8, 32), np.arange(8, 32)))
    for record in writer.drive(*numbers, quiescent=False):
        assert record.state is TransferState.FAILED, (
            f"transfer {record.number} of a generation that was fenced off is {record.state.value}, expected failed"
        )
    env.reached("a write after the fence")
    stay_untouched(target, expected, "bytes of a generation that was fenced off have landed")
    other.write(beside, ([5], [6]))
    expected.take(other.memory, [6], [5])
    writer.remove_peer(road)
    writer.write(writer.meet(target, 5), ([3], [4]))
    expected.take(writer.memory, [4], [3])
    stay_untouched(target, expected, "after the fence, with a later generation and another peer writing")


@check("KV-ABORT-19", requires=Capability.FENCE, reaches=("fenced in the middle",), gate=False)
def test_a_fence_in_the_middle_of_writes(env: Env) -> None:
    """fence() returns only when no byte can land any more, also of transfers that are landing at that moment, and while the
    writer goes on submitting.

    If this fails, look at what is between your look at the fence and the copy into memory: the fence has to wait for it.
    """
    target = env.wire(Role.DECODE, BIG)
    target.fence("nobody", 1)
    writer = env.wire(Role.PREFILL, BIG)
    expected = target.memory.image()
    pages = np.arange(BIG.kv[1])
    name = writer.name
    for generation in range(2, 6):
        road = writer.meet(target, generation)
        writer.write(road, (pages[:1], pages[:1]))
        target.memory.poison()
        begun = writer.submit_many(road, 12, (pages, pages))
        env.wait_until(
            lambda: bool((target.memory.kv[0] != expected.kv[0]).any()), "the first byte of many that were submitted"
        )
        target.call(fence_and_take_over, name, generation)
        late = writer.submit_many(road, 2, (pages, pages))
        writer.progress(*begun, *late)
        stay_untouched(target, expected, f"after fence() of generation {generation} returned, with the writer going on")
        writer.remove_peer(road)
        if any(record.state is TransferState.FAILED for record in writer.drive(*begun)):
            env.reached("fenced in the middle")
        writer.drive(*late)
        writer.release(*begun, *late)


@check(
    "KV-ABORT-20",
    requires=Capability.FENCE,
    faults=(Fault.HOLD_DATA, Fault.FREEZE),
    reaches=("bytes held",),
    gate=False,
)
def test_a_fence_against_a_writer_that_stands_still(env: Env) -> None:
    """fence() returns although the writer stands still in the middle of a transfer; when it goes on, nothing of that
    transfer lands, and it is told so: the transfer is not DONE.

    If this fails, look at what your fence asks the writer for: it must work without him.
    """
    target = env.wire(Role.DECODE, BIG, fault=Fault.HOLD_DATA)
    target.fence("nobody", 1)
    writer = env.wire(Role.PREFILL, BIG, fault=Fault.HOLD_DATA)
    work = load_onto(env, writer, target, writer.meet(target))
    name = writer.name
    writer.freeze()
    target.thaw()
    see_held(target.memory, np.arange(1, BIG.kv[1]))
    env.reached("bytes held")
    complete = {number: not lacking(target.memory, items[1]) for number, items in work.items.items()}
    target.call(fence_and_take_over, name, 1)
    expected = target.memory.image()
    expected.whole[:] = POISON
    writer.thaw()
    records = writer.drive(*work.numbers, quiescent=False)
    stay_untouched(target, expected, "bytes of a fenced writer landed when it went on")
    for record in records:
        assert record.state is not TransferState.PENDING, (
            f"transfer {record.number} to a peer that has fenced this side off stays PENDING"
        )
        assert record.state is TransferState.FAILED or complete[record.number], (
            f"transfer {record.number} is {record.state.value}, and not all of it had landed before the fence"
        )


@check(
    "KV-ABORT-21",
    requires=Capability.FENCE,
    faults=(Fault.HOLD_DATA, Fault.FREEZE),
    reaches=("bytes held",),
    gate=False,
)
def test_nothing_lands_in_the_memory_of_a_closed_transport(env: Env) -> None:
    """After close() returned no inbound byte lands in the memory that was registered, whatever its writers do.

    If this fails, look at the order in close(): first nothing may land any more, then the rest.
    """
    target = env.wire(Role.DECODE, BIG, fault=Fault.HOLD_DATA)
    target.fence("nobody", 1)
    writer = env.wire(Role.PREFILL, BIG, fault=Fault.HOLD_DATA)
    work = load_onto(env, writer, target, writer.meet(target))
    writer.freeze()
    target.thaw()
    see_held(target.memory, np.arange(1, BIG.kv[1]))
    env.reached("bytes held")
    target.close()
    expected = target.memory.image()
    writer.thaw()
    writer.drive(*work.numbers, quiescent=False)
    stay_untouched(target, expected, "bytes landed in the memory of a closed transport")


@check("KV-ABORT-22", faults=(Fault.HOLD_DATA,), reaches=("bytes held",))
def test_outstanding_transfers_to_a_peer_that_closes(env: Env) -> None:
    """Transfers to a peer that closes its transport come to an end: those that had arrived are DONE, the others FAILED, with a
    sentence. The process lives, so what is called quiescent must be it: nothing of it lands afterwards.

    If this fails, look at how you notice that the other end is gone although its process lives.
    """
    work = load(env)
    env.reached("bytes held")
    witness = Witness(work)
    work.target.process.tell("close")
    work.target.thaw()
    work.target.process.answer("close")
    env.wait_until(witness.settled, "the end of transfers to a peer that has closed its transport")
    sleep(LOOK_S)
    witness.compare()
    for record in witness.records.values():
        assert record.state is not TransferState.FAILED or record.error, (
            f"transfer {record.number} failed without a sentence"
        )
    serves(env, work.writer)

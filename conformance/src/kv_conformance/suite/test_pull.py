"""KV-PULL: rooms whose bytes decode reads from prefill's memory (``Direction.READ``)."""

from __future__ import annotations

from collections.abc import Mapping
from time import sleep
from typing import Any

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import Pair
from kv_conformance.nodes.memory import POISON, Image, Shape
from kv_conformance.suite.cache import Model, Side
from kv_conformance.suite.endings import at_rest, give_up, given_up, lost
from kv_conformance.suite.held import BIG, LOOK_S, PATIENT, REUSED, Flight, TakeOver, kept, lacking, see_held
from kv_conformance.suite.topologies import written
from kv_conformance.suite.topology_faces import Instances
from kv_core import Capability, Direction, KVPoll, Role

READ: Mapping[str, Any] = {"direction": Direction.READ}
ROOMS, PAGES, LAYERS = 4, 12, 3
"""Of the check of every byte: rooms at once, pages of each, layers."""


@check("KV-PULL-1", requires=Capability.READ)
def test_every_byte_is_read(env: Env) -> None:
    """READ: with ``TransferConfig(direction=Direction.READ)`` rooms move as they do otherwise, several at once, in chunks of pages and
    of layers, with state items and auxiliary rows: each byte arrives where its room named it, both sides count the same bytes, and
    prefill's memory stays as it was. Undeclared, a manager with that direction is refused with NotSupported.

    If this fails, look at which side of a batch submit() reads with Direction.READ, and at what you keep for longer than a batch.
    """
    pools = {"mamba": (2, 8, 300), "window": (1, 16, 7)} if env.declares(Capability.STATE) else {}
    shape = Shape(kv=(LAYERS, 64, 1000), aux=(2, ROOMS, 40), states=pools)
    pair = env.pair(shape, config=READ)
    before, expected = pair.prefill.memory.image(), pair.decode.memory.image()
    sources, targets = (np.split(env.random.permutation(64)[: ROOMS * PAGES], ROOMS) for _ in range(2))
    rooms = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        row = (number, ROOMS - 1 - number)
        items = {name: ([2 * number + 1, 2 * number], [number, number + ROOMS]) for name in pools}
        expected.take(before, target, source)
        expected.take(before, [row[1]], [row[0]], "aux")
        for name, (mine, theirs) in items.items():
            expected.take(before, theirs, mine, name)
        rooms.append((*pair.begin(source, target, aux=row, states=items), source, items))
    third = PAGES // 3
    for sender, _, source, _ in rooms:
        sender.send(source[:third])
    for sender, _, source, _ in rooms[::-1]:
        sender.send(source[third : 2 * third], layers=range(1, LAYERS))
    for sender, _, source, items in rooms:
        sender.send(source[third:], layers=range(1))
        here = {name: np.asarray(mine, np.uint64) for name, (mine, _) in items.items()}
        sender.send(source[2 * third :], layers=range(1, LAYERS), state_indices=here or None)
    for sender, receiver, _, _ in rooms:
        pair.succeed(sender, receiver)
    pair.compare(expected, before)
    nbytes = LAYERS * PAGES * 1000 + 2 * 40 + sum(2 * buffers * size for buffers, _, size in pools.values())
    for room in (handle for sender, receiver, _, _ in rooms for handle in (sender, receiver)):
        seen = room.metric().transfer_total_bytes
        assert seen == nbytes, (
            f"room {room.room} at {room.node.process.name}: transfer_total_bytes is {seen}, expected {nbytes}"
        )
        room.node.await_safe(room)


@check(
    "KV-PULL-2", requires=Capability.READ, faults=(Fault.HOLD_DATA,), reaches=("given up in the middle of a read",),
    gate=False,
)  # fmt: skip
def test_the_receiver_aborts_while_it_reads(env: Env) -> None:
    """READ: after an abort in the middle of a read decode's pages may be reused when the transport has proof that no byte of it can land,
    and prefill's when decode has said that its reads have ended: no byte lands after that, and nothing of a page's next
    owner is read.

    If this fails, look at what your transport calls quiescent: a cancel, an error or a release of a read is no proof.
    """
    if not env.declares(Capability.READ):
        env.face(Role.DECODE, config=READ)
        return
    flight = _reading(env)
    pair, sender, receiver = flight.pair, flight.sender, flight.receiver
    give_up(receiver)
    env.reached("given up in the middle of a read")
    kept(pair.decode, receiver)
    reader, owner = flight.owners_follow(env.patience_s)
    sleep(LOOK_S)
    pair.prefill.thaw()
    reader.done()
    assert not owner.done(), "bytes were read that were written into the source pages after they had been given back"
    given_up(receiver, sender)
    _stays(pair, flight.before)


@check(
    "KV-PULL-3", requires=Capability.READ, faults=(Fault.HOLD_DATA,), reaches=("given up in the middle of a read",),
    gate=False,
)  # fmt: skip
def test_the_sender_aborts_while_it_is_read(env: Env) -> None:
    """READ: after prefill's abort its pages are kept as long as a decode process that may still read them stands still, and
    snapshot()["quarantined"] names them. When it goes on, it says that its reads have ended; both sides' pages are free then, and
    the next room goes well.

    If this fails, look at what your sender overrides of is_release_safe(): its own abort proves nothing of another one's reads.
    """
    if not env.declares(Capability.READ):
        env.face(Role.DECODE, config=READ)
        return
    flight = _reading(env)
    pair, sender, receiver = flight.pair, flight.sender, flight.receiver
    pair.decode.freeze()
    pair.prefill.thaw()
    see_held(pair.decode.memory, flight.target)
    give_up(sender)
    env.reached("given up in the middle of a read")
    assert kept(pair.prefill, sender), (
        "is_release_safe() is True although the process that reads stands still in the middle of it, and has said nothing"
    )
    reader, owner = flight.owners_follow(env.patience_s)
    sleep(LOOK_S)
    pair.decode.thaw()
    reader.done()
    assert not owner.done(), "bytes were read that were written into the source pages after they had been given back"
    given_up(sender, receiver)
    _stays(pair, flight.before)


@check(
    "KV-PULL-4", requires=Capability.READ, faults=(Fault.HOLD_DATA, Fault.KILL), reaches=("killed in the middle of a read",),
    gate=False,
)  # fmt: skip
def test_a_prefill_process_that_is_killed_while_it_is_read(env: Env) -> None:
    """READ: when the prefill process dies in the middle of a read the room fails with peer_lost or transport_error, and its pages are
    given back: no byte lands from then on. Another prefill process serves the same decode process.

    If this fails, look at whether a read from a dead peer ends (FAILED, then quiescent), and at what it leaves behind.
    """
    if not env.declares(Capability.READ):
        env.face(Role.DECODE, config=READ)
        return
    flight = _reading(env)
    pair, receiver = flight.pair, flight.receiver
    env.reached("killed in the middle of a read")
    pair.prefill.kill()
    lost(receiver, Role.PREFILL, in_flight=True)
    TakeOver(receiver, flight.target, POISON, REUSED, env.patience_s).done()
    receiver.clear()
    at_rest(env, pair.decode)
    other = env.face(Role.PREFILL, BIG, fault=Fault.HOLD_DATA, bootstrap=0, config={**PATIENT, **READ})
    _stays(Pair(other, pair.decode, other.bootstrap_addr, env.random), flight.before)


@check("KV-PULL-5", requires=Capability.READ, gate=False)
def test_reading_from_unequal_ranks(env: Env) -> None:
    """READ: a decode rank reads its part of each of several prefill ranks, and several decode ranks read each theirs of one: the
    remote side of a plan is prefill's then. Each side counts what moved there.

    If this fails, look at whether you take the remote lanes of a plan for decode's: with Direction.READ they are prefill's.
    """
    model = Model(heads=4, row=40, tokens=24)
    for here, there in ((2, 1), (1, 2)):
        pair = Instances(env, model, Side(tp=here), Side(tp=there), config=READ)
        pair.moves()
        parts = [written(decode.expected()) for decode in pair.decodes]
        senders, receivers = (
            [seat.room.metric().transfer_total_bytes or 0 for seat in seats] for seats in (pair.prefills, pair.decodes)
        )
        what = f"tp {here} to {there}: transfer_total_bytes"
        assert receivers == parts, f"{what} of the receivers are {receivers}, expected {parts}"
        assert sum(senders) == sum(parts), f"{what} of the senders are {senders}, expected {sum(parts)} in all"
        pair.close()


# -- what they share -------------------------------------------------------------------------------------------------------


def _reading(env: Env) -> Flight:
    """A room in the middle of being read over most of its pages: prefill has named them and is stopped, decode runs."""
    pair = env.pair(BIG, fault=Fault.HOLD_DATA, config={**PATIENT, **READ})
    pair.move([0, 1], [1, 0])
    source, target = (env.random.permutation(np.arange(8, BIG.kv[1])) for _ in range(2))
    sender, receiver = pair.begin(source, target)
    before = pair.decode.memory.image()
    pair.decode.freeze()  # so that it hears of the pages when nobody is there to serve them
    for part in np.array_split(source, 4):
        sender.send(part)
    sender.until(KVPoll.Transferring, KVPoll.Failed)
    sleep(2 * LOOK_S)  # prefill's messages wait in the kernel from now on
    pair.prefill.freeze()
    pair.decode.thaw()
    env.wait_until(
        lambda: pair.decode.snapshot()["transfers"]["outstanding_transfers"] or not lacking(pair.decode.memory, target),
        "decode's reads of the pages that prefill named",
    )
    see_held(pair.decode.memory, target)
    return Flight(pair, sender, receiver, source, target, before)


def _stays(pair: Pair, expected: Image) -> None:
    """Nothing may land any more but what the next room reads, which would come after what was held back."""
    sleep(LOOK_S)
    wrong = pair.decode.memory.difference(expected)
    assert not wrong, f"bytes landed after is_release_safe() had said that none can: {wrong}"
    pair.move([2, 3], [6, 5])
    expected.take(pair.prefill.memory, [6, 5], [2, 3])
    wrong = pair.decode.memory.difference(expected)
    assert not wrong, f"bytes landed after is_release_safe() had said that none can, with the next room: {wrong}"

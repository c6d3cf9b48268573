"""KV-RST: processes that die and are followed by others, in the middle of transfers."""

from __future__ import annotations

from time import sleep

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Pair, Room
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.suite.held import BIG, LOOK_S, PATIENT, TakeOver, fly_between, load
from kv_conformance.suite.in_node_liveness import control_port
from kv_core import FailureCode, KVPoll, Role, TransferState

SMALL = Shape(kv=(2, 32, 512))
GONE = {FailureCode.PEER_LOST, FailureCode.PEER_REPLACED, FailureCode.TRANSPORT_ERROR}
"""What an old room may say: that its peer was lost, or replaced, or that its bytes could not be moved any more."""


def ended_with_its_peer(room: Room) -> None:
    """A room of the old life must have failed for its peer's sake."""
    failure = room.failed()
    assert failure.code in GONE, (
        f"room {room.room} at {room.node.process.name}: expected {', '.join(sorted(code.value for code in GONE))}; seen {failure}"
    )


def follow(
    env: Env, old: FaceNode, role: Role, *, same_port: int | None = None, bootstrap: int | None = None
) -> FaceNode:
    """The process that takes an old one's place; a decode process has its very memory, poisoned."""
    memory = None
    if role is Role.DECODE:
        old.memory.poison()
        memory = old.memory
    config = {**PATIENT, **({} if same_port is None else {"control_port": same_port})}
    return env.face(
        role, old.memory.shape, fault=Fault.HOLD_DATA, memory=memory, config=config, bootstrap=bootstrap,
        name=f"{role.value}-again",
    )  # fmt: skip


def meet_again(env: Env, pair: Pair) -> None:
    """Open rooms until one finds the prefill process: until that is registered, the bootstrap server names the one before it."""

    def met() -> bool:
        receiver = pair.decode.open(pair.addr, 1 << 40)
        receiver.init()
        look = receiver.until(KVPoll.WaitingForInput, KVPoll.Failed)
        assert look.failure is None or (look.failure.retryable and look.failure.code in GONE), (
            f"a room that asked for a process which is gone: expected peer_lost, worth a retry; seen {look.failure}"
        )
        receiver.abort("it was only to be seen whether they meet")
        receiver.clear()
        return look.state is KVPoll.WaitingForInput

    env.wait_until(met, "the restarted processes to find each other")


@check("KV-RST-1", faults=(Fault.RESTART, Fault.HOLD_DATA), reaches=("killed in flight",), gate=False)
def test_a_decode_process_is_restarted(env: Env) -> None:
    """A decode process that takes the place of a killed one, at the same address or at another, is a new peer: rooms of the old
    one fail, no byte that was on its way to it lands in the new one's memory, and rooms with the new one go well, also
    under the old numbers.

    If this fails, look at what you keep of a peer by its address: it is the name and the generation that make it this one.
    """
    pair = env.pair(BIG, fault=Fault.HOLD_DATA, config=PATIENT)
    port = pair.decode.call(control_port)
    flight = fly_between(env, pair)
    env.reached("killed in flight")
    number = flight.sender.room
    pair.decode.kill()
    again = follow(env, pair.decode, Role.DECODE, same_port=port)
    ended_with_its_peer(flight.sender)
    pair.prefill.await_safe(flight.sender)
    flight.sender.clear()
    second = Pair(pair.prefill, again, pair.addr, env.random)
    second.move(flight.source[:8], flight.target[:8], room=number)
    expected = again.memory.image()
    sleep(LOOK_S)
    second.compare(expected)
    again.kill()
    elsewhere = follow(env, again, Role.DECODE)
    third = Pair(pair.prefill, elsewhere, pair.addr, env.random)
    third.move(flight.source[:8], flight.target[:8], room=number)


@check("KV-RST-2", faults=(Fault.RESTART, Fault.HOLD_DATA), reaches=("killed in flight",), gate=False)
def test_a_prefill_process_is_restarted(env: Env) -> None:
    """A prefill process that takes the place of a killed one at the same bootstrap address is found by decode's next rooms,
    also under the old numbers; rooms of the old one fail, and no byte of it lands in pages that were given back.

    If this fails, look at what you keep of a peer by its address, and at who reads what a dead process had sent.
    """
    prefill = env.face(Role.PREFILL, BIG, fault=Fault.HOLD_DATA, config=PATIENT, bootstrap=0, wait=False)
    decode = env.face(Role.DECODE, BIG, fault=Fault.HOLD_DATA, config=PATIENT, wait=False)
    for node in (prefill, decode):
        node.process.started()
    addr = prefill.bootstrap_addr
    flight = fly_between(env, Pair(prefill, decode, addr, env.random))
    env.reached("killed in flight")
    number = flight.receiver.room
    prefill.kill()
    again = follow(env, prefill, Role.PREFILL, bootstrap=int(addr.rpartition(":")[2]))
    owner = TakeOver(flight.receiver, flight.target, POISON, 0, env.patience_s)
    decode.thaw()
    owner.done()
    ended_with_its_peer(flight.receiver)
    flight.receiver.clear()
    second = Pair(again, decode, again.bootstrap_addr, env.random)
    assert again.bootstrap_addr == addr, "the suite's own node did not come back at the same address"
    second.compare(flight.before)
    second.move(flight.source[:8], flight.target[:8], room=number)
    second.good_room()


@check("KV-RST-3", faults=(Fault.RESTART,), gate=False)
def test_both_processes_are_restarted(env: Env) -> None:
    """After both sides were killed and restarted, with the same bootstrap server and the same room numbers, rooms go well: no
    registration, session or room of the old lives is in their way.

    If this fails, look at what your plugin keeps outside of its processes: files, ports, shared memory.
    """
    pair = env.pair(SMALL)
    for room in range(3):
        pair.move([1, 2, 3], [4, 5, 6], room=room)
    pair.begin([7], [7], room=3)
    pair.prefill.kill()
    pair.decode.kill()
    again = env.pair(SMALL)
    meet_again(env, again)
    for room in range(5):
        again.move([1, 2, 3], [4, 5, 6], room=room)


@check("KV-RST-4", faults=(Fault.RESTART, Fault.HOLD_DATA), reaches=("killed in flight",))
def test_a_transport_whose_process_is_restarted(env: Env) -> None:
    """A transport in another process is another peer, whatever it has in common with one that died: what was submitted to the
    old one, or is submitted on what was prepared for it, is not done, and never lands in the new one's memory; the new one
    is met and written to meanwhile.

    If this fails, look at what you keep of a peer by its address or by its port.
    """
    work = load(env)
    env.reached("killed in flight")
    writer, memory = work.writer, work.target.memory
    work.target.kill()
    complete = {
        number: not any(bool((array[items[1]] == POISON).any()) for array in memory.kv)
        for number, items in work.items.items()
    }
    memory.poison()
    fresh = env.wire(Role.DECODE, BIG, fault=Fault.HOLD_DATA, memory=memory, name="again")
    expected = memory.image()
    road = writer.meet(fresh)
    late = writer.submit(work.road, (np.arange(8, 16), np.arange(8, 16)))
    writer.write(road, ([1, 2], [3, 4]))
    expected.take(writer.memory, [3, 4], [1, 2])
    for record in writer.drive(*work.numbers, late, quiescent=False):
        assert record.state is TransferState.FAILED or complete.get(record.number), (
            f"transfer {record.number} to a process that has died is {record.state.value}"
        )
    sleep(LOOK_S)
    wrong = memory.difference(expected)
    assert not wrong, f"the memory of the process that followed: {wrong}"
    writer.remove_peer(work.road)
    writer.release(*work.numbers, late)
    writer.write(road, ([5], [6]))
    expected.take(writer.memory, [6], [5])
    wrong = memory.difference(expected)
    assert not wrong, wrong

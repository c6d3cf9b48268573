"""A peer between which and this rank nothing moves: the transport hears nothing of it, and its chunks land at once."""

from __future__ import annotations

from dataclasses import replace

from core.tests.transfer.support import Bench, Memory, bench, until
from kv_core.contract.enums import Role
from kv_core.contract.memory import Topology
from kv_core.contract.transport import TransferPlan
from kv_core.protocol.effects import AddPeer, RemovePeer
from kv_core.protocol.peers import Peer
from kv_core.runtime.rules import Pair, Place


class Idle(Pair):
    """Two ranks that have nothing in common."""

    def plan(self) -> TransferPlan:
        """No pool."""
        return replace(super().plan(), pools=())


def idle_peer(b: Bench, generation: int = 1) -> Peer:
    """A stranger that the engine is told of."""
    peer = b.stranger("idle", generation)
    peer.layout = Idle(Role.PREFILL, *(Place(memory.layout, Topology(), 16) for memory in (b.source, Memory())))
    b.engine.put(AddPeer(peer.key, b"descriptor", peer.layout))
    return peer


def test_the_transport_does_not_meet_it():
    with bench() as b:
        chunk = b.submit(idle_peer(b), [1, 2], [3, 4], digest=True)
        until(lambda: b.has_landed(chunk))
        result = b.sink.landed_chunks[id(chunk)]
        assert (result.nbytes, result.digest) == (0, None)
        other = b.submit(b.peer("other"), [1], [2])
        until(lambda: b.has_landed(other))
        assert b.transport.calls.count("add_peer") == b.transport.calls.count("prepare") == 1
        assert [transfer.peer.name for transfer in b.transport.posted] == ["other"]


def test_it_is_forgotten_without_the_transport():
    with bench() as b:
        first = idle_peer(b)
        second = idle_peer(b, 2)  # a new session, before the end of the first one was told
        chunk = b.submit(second, [1], [2])
        until(lambda: b.has_landed(chunk))
        for peer in (first, second):
            b.engine.put(RemovePeer(peer.key))
        until(lambda: b.engine.snapshot()["peers"] == 0)
        assert not {"add_peer", "remove_peer", "prepare"} & set(b.transport.calls)

"""Pull in the transfer engine: prefill's offers what is ready and posts nothing, decode's reads with itself as the local side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import numpy as np
import pytest

from core.tests.transfer.support import (
    ALL,
    POISON,
    DoubleTransfer,
    DoubleTransport,
    Memory,
    RecordingSink,
    pair_of,
    settings,
    until,
)
from kv_core.contract.enums import Capability, Direction, Role
from kv_core.contract.transport import PeerKey
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.effects import AddPeer, SubmitChunk
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.peers import Peer
from kv_core.protocol.rooms import Room, RoomLink
from kv_core.runtime.transfer import TransferEngine
from kv_core.runtime.transfer.deaths import LOOKS_AT_READS

PEER = PeerKey("other", 1)


class Reader(DoubleTransport):
    """Copies remote to local."""

    def copy(self, transfer: DoubleTransfer) -> None:
        memory, remote = self._memory, self._remote[transfer.peer]
        assert memory is not None
        for lr, lo, rr, ro, n in zip(*(column.tolist() for column in transfer.batch.copies()), strict=True):
            memory.view(lr)[lo : lo + n] = remote.view(rr)[ro : ro + n]


class Side:
    """One side's engine with one peer."""

    def __init__(self, role: Role, mine: Memory, theirs: Memory, *, aux: bool = True, is_dead: Any = None) -> None:
        self.mine, self.theirs = mine, theirs
        self.transport = Reader()
        self.sink = RecordingSink()
        able = ALL if aux else ALL - {Capability.AUX}
        more: dict[str, Any] = {} if is_dead is None else {"is_dead": is_dead}
        self.engine = TransferEngine(
            self.transport, mine.layout, settings(), self.sink, monotonic, logging.getLogger("test.pulling"), capabilities=able,
            direction=Direction.READ, moves=role is Role.DECODE, **more,
        )  # fmt: skip
        self.transport.register_memory(mine.layout.regions())
        layout = pair_of(mine, theirs, role)
        self.peer = Peer(PEER.name, 1, "tcp://127.0.0.1:1", PeerLiveness(1.0, 2, 5, 0.0), layout=layout)
        self.role = role
        self.numbers = iter(range(1, 1000))
        self.engine.start()
        self.engine.put(AddPeer(PEER, b"descriptor", layout, {"pid": 1}))

    def submit(self, local: Any, remote: Any, **fields: Any) -> TransferKVChunk:
        number = next(self.numbers)
        room = Room(self.role, number, number, "127.0.0.1:8998", 0.0)
        mine, theirs = (np.array(items, np.uint64) for items in (local, remote))
        link = RoomLink(room, self.peer, number)
        chunk = TransferKVChunk(room, link, PEER, 0, mine, theirs, **fields)
        chunk.pulled = self.role is Role.DECODE
        self.engine.put(SubmitChunk(chunk))
        return chunk


@pytest.fixture
def sides() -> Iterator[Callable[..., tuple[Side, Memory, Memory]]]:
    made: list[Side] = []

    def make(role: Role, **more: Any) -> tuple[Side, Memory, Memory]:
        source, target = Memory(seed=5), Memory()
        side = Side(role, *((source, target) if role is Role.PREFILL else (target, source)), **more)
        made.append(side)
        return side, source, target

    yield make
    for side in made:
        side.engine.close(0.0)
        assert not side.sink.breaches
        assert not side.transport.breaches


class Later:
    """Ready when it is told so."""

    def __init__(self) -> None:
        self.is_ready = False

    def query(self) -> bool:
        """See ``Ready``."""
        return self.is_ready


def test_prefill_offers_a_chunk_when_its_source_is_ready_and_posts_nothing(sides: Any):
    side, _, _ = sides(Role.PREFILL)
    ready = Later()
    chunk = side.submit([1, 2], [3, 4], ready=ready, digest=True, aux=(1, 2))
    until(lambda: side.engine.snapshot()["parked_chunks"] == 1)
    assert not side.sink.claimed
    ready.is_ready = True
    until(lambda: side.sink.told("readable"))
    [(about, (digest, rows))] = side.sink.told("readable")
    assert about is chunk
    assert rows == ()
    assert (digest.start, digest.count, digest.aux) == (0, 2, True)
    assert not side.transport.posted
    assert not side.engine.snapshot()["active_chunks"]


def test_an_auxiliary_row_that_can_not_be_read_goes_by_message(sides: Any):
    side, source, _ = sides(Role.PREFILL, aux=False)
    side.submit([1, 2], [3, 4], aux=(1, 2))
    until(lambda: side.sink.told("readable"))
    [(_, (_, rows))] = side.sink.told("readable")
    assert rows == tuple(array[1].tobytes() for array in source.arrays["aux"])


def test_a_chunk_of_which_nothing_moves_has_landed(sides: Any):
    side, _, _ = sides(Role.PREFILL)
    chunk = side.submit([], [])
    until(lambda: id(chunk) in side.sink.landed_chunks)
    assert not side.sink.told("readable")


def test_a_source_that_can_not_be_hashed_fails_the_chunk(sides: Any):
    side, source, _ = sides(Role.PREFILL)
    chunk = side.submit([10**6], [1], digest=True)
    until(lambda: id(chunk) in side.sink.failures)
    assert side.sink.failures[id(chunk)][1], "quiescent"
    assert not side.sink.told("readable")
    del source


def test_decode_reads_the_pages_that_it_named(sides: Any):
    side, source, target = sides(Role.DECODE)
    chunk = side.submit([7, 3, 5], [2, 9], aux=(2, 1))
    until(lambda: id(chunk) in side.sink.landed_chunks)
    for here, there in zip(target.arrays["kv"], source.arrays["kv"], strict=True):
        assert np.array_equal(here[[7, 3]], there[[2, 9]])
        assert (np.delete(here, [7, 3], axis=0) == POISON).all()
    for here, there in zip(target.arrays["aux"], source.arrays["aux"], strict=True):
        assert np.array_equal(here[2], there[1])
    assert side.sink.landed_chunks[id(chunk)].digest is None


def test_more_pages_than_were_named_fail_the_chunk(sides: Any):
    side, *_ = sides(Role.DECODE)
    chunk = side.submit([7], [2, 9])
    until(lambda: id(chunk) in side.sink.failures)
    assert "decode named 1" in side.sink.failures[id(chunk)][0]
    assert not side.transport.posted


def test_a_failed_read_from_a_dead_process_is_settled_after_what_it_sent_has_been_read(sides: Any):
    looks: list[object] = []

    def is_dead(process: object) -> bool:
        looks.append(process)
        return True

    side, *_ = sides(Role.DECODE, is_dead=is_dead)
    side.transport.frozen.add(PEER.name)
    chunk = side.submit([7], [2])
    until(lambda: side.transport.posted)
    side.transport.fail(side.transport.posted[0], "the peer is gone", quiescent=False)
    until(lambda: id(chunk) in side.sink.still)
    assert len(looks) > LOOKS_AT_READS
    side.transport.posted[0].still = True

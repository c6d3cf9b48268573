"""Pull over the software NIC: the right bytes, nothing of what may not be read, and ends that are known to be ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kv_core import Direction, Role, TransferState
from kv_core.contract.transport import PeerKey, Prepared
from kv_fake.dialing import NotWelcome, dial
from kv_fake.iovec import Pieces
from kv_fake.outbound import FakeTransfer
from kv_fake.wire import Descriptor, Purpose
from plugins.kv_fake.tests.support import POISON, End, batch_of, drive, states, wait_until

DONE, FAILED, PENDING = TransferState.DONE, TransferState.FAILED, TransferState.PENDING
READ = Direction.READ


def reader(**more: Any) -> End:
    return End(Role.DECODE, fill=POISON, direction=READ, **more)


def source(**more: Any) -> End:
    return End(Role.PREFILL, seed=3, direction=READ, **more)


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    with reader() as here, source() as there:
        yield here, there


@pytest.mark.parametrize(
    ("pages", "items", "item_len", "buffers"),
    [(1, 4, 4096, 1), (7, 64, 4096, 4), (64, 128, 1000, 8), (33, 40, 1, 3), (5000, 6000, 256, 2), (16, 20, 262_147, 2)],
)
def test_every_byte_comes_from_where_it_belongs_and_nothing_else_is_touched(pages, items, item_len, buffers):
    shape = {"items": items, "item_len": item_len, "buffers": buffers}
    with reader(**shape) as here, source(**shape) as there:
        order = np.random.default_rng(5)
        local, remote = order.permutation(items)[:pages], order.permutation(items)[:pages]
        before = there.pages.copy()
        assert states(here.finish(here.write(here.meet(there), local, remote))) == [DONE]
        assert np.array_equal(here.pages[:, local], before[:, remote])
        rest = np.setdiff1d(np.arange(items), local)
        assert (here.pages[:, rest] == POISON).all()
        assert np.array_equal(there.pages, before)


def test_many_reads_from_several_peers(ends):
    here, there = ends
    with source() as other:
        prepared = [here.meet(there), here.meet(other)]
        transfers = [here.write(prepared[n % 2], [n], [63 - n]) for n in range(60)]
        assert set(states(here.finish(*transfers))) == {DONE}
        for n in range(60):
            assert np.array_equal(here.pages[:, n], (there, other)[n % 2].pages[:, 63 - n])


def test_what_is_not_registered_is_not_read(ends):
    here, there = ends
    prepared = here.meet(there)
    there.transport.deregister_memory(there.layout.regions()[:1])
    refused = here.write(prepared, [0], [0])
    (record,) = here.finish(refused)
    assert record.state is FAILED
    assert record.quiescent
    assert "not inside registered memory" in (record.error or "")
    assert (here.pages == POISON).all()
    there.transport.register_memory(there.layout.regions()[:1])
    assert states(here.finish(here.write(prepared, [0], [0]))) == [DONE], "the connection goes on"


@pytest.mark.parametrize(("direction", "purpose"), [(READ, Purpose.DATA), (Direction.WRITE, Purpose.READ)])
def test_a_nic_takes_part_in_its_own_direction_only(direction: Direction, purpose: Purpose):
    """Who knows the secret may write, or may read: never both."""
    with End(Role.DECODE, direction=direction) as end:
        kept: list[socket.socket] = []
        with pytest.raises(NotWelcome):
            dial(Descriptor.unpack(end.descriptor), "stranger", 1, purpose, 1, kept.append)
        assert kept[0].fileno() == -1, "closed"


def held(here: End, there: End) -> tuple[Prepared, FakeTransfer]:
    """A read whose answer does not come, because the other NIC stands still."""
    there.transport._nic.running.clear()
    prepared = here.meet(there)
    transfer = here.write(prepared, [1, 2], [3, 4])
    wait_until(lambda: transfer.started)
    return prepared, transfer


def test_a_read_that_is_under_way_can_be_cancelled(ends):
    here, there = ends
    _, transfer = held(here, there)
    assert not list(here.transport.progress([transfer]))
    here.transport.cancel(transfer)
    (record,) = here.finish(transfer)
    assert (record.state, record.quiescent) == (FAILED, True)
    there.transport._nic.running.set()
    assert states(here.finish(here.write(here.meet(there, 2), [5], [6]))) == [DONE]
    assert (here.pages[:, [1, 2]] == POISON).all()


def test_a_cancel_that_comes_with_the_last_byte_does_not_harm_the_next_read(ends, monkeypatch):
    """The connection was shut; whether the request had ended well is another question."""
    here, there = ends
    prepared = here.meet(there)
    real = Pieces.receive

    def receive(pieces: Pieces, *args: Any, **more: Any) -> None:
        real(pieces, *args, **more)
        if pieces is first.pieces:
            here.transport.cancel(first)

    monkeypatch.setattr(Pieces, "receive", receive)
    first = here.transport.frame(prepared, batch_of(prepared, [1], [2]))
    here.transport.post(first)
    here.finish(first)
    assert states(here.finish(here.write(prepared, [3], [4]))) == [DONE]
    assert np.array_equal(here.pages[:, 3], there.pages[:, 4])


def test_a_peer_that_is_removed_leaves_nothing_pending(ends):
    here, there = ends
    prepared, first = held(here, there)
    second = here.write(prepared, [7], [8])
    here.transport.remove_peer(first.peer)
    assert states(drive(here.transport, [first, second], lambda records: len(records) == 2)) == [FAILED, FAILED]
    there.transport._nic.running.set()
    assert (here.pages == POISON).all()


def test_after_a_fence_nothing_is_read(ends):
    here, there = ends
    prepared = here.meet(there)
    assert states(here.finish(here.write(prepared, [0], [0]))) == [DONE]
    there.transport.fence(PeerKey(here.name, 1))
    there.pages[:] = POISON
    (record,) = here.finish(here.write(prepared, [1], [1]))
    assert (record.state, record.quiescent) == (FAILED, True)
    assert states(here.finish(here.write(here.meet(there, 2), [1], [1]))) == [DONE], "a later generation may"


def test_a_fence_does_not_wait_for_a_reader_that_reads_nothing():
    """Its connection's buffers are full: the thread that sends sits in the kernel, and has to come out of it."""
    with reader(item_len=1 << 20, items=64, buffers=1) as here, source(item_len=1 << 20, items=64, buffers=1) as there:
        here.transport._nic.running.clear()  # its thread takes the answer's first bytes, then stands still
        transfer = here.write(here.meet(there), range(64), range(64))
        here.transport._nic.running.set()
        wait_until(lambda: there.transport._nic.counts.frames == 1 or transfer.state is not PENDING)
        there.transport.fence(PeerKey(here.name, 1))
        drive(here.transport, [transfer], lambda records: len(records) == 1)


def test_the_other_nics_end_is_the_end_of_the_read(ends):
    here, there = ends
    _, transfer = held(here, there)
    there.transport.close()
    (record,) = here.finish(transfer)
    assert (record.state, record.quiescent) == (FAILED, True)


def test_a_flipped_bit_is_one_byte(ends):
    with reader(faults=[{"kind": "corrupt", "nth": 1}]) as here, source() as there:
        assert states(here.finish(here.write(here.meet(there), range(64), range(64)))) == [DONE]
        assert np.count_nonzero(here.pages != there.pages) == 1


@pytest.mark.parametrize("kind", ["delay", "duplicate", "reorder", "slow", "hold", "freeze"])
def test_a_bad_fabric_is_slow_but_right(kind: str):
    rate = {"rate": 1e7} if kind == "slow" else {}
    with reader(faults=[{"kind": kind, "every": 2, "seconds": 0.05, **rate}]) as here, source() as there:
        prepared = here.meet(there)
        transfers = [here.write(prepared, [n], [n]) for n in range(9)]
        assert set(states(here.finish(*transfers))) == {DONE}
        assert np.array_equal(here.pages[:, :9], there.pages[:, :9])


def test_a_dropped_read_ends_when_it_is_cancelled():
    with reader(faults=[{"kind": "drop", "nth": 1}]) as here, source() as there:
        transfer = here.write(here.meet(there), [0], [0])
        assert not list(here.transport.progress([transfer]))
        here.transport.cancel(transfer)
        assert states(here.finish(transfer)) == [FAILED]


def test_a_late_read_is_quiescent_when_it_has_landed():
    with reader(faults=[{"kind": "late_write", "nth": 1, "seconds": 0.1}]) as here, source() as there:
        ghost = here.write(here.meet(there), [0], [5])
        (record,) = here.transport.progress([ghost])
        assert (record.state, record.quiescent) == (FAILED, False)
        assert (here.pages == POISON).all()
        here.finish(ghost)
        assert np.array_equal(here.pages[:, 0], there.pages[:, 5])

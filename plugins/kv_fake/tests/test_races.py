"""Narrow moments: what two threads may do to each other between a decision and its effect."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest

import kv_fake.nic
from kv_core import Role, TransferState, TransportError
from kv_core.contract.transport import PeerKey
from kv_fake.iovec import Pieces
from kv_fake.wire import Descriptor
from plugins.kv_fake.tests.support import LIMIT_S, POISON, End, RemoteEnd, batch_of, states, wait_until

DONE, FAILED = TransferState.DONE, TransferState.FAILED
BIG: dict[str, Any] = {"items": 64, "item_len": 1 << 20, "buffers": 2}


def descriptor_of(end):
    return Descriptor.unpack(end.descriptor)


@pytest.fixture
def slow_landing(monkeypatch):
    """The NIC's thread stops when it is about to read a frame's bytes (``at``), until ``go``."""
    at, go = threading.Event(), threading.Event()

    class Slow(Pieces):
        def receive(self, fd, *, before=None):
            at.set()
            assert go.wait(LIMIT_S)
            return super().receive(fd, before=before)

    def arm():
        monkeypatch.setattr(kv_fake.nic, "Pieces", Slow)
        return at, go

    yield arm
    go.set()


@pytest.mark.parametrize("how", ["fence", "deregister", "close"])
def test_the_writer_hears_of_an_end_only_when_nothing_can_land_any_more(slow_landing, how):
    with End(Role.PREFILL, **BIG) as source, End(Role.DECODE, fill=POISON, **BIG) as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == [DONE]
        at, go = slow_landing()
        transfer = source.write(prepared, range(2), range(2))  # fits the receive buffer: all of it is there to be read
        assert at.wait(LIMIT_S)
        end = {
            "fence": lambda: target.transport.fence(PeerKey(source.name, 1)),
            "deregister": lambda: target.transport.deregister_memory(target.layout.regions()),
            "close": target.transport.close,
        }[how]
        ending = threading.Thread(target=end)
        ending.start()
        until = time.monotonic() + 0.5  # not a synchronisation: for this long it must *not* happen
        while time.monotonic() < until:
            assert not any(record.quiescent for record in source.transport.progress([transfer]))
            source.transport.wait(0.05)
        assert ending.is_alive()
        go.set()
        ending.join(LIMIT_S)
        seen = target.pages.copy()
        assert states(source.finish(transfer)) == [FAILED]
        assert np.array_equal(target.pages, seen)


def test_a_new_generation_may_write_after_connections_of_the_old_one_were_retired():
    with End(Role.PREFILL, **BIG) as source, RemoteEnd(**BIG) as target:
        old = source.meet(target, 1)
        assert states(source.finish(source.write(old, [0], [0]))) == [DONE]
        os.kill(target.process.pid, signal.SIGSTOP)
        stuck = source.write(old, range(64), range(64))
        wait_until(lambda: stuck.started)
        source.transport.remove_peer(old.peer)
        os.kill(target.process.pid, signal.SIGCONT)
        assert states(source.finish(stuck)) == [FAILED]
        new = source.meet(target, 2)
        assert states(source.finish(source.write(new, [1], [1]))) == [DONE]


def test_a_frame_begun_while_its_peer_is_removed_is_not_taken_for_untouched(monkeypatch):
    with End(Role.PREFILL, **BIG) as source, RemoteEnd(**BIG) as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == [DONE]
        os.kill(target.process.pid, signal.SIGSTOP)
        outbound = source.transport._peers[prepared.peer]
        late = source.transport.frame(prepared, batch_of(prepared, range(64), range(64)))
        fail_queued = outbound._fail_queued

        def meanwhile(why):
            outbound._queue.append(late)
            outbound._hand_over()
            wait_until(lambda: late.started)
            fail_queued(why)

        monkeypatch.setattr(outbound, "_fail_queued", meanwhile)
        source.transport.remove_peer(prepared.peer)
        wait_until(lambda: list(source.transport.progress([late])))
        assert not any(record.quiescent for record in source.transport.progress([late]))
        os.kill(target.process.pid, signal.SIGCONT)
        assert states(source.finish(late)) == [FAILED]


def test_a_socket_is_not_closed_while_a_thread_sends_on_it(monkeypatch):
    with End(Role.PREFILL, **BIG) as source, RemoteEnd(**BIG) as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == [DONE]
        outbound = source.transport._peers[prepared.peer]
        connection, at, go = outbound.connection, threading.Event(), threading.Event()
        assert connection is not None
        may_send = outbound._may_send

        def pause(on):
            at.set()
            assert go.wait(LIMIT_S)
            may_send(on)

        monkeypatch.setattr(outbound, "_may_send", pause)
        outbound._sending = True  # so that the frame goes to the peer's thread
        transfer = source.write(prepared, [1], [1])
        outbound._sending = False
        outbound._hand_over()
        assert at.wait(LIMIT_S)
        source.transport.remove_peer(prepared.peer)
        source.transport.wait(0.05)
        assert connection.fileno() >= 0
        go.set()
        (record,) = source.finish(transfer)
        assert record.state is FAILED
        source.transport.wait(0.05)
        assert connection.fileno() == -1


def test_a_host_that_is_none_fails_its_transfers_and_nothing_else():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        plan = source.meet(target).plan
        where = descriptor_of(target)
        nowhere = PeerKey("nowhere", 1)
        source.transport.add_peer(nowhere, Descriptor("a..b", where.port, where.token).pack())
        (record,) = source.finish(source.write(source.transport.prepare(nowhere, plan), [0], [0]))
        assert (record.state, record.quiescent) == (FAILED, True)
        assert not source.transport.probe(nowhere)
        assert states(source.finish(source.write(source.meet(target), [0], [0]))) == [DONE]


def test_close_does_not_wait_for_peers_that_do_not_answer():
    """One is stopped and accepts nothing, one is a port whose queue of connections is full."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    crowd = [socket.socket() for _ in range(8)]
    for one in crowd:
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.connect(full.getsockname())
    before = threading.active_count()
    with RemoteEnd() as target, End(Role.PREFILL) as source:
        stopped = source.meet(target)
        os.kill(target.process.pid, signal.SIGSTOP)
        hole = PeerKey("hole", 1)
        descriptor = descriptor_of(target)._replace(host="127.0.0.1", port=full.getsockname()[1])
        source.transport.add_peer(hole, descriptor.pack())
        transfers = [source.write(stopped, [0], [0])]
        transfers.append(source.write(source.transport.prepare(hole, stopped.plan), [0], [0]))
        wait_until(lambda: all(peer._dialing is not None for peer in source.transport._peers.values()))
        source.transport.close()
        assert all(transfer.quiescent for transfer in transfers)
    assert threading.active_count() == before
    for one in (*crowd, full):
        one.close()


def test_what_was_registered_twice_is_gone_when_it_was_deregistered_twice():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared, regions = source.meet(target), target.layout.regions()
        target.transport.register_memory(regions)
        target.transport.deregister_memory(regions)
        assert states(source.finish(source.write(prepared, [0], [0]))) == [DONE]
        target.transport.deregister_memory(regions)
        target.transport.deregister_memory(regions)
        assert states(source.finish(source.write(prepared, [1], [1]))) == [FAILED]


def test_a_source_outside_of_registered_memory_is_not_read():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        with pytest.raises(TransportError, match="offset 262144 of region 0") as caught:
            source.write(prepared, [64], [0])
        assert caught.value.quiescent
        source.transport.deregister_memory(source.layout.regions())
        with pytest.raises(TransportError, match="registered here"):
            source.write(prepared, [0], [0])
        assert (target.pages == POISON).all()


def test_another_nic_on_the_port_of_a_dead_one_proves_that_it_has_gone():
    with End(Role.PREFILL, **BIG) as source, RemoteEnd(**BIG) as target, End(Role.DECODE, fill=POISON) as heir:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == [DONE]
        os.kill(target.process.pid, signal.SIGSTOP)
        stuck = source.write(prepared, range(64), range(64))
        wait_until(lambda: stuck.started)
        outbound = source.transport._peers[prepared.peer]
        outbound._descriptor = descriptor_of(target)._replace(port=descriptor_of(heir).port)
        target.process.kill()
        target.process.wait(LIMIT_S)
        assert states(source.finish(stuck)) == [FAILED]


def test_the_nic_goes_on_accepting_after_a_thread_could_not_be_started(monkeypatch):
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        start, refused = threading.Thread.start, threading.Event()

        def fail_once(thread):
            if thread.name.startswith("kv-fake-in") and not refused.is_set():
                refused.set()
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", fail_once)
        where = descriptor_of(target)
        socket.create_connection((where.host, where.port)).close()
        assert refused.wait(LIMIT_S)
        assert states(source.finish(source.write(source.meet(target), [0], [0]))) == [DONE]
        assert target.transport._nic.counts.exceptions == 1


def test_waiting_takes_what_it_woke_up_for():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        assert states(source.finish(source.write(source.meet(target), [0], [0]))) == [DONE]
        target.transport.close()
        source.transport.wake()
        turns, until = 0, time.monotonic() + 0.5
        while time.monotonic() < until:
            source.transport.wait(0.1)
            turns += 1
        assert turns < 20


def test_nothing_leaves_a_frozen_nic_and_it_can_be_closed(monkeypatch):
    faults = [{"kind": "freeze", "nth": 2, "seconds": 60}]
    with End(Role.PREFILL, faults=faults) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == [DONE]
        transfer = source.write(prepared, [1], [1])
        back = target.write(target.meet(source), [2], [2])
        until = time.monotonic() + 0.5  # not a synchronisation: for this long it must *not* happen
        while time.monotonic() < until:
            assert list(source.transport.progress([transfer])) == list(target.transport.progress([back])) == []
            source.transport.wait(0.05)
        assert (target.pages[:, 1] == POISON).all()
        assert (source.pages[:, 2] != POISON).any()

"""Every way in which a transfer can fail, made for real: what is said of it, and whether it is called quiescent."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from kv_core import Role, TransferState, TransportError
from kv_core.contract.transport import PeerKey
from kv_mooncake.descriptor import Descriptor
from plugins.kv_mooncake.tests.support import (
    POISON,
    SHAPE,
    End,
    RemoteEnd,
    Watched,
    batch_of,
    expected,
    in_background,
    wait_until,
)

DONE, FAILED = TransferState.DONE, TransferState.FAILED
LARGE = {"buffers": 8, "items": 256, "item_len": 65_536}


@pytest.fixture
def short_patience(monkeypatch):
    """The engine gives up after five seconds, the least that it takes, instead of thirty."""
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "5")
    monkeypatch.setenv("MC_TCP_PROGRESS_TIMEOUT_SEC", "60")


def test_out_of_range_is_refused_by_the_receiver_and_the_peer_stays_usable():
    with RemoteEnd() as target, End(Role.PREFILL) as source:
        prepared = source.meet(target)
        good = int(prepared.remote[1])
        prepared.remote[1] = 0x10000
        record = source.write(prepared, [0, 3], [5, 9])
        assert (record.state, record.quiescent) == (FAILED, False)
        assert "engine refused it or lost it" in (record.error or "")
        prepared.remote[1] = good
        assert source.write(prepared, [1], [6]).state is DONE
        pages = target.fetch()
        assert (pages[1, [5, 9]] == POISON).all()
        assert (pages[:, 6] == source.pages[:, 1]).all()


def test_memory_that_the_peer_deregistered():
    with RemoteEnd() as target, End(Role.PREFILL) as source:
        prepared = source.meet(target)
        assert source.write(prepared, [0], [0]).state is DONE
        target.ask("deregister")
        record = source.write(prepared, [1, 2], [1, 2])
        assert (record.state, record.quiescent) == (FAILED, False)
        assert (target.fetch() == expected(source.pages, target.shape, [0], [0])).all()


def test_an_engine_that_never_was_is_refused_before_anything_is_posted():
    with RemoteEnd() as target, End(Role.PREFILL) as source:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        target.descriptor = Descriptor("127.0.0.1", port, "tcp").pack()
        prepared = source.meet(target)
        with pytest.raises(TransportError, match="does not answer") as caught:
            source.write(prepared, [0], [0])
        assert caught.value.quiescent
        assert (target.fetch() == POISON).all()


def test_a_listener_that_is_no_engine():
    with RemoteEnd() as target, End(Role.PREFILL) as source, socket.create_server(("127.0.0.1", 0)) as mute:
        target.descriptor = Descriptor("127.0.0.1", mute.getsockname()[1], "tcp").pack()
        with pytest.raises(TransportError, match="does not answer"):
            source.write(source.meet(target), [0], [0])


def test_a_peer_killed_while_idle():
    with RemoteEnd() as target, End(Role.PREFILL) as source:
        prepared = source.meet(target)
        assert source.write(prepared, [0], [0]).state is DONE
        target.kill()
        record = source.write(prepared, [0], [0])
        assert (record.state, record.quiescent) == (FAILED, False)


def test_a_peer_killed_in_mid_transfer():
    with RemoteEnd(LARGE) as target, End(Role.PREFILL, **LARGE) as source:
        prepared = source.meet(target)
        assert source.write(prepared, [0], [0]).state is DONE
        thread, records = in_background(source, prepared, range(0, 256, 2), range(1, 256, 2))
        target.kill()
        thread.join(60.0)
        (record,) = records
        assert (record.state, record.quiescent) == (FAILED, False)


def test_a_peer_whose_engine_was_closed():
    with RemoteEnd() as target, End(Role.PREFILL) as source:
        prepared = source.meet(target)
        assert source.write(prepared, [0], [0]).state is DONE
        target.ask("close")
        record = source.write(prepared, [1], [1])
        assert (record.state, record.quiescent) == (FAILED, False)
        assert (target.fetch() == expected(source.pages, target.shape, [0], [0])).all()


def test_a_stopped_peer_lands_late_writes_and_is_taken_back(short_patience):
    with RemoteEnd(LARGE) as target, RemoteEnd() as other, End(Role.PREFILL, **LARGE) as source:
        prepared = source.meet(target)
        small = End(Role.PREFILL)
        with small:
            beside = small.meet(other)
            assert source.write(prepared, [0], [0]).state is DONE
            target.stop()
            thread, records = in_background(source, prepared, range(1, 256, 2), range(1, 256, 2))
            assert small.write(beside, [1], [1]).state is DONE  # nobody else waits
            thread.join(60.0)
        (record,) = records
        assert (record.state, record.quiescent) == (FAILED, False)
        assert "not complete after" in (record.error or "")
        with pytest.raises(TransportError, match="not tried for|does not answer") as refused:
            source.write(prepared, [2], [2])
        assert refused.value.quiescent
        assert not source.look(record.transfer).quiescent
        target.resume()
        # What lay in its sockets lands now, long after the error: the reason why the transfer was not called quiescent.
        wait_until(lambda: bool((target.fetch()[:, 1::2] != POISON).any()))
        assert not source.look(record.transfer).quiescent

        def goes() -> bool:
            try:
                return source.write(prepared, [2], [2]).state is DONE
            except TransportError:
                return False

        wait_until(goes)
        assert (target.fetch()[:, 2] == source.pages[:, 2]).all()


def test_another_peer_of_the_same_engine_does_not_wait_for_a_stopped_one(short_patience):
    with RemoteEnd() as stopped, RemoteEnd() as other, End(Role.PREFILL) as source:
        frozen, lively = source.meet(stopped), source.meet(other)
        assert source.write(frozen, [0], [0]).state is DONE
        stopped.stop()
        thread, records = in_background(source, frozen, range(64), range(64))
        for page in range(64):
            assert source.write(lively, [page], [page]).state is DONE
        assert not records, "the stopped peer's transfer ended before the other's sixty-four"
        assert (other.fetch() == source.pages).all()
        thread.join(60.0)
        assert [record.state for record in records] == [FAILED]


def test_a_peer_that_is_stopped_before_the_first_contact_keeps_no_lock_of_the_engine():
    with RemoteEnd() as stopped, RemoteEnd() as other, End(Role.PREFILL) as source:
        frozen, lively = source.meet(stopped), source.meet(other)
        stopped.stop()
        failures = []

        def first_contact() -> None:
            try:
                source.write(frozen, [0], [0])
            except TransportError as error:
                failures.append(error)

        thread = threading.Thread(target=first_contact)
        thread.start()
        assert source.write(lively, [0], [0]).state is DONE
        thread.join(60.0)
        assert [error.quiescent for error in failures] == [True]


def test_closing_ends_the_wait_for_a_stopped_peer():
    with RemoteEnd(LARGE) as target, End(Role.PREFILL, **LARGE) as source:
        prepared = source.meet(target)
        assert source.write(prepared, [0], [0]).state is DONE
        target.stop()
        transfers = []
        watched = source.transport._mover._engine = Watched(source.transport._mover._engine)
        batch = batch_of(prepared, range(256), np.arange(256)[::-1])  # more than fits
        thread = threading.Thread(target=lambda: transfers.append(source.transport.submit(prepared, batch)))
        thread.start()
        assert watched.under_way.wait(60.0)
        source.transport.close()
        thread.join(20.0)
        assert not thread.is_alive()
        assert [source.finish(each)[1:3] for each in transfers] == [(FAILED, False)]


def test_a_restarted_peer_is_a_new_generation():
    with End(Role.PREFILL) as source:
        with RemoteEnd() as first:
            old = source.meet(first)
            assert source.write(old, [0], [0]).state is DONE
        with RemoteEnd() as second:
            second.name = first.name
            source.transport.remove_peer(old.peer)
            new = source.meet(second, generation=2)
            with pytest.raises(TransportError, match="not known any more") as refused:
                source.write(old, [1], [1])
            assert refused.value.quiescent
            assert source.write(new, [1], [2]).state is DONE
            assert (second.fetch() == expected(source.pages, second.shape, [1], [2])).all()
            source.transport.remove_peer(new.peer)
            with pytest.raises(TransportError, match="not known"):
                source.transport.prepare(new.peer, new.plan)
            source.transport.remove_peer(PeerKey("nobody", 3))


def test_a_process_that_has_the_port_of_an_earlier_one_is_not_taken_for_it():
    with RemoteEnd() as target, End(Role.PREFILL) as source:
        first = source.meet(target)
        target.name = "another process at the same address"
        second = source.meet(target)
        assert first.to.line._session != second.to.line._session
        assert source.meet(target, 2).to.line._session == second.to.line._session
        for prepared, page in ((first, 1), (second, 2)):
            assert source.write(prepared, [page], [page]).state is DONE
        assert (target.fetch() == expected(source.pages, target.shape, [1, 2], [1, 2])).all()


def test_a_plan_over_memory_that_is_not_registered_is_refused():
    with RemoteEnd() as target, End(Role.PREFILL) as source:
        prepared = source.meet(target)
        source.transport.deregister_memory(source.layout.regions()[2:3])
        with pytest.raises(TransportError, match="not registered here") as caught:
            source.transport.prepare(prepared.peer, prepared.plan)
        assert caught.value.quiescent


def data_port(process) -> int:
    """The engine's other port: the one at which it takes bytes."""
    inodes = set()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        if (name := str(link.readlink())).startswith("socket:["):
            inodes.add(name[8:-1])
    lines = Path("/proc/net/tcp6").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    (port,) = {int(each[1].rpartition(":")[2], 16) for each in fields if each[3] == "0A" and each[9] in inodes}
    return port


def test_deregistering_does_not_stop_what_has_begun_to_land():
    """Why no FENCE is declared: the receiver looks at an address when a copy begins, and never again."""
    nbytes = 65_536
    with RemoteEnd({**SHAPE, "item_len": nbytes}) as target:
        address = target.layout.regions()[0].address
        data = np.random.default_rng(1).integers(1, 0xEE, nbytes, np.uint8)
        with socket.create_connection(("127.0.0.1", data_port(target.process))) as writer:
            writer.sendall(struct.pack("<QQB7x", nbytes, address, 0x81) + data[: nbytes // 2].tobytes())
            wait_until(lambda: np.array_equal(target.fetch()[0, 0, : nbytes // 2], data[: nbytes // 2]))
            target.ask("deregister")
            writer.sendall(data[nbytes // 2 :].tobytes())
            assert len(writer.recv(8)) == 8  # acknowledged
        assert (target.fetch()[0, 0] == data).all()

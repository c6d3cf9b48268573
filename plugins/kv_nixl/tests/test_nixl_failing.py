"""Every way to fail that a transport can meet, made for real: a typed error, in bounded time, and an honest word on quiescence."""

from __future__ import annotations

import os
import signal
import zlib
from dataclasses import replace

import numpy as np
import pytest

from kv_core import MemoryKind, Region, RegistrationError, TransportError
from kv_core.contract.transport import PeerKey, TransferPlan
from kv_nixl.peers import Descriptor
from plugins.kv_nixl.tests.nixl_ends import FABRICS, POISON, End, RemoteEnd, states, wait_until

LARGE = {"kv": (16, 64, 262_144)}


@pytest.fixture(params=list(FABRICS))
def fabric(request, monkeypatch):
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in FABRICS[request.param].items():
        monkeypatch.setenv(name, value)
    return request.param


@pytest.fixture
def tcp(monkeypatch):
    for name, value in FABRICS["tcp"].items():
        monkeypatch.setenv(name, value)


def test_a_peer_killed_while_idle(fabric):
    with End() as source, RemoteEnd() as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
        target.kill()
        transfer = source.write(prepared, [1], [1])
        (record,) = source.finish(transfer)
        assert record.state.value == "failed"
        assert "NIXL" in (record.error or "")
        assert _second_try(source, prepared) in ("refused, quiescent", "failed")


def _second_try(source, prepared):
    """The peer is loaded anew, and in vain: some fabrics notice at once, others when something is sent."""
    try:
        (record,) = source.finish(source.write(prepared, [2], [2]))
    except TransportError as error:
        return "refused, quiescent" if error.quiescent else "refused"
    return record.state.value


def test_a_peer_killed_in_mid_transfer_over_tcp(tcp):
    with End(shapes=LARGE) as source, RemoteEnd(LARGE) as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
        os.kill(target.process.pid, signal.SIGSTOP)
        transfers = [source.write(prepared, range(32 * n, 32 * n + 32), range(32)) for n in range(2)]
        assert [transfer.state.value for transfer in transfers] == ["pending", "pending"]
        target.kill()
        records = source.finish(*transfers)
        assert states(records) == ["failed", "failed"]
        assert not any(record.quiescent for record in records)  # core proves the process's end


def test_a_peer_killed_in_mid_transfer_over_cma(monkeypatch):
    # transfer() copies in the caller: somebody else has to kill meanwhile. A child does so when it sees the first byte.
    with End(shapes=LARGE) as source, RemoteEnd(LARGE) as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
        target.ask_only("die-at-first-byte 1")
        order = np.random.default_rng(1).permutation(64)
        transfer = wait_until(lambda: _failed(source, source.write(prepared, order, order)))
        (record,) = source.finish(transfer)
        assert (record.state.value, record.quiescent) == ("failed", False)
        target.process.wait(60)  # it was about to end


def _failed(source, transfer):
    """Writes until one has failed: the process dies when it finds the first bytes, at any time after that."""
    record = source.ended(transfer)
    if record.state.value == "failed":
        return transfer
    source.transport.release(transfer)
    return None


def test_a_failed_transfer_stays_unproven_whatever_nixl_says(tcp):
    with End() as source, RemoteEnd() as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
        target.kill()
        transfer = source.write(prepared, [1], [1])
        assert not source.ended(transfer).quiescent
        for _ in range(3):
            assert [record.quiescent for record in source.transport.progress([transfer])] == [False]
            source.transport.remove_peer(prepared.peer)
        source.transport.release(transfer)


def test_a_stopped_peer_over_tcp_stays_pending_and_goes_on_later(tcp):
    with End(shapes=LARGE) as source, RemoteEnd(LARGE) as target, RemoteEnd(LARGE) as other:
        prepared, beside = source.meet(target), source.meet(other)
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
        os.kill(target.process.pid, signal.SIGSTOP)
        stuck = source.write(prepared, range(64), range(64))
        for number in range(5):  # the other peer's go on meanwhile
            assert states(source.finish(source.write(beside, [number], [number]))) == ["done"]
        source.transport.wait(0.2)
        assert list(source.transport.progress([stuck])) == []
        os.kill(target.process.pid, signal.SIGCONT)
        assert states(source.finish(stuck)) == ["done"]
        assert target.ask("checksum kv") == zlib.crc32(source.arrays["kv"].data)


def test_closing_with_a_transfer_to_a_stopped_peer_ends(tcp):
    with RemoteEnd(LARGE) as target:
        with End(shapes=LARGE) as source:
            prepared = source.meet(target)
            assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
            os.kill(target.process.pid, signal.SIGSTOP)
            stuck = source.write(prepared, range(64), range(64))
            source.transport.remove_peer(prepared.peer)
            assert list(source.transport.progress([stuck])) == []
        source.transport.wake()
        assert source.transport._closed


def test_a_living_peer_whose_endpoint_failed_is_reached_again(fabric):
    with End() as source, RemoteEnd() as target:
        prepared = source.meet(target)
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
        remote = source.transport._peers[prepared.peer]
        lists, epoch = dict(prepared.lists), remote.epoch
        remote.broken = True
        assert states(source.finish(source.write(prepared, [5], [6]))) == ["done"]
        assert remote.epoch == epoch + 1
        assert prepared.lists != lists
        got = target.fetch()
        assert np.array_equal(got[:, [0, 6]], source.arrays["kv"][:, [0, 5]])
        assert (got[:, 7:] == POISON).all()


def test_memory_that_the_peer_did_not_register_is_refused_before_anything_is_sent(fabric):
    with End() as source, RemoteEnd() as target:
        prepared = source.meet(target)
        ours, theirs = prepared.plan.local_regions, prepared.plan.remote_regions
        last = theirs[-1]
        for wrong in (replace(last, address=last.address + 4096), replace(last, device_id=1)):
            plan = TransferPlan(prepared.plan.pools, ours, (*theirs[:-1], wrong))
            with pytest.raises(TransportError, match="does not know some of the memory at peer") as caught:
                source.transport.prepare(prepared.peer, plan)
            assert caught.value.quiescent
        plan = TransferPlan(prepared.plan.pools, (*ours[:-1], replace(ours[-1], address=4096)), theirs)
        with pytest.raises(TransportError, match="does not know some of the memory here"):
            source.transport.prepare(prepared.peer, plan)
        small = replace(theirs[0], nbytes=100)
        with pytest.raises(TransportError, match="over the end"):
            source.transport.prepare(prepared.peer, TransferPlan(prepared.plan.pools, ours, (small, *theirs[1:])))
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]


def test_stale_metadata_of_a_process_that_has_ended(fabric):
    with End() as source:
        with RemoteEnd() as target:
            descriptor = target.descriptor
        with pytest.raises(TransportError, match="can't load the metadata") as caught:
            source.transport.add_peer(PeerKey(target.name, 1), descriptor)
        assert caught.value.quiescent
        with RemoteEnd() as other:
            assert states(source.finish(source.write(source.meet(other), [0], [0]))) == ["done"]


@pytest.mark.parametrize("same_name", [True, False])
def test_a_restarted_peer_is_reached_under_its_old_name_and_under_a_new_one(fabric, same_name):
    with End() as source:
        with RemoteEnd(name="a-name-used-twice") as first:
            prepared = source.meet(first)
            assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
            first.kill()
        failed = source.write(prepared, [1], [1])
        assert states(source.finish(failed)) == ["failed"]
        with RemoteEnd(name="a-name-used-twice" if same_name else None) as second:
            source.transport.remove_peer(prepared.peer)
            again = source.meet(second, generation=2 if same_name else 1)
            assert states(source.finish(source.write(again, [3], [4]))) == ["done"]
            got = second.fetch()
            assert np.array_equal(got[:, 4], source.arrays["kv"][:, 3])
            assert (got[:, :4] == POISON).all()
            if same_name:
                with pytest.raises(TransportError, match="not known") as caught:
                    source.write(prepared, [1], [1])
                assert caught.value.quiescent


def test_a_restart_under_the_same_name_ends_what_was_pending_to_the_old_process(tcp):
    with End(shapes=LARGE) as source, RemoteEnd(LARGE, name="twins") as first, RemoteEnd(LARGE, name="twins") as second:
        prepared = source.meet(first)
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
        os.kill(first.process.pid, signal.SIGSTOP)
        stuck = source.write(prepared, range(64), range(64))
        source.transport.remove_peer(prepared.peer)
        again = source.meet(second, generation=2)
        (record,) = source.transport.progress([stuck])
        assert (record.state.value, record.quiescent) == ("failed", False)
        assert states(source.finish(source.write(again, [3], [4]))) == ["done"]
        first.kill()
        assert states(source.finish(stuck)) == ["failed"]
        source.arrays["kv"][:, 4] = source.arrays["kv"][:, 3]
        source.arrays["kv"][:, [*range(4), *range(5, 64)]] = POISON
        assert second.ask("checksum kv") == zlib.crc32(source.arrays["kv"].data)


def _altered(good: bytes, position: int) -> bytes:
    return good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]


def test_garbage_for_a_descriptor_is_refused_before_nixl_sees_it():
    with End() as source, End(seed=None) as target:
        good = target.descriptor
        told = Descriptor.unpack(good)
        wrong = [
            b"", b"x", good[:8], good[:-1], good + b"\0", _altered(good, len(good) - 1), _altered(good, 4),
            Descriptor("POSIX", {}, told.metadata).pack(), Descriptor("UCX", {}, b"").pack(),
            Descriptor("UCX", {}, b"\xff" * 500).pack(),
            good[:11] + b"{}" + good[13:],
        ]  # fmt: skip
        for number, descriptor in enumerate(wrong):
            with pytest.raises(TransportError) as caught:
                source.transport.add_peer(PeerKey(target.name, number), descriptor)
            assert caught.value.quiescent
        with pytest.raises(TransportError, match="another agent"):
            source.transport.add_peer(PeerKey("somebody-else", 1), good)
        with pytest.raises(TransportError, match="another agent"):
            source.transport.add_peer(PeerKey("somebody-else", 1), source.descriptor)
        prepared = source.meet(target, generation=100)
        assert prepared.lists


def test_a_range_registered_twice_stays_until_it_is_deregistered_twice(fabric):
    with End() as source, RemoteEnd() as target:
        regions = source.layout.regions()
        source.transport.register_memory(regions)
        source.transport.register_memory([replace(regions[0], address=regions[0].address + 64, nbytes=128)])
        source.transport.deregister_memory(regions)
        source.transport.deregister_memory([replace(regions[0], address=regions[0].address + 64, nbytes=128)])
        source.transport.deregister_memory([Region(0, 4096, 4096)])
        assert states(source.finish(source.write(source.meet(target), [0], [0]))) == ["done"]
        source.transport.deregister_memory(regions)
        with pytest.raises(TransportError):
            source.transport.prepare(
                PeerKey(target.name, 1), source.transport._prepared[PeerKey(target.name, 1)][0].plan
            )


def test_the_region_that_nixl_refused_is_named_and_the_others_are_taken_back(fabric):
    with End() as source, RemoteEnd() as target, End(seed=None) as other:
        regions = source.layout.regions()
        fresh = [Region(50 + n, regions[0].address + 64 * n, 64) for n in range(2)]
        with pytest.raises(RegistrationError, match="region 1 of pool 'kv', 64 bytes of cuda memory") as caught:
            source.transport.register_memory(
                [fresh[0], replace(fresh[1], kind=MemoryKind.CUDA, device_id=99), fresh[1]]
            )
        assert caught.value.region == 1
        assert states(source.finish(source.write(source.meet(target), [0], [0]))) == ["done"]
        other.meet(source)  # an empty section in the metadata, and it could not
        source.transport.deregister_memory(regions)
        other.transport.add_peer(PeerKey(source.transport.context.instance_id, 2), source.transport.local_descriptor())
        with pytest.raises(source.transport._engine.errors):
            source.transport._agent.prepXferDlist(
                source.transport._engine.lib.NIXL_INIT_AGENT, source.transport._engine.segments[MemoryKind.HOST],
                np.array([[fresh[0].address, 64, 0, 64, 1]], np.uint64), [],
            )  # fmt: skip


def test_deregistered_memory_is_still_written_as_the_readme_says(fabric):
    with End() as source, RemoteEnd() as target:
        prepared = source.meet(target)
        target.ask("deregister")
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]
        assert np.array_equal(target.fetch()[:, 0], source.arrays["kv"][:, 0])


def test_peers_that_are_not_known():
    with End() as source, End(seed=None) as target:
        prepared = source.meet(target)
        stranger = PeerKey("nobody", 1)
        source.transport.remove_peer(stranger)
        source.transport.remove_peer(prepared.peer)
        for action in (
            lambda: source.write(prepared, [0], [0]),
            lambda: source.transport.prepare(stranger, prepared.plan),
        ):
            with pytest.raises(TransportError, match="not known") as caught:
                action()
            assert caught.value.quiescent
        assert source.transport._remotes == {}
        source.meet(target, generation=2)
        source.transport.close()
        source.transport.close()

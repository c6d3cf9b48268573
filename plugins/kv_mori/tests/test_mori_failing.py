"""Failures are typed and prompt, and quiescence is never claimed without a proof."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from kv_core import MemoryKind, NotSupported, Region, RegistrationError, Role, TransferState, TransportError
from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Direction
from kv_core.contract.transport import PeerKey, TransportContext
from kv_mori import MoriTransport
from kv_mori.transfer import SENTENCES
from plugins.kv_mori.tests.support_mori import LIMIT_S, POISON, End, RemoteEnd, states

DONE, FAILED = TransferState.DONE, TransferState.FAILED


def fault(code=None, **how):
    from mori.cpp import StatusCode
    from mori.nic import Fault

    return Fault(None if code is None else StatusCode[code], **how)


@pytest.mark.parametrize("code", [code for code in SENTENCES if code != "INIT"])
def test_each_code_is_a_sentence_and_none_is_a_proof(code):
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        source.nic.script = [None, fault(code, landing=1)]
        transfer = source.write(prepared, [0, 2], [0, 2])
        (record,) = source.finish(transfer)
        assert (record.state, record.quiescent) == (FAILED, False)
        assert SENTENCES[code] in (record.error or "")
        assert "for the test's sake" in (record.error or "")
        for status in transfer.statuses:
            status.WaitFor(int(LIMIT_S * 1000))
        (record,) = source.transport.progress([transfer])
        assert not record.quiescent, "all statuses are final, which proves nothing"


def test_an_error_comes_at_once_while_other_parts_are_in_flight():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        slow = fault(late=True)
        source.nic.script = [fault("ERR_GPU_OP"), slow]
        transfer = source.write(prepared, [0], [0])
        (record,) = source.finish(transfer)
        assert (record.state, record.quiescent) == (FAILED, False)
        assert transfer.pending, "the other parts are still in flight"
        slow.released.set()


def test_bytes_that_land_after_the_error_were_not_called_quiescent():
    with End(Role.PREFILL, buffers=1) as source, End(Role.DECODE, buffers=1, fill=POISON) as target:
        prepared = source.meet(target)
        late = fault("ERR_RDMA_OP", landing=1, late=True)
        source.nic.script = [late]
        transfer = source.write(prepared, [0], [0])
        (record,) = source.finish(transfer)
        assert (record.state, record.quiescent) == (FAILED, False)
        assert (target.pages == POISON).all()
        late.released.set()
        assert late.done.wait(LIMIT_S)
        assert np.array_equal(target.pages[0, 0], source.pages[0, 0])


def test_a_broken_queue_pair_refuses_what_comes_later_before_it_is_posted():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        source.nic.script = [fault("ERR_RDMA_OP")]
        transfer = source.write(prepared, [0], [0])
        source.finish(transfer)
        for status in transfer.statuses:
            status.WaitFor(int(LIMIT_S * 1000))
        jobs = source.nic.jobs
        with pytest.raises(TransportError, match="restart") as caught:
            source.write(prepared, [1], [1])
        assert caught.value.quiescent
        assert source.nic.jobs == jobs
        source.transport.release(transfer)
        assert transfer.statuses in source.transport._kept, "the engine may still write to them"


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_peer_fails_and_others_and_its_successor_are_served(busy):
    with End(Role.PREFILL) as source, RemoteEnd() as target, RemoteEnd() as survivor:
        prepared, other = source.meet(target), source.meet(survivor)
        pages = np.arange(64)
        transfers = []
        if busy:
            source.nic.gate.clear()
            transfers = [source.write(prepared, pages, pages)]
        target.kill()
        source.nic.gate.set()
        transfers += [source.write(prepared, pages, pages)] if not busy else []
        (record,) = source.finish(*transfers)
        assert (record.state, record.quiescent) == (FAILED, False), "that the process has ended is core's to prove"
        source.transport.release(*transfers)
        assert SENTENCES["ERR_RDMA_OP"] in (record.error or "")
        assert states(source.settle(source.write(other, pages, pages))) == [DONE]
        assert np.array_equal(survivor.fetch(), source.pages)
        with RemoteEnd() as restarted:
            assert states(source.settle(source.write(source.meet(restarted), pages, pages))) == [DONE]
            assert np.array_equal(restarted.fetch(), source.pages)


def test_a_stopped_peer_is_waited_for():
    with End(Role.PREFILL, items=2048, item_len=4096) as source, RemoteEnd(items=2048, item_len=4096) as target:
        prepared = source.meet(target)
        pages = np.arange(2048)
        os.kill(target.process.pid, signal.SIGSTOP)
        transfer = source.write(prepared, pages, pages)  # 32 MiB: more than sockets hold
        source.transport.wait(0.3)
        assert list(source.transport.progress([transfer])) == []
        os.kill(target.process.pid, signal.SIGCONT)
        assert states(source.settle(transfer)) == [DONE]
        assert np.array_equal(target.fetch(), source.pages)


def test_an_exception_out_of_the_call_leaves_its_statuses_alive():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        source.nic.next_post_raises = True
        (record,) = source.finish(source.write(prepared, [0], [0]))
        assert (record.state, record.quiescent) == (FAILED, False)
        assert "cut off" in (record.error or "")
        kept = [item for held in source.transport._kept for item in held if hasattr(item, "InProgress")]
        assert len(kept) >= 4


def test_parts_that_the_engine_did_not_take_up_fail():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        source.nic.lines.clear()
        transfer = source.write(prepared, [0], [0])
        assert {status.Code().name for status in transfer.statuses} == {"INIT", "ERR_BAD_STATE"}
        (record,) = source.finish(transfer)
        assert (record.state, record.quiescent) == (FAILED, False)
        assert not transfer.pending


def test_what_was_held_back_is_never_posted_for_a_removed_peer():
    with End(Role.PREFILL, max_outstanding=4) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        source.nic.gate.clear()
        posted, held = source.write(prepared, [0], [0]), source.write(prepared, [1], [1])
        source.transport.remove_peer(prepared.peer)
        (record,) = source.finish(held)
        assert (record.state, record.quiescent) == (FAILED, True)
        source.nic.gate.set()
        assert states(source.settle(posted)) == [DONE]
        assert (target.pages[:, 1] == POISON).all()


def test_a_transfer_half_of_which_was_posted_is_quiescent_when_that_half_has_landed():
    with End(Role.PREFILL, max_outstanding=2) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        source.nic.gate.clear()
        transfer = source.write(prepared, [0], [0])  # 4 buffers
        source.transport.remove_peer(prepared.peer)
        (record,) = source.finish(transfer)
        assert (record.state, record.quiescent) == (FAILED, False)
        source.nic.gate.set()
        (record,) = source.settle(transfer)
        assert (record.state, record.quiescent) == (FAILED, True)
        assert np.array_equal(target.pages[:2, 0], source.pages[:2, 0])
        assert (target.pages[2:] == POISON).all()


def test_deregistered_memory_is_refused_by_the_receiver():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        target.transport.deregister_memory(target.layout.regions())
        (record,) = source.finish(source.write(prepared, [0], [0]))
        assert (record.state, record.quiescent) == (FAILED, False)
        assert (target.pages == POISON).all()
        with pytest.raises(TransportError, match="mismatch"):
            source.prepare(target)


def test_a_descriptor_of_a_peer_that_has_gone():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        descriptor = target.descriptor
        target.transport.close()
        source.transport.add_peer(PeerKey(target.name, 1), descriptor)
        with pytest.raises(TransportError, match="can't connect") as caught:
            source.prepare(target)
        assert caught.value.quiescent


def test_memory_is_registered_all_or_none(monkeypatch):
    with End(Role.DECODE, fill=POISON) as end:
        known, memory = len(end.transport._memory), dict(end.nic.memory)
        base = end.args.kv.buffers[0].address
        good, bad = Region(10, base + 64, 500), Region(11, base + 128, 501)
        monkeypatch.setenv("MORI_STAND_IN_REFUSES", "501")
        with pytest.raises(RegistrationError, match="refused") as caught:
            end.transport.register_memory([good, bad])
        assert caught.value.region == 1
        assert len(end.transport._memory) == known
        assert end.nic.memory == memory


def test_the_same_range_twice_is_one_registration_and_the_same_start_with_another_length_none():
    with End(Role.DECODE, fill=POISON) as end:
        first = end.layout.regions()[0]
        again = Region(10, first.address, first.nbytes)
        end.transport.register_memory([first, again])
        assert len(end.nic.memory) == 4
        end.transport.deregister_memory([first, again])
        assert len(end.nic.memory) == 4
        end.transport.deregister_memory([first])
        assert len(end.nic.memory) == 3
        end.transport.deregister_memory([first])
        other = end.layout.regions()[1]
        with pytest.raises(RegistrationError, match="can't tell"):
            end.transport.register_memory([Region(10, other.address, other.nbytes - 1)])


def test_memory_that_mori_does_not_take():
    with End(Role.DECODE, fill=POISON) as end:
        region = Region(10, 4096, 4096, MemoryKind.CUDA)
        with pytest.raises(RegistrationError, match="no cuda memory"):
            end.transport.register_memory([region])
    with pytest.raises(RegistrationError, match="XGMI"):
        End(Role.DECODE, fabric="xgmi")


def test_gpu_memory_goes_to_the_engine_with_its_device():
    with End(Role.DECODE, fill=POISON, fabric="rdma+xgmi") as end:
        seen = []
        end.transport._engine.register_memory = lambda *args: seen.append(args)
        end.transport.register_memory([Region(10, 2**63 + 4096, 4096, MemoryKind.ROCM, 3)])
        places = end.transport._io.MemoryLocationType
        assert seen == [(2**63 + 4096, 4096, 3, places.GPU)]
        end.transport._memory.popitem()
        assert end.transport.describe(PeerKey("any", 1)) == "rdma or xgmi"


def test_reading_is_not_offered():
    with pytest.raises(NotSupported, match=r"reading from a peer \(pull\)"):
        MoriTransport(TransportContext(Role.DECODE, "x", TransferConfig(), Direction.READ))

"""What is certain after something broke: fences, quiescence, generations, dead and frozen peers."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from kv_core import RegistrationError, Role, TransferState, TransportError
from kv_core.contract.memory import Region
from kv_core.contract.transport import PeerKey
from plugins.kv_fake.tests.support import POISON, End, RemoteEnd, states, wait_until

DONE, FAILED = TransferState.DONE, TransferState.FAILED
BIG: dict[str, Any] = {"items": 64, "item_len": 1 << 18, "buffers": 2}


def test_after_a_fence_nothing_lands_while_the_writer_goes_on():
    with End(Role.PREFILL, **BIG) as source, RemoteEnd(**BIG) as target:
        prepared = source.meet(target)
        transfers = [source.write(prepared, range(64), range(64)) for _ in range(4)]
        wait_until(lambda: list(source.transport.progress(transfers)) or transfers[0].started)
        assert target.ask(f"fence {source.name} 1") == {"fenced": True}
        before = target.fetch()
        more = [source.write(prepared, range(64), range(64)) for _ in range(3)]
        records = source.finish(*transfers, *more)
        assert np.array_equal(target.fetch(), before)
        assert FAILED in states(records)
        assert all(record.quiescent for record in records)


def test_a_new_generation_may_write_after_the_old_one_was_fenced():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        old = source.meet(target, 1)
        assert states(source.finish(source.write(old, [0], [0]))) == [DONE]
        target.transport.fence(PeerKey(source.name, 1))
        assert states(source.finish(source.write(old, [1], [1]))) == [FAILED]
        source.transport.remove_peer(old.peer)
        new = source.meet(target, 2)
        assert states(source.finish(source.write(new, [2], [2]))) == [DONE]
        assert (target.pages[:, 1] == POISON).all()
        with pytest.raises(TransportError):
            source.write(old, [3], [3])


def test_a_killed_peer_fails_its_transfers_and_they_become_quiescent():
    with End(Role.PREFILL, **BIG) as source, RemoteEnd(**BIG) as target:
        prepared = source.meet(target)
        os.kill(target.process.pid, signal.SIGSTOP)
        transfers = [source.write(prepared, range(64), range(64)) for _ in range(3)]
        os.kill(target.process.pid, signal.SIGKILL)
        records = source.finish(*transfers)
        assert set(states(records)) == {FAILED}
        assert all(record.error for record in records)
        assert states(source.finish(source.write(prepared, [0], [0]))) == [FAILED]


def test_a_frozen_peer_delays_nobody_else_and_finishes_when_it_wakes():
    with End(Role.PREFILL, **BIG) as source, RemoteEnd(**BIG) as frozen, RemoteEnd(**BIG) as lively:
        to_frozen, to_lively = source.meet(frozen), source.meet(lively)
        os.kill(frozen.process.pid, signal.SIGSTOP)
        stuck = [source.write(to_frozen, range(64), range(64)) for _ in range(2)]
        assert set(states(source.finish(*[source.write(to_lively, range(64), range(64)) for _ in range(3)]))) == {DONE}
        assert list(source.transport.progress(stuck)) == []
        os.kill(frozen.process.pid, signal.SIGCONT)
        assert set(states(source.finish(*stuck))) == {DONE}
        assert np.array_equal(frozen.fetch(), source.pages)


def test_a_removed_peer_that_is_frozen_is_not_quiescent_before_it_answers():
    with End(Role.PREFILL, **BIG) as source, RemoteEnd(**BIG) as frozen:
        prepared = source.meet(frozen)
        assert states(source.finish(source.write(prepared, [0], [0]))) == [DONE]
        os.kill(frozen.process.pid, signal.SIGSTOP)
        stuck = source.write(prepared, range(64), range(64))
        wait_until(lambda: stuck.started)
        source.transport.remove_peer(prepared.peer)
        wait_until(lambda: any(not record.quiescent for record in source.transport.progress([stuck])))
        until = time.monotonic() + 1.0  # not a synchronisation: for this long it must *not* happen
        while time.monotonic() < until:
            assert not any(record.quiescent for record in source.transport.progress([stuck]))
            source.transport.wait(0.05)
        os.kill(frozen.process.pid, signal.SIGCONT)
        assert states(source.finish(stuck)) == [FAILED]
        seen = frozen.fetch()
        assert np.array_equal(frozen.fetch(), seen)


def test_removing_a_peer_refuses_submissions_and_unknown_peers_are_ignored():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        prepared = source.meet(target)
        source.transport.remove_peer(PeerKey("nobody", 1))
        source.transport.remove_peer(prepared.peer)
        with pytest.raises(TransportError) as caught:
            source.write(prepared, [0], [0])
        assert caught.value.quiescent


def test_probe_tells_a_living_peer_from_a_dead_one():
    with End(Role.PREFILL) as source, RemoteEnd() as target:
        key = source.meet(target).peer
        assert source.transport.probe(key)
        assert source.transport.describe(key) == "tcp"
        target.process.kill()
        target.process.wait(30)
        assert not source.transport.probe(key)


def test_registration_is_all_or_nothing():
    with End(Role.PREFILL) as source, End(Role.DECODE, fill=POISON) as target:
        extra = np.full(8192, POISON, np.uint8)
        good = Region(10, int(extra.__array_interface__["data"][0]), 8192)
        with pytest.raises(RegistrationError) as caught:
            target.transport.register_memory([good, Region(10, good.address + 4096, 4096)])
        assert (caught.value.region, caught.value.errno) == (1, errno.EEXIST)
        prepared = source.meet(target)
        assert int(target.transport._memory.locate(*(np.array([v], np.uint64) for v in (10, 0, 1)))[1]) == 0
        assert states(source.finish(source.write(prepared, [0], [0]))) == [DONE]

"""Bytes between processes over the real engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kv_core import Role, TransferState
from kv_core.contract.transport import PeerKey
from plugins.kv_mooncake.tests.support import AUX, POISON, STATE, End, RemoteEnd, batch_of, expected

DONE = TransferState.DONE
MANY = {"buffers": 64, "items": 64, "item_len": 512}


@pytest.fixture(scope="module")
def crowd():
    with RemoteEnd(MANY) as target:
        yield target


@pytest.fixture
def target(crowd):
    crowd.ask("poison")
    return crowd


@pytest.mark.parametrize("seed", range(3))
def test_random_pages_beyond_the_engines_limit_of_outstanding_copies(target, seed):
    random = np.random.default_rng(seed)
    local, remote = random.permutation(64)[:48], random.permutation(64)[:48]
    with End(Role.PREFILL, seed=seed, **MANY) as source:
        record = source.write(source.meet(target), local, remote)
        assert (record.state, record.quiescent) == (DONE, True), record
        assert (target.fetch() == expected(source.pages, target.shape, local, remote)).all(), f"seed {seed}"


def test_more_copies_than_the_engine_can_hold_from_several_generations_at_once(target):
    with End(Role.PREFILL, **MANY) as source:
        order = np.random.default_rng(7).permutation(64)
        tos = [source.meet(target, generation) for generation in (1,)]
        others = [End(Role.PREFILL, seed=1, **MANY) for _ in range(2)]
        try:
            tos += [other.meet(target) for other in others]
            ends = [source, *others]
            with ThreadPoolExecutor(3) as threads:
                parts = [order[:20], order[20:40], order[40:60]]
                records = list(
                    threads.map(
                        lambda each: each[0].write(each[1], each[2], each[2]), zip(ends, tos, parts, strict=True)
                    )
                )
            assert [record.state for record in records] == [DONE] * 3
            pages = target.fetch()
            for end, part in zip(ends, parts, strict=True):
                assert (pages[:, part] == end.pages[:, part]).all()
            assert (pages[:, order[60:]] == POISON).all()
        finally:
            for other in others:
                other.transport.close()


def test_contiguous_pages(target):
    with End(Role.PREFILL, seed=3, **MANY) as source:
        record = source.write(source.meet(target), range(8, 40), range(20, 52))
        assert record.state is DONE
        assert (target.fetch() == expected(source.pages, target.shape, range(8, 40), range(20, 52))).all()


def test_nothing_is_done_at_once(target):
    with End(Role.PREFILL, **MANY) as source:
        record = source.write(source.meet(target), [], [])
        assert (record.state, record.quiescent, record.transfer.nbytes) == (DONE, True, 0)
        assert (target.fetch() == POISON).all()


def test_pages_state_and_auxiliary_row_in_one_transfer(target):
    with End(Role.PREFILL, seed=5, **MANY) as source:
        prepared = source.meet(target)
        batch = batch_of(prepared, [1, 2], [9, 3], state=([4, 0], [1, 7]), aux=(15, 2))
        transfer = source.transport.submit(prepared, batch)
        assert source.finish(transfer).state is DONE
        assert transfer.nbytes == batch.nbytes
        assert (target.fetch("kv") == expected(source.pages, target.shape, [1, 2], [9, 3])).all()
        assert (target.fetch("mamba") == expected(source.state, STATE, [4, 0], [1, 7])).all()
        assert (target.fetch("aux") == expected(source.aux, AUX, [15], [2])).all()


def test_two_peers_at_once(target):
    with RemoteEnd(MANY) as second, End(Role.PREFILL, seed=6, **MANY) as source, ThreadPoolExecutor(2) as threads:
        halves = {target: range(32), second: range(32, 64)}
        work = [(source.meet(peer), half) for peer, half in halves.items()]
        for _ in range(3):
            records = list(threads.map(lambda each: source.write(each[0], each[1], each[1]), work))
            assert [record.state for record in records] == [DONE, DONE]
        for peer, half in halves.items():
            assert (peer.fetch() == expected(source.pages, peer.shape, half, half)).all()


def test_what_is_in_use_and_whether_it_answers(target):
    with End(Role.PREFILL, **MANY) as source:
        prepared = source.meet(target)
        assert source.transport.describe(prepared.peer) == "tcp"
        assert source.transport.probe(prepared.peer)
        assert not source.transport.probe(PeerKey("nobody", 1))


def test_close_ends_the_engine_though_something_refers_to_what_was_prepared(target):
    with End(Role.PREFILL, **MANY) as source, End(Role.PREFILL, **MANY) as other:
        prepared = source.meet(target)
        transfer = source.transport.submit(prepared, batch_of(prepared, range(64), range(64)))
        assert source.finish(transfer).state is DONE
        seen = other.meet(source).peer
        assert other.transport.probe(seen)
        source.transport.close()
        assert not other.transport.probe(seen)


def test_wake_ends_a_wait_now_or_next(target):
    with End(Role.PREFILL, **MANY) as source:
        source.transport.wake()
        source.transport.wait(3600.0)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(source.transport.wait, 3600.0)
            source.transport.wake()
            assert waiting.result(60.0) is None
    source.transport.wake()

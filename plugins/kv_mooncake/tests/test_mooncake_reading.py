"""Bytes that this side reads from another process over the real engine, and what is said of reads that failed."""

from __future__ import annotations

import numpy as np
import pytest

from kv_core import Direction, Role, TransferState, TransportError
from plugins.kv_mooncake.tests.support import (
    AUX,
    POISON,
    STATE,
    End,
    RemoteEnd,
    batch_of,
    expected,
    in_background,
    wait_until,
)

DONE, FAILED = TransferState.DONE, TransferState.FAILED
MANY = {"buffers": 64, "items": 64, "item_len": 512}
LARGE = {"buffers": 8, "items": 256, "item_len": 65_536}
FILLED = {"fill": None, "seed": 21}


def reader(**shape: int) -> End:
    """A decode rank with nothing in its pages."""
    return End(Role.DECODE, fill=POISON, direction=Direction.READ, **shape)


@pytest.fixture(scope="module")
def source():
    with RemoteEnd({**MANY, **FILLED}) as source:
        yield source


@pytest.mark.parametrize("seed", range(3))
def test_random_pages_beyond_the_engines_limit_of_outstanding_copies(source, seed):
    random = np.random.default_rng(seed)
    mine, theirs = random.permutation(64)[:48], random.permutation(64)[:48]
    with reader(**MANY) as target:
        record = target.write(target.meet(source), mine, theirs)
        assert (record.state, record.quiescent) == (DONE, True), record
        assert (target.pages == expected(source.fetch(), target.pages.shape, theirs, mine)).all(), f"seed {seed}"


def test_one_copy_and_none(source):
    with reader(**MANY) as target:
        prepared = target.meet(source)
        assert target.write(prepared, [], []).state is DONE
        transfer = target.transport.submit(prepared, batch_of(prepared, [], [], aux=(2, 15)))
        assert target.finish(transfer).state is DONE
        assert (target.aux == expected(source.fetch("aux"), AUX, [15], [2])).all()
        assert (target.pages == POISON).all()


def test_pages_state_and_auxiliary_row_in_one_transfer(source):
    with reader(**MANY) as target:
        prepared = target.meet(source)
        batch = batch_of(prepared, [9, 3], [1, 2], state=([1, 7], [4, 0]), aux=(2, 15))
        transfer = target.transport.submit(prepared, batch)
        assert target.finish(transfer).state is DONE
        assert transfer.nbytes == batch.nbytes
        assert (target.pages == expected(source.fetch(), target.pages.shape, [1, 2], [9, 3])).all()
        assert (target.state == expected(source.fetch("mamba"), STATE, [4, 0], [1, 7])).all()
        assert (target.aux == expected(source.fetch("aux"), AUX, [15], [2])).all()


def test_what_the_peer_has_not_registered_fails_and_the_peer_stays_usable(source):
    with reader(**MANY) as target:
        prepared = target.meet(source)
        good = int(prepared.remote[1])
        prepared.remote[1] = 0x10000
        record = target.write(prepared, [0, 3], [5, 9])
        assert (record.state, record.quiescent) == (FAILED, False)
        prepared.remote[1] = good
        assert target.write(prepared, [1], [6]).state is DONE
        assert (target.pages[:, 1] == source.fetch()[:, 6]).all()
        assert (target.pages[1, [0, 3]] == POISON).all()


def test_a_peer_killed_in_mid_read():
    with RemoteEnd({**LARGE, **FILLED}) as source, reader(**LARGE) as target:
        prepared = target.meet(source)
        assert target.write(prepared, [0], [0]).state is DONE
        thread, records = in_background(target, prepared, range(0, 256, 2), range(1, 256, 2))
        source.kill()
        thread.join(60.0)
        (record,) = records
        assert (record.state, record.quiescent) == (FAILED, False)


def test_a_stopped_peer_answers_late_and_is_taken_back(monkeypatch):
    """What it is asked for lands here when it goes on, long after the error: so the read is not called quiescent."""
    monkeypatch.setenv("MC_TRANSFER_TIMEOUT", "5")
    monkeypatch.setenv("MC_TCP_PROGRESS_TIMEOUT_SEC", "60")
    with RemoteEnd({**LARGE, **FILLED}) as source, reader(**LARGE) as target:
        prepared = target.meet(source)
        assert target.write(prepared, [0], [0]).state is DONE
        source.stop()
        thread, records = in_background(target, prepared, range(1, 256, 2), range(1, 256, 2))
        thread.join(60.0)
        (record,) = records
        assert (record.state, record.quiescent) == (FAILED, False)
        assert "not complete after" in (record.error or "")
        assert (target.pages[:, 1::2] == POISON).all()
        source.resume()
        wait_until(lambda: bool((target.pages[:, 1::2] != POISON).any()))
        assert not target.look(record.transfer).quiescent

        def goes() -> bool:
            try:
                return target.write(prepared, [2], [2]).state is DONE
            except TransportError:
                return False

        wait_until(goes)
        assert (target.pages[:, 2] == source.fetch()[:, 2]).all()

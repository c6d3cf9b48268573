"""Foreign traffic on the NIC's port, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading

import numpy as np
import psutil
import pytest

from kv_core import Role, TransferState
from kv_fake.wire import Descriptor, Preamble, Purpose
from plugins.kv_fake.tests.support import POISON, End, states, wait_until

DONE = TransferState.DONE
SEED = int(os.environ.get("KV_CORE_SEED", random.SystemRandom().randrange(2**31)))
CONNECTIONS = int(os.environ.get("KV_CORE_FUZZ_MESSAGES", "1000"))


def noise(rng: random.Random, where: Descriptor) -> bytes:
    """Random bytes, now and then with a good beginning."""
    junk = rng.randbytes(rng.choice([0, 1, 7, 40, 200, 3000]))
    kind = rng.randrange(5)
    if kind == 0:
        return b"GET /route HTTP/1.1\r\nHost: x\r\n\r\n" + junk
    token = where.token if kind >= 3 else rng.randbytes(16)
    preamble = Preamble(
        token, "stranger", rng.randrange(2**63), rng.choice([0, 1, 2, 3, 99]), rng.randrange(2**63)
    ).pack()
    return junk if kind == 1 else preamble + junk


def test_foreign_traffic_harms_nothing_and_good_traffic_goes_on():
    print(f"seed {SEED}: repeat with KV_CORE_SEED={SEED} KV_CORE_FUZZ_MESSAGES={CONNECTIONS}")
    rng = random.Random(SEED)
    with End(Role.PREFILL, seed=1) as source, End(Role.DECODE, fill=POISON) as target:
        prepared, where = source.meet(target), Descriptor.unpack(target.descriptor)
        for number in range(CONNECTIONS):
            hung_up = contextlib.suppress(BrokenPipeError, ConnectionResetError)
            with socket.create_connection((where.host, where.port)) as stranger, hung_up:
                stranger.sendall(noise(rng, where))
            if number % 100 == 0:
                page = number // 100 % 64
                assert states(source.finish(source.write(prepared, [page], [page]))) == [DONE]
                assert np.array_equal(target.pages[:, page], source.pages[:, page])
        wait_until(lambda: len(target.transport._nic._inbound) == 1)
        assert target.transport._nic.counts.exceptions == 0
        rest = [page for page in range(64) if page > (CONNECTIONS - 1) // 100]
        assert (target.pages[:, rest] == POISON).all()


def test_a_silent_stranger_occupies_nobody(monkeypatch):
    with End(Role.PREFILL, seed=1) as source, End(Role.DECODE, fill=POISON) as target:
        where = Descriptor.unpack(target.descriptor)
        strangers = [socket.create_connection((where.host, where.port)) for _ in range(20)]
        strangers[0].sendall(Preamble(where.token, "s", 1, Purpose.DATA, 1).pack()[:50])
        assert states(source.finish(source.write(source.meet(target), [0], [0]))) == [DONE]
        for stranger in strangers:
            stranger.close()
        wait_until(lambda: len(target.transport._nic._inbound) == 1)


def test_open_and_close_leaves_nothing_behind():
    def once() -> None:
        with End(Role.PREFILL, items=4) as source, End(Role.DECODE, fill=POISON, items=4) as target:
            assert states(source.finish(source.write(source.meet(target), [0], [1]))) == [DONE]
            source.transport.close()
            source.transport.close()
            source.transport.wake()

    once()
    process = psutil.Process()
    files, threads = process.num_fds(), threading.active_count()
    for _ in range(100):
        once()
    wait_until(lambda: (process.num_fds(), threading.active_count()) == (files, threads))
    assert (process.num_fds(), threading.active_count()) == (files, threads)


@pytest.mark.parametrize("who", ["source", "target"])
def test_closing_in_the_middle_ends_everything(who):
    item = 1 << 18
    with End(Role.PREFILL, item_len=item) as source, End(Role.DECODE, fill=0, item_len=item) as target:
        transfers = [source.write(source.meet(target), range(64), range(64)) for _ in range(2)]
        (source if who == "source" else target).transport.close()
        if who == "target":
            after = target.pages.copy()
            assert all(record.quiescent for record in source.finish(*transfers))
            assert np.array_equal(target.pages, after)
        else:
            assert threading.active_count() < 50

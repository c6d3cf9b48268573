"""Each kind of fault does what ``KINDS`` says, the same way for the same seed, and stays honest about quiescence."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import kv_core
from kv_core import InvalidConfig, RegistrationError, Role, TransferState
from kv_fake import KINDS, Fault
from kv_fake.faults import Script
from plugins.kv_fake.tests.support import POISON, End, states, wait_until

DONE, FAILED = TransferState.DONE, TransferState.FAILED


@pytest.fixture
def target():
    with End(Role.DECODE, fill=POISON) as end:
        yield end


def faulty(*faults, seed=0):
    return End(Role.PREFILL, seed=seed, faults=faults)


def test_delay_and_slow_deliver_late(target):
    with faulty({"kind": "delay", "nth": 1, "seconds": 0.3}, {"kind": "slow", "nth": 2, "rate": 50_000}) as source:
        prepared = source.meet(target)
        begun = time.monotonic()
        late, slow, prompt = (source.write(prepared, [n], [n]) for n in range(3))
        assert states(source.finish(prompt)) == [DONE]
        assert (target.pages[:, :2] == POISON).all()
        assert states(source.finish(late, slow)) == [DONE, DONE]
        assert time.monotonic() - begun >= 0.3
        assert np.array_equal(target.pages[:, :3], source.pages[:, :3])


def test_dropped_bytes_never_come_and_cancelling_them_is_quiescent(target):
    with faulty({"kind": "drop", "every": 2}) as source:
        prepared = source.meet(target)
        first, dropped, third, removed = (source.write(prepared, [n], [n]) for n in range(4))
        assert states(source.finish(first, third)) == [DONE, DONE]
        assert list(source.transport.progress([dropped, removed])) == []
        source.transport.cancel(dropped)
        source.transport.remove_peer(prepared.peer)
        assert states(source.finish(dropped, removed)) == [FAILED, FAILED]
        assert (target.pages[:, [1, 3]] == POISON).all()


def test_a_duplicate_is_done_when_both_copies_have_landed(target):
    with faulty({"kind": "duplicate", "nth": 1}) as source:
        assert states(source.finish(source.write(source.meet(target), [0], [0]))) == [DONE]
        wait_until(lambda: target.transport._nic.counts.frames == 2)
        target.pages[:] = POISON
        assert states(source.finish(source.write(source.meet(target), [1], [1]))) == [DONE]
        assert (target.pages[:, 0] == POISON).all()


def test_reordered_bytes_leave_after_the_next_ones(target):
    with faulty({"kind": "reorder", "nth": 1, "seconds": 20}) as source:
        prepared = source.meet(target)
        first = source.write(prepared, [0], [5])
        assert list(source.transport.progress([first])) == []
        second = source.write(prepared, [1], [5])
        assert states(source.finish(first, second)) == [DONE, DONE]
        assert np.array_equal(target.pages[:, 5], source.pages[:, 0])


def test_one_bit_is_corrupted_and_the_source_is_not(target):
    with faulty({"kind": "corrupt", "nth": 2}, seed=7) as source:
        before = source.pages.copy()
        prepared = source.meet(target)
        good, bad = (source.write(prepared, range(n, n + 8), range(n, n + 8)) for n in (0, 8))
        assert states(source.finish(good, bad)) == [DONE, DONE]
        wrong = target.pages[:, :16] ^ source.pages[:, :16]
        assert int(np.unpackbits(wrong).sum()) == 1
        assert not wrong[:, :8].any()
        assert np.array_equal(source.pages, before)


def test_held_data_leaves_when_it_is_released(target):
    with faulty({"kind": "hold", "nth": 1, "seconds": 60}) as source:
        prepared = source.meet(target)
        held, free = (source.write(prepared, [n], [n]) for n in range(2))
        assert states(source.finish(free)) == [DONE]
        assert (target.pages[:, 0] == POISON).all()
        source.transport.release_held()
        assert states(source.finish(held)) == [DONE]


def test_a_frozen_nic_moves_nothing_either_way_and_then_goes_on(target):
    with faulty({"kind": "freeze", "nth": 1, "seconds": 0.4}) as source:
        prepared = source.meet(target)
        begun = time.monotonic()
        transfer = source.write(prepared, [0], [0])
        assert list(source.transport.progress([transfer])) == []
        assert states(source.finish(transfer)) == [DONE]
        assert time.monotonic() - begun >= 0.4


def test_a_late_write_is_failed_at_once_and_quiescent_only_when_it_has_landed(target):
    with faulty({"kind": "late_write", "nth": 1, "seconds": 0.3}) as source:
        transfer = source.write(source.meet(target), [0], [0])
        (record,) = source.transport.progress([transfer])
        assert (record.state, record.quiescent) == (FAILED, False)
        assert (target.pages == POISON).all()
        (record,) = source.finish(transfer)
        assert record.state is FAILED
        assert np.array_equal(target.pages[:, 0], source.pages[:, 0])


def test_a_late_write_to_a_removed_peer_never_happens(target):
    with faulty({"kind": "late_write", "nth": 1, "seconds": 0.2}) as source:
        prepared = source.meet(target)
        transfer = source.write(prepared, [0], [0])
        source.transport.remove_peer(prepared.peer)
        assert states(source.finish(transfer)) == [FAILED]
        assert (target.pages == POISON).all()


def test_die_kills_the_process():
    code = (
        "from kv_core import Role; from plugins.kv_fake.tests.support import End\n"
        "with End(Role.DECODE, fill=1) as target, End(Role.PREFILL, faults=[{'kind': 'die', 'nth': 2}]) as source:\n"
        "    prepared = source.meet(target)\n"
        "    source.finish(source.write(prepared, [0], [0])); print('once', flush=True)\n"
        "    source.write(prepared, [0], [0]); print('twice', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "once\n")


def test_the_kth_registration_fails_and_nothing_stays_registered():
    with pytest.raises(RegistrationError) as caught:
        End(Role.DECODE, fill=0, faults=[{"kind": "fail_registration", "nth": 3}])
    assert (caught.value.region, caught.value.errno) == (2, 12)


def test_the_same_seed_strikes_the_same_submissions():
    rules = {"faults": [{"kind": "drop", "probability": 0.3}, {"kind": "delay", "every": 7}], "seed": 11}
    runs = [
        [[fault.kind for fault in script.strike()] for _ in range(200)] for script in (Script(rules), Script(rules))
    ]
    assert runs[0] == runs[1]
    assert 30 < sum("drop" in struck for struck in runs[0]) < 90
    assert sum("delay" in struck for struck in runs[0]) == 28


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fault": []}, "'faults' and 'seed'"),
        ({"faults": [{"kind": "melt", "nth": 1}]}, "corrupt"),
        ({"faults": [{"kind": "drop"}]}, "one of nth, every and probability"),
        ({"faults": [{"kind": "drop", "nth": 1, "every": 2}]}, "one of nth, every and probability"),
        ({"faults": [{"nth": 1}]}, "a mapping with 'kind'"),
        ({"faults": [{"kind": "drop", "nth": 1, "colour": "red"}]}, "a mapping with 'kind'"),
        ({"faults": ["drop"]}, "a mapping with 'kind'"),
    ],
)
def test_a_senseless_script_is_refused_with_what_would_make_sense(options, words):
    with pytest.raises(InvalidConfig, match=words):
        Script(options)


def test_every_kind_is_documented_and_a_fault_survives_pickling():
    import multiprocessing

    assert all(Fault(kind, nth=1).kind == kind and text for kind, text in KINDS.items())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(Fault.of, [Fault("drop", nth=3)]) == [Fault("drop", nth=3)]
    assert kv_core.load_backend("fake").info.name == "fake"

"""The thread that carries a loop."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from core.tests.bootstrap.support import LIMIT_S, until
from kv_core.contract.failures import ManagerClosed
from kv_core.runtime.bootstrap.loop_thread import Complaints, LoopThread


@pytest.fixture
def complaints():
    logger = logging.getLogger("test.loop")
    return Complaints(logger)


def fail(error):
    raise error


def answers(thread):
    answered = threading.Event()
    assert thread.call(answered.set)
    return answered.wait(LIMIT_S)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_nothing_that_is_raised_in_it_ends_it(complaints, error):
    thread = LoopThread("kv-http-test", complaints)
    thread.start()
    assert thread.call(fail, error)
    until(lambda: complaints.count == 1, "the exception was counted")
    assert answers(thread)
    assert thread.health()["alive"]
    assert thread.stop()


def test_a_raising_timer_goes_on(complaints):
    thread = LoopThread("kv-http-test", complaints, on_tick=lambda now: fail(OSError("tick")))
    thread.start()
    until(lambda: complaints.count >= 3, "the timer ran three times")
    assert thread.health()["exceptions"] >= 3
    assert thread.stop()


def test_its_end(complaints):
    done = []

    async def on_stop():
        done.append(1)
        await asyncio.sleep(LIMIT_S)  # longer than it may take

    thread = LoopThread("kv-http-test", complaints, on_stop=on_stop, stop_limit_s=0.05)
    assert not thread.call(fail)
    thread.start()
    thread.start()  # again: changes nothing
    cancelled = threading.Event()

    async def forever():
        try:
            await asyncio.sleep(1e6)
        finally:
            cancelled.set()

    kept = []
    thread.call(lambda: kept.append(asyncio.get_running_loop().create_task(forever())))
    assert answers(thread)
    assert thread.stop()
    assert thread.stop()
    assert done == [1]
    assert cancelled.is_set()
    assert not thread.call(fail)
    assert not thread.health()["alive"]
    with pytest.raises(ManagerClosed):
        thread.start()


def test_stopped_from_itself_it_does_not_wait_for_itself(complaints):
    thread = LoopThread("kv-http-test", complaints)
    thread.start()
    results = []
    assert thread.call(lambda: results.append(thread.stop()))
    until(lambda: results == [False], "it only began to end")
    assert thread.stop()


def test_never_started_there_is_nothing_to_stop(complaints):
    thread = LoopThread("kv-http-test", complaints)
    assert thread.stop()
    assert thread.health() == {"alive": False, "last_progress_age_s": None, "exceptions": 0}


def test_complaints_are_all_counted_and_seldom_logged(caplog):
    complaints = Complaints(logging.getLogger("test.loop"), period_s=LIMIT_S)
    for number in range(50):
        complaints.add("one kind", ValueError(number))
    complaints.add("another kind", None)
    complaints.note("a third kind", ValueError("expected"))
    assert complaints.count == 51
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2

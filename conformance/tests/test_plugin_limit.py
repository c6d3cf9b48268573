"""The time limit of a check."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from kv_conformance import plugin_limit
from kv_conformance.outcomes import CheckTimeout
from kv_conformance.plugin_limit import time_limit


@pytest.fixture
def others() -> Iterator[list[int]]:
    """Somebody else's timer, as pytest-timeout sets one; the real one is put back."""
    rung: list[int] = []

    def ring(number: int, _frame: FrameType | None) -> None:
        rung.append(number)

    former = signal.signal(signal.SIGALRM, ring)
    delay, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    yield rung
    signal.signal(signal.SIGALRM, former)
    signal.setitimer(signal.ITIMER_REAL, delay, interval)


def test_what_takes_too_long_is_ended(others: list[int]):
    with pytest.raises(CheckTimeout, match=r"did not end within 0.05 s"), time_limit(0.05):
        time.sleep(60)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert others == []


def test_it_is_raised_again_where_it_got_lost(others: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin_limit, "AGAIN_S", 0.05)

    def stubborn() -> None:
        try:
            time.sleep(60)
        except CheckTimeout:
            time.sleep(60)

    with pytest.raises(CheckTimeout), time_limit(0.05):
        stubborn()


def test_no_except_clause_of_a_check_takes_it_for_an_answer(others: list[int]):
    assert not issubclass(CheckTimeout, Exception)


def test_another_ones_timer_stands_still_meanwhile(others: list[int]):
    handler = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with time_limit(60):
        time.sleep(0.2)
    assert others == []
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0.0 or others == [signal.SIGALRM]


def test_outside_of_the_main_thread_there_is_no_limit(others: list[int]):
    done = []

    def body() -> None:
        with time_limit(0.01):
            time.sleep(0.1)
        done.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(30)
    assert done == [True]

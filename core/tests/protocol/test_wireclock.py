"""The length of a union of spans."""

from __future__ import annotations

import random

import pytest

from kv_core.protocol.wireclock import WireClock


@pytest.mark.parametrize("seed", range(50))
def test_against_counting_ticks(seed: int):
    rng = random.Random(seed)
    clock, ticks, first = WireClock(), set[int](), None
    for _ in range(rng.randrange(1, 40)):
        start, length = rng.randrange(200), rng.randrange(0, 30)
        clock.add(float(start), float(start + length))
        ticks.update(range(start, start + length))
        first = start if first is None else min(first, start)
        assert clock.seconds == len(ticks), f"seed {seed}"
        assert clock.first == first
        assert clock._starts == sorted(clock._starts)


def test_nothing_took_no_time():
    assert WireClock().seconds == 0
    assert WireClock().first is None


def test_a_span_that_ends_before_it_begins_is_empty():
    clock = WireClock()
    clock.add(5.0, 3.0)
    assert clock.seconds == 0
    assert clock.first == 5.0


def test_five_chunks_in_parallel_for_a_second_are_one_second():
    clock = WireClock()
    for _ in range(5):
        clock.add(1.0, 2.0)
    assert clock.seconds == 1.0

"""Deadlines by key: against a model, and bounded."""

from __future__ import annotations

import random

import pytest

from kv_core.protocol.timers import COMPACT_ABOVE, Timers


@pytest.mark.parametrize("seed", range(30))
def test_against_a_dictionary(seed: int):
    rng = random.Random(seed)
    timers: Timers[int] = Timers()
    model: dict[int, float] = {}
    now = 0.0
    for _ in range(600):
        key = rng.randrange(12)
        what = rng.random()
        if what < 0.5:
            when = now + rng.choice((0.0, rng.uniform(-1, 1), rng.uniform(0, 20)))
            timers.set(key, when)
            model[key] = when
        elif what < 0.7:
            timers.cancel(key)
            model.pop(key, None)
        else:
            now += rng.choice((0.0, 0.1, rng.uniform(0, 8)))
            upcoming = timers.next()
            if model:
                assert upcoming is not None
                assert upcoming <= min(model.values()), "a sleeper would miss a deadline"
            expected = sorted((when, key) for key, when in model.items() if when <= now)
            found = timers.due(now)
            assert sorted(found) == sorted(key for _, key in expected), f"seed {seed}"
            assert [model[key] for key in found] == [when for when, _ in expected], "not in the order of time"
            for key in found:
                del model[key]
        assert len(timers) == len(model)
        assert timers.get(key) == model.get(key)


def test_a_deadline_that_is_moved_again_and_again_costs_no_memory():
    timers: Timers[str] = Timers()
    for i in range(100_000):
        timers.set("lease", float(i + 10))
        if i % 10 == 0:
            timers.due(float(i))
    assert len(timers._heap) <= 2
    assert timers.get("lease") == 100_009.0


def test_cancelled_deadlines_cost_bounded_memory():
    timers: Timers[int] = Timers()
    for i in range(20_000):
        timers.set(i, 1e9)
        timers.cancel(i)
    assert len(timers._heap) <= COMPACT_ABOVE + 2
    assert len(timers) == 0


def test_the_same_key_comes_due_once():
    timers: Timers[str] = Timers()
    for when in (5.0, 3.0, 4.0, 1.0, 2.0):
        timers.set("x", when)
    assert timers.due(1.9) == []
    assert timers.due(10.0) == ["x"]
    assert timers.due(10.0) == []
    assert len(timers) == 0

"""A sample of all pairs of topologies, plan by plan against a tensor of the whole model's cache (``make topologies`` has
them all), and planners that are broken on purpose: the oracle must see each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.tests.layout.topologies import cases, whole, world
from core.tests.layout.topologies.model import Case, Side
from kv_core.layout import lanes, pages

SEED = 20
STEPS = {"tensor": 160, "pipeline": 13, "context": 23, "data": 3, "pages": 170, "product": 400}
LEAST = {"tensor": 8, "pipeline": 9, "context": 8, "data": 5, "pages": 10, "product": 10}


@pytest.mark.parametrize("axis", list(STEPS))
def test_every_byte_once_from_the_right_byte_and_nothing_else(axis):
    tally = whole.Tally()
    whole.AXES[axis](STEPS[axis], 3, tally, SEED)
    print(f"seed {SEED}, {axis}: {tally}")
    assert tally.cases >= LEAST[axis]
    assert tally.plans >= tally.cases
    assert tally.refused > 0 or axis not in ("tensor", "pages")
    assert tally.staged > 0 or axis != "tensor"


def test_pairs_of_values_of_all_axes_are_covered():
    made = list(cases.product_cases(SEED, 200))
    assert len(made) == 200
    assert made[-1][1] < made[0][1] / 2
    assert len({case.source.sizes for case, _, _ in made}) > 100


CASE = Case(
    Side(tp=4, page=2, cp=2), Side(tp=2, page=4, order="HND"), heads=4, tokens=12, stages=((range(2),), (range(2),)),
    seed=5,
)  # fmt: skip


def no_offset(found: lanes.Common) -> lanes.Common:
    return replace(found, destination=replace(found.destination, first=found.low))


def first_phase(pairs: pages.Pairs) -> pages.Pairs:
    return pairs._replace(phase=pairs.phase * 0)


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "several ranks send what they all hold": (lanes, "sends_units", lambda *_: np.array(True)),
    "the last stage is not asked for what has no layer": (lanes, "sends_unlayered", lambda *_: False),
    "all heads come to the place of the first": (lanes, "_boxes", lambda found, real=lanes._boxes: real(no_offset(found))),
    "gaps are taken for data": (lanes, "_fold", lambda length, count, *_: (length * count, np.ones_like(count))),
    "every page goes to the first part of a larger one": (
        pages, "pair_pages", lambda *a, real=pages.pair_pages: first_phase(real(*a)),
    ),
    "pages are counted from the chunk's start": (
        pages, "pair_pages", lambda plan, here, there, real=pages.pair_pages: real(plan, here._replace(first=0), there),
    ),
}  # fmt: skip


def test_the_case_of_the_broken_planners_passes():
    world.World(CASE).run()


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_broken_planner_is_seen(mutant, monkeypatch):
    module, name, change = MUTANTS[mutant]
    monkeypatch.setattr(module, name, change)
    with pytest.raises((AssertionError, IndexError)):
        world.World(CASE).run()

"""A sample of the pairs of shapes on every engine, with real processes; ``make unequal`` runs all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest

from kv_core import BackendLoadError, BackendNotFound, load_backend
from tests.long import unequal
from tests.support import command_line
from tests.unequal.faults import FAULTS, run_fault
from tests.unequal.judge import Result, run_pair
from tests.unequal.pairs import PAIRS
from tests.unequal.refused import REFUSED, run_refused
from tests.unequal.scene import MOST_RANKS, Workers

T = TypeVar("T")
SEED = command_line.chosen_seed(None)
SAMPLED_RANKS = 4
"""Of a pair that the sample may have: each process costs half a second, and the larger ones test nothing else."""
SERVED, REFUSALS, GIVEN_UP = 4, 1, 1
"""How many of each kind on one backend."""


@pytest.fixture(scope="module", params=unequal.BACKENDS)
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    try:
        load_backend(request.param)
    except (BackendLoadError, BackendNotFound) as error:
        pytest.skip(f"{request.param} can't be loaded here: {error}")
    with Workers(request.param) as workers:
        yield workers


def sample(workers: Workers, things: Sequence[T], count: int) -> list[T]:
    """So many, other ones on each backend."""
    things = random.Random(SEED).sample(things, len(things))
    at = unequal.BACKENDS.index(workers.backend)
    return things[at :: len(unequal.BACKENDS)][:count]


def assert_good(workers: Workers, result: Result) -> None:
    assert not result.problems, "\n".join(
        [*result.problems, f"to repeat: {unequal.repeat(SEED, workers.backend, result)}"]
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_served_pairs(workers: Workers):
    small = [pair for pair in PAIRS if sum(pair.counts) <= SAMPLED_RANKS]
    for pair in sample(workers, small, SERVED):
        result = run_pair(workers, pair, SEED)
        assert_good(workers, result)
        assert result.nbytes > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_refused_pairs(workers: Workers):
    small = [pair for pair in REFUSED if sum(map(int, pair.ranks.split("+"))) <= SAMPLED_RANKS]
    for pair in sample(workers, small, REFUSALS):
        assert_good(workers, run_refused(workers, pair, SEED))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_faults(workers: Workers):
    small = [fault for fault in FAULTS if sum(fault.shape.counts) <= SAMPLED_RANKS]
    for fault in sample(workers, small, GIVEN_UP):
        assert_good(workers, run_fault(workers, fault, SEED))


def test_the_list_is_whole():
    """As many pairs as are promised, on every axis, with names of their own, of eight processes at most."""
    assert len({pair.name for pair in PAIRS}) == len(PAIRS) >= 40
    assert len({pair.name for pair in REFUSED}) == len(REFUSED)
    assert max(sum(pair.counts) for pair in PAIRS) <= MOST_RANKS
    assert max(sum(map(int, pair.ranks.split("+"))) for pair in REFUSED) <= MOST_RANKS
    assert {pair.axis for pair in PAIRS} == {"tp", "pp", "cp", "dp", "pages", "product"}
    cases = [pair.case for pair in PAIRS]
    assert all(0 <= pair.dp_rank < pair.case.source.dp for pair in PAIRS)
    features = {
        "replicated heads": lambda c: c.source.tp > c.heads and not c.mla, "MLA": lambda c: c.mla,
        "prefix": lambda c: c.prefix > 0, "no state": lambda c: not c.state, "uneven stages": lambda c: len(set(map(len, c.stages[0]))) > 1,
        "a prompt that ends inside a page": lambda c: c.tokens % max(c.source.page, c.destination.page) > 0,
        "fused to unfused": lambda c: c.source.fused and not c.destination.fused, "NHD to HND": lambda c: c.source.order < c.destination.order,
        "draft layers in prefill only": lambda c: c.stages[0][-1].stop > c.stages[1][-1].stop,
    }  # fmt: skip
    for name, is_there in features.items():
        assert any(is_there(case) for case in cases), name

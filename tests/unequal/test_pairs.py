"""A sample of the pairs of shapes on every engine, with real processes; ``make unequal`` runs all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
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
SAMPLED_RANKS = {"served": 3, "refused": 3, "faults": 4}
"""Most ranks that a sampled pair may have: each process costs a second of CPU."""
SAMPLED = {"served": 4, "refused": 2, "faults": 1}
"""How many of each kind on one backend; rooms are given up on one backend only, which is drawn."""


@cache
def installed() -> tuple[str, ...]:
    """Backends whose engine is here."""
    found = []
    for name in unequal.BACKENDS:
        with suppress(BackendLoadError, BackendNotFound):
            load_backend(name)
            found.append(name)
    return tuple(found)


@pytest.fixture(scope="module", params=unequal.BACKENDS)
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    if request.param not in installed():
        pytest.skip(f"the engine of {request.param} can't be loaded here")
    with Workers(request.param) as workers:
        yield workers


def sample(workers: Workers, kind: str, things: Sequence[T], ranks: Callable[[T], int]) -> list[T]:
    """A few small ones of a kind, other ones on each backend."""
    small = [thing for thing in things if ranks(thing) <= SAMPLED_RANKS[kind]]
    drawn = random.Random(SEED).sample(small, len(small))
    return drawn[installed().index(workers.backend) :: len(installed())][: SAMPLED[kind]]


def assert_good(workers: Workers, result: Result) -> None:
    assert not result.problems, "\n".join(
        [*result.problems, f"to repeat: {unequal.repeat(SEED, workers.backend, result)}"]
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sample(workers: Workers):
    for pair in sample(workers, "served", PAIRS, lambda pair: sum(pair.counts)):
        result = run_pair(workers, pair, SEED)
        assert_good(workers, result)
        assert result.nbytes > 0
    for bad in sample(workers, "refused", REFUSED, lambda pair: pair.count):
        assert_good(workers, run_refused(workers, bad, SEED))
    if workers.backend == random.Random(SEED).choice(installed()):
        for fault in sample(workers, "faults", FAULTS, lambda fault: sum(fault.shape.counts)):
            assert_good(workers, run_fault(workers, fault, SEED))


def test_the_list_is_whole():
    """As many pairs as are promised, on every axis, with names of their own, of eight processes at most."""
    assert len({pair.name for pair in PAIRS}) == len(PAIRS) >= 40
    assert len({pair.name for pair in REFUSED}) == len(REFUSED)
    assert max(sum(pair.counts) for pair in PAIRS) <= MOST_RANKS
    assert max(pair.count for pair in REFUSED) <= MOST_RANKS
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

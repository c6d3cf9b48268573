"""All cases, or a part of them: what was tried, counted."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from core.tests.layout.topologies import cases
from core.tests.layout.topologies.model import Case, Side
from core.tests.layout.topologies.world import World, topology
from kv_core.layout import MemoryLayout, UnsupportedTopology, source_ranks


@dataclass
class Tally:
    """What a run did."""

    cases: int = 0
    plans: int = 0
    ranks: int = 0
    staged: int = 0
    refused: int = 0
    notes: list[str] = field(default_factory=list)


def try_case(case: Case, limit: int, tally: Tally) -> None:
    """Serve up to ``limit`` decode ranks of a case; a failure says how to repeat it."""
    world = World(case)
    try:
        world.run(limit)
    except BaseException:
        print(
            f"failed: {case}\nrepeat: python -c 'from core.tests.layout.topologies.world import *; World({case}).run()'"
        )
        raise
    tally.cases += 1
    tally.plans += world.moves
    tally.staged += world.staged
    tally.ranks += world.ranks


def refuse(case: Case, tally: Tally, rule: str) -> None:
    """A pair that can't be served is refused with its rule before anything is planned."""
    rank = decode_layout(case)
    with pytest.raises(UnsupportedTopology, match=rule):
        source_ranks(topology((0, 0, 0, 0), case.destination), case.source.sizes, 0, rank, page_size=case.source.page)
    tally.refused += 1


def decode_layout(case: Case) -> MemoryLayout:
    """A decode rank's layout; where its own heads can't be shared, that of a rank that has no tensor parallelism."""
    whole = Case(Side(page=case.destination.page), Side(page=case.destination.page), case.heads, state=False)
    return World(whole).rank(1, topology((0, 0, 0, 0), whole.destination)).layout


def tensor(step: int, limit: int, tally: Tally, seed: int) -> None:
    """Every pair of sizes with every number of heads."""
    layouts: dict[int, Case] = {}
    for at, (prefill, decode, heads) in enumerate(cases.tensor_pairs()):
        if (at + seed) % step:
            continue
        if cases.shared(heads, prefill) and cases.shared(heads, decode):
            try_case(cases.tensor_case(prefill, decode, heads, seed + at), limit, tally)
        else:
            case = layouts.setdefault(heads, Case(heads=heads))
            refuse(Case(Side(tp=prefill), Side(tp=decode), case.heads), tally, "shared evenly")
    for at in range(0, 256, step):
        try_case(cases.tensor_case(at // 16 + 1, at % 16 + 1, 1, seed + at, mla=True), limit, tally)


def listed(made: Callable[[int], Iterable[Case]]) -> Callable[[int, int, Tally, int], None]:
    """Every ``step``-th case of a list."""

    def run(step: int, limit: int, tally: Tally, seed: int) -> None:
        for at, case in enumerate(made(seed)):
            if (at + seed) % step == 0:
                try_case(case, limit, tally)

    return run


def pages(step: int, limit: int, tally: Tally, seed: int) -> None:
    """Every pair of page sizes; those of which none divides the other are refused."""
    listed(cases.page_cases)(step, limit, tally, seed)
    uneven = [(a, b) for a in cases.PAGES for b in cases.PAGES if max(a, b) % min(a, b)]
    for prefill, decode in uneven[::step]:
        refuse(Case(Side(page=prefill), Side(page=decode)), tally, "one page size must divide the other")


def whole_product(most: int) -> Callable[[int, int, Tally, int], None]:
    """Pairwise samples of the product of all axes."""

    def run(step: int, limit: int, tally: Tally, seed: int) -> None:
        left = impossible = 0
        for case, left, impossible in cases.product_cases(seed, most // step):  # noqa: B007 - the last one's are told
            try_case(case, limit, tally)
        pairs = sum(
            len(one) * len(other)
            for n, one in enumerate(cases.AXES.values())
            for other in [*cases.AXES.values()][n + 1 :]
        )
        tally.notes.append(f"{pairs - left - impossible} of {pairs} pairs of values; {impossible} exist in no case")

    return run


EVERY = 1 << 30

AXES: dict[str, Callable[[int, int, Tally, int], None]] = {
    "tensor": tensor,
    "pipeline": listed(cases.pipeline_cases),
    "context": listed(cases.context_cases),
    "data": listed(cases.data_cases),
    "pages": pages,
    "product": whole_product(4_000),
}


def run_all(step: int, limit: int, seed: int, only: str | None = None) -> Iterator[tuple[str, Tally, float]]:
    """Each axis in turn, with all decode ranks of a case; of the product's cases with ``limit`` of them."""
    for name, axis in AXES.items():
        if only in (None, name):
            tally, start = Tally(), time.process_time()
            axis(step, limit if name == "product" else EVERY, tally, seed)
            yield name, tally, time.process_time() - start


def main() -> int:
    """Run everything and print what it was."""
    parser = argparse.ArgumentParser(description="Plans of all topologies against a tensor of the whole model's cache.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--step", type=int, default=1, help="try every so manyth case only")
    parser.add_argument("--ranks", type=int, default=4, help="decode ranks of a case of the product, by its seed")
    parser.add_argument("--only", choices=list(AXES))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    for name, tally, seconds in run_all(options.step, options.ranks, options.seed, options.only):
        print(
            f"{name:>9}: {tally.cases} cases, {tally.ranks} decode ranks, {tally.plans} plans ({tally.staged} batches staged), {tally.refused} refused "
            f"with their rule, {seconds:.1f} s" + "".join(f"; {note}" for note in tally.notes)
        )
        sys.stdout.flush()
    return 0

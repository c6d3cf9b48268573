"""The oracle of unequal topologies against core's planner, without a transport: neither knows the other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from kv_conformance.nodes.memory import POISON, Image, Memory
from kv_conformance.suite.cache import CONV, Cache, Model, Side, held, stage
from kv_conformance.suite.topologies import Rank, pair_up, ranks, written
from kv_core import KVArgs
from kv_core.layout import MemoryLayout, page_batch, plan_transfer

BASE = 4096
SEED = 7
STATE = Model(channels=8, groups=4, window=True, tokens=12, row=9)
LATENT = Model(layers=6, latent=True, head_bytes=24, row=9)


class Case(NamedTuple):
    model: Model
    source: Side
    destination: Side


CASES = [
    Case(Model(heads=6, tokens=12), Side(tp=2, page=4), Side(page=4)),
    Case(Model(heads=6, tokens=12), Side(tp=2, page=4), Side(tp=3, page=4)),
    Case(Model(tokens=24), Side(page=8), Side(page=1)),
    Case(Model(tokens=6), Side(page=2), Side(tp=2, page=4)),
    Case(Model(), Side(page=2, fused=True), Side(tp=2, page=4, fused=True)),
    Case(Model(), Side(page=4, order="HND"), Side(page=2)),
    Case(Model(layers=4, row=9), Side(pp=2, fused=True), Side()),
    Case(STATE, Side(tp=4), Side(tp=2)),
    Case(STATE, Side(), Side(tp=2, fused=True)),
    Case(LATENT, Side(tp=4), Side(tp=2)),
]


def layout(rank: Rank) -> MemoryLayout:
    return MemoryLayout.of(KVArgs(**rank.shape.args(BASE)))  # type: ignore[arg-type]


def poisoned(rank: Rank) -> Image:
    return Image(rank.shape, np.full(rank.shape.nbytes, POISON, np.uint8))


def move(sender: Rank, receiver: Rank, image: Image) -> int:
    """Carry a plan out in place; how many bytes it moves."""
    source = poisoned(sender)
    sender.fill(source)
    plan = plan_transfer(
        layout(sender), layout(receiver), local_topology=sender.topology, remote_topology=receiver.topology
    )
    batch = page_batch(plan, pair_up(sender, receiver))
    for mine, at, theirs, to, length in np.stack(batch.copies(), axis=1).tolist():
        here, there = plan.local_regions[mine].address - BASE + at, plan.remote_regions[theirs].address - BASE + to
        image.whole[there : there + length] = source.whole[here : here + length]
    return batch.nbytes


@pytest.mark.parametrize("case", CASES)
def test_what_the_plans_move_is_what_the_oracle_expects(case: Case):
    cache = Cache(case.model, np.random.default_rng(SEED), max(case.source.page, case.destination.page))
    senders = ranks(cache, case.source)
    for receiver in ranks(cache, case.destination):
        image, expected = poisoned(receiver), poisoned(receiver)
        receiver.expect(expected)
        moved = sum(move(sender, receiver, image) for sender in senders)
        assert not image.difference(expected), f"seed {SEED}"
        assert moved == written(expected), "each byte once"


def test_parts_of_what_is_expected_add_up():
    cache = Cache(STATE, np.random.default_rng(SEED), 2)
    rank = Rank(cache, Side(), 0, 0)
    whole, parts = poisoned(rank), poisoned(rank)
    rank.expect(whole)
    sizes = []
    for what in ({"units": range(1)}, {"units": range(1, 4), "layers": {0}}, {"units": range(1, 4), "layers": {1}}):
        one = poisoned(rank)
        rank.expect(one, **what, states=False, row=False)
        sizes.append(written(one))
        rank.expect(parts, **what, states=False, row=False)
    rank.expect(parts, kv=False)
    assert not parts.difference(whole)
    rest = poisoned(rank)
    rank.expect(rest, kv=False)
    assert sum(sizes) + written(rest) == written(whole)


def test_a_prompt_that_ends_within_a_page_and_begins_behind_a_prefix():
    cache = Cache(Model(tokens=14, layers=1), np.random.default_rng(SEED), 4)
    rank = Rank(cache, Side(page=4), 0, 0, begin=1)
    image = poisoned(rank)
    rank.expect(image)
    assert rank.positions.tolist() == [1, 2, 3]
    assert written(image) == 10 * 4 * 5 * 2, "tokens 4 to 13, of four heads of five bytes, k and v"
    rank.fill(image)
    assert written(image) == 12 * 4 * 5 * 2, "the last page is full of what is not moved"


def test_a_difference_is_told_with_its_place():
    rank = Rank(Cache(STATE, np.random.default_rng(SEED), 2), Side(tp=2), 0, 0)
    memory = Memory(rank.shape)
    try:
        memory.poison()
        expected = memory.image()
        memory.pools[CONV][1][rank.slot, 5] = 1
        assert f"pool 'conv', buffer 1, item {rank.slot}, byte 5" in memory.difference(expected)
        assert memory.args().topology.tp_size == 2
    finally:
        memory.close()


def test_shares():
    assert [list(held(6, rank, 3)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert [list(held(2, rank, 4)) for rank in range(4)] == [[0], [0], [1], [1]]
    assert [list(stage(5, rank, 2)) for rank in range(2)] == [[0, 1], [2, 3, 4]]

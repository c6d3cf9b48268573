"""Which prefill ranks serve which decode ranks: known deployments, dummies, answers, and the rules that refuse the rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from core.tests.layout.support import kv_args
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology
from kv_core.layout import (
    Difference,
    MemoryLayout,
    RankMapping,
    Stages,
    UnsupportedTopology,
    even_stages,
    plan_transfer,
    source_ranks,
)
from kv_core.layout.shares import page_matrix, shared_pages

LAYERS = 8


def layout(
    place: Topology, heads: int, *, tokens: int = 4, layer: int | None = None, states=(), aux=False
) -> MemoryLayout:
    item = ItemLayout.page(tokens, heads, 4, tp_size=place.tp_size)
    numbers = range(LAYERS) if layer is None else [layer]
    kv = Pool("kv", tuple(Buffer(4096, item.nbytes, 1, number, "k", item) for number in numbers))
    row = Pool.uniform("aux", [4096], 8, 1) if aux else None
    return MemoryLayout.of(KVArgs(kv, aux=row, states=states, page_size=tokens, topology=place))


def mapping(sizes, place: Topology, heads: int = 8, dp_rank: int = 0, **more) -> RankMapping:
    own = {name: more.pop(name) for name in ("tokens", "layer", "states", "aux") if name in more}
    return source_ranks(place, sizes, dp_rank, layout(place, heads, **own), **more)


def tensor(mapped: RankMapping) -> list[int]:
    return [ranks[0] for ranks in mapped.required]


def places(sizes: tuple[int, int, int]) -> list[Topology]:
    return [
        Topology(tp, sizes[0], pp, sizes[1], cp, sizes[2]) for tp, pp, cp in product(*(range(size) for size in sizes))
    ]


def test_equal_topologies_are_served_place_by_place():
    for sizes in ((4, 1, 1), (16, 1, 1), (2, 3, 1), (1, 2, 4)):
        for place in places(sizes):
            for heads in (1, 8):
                mapped = mapping((*sizes, 2), place, heads, 1, aux=True)
                assert mapped == RankMapping(((*place.ranks[:3], 1),), (), 1, (1,))


def test_tensor_parallel_sizes_of_either_side():
    assert mapping((2, 1, 1, 1), Topology(3, 4)) == RankMapping(((1, 0, 0, 0),), (), 2, (2,))
    assert mapping((4, 1, 1, 1), Topology(1, 2)) == RankMapping(((2, 0, 0, 0), (3, 0, 0, 0)), (), 1, (1, 1))
    assert tensor(mapping((6, 1, 1, 1), Topology(1, 4), heads=12)) == [1, 2]
    assert mapping((6, 1, 1, 1), Topology(1, 4), heads=12).destinations == (2, 1)


def test_where_more_ranks_hold_a_head_than_receive_it_they_take_turns():
    assert tensor(mapping((4, 1, 1, 1), Topology(), heads=1)) == [0, 1, 2, 3]
    assert tensor(mapping((16, 1, 1, 1), Topology(1, 2), heads=2)) == [*range(8, 16)]
    one = [mapping((4, 1, 1, 1), Topology(dp_rank=dp, dp_size=8), heads=1, layer=6) for dp in range(8)]
    assert [tensor(mapped) for mapped in one] == [[0, 1, 2, 3]] * 8  # which layers there are is not known ...
    told = Stages((frozenset([6]),), (frozenset([6]),))
    one = [mapping((4, 1, 1, 1), Topology(dp_rank=dp, dp_size=8), heads=1, layer=6, stages=told) for dp in range(8)]
    assert [tensor(mapped) for mapped in one] == [[2], [3], [0], [1]] * 2  # ... unless it is told


def test_where_more_ranks_receive_a_head_than_hold_it_the_load_is_even():
    for holders, receivers in ((1, 4), (2, 4), (3, 16), (6, 4), (4, 6)):
        served = Counter(
            rank
            for tp in range(receivers)
            for rank in tensor(mapping((holders, 1, 1, 1), Topology(tp, receivers), heads=1))
        )
        assert max(served.values()) - min(served.values()) <= 1


def test_every_dummy_is_told_by_one_decode_rank_and_answers_are_counted():
    for sizes, decode, heads in (((6, 1, 2), (4, 1, 1), 1), ((16, 1, 1), (3, 1, 1), 1), ((4, 2, 2), (2, 1, 3), 4)):
        mapped = {place.ranks: mapping((*sizes, 1), place, heads, aux=True) for place in places(decode)}
        served = Counter(ranks for one in mapped.values() for ranks in one.required)
        for one in mapped.values():
            assert one.destinations == tuple(served[ranks] for ranks in one.required)
            assert one.expected_destinations == max(one.destinations)
        told = Counter(ranks for one in mapped.values() for ranks in one.dummies)
        everyone = {(*place.ranks[:3], 0) for place in places(sizes)}
        assert set(told) == everyone - set(served)
        assert set(told.values()) <= {1}
    assert mapping((6, 1, 1, 1), Topology(0, 4), heads=1).dummies == ((2, 0, 0, 0),)


def test_pipeline_stages_by_their_layers_or_all_of_them():
    sizes = (1, 4, 1, 1)
    assert [ranks[1] for ranks in mapping(sizes, Topology()).required] == [0, 1, 2, 3]
    assert mapping((1, 1, 1, 1), Topology(pp_rank=2, pp_size=4)) == RankMapping(((0, 0, 0, 0),), (), 4, (4,))
    half = Topology(pp_rank=1, pp_size=2)
    assert [ranks[1] for ranks in mapping(sizes, half).required] == [0, 1, 2, 3]
    assert [ranks[1] for ranks in mapping(sizes, half, stages=even_stages(LAYERS, (4, 2))).required] == [2, 3]
    uneven = Stages((frozenset(range(5)), frozenset(range(5, 8))), (frozenset(range(4)), frozenset(range(4, 8))))
    assert [ranks[1] for ranks in mapping((1, 2, 1, 1), half, stages=uneven).required] == [0, 1]
    # The last stage sends the rows of requests.
    assert [
        ranks[1] for ranks in mapping(sizes, Topology(0, 1, 0, 2), aux=True, stages=even_stages(8, (4, 2))).required
    ] == [0, 1, 3]
    with pytest.raises(ValueError, match="layers of 4 and 2 stages for 3 and 2"):
        mapping((1, 3, 1, 1), half, stages=even_stages(LAYERS, (4, 2)))


def test_context_parallel_ranks_by_the_pages_that_they_share():
    assert [ranks[2] for ranks in mapping((1, 1, 4, 1), Topology()).required] == [0, 1, 2, 3]
    assert [ranks[2] for ranks in mapping((1, 1, 4, 1), Topology(cp_rank=1, cp_size=2)).required] == [1, 3]
    assert [ranks[2] for ranks in mapping((1, 1, 3, 1), Topology(cp_rank=1, cp_size=2)).required] == [0, 1, 2]
    # Pages of two of decode's: position p of prefill's is 2p and 2p+1 here.
    both = mapping((1, 1, 2, 1), Topology(cp_rank=1, cp_size=4), page_size=8)
    assert [ranks[2] for ranks in both.required] == [0]


def test_state_comes_from_one_context_parallel_rank():
    item = ItemLayout.state([("x", 8, 2)])
    states = (Pool.uniform("conv", [4096], item.nbytes, 1, item=item),)
    place = Topology(cp_rank=1, cp_size=2)
    assert [ranks[2] for ranks in mapping((1, 1, 4, 1), place, states=states).required] == [1, 2, 3]


def test_other_pages_may_come_from_any_context_parallel_rank():
    item = ItemLayout.page(12, 8, 2)
    states = (Pool.uniform("window", [4096], item.nbytes, 1, item=item),)
    place = Topology(cp_rank=1, cp_size=2)
    assert [ranks[2] for ranks in mapping((1, 1, 4, 1), place, states=states).required] == [0, 1, 2, 3]


def test_the_rules_that_refuse():
    place = Topology(tp_size=4, pp_size=2)
    opaque = (Pool.uniform("conv", [4096], 8, 1),)
    with pytest.raises(UnsupportedTopology) as caught:
        mapping((3, 1, 1, 1), place, heads=8, states=opaque, layer=-1, page_size=6)
    assert caught.value.differences == (
        Difference("kv.total", "8 units by 4 ranks", "8 units by 3 ranks"),
        Difference("conv: tp_size", "4", "3"),
        Difference("pp_size", "2", "1"),
        Difference("page_size", "4", "6"),
    )
    for rule in ("shared evenly", "not described", "needs its layer", "one page size must divide"):
        assert rule in caught.value.rule
    with pytest.raises(UnsupportedTopology, match=r"prefill_dp_rank must lie in 0\.\.1"):
        mapping((4, 2, 1, 2), place, dp_rank=2)


def test_an_opaque_rank_is_served_by_equal_sizes_only():
    rank = MemoryLayout.of(kv_args())
    assert source_ranks(Topology(1, 2), (2, 1, 1, 3), 2, rank) == RankMapping(((1, 0, 0, 2),))
    with pytest.raises(UnsupportedTopology, match="unless both describe their items"):
        source_ranks(Topology(1, 2), (4, 1, 1, 1), 0, rank)
    with pytest.raises(UnsupportedTopology) as refused:  # as managers ask, which plan for equal sizes only
        source_ranks(Topology(1, 2), (4, 1, 1, 1), 0)
    assert refused.value.rule == "tensor, pipeline and context parallel sizes must be equal on both sides"


def test_the_largest_topologies_are_mapped():
    place = Topology(15, 16, 7, 8, 7, 8)
    mapped = mapping((16, 8, 8, 1), replace(place, tp_rank=14, cp_rank=6), heads=4)
    assert mapped.required == ((14, 7, 6, 0),)
    assert len(mapping((16, 8, 8, 1), Topology(), heads=4).required) == 1_024


def test_absurd_sizes_are_refused_before_anything_is_worked_out():
    with pytest.raises(UnsupportedTopology, match="may be at most 4096"):
        mapping((1, 1, 10**12, 1), Topology())
    with pytest.raises(UnsupportedTopology, match="at most 1024 times"):
        mapping((1, 1, 1, 1), Topology(), page_size=4 * 1025)
    rank = layout(Topology(), 8)
    for far in (Topology(cp_size=10**12), Topology(dp_rank=10**30, dp_size=10**31)):
        with pytest.raises(UnsupportedTopology, match="may be at most 4096"):
            plan_transfer(rank, rank, local_topology=Topology(), remote_topology=far)


def test_shared_pages_are_those_that_one_counts():
    for sources, destinations, ratios in product(range(1, 7), range(1, 7), ((1, 1), (1, 4), (3, 1), (6, 1))):
        small = range(sources * destinations * 24)
        matrix = page_matrix(sources, destinations, *ratios)
        for here, there in product(range(sources), range(destinations)):
            places = Topology(cp_rank=here, cp_size=sources), Topology(cp_rank=there, cp_size=destinations)
            count, period = shared_pages(*places, *ratios)
            both = [p // ratios[0] % sources == here and p // ratios[1] % destinations == there for p in small]
            assert sum(both[:period]) == count
            assert sum(both) == count * len(small) // period
            assert bool(matrix[there, here]) == any(both)

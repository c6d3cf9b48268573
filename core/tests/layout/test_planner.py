"""Which layouts and topologies fit, and what is told of those that don't."""

from __future__ import annotations

import copy
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from core.tests.layout.support import kv_args, plan_of, pool_at
from kv_core.contract.enums import MemoryKind
from kv_core.contract.failures import KVCoreError
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology, regions_of
from kv_core.layout import (
    Difference,
    LayoutMismatch,
    MemoryLayout,
    RankMapping,
    UnsupportedTopology,
    differences,
    plan_transfer,
    source_ranks,
)

ALONE = Topology()


def found(local: KVArgs, remote: KVArgs) -> list[tuple[str, str, str]]:
    with pytest.raises(LayoutMismatch) as caught:
        plan_of(local, remote)
    error = caught.value
    assert isinstance(error, KVCoreError)
    layouts = MemoryLayout.of(local), MemoryLayout.of(remote)
    assert error.differences == differences(*layouts, local_topology=ALONE, remote_topology=ALONE)
    for difference in error.differences:
        assert difference.field in str(error)
        assert f"local {difference.local}, remote {difference.remote}" in str(error)
    return [(d.field, d.local, d.remote) for d in error.differences]


def test_a_plan_of_equal_layouts_has_a_lane_for_each_buffer():
    local = KVArgs(
        kv=Pool("kv", (Buffer(64, 3, 9, 0, "k"), Buffer(128, 5, 9, 0, "v"))),
        states=(Pool.uniform("ssm", [1024], 7, 2), Pool.uniform("conv", [2048, 4096], 2, 4)),
        aux=Pool.uniform("aux", [8192], 1600, 3),
    )
    remote = KVArgs(
        kv=Pool("kv", (Buffer(1 << 63, 3, 900, 0, "k"), Buffer(1 << 62, 5, 900, 0, "v")), MemoryKind.CUDA, 3),
        states=(local.states[1], pool_at(local.states[0], 1 << 40)),
        aux=local.aux,
    )
    plan = plan_of(local, remote)
    assert [pool.pool for pool in plan.pools] == ["kv", "conv", "ssm", "aux"]
    assert [pool.local_region.tolist() for pool in plan.pools] == [[0, 1], [3, 4], [2], [5]]
    assert [pool.remote_region.tolist() for pool in plan.pools] == [[0, 1], [2, 3], [4], [5]]
    assert plan.local_regions == regions_of(local)
    assert plan.remote_regions == regions_of(remote)
    for pool, pool_args in zip(plan.pools, (local.kv, local.states[1], local.states[0], local.aux), strict=True):
        assert pool_args is not None
        for name in ("local_stride", "remote_stride", "length"):
            assert getattr(pool, name).tolist() == [b.item_len for b in pool_args.buffers]
        for name in ("local_offset", "remote_offset", "local_inner_stride", "remote_inner_stride"):
            assert not getattr(pool, name).any()
        assert pool.inner_count.tolist() == [1] * pool.num_lanes
        assert pool.layer.dtype == np.int64
        assert pool.layer.tolist() == [b.layer for b in pool_args.buffers]
        assert (pool.local_ratio, pool.remote_ratio, pool.phases) == (1, 1, 1)
        arrays = [value for name, value in vars(pool).items() if name != "layer" and isinstance(value, np.ndarray)]
        assert {array.dtype for array in arrays} == {np.dtype(np.uint64)}


def test_numbers_of_items_kinds_and_devices_may_differ():
    plan = plan_of(
        kv_args(num_items=4), replace(kv_args(), kv=replace(kv_args().kv, kind=MemoryKind.ROCM, device_id=7))
    )
    assert plan.remote_regions[0].kind is MemoryKind.ROCM
    assert plan.remote_regions[0].nbytes == 4 * plan.local_regions[0].nbytes


def test_every_difference_is_told():
    aux = Pool.uniform("aux", [64], 8, 2)
    local = kv_args(4, 64, states=(Pool.uniform("ssm", [64], 8, 2), Pool.uniform("conv", [64], 8, 2)))
    remote = kv_args(4, 32, states=(Pool.uniform("conv", [64], 9, 2),), aux=aux)
    remote = replace(remote, kv=Pool("kv", tuple(replace(b, layer=b.layer + 4, part="k") for b in remote.kv.buffers)))
    assert found(local, remote) == [
        ("kv.item_len[0..3]", "64", "32"),
        ("kv.layer[0]", "0", "4"), ("kv.layer[1]", "1", "5"), ("kv.layer[2]", "2", "6"), ("kv.layer[3]", "3", "7"),
        ("kv.part[0..3]", "''", "'k'"),
        ("pool ssm", "1 buffers", "absent"),
        ("conv.item_len[0]", "8", "9"),
        ("pool aux", "absent", "1 buffers"),
    ]  # fmt: skip


def test_many_differing_buffers_are_told_as_lists():
    local = kv_args(64)
    moved = Pool("kv", tuple(replace(b, layer=b.layer + 64) for b in kv_args(64).kv.buffers))
    assert found(local, replace(local, kv=moved)) == [("kv.layer", "0..63", "64..127")]
    uneven = Pool("kv", tuple(replace(b, item_len=8 if b.layer in (3, 9, 10) else 64) for b in local.kv.buffers))
    assert found(local, replace(local, kv=uneven)) == [("kv.item_len[3, 9..10]", "64", "8")]
    mixed = Pool("kv", tuple(replace(b, item_len=64 + b.layer * 7 % 50) for b in local.kv.buffers))
    ((field, here, there),) = found(local, replace(local, kv=mixed))
    assert (field, here) == ("kv.item_len", "64 x64")
    assert there.startswith("64, 71, 78, 85")


def test_another_number_of_buffers():
    both = [("kv.buffers", "4", "2"), ("kv.layer", "0..3", "0..1")]
    assert found(kv_args(4), kv_args(2)) == both
    doubled = Pool.uniform("kv", [64 * i + 64 for i in range(8)], 32, 2, layers=[0, 0, 1, 1, 2, 2, 3, 3])
    assert found(kv_args(4), KVArgs(kv=doubled)) == [("kv.buffers", "4", "8"), ("kv.item_len", "64", "32")]


def test_a_long_list_of_values_is_cut():
    buffers = [Buffer(64, 1 + i * 37 % 1009, 1, i) for i in range(1000)]
    ((field, here, there),) = found(
        KVArgs(kv=Pool("kv", tuple(buffers))),
        KVArgs(kv=Pool("kv", tuple(replace(b, item_len=b.item_len + 1) for b in buffers))),
    )
    assert field == "kv.item_len"
    assert here.endswith("... (1000 values)")
    assert len(there) < 500


AXES = ("tp", "pp", "cp")


@pytest.mark.parametrize("axis", AXES)
def test_unequal_places_have_no_plan(axis):
    layout = MemoryLayout.of(kv_args())
    with pytest.raises(UnsupportedTopology, match="parallel sizes must be equal") as caught:
        plan_transfer(layout, layout, local_topology=ALONE, remote_topology=Topology(**{f"{axis}_size": 2}))
    assert caught.value.differences == (Difference(f"{axis}_size", "1", "2"),)
    here, there = (Topology(**{f"{axis}_size": 2, f"{axis}_rank": rank}) for rank in (0, 1))
    with pytest.raises(UnsupportedTopology, match="the rank at the same place only") as caught:
        plan_transfer(layout, layout, local_topology=here, remote_topology=there)
    assert caught.value.differences == (Difference(f"{axis}_rank", "0", "1"),)
    assert plan_transfer(layout, layout, local_topology=there, remote_topology=there).pools


def test_places_and_layouts_are_told_together():
    layouts = [MemoryLayout.of(kv_args(item_len=item_len)) for item_len in (8, 16)]
    with pytest.raises(LayoutMismatch) as caught:
        plan_transfer(*layouts, local_topology=Topology(tp_size=2), remote_topology=Topology(pp_size=4))
    assert [d.field for d in caught.value.differences] == ["tp_size", "pp_size", "kv.item_len[0..1]"]


def test_data_parallel_places_may_differ():
    layout = MemoryLayout.of(kv_args())
    far = Topology(dp_rank=3, dp_size=4)
    assert plan_transfer(layout, layout, local_topology=ALONE, remote_topology=far).pools


def test_the_ranks_that_serve_a_rank():
    here = Topology(tp_rank=1, tp_size=4, pp_rank=0, pp_size=2, cp_rank=2, cp_size=3, dp_rank=1, dp_size=2)
    assert source_ranks(here, (4, 2, 3, 8), 5) == RankMapping(((1, 0, 2, 5),), dummies=(), expected_destinations=1)
    assert source_ranks(here, (4, 2, 3, 1), 0).required == ((1, 0, 2, 0),)


def test_every_rank_of_an_instance_is_served_by_a_rank_of_its_own():
    ranks = [Topology(tp, 2, pp, 3, cp, 2) for tp in range(2) for pp in range(3) for cp in range(2)]
    served = [source_ranks(rank, (2, 3, 2, 4), 3).required for rank in ranks]
    assert len(set(served)) == len(ranks)
    assert {required[0][3] for required in served} == {3}


def test_topologies_that_are_refused():
    here = Topology(tp_size=4, tp_rank=1, pp_size=2)
    with pytest.raises(UnsupportedTopology, match="parallel sizes must be equal") as caught:
        source_ranks(here, (2, 2, 5, 1), 0)
    assert caught.value.differences == (Difference("tp_size", "4", "2"), Difference("cp_size", "1", "5"))
    assert isinstance(caught.value, ValueError)
    for rank in (-1, 3):
        with pytest.raises(UnsupportedTopology, match=r"prefill_dp_rank must lie in 0\.\.2"):
            source_ranks(here, (4, 2, 1, 3), rank)


def test_the_errors_survive_a_process_boundary():
    for error in (
        UnsupportedTopology("some rule", [Difference("tp_size", "1", "2")]),
        LayoutMismatch([Difference("kv.buffers", "1", "2")]),
    ):
        for back in (copy.copy(error), ForkingPickler.loads(bytes(ForkingPickler.dumps(error)))):
            assert type(back) is type(error)
            assert str(back) == str(error)
            assert vars(back) == vars(error)

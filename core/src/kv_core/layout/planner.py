"""Plan once per peer: what two memory layouts have to do with each other.

Equal topologies now: rank r of prefill serves rank r of decode, buffer k here goes with buffer k there. What unequal
ones need stands in the result already: a ``PoolPlan``'s lanes may name any byte range of an item on either side, and a
``RankMapping`` any number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kv_core.contract.memory import AUX_POOL, KV_POOL, Topology
from kv_core.contract.transport import PoolPlan, TransferPlan
from kv_core.layout.compare import layout_differences
from kv_core.layout.memory_map import MemoryLayout, PoolLayout
from kv_core.layout.mismatch import Difference, LayoutMismatch, UnsupportedTopology

Ranks: TypeAlias = tuple[int, int, int, int]
"""(tp, pp, cp, dp) ranks, or sizes, as ``Topology.ranks`` and ``Topology.sizes`` give them."""

AXES = ("tp", "pp", "cp")
"""Axes that must be equal on both sides; a data-parallel rank is a whole copy of the model, so dp may differ."""
EQUAL_SIZES = "tensor, pipeline and context parallel sizes must be equal on both sides"
EQUAL_RANKS = "with equal sizes a rank exchanges pages with the rank at the same place only"


@dataclass(frozen=True)
class RankMapping:
    """Which prefill ranks serve one decode rank.

    ``required``: those that must send for a room to succeed. ``dummies``: those that must be told of the room, so that
    they can end it, but send nothing. ``expected_destinations``: how many decode ranks each required rank serves.
    """

    required: tuple[Ranks, ...]
    dummies: tuple[Ranks, ...] = ()
    expected_destinations: int = 1


def source_ranks(local: Topology, remote_sizes: Ranks, prefill_dp_rank: int) -> RankMapping:
    """The prefill ranks that serve the decode rank ``local``; ``remote_sizes`` are prefill's (tp, pp, cp, dp) sizes.

    Raises ``UnsupportedTopology`` (a ``ValueError``) with the rule that is broken.
    """
    sizes = zip(AXES, local.sizes, remote_sizes, strict=False)  # dp, the last, need not be equal
    found = [Difference(f"{axis}_size", str(mine), str(theirs)) for axis, mine, theirs in sizes if mine != theirs]
    if found:
        raise UnsupportedTopology(EQUAL_SIZES, found)
    if not 0 <= prefill_dp_rank < remote_sizes[3]:
        rule = f"prefill_dp_rank must lie in 0..{remote_sizes[3] - 1}, prefill's dp_size less one"
        raise UnsupportedTopology(
            rule, [Difference("prefill_dp_rank", str(prefill_dp_rank), f"dp_size {remote_sizes[3]}")]
        )
    return RankMapping(((local.tp_rank, local.pp_rank, local.cp_rank, prefill_dp_rank),))


def topology_differences(local: Topology, remote: Topology) -> tuple[Difference, ...]:
    """The axes along which two ranks don't fit each other; empty if they do."""
    names = [f"{axis}_{what}" for axis in AXES for what in ("size", "rank")]
    pairs = ((name, getattr(local, name), getattr(remote, name)) for name in names)
    return tuple(Difference(name, str(mine), str(theirs)) for name, mine, theirs in pairs if mine != theirs)


def differences(
    local: MemoryLayout, remote: MemoryLayout, *, local_topology: Topology, remote_topology: Topology
) -> tuple[Difference, ...]:
    """Everything that stands in the way of ``plan_transfer``; empty if nothing does."""
    return topology_differences(local_topology, remote_topology) + layout_differences(local, remote)


def plan_transfer(
    local: MemoryLayout, remote: MemoryLayout, *, local_topology: Topology, remote_topology: Topology
) -> TransferPlan:
    """The plan between two ranks, for both directions: the two sides' plans are each other's ``mirror``.

    Pools come as KV, states by name, auxiliary rows. Numbers of items, kinds of memory and devices may differ.
    Raises ``LayoutMismatch`` with every difference; ``UnsupportedTopology``, one of its kind, if only places differ.
    """
    places = topology_differences(local_topology, remote_topology)
    layouts = layout_differences(local, remote)
    if places and not layouts:
        sizes = any(difference.field.endswith("_size") for difference in places)
        raise UnsupportedTopology(EQUAL_SIZES if sizes else EQUAL_RANKS, places)
    if places or layouts:
        raise LayoutMismatch(places + layouts)
    names = sorted((pool.name for pool in local.pools), key=lambda name: (name != KV_POOL, name == AUX_POOL, name))
    pools = tuple(
        _plan_pool(pool, local.first_region(name), remote.first_region(name))
        for name in names
        if (pool := local.pool(name)) is not None
    )
    return TransferPlan(pools, local.regions(), remote.regions())


def _plan_pool(pool: PoolLayout, local_first: int, remote_first: int) -> PoolPlan:
    """One lane for each buffer: the whole item."""
    lanes = np.arange(pool.num_buffers, dtype=np.uint64)
    nothing = np.zeros_like(lanes)
    return PoolPlan(
        pool=pool.name,
        layer=pool.layer,
        local_region=lanes + np.uint64(local_first),
        remote_region=lanes + np.uint64(remote_first),
        local_offset=nothing,
        remote_offset=nothing,
        local_stride=pool.item_len,
        remote_stride=pool.item_len,
        length=pool.item_len,
        inner_count=np.ones_like(lanes),
        local_inner_stride=nothing,
        remote_inner_stride=nothing,
    )

"""Plan once per peer: what two memory layouts have to do with each other.

Layouts whose KV items are described (``Buffer.item``) may belong to unequal topologies, with unequal page sizes and other
orders of the bytes in a page; ``lanes`` then works out the lanes. Opaque ones need equal topologies: rank r of prefill
serves rank r of decode, buffer k here goes with buffer k there. Which ranks serve which: ``ranks``.
"""

from __future__ import annotations

import numpy as np

from kv_core.contract.memory import AUX_POOL, KV_POOL, Topology
from kv_core.contract.transport import PoolPlan, TransferPlan
from kv_core.layout.compare import layout_differences
from kv_core.layout.compare_items import Sides, described, item_findings
from kv_core.layout.digest_view import mirror
from kv_core.layout.lanes import Common, common, pool_lanes
from kv_core.layout.memory_map import MemoryLayout, PoolLayout
from kv_core.layout.mismatch import Difference, LayoutMismatch, UnsupportedTopology

AXES = ("tp", "pp", "cp")
"""Axes that must be equal on both sides; a data-parallel rank is a whole copy of the model, so dp may differ."""
EQUAL_SIZES = "tensor, pipeline and context parallel sizes must be equal on both sides"
UNLESS_DESCRIBED = f"{EQUAL_SIZES} unless both describe their items (Buffer.item)"
EQUAL_RANKS = "with equal sizes a rank exchanges pages with the rank at the same place only"


def topology_differences(local: Topology, remote: Topology) -> tuple[Difference, ...]:
    """The axes along which two ranks don't fit each other; empty if they do."""
    names = [f"{axis}_{what}" for axis in AXES for what in ("size", "rank")]
    pairs = ((name, getattr(local, name), getattr(remote, name)) for name in names)
    return tuple(Difference(name, str(mine), str(theirs)) for name, mine, theirs in pairs if mine != theirs)


def differences(
    local: MemoryLayout,
    remote: MemoryLayout,
    *,
    local_topology: Topology,
    remote_topology: Topology,
    uneven: bool = False,
) -> tuple[Difference, ...]:
    """Everything that stands in the way of ``plan_transfer``; empty if nothing does."""
    return tuple(d for _, d in findings(local, remote, Sides(local_topology, remote_topology, uneven)))


def findings(local: MemoryLayout, remote: MemoryLayout, places: Sides) -> list[tuple[str | None, Difference]]:
    """As ``differences``, each with the rule of topology that it breaks, or None."""
    if described(local) and described(remote):
        return list(item_findings(local, remote, places))
    found = topology_differences(places.local, places.remote)
    rule = UNLESS_DESCRIBED if any(difference.field.endswith("_size") for difference in found) else EQUAL_RANKS
    return [(rule, d) for d in found] + [(None, d) for d in layout_differences(local, remote)]


def plan_transfer(
    local: MemoryLayout,
    remote: MemoryLayout,
    *,
    local_topology: Topology,
    remote_topology: Topology,
    local_sends: bool = True,
    uneven: bool = False,
) -> TransferPlan:
    """The plan between two ranks: the side that sends and the other one make each other's ``mirror``.

    ``local_sends``: whether the local side holds what is moved (prefill's). It matters where several ranks hold the same
    bytes, of which one sends them. ``uneven``: as many pipeline stages may have other layers, for the ranks were mapped
    with ``Stages``; whether all layers come from somewhere says ``missing_layers``. Pools come as KV, states by name,
    auxiliary rows; one of which this rank sends nothing to that rank is left out. Numbers of items, kinds of memory and
    devices may differ. Raises ``LayoutMismatch`` with every difference; ``UnsupportedTopology``, one of its kind, if
    nothing but topologies stands in the way.
    """
    unfit = findings(local, remote, Sides(local_topology, remote_topology, uneven))
    if unfit:
        found = [difference for _, difference in unfit]
        rules = list(dict.fromkeys(rule for rule, _ in unfit if rule is not None))
        if all(rule is not None for rule, _ in unfit):
            raise UnsupportedTopology("; ".join(rules), found)
        raise LayoutMismatch(found)
    if described(local) and described(remote):
        if not local_sends:
            return mirror(_plan_items(remote, local, remote_topology, local_topology))
        return _plan_items(local, remote, local_topology, remote_topology)
    names = pool_order(local)
    pools = tuple(
        _plan_pool(pool, local.first_region(name), remote.first_region(name))
        for name in names
        if (pool := local.pool(name)) is not None
    )
    return TransferPlan(pools, local.regions(), remote.regions())


def pool_order(layout: MemoryLayout) -> list[str]:
    """Names of the pools as a plan has them: KV, states by name, auxiliary rows."""
    names = (pool.name for pool in layout.pools)
    return sorted(names, key=lambda name: (name != KV_POOL, name == AUX_POOL, name))


def common_pools(
    source: MemoryLayout, destination: MemoryLayout, source_place: Topology, destination_place: Topology
) -> dict[str, Common]:
    """What one rank sends to another of each pool; nothing of those that are left out. Both have been compared."""
    found = {}
    for name in pool_order(source):
        mine, theirs = source.pool(name), destination.pool(name)
        if mine is not None and theirs is not None:
            shared = common((mine, source_place), (theirs, destination_place), paged=bool(mine.tokens))
            if shared.units.size:
                found[name] = shared
    return found


def pools_sent(
    source: MemoryLayout, destination: MemoryLayout, source_place: Topology, destination_place: Topology
) -> frozenset[str]:
    """Names of the pools of which prefill's rank sends something to decode's. ``differences`` has found none."""
    if described(source) and described(destination):
        return frozenset(common_pools(source, destination, source_place, destination_place))
    return frozenset(pool.name for pool in source.pools)


def _plan_items(source: MemoryLayout, destination: MemoryLayout, here: Topology, there: Topology) -> TransferPlan:
    pools = tuple(
        pool_lanes(name, shared, source.first_region(name), destination.first_region(name))
        for name, shared in common_pools(source, destination, here, there).items()
    )
    return TransferPlan(pools, source.regions(), destination.regions())


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

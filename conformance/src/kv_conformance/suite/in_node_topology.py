"""What the checks of unequal topologies do inside of a node."""

from __future__ import annotations

import numpy as np

from kv_conformance.nodes.rank_shape import RankShape
from kv_conformance.nodes.wire_server import Introduction, WireServer
from kv_core import KVArgs, Region
from kv_core.contract.memory import KV_POOL
from kv_core.contract.transport import PoolPlan, TransferPlan
from kv_core.layout import MemoryLayout

REPEATS = "a lane repeats in an item, at another stride on each side"
SMALLER = "items are smaller pages, and there are more of them than the pool has pages"
SLICES = "one pool has several sets of lanes"
REGIONS = "a buffer has another number on each side"
TINY = "thousands of copies in a page"
LAYERS_LEFT_OUT = "the plan leaves out layers that both sides have"
POOLS_LEFT_OUT = "the plan leaves out a pool that both sides have"
BLOCKS = "the blocks of a state item are cut, each by itself"


def lay(server: WireServer, shape: RankShape) -> list[Region]:
    """Let the node be this rank from now on: what is planned and told to peers is its memory. Registers nothing; its regions."""
    server.args = KVArgs(**shape.args(server.memory.address))  # type: ignore[arg-type]
    server.layout = MemoryLayout.of(server.args)
    return list(server.layout.regions())


def traits(server: WireServer, told: Introduction) -> tuple[bool, set[str]]:
    """Of the plan between this rank and another one: whether anything moves, and which of the difficulties above it has."""
    plan = server.plan(told.layout, told.topology)
    found = {trait for pool in plan.pools for trait in _traits_of(pool, server.layout)}
    names = {pool.name for pool in server.layout.pools if told.layout.pool(pool.name) is not None}
    if plan.pools and names - {pool.pool for pool in plan.pools}:
        found.add(POOLS_LEFT_OUT)
    if _layers_left_out(plan, server.layout, told.layout):
        found.add(LAYERS_LEFT_OUT)
    return bool(plan.pools), found


def _traits_of(pool: PoolPlan, layout: MemoryLayout) -> set[str]:
    here = layout.pool(pool.pool)
    assert here is not None, "a plan's pools are this side's"
    found = set()
    apart = pool.local_inner_stride != pool.remote_inner_stride
    if bool(((pool.inner_count > 1) & apart).any()):
        found.add(REPEATS)
    if pool.phases > 1:
        found.add(SLICES)
    elif max(pool.local_ratio, pool.remote_ratio) > 1:
        found.add(SMALLER)
    if bool((pool.local_region != pool.remote_region).any()):
        found.add(REGIONS)
    if int(pool.inner_count.sum()) // pool.phases > 2000:
        found.add(TINY)
    blocks = max((len(item.blocks) for item in here.items), default=1)
    if pool.pool != KV_POOL and blocks > 1 and int(pool.length.sum()) < here.item_bytes:
        found.add(BLOCKS)
    return found


def _layers_left_out(plan: TransferPlan, mine: MemoryLayout, theirs: MemoryLayout) -> bool:
    sides = [set(pool.layer.tolist()) for layout in (mine, theirs) if (pool := layout.pool(KV_POOL)) is not None]
    planned = {layer for pool in plan.pools if pool.pool == KV_POOL for layer in np.unique(pool.layer).tolist()}
    return bool(planned) and bool(set.intersection(*sides) - planned)

"""Which bytes a digest of a batch covers, in which order: the same stream at both ends."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from kv_core.contract.transport import U64, PoolPlan, TransferBatch, TransferPlan
from kv_core.layout.runs import expand, joined, local_view, remote_view

End: TypeAlias = Literal["local", "remote"]


class Segments(NamedTuple):
    """Byte ranges in order, as uint64 arrays of one length: index of the region, offset in it, bytes."""

    region: U64
    offset: U64
    length: U64


def segments(batch: TransferBatch, side: End = "local") -> Segments:
    """The byte ranges that the batch touches on one side, in plan order: slice, lane, item, repeat.

    Read one after the other they are the same stream on both sides, and for the batch of the same items made from the
    ``mirror`` of the plan. Ranges that touch on *this* side are merged, which leaves the stream as it is; so the two
    sides' numbers of segments may differ.
    """
    view = local_view if side == "local" else remote_view
    blocks = [block for part in batch.slices for block in expand(part, (view(part),))]
    return Segments(
        joined([block.sides[0][0] for block in blocks]),
        joined([block.sides[0][1] for block in blocks]),
        joined([block.length for block in blocks]),
    )


def mirror(plan: TransferPlan) -> TransferPlan:
    """The plan as the peer sees it: local and remote swapped, everything else in the same order."""
    return TransferPlan(tuple(_mirror_pool(pool) for pool in plan.pools), plan.remote_regions, plan.local_regions)


def _mirror_pool(pool: PoolPlan) -> PoolPlan:
    return PoolPlan(
        pool=pool.pool,
        layer=pool.layer,
        local_region=pool.remote_region,
        remote_region=pool.local_region,
        local_offset=pool.remote_offset,
        remote_offset=pool.local_offset,
        local_stride=pool.remote_stride,
        remote_stride=pool.local_stride,
        length=pool.length,
        inner_count=pool.inner_count,
        local_inner_stride=pool.remote_inner_stride,
        remote_inner_stride=pool.local_inner_stride,
        local_ratio=pool.remote_ratio,
        remote_ratio=pool.local_ratio,
        phases=pool.phases,
    )

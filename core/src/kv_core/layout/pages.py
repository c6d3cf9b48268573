"""Which page here goes with which page there: unequal page sizes, context parallelism, prefixes. Arrays, no page objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import KV_POOL
from kv_core.contract.transport import U64, PoolPlan, PoolSlice, TransferPlan
from kv_core.layout.batch import Batch

I64 = npt.NDArray[np.int64]


class Pages(NamedTuple):
    """Pages of a prompt as one side has them: ``items[n]`` (uint64) is at position ``first + n * step``, in pages of this
    side from the start of the prompt.

    Rank r of ``cp_size`` context-parallel ranks has every ``cp_size``-th page: ``step`` is ``cp_size``, ``first`` is r for
    the whole prompt. What is not a page has the default position.
    """

    items: U64
    first: int = 0
    step: int = 1


class Pairs(NamedTuple):
    """Items that go together, as ``PoolPlan`` counts them, in the order of the prompt, and each pair's set of lanes."""

    local: U64
    remote: U64
    phase: I64


def pair_pages(plan: PoolPlan, local: Pages, remote: Pages) -> Pairs:
    """The pairs of items whose tokens both sides name; the same pairs in the same order for the ``mirror`` of the plan.

    A larger page whose end the other side does not name is covered in part.
    """
    mine, theirs = plan.local_ratio, plan.remote_ratio
    if mine == theirs == 1 and local.step == remote.step:
        return _in_step(local, remote)
    position = np.arange(local.items.size, dtype=np.int64) * local.step + local.first
    part = np.arange(mine, dtype=np.int64)
    small = (position[:, None] * mine + part).ravel() if mine > 1 else position
    beyond = small // theirs - remote.first
    there = beyond // remote.step
    both = (beyond >= 0) & (beyond % remote.step == 0) & (there < remote.items.size)
    small = small[both]
    here = np.repeat(local.items, mine)[both]
    far = remote.items[there[both]]
    phase = small % (mine * theirs)
    if plan.phases == 1 and mine * theirs > 1:
        cut = phase.astype(np.uint64)
        here, far = (here * np.uint64(mine) + cut, far) if mine > 1 else (here, far * np.uint64(theirs) + cut)
        phase = np.zeros_like(phase)
    return Pairs(here, far, phase)


def _in_step(local: Pages, remote: Pages) -> Pairs:
    """Of pages of one size whose positions grow alike: a part of each side's, without looking at any."""
    shift, apart = divmod(local.first - remote.first, local.step)
    if apart:
        return Pairs(local.items[:0], remote.items[:0], np.zeros(0, np.int64))
    begin = max(0, -shift)
    stop = max(min(local.items.size, remote.items.size - shift), begin)
    return Pairs(local.items[begin:stop], remote.items[begin + shift : stop + shift], np.zeros(stop - begin, np.int64))


def page_slices(plan: PoolPlan, local: Pages, remote: Pages, layers: range | None = None) -> tuple[PoolSlice, ...]:
    """What a chunk moves of one pool, in index form; ``layers``: None for all, or a range of step 1."""
    pairs = pair_pages(plan, local, remote)
    lanes = np.arange(plan.num_lanes)
    if layers is not None:
        if layers.step != 1:
            raise ValueError(f"layers must be a range of step 1, got {layers}")
        lanes = np.flatnonzero((plan.layer >= layers.start) & (plan.layer < layers.stop))
    if plan.phases == 1:
        return (PoolSlice(plan, lanes, pairs.local, pairs.remote),)
    each = plan.num_lanes // plan.phases
    slices = []
    for phase in range(plan.phases):
        chosen = pairs.phase == phase
        bounds = np.searchsorted(lanes, [phase * each, (phase + 1) * each])
        slices.append(PoolSlice(plan, lanes[bounds[0] : bounds[1]], pairs.local[chosen], pairs.remote[chosen]))
    return tuple(slices)


def page_batch(plan: TransferPlan, pages: Mapping[str, tuple[Pages, Pages]], layers: range | None = None) -> Batch:
    """One batch of the pools' (local, remote) pages and items, in the plan's order of pools. ``layers`` is for the KV pool.

    Indices have been checked against both sides' numbers of items. Pools that the plan leaves out are passed over: this
    rank sends nothing of them to that one.
    """
    slices: list[PoolSlice] = []
    for pool in plan.pools:
        if pool.pool in pages:
            slices += page_slices(pool, *pages[pool.pool], layers if pool.pool == KV_POOL else None)
    return Batch(slices)

"""What would move from one rank to another, for people: layers, heads, bytes and descriptors."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import AUX_POOL, NO_LAYER, Topology
from kv_core.layout.compare import listed
from kv_core.layout.compare_items import described
from kv_core.layout.lanes import Common, pool_lanes
from kv_core.layout.memory_map import MemoryLayout
from kv_core.layout.planner import common_pools, plan_transfer
from kv_core.layout.ranks import Ranks
from kv_core.layout.shares import shared_pages


class Move(NamedTuple):
    """What a rank sends to another of one pool, of blocks whose units are shared alike.

    ``layers``, ``parts`` and ``units`` are text ("0..15", "k, v", "0..3 of 8"). Bytes and descriptors, before merging, are
    those of one page of ``tokens`` tokens (the smaller side's; 0: of one item of state), all layers together. ``pages``:
    which of a prompt's pages, "all" or so many in each period of the two sides' context parallelism.
    """

    source: Ranks
    destination: Ranks
    pool: str
    layers: str
    parts: str
    units: str
    tokens: int
    pages: str
    bytes_per_page: int
    descriptors_per_page: int

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {**self._asdict(), "source": list(self.source), "destination": list(self.destination)}


def explain(
    source: MemoryLayout,
    destination: MemoryLayout,
    source_place: Topology,
    destination_place: Topology,
    *,
    uneven: bool = False,
) -> tuple[Move, ...]:
    """What prefill's rank ``source`` sends to decode's rank ``destination``; nothing if it does not serve it.

    Raises ``LayoutMismatch`` as ``plan_transfer`` does.
    """
    plan = plan_transfer(
        source, destination, local_topology=source_place, remote_topology=destination_place, uneven=uneven
    )
    ranks = source_place.ranks, destination_place.ranks
    if not described(source):
        return tuple(
            Move(*ranks, pool.pool, _layers(pool.layer), "", "all", 0, "all", int(pool.length.sum()), pool.num_lanes)
            for pool in plan.pools
        )
    found: list[Move] = []
    for name, shared in common_pools(source, destination, source_place, destination_place).items():
        pools = source.pool(name), destination.pool(name)
        tokens = min(pool.tokens for pool in pools if pool is not None) if name != AUX_POOL else 0
        pages = _pages(shared, source_place, destination_place) if tokens else "all"
        alike = np.stack([shared.low, shared.units, shared.source.total])
        for low, units, total in np.unique(alike, axis=1).T.tolist():
            part = shared.only((alike == np.array([[low], [units], [total]])).all(axis=0))
            lanes = pool_lanes(name, part, 0, 0)
            parts = sorted({key[1] for key in part.source.keys})
            told = (
                "all"
                if units == total
                else f"{low}..{low + units - 1} of {total}"
                if units > 1
                else f"{low} of {total}"
            )
            descriptors = int(lanes.inner_count.sum()) // lanes.phases
            layers = _layers(part.source.layer)
            found.append(
                Move(*ranks, name, layers, ", ".join(parts), told, tokens, pages, part.bytes_per_page, descriptors)
            )
    return tuple(found)


def _layers(layer: npt.NDArray[np.int64]) -> str:
    """``0..15``, or ``1..57 by 4`` where ranks take turns."""
    numbers = sorted(set(layer[layer != NO_LAYER].tolist()))
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}..{numbers[-1]} by {steps.pop()}"
    return listed(numbers) or "-"


def _pages(shared: Common, source: Topology, destination: Topology) -> str:
    count, period = shared_pages(source, destination, shared.source_ratio, shared.destination_ratio)
    return "all" if count == period else f"{count} of {period}"

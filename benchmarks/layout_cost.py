"""What the index arithmetic costs: microseconds per chunk, and per peer for the plan.

    python benchmarks/layout_cost.py [--buffers 64] [--pages 8,64,256,1024] [--json]

``plan`` is made once per peer; all else once per chunk. ``random`` pages touch nowhere, ``contiguous`` ones everywhere
on both sides. Each figure is the median of repeated runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kv_core.contract.memory import KVArgs, Pool, Topology
from kv_core.contract.transport import U64
from kv_core.layout import MemoryLayout, make_batch, plan_transfer, segments

ITEM_LEN = 32_768
BUDGET_S = 0.05
COLUMNS = ("pages", "pattern", "descriptors", "copies", "batch_us", "sizes_us", "copies_us", "split_us", "segments_us")


def median_us(call: Callable[[], Any]) -> float:
    """Median time of one call in microseconds, over as many calls as fit the budget (at least 5)."""
    call()
    samples: list[float] = []
    end = time.perf_counter() + BUDGET_S
    while len(samples) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return round(statistics.median(samples) * 1e6, 2)


def args_of(buffers: int, num_items: int) -> KVArgs:
    """K and V of each layer, an auxiliary pool."""
    addresses = [(1 << 40) + i * ITEM_LEN * num_items for i in range(buffers)]
    layers = [i // 2 for i in range(buffers)]
    return KVArgs(
        kv=Pool.uniform("kv", addresses, ITEM_LEN, num_items, layers=layers),
        aux=Pool.uniform("aux", [1 << 20], 1600, 64),
    )


def measure(buffers: int, pages: int, pattern: str) -> dict[str, Any]:
    """One row of the table."""
    num_items = max(4 * pages, 64)
    layout = MemoryLayout.of(args_of(buffers, num_items))
    plan = plan_transfer(layout, layout, local_topology=Topology(), remote_topology=Topology())
    local, remote = items_of(pattern, pages, num_items, 1), items_of(pattern, pages, num_items, 2)
    batch = make_batch(plan, (local, remote, None), aux=(3, 5))

    def sizes() -> tuple[int, int]:
        fresh = type(batch)(batch.slices)
        return fresh.nbytes, fresh.num_descriptors

    figures = (
        pages, pattern, batch.num_descriptors, int(batch.copies().length.size),
        median_us(lambda: make_batch(plan, (local, remote, None), aux=(3, 5))), median_us(sizes),
        median_us(batch.copies), median_us(lambda: [part.copies() for part in batch.split(4_096, 256 << 20)]),
        median_us(lambda: segments(batch)),
    )  # fmt: skip
    return dict(zip(COLUMNS, figures, strict=True))


def items_of(pattern: str, pages: int, num_items: int, seed: int) -> U64:
    """Indices of a chunk's pages."""
    if pattern == "contiguous":
        return np.arange(seed, seed + pages, dtype=np.uint64)
    return np.random.default_rng(seed).permutation(num_items)[:pages].astype(np.uint64)


def peer_costs(buffers: int) -> dict[str, float]:
    """What is paid once per peer, in microseconds."""
    layout = MemoryLayout.of(args_of(buffers, 4_096))
    wire = layout.to_wire()
    return {
        "to_wire_us": median_us(layout.to_wire),
        "from_wire_us": median_us(lambda: MemoryLayout.from_wire(wire)),
        "plan_us": median_us(
            lambda: plan_transfer(layout, layout, local_topology=Topology(), remote_topology=Topology())
        ),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of planning and indexing.")
    parser.add_argument("--buffers", type=int, default=64)
    parser.add_argument("--pages", default="8,16,32,64,128,256,512,1024", help="chunk sizes, comma-separated")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args()
    peer = peer_costs(options.buffers)
    pages = [int(text) for text in options.pages.split(",")]
    rows = [measure(options.buffers, count, pattern) for count in pages for pattern in ("contiguous", "random")]
    if options.json:
        print(json.dumps({"buffers": options.buffers, "peer": peer, "chunks": rows}))
        return 0
    print(f"{options.buffers} buffers; per peer: " + ", ".join(f"{name[:-3]} {us} us" for name, us in peer.items()))
    print(" ".join(f"{name:>12}" for name in COLUMNS))
    for row in rows:
        print(" ".join(f"{row[name]:>12}" for name in COLUMNS))
    return 0


if __name__ == "__main__":
    sys.exit(main())

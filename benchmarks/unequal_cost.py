"""What planning costs between unequal topologies: microseconds for a peer and for a chunk, descriptors for a page.

    python -m benchmarks.unequal_cost [--layers 64] [--pages 256] [--json]       # or: python -m benchmarks.bench --only planning

One prefill and one decode rank of each pair; a model of 8 KV heads of 256 bytes (or one latent vector of 1,152), pages of
16 tokens. ``copies`` are what is left of a chunk's descriptors when neighbours are merged, with pages at random places and
side by side. ``wire_us``: the chunk's bytes at 25 GB/s, to compare with. Medians of repeated runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.tables import planning
from benchmarks.layout_cost import items_of, median_us
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology
from kv_core.contract.transport import TransferPlan
from kv_core.layout import Batch, MemoryLayout, Pages, explain, page_batch, plan_transfer

HEADS, HEAD_BYTES, LATENT_BYTES, PAGE = 8, 256, 1_152, 16
WIRE_BYTES_PER_US = 25_000
LARGE_PAGES = 100_000
COLUMNS = (
    "pair", "bytes_page", "desc_page", "lanes", "plan_us", "batch_us", "copies_random", "copies_us", "copies_contig",
    "contig_us", "wire_us",
)  # fmt: skip


ALONE = Topology()


@dataclass(frozen=True)
class End:
    """One side of a pair."""

    place: Topology = ALONE
    page: int = PAGE
    order: str = "NHD"
    mla: bool = False

    def layout(self, layers: int, num_items: int) -> MemoryLayout:
        """K and V of each layer, or its latent vectors; a stage has its share of the layers."""
        heads, width = (1, LATENT_BYTES) if self.mla else (HEADS, HEAD_BYTES)
        item = ItemLayout.page(self.page, heads, width, tp_size=self.place.tp_size, order=self.order)
        first, stop = (layers * stage // self.place.pp_size for stage in (self.place.pp_rank, self.place.pp_rank + 1))
        parts = ("latent",) if self.mla else ("k", "v")
        buffers = [
            Buffer((1 << 30) + layer, item.nbytes, num_items, layer, part, item)
            for layer in range(first, stop)
            for part in parts
        ]
        return MemoryLayout.of(KVArgs(Pool("kv", tuple(buffers)), page_size=self.page, topology=self.place))


def tp(size: int, **more: Any) -> End:
    """The first of ``size`` tensor-parallel ranks."""
    return End(Topology(tp_size=size), **more)


PAIRS: dict[str, tuple[End, End]] = {
    "tp2 -> tp2": (tp(2), tp(2)),
    "tp4 -> tp2 NHD": (tp(4), tp(2)),
    "tp2 -> tp4 NHD": (tp(2), tp(4)),
    "tp1 -> tp8 NHD": (tp(1), tp(8)),
    "tp4 -> tp2 HND": (tp(4, order="HND"), tp(2, order="HND")),
    "tp2 NHD -> HND": (tp(2), tp(2, order="HND")),
    "16 -> 64 tokens NHD": (tp(2), tp(2, page=64)),
    "16 -> 64 tokens HND": (tp(2, order="HND"), tp(2, order="HND", page=64)),
    "tp4 -> tp1 MLA": (tp(4, mla=True), tp(1, mla=True)),
    "pp2 -> pp1": (End(Topology(pp_size=2)), End()),
    "cp2 -> cp1": (End(Topology(cp_size=2)), End()),
}


def pages_of(pattern: str, pages: int, num_items: int, end: End, seed: int) -> Pages:
    """A chunk's pages on one side: as many tokens whatever the size of a page."""
    count = -(-pages * PAGE // end.page)
    return Pages(items_of(pattern, count, num_items, seed), end.place.cp_rank, end.place.cp_size)


def measure(name: str, layers: int, pages: int) -> dict[str, Any]:
    """One row of the table."""
    ends = PAIRS[name]
    num_items = 4 * pages
    layouts = [end.layout(layers, num_items) for end in ends]

    def made() -> TransferPlan:
        return plan_transfer(layouts[0], layouts[1], local_topology=ends[0].place, remote_topology=ends[1].place)

    plan = made()
    moves = explain(layouts[0], layouts[1], ends[0].place, ends[1].place)

    def chunk(pattern: str) -> Callable[[], Batch]:
        here, there = (pages_of(pattern, pages, num_items, end, seed) for seed, end in enumerate(ends, 1))
        return lambda: page_batch(plan, {"kv": (here, there)})

    random, side_by_side = chunk("random"), chunk("contiguous")
    batches = random(), side_by_side()
    figures = (
        name, sum(move.bytes_per_page for move in moves), sum(move.descriptors_per_page for move in moves),
        plan.pools[0].num_lanes, median_us(made), median_us(random),
        int(batches[0].copies().length.size), median_us(batches[0].copies),
        int(batches[1].copies().length.size), median_us(batches[1].copies),
        round(batches[0].nbytes / WIRE_BYTES_PER_US, 1),
    )  # fmt: skip
    return dict(zip(COLUMNS, figures, strict=True))


def large(layers: int) -> dict[str, Any]:
    """A room of 100,000 pages: its batch, and objects of the interpreter that the batch leaves behind."""
    ends = PAIRS["16 -> 64 tokens HND"]
    layouts = [end.layout(layers, LARGE_PAGES) for end in ends]
    plan = plan_transfer(*layouts, local_topology=ends[0].place, remote_topology=ends[1].place)
    here, there = (pages_of("random", LARGE_PAGES, LARGE_PAGES, end, seed) for seed, end in enumerate(ends, 1))
    before, start = sys.getallocatedblocks(), time.perf_counter()
    batch = page_batch(plan, {"kv": (here, there)})
    figures = {"batch_us": round((time.perf_counter() - start) * 1e6), "objects": sys.getallocatedblocks() - before}
    start, parts = time.perf_counter(), 0
    for part in batch.split(4_096, 256 << 20):
        parts += 1
        if parts % 256 == 1:
            part.copies()
    split = time.perf_counter() - start
    return {
        "pages": LARGE_PAGES, "buffers": 2 * layers, **figures, "descriptors": batch.num_descriptors, "batches": parts,
        "split_s": round(split, 3), "bytes": batch.nbytes,
    }  # fmt: skip


def run(layers: int = 64, pages: int = 256) -> dict[str, Any]:
    """All pairs, and the large room."""
    return {
        "layers": layers, "pages": pages, "pairs": [measure(name, layers, pages) for name in PAIRS], "large": large(layers),
    }  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Cost of planning between unequal topologies.")
    parser.add_argument("--layers", type=int, default=64, help="two buffers each")
    parser.add_argument("--pages", type=int, default=256, help="pages of 16 tokens in a chunk")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args()
    result = run(options.layers, options.pages)
    print(json.dumps(result) if options.json else "\n".join(planning(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

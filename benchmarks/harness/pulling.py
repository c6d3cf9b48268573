"""Push and pull in turns: the same rooms, written by prefill and read by decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness.figures import Spread
from benchmarks.harness.goodput import BUFFERS, ITEM_BYTES
from benchmarks.harness.ranks import Pair
from benchmarks.harness.work import Work

CELLS = ((1, 1), (16, 1), (16, 8), (128, 4))
"""Pages of a room, and rooms in flight."""
LEAST_ROOMS, PAGES = 8, 256
"""Rooms of a measurement: so many at least, and so many pages together."""
POOL = 1_024


def run(pair: Pair, *, rounds: int, options: dict[str, Any], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Milliseconds of a room each way, and their ratio, for each cell."""
    pair.command("memory", name="pulled", buffers=BUFFERS, item_bytes=ITEM_BYTES, pages=POOL)
    ways = {"push": "write", "pull": "read"}
    for way, direction in ways.items():
        pair.open(way, "core", "pulled", **options, direction=direction)
        pair.run(way, Work(16, 8, 2))
    rows = []
    for pages, concurrency in CELLS:
        taken: dict[str, list[float]] = {way: [] for way in ways}
        rooms = max(LEAST_ROOMS, PAGES // pages)
        for number in range(rounds):
            tell(f"push and pull, rooms of {pages} pages, round {number + 1} of {rounds}")
            for way, values in taken.items():
                values.append(float(pair.run(way, Work(pages, rooms, concurrency))["elapsed_s"]) / rooms * 1e3)
        ratio = [a / b for a, b in zip(taken["push"], taken["pull"], strict=True)]
        figures = {f"{way}_ms": Spread.of(values) for way, values in taken.items()}
        rows.append({"pages": pages, "in_flight": concurrency, **figures, "ratio": Spread.of(ratio)})
    for way in ways:
        pair.close(way)
    return rows

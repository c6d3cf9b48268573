"""Bytes per second, and what they cost: kv-core over a backend, its transport alone, and the yardstick.

The yardstick is the engine itself where the backend has one, else a plain socket. Beside an engine the socket is shown
in some cells, and the engine driven in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from benchmarks.harness.figures import Spread
from benchmarks.harness.memory import Shape
from benchmarks.harness.ranks import Pair, RankFailed
from benchmarks.harness.ways import beside, yardstick
from benchmarks.harness.work import Work

BUFFERS, ITEM_BYTES = 64, 32_768
VERIFIED_PAGES = 16
WAVES = 3
OFTEN_S, SELDOM_S = 0.000_5, 0.002
CELL_S = 60.0
"""A cell that has taken so long gets no further round, if it had two."""
LARGE_BYTES = 20_000_000_000
"""Where a measurement moves more than this, the transport alone is left out."""
BESIDE_PAGES = 64
"""What is shown beside the ways compared is measured with rooms of so many pages, one in flight."""


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    pages: int
    concurrency: int
    pattern: str = "random"

    def rooms(self, shape: Shape, target_bytes: int) -> int:
        """So many rooms are near the target. Each slot has three at least, so that the first and the last rooms, with less
        than all in flight, don't count for much; or one, where that would be a lot.
        """
        room_bytes = self.pages * shape.page_bytes
        waves = WAVES if WAVES * self.concurrency * room_bytes <= LARGE_BYTES else 1
        return max(waves * self.concurrency, round(target_bytes / room_bytes))

    @property
    def pass_s(self) -> float:
        """Pause between two passes of kv-core's engine loops: seldom enough not to take the copying's processor time,
        often enough to see at once that the only room has ended.
        """
        return SELDOM_S if self.concurrency >= 8 and self.pages >= 64 else OFTEN_S


@dataclass(frozen=True)
class Extent:
    """How much is measured. ``pools``: pages of the prefill and of the decode process, 2 MiB each."""

    cells: tuple[Cell, ...]
    pools: tuple[int, int]
    target_bytes: int


def _grid(sizes: Sequence[int]) -> list[Cell]:
    return [Cell(pages, concurrency) for pages in sizes for concurrency in (1, 8, 32)]


EXTENTS = {
    "socket": Extent(
        (*_grid((8, 64, 256)), *(Cell(64, concurrency, "contiguous") for concurrency in (1, 8))),
        (512, 2_048), 2_500_000_000,
    ),
    "raw": Extent((*_grid((8, 64, 256, 1_024)), Cell(64, 8, "contiguous")), (1_024, 2_048), 2_500_000_000),
}  # fmt: skip
"""By yardstick. 5 GiB and 6 GiB of pages; of 1,024 pages, and 32 rooms in flight, they overlap."""
QUICK_EXTENTS = {
    "socket": Extent((Cell(8, 8), Cell(64, 1), Cell(64, 8), Cell(64, 8, "contiguous")), (256, 768), 1_000_000_000),
    "raw": Extent(
        (Cell(8, 1), Cell(8, 8), Cell(64, 1), Cell(64, 8), Cell(256, 8), Cell(64, 8, "contiguous")),
        (256, 768), 500_000_000,
    ),
}  # fmt: skip


def run(
    pair: Pair, backend: str, *, quick: bool, rounds: int, options: dict[str, Any], raw: dict[str, Any],
    tell: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Measure every cell ``rounds`` times in each way, the ways in turn, every second round in the opposite order.

    ``options`` goes to kv-core and the transport, ``raw`` to the engine's own way.
    """
    base = yardstick(backend)
    extent = (QUICK_EXTENTS if quick else EXTENTS)[base]
    pools = extent.pools
    sizes = {role: {"pages": pages} for role, pages in zip(pair.ROLES, pools, strict=True)}
    tell(f"goodput: allocating {sum(pools) * BUFFERS * ITEM_BYTES / 2**30:.1f} GiB")
    pair.command("memory", name="pages", buffers=BUFFERS, item_bytes=ITEM_BYTES, by_role=sizes)
    ways = (base, "core", "transport")
    opened = (*ways, *beside(backend))
    for way in opened:
        pair.open(way, way, "pages", **{"raw": raw, "core": options, "transport": options}.get(way, {}))
        verify(pair, way, pools)
    fabric = pair.run("transport", Work(VERIFIED_PAGES, 1))["sides"]["prefill"]["fabric"]
    shape = Shape(BUFFERS, pools[0], ITEM_BYTES)
    rows = []
    for cell in extent.cells:
        tell(f"goodput: {cell.pages} pages, {cell.pattern}, {cell.concurrency} in flight")
        compared = opened if cell.pages == BESIDE_PAGES and cell.concurrency == 1 else ways
        if cell.rooms(shape, extent.target_bytes) * cell.pages * shape.page_bytes > LARGE_BYTES:
            compared = ways[:2]
        rows.append(measure(pair, cell, compared, shape, extent.target_bytes, rounds))
    for way in opened:
        pair.close(way)
    return {
        "yardstick": base, "ways": list(opened), "buffers": BUFFERS, "item_bytes": ITEM_BYTES, "pool_pages": pools,
        "rounds": rounds, "fabric": fabric, "cells": rows,
    }  # fmt: skip


def verify(pair: Pair, way: str, pools: tuple[int, int]) -> None:
    """One room in each pattern, every byte compared."""
    for pattern in ("random", "contiguous"):
        pair.run(way, Work(VERIFIED_PAGES, 1, pattern=pattern))
        wrong = pair.command("verify", name=way, pages=VERIFIED_PAGES, pattern=pattern, pools=pools)["decode"]
        if wrong:
            raise RankFailed(f"{way}: {wrong} of {VERIFIED_PAGES} {pattern} pages are wrong")


def measure(
    pair: Pair, cell: Cell, ways: tuple[str, ...], shape: Shape, target_bytes: int, rounds: int
) -> dict[str, Any]:
    """One cell. ``ratio``: the share of the first way's goodput, each round's pair by itself."""
    rooms = cell.rooms(shape, target_bytes)
    nbytes = rooms * cell.pages * shape.page_bytes
    work = Work(cell.pages, rooms, cell.concurrency, cell.pattern, idle_s=cell.pass_s)
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    start, base, number = monotonic(), ways[0], 0
    while number < rounds and (number < 2 or monotonic() - start < CELL_S):
        for way in ways if number % 2 == 0 else reversed(ways):
            taken[way].append(pair.run(way, work))
        number += 1
    rates = {way: [nbytes / one["elapsed_s"] / 1e9 for one in taken[way]] for way in ways}
    return {
        "pages": cell.pages, "pattern": cell.pattern, "concurrency": cell.concurrency, "rooms": rooms, "bytes": nbytes,
        "rounds": number, "pass_s": cell.pass_s,
        "over_us": Spread.of(_differences(taken["core"], taken[base], rooms)),
        "room_ms": {way: Spread.of([one["elapsed_s"] / rooms * 1e3 for one in taken[way]]) for way in ways},
        "rate": {way: Spread.of(rates[way]) for way in ways},
        "ratio": {way: Spread.of(quotients(rates[way], rates[base])) for way in ways[1:]},
        "cpu_s_per_gb": {
            way: {
                role: Spread.of([one["cpu_s"][role] / nbytes * 1e9 for one in taken[way]]).median for role in pair.ROLES
            }
            for way in ways
        },
        "others_busy": Spread.of([one["others_busy"] for way in ways for one in taken[way]]),
    }  # fmt: skip


def _differences(these: Sequence[dict[str, Any]], those: Sequence[dict[str, Any]], rooms: int) -> list[float]:
    """Microseconds per room by which these took longer than those."""
    return [(a["elapsed_s"] - b["elapsed_s"]) / rooms * 1e6 for a, b in zip(these, those, strict=True)]


def quotients(these: Sequence[float], those: Sequence[float]) -> list[float]:
    """Each divided by its counterpart."""
    return [a / b for a, b in zip(these, those, strict=True)]
